"""Processes of one job for tests, each forked from one process that has imported everything.

So a job starts in milliseconds, where torchrun takes seconds to import PyTorch in each process. On
Linux that one process is itself a fork of the tests (`fork_server`).
"""

import gc
import multiprocessing
import multiprocessing.util
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import resource_tracker
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
SPAWN = multiprocessing.util.spawnv_passfds  # starts the server and the resource tracker
TIMEOUT = 300  # seconds, on a busy machine
gc.freeze()  # otherwise garbage collection in a process copies the memory of all imports


def start_server() -> None:
    """Start the process that the others are forked from, unless it runs already."""
    # One thread for each process, as under torchrun: with more, results are rounded otherwise.
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, environment):
        ensure_running()


def fork_server() -> None:
    """Fork that process from this one, so that it need not repeat the imports, which take seconds.

    Only before the first test: later there are threads here, and what a test has replaced.
    """
    if sys.platform == "linux":
        resource_tracker.ensure_running()  # a process as usual
        with mock.patch("multiprocessing.util.spawnv_passfds", fork_and_serve):
            start_server()


def fork_and_serve(_: bytes, command: list[str], passed: list[int]) -> int:
    """Run the code of a `python -c` command in a fork, which keeps these open files alone.

    The others lead nowhere from then on: something that writes to one, such as a logger that was
    set up while pytest captured stderr, must not write to a new file of the same number.
    """
    with warnings.catch_warnings():
        # Of the thread of pytest-xdist, which only reads.
        warnings.simplefilter("ignore", DeprecationWarning)
        number = os.fork()
    if number:
        return number
    try:
        multiprocessing.util.spawnv_passfds = SPAWN
        nowhere = os.open(os.devnull, os.O_RDWR)
        for file in map(int, os.listdir("/proc/self/fd")):
            if file > 2 and file not in (*passed, nowhere):
                os.dup2(nowhere, file, inheritable=False)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # pytest has others, of other files
        torch.set_num_threads(1)
        gc.freeze()
        exec(command[-1])
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


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
        daemon = not hasattr(target, "children")  # as far as possible, end with the tests
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


def with_children(target: Callable) -> Callable:
    """Decorates a target that starts processes itself."""
    target.children = True
    return target


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


@with_children
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
