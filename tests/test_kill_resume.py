"""benchmarks/kill_resume.py, with a few kills: exact resume holds, and a difference is noticed."""

import subprocess
import sys

import pytest

from conftest import ROOT

# Both in one process, which imports PyTorch and forks every session once. Grids take few steps,
# and the plot of the loss is a blank picture. In the second part the seeds depend on the process
# id, so that a resumed run cannot have the same bits.
SCRIPT = """
import os, runpy, sys
import numpy as np
main = runpy.run_path(sys.argv[1])["main"]
from training import objective, preview, run_log
from visuals.pictures import save_picture
preview.GRID_STEPS = 5
run_log.plot_loss = lambda rows, path: save_picture(path, np.zeros((9, 9, 3), np.uint8))
sys.argv[1:] = ["--kills", "3"]
exit_code = main()
print(f"exit code {exit_code}", flush=True)
objective.derive_seed = lambda *words: os.getpid()
sys.argv[1:] = ["--kills", "1"]
main.__globals__["MIN_STEPS"] = 12
sys.exit(main())
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> subprocess.CompletedProcess:
    if sys.platform == "win32":
        pytest.skip("sessions are forks")
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "benchmarks" / "kill_resume.py")]
    folder = tmp_path_factory.mktemp("elsewhere")  # the benchmark must find the project itself
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_run_that_is_killed_repeatedly_ends_with_the_same_bits(result):
    report, separator, _ = result.stdout.partition("exit code 0")
    assert separator, result.stdout + result.stderr
    assert "3 kills of " in report
    assert " 0 lost checkpoints" in report
    assert " 0 bits that differ" in report
    assert " 0 files left over" in report


def test_different_bits_are_noticed(result):
    _, _, report = result.stdout.partition("exit code ")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 kills of " in report
    assert "model_final.pt model.stem.weight: " in report
