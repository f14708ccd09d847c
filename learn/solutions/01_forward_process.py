"""Solution 1: the forward process."""

import torch
from torch import Tensor


def linear_schedule(timesteps: int) -> tuple[Tensor, Tensor]:
    """betas (T,), and alphas_cumprod (T,), the products of all 1 - beta up to t."""
    betas = torch.linspace(1e-4, 0.02, timesteps)
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)  # a product: each step scales the last one
    return betas, alphas_cumprod


def q_sample(x_0: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noisy images x_t (B, C, H, W). Eq. 4."""
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)  # one number for each image
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
