"""Exercise 10: a step of DDIM.

Chapter: docs/guide/07_sampling.md
Check:   python learn/check.py 10
"""

import torch
from torch import Tensor


def ddim_step(eps: Tensor, x_t: Tensor, t: int, t_next: int, alphas_cumprod: Tensor) -> Tensor:
    """One step from t to t_next < t, without new noise (Song et al. 2020, arXiv:2010.02502,
    eq. 12).

        x_0    = the clean image that eps implies at t
        x_next = sqrt(alphas_cumprod[t_next]) * x_0 + sqrt(1 - alphas_cumprod[t_next]) * eps

    t_next may be -1, which stands for clean data: alphas_cumprod is 1 there.

    Args:
        eps: the predicted noise (B, C, H, W).
        x_t: (B, C, H, W).
        t, t_next: numbers, the same for all images.
        alphas_cumprod: (T,).

    Returns:
        x at t_next (B, C, H, W).

    Hint: what is alphas_cumprod[-1] in Python?
    """
    raise NotImplementedError
