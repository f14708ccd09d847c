"""Solution 10: a step of DDIM."""

import torch
from torch import Tensor


def ddim_step(eps: Tensor, x_t: Tensor, t: int, t_next: int, alphas_cumprod: Tensor) -> Tensor:
    """x at t_next (B, C, H, W); t_next = -1 is clean data. DDIM, eq. 12 with eta = 0."""
    now = alphas_cumprod[t]
    # Index -1 would be the last row of the table, the most noise.
    following = alphas_cumprod[t_next] if t_next >= 0 else torch.tensor(1.0)
    x_0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    return following.sqrt() * x_0 + (1 - following).sqrt() * eps
