"""Solution 13: a step of DPM-Solver++(2M)."""

from math import exp, log

from torch import Tensor

Level = tuple[float, float]  # alpha, sigma


def dpmpp_2m_step(
    x: Tensor, x_0: Tensor, x_0_last: Tensor | None, last: Level | None, cur: Level, nxt: Level
) -> Tensor:
    """x (B, C, H, W) at the level nxt. Lu et al. 2022, algorithm 2."""
    if nxt[1] == 0:  # clean data, where lambda is infinite
        return x_0
    h = log_ratio(nxt) - log_ratio(cur)
    d = x_0
    if x_0_last is not None:
        r = (log_ratio(cur) - log_ratio(last)) / h
        d = x_0 + (x_0 - x_0_last) / (2 * r)  # x_0 in the middle of the step, on a line
    return nxt[1] / cur[1] * x - nxt[0] * (exp(-h) - 1) * d


def log_ratio(level: Level) -> float:
    """lambda = log(alpha / sigma)."""
    alpha, sigma = level
    return log(alpha / sigma)
