"""Where the time of a training step goes.

    python benchmarks/profile_step.py
    python benchmarks/profile_step.py --steps 30 --precision fp32
    python benchmarks/profile_step.py --dataset mnist --model dit

Lets train.py make updates, on the bundled digits enlarged to 28 x 28, and takes the time of the
parts of each; prints the median of each part over the updates, and its share. On a GPU each part
waits for the one before, which otherwise overlap, so that the sum is more than an update takes. A
part's time is without the parts that are called in it. Flags that it does not know are train.py's.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

import train
from benchmarks.rates import now
from diffusion import GaussianDiffusion
from training import trainer
from training.ema import EMA
from training.run import Run
from training.trainer import Trainer
from utils import choose_device, choose_precision, describe

WARM_UP = 5  # first updates that do not count
LOOP = "loop, log, clock"
REST = "rest of the update"
DEVICE = "data: to the device"  # which counts where the update itself asks for it
OPTIMIZER = "optimizer"  # each has a part of its own, with its name behind this
PARTS: dict[str, list[tuple[object, str]]] = {  # the functions whose time it is
    "data: indexing": [(Run, "update")],
    "data: flips, to floats": [(trainer, "flipped"), (trainer, "to_unit")],
    DEVICE: [(torch.Tensor, "to")],
    "timesteps and noise": [(GaussianDiffusion, "sample_t"), (Trainer, "noise")],
    "forward": [(GaussianDiffusion, "loss")],
    "backward": [(torch.Tensor, "backward")],
    "norms of gradient and weights": [(trainer, "clip_grad_norm_"), (trainer, "get_total_norm")],
    OPTIMIZER: [(torch.amp.GradScaler, "step")],
    "moving average": [(EMA, "update")],
    REST: [(Trainer, "update")],
}


class Stopwatch:
    """The seconds of each part of each update, `updates`, and of the whole of it, `wholes`.

    Args:
        device: what is waited for before the time is read.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.updates: list[dict[str, float]] = []
        self.wholes: list[float] = []
        self.times: dict[str, float] = defaultdict(float)  # of this update, up to now
        self.open: list[str] = []  # the parts that are being called
        self.inside = [0.0]  # seconds of the parts in each of them, and outside all
        self.end: float | None = None  # of the update before

    def timed(self, part: str, function: Callable) -> Callable:
        """The function, whose time counts for a part."""

        def call(*args, **kwargs):
            if part == DEVICE and self.open[-1:] != [REST]:
                return function(*args, **kwargs)
            start = now(self.device)
            self.open.append(part)
            self.inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                seconds, within = now(self.device) - start, self.inside.pop()
                self.inside[-1] += seconds
                self.open.pop()
                name = f"{part}: {type(args[1]).__name__}" if part == OPTIMIZER else part
                self.times[name] += seconds - within
                if not self.open:
                    self.end_update(start + seconds)

        return call

    def end_update(self, end: float) -> None:
        """Close an update; what lies between it and the one before is the loop's time."""
        times, whole = dict(self.times), sum(self.times.values())
        if self.end is not None:
            times[LOOP], whole = end - self.end - whole, end - self.end
            self.updates.append(times)
            self.wholes.append(whole)
        self.times.clear()
        self.end = end


def profile(flags: list[str], device: torch.device) -> Stopwatch:
    """The times of a run of train.py with those flags.

    Raises RuntimeError if a part was never called: it is then no longer where PARTS has it.
    """
    watch = Stopwatch(device)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        for part, functions in PARTS.items():
            for owner, name in functions:
                timed = watch.timed(part, getattr(owner, name))
                patches.enter_context(patch.object(owner, name, timed))
        train.train_with(train.parse_args([*flags, "--output-dir", folder]), time.monotonic())
    parts = {name for times in watch.updates for name in times}
    called = {OPTIMIZER if name.startswith(OPTIMIZER) else name for name in parts}
    if missing := PARTS.keys() - called:
        raise RuntimeError(f"never called: {', '.join(sorted(missing))}")
    return watch


def table(watch: Stopwatch) -> str:
    """The median of each part, the largest first."""
    updates, whole = watch.updates[WARM_UP:], statistics.median(watch.wholes[WARM_UP:])
    medians = {
        part: statistics.median(times.get(part, 0.0) for times in updates)
        for part in dict.fromkeys(name for times in updates for name in times)
    }
    lines = ["| part | ms | % |", "| --- | --- | --- |"]
    for part, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        lines.append(f"| {part} | {1e3 * seconds:.2f} | {100 * seconds / whole:.1f} |")
    lines.append(f"| an update | {1e3 * whole:.2f} | 100 |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60, help="updates that count")
    own, flags = parser.parse_known_args()
    command = ["--dataset", "digits", "--image-size", "28"] if "--dataset" not in flags else []
    command += ["--max-steps", str(own.steps + WARM_UP + 1), "--sample-interval", "0"]
    command += ["--save-interval", "0", "--save-every-minutes", "0", "--validation", "0", *flags]
    args = train.parse_args(command)
    device = choose_device(args.device)
    watch = profile(command, device)
    precision = choose_precision(args.precision, device)
    print(f"{describe(device, precision)}, torch {torch.__version__}, {own.steps} updates\n")
    print(table(watch))


if __name__ == "__main__":
    main()
