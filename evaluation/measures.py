"""What generated images are measured by, each beside its floor: what real images get.

A figure alone says little: of 2,000 images even real ones are some way from the test set, by chance
and because the training set is not the test set. So each figure comes with that of as many training
images, several times, and with the ratio of the two.
"""

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.classifier import Judge, Seen
from evaluation.distances import chi_square, coverage, frechet_distance, kernel_distance, moments
from evaluation.real import Real
from utils import derive_seed

NEIGHBOURS = 3  # for precision and recall (Kynkaanniemi et al. 2019)
NEIGHBOURS_OF_DENSITY = 5  # for density and coverage (Naeem et al. 2020)


class Measure(NamedTuple):
    """A measure of sets of generated images, and of real ones."""

    values: list[float]
    floor: list[float]  # of as many training images, drawn at random several times

    def record(self) -> dict:
        """The same for a report, with the means, whose ratio says how far a distance is."""
        found, floor = mean(self.values), mean(self.floor)
        ratio = {"ratio": found / floor} if floor > 0 else {}
        return {
            "mean": found,
            "floor": floor,
            **ratio,
            "values": self.values,
            "floor_values": self.floor,
        }


class Reference:
    """Real images that generated ones are compared with.

    Args:
        judge: in whose features.
        real: the data set; compared with are its held-out items.
    """

    def __init__(self, judge: Judge, real: Real):
        self.judge, self.train = judge, real.train
        self.seen = judge.see(real.held_out.items)
        self.moments = moments(self.seen.features)

    def frechet(self, seen: Seen) -> float:
        """The classifier-FID."""
        return frechet_distance(moments(seen.features), self.moments)

    def distance(self, images: Tensor) -> float:
        """The classifier-FID of uint8 images (N, C, H, W)."""
        return self.frechet(self.judge.see(images))

    def measure(self, seen: Seen, labels: Tensor | None = None) -> dict[str, float]:
        """All figures by features, of what is seen in N images; with the classes that were asked
        for (N,), the share of images that are of theirs too.

        Precision and its kin compare N images with N held-out ones, or with all, if those are
        fewer.
        """
        real = self.seen.features[chosen(len(self.seen.features), len(seen.features), "held out")]
        ours = seen.features[chosen(len(seen.features), len(real), "generated")]  # may be sorted
        close = coverage(real, ours, NEIGHBOURS)
        dense = coverage(real, ours, NEIGHBOURS_OF_DENSITY)
        figures = {
            "classifier_fid": self.frechet(seen),
            "classifier_kid": kernel_distance(seen.features, self.seen.features),
            "precision": close.precision,
            "recall": close.recall,
            "density": dense.density,
            "coverage": dense.coverage,
            "confidence": seen.probabilities.amax(dim=1).double().mean().item(),
        }
        if labels is None:
            return {**figures, **self.histogram(seen)}
        accuracy = (seen.classes == labels).double().mean().item()
        return {**figures, "class_accuracy": accuracy}

    def histogram(self, seen: Seen) -> dict[str, float]:
        """Pearson's test of the classes that are seen against their shares of the training set."""
        classes = len(self.train.classes)
        counts = torch.bincount(seen.classes, minlength=classes)
        statistic, p = chi_square(counts, torch.bincount(self.train.labels, minlength=classes))
        return {"class_chi_square": statistic, "class_p_value": p}

    def measures(
        self, sets: Sequence[Tensor], labels: Tensor | None, repeats: int, seed: int
    ) -> dict[str, Measure]:
        """Each measure of sets of N uint8 images, all of the same classes (N,) if any were asked
        for, and of `repeats` sets of N training images."""
        measured = [self.measure(self.judge.see(images), labels) for images in sets]
        floors = []
        for i in range(repeats):
            some = chosen(len(self.train.items), len(sets[0]), "floor", seed + i)
            asked = None if labels is None else self.train.labels[some]
            floors.append(self.measure(self.judge.see(self.train.items[some]), asked))
        return {
            name: Measure([m[name] for m in measured], [f[name] for f in floors])
            for name in measured[0]
        }


def chosen(total: int, count: int, *words: str | int) -> Tensor:
    """So many numbers of `total`, or all, chosen by a seed."""
    generator = torch.Generator().manual_seed(derive_seed(*words))
    return torch.randperm(total, generator=generator)[:count]
