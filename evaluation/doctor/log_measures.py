"""Measures of the log of a run, and what is usual for it."""

import math
from itertools import pairwise
from statistics import fmean, stdev

from evaluation.doctor.commands import again, flags_of
from evaluation.doctor.run import Run
from models import GUIDES
from training.config import DEFAULTS, PRESETS

ROWS = 6  # rows of ten steps after the warm-up, below which nothing is said about the loss
GUIDE_ROWS = 30  # the same of networks that judge: recognising noisy images starts slowly
FAR = 10.0  # a learning rate is suspected that is 10 times the usual one, or a tenth of it
MANY = 8  # items of a step; the rows of smaller steps vary by as much as a peak
PEAK = 1.5  # over the loss of the first row, of an early peak; a normal loss falls from there


def has_stages(run: Run) -> bool:
    """Does what is learned change during the run, so that losses cannot be compared?"""
    return run.tuned in ("consistency", "distill") or bool(run.setting("model", "discriminator"))


def level(losses: list[float]) -> float:
    """The loss at the end: the mean of the last fifth of the rows."""
    return fmean(losses[-max(3, len(losses) // 5) :])


def scatter(losses: list[float]) -> float:
    """The standard deviation of the noise of rows: from the differences of neighbours."""
    differences = [b - a for a, b in pairwise(losses)]
    return stdev(differences) / math.sqrt(2) if len(differences) > 1 else math.inf


def relative_fall(run: Run) -> float | None:
    """The share by which the loss has fallen since its first row, at most 1.

    None if this says nothing, because the run is short or began with a trained network.
    """
    steps, losses = run.losses
    warmup = run.number("train", "warmup_steps", 0)
    after = sum(step > warmup for step in steps)
    rows = GUIDE_ROWS if run.model in GUIDES else ROWS
    if after < rows or run.tuned or steps[0] > 20 or losses[0] <= 0:
        return None
    return 1 - level(losses) / losses[0]


def peak(run: Run) -> tuple[int, float] | None:
    """Step and height of a loss far above that of the first row; None if there is none."""
    steps, losses = run.losses
    if len(losses) < 3 or has_stages(run) or run.tuned or steps[0] > 20:
        return None
    if run.setting("diffusion", "loss_weight") == "vlb":  # its rows vary by more
        return None
    highest = max(losses[1:])
    if run.batch_size < MANY or highest < PEAK * losses[0]:
        return None
    return steps[losses.index(highest)], highest


def with_usual_lr(run: Run) -> str:
    """The command that trains again with the default learning rate."""
    return again(run, lr=None if "lr" in (flags_of(run) or {"lr"}) else usual_lr(run))


def rates(run: Run) -> tuple[float, float]:
    """The learning rate of a run, and the usual one."""
    return run.number("train", "lr"), usual_lr(run)


def usual_lr(run: Run) -> float:
    """The default learning rate for such a run."""
    if run.is_custom:
        return 1e-3  # of `fit`
    preset = PRESETS.get((flags_of(run) or {}).get("preset"), {})
    if "lr" in preset and run.setting("train", "optimizer") != "adamw":
        return preset["lr"]
    optimizer, usual = run.setting("train", "optimizer"), DEFAULTS[run.kind]
    return usual["lr"] if optimizer in (usual["optimizer"], None) else DEFAULTS["points"]["lr"]


def number_format(run: Run) -> str:
    """fp32, bf16 or fp16, as the last session computed; "" if it is unknown."""
    session = run.sessions[-1] if run.sessions else {}
    return str(run.setting("train", "number_format") or session.get("precision") or "")


def rounded(value: float) -> float:
    """A number with two digits."""
    return float(f"{value:.2g}")


def length_of(run: Run, steps: int) -> dict[str, object]:
    """Flags that limit a new run to this number of steps."""
    return {"max_steps": max(1, steps), "epochs": None, "max_minutes": None}
