"""Exercise 9: a step of DDPM.

Chapter: docs/guide/07_sampling.md
Check:   python learn/check.py 9
"""

import torch
from torch import Tensor


def ddpm_step(
    eps: Tensor, x_t: Tensor, t: int, noise: Tensor, betas: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """One step from x_t to x_{t-1} (Ho et al. 2020, algorithm 2, line 4).

        mean    = (x_t - beta / sqrt(1 - alphas_cumprod[t]) * eps) / sqrt(1 - beta)
        x_{t-1} = mean + sqrt(beta) * noise

    The last step, t = 0, adds no noise. The variance is beta, the first of the two choices of
    section 3.2.

    Args:
        eps: the predicted noise (B, C, H, W).
        x_t: (B, C, H, W).
        t: the timestep, a number from 0, the same for all images.
        noise: from N(0, I), (B, C, H, W).
        betas, alphas_cumprod: (T,).

    Returns:
        x_{t-1} (B, C, H, W).

    Hint: betas[t] is a tensor with one number, which multiplies images without reshaping.
    """
    raise NotImplementedError
