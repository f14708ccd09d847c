"""Checks of the samples of a run. Every threshold is a constant with its reason."""

import math

import torch

from evaluation.copies import RARE
from evaluation.distances import nearest_neighbours
from evaluation.doctor.commands import again, draw, resume
from evaluation.doctor.data_checks import narrow_range
from evaluation.doctor.findings import FAULT, WARNING, Finding
from evaluation.doctor.length import needed_images
from evaluation.doctor.log_measures import (
    FAR,
    length_of,
    rates,
    rounded,
    usual_lr,
    with_usual_lr,
)
from evaluation.doctor.loss_checks import (
    average_lags,
    diverged,
    does_not_fall,
    learning_rate_too_low,
    not_finite,
)
from evaluation.doctor.picture_measures import (
    SEEN,
    class_accuracies,
    copies_of,
    correlation,
    extreme,
    looks_like_noise,
    mean_distance,
    name_of,
)
from evaluation.doctor.run import Run

GREY = 0.3  # part of the standard deviation; tiny and mnist runs have 0.75 to 1
SATURATED = 0.4  # black or white values beyond those of real images; normal runs have fewer
ALIKE = 0.3  # part of the distance between images; normal runs have 0.8 to 1.05
OF_ONE_CLASS = 0.6  # of the samples, where that class is at most half as frequent in the data
# MNIST: 9 % at --lr 0.1, 17 % with AdamW, 48 % after 60 steps, 92 % after 1,100.
OF_THEIR_CLASS = 0.7  # part of the accuracy on held-out images
NEIGHBOURS_TELL = 0.8  # accuracy on held-out images from which the nearest image tells the class
COPIES = 0.1  # fraction of samples; new images have RARE, and 7 of 64 then have a chance of 1e-5
# Checks of the loss that explain samples of noise.
LOSS_CHECKS = (not_finite, diverged, does_not_fall, learning_rate_too_low, average_lags)


def only_noise(run: Run) -> Finding | None:
    """The samples of a run that has ended are noise."""
    if run.pictures is None or run.writing or not looks_like_noise(run):
        return None
    need, seen = needed_images(run), run.images_seen
    if not run.is_finished and seen < need.low:  # of course: it has been stopped early
        return None
    samples, real = (correlation(x) for x in run.pictures[1:])
    evidence = (
        f"neighbouring pixels of the {len(run.pictures.samples)} samples in {name_of(run)} "
        f"correlate by {samples:.2f}, those of the real images below them by {real:.2f}"
    )
    broken = next((c for c in LOSS_CHECKS if c(run) is not None), None)
    if broken is not None:
        cause = f"{broken(run).title}: see that finding"
        return Finding(FAULT, "the pictures are noise", evidence, cause, broken(run).command)
    if reason := explained(run, "high"):
        return Finding(FAULT, "the pictures are noise", evidence, *reason)
    cause = (
        f"not the length: {seen:,.0f} images were seen, and {need.text}. More sampling steps show "
        "whether the sampling is the cause"
    )
    command = draw(run.newest, "--steps", "250") if run.newest else again(run)
    return Finding(FAULT, "the pictures are noise", evidence, cause, command)


def explained(run: Run, images: str) -> tuple[str, str] | None:
    """The cause and the command of bad samples, if the learning rate or the length explains them.

    `images` is "low" or "high": the bound of `needed_images` from which a run is long enough.
    """
    lr, usual = rates(run)
    if lr >= FAR * usual or lr <= usual / FAR:
        what = "high" if lr > usual else "low"
        cause = f"the learning rate is too {what}: {lr:g}, and usual is {usual:g}"
        return cause, with_usual_lr(run)
    return too_short(run) if run.images_seen < getattr(needed_images(run), images) else None


def too_short(run: Run) -> tuple[str, str]:
    """The cause and the command of pictures of a network that was trained too briefly."""
    need = needed_images(run)
    cause = (
        f"the training was too short: {run.step:,} steps of {run.batch_size:g} are "
        f"{run.images_seen:,.0f} images, and {need.text}"
    )
    steps = max(run.step + 1, math.ceil(need.middle / run.batch_size))
    if run.newest in run.checkpoints:
        return cause, resume(run, max_steps=steps)
    return cause, again(run, **length_of(run, steps))


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
    if reason := explained(run, "low"):
        return Finding(FAULT, "the pictures are grey", evidence, *reason)
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
        f"two samples in {name_of(run)} differ by {samples:.0f} grey levels (root mean square), "
        f"two real images by {real:.0f}"
    )
    if reason := explained(run, "low"):
        return Finding(WARNING, "all pictures are alike", evidence, *reason)
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
    # A network draws common shapes first: early samples say nothing about its end.
    if run.images_seen < needed_images(run).low:
        return None
    if run.data.labels is None or all_alike(run) or grey_pictures(run):
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
    if reason := explained(run, "high"):
        return Finding(WARNING, "one class is drawn", evidence, *reason)
    cause = "an unconditional network learned one common shape; labels separate the classes"
    command = again(run, class_conditional=True)
    return Finding(WARNING, "one class is drawn", evidence, cause, command)


def not_of_their_classes(run: Run) -> Finding | None:
    """The samples of a class-conditional network are not of the classes that were asked for."""
    if run.pictures is None or not run.is_finished or looks_like_noise(run):
        return None
    if (accuracies := class_accuracies(run)) is None:
        return None
    drawn, real = accuracies
    if real < NEIGHBOURS_TELL or drawn >= OF_THEIR_CLASS * real:
        return None
    evidence = (
        f"{drawn:.0%} of the samples in {name_of(run)} are nearest to a training image of the "
        f"class of their column; of held-out images, {real:.0%} are nearest to one of their own"
    )
    title = "the samples are not of their classes"
    if reason := explained(run, "high"):
        return Finding(WARNING, title, evidence, *reason)
    cause = f"{run.images_seen:,.0f} images are enough; guidance draws clearer classes"
    command = draw(run.newest, "--guidance-scale", "2") if run.newest else again(run)
    return Finding(WARNING, title, evidence, cause, command)


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
