"""Exercise 1: the noise schedule and the forward process.

Chapter: docs/guide/01_noise_and_schedules.md
Check:   python learn/check.py 1
"""

import torch
from torch import Tensor


def linear_schedule(timesteps: int) -> tuple[Tensor, Tensor]:
    """The linear noise schedule (Ho et al. 2020, arXiv:2006.11239, section 4).

    The betas are the variances of the noise that the steps add. They lie on a line from 0.0001 to
    0.02, both included. alphas_cumprod, the paper's alpha-bar, is what is left of the signal's
    variance after step t (steps count from 0):

        alphas_cumprod[t] = (1 - betas[0]) * (1 - betas[1]) * ... * (1 - betas[t])

    Args:
        timesteps: T, the number of steps. t runs from 0 (least noise) to T - 1.

    Returns:
        betas (T,) and alphas_cumprod (T,), float32.

    Hint: torch.linspace, torch.cumprod.
    """
    raise NotImplementedError


def q_sample(x_0: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noisy images at timesteps t. Eq. 4 of the paper:

        x_t = sqrt(alphas_cumprod[t]) * x_0 + sqrt(1 - alphas_cumprod[t]) * noise

    Args:
        x_0: clean images (B, C, H, W) in [-1, 1].
        t: timesteps (B,), int64, one for each image.
        noise: from N(0, I), (B, C, H, W).
        alphas_cumprod: (T,).

    Returns:
        x_t (B, C, H, W).

    Hint: alphas_cumprod[t] is (B,). To multiply images, it must be (B, 1, 1, 1).
    """
    raise NotImplementedError
