"""Exercise 13: a step of DPM-Solver++(2M).

Chapter: docs/guide/07_sampling.md
Check:   python learn/check.py 13
"""

from math import exp, log

import torch
from torch import Tensor

Level = tuple[float, float]  # alpha, sigma


def dpmpp_2m_step(
    x: Tensor, x_0: Tensor, x_0_last: Tensor | None, last: Level | None, cur: Level, nxt: Level
) -> Tensor:
    """One step of order 2 with one call of the network (Lu et al. 2022, arXiv:2211.01095, alg. 2).

    With lambda = log(alpha / sigma) of a level:

        h     = lambda(nxt) - lambda(cur)
        r     = (lambda(cur) - lambda(last)) / h
        d     = x_0 + (x_0 - x_0_last) / (2 * r)
        x_nxt = sigma(nxt) / sigma(cur) * x - alpha(nxt) * (exp(-h) - 1) * d

    In the first step nothing is known of the past: d = x_0. At clean data, sigma(nxt) = 0, lambda
    is infinite: the result is x_0.

    Args:
        x: (B, C, H, W) at the level cur.
        x_0, x_0_last: the predicted clean images at cur and at last (B, C, H, W); x_0_last is None
            in the first step.
        last, cur, nxt: levels (alpha, sigma) from noisy to clean; last is None in the first step.

    Returns:
        x at the level nxt (B, C, H, W).

    Hint: math.log and math.exp, because levels are numbers.
    """
    raise NotImplementedError
