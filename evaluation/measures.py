"""Measures of generated images, each with its floor: the same measure of real images.

Even real images are at some distance from the test split, by chance and because the training split
differs from it. So the report also gives each measure for sets of training images of the same size,
and the ratio of the two.
"""

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.distances import chi_square, frechet_distance, gaussian_of, kernel_distance, prdc
from evaluation.features import Predictions, TrainedClassifier
from evaluation.real import RealData
from utils import derive_seed

NEIGHBOURS = 3  # for precision and recall (Kynkaanniemi et al. 2019)
NEIGHBOURS_OF_DENSITY = 5  # for density and coverage (Naeem et al. 2020)


class Measure(NamedTuple):
    """A measure of several sets of generated images, and of sets of training images."""

    values: list[float]
    floor: list[float]

    def record(self) -> dict:
        """The values for a report, with their means and the ratio of the means."""
        value, floor = mean(self.values), mean(self.floor)
        return {
            "mean": value,
            "floor": floor,
            **({"ratio": value / floor} if floor > 0 else {}),
            "values": self.values,
            "floor_values": self.floor,
        }


class Reference:
    """Held-out images in the features of a classifier, as a reference for other images.

    Args:
        classifier: gives the features.
        real: the data set, with its held-out items.
    """

    def __init__(self, classifier: TrainedClassifier, real: RealData):
        self.classifier, self.train = classifier, real.train
        self.predictions = classifier.predict(real.held_out.items)
        self.gaussian = gaussian_of(self.predictions.features)

    def frechet(self, predictions: Predictions) -> float:
        """The classifier-FID of images with these predictions."""
        return frechet_distance(gaussian_of(predictions.features), self.gaussian)

    def distance(self, images: Tensor) -> float:
        """The classifier-FID of uint8 images (N, C, H, W)."""
        return self.frechet(self.classifier.predict(images))

    def measure(self, predictions: Predictions, labels: Tensor | None = None) -> dict[str, float]:
        """All measures of N images, by name.

        Precision, recall, density and coverage compare N images with N held-out images, or all
        with all if there are fewer.

        Args:
            predictions: for the images.
            labels: the classes (N,) that were requested. They add the fraction of images of the
                requested class; without them, the class frequencies are tested.
        """
        features, held_out = predictions.features, self.predictions.features
        held_out = held_out[random_indices(len(held_out), len(features), "held out")]
        # N random images of a file that may be sorted by class.
        features = features[random_indices(len(features), len(held_out), "generated")]
        close = prdc(held_out, features, NEIGHBOURS)
        dense = prdc(held_out, features, NEIGHBOURS_OF_DENSITY)
        measured = {
            "classifier_fid": self.frechet(predictions),
            "classifier_kid": kernel_distance(predictions.features, self.predictions.features),
            "precision": close.precision,
            "recall": close.recall,
            "density": dense.density,
            "coverage": dense.coverage,
            "confidence": predictions.probabilities.amax(dim=1).double().mean().item(),
        }
        if labels is None:
            return {**measured, **self.class_frequencies(predictions)}
        accuracy = (predictions.classes == labels).double().mean().item()
        return {**measured, "class_accuracy": accuracy}

    def class_frequencies(self, predictions: Predictions) -> dict[str, float]:
        """Pearson's test of the predicted classes against those of the training split."""
        classes = len(self.train.classes)
        counts = torch.bincount(predictions.classes, minlength=classes)
        statistic, p = chi_square(counts, torch.bincount(self.train.labels, minlength=classes))
        return {"class_chi_square": statistic, "class_p_value": p}

    def measure_sets(
        self, sets: Sequence[Tensor], labels: Tensor | None, repeats: int, seed: int
    ) -> dict[str, Measure]:
        """All measures of several sets, by name.

        Args:
            sets: uint8 images (N, C, H, W).
            labels: the classes (N,) that were requested for each set, if any.
            repeats: number of sets of N training images.
            seed: of the choice of training images.
        """
        measured = [self.measure(self.classifier.predict(images), labels) for images in sets]
        floors = []
        for i in range(repeats):
            indices = random_indices(len(self.train.items), len(sets[0]), "floor", seed + i)
            true = None if labels is None else self.train.labels[indices]
            floors.append(self.measure(self.classifier.predict(self.train.items[indices]), true))
        return {
            name: Measure([m[name] for m in measured], [f[name] for f in floors])
            for name in measured[0]
        }


def measures_table(measures: dict[str, Measure], floor_name: str = "training images") -> str:
    """A text table: name, mean, lowest and highest value, floor, and ratio of distances."""
    rows = [("", "generated", "lowest, highest", floor_name, "ratio")]
    for name, (values, floor) in measures.items():
        spread = f"{min(values):.4g}, {max(values):.4g}" if len(values) > 1 else ""
        is_distance = name == "classifier_fid" and mean(floor) > 0
        ratio = f"{mean(values) / mean(floor):.2f}" if is_distance else ""
        rows.append((name, f"{mean(values):.4g}", spread, f"{mean(floor):.4g}", ratio))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = f"{{:<{widths[0]}}}" + "".join(f"  {{:>{width}}}" for width in widths[1:])
    return "\n".join(layout.format(*row) for row in rows)


def random_indices(total: int, count: int, *stream: str | int) -> Tensor:
    """`count` random indices below `total`, or all if there are fewer; `stream` is the seed."""
    generator = torch.Generator().manual_seed(derive_seed(*stream))
    return torch.randperm(total, generator=generator)[:count]
