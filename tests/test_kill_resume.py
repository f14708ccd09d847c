"""A few of the kills of benchmarks/kill_resume.py."""

import subprocess
import sys

import pytest

from conftest import ROOT

# What a session computes depends on its process: the very thing that the benchmark is to notice.
UNSTEADY = """
import os, sys
from benchmarks import kill_resume
from training import trainer
trainer.derive_seed = lambda *words: os.getpid()
sys.argv[1:] = ["--kills", "1"]
sys.exit(kill_resume.main())
"""


def python(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="sessions are forks")
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits():
    result = python("benchmarks/kill_resume.py", "--kills", 10)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 kills of " in result.stdout
    assert " 0 lost checkpoints" in result.stdout
    assert " 0 bits that differ" in result.stdout
    assert " 0 files left over" in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="sessions are forks")
def test_other_bits_are_noticed():
    result = python("-c", UNSTEADY)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "model_final.pt model.stem.weight: " in result.stdout
