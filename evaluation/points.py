"""Distance of generated points to their data set."""

import torch
from torch import Tensor

from dataset.points import draw_points
from evaluation.distances import energy_distance


def point_distances(samples: Tensor, name: str, sets: int = 5) -> tuple[float, float]:
    """Energy distances of samples (N, 2) to fresh points, and of fresh points to others.

    Both are means over a few sets of N, and count an item with itself: so they are above 0, and
    their ratio says how the samples compare with a second draw of the data.
    """

    def fresh(seed: int) -> Tensor:
        return torch.from_numpy(draw_points(name, len(samples), seed)[0])

    pairs = [(fresh(1000 + 2 * i), fresh(1001 + 2 * i)) for i in range(sets)]
    ours = sum(energy_distance(samples, a, biased=True) for a, _ in pairs)
    floor = sum(energy_distance(a, b, biased=True) for a, b in pairs)
    return ours / sets, floor / sets
