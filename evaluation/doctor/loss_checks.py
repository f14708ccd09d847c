"""Checks of the losses of a run. Every threshold is a constant with its reason.

The figures of tiny runs are of networks with 8 channels on 8x8 digits, for 15 to 120 steps; those
of MNIST are of `--preset laptop`.
"""

import math
from statistics import fmean, median

from evaluation.doctor.commands import again, draw
from evaluation.doctor.findings import FAULT, WARNING, Finding
from evaluation.doctor.log_measures import (
    FAR,
    ROWS,
    has_stages,
    length_of,
    level,
    number_format,
    peak,
    rates,
    relative_fall,
    rounded,
    scatter,
    usual_lr,
    with_usual_lr,
)
from evaluation.doctor.run import Run
from visuals.curves import column

FALL = 0.03  # relative; tiny runs fall by 6 % or more in 60 steps, with --lr 1e-7 by 0.5 %
SIGMAS = 4.0  # a rise must also exceed the noise of the rows, which is large for small batches
RISE = 1.5  # over its lowest level; a run of constant loss varies by a few per cent
PLATEAU = 0.95  # part of the loss of a third of the run; mnist at the usual rate falls to 0.5
SLOW_FALL = 0.5  # of the loss; mnist falls by 80 % in 400 steps at the usual rate
SKIPPED, ALLOWED = 0.02, 16  # fraction of steps; fp16 skips some while its scale adapts
OVERFIT = 1.05  # validation loss over its minimum; between epochs it varies by about 1 %
OVERFIT_ROWS = 4  # validation losses, below which nothing is said about their trend
LAG = 1.5  # validation loss over training loss; tiny runs with a normal average reach 1.06
FEW_EPOCHS = 5  # in which a network does not overfit, so that the average explains the difference


def not_finite(run: Run) -> Finding | None:
    """Losses or gradients that are infinite or not a number."""
    skipped = max([0, *column(run.rows, "skipped")[1]])
    allowed = ALLOWED if number_format(run) == "fp16" else 0
    too_many = skipped - allowed > max(2, SKIPPED * run.step)
    if not (run.not_finite or too_many):
        return None
    lr = run.number("train", "lr")
    if run.not_finite:
        evidence = (
            f"metrics.jsonl has values that are not finite, first at step {run.not_finite[0]:,}"
        )
    else:
        evidence = f"{skipped:,} of {run.step:,} steps were skipped: loss or gradient not finite"
    if number_format(run) == "fp16":
        cause = "16-bit floats without the range of bf16 overflow"
        changes = {"precision": "fp32"}
    else:
        cause = (
            f"the learning rate, {lr:g}, is too high for this network; usual is {usual_lr(run):g}"
        )
        changes = {"lr": min(usual_lr(run), rounded(lr / 10))}
    return Finding(FAULT, "the loss is not finite", evidence, cause, again(run, **changes))


def diverged(run: Run) -> Finding | None:
    """The loss has risen far above its lowest level, and stays there."""
    steps, losses = run.losses
    if len(losses) < 2 * ROWS or has_stages(run):
        return None
    width = max(ROWS // 2, len(losses) // 10)
    means = [fmean(losses[i : i + width]) for i in range(len(losses) - width + 1)]
    lowest, last = min(means), means[-1]
    noise = scatter(losses[-2 * width :]) / math.sqrt(width)
    if last < RISE * lowest or last - lowest < SIGMAS * noise:
        return None
    at = steps[means.index(lowest) + width - 1]
    evidence = (
        f"the training loss was {lowest:.3g} at step {at:,} and is {last:.3g} at step {steps[-1]:,}"
    )
    lr = run.number("train", "lr")
    cause = f"the steps are too large: the learning rate is {lr:g}, and usual is {usual_lr(run):g}"
    command = with_usual_lr(run) if lr > usual_lr(run) else again(run, lr=rounded(lr / 3))
    return Finding(FAULT, "the training diverged", evidence, cause, command)


def does_not_fall(run: Run) -> Finding | None:
    """The loss ends where it began."""
    fall = relative_fall(run)
    if fall is None or fall >= FALL or run.not_finite or diverged(run) or peak(run):
        return None
    steps, losses = run.losses
    evidence = (
        f"the training loss was {losses[0]:.3g} at step {steps[0]:,} and is "
        f"{level(losses):.3g} at step {steps[-1]:,}"
    )
    lr, usual = rates(run)
    if lr <= usual / FAR:
        cause = f"the learning rate is too low: {lr:g}, and usual is {usual:g}"
        return Finding(FAULT, "the loss does not fall", evidence, cause, with_usual_lr(run))
    if lr >= usual * FAR:
        cause = f"the learning rate is too high: {lr:g}, and usual is {usual:g}"
        return Finding(FAULT, "the loss does not fall", evidence, cause, with_usual_lr(run))
    cause = (
        f"the learning rate, {lr:g}, is usual, so the data may have no structure, or the network "
        "no path from its input to its output; the default network shows which"
    )
    changes = {"model": None} if not run.is_custom else {"lr": rounded(lr / 3)}
    return Finding(FAULT, "the loss does not fall", evidence, cause, again(run, **changes))


def learning_rate_too_high(run: Run) -> Finding | None:
    """The loss rose above its start before it fell, or stopped falling early."""
    if run.not_finite or diverged(run):
        return None
    if (found := peak(run)) is None:
        return early_plateau(run)
    step, highest = found
    lr, usual = rates(run)
    evidence = (
        f"the training loss was {run.losses[1][0]:.3g} at step {run.losses[0][0]:,} and rose to "
        f"{highest:.3g} at step {step:,}; it ended at {level(run.losses[1]):.3g}"
    )
    cause = f"the first steps were too large: the learning rate is {lr:g}, and usual is {usual:g}"
    command = with_usual_lr(run) if lr > usual else again(run, lr=rounded(lr / 3))
    return Finding(WARNING, "the learning rate is too high", evidence, cause, command)


def early_plateau(run: Run) -> Finding | None:
    """With a learning rate far above the usual one, the loss hardly falls after the first third."""
    (steps, losses), (lr, usual) = run.losses, rates(run)
    fall = relative_fall(run)
    if fall is None or fall < FALL or lr < FAR * usual or len(losses) < 2 * ROWS:
        return None
    third = len(losses) // 3
    early, last = fmean(losses[third - 2 : third + 1]), level(losses)
    if last < PLATEAU * early:
        return None
    evidence = (
        f"the training loss was {early:.3g} at step {steps[third]:,} and is {last:.3g} at step "
        f"{steps[-1]:,}"
    )
    cause = (
        f"steps of this size only move about: the learning rate is {lr:g}, and usual is {usual:g}"
    )
    title = "the learning rate is too high"
    return Finding(WARNING, title, evidence, cause, with_usual_lr(run))


def learning_rate_too_low(run: Run) -> Finding | None:
    """The loss falls slowly, with a learning rate far below the usual one."""
    (lr, usual), fall = rates(run), relative_fall(run)
    if fall is None or not FALL <= fall < SLOW_FALL or not lr <= usual / FAR:
        return None
    steps, losses = run.losses
    evidence = (
        f"the training loss fell from {losses[0]:.3g} to {level(losses):.3g} in {steps[-1]:,} "
        f"steps, by {fall:.0%}"
    )
    cause = f"the learning rate is {lr:g}, and usual is {usual:g}"
    return Finding(WARNING, "the learning rate is too low", evidence, cause, with_usual_lr(run))


def overfitting(run: Run) -> Finding | None:
    """The validation loss rises while the training loss falls."""
    steps, held_out = run.validation
    if len(held_out) < OVERFIT_ROWS or has_stages(run) or diverged(run):
        return None
    lowest = min(held_out)
    best = held_out.index(lowest)
    last = median(held_out[-2:])
    if last < OVERFIT * lowest or best >= len(held_out) - 2:
        return None
    train_steps, losses = run.losses
    before = [loss for step, loss in zip(train_steps, losses, strict=True) if step <= steps[best]]
    if not before or level(losses) > fmean(before[-3:]):
        return None
    evidence = (
        f"the validation loss was {lowest:.3g} at step {steps[best]:,} and is {held_out[-1]:.3g} "
        f"at step {steps[-1]:,}; the training loss fell from {fmean(before[-3:]):.3g} to "
        f"{level(losses):.3g}"
    )
    cause = f"the network has seen each of its {run.count:,} items {run.epochs:,.0f} times"
    best_file = run.path / "checkpoints" / "best.pt"
    if best_file in run.checkpoints:
        cause += f"; best.pt is of step {run.checkpoints[best_file]:,}"
        return Finding(WARNING, "the network overfits", evidence, cause, draw(best_file))
    command = again(run, **length_of(run, steps[best]))
    return Finding(WARNING, "the network overfits", evidence, cause, command)


def average_lags(run: Run) -> Finding | None:
    """The averaged weights are far behind the weights, in a short run."""
    (_, held_out), (_, losses) = run.validation, run.losses
    if not held_out or len(losses) < 2 or has_stages(run) or run.epochs > FEW_EPOCHS:
        return None
    if run.newest is None or not run.draws or run.is_custom:
        return None
    last, falling = level(losses), held_out[-1] <= min(held_out)
    if last <= 0 or held_out[-1] < LAG * last or not falling or diverged(run):
        return None
    evidence = (
        f"the validation loss, by the averaged weights, is {held_out[-1]:.3g}, and the training "
        f"loss, by the weights themselves, {last:.3g}, after {run.epochs:.1f} epochs"
    )
    cause = (
        f"the average over the steps (--ema-decay {run.number('train', 'ema_decay'):g}) is too "
        f"long for {run.step:,} steps: it still holds early weights. --raw draws without it"
    )
    can_be_raw = run.newest in run.checkpoints  # a snapshot has the average alone
    command = draw(run.newest, "--raw") if can_be_raw else again(run, ema_decay=0.99)
    return Finding(WARNING, "the average of the weights lags behind", evidence, cause, command)
