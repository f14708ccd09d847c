"""Figure of a score field: grad log p(x_t) as arrows in the plane, at several noise levels."""

import torch
from torch import Tensor

from visuals.pictures import EXTENT, scatter
from visuals.style import Figure, default_style

ARROWS = 21  # in each direction


def lattice() -> Tensor:
    """The positions of the arrows (ARROWS**2, 2)."""
    line = torch.linspace(-EXTENT, EXTENT, ARROWS + 2)[1:-1]
    return torch.cartesian_prod(line, line)


@default_style()
def draw_score_field(panels: dict[str, tuple[Tensor, Tensor]], heading: str) -> Figure:
    """Draw sigma * score at `lattice()` as arrows over noisy data: title -> points (N, 2), arrows.

    All arrows have one length. Their color is the norm, comparable between noise levels.
    """
    figure = Figure(figsize=(3.4 * len(panels) + 0.6, 3.7), layout="constrained")
    figure.suptitle(heading, fontsize=11)
    row = figure.subplots(1, len(panels))
    for axes, (title, (points, arrows)) in zip(row, panels.items(), strict=True):
        scatter(axes, points, title)
        length = arrows.norm(dim=1)
        (x, y), (u, v) = lattice().T, (arrows / length[:, None]).T
        drawn = axes.quiver(x, y, u, v, length, cmap="viridis", clim=(0, 3), scale=28, width=0.005)
    figure.colorbar(drawn, ax=row[-1], label="sigma times norm")
    return figure
