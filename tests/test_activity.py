"""Signs of life: whatever takes long says what it is doing."""

import io
import os
import shutil
import sys
import threading
import time
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest

import evaluate
import exports
from cli import activity
from cli.activity import Bar, tell
from evaluation import report
from runs import SMALL, TrainingProcess, wait_for
from sampling import draw
from training import loop, objective, progress
from training.preview import Preview


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(activity, "AFTER", 0.05)
    monkeypatch.setattr(activity, "REFRESH", 0.02)
    monkeypatch.setattr(activity, "SHOWN", {})


@pytest.fixture
def stderr(monkeypatch):
    def use(stream: io.StringIO) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return use


def test_what_is_fast_says_nothing(stderr):
    shown = stderr(io.StringIO())
    for _ in range(20):
        with activity.activity("validation"):
            pass
    assert shown.getvalue() == ""
    assert threading.active_count() < 10


def test_slow_steps_say_so(stderr, monkeypatch):
    """The first one, and each that comes after a slow one."""

    def made(seconds: list[float]):
        for number, each in enumerate(seconds):
            time.sleep(each)
            yield number

    shown = stderr(io.StringIO())
    monkeypatch.setattr(loop, "SLOW_STEP", 0.1)
    assert list(loop.with_signs_of_life(made([0, 0.15, 0.01]))) == [0, 1, 2]
    assert shown.getvalue() == ""
    assert list(loop.with_signs_of_life(made([0.15, 0.15, 0, 0.15]))) == [0, 1, 2, 3]
    assert shown.getvalue() == "first training step ...\ntraining step ...\n"


@pytest.mark.parametrize("seconds", [0.1, 1, 4, 11, 40])
def test_progress_off_a_terminal_is_neither_silent_nor_a_flood(stderr, monkeypatch, seconds):
    shown, clock, lines = stderr(io.StringIO()), [0.0], [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    row = {"loss": 1.0, "images_per_second": 10.0, "skipped": 0}
    with progress.Progress(0) as bar:
        for step in range(1, 101):
            clock[0] += seconds
            before = len(shown.getvalue())
            bar.count(step, 1000)
            if step % 10 == 0:
                bar.update(1000, {**row, "step": step})
            lines += [clock[0]] * (len(shown.getvalue()) > before)
    gaps = [after - before for before, after in pairwise([*lines, clock[0]])]
    assert max(gaps) < 18 + seconds + 0.01
    assert len(lines) <= clock[0] / 15 * 2 + 1
    assert "loss 1.0" in shown.getvalue() or clock[0] < 15


def test_what_takes_long_says_so_once(stderr):
    shown = stderr(io.StringIO())
    for _ in range(2):
        with activity.activity("validation"):
            tell("3 of 5")
            time.sleep(0.2)
    assert shown.getvalue() == "validation: 3 of 5 ...\n"


def test_what_takes_very_long_says_so_again(stderr, monkeypatch):
    monkeypatch.setattr(activity, "LINE_EVERY", 0.1)
    shown = stderr(io.StringIO())
    with activity.activity("sample grid"):
        for step in range(3):
            tell(f"step {step} of 3")
            wait_for(lambda step=step: f"step {step} of 3 ..." in shown.getvalue())


def test_a_terminal_shows_a_line_that_vanishes(stderr):
    shown = stderr(Terminal())
    with activity.activity("sample grid"):
        wait_for(lambda: "sample grid [00:0" in shown.getvalue())
        tell("step 2 of 50")
        wait_for(lambda: "sample grid: step 2 of 50 [00:0" in shown.getvalue())
    assert shown.getvalue().split("\r")[-2].strip() == ""
    assert "\n" not in shown.getvalue()


def test_only_the_innermost_activity_is_shown(stderr):
    shown = stderr(io.StringIO())
    with activity.activity("outer"), activity.activity("inner"):
        time.sleep(0.2)
    assert shown.getvalue() == "inner ...\n"
    with activity.activity("outer"):
        with activity.activity("other"):
            pass
        wait_for(lambda: "outer ..." in shown.getvalue())


def test_errors_pass_and_end_the_activity(stderr):
    stderr(io.StringIO())
    with pytest.raises(KeyError), activity.activity("work"):
        raise KeyError
    assert not activity.OPEN.activities


def test_only_the_main_process_speaks(stderr, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    shown = stderr(io.StringIO())
    with activity.activity("work"):
        time.sleep(0.2)
    assert shown.getvalue() == ""


def test_a_bar_is_lines_off_a_terminal(stderr):
    shown = stderr(io.StringIO())
    for i in Bar(range(8), desc="reading"):
        time.sleep(0.03)
        assert i in range(8)
    assert shown.getvalue().startswith("reading: ")
    assert shown.getvalue().count("\n") == 1
    assert " of 8 ..." in shown.getvalue()
    with Bar(total=100, desc="likelihood") as bar:
        bar.update(10)
        wait_for(lambda: "likelihood: 10 of 100 ..." in shown.getvalue())
    shown = stderr(io.StringIO())
    list(Bar(range(8), desc="others", shown=False))
    assert not activity.OPEN.activities


def test_a_bar_is_a_bar_on_a_terminal(stderr):
    shown = stderr(Terminal())
    assert list(Bar(range(3), desc="reading")) == [0, 1, 2]
    assert "reading: 100%" in shown.getvalue()
    assert "..." not in shown.getvalue()


# --- the commands ---------------------------------------------------------------------------------


def slow(function):
    def slowly(*arguments, **options):
        time.sleep(0.2)
        return function(*arguments, **options)

    return slowly


def make_slow() -> None:
    """Let the phases of a run that are not steps take long."""
    activity.AFTER, activity.REFRESH = 0.05, 0.02
    held_out_loss = objective.DiffusionObjective.held_out_loss
    objective.DiffusionObjective.held_out_loss = slow(held_out_loss)
    Preview.sample = slow(Preview.sample)


def test_a_run_says_what_follows_its_steps(tmp_path):
    flags = [*SMALL, "--max-steps", 2, "--output-dir", tmp_path / "run"]
    job = TrainingProcess(tmp_path / "log", *flags, prepare=make_slow)
    assert job.wait() == 0
    assert "validation ..." in job.text()
    assert "sample grid ..." in job.text()


def on_terminal(name: str) -> None:
    make_slow()
    terminal = os.open(name, os.O_RDWR | os.O_NOCTTY)
    for number in (1, 2):
        os.dup2(terminal, number)


def test_a_run_on_a_terminal_of_unknown_size(tmp_path):
    master, slave = os.openpty()
    flags = [*SMALL, "--max-steps", 2, "--output-dir", tmp_path / "run"]
    prepare = partial(on_terminal, os.ttyname(slave))
    job = TrainingProcess(tmp_path / "log", *flags, prepare=prepare)
    shown = b""
    while b"next: python" not in shown:
        shown += os.read(master, 4096)
    assert job.wait() == 0
    assert b"validation [" in shown
    assert b"sample grid [" in shown
    assert b"2/2" in shown
    os.close(slave)
    os.close(master)


def test_sampling_evaluating_and_exporting_say_what_they_do(script, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "draw_batch", slow(draw.draw_batch))
    file = trained / "model_final.pt"
    command = ["--checkpoint", file, "--num-images", 2, "--steps", 2]
    result = script("sample", *command, "--output", tmp_path / "a.png")
    assert result.code == 0
    assert "sampling ..." in result.err

    monkeypatch.setattr(report, "trajectory", slow(report.trajectory))
    (tmp_path / "run").mkdir()  # the report is written into it
    shutil.copy(file, tmp_path / "run")
    result = script("visualize_diffusion", "--run", tmp_path / "run", "--steps", 2)
    assert result.code == 0
    assert "sampling by the checkpoints of the run" in result.err

    monkeypatch.setattr(evaluate, "find_near_copies", slow(evaluate.find_near_copies))
    command = ["--checkpoint", file, "--num-images", 8, "--steps", 2, "--metrics", "copies"]
    result = script("evaluate", *command, "--output", tmp_path / "m.json")
    assert result.code == 0, result.err
    assert "searching for near-copies ..." in result.err

    monkeypatch.setattr(exports, "save_weights", slow(exports.save_weights))
    result = script("export", "--checkpoint", file, tmp_path / "a.safetensors")
    assert result.code == 0
    assert f"writing {tmp_path / 'a.safetensors'} ..." in result.err
