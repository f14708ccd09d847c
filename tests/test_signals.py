"""Signals that stop a command, a terminal that goes away, and commands that run in a thread."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import sample
from checkpoints.checkpoint import load_checkpoint
from conftest import ROOT
from processes import TIMEOUT, Processes, run_sample
from runs import SMALL, TrainingProcess, wait_for
from train import train
from training import progress
from training.folder import RunFolder
from training.log import read_metrics
from training.stop import REQUESTS, StopSignals, handle_requests

ENDLESS = [*SMALL, "--max-steps", 100_000]
HANGUP = 128 + signal.SIGHUP


def running(folder: Path, **options) -> tuple[RunFolder, TrainingProcess]:
    """A run that has begun to train."""
    run = RunFolder(folder / "run")
    job = TrainingProcess(folder / "log", *ENDLESS, "--output-dir", run.path, **options)
    wait_for(lambda: read_metrics(run.metrics))
    return run, job


def test_sighup_saves_as_sigterm_does(tmp_path, script):
    run, job = running(tmp_path)
    for _ in range(3):  # the kernel and the shell may each send one
        job.send(signal.SIGHUP)
    assert job.wait() == HANGUP
    step = load_checkpoint(run.interrupted)["step"]
    assert f"stopped after step {step}" in job.text()
    result = script("train", "--resume", "--output-dir", run.path, "--max-steps", step + 2)
    assert result.code == 0, result.err


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """As under nohup."""
    run, job = running(tmp_path, prepare=ignore_hangup)
    job.send(signal.SIGHUP)
    last = read_metrics(run.metrics)[-1]["step"]
    wait_for(lambda: read_metrics(run.metrics)[-1]["step"] > last + 20)
    job.send(signal.SIGTERM)
    assert job.wait() == 128 + signal.SIGTERM


def use_terminal(name: str, *, deaf: bool = False) -> None:
    """Move this process to a terminal, in a session of its own."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    if deaf:
        ignore_hangup()
        progress.LINE_EVERY = 0.1


@pytest.mark.parametrize("deaf", [False, True])
def test_a_terminal_that_goes_away_costs_nothing(tmp_path, deaf):
    """The run is saved at once, or goes on if it ignores the signal; its output is in a file."""
    master, slave = os.openpty()
    run, job = running(tmp_path, prepare=partial(use_terminal, os.ttyname(slave), deaf=deaf))
    os.close(slave)
    os.close(master)
    if deaf:
        wait_for(run.lost_output.exists)
        wait_for(lambda: "step " in run.lost_output.read_text())
        job.send(signal.SIGTERM)
    assert job.wait() == (128 + signal.SIGTERM if deaf else HANGUP)
    step = load_checkpoint(run.interrupted)["step"]
    text = run.lost_output.read_text()
    assert f"stopped after step {step:,}" in text
    assert "\r" not in text  # no bar


def test_sampling_in_parts_continues_after_sighup(trained, tmp_path):
    request = ["--checkpoint", trained / "model_final.pt", "--num-images", 4, "--batch-size", 1]
    request += ["--steps", 2, "--output", tmp_path / "samples.npz"]
    job = Processes(tmp_path, 1, run_sample, *request, stuck=2)
    job.wait_for("0.stuck")
    os.kill(job.all[0].pid, signal.SIGHUP)
    assert job.wait() == [HANGUP]
    assert "2 of 4 images are in" in job.text("err")


def test_ctrl_c_while_modules_are_imported(tmp_path):
    words = [sys.executable, "-c", INTERRUPTED, "train.py", "--max-steps", "1"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == -signal.SIGINT
    assert result.stderr == "\ntrain.py: interrupted\n"


# Runs train.py as a script, and is interrupted at its import of torch.
INTERRUPTED = """
import os, runpy, signal, sys
class Finder:
    def find_spec(name, *rest):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
sys.argv = sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""


# --- the handlers ---------------------------------------------------------------------------------


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in REQUESTS]
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)  # a logout sends both
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for(lambda: stop.received)
        time.sleep(0.01)
        assert stop.received == signal.SIGHUP
        assert signal.getsignal(signal.SIGTERM) == before[REQUESTS.index(signal.SIGTERM)]
    assert [signal.getsignal(number) for number in REQUESTS] == before


def run_tiny(folder: Path):
    flags = {"dataset": "digits", "channels": 8, "model": "dit", "blocks": 1, "max_steps": 2}
    return train(**flags, device="cpu", sample_interval=0, save_interval=0, output_dir=folder)


def in_thread(call):
    with ThreadPoolExecutor() as pool:
        return pool.submit(call).result()


def in_event_loop(call):
    async def main():
        return await asyncio.to_thread(call)

    return asyncio.run(main())


@pytest.mark.parametrize("where", [in_thread, in_event_loop])
def test_train_and_sample_in_a_thread(tmp_path, where):
    stdout = sys.stdout
    result = where(lambda: run_tiny(tmp_path / "run"))
    assert result.exit_code == 0
    assert load_checkpoint(result.checkpoint)["step"] == 2
    assert len(where(lambda: sample.sample(result.checkpoint, num_images=2, steps=2))) == 2
    assert sys.stdout is stdout


def test_no_handlers_outside_the_main_thread():
    before = [signal.getsignal(number) for number in REQUESTS]
    found = []

    def work() -> None:
        found.append(handle_requests(lambda *_: None))
        with StopSignals(), sample.interrupts():
            found.append([signal.getsignal(number) for number in REQUESTS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [{}, before]
