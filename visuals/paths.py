"""Figure of trajectories of points, from noise to data."""

from typing import NamedTuple

import torch
from torch import Tensor

from visuals.pictures import format_axes
from visuals.style import Figure, default_style

ARROWS = 2  # trajectories of two positions, noise and data, are drawn as arrows


class Paths(NamedTuple):
    """The trajectories of one model."""

    title: str
    positions: Tensor  # (S + 1, N, 2), from noise to data
    samples: Tensor  # (M, 2), more of its samples


def straightness(positions: Tensor) -> float:
    """The length of trajectories (S + 1, N, 2) over the distance of their ends; 1 if straight."""
    length = positions.diff(dim=0).norm(dim=2).sum(dim=0)
    distance = (positions[-1] - positions[0]).norm(dim=1)
    return (length.sum() / distance.sum()).item()


@default_style()
def draw_paths(columns: list[Paths]) -> Figure:
    """Draw the trajectories of models over their samples, a model in each column."""
    figure = Figure(figsize=(3.4 * len(columns), 3.8), layout="constrained")
    row = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, (title, positions, samples) in zip(row, columns, strict=True):
        axes.scatter(*samples.T, s=2, linewidths=0, alpha=0.35, color="tab:blue")
        first, last = positions[0], positions[-1]
        if len(positions) == ARROWS:
            ends = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.003}
            axes.quiver(*first.T, *(last - first).T, color="0.35", alpha=0.7, **ends)
        else:
            axes.plot(*positions.permute(2, 0, 1), color="0.35", linewidth=0.5, alpha=0.7)
        axes.scatter(*first.T, s=4, color="0.35", linewidths=0)
        axes.scatter(*last.T, s=6, color="tab:red", linewidths=0)
        format_axes(axes, title)
    return figure


def spread(count: int, seed: int) -> Tensor:
    """Normal noise (count, 2)."""
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
