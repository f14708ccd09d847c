"""A time-conditioned residual network for points."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from models.layers import embed, span_embedding, time_embedding, zero

OCTAVES = 5  # number of frequencies of the waves in `PointEmbedding`


class MLP(nn.Module):
    """Maps noisy points and their timesteps to a prediction of the same shape.

    Args:
        dim: coordinates of a point.
        channels: width of the hidden layers.
        blocks: residual blocks of two layers each.
        dropout: probability inside the blocks.
        num_classes, learn_sigma, average_velocity: as in `models.unet.UNet`.
    """

    kind = "points"

    def __init__(
        self,
        dim: int,
        channels: int = 128,
        blocks: int = 4,
        dropout: float = 0.0,
        num_classes: int | None = None,
        learn_sigma: bool = False,
        average_velocity: bool = False,
    ):
        super().__init__()
        if channels < 2 or channels % 2 or blocks < 1:
            raise ValueError("the MLP's channels must be an even number, its blocks at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {dropout}")
        self.num_classes = num_classes
        self.average_velocity = average_velocity
        self.time = time_embedding(channels, smooth=average_velocity)
        self.span = span_embedding(channels) if average_velocity else None
        self.label = nn.Embedding(num_classes + 1, channels) if num_classes else None
        self.stem = PointEmbedding(dim, channels)
        self.blocks = nn.ModuleList(Block(channels, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)
        self.head = zero(nn.Linear(channels, 2 * dim if learn_sigma else dim))

    def ends(self) -> list[nn.Module]:
        """The layers that read the points and write the prediction."""
        return [self.stem, self.head]

    def recomputable(self) -> list[nn.Module]:
        """The blocks, which gradient checkpointing computes twice."""
        return list(self.blocks)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Predict from noisy points x_t (B, dim) at the timesteps t (B,).

        Returns (B, dim), or (B, 2 dim) with `learn_sigma`. A network with classes uses the labels
        of the condition.
        """
        emb = F.silu(embed(self.time, self.label, t, condition, self.span))  # (B, C)
        h = self.stem(x_t)  # (B, C)
        for block in self.blocks:
            h = block(h, emb)
        return self.head(F.silu(self.norm(h)))


class PointEmbedding(nn.Module):
    """Points (B, dim) to features (B, C): a linear layer on the coordinates and on waves of them.

    The waves are sines and cosines of 1, 2, 4, ... radians per unit. From coordinates alone, a
    network learns smooth functions first, and fine structure, such as the arms of a spiral, late
    (Tancik et al. 2020, arXiv:2006.10739).
    """

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(OCTAVES), persistent=False)
        self.linear = nn.Linear(dim * (1 + 2 * OCTAVES), channels)

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[:, :, None] * self.frequencies).flatten(1)  # (B, dim * octaves)
        return self.linear(torch.cat([x, angles.sin(), angles.cos()], dim=1))


class Block(nn.Module):
    """A residual block of two layers, (B, C) -> (B, C), scaled and shifted by the features emb."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear_1 = nn.Linear(channels, channels)
        self.scale_shift = nn.Linear(channels, 2 * channels)
        self.dropout = nn.Dropout(dropout)
        self.linear_2 = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.scale_shift(emb).chunk(2, dim=1)
        h = self.linear_1(F.silu(self.norm(x)))
        h = torch.addcmul(shift, h, 1 + scale)
        return x + self.linear_2(self.dropout(F.silu(h)))
