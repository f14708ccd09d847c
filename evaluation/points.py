"""Distance of generated points to their distribution."""

import torch
from torch import Tensor

from dataset.points import draw_points
from evaluation.distances import energy_distance


def point_distances(samples: Tensor, name: str, sets: int = 5) -> tuple[float, float]:
    """The energy distance of samples (N, 2) to fresh points, and that between fresh points.

    Both are biased means over several sets of N points, and so above 0. Their ratio compares the
    samples with a second draw of the data.
    """

    def fresh(seed: int) -> Tensor:
        return torch.from_numpy(draw_points(name, len(samples), seed)[0])

    pairs = [(fresh(1000 + 2 * i), fresh(1001 + 2 * i)) for i in range(sets)]
    ours = sum(energy_distance(samples, a, biased=True) for a, _ in pairs)
    floor = sum(energy_distance(a, b, biased=True) for a, b in pairs)
    return ours / sets, floor / sets
