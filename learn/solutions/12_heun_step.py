"""Solution 12: a step of Heun's method."""

from collections.abc import Callable

from torch import Tensor


def heun_step(denoise: Callable, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x (B, C, H, W) at sigma_next. Karras et al. 2022, algorithm 1, lines 4 to 8, sigma(t) = t."""
    slope = (x - denoise(x, sigma)) / sigma  # dx / dsigma
    x_next = x + (sigma_next - sigma) * slope  # Euler's step
    if sigma_next == 0:  # the slope would divide by 0
        return x_next
    slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + slope_next) / 2  # from x, not from x_next
