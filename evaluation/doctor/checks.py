"""The checks of a run. To add one, write a function `(run) -> Finding | None` and a line in CHECKS.

Every threshold is a constant with its reason. The figures of "tiny runs" are of networks with 8
channels on 8x8 digits, for 15 to 120 steps; those of "mnist" are of `--preset laptop`.
"""

import math
import shlex
from collections import Counter
from collections.abc import Callable
from statistics import fmean, median, stdev

import torch
from torch import Tensor

from dataset.items import item_shape, split
from evaluation.copies import RARE, NearCopies, find_near_copies
from evaluation.distances import nearest_neighbours
from evaluation.doctor.commands import again, draw, flags_of, new_folder, resume
from evaluation.doctor.findings import Finding, Severity
from evaluation.doctor.length import needed_images
from evaluation.doctor.run import Run
from models import GUIDES
from training.config import DEFAULTS, PRESETS
from visuals.curves import column

FAULT, WARNING, HINT = Severity.FAULT, Severity.WARNING, Severity.HINT

# --- the loss
ROWS = 6  # rows of ten steps after the warm-up, below which nothing is said about the loss
GUIDE_ROWS = 30  # the same of networks that judge: recognising noisy images starts slowly
FALL = (
    0.03  # of the loss, relative; a tiny run falls by 6 % or more in 60 steps, --lr 1e-7 by 0.5 %
)
RISE = 1.5  # over its lowest level; a run of constant loss varies by a few per cent
SIGMAS = 4.0  # a rise must also exceed the noise of the rows, which is large for small batches
PEAK = 1.5  # over the loss of the first row, of an early peak; a normal loss falls from there
FAR = 10.0  # times or part of the usual learning rate, from which it is suspected
SLOW_FALL = 0.5  # of the loss; mnist falls by 80 % in 400 steps at the usual rate
SKIPPED, ALLOWED = 0.02, 16  # fraction of steps; fp16 skips some while its scale adapts
OVERFIT = 1.05  # validation loss over its minimum; between epochs it varies by about 1 %
OVERFIT_ROWS = 4  # validation losses, below which nothing is said about their trend
LAG = 1.5  # validation loss over training loss; tiny runs with a normal average reach 1.06
FEW_EPOCHS = 5  # in which a network does not overfit, so that the average explains the difference

# --- the pictures, next to the real images in the same grid
MIN_CORRELATION = 0.2  # of the neighbouring pixels of real images, below which they are like noise
NOISE = 0.35  # part of it in samples: noise has 0.0 to 0.2, the first recognisable digits 0.45
GREY = 0.3  # part of the standard deviation; tiny and mnist runs have 0.75 to 1
SATURATED = (
    0.4  # black or white pixels beyond those of real images; normal runs have less, not more
)
ALIKE = 0.3  # part of the distance between images; normal runs have 0.8 to 1.05
NARROW = 6.0  # grey levels of 255, of the standard deviation of all real pixels; mnist has 75
OF_ONE_CLASS = 0.6  # of the samples, where that class is at most half as frequent in the data

# --- memorising: pixel distances to training images, if each was seen often
SEEN = 30  # epochs; a network that has seen an image less often draws no copies of it
COPIES = 0.1  # fraction of samples; new images have RARE, and 7 of 64 then have a chance of 1e-5
MOST_HELD_OUT = 256  # held-out images that are compared

# --- the data
FEW = 500  # images; networks trained on 10 to 1,000 faces drew these (arXiv:2310.02550, figure 1)
DUPLICATES = 0.05  # of the images of a folder; they count double, and may be both held out and not
DOMINANT = 0.98  # of the items in one class of several
UNIT = 8.0  # times the loss of unit-variance data, of the first row

# --- the machine
MEASURED_SECONDS, MEASURED_ROWS = 60, 30  # below which nothing is said about the speed
DROP = 0.3  # of the run's own fast steps; two processes on one core leave 0.5


# --- the folder -----------------------------------------------------------------------------------


def unreadable_config(run: Run) -> Finding | None:
    """config.json is missing or damaged."""
    if run.config and not run.config_error:
        return None
    evidence = run.config_error or f"there is no {run.path / 'config.json'}"
    if run.config:
        cause = "the file was changed or cut; the checkpoints hold the same configuration"
        return Finding(HINT, "config.json cannot be read", evidence, cause, resume(run))
    cause = "it was changed, cut, or written by another version; no checkpoint replaces it"
    command = f"python train.py --dataset mnist --output-dir {new_folder(run.path)}"
    return Finding(FAULT, "the run's configuration is lost", evidence, cause, command)


def damaged_checkpoints(run: Run) -> Finding | None:
    """A checkpoint does not match its SHA-256, or cannot be opened."""
    if not run.damaged:
        return None
    evidence = "; ".join(list(run.damaged.values())[:2])
    if more := len(run.damaged) - 2:
        evidence += f"; and {more} more" if more > 0 else ""
    cause = "the file was cut by a full disk or a copy, or changed on the disk"
    if run.newest is None:
        return Finding(FAULT, "no checkpoint is intact", evidence, cause, again(run))
    left = f"{cause}. {run.newest.name} is intact"
    if run.newest in run.checkpoints:
        return Finding(WARNING, "a checkpoint is damaged", evidence, left, resume(run))
    return Finding(WARNING, "a checkpoint is damaged", evidence, left, draw(run.newest))


def missing_checkpoints(run: Run) -> Finding | None:
    """The run has made steps, has ended, and left nothing to resume from or to draw with."""
    if run.checkpoints or run.damaged or run.writing or not run.step:
        return None
    evidence = f"metrics.jsonl reaches step {run.step:,}; there is no checkpoint in {run.path}"
    evidence += f", {len(run.snapshots)} snapshots" if run.snapshots else ""
    if run.is_finished:
        cause = "the run reached its last step, and its files were moved or deleted"
    else:
        cause = "the process was killed before its first checkpoint, which comes after ten minutes"
    if run.snapshots:
        cause += "; the snapshots draw, and cannot be resumed"
    if run.model in ("", "custom") or run.setting("model", "autoencoder"):
        return Finding(FAULT, "there is no checkpoint", evidence, cause, again(run))
    return Finding(
        FAULT, "there is no checkpoint", evidence, cause, resume(run, save_every_minutes=2)
    )


# --- the loss -------------------------------------------------------------------------------------


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
    lr, usual = run.number("train", "lr"), usual_lr(run)
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
    """The loss rose above its start before it fell."""
    if run.not_finite or diverged(run) or (found := peak(run)) is None:
        return None
    step, highest = found
    lr, usual = run.number("train", "lr"), usual_lr(run)
    evidence = (
        f"the training loss was {run.losses[1][0]:.3g} at step {run.losses[0][0]:,} and rose to "
        f"{highest:.3g} at step {step:,}; it ended at {level(run.losses[1]):.3g}"
    )
    cause = f"the first steps were too large: the learning rate is {lr:g}, and usual is {usual:g}"
    command = with_usual_lr(run) if lr > usual else again(run, lr=rounded(lr / 3))
    return Finding(WARNING, "the learning rate is too high", evidence, cause, command)


def learning_rate_too_low(run: Run) -> Finding | None:
    """The loss falls slowly, with a learning rate far below the usual one."""
    lr, usual, fall = run.number("train", "lr"), usual_lr(run), relative_fall(run)
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
    cause = f"the network learns its {run.count:,} items by heart: each was seen {run.epochs:,.0f} times"
    best_file = run.path / "checkpoints" / "best.pt"
    if best_file in run.checkpoints:
        cause += f"; best.pt is of step {run.checkpoints[best_file]:,}"
        return Finding(WARNING, "the network overfits", evidence, cause, draw(best_file))
    command = again(run, **length_of(run, steps[best]))
    return Finding(WARNING, "the network overfits", evidence, cause, command)


def near_copies(run: Run) -> Finding | None:
    """Samples are near-copies of training images."""
    found = copies_of(run)
    if found is None or found.fraction < COPIES:
        return None
    count = len(found.distances)
    evidence = (
        f"{round(found.fraction * count)} of {count} samples in {name_of(run)} are closer to a "
        f"training image than {1 - RARE:.0%} of held-out images are; of new images, "
        f"{max(1, round(RARE * count))} would be"
    )
    cause = f"it has seen each of its {run.count:,} images {run.epochs:,.0f} times"
    shorter = max(1, int(run.step * SEEN / run.epochs / 2))
    command = again(run, **length_of(run, shorter))
    return Finding(WARNING, "the samples are copies of training images", evidence, cause, command)


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
    file = next((p for p in [run.newest] if p in run.checkpoints), None)
    command = draw(file, "--raw") if file else again(run, ema_decay=0.99)
    return Finding(WARNING, "the average of the weights lags behind", evidence, cause, command)


# --- the pictures ---------------------------------------------------------------------------------


def only_noise(run: Run) -> Finding | None:
    """The samples of a run that has ended are noise."""
    if run.pictures is None or run.writing or not looks_like_noise(run):
        return None
    samples, real = (correlation(x) for x in run.pictures[1:])
    evidence = (
        f"neighbouring pixels of the {len(run.pictures.samples)} samples in {name_of(run)} "
        f"correlate by {samples:.2f}, those of the real images below them by {real:.2f}"
    )
    need, seen = needed_images(run), run.images_seen
    broken = next((c for c in LOSS_CHECKS if c(run) is not None), None)
    if broken is not None:
        cause = f"{broken(run).title}: see that finding"
        return Finding(FAULT, "the pictures are noise", evidence, cause, broken(run).command)
    if seen < need.high:
        cause = (
            f"the training was too short: {run.step:,} steps of {run.batch_size:g} are {seen:,.0f} "
            f"images, and {need.text}"
        )
        steps = max(run.step + 1, math.ceil(need.middle / run.batch_size))
        if run.newest is not None and run.newest in run.checkpoints:
            command = resume(run, max_steps=steps)
        else:
            command = again(run, **length_of(run, steps))
        return Finding(FAULT, "the pictures are noise", evidence, cause, command)
    cause = (
        f"not the length: {seen:,.0f} images were seen, and {need.text}. More sampling steps show "
        "whether the sampling is the cause"
    )
    command = draw(run.newest, "--steps", "250") if run.newest else again(run)
    return Finding(FAULT, "the pictures are noise", evidence, cause, command)


def grey_pictures(run: Run) -> Finding | None:
    """The samples have far less contrast than the real images."""
    if run.pictures is None or narrow_range(run) or looks_like_noise(run):
        return None
    samples, real = (x.double().std().item() for x in run.pictures[1:])
    if samples >= GREY * real:
        return None
    evidence = (
        f"the grey levels of the samples in {name_of(run)} vary by {samples:.0f} of 255 (standard "
        f"deviation), those of the real images below them by {real:.0f}"
    )
    cause = (
        "the network draws the mean of the data: it was trained too briefly, or sampled in too few "
        "steps or without noise at its start (a schedule with a large terminal SNR)"
    )
    command = draw(run.newest, "--steps", "100") if run.newest else again(run)
    return Finding(FAULT, "the pictures are grey", evidence, cause, command)


def saturated_pictures(run: Run) -> Finding | None:
    """Most pixels of the samples are black or white, and those of the real images are not."""
    if run.pictures is None or narrow_range(run):
        return None
    samples, real = (extreme(x) for x in run.pictures[1:])
    if samples < real + SATURATED:
        return None
    evidence = (
        f"{samples:.0%} of the values of the samples in {name_of(run)} are 0 or 255, of the real "
        f"images below them {real:.0%}"
    )
    cause = (
        "the predicted image exceeds its range and is clipped: too large a guidance scale, too "
        "large a learning rate, or weights that are not trained enough"
    )
    if run.setting("diffusion", "prediction") == "eps":
        cause = "with --prediction eps, errors at large noise are magnified in the predicted image"
        command = again(run, prediction="v")
    else:
        command = again(run, lr=rounded(run.number("train", "lr", usual_lr(run)) / 3))
    return Finding(FAULT, "the pictures are black and white", evidence, cause, command)


def all_alike(run: Run) -> Finding | None:
    """The samples hardly differ from each other."""
    if run.pictures is None or len(run.pictures.real) < 4 or grey_pictures(run):
        return None
    samples, real = (mean_distance(x) for x in run.pictures[1:])
    if samples >= ALIKE * real or looks_like_noise(run):
        return None
    evidence = (
        f"two samples in {name_of(run)} differ by {samples:.0f} grey levels (root mean square), two "
        f"real images by {real:.0f}"
    )
    cause = "the network draws one picture: the data have few different images, or it diverged"
    lower = rounded(run.number("train", "lr", usual_lr(run)) / 3)
    return Finding(WARNING, "all pictures are alike", evidence, cause, again(run, lr=lower))


def one_class_drawn(run: Run) -> Finding | None:
    """An unconditional network draws mostly one class, as the nearest training images show."""
    conditional = run.setting("model", "num_classes") or run.setting("model", "caption_length")
    if run.pictures is None or conditional or len(run.setting("data", "classes", [])) < 2:
        return None
    if not run.is_finished or looks_like_noise(run) or run.tuned or run.data is None:
        return None
    if run.data.labels is None:
        return None
    _, nearest = nearest_neighbours(run.pictures.samples.flatten(1), run.data.items.flatten(1))
    counts = run.data.labels[nearest].bincount(minlength=len(run.data.classes)).double()
    drawn, known = counts / counts.sum(), torch.tensor(run.data.class_counts).double()
    top = int(drawn.argmax())
    share = float(known[top] / known.sum())
    if drawn[top] < OF_ONE_CLASS or share > drawn[top] / 2:
        return None
    evidence = (
        f"{drawn[top]:.0%} of the samples in {name_of(run)} are nearest to a training image of the "
        f"class {run.data.classes[top]}, which has {share:.0%} of the data"
    )
    cause = "an unconditional network learned the most frequent shape first; labels separate them"
    command = again(run, class_conditional=True)
    return Finding(WARNING, "one class is drawn", evidence, cause, command)


# --- the data -------------------------------------------------------------------------------------


def narrow_range(run: Run) -> Finding | None:
    """The real images fill a small part of the range of values."""
    if run.pictures is None or not len(run.pictures.real):
        return None
    real = run.pictures.real.double()
    if real.std().item() >= NARROW:
        return None
    evidence = (
        f"the real images in {name_of(run)} have grey levels of {real.min():.0f} to "
        f"{real.max():.0f}, mean {real.mean():.0f}, standard deviation {real.std():.1f}, of 0 to 255"
    )
    if run.is_custom:
        limits = run.setting("data", "range")
        cause = f"value_range={limits} does not fit: scaled by it, the data are nearly constant"
        low, high = fitted_range(real, limits or [0, 255])
        command = again(run, value_range=(low, high))
        return Finding(FAULT, "the range of the data does not fit", evidence, cause, command)
    cause = "the image files are nearly constant; 16-bit files with small values look like that"
    place = run.setting("data", "data_dir", "data")
    command = f"python visualize_diffusion.py --dataset {run.dataset} --data-dir {shlex.quote(str(place))}"
    return Finding(FAULT, "the images are nearly constant", evidence, cause, command)


def data_not_scaled(run: Run) -> Finding | None:
    """The first loss shows that the data are far from unit size."""
    steps, losses = run.losses
    plain = run.setting("diffusion", "loss_weight") == "uniform" and not run.tuned
    if not losses or steps[0] > 20 or not plain or run.kind != "points" or peak(run):
        return None
    if run.setting("diffusion", "prediction") not in ("flow", "v", "x_0"):  # others do not show it
        return None
    if losses[0] < 2 * UNIT:
        return None
    size = math.sqrt(losses[0])
    evidence = (
        f"the loss of the first steps is {losses[0]:.3g}; for data of unit size it is about 2"
    )
    cause = f"the values of the data are about {size:.0f} times too large for the noise"
    command = f"fit(model, points / {size:.3g}, folder={str(new_folder(run.path))!r})"
    return Finding(FAULT, "the data are not scaled", evidence, cause, command)


def one_class_of_data(run: Run) -> Finding | None:
    """Nearly all items belong to one of several classes, or there is one class alone."""
    counts = run.setting("data", "class_counts") or []
    total, names = sum(counts), run.setting("data", "classes", [])
    if len(counts) < 2 or not total or not run.setting("model", "num_classes"):
        return None
    top = max(range(len(counts)), key=counts.__getitem__)
    if counts[top] < DOMINANT * total:
        return None
    evidence = f"{counts[top]:,} of {total:,} items are of the class {names[top]}"
    cause = "the other classes have too few images to be learned"
    command = again(run, class_conditional=False)
    return Finding(WARNING, "nearly all data are of one class", evidence, cause, command)


def few_images(run: Run) -> Finding | None:
    """There are too few images to learn more than these."""
    if run.kind != "images" or not 0 < run.count < FEW:
        return None
    evidence = f"{run.count:,} images to train on, each seen {run.epochs:,.0f} times"
    cause = f"with fewer than {FEW} images a network learns them by heart"
    if run.setting("data", "flip") or run.is_custom or run.setting("model", "autoencoder"):
        command = again(run, **({} if run.is_custom else {"dropout": 0.1}))
        if not takes_dropout(run):
            command = again(run, **length_of(run, max(1, run.step // 2)))
    else:
        command, cause = again(run, flip=True), f"{cause}; mirrored images double their number"
    return Finding(HINT, "there are few images", evidence, cause, command)


def duplicate_images(run: Run) -> Finding | None:
    """Several files of a folder have the same pixels."""
    counts = Counter(run.digests.values())
    double = sum(counts.values()) - len(counts)
    if not double or double < DUPLICATES * len(run.digests):
        return None
    digest, times = counts.most_common(1)[0]
    names = [name for name, found in run.digests.items() if found == digest][:2]
    evidence = (
        f"{double:,} of {len(run.digests):,} images in data.json have the pixels of another one; "
        f"{names[0]} and {names[1]} are the same, {times} times in all"
    )
    cause = (
        "copies in the folder: the network learns them by heart, and the validation loss is too low"
    )
    place = run.setting("data", "data_dir", "data")
    # Deleting is the user's decision: the command shows them.
    command = f"python visualize_diffusion.py --dataset folder --data-dir {shlex.quote(str(place))} --num-images 64"
    return Finding(WARNING, "images occur several times", evidence, cause, command)


# --- the machine ----------------------------------------------------------------------------------


def slow_steps(run: Run) -> Finding | None:
    """The steps have become much slower than they were: the processor waits."""
    steps, speeds = run.speeds
    if len(speeds) < MEASURED_ROWS or run.seconds < MEASURED_SECONDS:
        return None
    third = len(speeds) // 3
    fast, now = sorted(speeds)[-third], median(speeds[-third:])
    slowest = min(median(speeds[i : i + third]) for i in range(0, len(speeds) - third + 1, third))
    if slowest >= DROP * fast:
        return None
    evidence = (
        f"{slowest:,.0f} {run.kind}/s over a third of the steps, {fast:,.0f} in the fastest third, "
        f"{now:,.0f} at the end"
    )
    size = math.prod(item_shape(run.config["data"])) * run.count / 2**30 if run.config else 0
    limit = run.number("data", "cache_limit", 2.0)
    if run.kind == "images" and run.dataset == "folder" and size > limit:
        cause = (
            f"the {size:.1f} GB of pixels are read from the disk (--cache-limit {limit:g}), and the "
            "processor waits for it"
        )
        command = resume(run, cache_limit=math.ceil(size) + 1)
    else:
        cause = "other programs used the cores, so that its threads waited for each other"
        command = resume(run, threads="auto") if not run.is_custom else resume(run)
    return Finding(HINT, "the processor waits", evidence, cause, command)


def unfit_precision(run: Run) -> Finding | None:
    """The number format does not suit the hardware of the last session."""
    session = run.sessions[-1] if run.sessions else {}
    device, cpu = session.get("device"), session.get("cpu")
    if not isinstance(device, dict) or not isinstance(cpu, dict):
        return None
    used, kind = session.get("precision"), device.get("type")
    if kind == "cpu" and used == "bf16":
        features = cpu.get("features")
        if not isinstance(features, list) or {"avx512_bf16", "amx_bf16"} & {*map(str, features)}:
            return None
        evidence = f"env.json: bf16 on {cpu.get('name')}, which has no bf16 instructions"
        cause = "the processor computes bf16 by way of fp32, several times slower"
        command = resume(run, precision="fp32")
        return Finding(WARNING, "bf16 is slow on this processor", evidence, cause, command)
    capability = str(device.get("capability", "0")).partition(".")[0]
    if kind == "cuda" and used == "fp32" and capability.isdecimal() and int(capability) >= 8:
        evidence = (
            f"env.json: fp32 on {device.get('name')} (compute capability {device['capability']})"
        )
        cause = "this GPU has bf16, which is about twice as fast and has the range of fp32"
        return Finding(HINT, "bf16 is not used", evidence, cause, resume(run, precision="bf16"))
    if kind == "cuda" and used == "fp16" and capability.isdecimal() and int(capability) >= 8:
        evidence = (
            f"env.json: fp16 on {device.get('name')} (compute capability {device['capability']})"
        )
        cause = "this GPU has bf16, which is as fast and does not overflow"
        return Finding(
            HINT, "fp16 is used instead of bf16", evidence, cause, resume(run, precision="bf16")
        )
    return None


# Causes come before their effects: findings of one severity keep this order.
CHECKS: dict[str, Callable[[Run], Finding | None]] = {
    "config": unreadable_config,
    "damaged-checkpoint": damaged_checkpoints,
    "no-checkpoint": missing_checkpoints,
    "not-finite": not_finite,
    "range": narrow_range,
    "scale": data_not_scaled,
    "diverged": diverged,
    "loss-does-not-fall": does_not_fall,
    "lr-too-high": learning_rate_too_high,
    "lr-too-low": learning_rate_too_low,
    "average-lags": average_lags,
    "noise": only_noise,
    "grey": grey_pictures,
    "saturated": saturated_pictures,
    "alike": all_alike,
    "one-class-drawn": one_class_drawn,
    "overfitting": overfitting,
    "near-copies": near_copies,
    "one-class": one_class_of_data,
    "few-images": few_images,
    "duplicates": duplicate_images,
    "slow-steps": slow_steps,
    "precision": unfit_precision,
}
# What explains pictures that are noise.
LOSS_CHECKS = (not_finite, diverged, does_not_fall, learning_rate_too_low, average_lags)


def examine(run: Run) -> dict[str, Finding]:
    """The findings of all checks by their names, the worst first."""
    found = {name: finding for name, check in CHECKS.items() if (finding := check(run))}
    return dict(sorted(found.items(), key=lambda item: -item[1].severity))


# --- measures of the log --------------------------------------------------------------------------


def has_stages(run: Run) -> bool:
    """Does what is learned change during the run, so that losses cannot be compared?"""
    return run.tuned in ("consistency", "distill") or bool(run.setting("model", "discriminator"))


def level(losses: list[float]) -> float:
    """The loss at the end: the mean of the last fifth of the rows."""
    return fmean(losses[-max(3, len(losses) // 5) :])


def scatter(losses: list[float]) -> float:
    """The standard deviation of the noise of rows: from the differences of neighbours."""
    differences = [b - a for a, b in zip(losses, losses[1:], strict=False)]
    return stdev(differences) / math.sqrt(2) if len(differences) > 1 else math.inf


def relative_fall(run: Run) -> float | None:
    """How much the loss has fallen from its first row, 0 ... 1; None if that says nothing: the run
    is short, or began with a trained network."""
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
    highest = max(losses[1:])
    noise = scatter(losses[-max(5, len(losses) // 2) :])
    if highest < PEAK * losses[0] or highest - losses[0] < SIGMAS * noise:
        return None
    return steps[losses.index(highest)], highest


def with_usual_lr(run: Run) -> str:
    """The command that trains again with the default learning rate."""
    return again(run, lr=None if "lr" in (flags_of(run) or {"lr"}) else usual_lr(run))


def usual_lr(run: Run) -> float:
    """The default learning rate for such a run."""
    if run.is_custom:
        return 1e-3  # of `fit`
    preset = PRESETS.get((flags_of(run) or {}).get("preset"), {})
    if "lr" in preset and not (run.setting("train", "optimizer") == "adamw"):
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
    """Flags that limit a new run to so many steps."""
    return {"max_steps": max(1, steps), "epochs": None, "max_minutes": None}


def takes_dropout(run: Run) -> bool:
    return run.model in ("unet", "dit") and not run.setting("model", "autoencoder")


# --- measures of pictures -------------------------------------------------------------------------


def correlation(images: Tensor) -> float:
    """The correlation of neighbouring pixels of images (N, C, H, W): about 0 for noise, 1 for smooth
    pictures; 0 for constant ones."""
    x = images.double()
    x = x - x.mean(dim=(0, 2, 3), keepdim=True)
    variance = x.square().mean().item()
    if not variance or min(x.shape[2:]) < 2:
        return 0.0
    across, down = x[..., 1:] * x[..., :-1], x[..., 1:, :] * x[..., :-1, :]
    return (across.mean().item() + down.mean().item()) / 2 / variance


def looks_like_noise(run: Run) -> bool:
    """Do neighbouring pixels of the samples hardly depend on each other, where those of real images
    do?"""
    samples, real = (correlation(x) for x in run.pictures[1:])
    has_contrast = run.pictures.samples.double().std() >= NARROW
    return bool(has_contrast) and real >= MIN_CORRELATION and samples < NOISE * real


def extreme(images: Tensor) -> float:
    """The fraction of values that are 0 or 255."""
    return ((images == 0) | (images == 255)).double().mean().item()


def mean_distance(images: Tensor) -> float:
    """The mean distance of two of the images, root mean square over the pixels."""
    x = images.flatten(1).double()
    distances = torch.cdist(x, x)
    return distances.sum().item() / (len(x) * (len(x) - 1)) / math.sqrt(x.shape[1])


def copies_of(run: Run) -> NearCopies | None:
    """Distances of the samples to the training images; None if copies are not to be expected, or
    the data are not found."""
    if run.pictures is None or run.epochs < SEEN or not run.draws:
        return None
    if looks_like_noise(run) or run.data is None:
        return None
    items = run.data.items
    train, held_out = split(len(items), run.held_out, int(run.number("train", "seed", 0)))
    known = items[train]
    if run.setting("data", "flip"):
        known = torch.cat([known, known.flip(-1)])
    if len(held_out) < 1 / RARE / 4:  # the distance of the closest hundredth is not known
        return None
    samples = run.pictures.samples
    return find_near_copies(samples, known, items[held_out[:MOST_HELD_OUT]])


def fitted_range(real: Tensor, limits: list[float]) -> tuple[float, float]:
    """The range of data of which images (uint8, as doubles) were made with other limits."""
    low, high = limits
    ends = [low + float(value) / 255 * (high - low) for value in (real.min(), real.max())]
    return (math.floor(ends[0]), max(math.floor(ends[0]) + 1, math.ceil(ends[1])))


def name_of(run: Run) -> str:
    """The path of the sample grid within the run's folder."""
    return run.pictures.path.relative_to(run.path).as_posix()
