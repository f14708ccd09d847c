"""Exercise 2: the posterior.

Chapter: docs/guide/02_posterior.md
Check:   python learn/check.py 2
"""

import torch
from torch import Tensor


def posterior(
    x_0: Tensor, x_t: Tensor, t: Tensor, betas: Tensor, alphas_cumprod: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_{t-1} | x_t, x_0). Eq. 6 and 7 (Ho et al. 2020).

    With abar = alphas_cumprod[t], and before = alphas_cumprod[t - 1]:

        mean     =   sqrt(before) * beta / (1 - abar) * x_0
                   + sqrt(1 - beta) * (1 - before) / (1 - abar) * x_t
        variance = (1 - before) / (1 - abar) * beta

    Before the first step there is no noise: for t = 0, before = 1.

    Args:
        x_0, x_t: images (B, C, H, W).
        t: timesteps (B,), int64, from 0.
        betas, alphas_cumprod: (T,).

    Returns:
        The mean (B, C, H, W), and the variance (B, 1, 1, 1).

    Hint: make a table of `before` first, with a 1 in front.
    """
    raise NotImplementedError
