"""Training with two processes, as torchrun starts them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import train
import two_processes
from checkpoints.checkpoint import load_checkpoint
from cli import parser as flags
from conftest import ROOT, TINY
from models import MODELS
from test_train import assert_same_training, wait_for
from training import resume
from training.folder import number_of
from training.log import read_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# Updates of 64 images, and no dropout, whose random numbers depend on the process.
RUN = [*TINY, "--optimizer", "adamw", "--flip", "--class-conditional", "--save-every-steps", "5"]
RUN += ["--multipliers", "1", "--save-interval", "1", "--save-every-minutes", "0"]
STEPS = 60
WAIT = 300  # seconds at most, on a busy machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@contextmanager
def torchrun(*arguments, output: Path):
    """A job of two processes, whose output is written to a file; it ends with the body at last."""
    with open(output, "w") as file:
        job = subprocess.Popen(
            [*TORCHRUN, *map(str, arguments)],
            env=ENVIRONMENT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that it has a process group of its own
        )
    try:
        yield job
    finally:
        job.terminate()  # it then ends its processes too
        job.wait(timeout=WAIT)


def output_of(*arguments, output: Path) -> str:
    """What a job prints that is left alone."""
    with torchrun(*arguments, output=output) as job:
        code = job.wait(timeout=WAIT)
    assert code == 0, output.read_text()
    return output.read_text()


# --- the update ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> dict:
    """What tests/two_processes.py computes."""
    file = tmp_path_factory.mktemp("computed") / "found.pt"
    output_of(ROOT / "tests" / "two_processes.py", file, output=file.with_name("log"))
    return torch.load(file)


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_make_the_update_of_one(computed, case):
    losses, walked = computed[case]
    alone_losses, alone_walked = two_processes.walk(*two_processes.CASES[case])
    assert torch.equal(walked[0], alone_walked[0])
    changes, alone_changes = walked.diff(dim=0), alone_walked.diff(dim=0)
    assert_close(losses, alone_losses, rtol=0, atol=1e-6)
    assert_close(changes, alone_changes, rtol=0, atol=1e-6)
    assert (changes.abs().amax(1) >= 9e-6).all()  # the first is by a learning rate of 1e-5


def test_a_loss_that_is_not_finite_in_one_process_is_left_out_by_both(computed):
    found = computed["left out"]
    assert found["skipped"] == [1, 1]
    assert found["unchanged"] == [True, True]
    assert torch.equal(*found["weights"])
    assert found["weights"].isfinite().all()


def test_two_processes_share_the_images_that_are_measured(computed, tmp_path):
    images, expected = computed["evaluated"], two_processes.evaluated(tmp_path)
    assert images.shape == expected.shape == (31, 1, 8, 8)
    assert_close(images.int(), expected.int(), rtol=0, atol=1)
    assert expected.float().std() > 20


@pytest.mark.parametrize("name", MODELS)
def test_every_network_learns_the_same_in_both(computed, name):
    found = computed["networks"][name]
    assert torch.tensor(found["losses"]).isfinite().all()
    assert torch.equal(*found["weights"])
    assert torch.equal(*found["averages"])


# --- train.py ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    command = [*RUN, "--max-steps", str(STEPS), "--batch-size", "64", "--output-dir", str(folder)]
    assert flags.run(train.main, train.parse_args(command)) == 0
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The folder of the same run by two processes, and what it printed in output.txt."""
    folder = tmp_path_factory.mktemp("together")
    command = [*RUN, "--max-steps", STEPS, "--batch-size", "32", "--output-dir", folder]
    output_of(ROOT / "train.py", *command, output=folder / "output.txt")
    return folder


def test_two_processes_leave_what_one_does(alone, together):
    def files(folder):
        return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"output.txt"}

    assert files(together) == files(alone)
    printed = (together / "output.txt").read_text().splitlines()
    assert "2 processes x 32 images = 64 an update" in printed
    assert len(printed) == len(set(printed))  # by one of them

    rows = read_metrics(together / "metrics.jsonl")
    expected = read_metrics(alone / "metrics.jsonl")
    assert [(row["step"], row["epoch"]) for row in rows] == [
        (row["step"], row["epoch"]) for row in expected
    ]
    for name in ("loss", "validation_loss", "lr", "gradient_norm"):
        values = [[row[name] for row in run if name in row] for run in (rows, expected)]
        assert len(values[0]) >= 3
        assert_close(*values, rtol=1e-3, atol=0)

    grids = [np.asarray(Image.open(run / "samples" / "epoch_003.png")) for run in (alone, together)]
    assert (grids[0] == grids[1]).mean() > 0.99
    final = load_checkpoint(together / "model_final.pt")
    assert final["step"] == STEPS
    assert final["config"]["train"]["update_size"] == 64


def processes(folder: Path) -> dict[int, int]:
    """The processes of the job that writes to a folder, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
            words = (process / "environ").read_text().split("\0")
        except OSError:  # it has ended
            continue
        variables = dict(word.partition("=")[::2] for word in words)
        if str(folder) in command and "RANK" in variables:
            found[int(variables["RANK"])] = int(process.name)
    return found


def wait_in(job: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Wait for something to happen while a job runs."""
    wait_for(lambda: condition() or job.poll() is not None, WAIT)
    assert job.poll() is None, f"the job has ended with {job.returncode}"


def last_row(folder: Path) -> dict:
    return read_metrics(folder / "metrics.jsonl")[-1]


def newest_step(folder: Path) -> int:
    """The newest step by the names of checkpoints: they come and go while it is asked."""
    names = (folder / "checkpoints").glob("model_step_*.pt")
    return max(map(number_of, names), default=0)


def measured(folder: Path) -> list[tuple]:
    names = ("step", "epoch", "loss", "validation_loss", "lr", "gradient_norm", "skipped")
    return [
        tuple(row.get(name) for name in names) for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_a_job_whose_processes_are_killed_ends_with_the_same_bits(together, tmp_path):
    """First process 0 is killed, then process 1 of those that torchrun has started instead."""
    folder, output, least = tmp_path / "run", tmp_path / "output.txt", [0]
    command = [*RUN, "--max-steps", STEPS, "--batch-size", "32", "--output-dir", folder]
    with torchrun("--max-restarts=3", ROOT / "train.py", *command, output=output) as job:
        for number in (0, 1):
            wait_in(job, lambda: newest_step(folder) > least[-1])
            os.kill(processes(folder)[number], signal.SIGKILL)
            least.append(newest_step(folder))
        assert job.wait(timeout=WAIT) == 0, output.read_text()
    assert not processes(folder)
    printed = output.read_text()
    resumed = [int(step) for step in re.findall(r"resuming from .*, step (\d+)", printed)]
    assert len(resumed) == 2
    assert all(step >= kept > 0 for step, kept in zip(resumed, least[1:], strict=True))
    expected, final = (load_checkpoint(run / "model_final.pt") for run in (together, folder))
    assert_same_training(expected, final)
    assert measured(folder) == measured(together)
    grids = [(run / "samples" / "epoch_003.png").read_bytes() for run in (folder, together)]
    assert grids[0] == grids[1]


def test_signals_stop_both_and_other_numbers_of_processes_go_on(
    script, alone, tmp_path, monkeypatch
):
    """A run of one process goes on with two, is stopped twice, and ends with one."""
    folder, output = tmp_path / "run", tmp_path / "output.txt"
    shutil.copytree(alone, folder)
    step, command = STEPS, ["--resume", "--output-dir", folder, "--max-steps"]
    for number, send in ((signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)):
        with torchrun(ROOT / "train.py", *command, 100_000, output=output) as job:
            wait_in(job, lambda last=step: last_row(folder)["step"] > last)
            send(job.pid, number)
            assert job.wait(timeout=25) != 0  # after 30 seconds torchrun kills them
        assert not processes(folder)
        printed = output.read_text()
        assert ("processes: 2, and 1 before" in printed) == (step == STEPS)
        step = load_checkpoint(folder / "checkpoints" / "interrupted.pt")["step"]
        assert f"stopped after step {step}" in printed
        assert last_row(folder)["step"] == step

    result = script("train", *command, step + 3)
    assert result.code == 0, result.err
    assert "processes: 1, and 2 before: updates are as large as they were" in result.out
    final = load_checkpoint(folder / "model_final.pt")
    train_config = final["config"]["train"]
    assert final["step"] == step + 3
    assert (train_config["batch_size"], train_config["grad_accum"]) == (32, 2)

    monkeypatch.setattr(resume, "world_size", lambda: 3)
    result = script("train", *command, step + 6)
    assert result.code == 2
    assert "the run's updates of 64 cannot be shared by 3 processes" in result.err
