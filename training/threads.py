"""The number of threads of a run on a CPU: chosen by measurement, and anew if the load changes.

The last bits of a run's results depend on this number, so the configuration keeps it.
"""

import copy
import time
from collections.abc import Callable, Iterator
from statistics import median_low

import torch
from torch import Tensor

from cli.declare import MAX_THREADS
from conditions import Condition
from distributed import launched
from sampling.thread_times import (
    ThreadTime,
    fastest,
    may_measure_threads,
    measure_threads,
    speeds,
    threads_from_environment,
)
from training.trainer import Trainer
from utils import RANDOM_STATE, count_of_threads, use_threads

MIN_STEPS, MIN_MINUTES = 100, 0.5  # in a shorter run, a measurement would take too long
WINDOW = 5.0  # seconds of training steps that are compared with those before
SLOWER = 2.0  # times as long: the number of threads is chosen anew
MUCH_SLOWER = 3.0  # times as long: worth a message, where that number is given
PAUSE = 30.0  # seconds between two measurements
AGAIN = 600.0  # seconds after which more threads are tried again, if not all are used
GAIN = 1.2  # times as fast: worth a change during a session
RESUME_GAIN = 2.0  # times as fast: worth a change when a run is resumed


class Pace:
    """Compares the time of training steps with that of the fastest before them.

    Args:
        seconds: the time of a step, if it has been measured already.
    """

    def __init__(self, seconds: float | None = None):
        self.fastest, self.recent, self.total = seconds, [], 0.0

    def add(self, seconds: float) -> float | None:
        """Add the time of a step. Returns by what factor steps are slower than the fastest before.

        None, unless `WINDOW` seconds have been added since the last factor. Medians are compared,
        because the process may have been stopped during a step.
        """
        self.recent.append(seconds)
        self.total += seconds
        if len(self.recent) < 2 or self.total < WINDOW:
            return None
        typical = median_low(self.recent)
        self.recent, self.total = [], 0.0
        before = self.fastest or typical
        self.fastest = min(before, typical)
        return typical / before


class Threads:
    """The number of threads of a run.

    Args:
        trainer: makes the training steps.
        train: the configuration of the training; its `thread_count` is kept up to date.
        batch: maps a step to its items and their condition, to measure with.
        size, kind: the number of items of a step, and "images" or "points".
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        trainer: Trainer,
        train: dict,
        batch: Callable[[int], tuple[Tensor, Condition | None]],
        size: int,
        kind: str,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.trainer, self.train, self.batch = trainer, train, batch
        self.size, self.kind, self.clock = size, kind, clock
        self.most = torch.get_num_threads()
        self.watched = trainer.device.type == "cpu" and not launched()
        self.free = False  # the number may change during the session
        self.pace, self.ratio = Pace(), 1.0
        self.last, self.said = clock(), False  # time of the last measurement

    def choose(self, saved: dict | None, steps: int | None, minutes: float | None) -> str:
        """Set the number of threads. Returns it in words, with the reason; "" on a GPU.

        Args:
            saved: the configuration of the training in the checkpoint that is resumed, or None.
            steps, minutes: what is left of the run; None without such a limit.
        """
        wanted, why = self.train["threads"], ""
        before = known_count(saved, self.most, self.train["processes"])
        self.free = wanted == "auto" and self.watched and may_measure_threads(self.trainer.device)
        long = (steps or MIN_STEPS) >= MIN_STEPS and (minutes or MIN_MINUTES) >= MIN_MINUTES
        if self.free and long:
            times = self.measure()
            self.use(chosen(times, before, RESUME_GAIN), times)
            why = f" ({speeds(times, self.size, self.kind)}); --threads {self.count} repeats it"
        elif wanted == "auto" and threads_from_environment():
            self.use(self.most)
            why = " (OMP_NUM_THREADS)"
        else:
            self.use(before or self.most if wanted == "auto" else wanted)
        count = self.count
        if before not in (None, count):
            why += f"; {before} before: results may differ from those of an uninterrupted run"
        return f"{count}{why}" if self.trainer.device.type == "cpu" else ""

    def use(self, count: int, times: dict[int, ThreadTime] | None = None) -> None:
        """Compute with `count` threads, and keep the number in the configuration."""
        use_threads(count)
        self.count = self.train["thread_count"] = count
        self.pace = Pace(times[count].seconds if times else None)

    def timed(self, steps: Iterator) -> Iterator:
        """Yield the training steps, and compare their time with that of earlier ones."""
        while True:
            start = self.clock()
            step = next(steps, None)
            if step is None:
                return
            if self.watched:
                self.ratio = self.pace.add(self.clock() - start) or self.ratio
            yield step

    def due(self) -> bool:
        """Have training steps become slow, or is it time to try more threads again?"""
        since = self.clock() - self.last
        if self.free and self.count < self.most and since >= AGAIN:
            return True
        if self.free:
            return self.ratio > SLOWER and since >= PAUSE
        return self.ratio > MUCH_SLOWER and not self.said

    def adapt(self, say: Callable[[str], object]) -> bool:
        """Choose the number of threads anew, if it is not fixed. Returns whether it has changed."""
        slow = self.ratio > SLOWER
        why = f"training steps take {self.ratio:.1f} times as long as before" * slow
        cause = ": something else uses the CPU"
        self.ratio = 1.0
        if not self.free:
            hint = "; --resume --threads 1 is faster then" if self.count > 1 else ""
            say(f"{why}{cause}{hint}")
            self.said = True
            return False
        times = self.measure()
        before = self.count
        self.use(chosen(times, before, GAIN), times)
        if self.count == before:
            if slow and not self.said:
                say(f"{why}{cause}")
                self.said = True
            return False
        measured = f"({speeds(times, self.size, self.kind)})"
        now = f"{count_of_threads(self.count)} from step {self.trainer.step + 1:,} on {measured}"
        say(f"{why}{cause}; {now}" if slow else now)
        return True

    def measure(self) -> dict[int, ThreadTime]:
        """Measure training steps that change nothing, with each number of threads."""
        items, condition = self.batch(self.trainer.step)
        twin = copy_of(self.trainer)
        with RANDOM_STATE, torch.random.fork_rng(devices=[]):
            times = measure_threads(lambda: twin.train_step(items, condition, 0.0), self.most)
        self.last = self.clock()
        return times


def copy_of(trainer: Trainer) -> Trainer:
    """A deep copy of a trainer (weights, average, optimizer), without compilation."""
    twin = copy.copy(trainer)
    twin.network = twin.model
    return copy.deepcopy(twin)


def known_count(saved: dict | None, most: int, processes: int) -> int | None:
    """The number of threads of a resumed run; None if it is unknown or not possible here."""
    if saved is None or saved["processes"] != processes:
        return None
    count = saved.get("thread_count", most)  # earlier versions did not choose
    if not isinstance(count, int) or not 1 <= count <= MAX_THREADS:
        return None
    return count if count <= most else None


def chosen(times: dict[int, ThreadTime], before: int | None, gain: float) -> int:
    """The number of threads to use: `before`, unless another is more than `gain` times as fast."""
    best = fastest(times)
    if before not in times or times[before].seconds > gain * times[best].seconds:
        return best
    return before
