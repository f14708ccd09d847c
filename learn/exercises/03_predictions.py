"""Exercise 3: the clean image that a prediction implies.

Chapter: docs/guide/03_what_to_predict.md
Check:   python learn/check.py 3

Below, alpha = sqrt(alphas_cumprod[t]) and sigma = sqrt(1 - alphas_cumprod[t]).
"""

import torch
from torch import Tensor


def x_0_from_eps(eps: Tensor, x_t: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The clean image, if a network has predicted the noise `eps` (Ho et al. 2020, eq. 15).

    Solve x_t = alpha * x_0 + sigma * eps for x_0. Do not clip it.

    Args:
        eps, x_t: (B, C, H, W).
        t: timesteps (B,), int64.
        alphas_cumprod: (T,).

    Returns:
        x_0 (B, C, H, W).

    Hint: check that q_sample of the result gives x_t again.
    """
    raise NotImplementedError


def x_0_from_v(v: Tensor, x_t: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The clean image, if a network has predicted `v` (Salimans & Ho 2022, arXiv:2202.00512).

        v = alpha * noise - sigma * x_0            (appendix D)

    Args and result: as above, with v for eps.

    Hint: compute alpha * x_t - sigma * v on paper.
    """
    raise NotImplementedError
