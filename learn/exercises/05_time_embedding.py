"""Exercise 5: the time embedding.

Chapter: docs/guide/05_network.md
Check:   python learn/check.py 5
"""

import math

import torch
from torch import Tensor


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of the timesteps (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    With half = dim / 2, there are `half` frequencies, from 1 down to nearly 1 / 10000:

        frequency[i] = 10000 ** (-i / half)         i = 0 ... half - 1

    The features are first cos(t * frequency[i]) for all i, then sin(t * frequency[i]) for all i.

    Args:
        t: timesteps (B,), int64.
        dim: the number of features, even.

    Returns:
        (B, dim), float32, on the device of t.

    Hint: t[:, None] is (B, 1), and times (half,) gives (B, half).
    """
    raise NotImplementedError
