"""Solution 9: a step of DDPM."""

from torch import Tensor


def ddpm_step(
    eps: Tensor, x_t: Tensor, t: int, noise: Tensor, betas: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """x_{t-1} (B, C, H, W) from x_t and the predicted noise. Algorithm 2, line 4."""
    beta, alpha_bar = betas[t], alphas_cumprod[t]
    mean = (x_t - beta / (1 - alpha_bar).sqrt() * eps) / (1 - beta).sqrt()
    if t == 0:  # the last step adds no noise
        return mean
    return mean + beta.sqrt() * noise
