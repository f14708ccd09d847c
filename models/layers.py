"""Layers that several networks share."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import NULL_LABEL, Condition
from utils import sides, size_text

HEAD_DIM = 32  # channels of one attention head, at least
LEVEL_SCALE = 1000  # noise levels in [0, 1] are embedded as timesteps up to this
MAX_SIDE = 128  # of a feature map with attention: its cost grows with the fourth power of this


def time_embedding(dim: int, smooth: bool = False) -> nn.Sequential:
    """Timesteps t (B,) to features (B, dim): sinusoids, then a network of two layers."""
    sinusoids = TimestepEmbedding(dim, min_period=SMOOTH_PERIOD if smooth else 0)
    return nn.Sequential(sinusoids, nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))


# Shortest period of sinusoids, in timesteps, for a network that is differentiated by time. It is
# trained only at whole timesteps, and fast waves between them would dominate the derivative.
SMOOTH_PERIOD = 200.0
SPAN_SCALE = 1000.0  # brings time spans to the range of timesteps


class TimestepEmbedding(nn.Module):
    """Sinusoidal features (B, dim) of the timesteps t (B,) (Vaswani et al. 2017, section 3.5).

    Features with a period shorter than `min_period` timesteps are 0.
    """

    def __init__(self, dim: int, max_period: float = 10_000, min_period: float = 0):
        super().__init__()
        exponents = torch.arange(dim // 2) / (dim // 2)
        frequencies = torch.exp(-math.log(max_period) * exponents)
        self.register_buffer("frequencies", frequencies, persistent=False)
        slow = (min_period * frequencies <= 2 * math.pi).float().repeat(2) if min_period else None
        self.register_buffer("slow", slow, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies  # (B, dim / 2)
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        return features if self.slow is None else self.slow * features


def span_embedding(dim: int) -> nn.Sequential:
    """Time spans (B,) in [0, 1], times `SPAN_SCALE`, to features (B, dim), which begin as 0."""
    embedding = time_embedding(dim, smooth=True)
    zero(embedding[-1])
    return embedding


def embed(
    time: nn.Module,
    label: nn.Embedding | None,
    t: Tensor,
    condition: Condition | None,
    span: nn.Module | None = None,
) -> Tensor:
    """Features (B, D) of the timesteps t (B,) and, in a class-conditional network, of the labels.

    The last row of the embedding stands for "any class". Items without a label use it. A network
    without classes (`label` is None) ignores the labels. `span` embeds the time spans of a network
    that predicts average velocities; they are 0 where the condition has none.
    """
    emb = time(t)  # (B, D)
    if span is not None:
        given = None if condition is None else condition.span
        emb = emb + span(
            torch.zeros(len(t), device=t.device) if given is None else SPAN_SCALE * given
        )
    if label is None:
        return emb
    any_class = label.num_embeddings - 1
    if condition is None or condition.label is None:
        return emb + label(torch.full(t.shape, any_class, device=t.device))
    return emb + label(torch.where(condition.label == NULL_LABEL, any_class, condition.label))


class LowResolution(nn.Module):
    """The low-resolution image of a condition as additional input channels of a network.

    Saharia et al. 2021 (SR3), arXiv:2104.07636, section 2.2.

    Args:
        size: side of the low-resolution images in pixels, or (height, width).
        image_size: size of the images that the network draws.
        dim: number of features of the noise level.

    Raises ValueError for sizes that are not smaller.
    """

    def __init__(self, size: int | Sequence[int], image_size: int | Sequence[int], dim: int):
        super().__init__()
        self.size = sides(size)
        if any(low >= high for low, high in zip(self.size, sides(image_size), strict=True)):
            raise ValueError(
                f"super-resolution from {size_text(size)} needs larger images than "
                f"{size_text(image_size)}"
            )
        self.level = time_embedding(dim)

    def forward(self, x_t: Tensor, condition: Condition | None) -> tuple[Tensor, Tensor]:
        """Concatenate x_t (B, C, H, W) and the enlarged image; a grey one if there is no image.

        Returns (B, 2C, H, W), and features (B, dim) of the image's noise level.
        """
        image, level = x_t.new_zeros(*x_t.shape[:2], *self.size), x_t.new_zeros(len(x_t))
        if condition is not None and condition.image is not None:
            image, level = condition.image, condition.level
        enlarged = F.interpolate(image, x_t.shape[2:], mode="bicubic")
        return torch.cat([x_t, enlarged], dim=1), self.level(LEVEL_SCALE * level)


def heads_for(channels: int) -> int:
    """Attention heads of at least 32 channels, as many as divide the channels."""
    heads = max(1, channels // HEAD_DIM)
    return next(h for h in range(heads, 0, -1) if channels % h == 0)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for tensors (B, heads, N, d).

    `mask`, bool (B, N), is False for keys that are ignored.

    With few tokens on a CPU, PyTorch's fused kernel is not used: in bf16 it is six times as slow
    (49 tokens, forward and backward).
    """
    mask = None if mask is None else mask[:, None, None]
    if q.device.type == "cpu" and q.shape[2] <= 256:
        scores = q * q.shape[-1] ** -0.5 @ k.mT
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def zero(module: nn.Module) -> nn.Module:
    """The module with its parameters set to zero, so that its branch starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module
