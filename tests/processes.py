"""Processes of one job for tests, each forked from one process that has imported everything.

So a job starts in milliseconds, where torchrun takes seconds to import PyTorch in each process.
"""

import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from unittest import mock

import sklearn.datasets  # noqa: F401  imported here once, not by each process
import torch
import torch._dynamo  # the first optimizer imports it, which takes a second
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import sample
import train
from cli import process
from cli.sampling import SAMPLE
from cli.training import TRAIN
from distributed import process_group, rank, restarts
from sampling import parts
from training import preview
from training.trainer import Trainer

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "runs"])  # every module whose functions are forked
TIMEOUT = 300  # seconds, on a busy machine
gc.freeze()  # otherwise garbage collection in a process copies the memory of all imports


def start_server() -> None:
    """Start the process that the others are forked from, unless it runs already."""
    # One thread for each process, as under torchrun: with more, results are rounded otherwise.
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, environment):
        ensure_running()


class Processes:
    """A function in `count` processes of one job, in a folder.

    Args:
        folder: the current folder of the processes. N.out and N.err get the output of process N.
        target: called with the arguments in each process. It may return an exit code.
    """

    def __init__(self, folder: Path, count: int, target: Callable, *arguments, **options):
        self.folder = folder
        start_server()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = (count, port, folder, target, list(map(str, arguments)), options)
        daemon = target is not run_torchrun  # as far as possible, end with the tests
        self.all = [
            CONTEXT.Process(target=start, args=(n, *job), daemon=daemon) for n in range(count)
        ]
        for each in self.all:
            each.start()

    def wait(self) -> list[int]:
        """Wait for all processes. Returns their exit codes; that of a signal is negative."""
        for each in self.all:
            each.join(TIMEOUT)
            each.kill()
            each.join()
        return [each.exitcode for each in self.all]

    def wait_for(self, *names: str) -> None:
        """Wait until the folder has files of these names."""
        self.wait_until(lambda: all((self.folder / name).exists() for name in names))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition while the processes run."""
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end, self.text("err")
            assert all(each.is_alive() for each in self.all), self.text("err")
            time.sleep(0.01)

    def text(self, stream: str, number: int = 0) -> str:
        """What a process has printed so far to "out" or "err"."""
        return (self.folder / f"{number}.{stream}").read_text()


def start(number, count, port, folder, target, arguments, options) -> None:
    """Process `number` of a job: set up what torchrun would, and call the target."""
    multiprocessing.set_start_method("fork", force=True)  # tqdm's lock needs no cleaning up
    os.chdir(folder)
    for stream, name in [(1, "out"), (2, "err")]:
        file = os.open(f"{number}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(file, stream)
    if count > 1:
        group = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in group.items()})
    process.leave(target(*arguments, **options) or 0)


# --- targets -------------------------------------------------------------------------------------


def run_sample(*arguments: str, stuck: int | None = None, limit: int | None = None) -> int:
    """sample.py. It blocks after `stuck` parts; no file may exceed `limit` bytes."""
    if stuck is not None:
        parts.save_whole = blocking_after(stuck)
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["sample.py", *arguments]
    return process.run(sample.main, SAMPLE.parse(arguments))


def run_samples(requests: list[list]) -> None:
    """sample.py several times, with the arguments of each request."""
    with process_group(torch.device("cpu")):
        sample.process_group = lambda device: nullcontext()  # one for all of them
        for arguments in requests:
            assert run_sample(*map(str, arguments)) == 0


def run_train(*arguments: str, kill: tuple[tuple[int, int], ...] = ()) -> int:
    """train.py. In session N, process kill[N][0] is killed before training step kill[N][1]."""
    preview.GRID_STEPS, preview.NUM_POINTS = 5, 100
    if restarts() < len(kill) and kill[restarts()][0] == rank():
        kill_before(kill[restarts()][1])
    sys.argv = ["train.py", *arguments]
    return process.run(train.main, TRAIN.parse(arguments))


def run_torchrun(*arguments: str, worker: Callable, **options) -> None:
    """Two processes that torchrun's agent starts, and restarts if they die; each runs `worker`."""
    os.setsid()  # Ctrl-C is sent to this process group
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        max_restarts=3,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
    )
    elastic_launch(config, run_worker)(worker, arguments, options)


def run_worker(worker: Callable, arguments: list[str], options: dict) -> None:
    """A process that torchrun's agent starts."""
    sys.exit(worker(*arguments, **options))


def blocking_after(count: int) -> Callable:
    """A `save_whole` that writes `count` parts, and stays in the middle of the next one."""
    save_whole, written = parts.save_whole, []

    def save(path: Path, write) -> None:
        if path.suffix == ".part":
            if len(written) == count:
                path.with_name(f".{path.name}.{os.getpid()}.partial").write_bytes(b"half")
                Path(f"{rank()}.stuck").touch()
                time.sleep(600)
            written.append(path)
        save_whole(path, write)

    return save


def kill_before(step: int) -> None:
    """Let this process be killed before a training step."""
    train_step = Trainer.train_step

    def killed(trainer: Trainer, *arguments):
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(trainer, *arguments)

    Trainer.train_step = killed
