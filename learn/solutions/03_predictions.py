"""Solution 3: the clean image that a prediction implies."""

from torch import Tensor


def x_0_from_eps(eps: Tensor, x_t: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_0 (B, C, H, W): eq. 4 solved for x_0. Eq. 15 without its clipping."""
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    return (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def x_0_from_v(v: Tensor, x_t: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_0 (B, C, H, W) from v = alpha noise - sigma x_0."""
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * v
