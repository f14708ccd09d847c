"""Points in the plane: data sets that are made, not loaded, and a network of seconds learns them.

Each is a function (count, rng) -> points (count, 2) and labels (count,), or None; `POINT_SETS` also
says where its centre is and how large it is, so that all come out centred and of about unit size.
"""

from collections.abc import Callable
from math import pi
from typing import NamedTuple

import numpy as np


def moons(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two half circles, each reaching into the other."""
    from sklearn.datasets import make_moons

    return some(count, rng, *make_moons(10 * count, noise=0.05, random_state=rng))


def swissroll(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, None]:
    """A spiral band, seen from its end."""
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(count, noise=0.3, random_state=rng)
    return points[:, [0, 2]], None


def circles(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """A circle inside another."""
    from sklearn.datasets import make_circles

    return some(count, rng, *make_circles(10 * count, noise=0.04, factor=0.5, random_state=rng))


def spiral(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two arms that wind around each other."""
    labels = rng.randint(2, size=count)
    angle = 3 * pi * np.sqrt(rng.rand(count))  # the root spreads them evenly along the arm
    radius = angle / (3 * pi)
    turned = angle + pi * labels
    points = np.stack([radius * np.cos(turned), radius * np.sin(turned)], axis=1)
    return points + 0.02 * rng.randn(count, 2), labels


def checkerboard(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, None]:
    """The dark squares of a board of 4 x 4."""
    column, half = rng.randint(4, size=count), rng.randint(2, size=count)
    corner = np.stack([column, 2 * half + column % 2], axis=1)
    return corner + rng.rand(count, 2), None


def gaussians(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Eight small bells on a circle."""
    labels = rng.randint(8, size=count)
    angle = 2 * pi * labels / 8
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.08 * rng.randn(count, 2), labels


def some(count: int, rng: np.random.RandomState, points: np.ndarray, labels: np.ndarray):
    """A random choice of points that scikit-learn has laid out evenly: real draws are not even."""
    chosen = rng.permutation(len(points))[:count]
    return points[chosen], labels[chosen]


class PointSet(NamedTuple):
    draw: Callable[[int, np.random.RandomState], tuple[np.ndarray, np.ndarray | None]]
    centre: tuple[float, float]
    size: float  # root mean square of a coordinate around the centre


POINT_SETS: dict[str, PointSet] = {
    "moons": PointSet(moons, (0.5, 0.25), 0.71),
    "swissroll": PointSet(swissroll, (1.7, 1.0), 6.5),
    "circles": PointSet(circles, (0.0, 0.0), 0.56),
    "spiral": PointSet(spiral, (0.0, 0.0), 0.5),
    "checkerboard": PointSet(checkerboard, (2.0, 2.0), 1.15),
    "gaussians": PointSet(gaussians, (0.0, 0.0), 0.71),
}


def draw_points(name: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Points (count, 2) float32 of a name in `POINT_SETS`, and labels int64 (count,) or None."""
    spec = POINT_SETS[name]
    points, labels = spec.draw(count, np.random.RandomState(seed))
    points = (points - np.array(spec.centre)) / spec.size
    return points.astype(np.float32), None if labels is None else labels.astype(np.int64)
