"""Classifier two-sample test: can a fresh network tell generated images from real ones?

(Lopez-Paz & Oquab 2017, arXiv:1610.06545.) Measures in the features of one classifier cannot see
differences that these features ignore, such as a background that is almost black. The networks here
are trained only to find differences.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataset.items import to_unit
from dataset.types import Data
from evaluation.classifier import Classifier, learn
from evaluation.measures import Measure, random_indices
from evaluation.real import RealData
from utils import derive_seed, memory_format
from visuals.pictures import ImagePictures

SEEDS = 3  # networks that are trained for each figure
STEPS = 800  # training steps of each
CHANNELS = (32, 64, 64)  # of its levels
BATCH_SIZE = 500
COARSE = 16  # grey levels of the test that sees only shapes
SHOWN = 10  # images in each row of the picture
ALMOST = 10  # grey levels from the background, at most, of a pixel that is almost background


class Halves(NamedTuple):
    """Images to train on and images to test with, uint8 (n, C, H, W) each."""

    train: Tensor
    test: Tensor


class TwoSample(NamedTuple):
    """Result of the tests of several sets of images."""

    measures: dict[str, Measure]  # "auc" and "auc_16_levels", floor: real images against real ones
    scores: dict[str, Tensor]  # for the same names: how real the test images of the first set look
    tested: Tensor  # these images, uint8 (n, C, H, W)

    def picture(self) -> np.ndarray:
        """A row of the most and one of the least real-looking generated images, for each test."""
        rows = []
        for scores in self.scores.values():
            order = scores.argsort(descending=True)
            rows += [self.tested[order[:SHOWN]], self.tested[order[-SHOWN:]]]
        return ImagePictures().grid(torch.cat(rows), len(rows[0]))


def two_sample_test(
    sets: Sequence[Tensor],
    real: RealData,
    device: torch.device,
    progress: Callable[..., Iterable] = lambda items, **_: items,
) -> TwoSample:
    """Areas under the ROC curve: 0.5 if networks cannot tell images from real ones, 1 if they can.

    Half of the images and as many training images train a network; the other half is tested against
    as many held-out images. For the floor, training images take the place of the generated ones.

    Args:
        sets: uint8 images (N, C, H, W); the networks take the sets in turn.
        real: the data set.
        device: the device to compute on.
        progress: wraps the iteration over the networks, as tqdm does.

    Raises ValueError for too few images.
    """
    size = half_size(sets, real)
    values: dict[str, tuple[list, list]] = {"auc": ([], []), f"auc_{COARSE}_levels": ([], [])}
    scores, tested = {}, None
    cases = [(name, seed) for name in values for seed in range(SEEDS)]
    for name, seed in progress(cases, desc="two-sample test"):
        view = coarse if name != "auc" else lambda images: images
        images = sets[seed % len(sets)]
        generated = halves(images, random_indices(len(images), 2 * size, "two-sample", seed))
        chosen = random_indices(len(real.train.items), 3 * size, "two-sample real", seed)
        others = halves(real.train.items, chosen[size:])  # no image that `truth` has
        held_out = random_indices(len(real.held_out.items), size, "two-sample held out", seed)
        truth = Halves(real.train.items[chosen[:size]], real.held_out.items[held_out])
        for found, fake in zip(values[name], (generated, others), strict=True):
            auc, of_fake = tell_apart(
                Halves(*map(view, truth)), Halves(*map(view, fake)), real, seed, device
            )
            found.append(auc)
            if fake is generated and seed == 0:
                scores[name], tested = of_fake, generated.test
    return TwoSample({name: Measure(*found) for name, found in values.items()}, scores, tested)


def half_size(sets: Sequence[Tensor], real: RealData) -> int:
    """Images of each half: as many as all sets of images allow. Raises ValueError for none."""
    train, held_out = len(real.train.items), len(real.held_out.items)
    size = min(min(map(len, sets)) // 2, train // 3, held_out)
    if size < 2:
        raise ValueError("--metrics two-sample needs at least 4 images, 6 to train on, 2 held out")
    return size


def halves(images: Tensor, indices: Tensor) -> Halves:
    """Some images, in two halves."""
    return Halves(*images[indices].chunk(2))


def coarse(images: Tensor) -> Tensor:
    """uint8 images with `COARSE` grey levels, so that only shapes count."""
    step = 256 // COARSE
    return images // step * ((256 - 1) // (COARSE - 1))


def tell_apart(
    truth: Halves, fake: Halves, real: RealData, seed: int, device: torch.device
) -> tuple[float, Tensor]:
    """Train a network to tell two sets apart. Returns its AUC, and how real the `fake` test looks.

    Training mirrors images at random if mirrored images of this data set look natural.
    """
    count = len(truth.train)
    labels = torch.arange(2).repeat_interleave(count)  # 1: generated
    data = Data(torch.cat([truth.train, fake.train]), labels, ["real", "generated"])
    make = partial(Classifier, data.items.shape[1], 2, channels=CHANNELS)
    model = learn(make, data, STEPS, derive_seed("two-sample", seed), real.flip, device)
    of_truth, of_fake = (realness(model, images, device) for images in (truth.test, fake.test))
    return area(of_truth, of_fake), of_fake


@torch.no_grad()
def realness(model: Classifier, images: Tensor, device: torch.device) -> Tensor:
    """A network's log-odds (N,) that uint8 images (N, C, H, W) are real, on the CPU."""
    parts = []
    for batch in images.split(BATCH_SIZE):
        scores = model(to_unit(batch.to(device, memory_format=memory_format(device))))
        parts.append((scores[:, 0] - scores[:, 1]).float().cpu())
    return torch.cat(parts)


def area(real: Tensor, generated: Tensor) -> float:
    """The area under the ROC curve, from the scores of real (N,) and generated images (M,).

    It is how often a real image has a higher score than a generated one; equal scores count half
    (Mann & Whitney 1947).
    """
    below = torch.searchsorted(generated.sort().values, real)
    up_to = torch.searchsorted(generated.sort().values, real, right=True)
    return ((below + up_to).double().mean() / (2 * len(generated))).item()


class GreyLevels(NamedTuple):
    """The frequencies of grey levels in images, compared with real ones."""

    difference: float  # total variation between the levels of the images and of real ones
    almost_background: float  # share of pixels 1 to `ALMOST` levels from the background's
    almost_background_of_real: float
    background: int  # the most frequent level of real images


def compare_grey_levels(images: Tensor, real: Tensor) -> GreyLevels:
    """Compare the grey levels of uint8 images (N, C, H, W) with those of real ones."""
    ours, theirs = shares(images), shares(real)
    background = int(theirs.argmax())
    near = (torch.arange(256) - background).abs()
    almost = (near >= 1) & (near <= ALMOST)
    difference = (ours - theirs).abs().sum().item() / 2
    return GreyLevels(difference, *(s[almost].sum().item() for s in (ours, theirs)), background)


def shares(images: Tensor) -> Tensor:
    """The share (256,) of each grey level in uint8 images."""
    counts = sum(torch.bincount(part.flatten(), minlength=256) for part in images.split(1000))
    return counts.double() / images.numel()
