"""Solution 8: the exponential moving average of the weights."""

import torch
from torch import nn


def ema_decay(step: int, limit: float) -> float:
    """The decay after `step` training steps: small at first, at most `limit`."""
    return min(limit, (1 + step) / (10 + step))


@torch.no_grad()
def ema_update(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average's parameters towards the network's, in place."""
    for a, p in zip(average.parameters(), network.parameters(), strict=True):
        a.copy_(decay * a + (1 - decay) * p)
