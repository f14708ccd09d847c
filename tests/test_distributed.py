"""Training with two processes, as torchrun starts them."""

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

import two_processes
from conftest import ROOT
from models import MODELS

ALONE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def torchrun(*arguments) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, *map(str, arguments)]
    environment = {**os.environ, **ALONE}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


# --- the update ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> dict:
    """What tests/two_processes.py computes."""
    file = tmp_path_factory.mktemp("computed") / "found.pt"
    result = torchrun(ROOT / "tests" / "two_processes.py", file)
    assert result.returncode == 0, result.stderr
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


@pytest.mark.parametrize("name", MODELS)
def test_every_network_learns_the_same_in_both(computed, name):
    found = computed["networks"][name]
    assert torch.tensor(found["losses"]).isfinite().all()
    assert torch.equal(*found["weights"])
    assert torch.equal(*found["averages"])
