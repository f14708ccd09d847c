"""Solution 15: the loss of a consistency model."""

from collections.abc import Callable

import torch
from torch import Tensor


def consistency_loss(model: Callable, x_0: Tensor, t: Tensor, r: Tensor, noise: Tensor) -> Tensor:
    """The distance of the model's x_0 at t from that at r < t, a scalar."""
    x_t = between(x_0, noise, t)
    x_r = between(x_0, noise, r)  # the same noise: a point of the same trajectory
    with torch.no_grad():  # the target is not trained
        target = model(x_r, r)
    target = torch.where((r == 0).view(-1, 1, 1, 1), x_0, target)
    square = (model(x_t, t) - target).square().flatten(1).mean(dim=1)  # (B,)
    c = 0.00054
    distance = (square + c**2).sqrt() - c
    return (distance / (t - r)).mean()


def between(x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point at times t (B,) on the lines from x_0 to noise."""
    time = t.view(-1, 1, 1, 1)
    return (1 - time) * x_0 + time * noise
