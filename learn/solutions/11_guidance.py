"""Solution 11: classifier-free guidance."""

import torch
from torch import Tensor


def drop_labels(labels: Tensor, dropped: Tensor, null: int) -> Tensor:
    """Labels (B,) with `null` in place of those that are dropped."""
    return torch.where(dropped, null, labels)


def guided(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """The guided prediction (B, C, H, W): 0 is unconditional, 1 conditional, more goes beyond."""
    return uncond + scale * (cond - uncond)
