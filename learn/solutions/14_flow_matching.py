"""Solution 14: flow matching."""

from collections.abc import Callable

from torch import Tensor


def flow_matching_loss(model: Callable, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The mean squared error of the velocity, a scalar. Liu et al. 2022, eq. 1."""
    time = t.view(-1, 1, 1, 1)
    x_t = (1 - time) * x_0 + time * noise
    velocity = noise - x_0  # dx_t / dt
    return (model(x_t, t) - velocity).square().mean()


def flow_step(v: Tensor, x_t: Tensor, t: float, t_next: float) -> Tensor:
    """x at t_next (B, C, H, W), on the straight line along v. Euler's method."""
    return x_t + (t_next - t) * v
