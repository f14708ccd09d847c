"""Solution 4: the training loss."""

from collections.abc import Callable

from pieces import q_sample
from torch import Tensor


def loss(model: Callable, x_0: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The mean squared error of the predicted noise, a scalar. Eq. 14."""
    x_t = q_sample(x_0, t, noise, alphas_cumprod)
    eps = model(x_t, t)
    return (eps - noise).square().mean()
