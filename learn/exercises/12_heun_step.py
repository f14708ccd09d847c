"""Exercise 12: a step of Heun's method.

Chapter: docs/guide/07_sampling.md
Check:   python learn/check.py 12
"""

from collections.abc import Callable

import torch
from torch import Tensor


def heun_step(denoise: Callable, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One step of order 2 (Karras et al. 2022, arXiv:2206.00364, algorithm 1, lines 4 to 8, with
    sigma(t) = t).

    Here x = x_0 + sigma * noise: the signal is not scaled. Without new noise, x moves along

        dx / dsigma = (x - denoise(x, sigma)) / sigma

    Euler's step follows the slope at x. Heun's method computes the slope at the end of Euler's
    step, too, and repeats the step from x with the mean of both slopes. At sigma_next = 0 there is
    no slope: the step is Euler's alone.

    Args:
        denoise: maps (x, sigma) to the predicted x_0 (B, C, H, W).
        x: (B, C, H, W) at the noise level sigma.
        sigma, sigma_next: numbers, sigma_next < sigma.

    Returns:
        x at sigma_next (B, C, H, W).

    Hint: denoise is called twice, and once if sigma_next is 0.
    """
    raise NotImplementedError
