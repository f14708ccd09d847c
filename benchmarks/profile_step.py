"""The time that each part of a training step takes.

    python benchmarks/profile_step.py
    python benchmarks/profile_step.py --steps 30 --precision fp32
    python benchmarks/profile_step.py --dataset mnist --model dit

Runs train.py on the bundled digits, enlarged to 28 x 28, and measures the parts of each training
step. Prints the median time of each part, and its share. The time of a part excludes other parts
that it calls. On a GPU each part waits for the one before; otherwise they overlap, so the sum is
more than an undisturbed step takes. Unknown flags are passed to train.py.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import command_line, now
from cli.training import TRAIN
from diffusion import GaussianDiffusion
from train import train_run
from training import objective, trainer
from training.ema import EMA
from training.loop import Batches
from training.objective import DiffusionObjective
from training.trainer import Trainer
from utils import choose_device, choose_precision, describe

WARM_UP = 5  # first steps, which are not measured
LOOP = "loop, log, clock"
STEP = "rest of the step"  # its function ends a step
DEVICE = "data: to the device"  # counts only where the batch is made
OPTIMIZER = "optimizer"  # each optimizer is a part, with its name appended to this
PARTS: dict[str, list[tuple[object, str]]] = {  # the functions that make up each part
    "data: indexing": [(Batches, "of_step")],
    "data: flips, to floats": [(objective, "flipped"), (objective, "to_unit")],
    DEVICE: [(torch.Tensor, "to")],
    "timesteps and noise": [(GaussianDiffusion, "sample_t"), (DiffusionObjective, "noise")],
    "forward": [(GaussianDiffusion, "loss")],
    "backward": [(torch.Tensor, "backward")],
    "norms of gradient and weights": [(trainer, "clip_grad_norm_"), (trainer, "get_total_norm")],
    OPTIMIZER: [(torch.amp.GradScaler, "step")],
    "moving average": [(EMA, "update")],
    STEP: [(Trainer, "train_step")],
}


class Stopwatch:
    """Measures parts: `steps` has the seconds of each part of each step, `totals` their sums.

    Args:
        device: finishes its work before the clock is read.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.steps: list[dict[str, float]] = []
        self.totals: list[float] = []
        self.times: dict[str, float] = defaultdict(float)  # of the present step
        self.open: list[str] = []  # the parts that are being called
        self.inside = [0.0]  # seconds of the parts called in each of them, and outside all
        self.end: float | None = None  # of the step before

    def timed(self, part: str, function: Callable) -> Callable:
        """The function; its time is added to a part."""

        def call(*args, **kwargs):
            if part == DEVICE and self.open[-1:] != [STEP]:
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
                if part == STEP:
                    self.end_step(start + seconds)

        return call

    def end_step(self, end: float) -> None:
        """End a step; the time since the one before that belongs to no part is the loop's."""
        if self.end is not None:
            total = end - self.end
            self.steps.append({LOOP: total - sum(self.times.values()), **self.times})
            self.totals.append(total)
        self.times.clear()
        self.end = end


def profile(flags: list[str], device: torch.device) -> Stopwatch:
    """Measure a run of train.py with these flags.

    Raises RuntimeError if a part was never called, because PARTS no longer fits the code.
    """
    watch = Stopwatch(device)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        for part, functions in PARTS.items():
            for owner, name in functions:
                timed = watch.timed(part, getattr(owner, name))
                patches.enter_context(patch.object(owner, name, timed))
        train_run(TRAIN.parse([*flags, "--output-dir", folder]), time.monotonic())
    parts = {name for times in watch.steps for name in times}
    called = {OPTIMIZER if name.startswith(OPTIMIZER) else name for name in parts}
    if missing := PARTS.keys() - called:
        raise RuntimeError(f"never called: {', '.join(sorted(missing))}")
    return watch


def table(watch: Stopwatch) -> str:
    """A Markdown table of the median of each part, the largest first."""
    steps, total = watch.steps[WARM_UP:], statistics.median(watch.totals[WARM_UP:])
    medians = {
        part: statistics.median(times.get(part, 0.0) for times in steps)
        for part in dict.fromkeys(name for times in steps for name in times)
    }
    lines = ["| part | ms | % |", "| --- | --- | --- |"]
    for part, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        lines.append(f"| {part} | {1e3 * seconds:.2f} | {100 * seconds / total:.1f} |")
    lines.append(f"| training step | {1e3 * total:.2f} | 100 |")
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=60, help="training steps to measure")
    own, flags = parser.parse_known_args()
    command = ["--dataset", "digits", "--image-size", "28"] if "--dataset" not in flags else []
    command += ["--max-steps", str(own.steps + WARM_UP + 1), "--sample-interval", "0"]
    command += ["--save-interval", "0", "--save-every-minutes", "0", "--validation", "0", *flags]
    config = TRAIN.parse(command)
    device = choose_device(config.device)
    watch = profile(command, device)
    precision = choose_precision(config.precision, device)
    print(f"{describe(device, precision)}, torch {torch.__version__}, {own.steps} steps\n")
    print(table(watch))


if __name__ == "__main__":
    main()
