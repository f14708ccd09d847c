"""The time of a computation on a CPU with each number of threads."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from utils import kept_threads, use_threads

# Other work on the machine makes more threads slower than one, by up to a hundred times: each of
# the thousand parallel loops of a training step waits for the thread that has no core.
ROUNDS = 4  # measurements of each number of threads, after one that prepares
MEASURE_SECONDS = 2.0  # after which no further round begins
HOPELESS = 3.0  # times the fastest, after which a measurement is abandoned
ALIKE = 1.05  # times the fastest: of those within it the fewest threads are chosen


def threads_from_environment() -> bool:
    """Does OMP_NUM_THREADS decide the number of threads?"""
    return bool(os.environ.get("OMP_NUM_THREADS"))


def may_measure_threads(device: torch.device) -> bool:
    """Is the number of threads free, and does it matter?

    Outside the main thread it is not free, because parts of the setting apply to all threads.
    """
    main = threading.current_thread() is threading.main_thread()
    several = torch.get_num_threads() > 1
    return device.type == "cpu" and main and several and not threads_from_environment()


class ThreadTime(NamedTuple):
    """Time of a computation with some number of threads."""

    seconds: float
    abandoned: bool = False  # it would have taken longer


def measure_threads(
    work: Callable[[], object], most: int, clock: Callable[[], float] = time.perf_counter
) -> dict[int, ThreadTime]:
    """Measure `work()` with 1, 2, 4, ... and `most` threads, in turns.

    Numbers of threads that are far slower than the fastest are abandoned.
    """
    times: dict[int, list[float]] = {}
    for count in [*(2**i for i in range(most.bit_length()) if 2**i < most), most]:
        times[count] = []
    found, start = {}, clock()
    with kept_threads():
        for number in range(1 + ROUNDS):
            if number == 1 and clock() - start < MEASURE_SECONDS:  # the first round only prepared
                times = {count: [] for count in times}
            elif number and clock() - start >= MEASURE_SECONDS:
                break
            for count in list(times):
                limit = HOPELESS * min((min(each) for each in times.values() if each), default=1e9)
                use_threads(count)
                begin = clock()
                try:
                    with abandoned_after(limit, clock, closely=not number):
                        work()
                    times[count].append(clock() - begin)
                except TooSlow:
                    del times[count]
                    found[count] = ThreadTime(limit, abandoned=True)
    found |= {count: ThreadTime(median(each)) for count, each in times.items()}
    return dict(sorted(found.items()))


def fastest(times: dict[int, ThreadTime]) -> int:
    """The number of threads to use: the fewest of those that are about as fast as the fastest."""
    best = min(time.seconds for time in times.values() if not time.abandoned)
    return min(n for n, t in times.items() if not t.abandoned and t.seconds <= ALIKE * best)


def speeds(times: dict[int, ThreadTime], items: int, unit: str) -> str:
    """The speeds with each number of threads: "1: 351 images/s, 2: 588"."""
    texts = []
    for count, measured in times.items():
        speed = items / measured.seconds
        text = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
        text = f"under {text}" if measured.abandoned else text
        texts.append(f"{count}: {text}" if texts else f"{count}: {text} {unit}/s")
    return ", ".join(texts)


class TooSlow(Exception):
    """A computation that was abandoned."""


@contextmanager
def abandoned_after(seconds: float, clock: Callable[[], float], *, closely: bool) -> Iterator[None]:
    """While open, raise TooSlow in a computation that takes longer than `seconds`.

    The time is checked whenever the forward pass saves a tensor or the backward pass needs one.
    With `closely`, it is also checked at each call of a PyTorch function, which costs time itself.
    """
    end = clock() + seconds

    def check(x):
        if clock() > end:
            raise TooSlow
        return x

    class Checked(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            # Calls without tensors may restore a state, as the end of no_grad does.
            if any(isinstance(each, torch.Tensor) for each in args):
                check(args)
            return function(*args, **(kwargs or {}))

    with Checked() if closely else nullcontext(), saved_tensors_hooks(check, check):
        yield
