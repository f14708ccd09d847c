"""The number of threads: measured at the start, kept by a resumed run, chosen anew under load."""

import copy
import re
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from checkpoints.checkpoint import load_checkpoint
from runs import SMALL, assert_same_training, killed_in, trainer_of
from sampling.thread_times import (
    ThreadTime,
    TooSlow,
    abandoned_after,
    fastest,
    measure_threads,
    speeds,
)
from training import threads
from training.threads import Pace, Threads


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """PyTorch begins with one thread, and the user has fixed no number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


def measured(**seconds: float) -> dict[int, ThreadTime]:
    """The times of a step: measured(n1=0.2, n2=0.1)."""
    return {int(name[1:]): ThreadTime(value) for name, value in seconds.items()}


# --- measuring ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "best", "text"),
    [
        ({1: 0.2, 2: 0.1, 3: 0.08}, 3, "1: 50 images/s, 2: 100, 3: 125"),
        ({1: 0.2, 2: 0.195, 3: 0.3}, 1, "1: 50 images/s, 2: 51, 3: 33"),
        ({1: 0.2, 2: 20.0, 3: 40.0}, 1, "1: 50 images/s, 2: under 17, 3: under 17"),
        ({1: 8.0, 2: 5.0, 3: 6.0}, 2, "1: 1.3 images/s, 2: 2, 3: 1.7"),  # one round is enough
    ],
)
def test_the_fastest_number_of_threads_is_found_in_seconds(seconds, best, text):
    clock, x = Clock(), torch.zeros(1)

    def work():
        for _ in range(100):
            clock.now += seconds[torch.get_num_threads()] / 100
            x.exp()

    found = measure_threads(work, 3, clock)
    assert (fastest(found), speeds(found, 10, "images")) == (best, text)
    assert clock.now - 100 < (20 if seconds[1] > 1 else 4)
    assert torch.get_num_threads() == 1


def test_the_backward_pass_is_abandoned_too():
    clock, x = Clock(), torch.zeros(3, requires_grad=True)

    def late(gradient):
        clock.now += 5

    with abandoned_after(1, clock, closely=False):
        y = x.exp()
        y.register_hook(late)
        loss = y.exp().sum()
        with pytest.raises(TooSlow):
            loss.backward()
    assert clock.now == 105


def test_an_abandoned_computation_leaves_the_mode_of_gradients():
    clock = Clock()

    def work():
        with torch.no_grad():
            clock.now += 5  # too late; the end of no_grad calls a function of PyTorch
        torch.zeros(2).exp()

    with pytest.raises(TooSlow), abandoned_after(1, clock, closely=True):
        work()
    assert torch.is_grad_enabled()


def test_one_slow_step_is_no_slow_pace():
    pace = Pace()
    fast, stopped = [0.5] * 30, [60.0, 0.5, *[0.5] * 10]
    assert {pace.add(seconds) for seconds in [*fast, *stopped]} == {None, 1.0}
    assert [ratio for _ in range(4) if (ratio := pace.add(2.0))] == [4.0]


# --- choosing -------------------------------------------------------------------------------------


class Fake(Threads):
    """The threads of a run without a trainer, on three cores, with times that a test sets."""

    def __init__(self, wanted="auto"):
        trainer = SimpleNamespace(device=torch.device("cpu"), step=7)
        train = {"threads": wanted, "thread_count": None, "processes": 1}
        super().__init__(trainer, train, None, 64, "images", Clock())
        self.most, self.times, self.said_lines = 3, measured(n1=0.2, n2=0.1, n3=0.15), []

    def measure(self):
        self.last = self.clock()
        return self.times

    def steps(self, seconds: float, count: int = 20) -> bool:
        """Make steps of this length; whether the number of threads then changes."""

        def made():
            for _ in range(count):
                self.clock.now += seconds
                yield "step"

        assert len(list(self.timed(made()))) == count
        return self.due() and self.adapt(self.said_lines.append)


@pytest.fixture
def free():
    """The number of threads may be measured, as if there were several cores."""
    with mock.patch.object(threads, "may_measure_threads", return_value=True):
        yield


def saved(**values) -> dict:
    return {"threads": "auto", "processes": 1, **values}


@pytest.mark.parametrize(
    ("wanted", "before", "steps", "text", "count"),
    [
        ("auto", None, 1000, "2 (1: 320 images/s, 2: 640, 3: 427); --threads 2 repeats it", 2),
        ("auto", None, 99, "3", 3),  # too short
        (1, None, 1000, "1", 1),
        ("auto", saved(thread_count=3), 1000, "3 (", 3),  # not much slower: its bits are kept
        ("auto", saved(thread_count=3, processes=2), 1000, "2 (", 2),
        ("auto", saved(thread_count="x"), 1000, "2 (", 2),
        ("auto", saved(), 1000, "3 (", 3),  # of an earlier version
        (2, saved(thread_count=3), 9, "2; 3 before: results may differ", 2),
    ],
)
def test_a_run_chooses_once(free, wanted, before, steps, text, count):
    fake = Fake(wanted)
    assert fake.choose(before, steps, None).startswith(text)
    assert torch.get_num_threads() == fake.train["thread_count"] == count


def test_a_resumed_run_is_not_left_in_a_collapse(free):
    fake = Fake()
    fake.times = measured(n1=0.2, n2=5.0, n3=9.0)
    assert "--threads 1 repeats it; 3 before" in fake.choose(saved(thread_count=3), 500, None)


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Fake().choose(saved(thread_count=3), 1000, None) == "3 (OMP_NUM_THREADS)"


def test_the_number_changes_with_the_load_and_back(free):
    fake = Fake()
    fake.choose(None, 1000, None)
    assert not fake.steps(0.19, 200)  # not twice as slow
    fake.times = measured(n1=0.3, n2=4.0, n3=9.0)
    assert fake.steps(4.0)
    assert fake.train["thread_count"] == torch.get_num_threads() == 1
    assert fake.said_lines[0].startswith("training steps take 40.0 times as long as before: ")
    assert "; 1 thread from step 8 on (1: 213 images/s" in fake.said_lines[0]
    assert not fake.steps(0.3, 1900)  # for less than ten minutes
    fake.times = measured(n1=0.2, n2=0.1, n3=0.15)
    assert fake.steps(0.3, 200)
    assert fake.said_lines[1:] == ["2 threads from step 8 on (1: 320 images/s, 2: 640, 3: 427)"]


def test_a_number_that_is_given_stays_and_slowness_is_said_once():
    fake = Fake(2)
    fake.choose(None, 1000, None)
    for seconds in (0.1, 4.0, 8.0):
        assert not fake.steps(seconds, 60)
    assert fake.said_lines == [
        "training steps take 40.0 times as long as before: something else uses the CPU; "
        "--resume --threads 1 is faster then"
    ]


# --- runs -----------------------------------------------------------------------------------------

SHORT = [*SMALL, "--max-steps", "6", "--validation", "0"]


def test_measuring_leaves_no_trace_in_the_run():
    trainer = trainer_of("--model", "cnn")  # with BatchNorm, whose statistics each call changes
    items = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    trainer.train_step(items, None, 1e-3)
    before, random = copy.deepcopy(trainer.state()), torch.get_rng_state()
    run = Threads(trainer, {}, lambda step: (items, None), 8, "images")
    assert list(run.measure()) == [1]
    assert_same_training(before, trainer.state())
    assert torch.equal(random, torch.get_rng_state())


def test_a_change_in_mid_run_is_made_again_by_a_resumed_run(script, free):
    """One thread from step 4 on, in both. Killed in step 6, only a checkpoint knows it."""
    torch.set_num_threads(2)

    def due(self):
        return self.trainer.step == 3 and self.count == 2

    times = measured(n1=0.1, n2=0.2)
    with mock.patch.multiple(Threads, due=due, measure=lambda self: times):
        result = script("train", *SHORT, "--output-dir", "whole")
        assert "1 thread from step 4 on" in result.err
        with killed_in(6):
            script("train", *SHORT, "--output-dir", "killed")
    text = script("train", "--resume", "--output-dir", "killed").out
    assert re.search(r"step 3\n(.*\n)+threads: 1\n", text)
    whole, killed = (load_checkpoint(f"{name}/model_final.pt") for name in ("whole", "killed"))
    assert_same_training(whole, killed)
    assert whole["config"] == killed["config"]
    assert whole["config"]["train"]["thread_count"] == 1
    assert torch.get_num_threads() == 2


def test_sampling_measures_its_network(script, trained, monkeypatch):
    monkeypatch.setattr("sampling.threads.may_measure_threads", lambda device: True)
    monkeypatch.setattr("sampling.threads.MIN_CALLS", 1)
    flags = ["--checkpoint", trained / "model_final.pt", "--steps", "2", "--num-images", "2"]
    text = script("sample", *flags, "--output", "a.png").out
    assert re.search(r"\nthreads: 1 \(1: \d+ network calls/s\); --threads 1 repeats it\n", text)
    assert "\nthreads: 2\n" in script("sample", *flags, "--output", "b.png", "--threads", "2").out
    assert torch.get_num_threads() == 1
