"""Measures of the samples of a run, next to the real images in the same grid."""

import math

import torch
from torch import Tensor

from dataset.items import split
from evaluation.copies import RARE, NearCopies, find_near_copies
from evaluation.distances import nearest_neighbours
from evaluation.doctor.run import Run
from sampling.conditioning import grid_condition
from visuals.pictures import square

MIN_CORRELATION = 0.2  # of the neighbouring pixels of real images, below which they are like noise
NOISE = 0.35  # part of it in samples: noise has 0.0 to 0.2, the first recognisable digits 0.45
NARROW = 6.0  # grey levels of 255, of the standard deviation of all real pixels; mnist has 75
SEEN = 30  # epochs; a network that has seen an image less often draws no copies of it
JUDGED = 64  # held-out images that show whether the nearest training image tells the class
MOST_HELD_OUT = 256  # held-out images that are compared


def correlation(images: Tensor) -> float:
    """The correlation of neighbouring pixels of images (N, C, H, W).

    It is about 0 for noise and 1 for smooth pictures, and 0 for constant ones.
    """
    x = images.double()
    x = x - x.mean(dim=(0, 2, 3), keepdim=True)
    variance = x.square().mean().item()
    if not variance or min(x.shape[2:]) < 2:
        return 0.0
    across, down = x[..., 1:] * x[..., :-1], x[..., 1:, :] * x[..., :-1, :]
    return (across.mean().item() + down.mean().item()) / 2 / variance


def looks_like_noise(run: Run) -> bool:
    """Do neighbouring pixels correlate in the real images, but hardly in the samples?"""
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
    """Distances of the samples to the training images.

    None if copies are not to be expected, or if the data are not found.
    """
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


def class_accuracies(run: Run) -> tuple[float, float] | None:
    """The fraction of samples that are of their class, and the same of held-out images.

    The class of an image is that of the nearest training image. None without classes, or if the
    data are not found.
    """
    if run.pictures is None or not run.setting("model", "num_classes") or run.data is None:
        return None
    if run.data.labels is None or run.setting("model", "caption_length"):
        return None
    labels, samples = run.data.labels, run.pictures.samples
    train, held_out = split(len(labels), run.held_out, int(run.number("train", "seed", 0)))
    some = held_out[:JUDGED]
    if len(some) < JUDGED:
        return None
    wanted = grid_condition(run.config, torch.arange(len(samples)), square(len(samples))).label
    images = torch.cat([samples, run.data.items[some]]).flatten(1)
    _, nearest = nearest_neighbours(images, run.data.items[train].flatten(1))
    right = labels[train][nearest] == torch.cat([wanted, labels[some]])
    return tuple(part.double().mean().item() for part in right.split([len(samples), len(some)]))


def name_of(run: Run) -> str:
    """The path of the sample grid within the run's folder."""
    return run.pictures.path.relative_to(run.path).as_posix()
