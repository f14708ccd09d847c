"""Sampling from given data: image to image, inpainting, inversion, interpolation."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor

from samplers import Denoise, NoiseLike, ddpm
from schedules import Level


def last_part(levels: Sequence[Level], strength: float) -> Sequence[Level]:
    """The last levels of a trajectory: the share `strength` of its steps, at least one.

    Image to image starts there, from x_0 with that much noise (SDEdit, Meng et al. 2021,
    arXiv:2108.01073). Raises ValueError for a strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie above 0 and up to 1, not {strength}")
    steps = len(levels) - 1
    return levels[steps - max(1, round(strength * steps)) :]


def noised(x_0: Tensor, level: Level, noise: Tensor) -> Tensor:
    """x_0 at a noise level (Ho et al. 2020, eq. 4)."""
    return level.alpha * x_0 + level.sigma * noise


def repaint(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise_like: NoiseLike,
    *,
    known: Tensor,
    mask: Tensor,
    resamplings: int = 10,
    variance: str = "small",
) -> Iterator[Tensor]:
    """RePaint (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1), with jumps of one step.

    Where the mask (1 or B, 1, H, W) is 1, x is `known` (of x's shape) with the noise of each level;
    elsewhere it is sampled by `ddpm`. Each step is repeated `resamplings` times, with a step of the
    forward process in between, so that the two parts become consistent.
    """
    for cur, nxt in pairwise(levels):
        for again in range(resamplings, 0, -1):
            (new,) = ddpm(denoise, x, [cur, nxt], noise_like, variance=variance)
            old = noised(known, nxt, noise_like(x)) if nxt.sigma > 0 else known
            x_nxt = torch.where(mask > 0.5, old, new)
            if again > 1 and nxt.sigma > 0:  # q(x_cur | x_nxt)
                alpha = cur.alpha / nxt.alpha
                beta = cur.sigma**2 - alpha**2 * nxt.sigma**2
                x = alpha * x_nxt + sqrt(beta) * noise_like(x)
            else:
                break
        x = x_nxt
        yield x


def invert(denoise: Denoise, x_0: Tensor, levels: Sequence[Level]) -> Iterator[Tensor]:
    """DDIM inversion, from data to noise (Song et al. 2020, section 4.3).

    Yields x at the levels from clean to noisy. Each step uses eps at its start, except for the
    first, which uses eps at its end.
    """
    x = x_0
    for cur, nxt in pairwise(reversed(levels)):
        at = cur if cur.sigma > 0 else nxt
        x_0, eps = denoise(x if cur.sigma > 0 else nxt.alpha * x, at)
        x_0 = x if cur.sigma == 0 else x_0
        x = noised(x_0, nxt, eps)
        yield x


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation between two noise tensors of one shape (Shoemake 1985).

    A share of 0 gives a, 1 gives b. The result keeps the norm of noise.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = cosine.clamp(-1, 1).acos()
    if angle < 1e-4:
        return torch.lerp(a, b, share)
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
