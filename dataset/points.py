"""Data sets of points in the plane. They are computed, not downloaded, and train within a minute.

To add one, write a function `(count, rng) -> (points (count, 2), labels (count,) or None)` and add
lines to `POINT_SETS` and to `registry.DATASETS`.
"""

from collections.abc import Callable
from math import pi
from typing import NamedTuple

import numpy as np
import torch

from dataset.types import Data, Request

POINTS_PER_SPLIT = 40_960


def load_points(name: str, request: Request) -> Data:
    """40,960 points of a set of `POINT_SETS`; the test split has as many different ones."""
    points, labels = draw_points(name, POINTS_PER_SPLIT, {"train": 0, "test": 1}[request.split])
    if labels is None:
        return Data(torch.from_numpy(points), None, [])
    classes = [str(label) for label in range(labels.max() + 1)]
    return Data(torch.from_numpy(points), torch.from_numpy(labels), classes)


def draw_points(name: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Points, float32 (count, 2), of about unit variance, and labels, int64 (count,) or None."""
    spec = POINT_SETS[name]
    points, labels = spec.draw(count, np.random.RandomState(seed))
    points = (points - np.array(spec.centre)) / spec.scale
    return points.astype(np.float32), None if labels is None else labels.astype(np.int64)


def moons(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two interleaved half circles (scikit-learn)."""
    from sklearn.datasets import make_moons

    return random_subset(count, rng, *make_moons(10 * count, noise=0.05, random_state=rng))


def swissroll(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, None]:
    """A band rolled into a spiral (scikit-learn's Swiss roll, without its width)."""
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(count, noise=0.3, random_state=rng)
    return points[:, [0, 2]], None


def circles(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """A circle within another (scikit-learn)."""
    from sklearn.datasets import make_circles

    points, labels = make_circles(10 * count, noise=0.04, factor=0.5, random_state=rng)
    return random_subset(count, rng, points, labels)


def spiral(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two spiral arms."""
    labels = rng.randint(2, size=count)
    angle = 3 * pi * np.sqrt(rng.rand(count))  # the root makes the density even along the arm
    radius = angle / (3 * pi)
    direction = angle + pi * labels
    points = np.stack([radius * np.cos(direction), radius * np.sin(direction)], axis=1)
    return points + 0.02 * rng.randn(count, 2), labels


def checkerboard(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, None]:
    """The dark squares of a 4 x 4 checkerboard."""
    column, half = rng.randint(4, size=count), rng.randint(2, size=count)
    corner = np.stack([column, 2 * half + column % 2], axis=1)
    return corner + rng.rand(count, 2), None


def gaussians(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """A mixture of eight narrow Gaussians on a circle."""
    labels = rng.randint(8, size=count)
    angle = 2 * pi * labels / 8
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.08 * rng.randn(count, 2), labels


def random_subset(count: int, rng: np.random.RandomState, points: np.ndarray, labels: np.ndarray):
    """A random subset, because scikit-learn's points are evenly spaced and not independent."""
    chosen = rng.permutation(len(points))[:count]
    return points[chosen], labels[chosen]


class PointSet(NamedTuple):
    """A distribution of points, with the centre and scale by which its points are normalized."""

    draw: Callable[[int, np.random.RandomState], tuple[np.ndarray, np.ndarray | None]]
    centre: tuple[float, float]
    scale: float  # standard deviation of a coordinate


POINT_SETS: dict[str, PointSet] = {
    "moons": PointSet(moons, (0.5, 0.25), 0.71),
    "swissroll": PointSet(swissroll, (1.7, 1.0), 6.5),
    "circles": PointSet(circles, (0.0, 0.0), 0.56),
    "spiral": PointSet(spiral, (0.0, 0.0), 0.5),
    "checkerboard": PointSet(checkerboard, (2.0, 2.0), 1.15),
    "gaussians": PointSet(gaussians, (0.0, 0.0), 0.71),
}
