"""Exercise 4: the training loss. It uses your q_sample.

Chapter: docs/guide/04_loss.md
Check:   python learn/check.py 4
"""

from collections.abc import Callable

import torch
from pieces import q_sample  # yours, of exercise 1
from torch import Tensor


def loss(model: Callable, x_0: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The training loss: the mean squared error of the predicted noise (Ho et al. 2020, eq. 14).

        mean of (model(x_t, t) - noise)^2

    Args:
        model: maps (x_t, t) to the predicted noise (B, C, H, W).
        x_0: clean images (B, C, H, W).
        t: timesteps (B,), int64.
        noise: from N(0, I), (B, C, H, W).
        alphas_cumprod: (T,).

    Returns:
        A scalar tensor with a gradient.

    Hint: q_sample(x_0, t, noise, alphas_cumprod) is x_t.
    """
    raise NotImplementedError
