"""Exercise 8: the moving average of the weights.

Chapter: docs/guide/06_training.md
Check:   python learn/check.py 8
"""

import torch
from torch import nn


def ema_decay(step: int, limit: float) -> float:
    """The decay of the average after a training step, counted from 0.

        (1 + step) / (10 + step), but at most limit

    The decay is the share that the average keeps. It is small at first, because the weights of the
    start are random.

    Returns:
        A float.

    Hint: min.
    """
    raise NotImplementedError


def ema_update(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Update the moving average of a network's parameters, in place.

        average = decay * average + (1 - decay) * network         for each parameter

    Args:
        average, network: two modules of the same kind. Only the average's parameters change.

    Returns:
        None.

    Hint: zip(average.parameters(), network.parameters()); Tensor.copy_; torch.no_grad.
    """
    raise NotImplementedError
