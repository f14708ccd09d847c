"""Solution 2: the posterior."""

import torch
from torch import Tensor


def posterior(
    x_0: Tensor, x_t: Tensor, t: Tensor, betas: Tensor, alphas_cumprod: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (B, C, H, W) and variance (B, 1, 1, 1) of q(x_{t-1} | x_t, x_0). Eq. 6 and 7."""
    beta = betas[t].view(-1, 1, 1, 1)
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    # alpha-bar of the step before t; before the first step there is no noise: alpha-bar is 1.
    before = torch.cat([torch.ones(1), alphas_cumprod[:-1]])[t].view(-1, 1, 1, 1)
    mean = before.sqrt() * beta / (1 - alpha_bar) * x_0
    mean = mean + (1 - beta).sqrt() * (1 - before) / (1 - alpha_bar) * x_t
    variance = (1 - before) / (1 - alpha_bar) * beta
    return mean, variance
