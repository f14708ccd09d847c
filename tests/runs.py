"""Helpers of tests that train: interruptions, trainers, processes, and comparisons."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

import train
from cli import process
from cli.training import TRAIN
from conftest import TINY
from dataset.registry import load_dataset
from processes import CONTEXT, TIMEOUT, start_server
from training.config import make_config, with_defaults
from training.trainer import Trainer

# A network that takes a seventh of the time of the U-Net, where the network does not matter.
SMALL = [*TINY, "--model", "dit", "--blocks", "1", "--patch-size", "4"]


def trainer_of(*arguments) -> Trainer:
    """A trainer as train.py makes it for these flags."""
    flags = TRAIN.parse([*TINY, *map(str, arguments)])
    data = load_dataset(flags.dataset)
    flags = with_defaults(flags, data)
    config = make_config(flags, data)
    return Trainer(config, torch.device("cpu"), flags.precision, flags.compile)


def assert_same_training(a: dict, b: dict) -> None:
    """Assert that two checkpoints have the same bits in all that training changes."""
    for key in ("model", "ema"):
        for name, tensor in a[key].items():
            assert torch.equal(tensor, b[key][name]), (key, name)
    assert a["optimizer"].keys() == b["optimizer"].keys()
    for optimizer, saved in a["optimizer"].items():
        for i, state in saved["state"].items():
            for name, value in state.items():
                other = b["optimizer"][optimizer]["state"][i][name]
                assert torch.equal(value, other), (optimizer, i, name)
    assert a["step"] == b["step"]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- interruptions --------------------------------------------------------------------------------


@contextmanager
def in_step(step: int, action: Callable[[], object]):
    """While open, `action` is called in the middle of a training step (from 1)."""
    train_step = Trainer.train_step

    def watch(trainer, *arguments):
        if trainer.step + 1 == step:
            action()
        return train_step(trainer, *arguments)

    with mock.patch.object(Trainer, "train_step", watch):
        yield


def ctrl_c_in(step: int):
    """While open, this process receives a Ctrl-C in the middle of a training step."""
    return in_step(step, lambda: os.kill(os.getpid(), signal.SIGINT))


def killed_in(step: int):
    """While open, a run ends in the middle of a training step, and saves nothing."""

    def fail():
        raise RuntimeError("like a kill")

    return in_step(step, fail)


# --- processes ------------------------------------------------------------------------------------


class TrainingProcess:
    """train.py in a process of its own, forked from one that has imported everything.

    Args:
        log: the file of its output.
        arguments: its flags.
        prepare: called in the process before train.py starts.
    """

    def __init__(self, log: Path, *arguments, prepare: Callable[[], object] | None = None):
        start_server()
        self.log, words = log, list(map(str, arguments))
        self.process = CONTEXT.Process(target=run_train, args=(log, words, prepare))
        self.process.start()

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        """Wait for its end. Returns the exit code, or minus the number of a signal."""
        self.process.join(TIMEOUT)
        self.process.kill()
        self.process.join()
        return self.process.exitcode

    def text(self) -> str:
        """Its output so far."""
        return self.log.read_text()


def run_train(log: Path, arguments: list[str], prepare: Callable[[], object] | None) -> None:
    """Run train.py in this process, with output to a file."""
    file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if prepare is not None:
        prepare()
    sys.argv = ["train.py", *arguments]
    sys.exit(process.run(train.main, TRAIN.parse(arguments)))
