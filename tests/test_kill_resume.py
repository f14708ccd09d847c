"""benchmarks/kill_resume.py, with a few kills: exact resume holds, and a difference is noticed."""

import os
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest

from conftest import ROOT
from processes import Processes, with_children
from sample import sample
from training import objective

BENCHMARK = ROOT / "benchmarks" / "kill_resume.py"


@with_children
def kill_repeatedly() -> int:
    """The benchmark twice. In the second part the seeds depend on the process id, so that a resumed
    run cannot have the same bits.
    """
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != ROOT]
    main = runpy.run_path(str(BENCHMARK))["main"]
    assert str(ROOT) in sys.path  # the benchmark finds the project itself
    main.__globals__["sample"] = partial(sample, steps=5)
    sys.argv = [str(BENCHMARK), "--kills", "3"]
    exit_code = main()
    print(f"exit code {exit_code}", flush=True)
    objective.derive_seed = lambda *words: os.getpid()
    sys.argv[1:] = ["--kills", "1"]
    main.__globals__["MIN_STEPS"] = 12
    return main()


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Processes:
    if sys.platform == "win32":
        pytest.skip("sessions are forks")
    job = Processes(tmp_path_factory.mktemp("elsewhere"), 1, kill_repeatedly)
    job.wait()
    return job


def test_a_run_that_is_killed_repeatedly_ends_with_the_same_bits(result):
    report, separator, _ = result.text("out").partition("exit code 0")
    assert separator, result.text("out") + result.text("err")
    assert "3 kills of " in report
    assert " 0 lost checkpoints" in report
    assert " 0 bits that differ" in report
    assert " 0 files left over" in report


def test_different_bits_are_noticed(result):
    _, _, report = result.text("out").partition("exit code ")
    assert result.wait() == [1], result.text("out") + result.text("err")
    assert "1 kills of " in report
    assert "model_final.pt model.stem.weight: " in report
