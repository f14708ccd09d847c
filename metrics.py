"""How far apart two sets of samples are."""

import torch
from torch import Tensor


def energy_distance(a: Tensor, b: Tensor, *, biased: bool = False) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| over two sets (N, ...) and (M, ...): 0 if they agree.

    The norm is Euclidean, over all elements of an item (Szekely & Rizzo 2013, eq. 5). An item is
    not compared with itself, so that chance may bring it a little below 0; with `biased` it is, and
    the distance is above 0 by about as much as chance makes two sets differ.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    if min(len(a), len(b)) < 2:
        raise ValueError("an energy distance needs at least two items of each set")

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - (0 if biased else 1)))

    return (2 * torch.cdist(a, b).mean() - within(a) - within(b)).item()
