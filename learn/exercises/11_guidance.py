"""Exercise 11: classifier-free guidance.

Chapter: docs/guide/08_conditions_and_guidance.md
Check:   python learn/check.py 11
"""

import torch
from torch import Tensor


def drop_labels(labels: Tensor, dropped: Tensor, null: int) -> Tensor:
    """Labels with `null`, which means "any class", in place of the dropped ones.

    In training some labels are dropped, so that one network learns to predict with and without
    them (Ho & Salimans 2022, arXiv:2207.12598, algorithm 1).

    Args:
        labels: classes (B,), int64. They must not be changed in place.
        dropped: (B,), bool.
        null: a number that is no class.

    Returns:
        (B,), int64.

    Hint: torch.where.
    """
    raise NotImplementedError


def guided(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """The prediction with guidance (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    Scale 0 is the unconditional prediction, 1 the conditional one. In between and beyond, the
    result lies on the straight line through both.

    Args:
        cond, uncond: predictions with the label and with `null` (B, C, H, W).

    Returns:
        (B, C, H, W).

    Hint: begin with uncond.
    """
    raise NotImplementedError
