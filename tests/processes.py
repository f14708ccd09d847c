"""Processes of one job for tests, as torchrun starts them but sooner: each is forked from one
process that has imported everything and has computed nothing yet."""

import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from unittest import mock

import sklearn.datasets  # noqa: F401  else each process would import it by itself
import torchvision.utils  # noqa: F401

import sample
from cli import parser as flags
from sampling import parts as npz

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


class Processes:
    """`sample.py` with these arguments in `count` processes, in a folder.

    Each gets stuck after `stuck` parts, if given; no file may become larger than `limit` bytes.
    """

    def __init__(self, folder: Path, count: int, *arguments, stuck=None, limit=None):
        self.folder = folder
        # Of the server; one thread each, as under torchrun: more may round in another way.
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        with mock.patch.dict(os.environ, environment):
            ensure_running()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = list(map(str, arguments))
        self.all = [
            CONTEXT.Process(target=run, args=(rank, count, port, words, folder, stuck, limit))
            for rank in range(count)
        ]
        for process in self.all:
            process.start()

    def wait(self) -> list[int]:
        """Their exit codes, once all have ended; a signal's is negative."""
        for process in self.all:
            process.join(60)
            process.kill()
            process.join()
        return [process.exitcode for process in self.all]

    def wait_for(self, *names: str) -> None:
        """Wait until there are files of these names."""
        start = time.monotonic()
        while not all((self.folder / name).exists() for name in names):
            assert time.monotonic() - start < 60, self.text("err")
            time.sleep(0.01)

    def text(self, stream: str, rank: int = 0) -> str:
        """What a process has printed so far to "out" or "err"."""
        return (self.folder / f"{rank}.{stream}").read_text()


def run(rank: int, count: int, port: int, arguments: list[str], folder: Path, stuck, limit) -> None:
    """A process: sample.py."""
    os.chdir(folder)
    for stream, name in [(1, "out"), (2, "err")]:
        os.dup2(os.open(f"{rank}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream)
    if count > 1:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in group.items()})
    if stuck is not None:
        npz.save_named = stuck_after(stuck, rank)
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["sample.py", *arguments]
    sys.exit(flags.run(sample.main, sample.parse_args(arguments)))


def stuck_after(parts: int, rank: int):
    """A save_named that writes so many parts, and gets stuck in the midst of the next one."""
    save_named, written = npz.save_named, []

    def save(path: Path, write) -> None:
        if path.suffix == ".part":
            if len(written) == parts:
                path.with_name(f".{path.name}.{os.getpid()}.partial").write_bytes(b"half")
                Path(f"{rank}.stuck").touch()
                time.sleep(600)
            written.append(path)
        save_named(path, write)

    return save
