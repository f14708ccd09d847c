"""Checks of the data of a run. Every threshold is a constant with its reason."""

import math
import shlex
from collections import Counter

from torch import Tensor

from evaluation.doctor.commands import again, call
from evaluation.doctor.findings import FAULT, HINT, WARNING, Finding
from evaluation.doctor.log_measures import length_of, peak
from evaluation.doctor.picture_measures import NARROW, name_of
from evaluation.doctor.run import Run

# Networks trained on 10 to 1,000 faces drew these faces (arXiv:2310.02557, figure 1).
FEW = 500  # images
DUPLICATES = 0.05  # of the images of a folder: enough to change what is learned
DOMINANT = 0.98  # of the items in one class of several
TOO_LARGE = 8.0  # times the loss of unit-variance data, of the first row
UNIT_LOSS = {"flow": 2.0, "v": 1.0, "x_0": 1.0}  # about, by prediction; others do not show the size
SHOW = "python visualize_diffusion.py"


def narrow_range(run: Run) -> Finding | None:
    """The real images fill a small part of the range of values."""
    if run.pictures is None or not len(run.pictures.real):
        return None
    real = run.pictures.real.double()
    if real.std().item() >= NARROW:
        return None
    evidence = (
        f"the real images in {name_of(run)} have grey levels of {real.min():.0f} to "
        f"{real.max():.0f} of 255, with a standard deviation of {real.std():.1f}"
    )
    if run.is_custom:
        limits = run.setting("data", "range")
        cause = f"value_range={limits} does not fit: scaled by it, the data are nearly constant"
        low, high = fitted_range(real, limits or [0, 255])
        command = again(run, value_range=(low, high))
        return Finding(FAULT, "the range of the data does not fit", evidence, cause, command)
    cause = "the image files are nearly constant; 16-bit files with small values look like that"
    place = run.setting("data", "data_dir", "data")
    command = f"{SHOW} --dataset {run.dataset} --data-dir {shlex.quote(str(place))}"
    return Finding(FAULT, "the images are nearly constant", evidence, cause, command)


def data_not_scaled(run: Run) -> Finding | None:
    """The first loss shows that the data are far from unit size."""
    steps, losses = run.losses
    plain = run.setting("diffusion", "loss_weight") == "uniform" and not run.tuned
    if not losses or steps[0] > 20 or not plain or run.kind != "points" or peak(run):
        return None
    unit = UNIT_LOSS.get(run.setting("diffusion", "prediction"))
    if unit is None or losses[0] < TOO_LARGE * unit:
        return None
    size = math.sqrt(losses[0])
    evidence = (
        f"the loss of the first steps is {losses[0]:.3g}; for data of unit size it is about "
        f"{unit:g}"
    )
    cause = f"the values of the data are about {size:.0f} times too large for the noise"
    command = call(run, f"points / {size:.3g}")
    return Finding(FAULT, "the data are not scaled", evidence, cause, command)


def one_class_of_data(run: Run) -> Finding | None:
    """Nearly all items belong to one of several classes."""
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
    if not (run.setting("data", "flip") or run.is_custom or run.setting("model", "autoencoder")):
        command, cause = again(run, flip=True), f"{cause}; mirrored images double their number"
    elif takes_dropout(run):
        command = again(run, dropout=0.1)
    else:
        command = again(run, **length_of(run, max(1, run.step // 2)))
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
        "copies in the folder: the network learns them by heart, and the validation loss is too "
        "low. Delete them; the command shows images of the folder"
    )
    place = run.setting("data", "data_dir", "data")
    command = f"{SHOW} --dataset folder --data-dir {shlex.quote(str(place))} --num-images 64"
    return Finding(WARNING, "images occur several times", evidence, cause, command)


def takes_dropout(run: Run) -> bool:
    return run.model in ("unet", "dit") and not run.setting("model", "autoencoder")


def fitted_range(real: Tensor, limits: list[float]) -> tuple[float, float]:
    """The range of the data before `limits` scaled them to images (uint8 values, as doubles)."""
    low, high = limits
    ends = [low + float(value) / 255 * (high - low) for value in (real.min(), real.max())]
    return (math.floor(ends[0]), max(math.floor(ends[0]) + 1, math.ceil(ends[1])))
