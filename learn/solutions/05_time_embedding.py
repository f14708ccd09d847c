"""Solution 5: the time embedding."""

import math

import torch
from torch import Tensor


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Features (B, dim): cosines, then sines, of t times dim / 2 frequencies."""
    half = dim // 2
    exponents = torch.arange(half, device=t.device) / half
    frequencies = torch.exp(-math.log(10_000) * exponents)  # from 1 down to nearly 1 / 10,000
    angles = t[:, None] * frequencies  # (B, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
