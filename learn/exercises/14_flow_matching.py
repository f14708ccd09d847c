"""Exercise 14: flow matching.

Chapter: docs/guide/11_flow_matching.md
Check:   python learn/check.py 14

Here time is a number from 0, data, to 1, noise, and x_t = (1 - t) * x_0 + t * noise.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def flow_matching_loss(model: Callable, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The mean squared error of the velocity (Liu et al. 2022, arXiv:2209.03003, eq. 1).

    The model predicts the velocity dx_t / dt, the derivative of x_t above.

    Args:
        model: maps (x_t, t) to the predicted velocity (B, C, H, W).
        x_0: clean images (B, C, H, W).
        t: times (B,) in [0, 1].
        noise: from N(0, I), (B, C, H, W).

    Returns:
        A scalar tensor with a gradient.

    Hint: the derivative has no t in it.
    """
    raise NotImplementedError


def flow_step(v: Tensor, x_t: Tensor, t: float, t_next: float) -> Tensor:
    """One step of Euler's method from t to t_next < t.

    Args:
        v: the predicted velocity (B, C, H, W).
        x_t: (B, C, H, W).
        t, t_next: numbers.

    Returns:
        x at t_next (B, C, H, W).

    Hint: velocity times the change of time.
    """
    raise NotImplementedError
