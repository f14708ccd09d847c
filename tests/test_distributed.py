"""Training with two processes."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import train
import two_processes
from checkpoints.checkpoint import load_checkpoint
from cli import process
from cli.training import TRAIN
from conftest import ROOT, TINY
from models import MODELS
from processes import TIMEOUT, Processes, run_torchrun, run_train
from runs import assert_same_training, wait_for
from training import resume
from training.log import read_metrics

# Training steps of 64 images. No dropout: its random numbers depend on the process.
RUN = [*TINY, "--optimizer", "adamw", "--flip", "--class-conditional", "--save-every-steps", "5"]
RUN += ["--multipliers", "1", "--save-interval", "1", "--save-every-minutes", "0"]
RUN += ["--output-dir", "run"]
STEPS = 30
TOGETHER = [*RUN, "--max-steps", STEPS, "--batch-size", "32"]
GRID = "samples/epoch_002.png"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


# --- the training step ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> dict:
    """What tests/two_processes.py computes."""
    folder = tmp_path_factory.mktemp("computed")
    processes = Processes(folder, 2, two_processes.compute, "computed.pt")
    assert processes.wait() == [0, 0], processes.text("err")
    return torch.load(folder / "computed.pt")


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_make_the_training_step_of_one(computed, case):
    losses, path = computed[case]
    expected_losses, expected_path = two_processes.losses_and_weights(*two_processes.CASES[case])
    assert torch.equal(path[0], expected_path[0])
    changes, expected_changes = path.diff(dim=0), expected_path.diff(dim=0)
    assert_close(losses, expected_losses, rtol=0, atol=1e-6)
    assert_close(changes, expected_changes, rtol=0, atol=1e-6)
    assert (changes.abs().amax(1) >= 9e-6).all()  # the first learning rate is 1e-5


def test_both_skip_a_step_in_which_one_has_no_finite_loss(computed):
    found = computed["skipped"]
    assert found["skipped"] == [1, 1]
    assert found["unchanged"] == [True, True]
    assert torch.equal(*found["weights"])
    assert found["weights"].isfinite().all()


def test_two_processes_share_the_evaluated_images(computed):
    images, expected = computed["evaluated"], two_processes.evaluated_images()
    assert images.shape == expected.shape == (31, 1, 8, 8)
    assert_close(images.int(), expected.int(), rtol=0, atol=1)
    assert expected.float().std() > 20


@pytest.mark.parametrize("name", MODELS)
def test_every_network_has_the_same_weights_in_both(computed, name):
    found = computed["networks"][name]
    assert torch.tensor(found["losses"]).isfinite().all()
    assert torch.equal(*found["weights"])
    assert torch.equal(*found["averages"])


# --- train.py ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    command = [*RUN, "--max-steps", STEPS, "--batch-size", "64", "--output-dir", folder]
    assert process.run(train.main, TRAIN.parse(list(map(str, command)))) == 0
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The folder of the same run by two processes."""
    folder = tmp_path_factory.mktemp("together")
    processes = Processes(folder, 2, run_train, *TOGETHER)
    assert processes.wait() == [0, 0], processes.text("err")
    return folder / "run"


def test_two_processes_write_what_one_does(alone, together):
    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*")}

    assert files(together) == files(alone)
    printed = (together.parent / "0.out").read_text().splitlines()
    assert "2 processes x 32 images = 64 per training step" in printed
    assert len(printed) == len(set(printed))
    assert (together.parent / "1.out").read_text() == ""

    rows = read_metrics(together / "metrics.jsonl")
    expected = read_metrics(alone / "metrics.jsonl")
    assert [(row["step"], row["epoch"]) for row in rows] == [
        (row["step"], row["epoch"]) for row in expected
    ]
    for name in ("loss", "validation_loss", "lr", "gradient_norm"):
        values = [[row[name] for row in run if name in row] for run in (rows, expected)]
        assert len(values[0]) >= 2
        assert_close(*values, rtol=1e-3, atol=0)

    grids = [np.asarray(Image.open(run / GRID)) for run in (alone, together)]
    assert (grids[0] == grids[1]).mean() > 0.99
    final = load_checkpoint(together / "model_final.pt")
    assert final["step"] == STEPS
    assert final["config"]["train"]["update_size"] == 64


def measured(folder: Path) -> list[tuple]:
    """The rows of the metrics, without times."""
    names = ("step", "epoch", "loss", "validation_loss", "lr", "gradient_norm", "skipped")
    return [
        tuple(row.get(name) for name in names) for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_a_job_with_killed_processes_ends_with_the_same_bits(together, tmp_path):
    """Process 0 is killed, then process 1 of those that torchrun starts instead."""
    killed = {"worker": run_train, "kill": ((0, 12), (1, 22))}
    job = Processes(tmp_path, 1, run_torchrun, *TOGETHER, **killed)
    assert job.wait() == [0], job.text("err")
    printed = job.text("out")
    resumed = [int(step) for step in re.findall(r"resuming from .*, step (\d+)", printed)]
    assert len(resumed) == 2
    assert resumed[0] in (5, 10)  # the newer one is perhaps being written when the process dies
    assert resumed[1] in (15, 20)
    expected, final = (
        load_checkpoint(run / "model_final.pt") for run in (together, tmp_path / "run")
    )
    assert_same_training(expected, final)
    assert measured(tmp_path / "run") == measured(together)
    assert (tmp_path / "run" / GRID).read_bytes() == (together / GRID).read_bytes()


def test_a_signal_to_one_process_stops_both(tmp_path):
    job = Processes(tmp_path, 2, run_train, *TOGETHER, "--max-steps", 100_000)
    job.wait_until(lambda: read_metrics(tmp_path / "run" / "metrics.jsonl"))
    job.all[1].terminate()
    assert job.wait() == [143, 143]
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "interrupted.pt")["step"] > 0


def test_the_command_of_the_readme_trains_with_two_processes(tmp_path):
    """All other jobs of these tests are forks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    flags = [*TINY, "--multipliers", "1", "--max-steps", "2", "--output-dir", "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(ROOT / "train.py"), *flags],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    saved = load_checkpoint(tmp_path / "run" / "model_final.pt")
    assert (saved["step"], saved["config"]["train"]["processes"]) == (2, 2)


@contextmanager
def torchrun(folder: Path, *arguments) -> Iterator[tuple[int, Path]]:
    """A job of torchrun's agent: its process, and the file with its output."""
    job = Processes(folder, 1, run_torchrun, *arguments, worker=run_train)
    try:
        yield job.all[0].pid, folder / "0.out"
        job.all[0].join(25)  # after 30 seconds the agent kills its processes
        assert job.all[0].exitcode not in (0, None)
    finally:
        job.all[0].terminate()
        job.wait()


def processes_in(folder: Path) -> list[str]:
    """Processes of which this is the current folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if (entry / "cwd").readlink() == folder:
                found.append(entry.name)
    return found


def last_step(folder: Path) -> int:
    return read_metrics(folder / "metrics.jsonl")[-1]["step"]


def test_signals_stop_all_processes_and_other_numbers_of_processes_resume(
    script, alone, tmp_path, monkeypatch
):
    """A run of one process is resumed by two, stopped twice, and ended by one."""
    job = tmp_path / "job"
    folder = job / "run"
    shutil.copytree(alone, folder)
    step, command = STEPS, ["--resume", "--output-dir", folder, "--max-steps"]
    # Ctrl-C reaches every process of the group, SIGTERM the agent alone.
    for send, number in [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)]:
        with torchrun(job, *command, 100_000) as (pid, output):
            wait_for(lambda last=step: last_step(folder) > last, seconds=120)
            send(pid, number)
        assert not processes_in(job)
        printed = output.read_text()
        assert ("processes: 2 instead of 1" in printed) == (step == STEPS)
        step = load_checkpoint(folder / "checkpoints" / "interrupted.pt")["step"]
        assert f"stopped after step {step}" in printed
        assert last_step(folder) == step

    result = script("train", *command, step + 3)
    assert result.code == 0, result.err
    assert "processes: 1 instead of 2; training steps stay as large" in result.out
    final = load_checkpoint(folder / "model_final.pt")
    train_config = final["config"]["train"]
    assert final["step"] == step + 3
    assert (train_config["batch_size"], train_config["grad_accum"]) == (32, 2)

    monkeypatch.setattr(resume, "world_size", lambda: 3)
    result = script("train", *command, step + 6)
    assert result.code == 2
    assert "training steps of 64 items cannot be divided among 3 processes" in result.err
