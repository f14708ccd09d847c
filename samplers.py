"""The reverse process: walks from noise to data.

Every sampler is a generator with one signature: `sampler(denoise, x, levels, noise_like,
**options)`.

    denoise     (x_t, level) -> (x_0, eps), from `GaussianDiffusion.denoiser`
    x           noise at levels[0], of any shape (B, ...)
    levels      noise levels from noisy to clean, from `GaussianDiffusion.levels`
    noise_like  x -> fresh standard normal noise of x's shape

It yields x at levels[1], levels[2], ..., so that one function serves the last picture, the pictures
in between, and a progress bar. Keyword-only options are the sampler's own.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import sqrt

from torch import Tensor

from diffusion import Denoise, Level

NoiseLike = Callable[[Tensor], Tensor]


def ddpm(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise_like: NoiseLike
) -> Iterator[Tensor]:
    """Ancestral sampling with the posterior's variance (Ho et al. 2020, arXiv:2006.11239, algorithm
    2).

    Takes all T levels or a subset: eq. 7 written between any two levels (Kingma et al. 2021,
    arXiv:2107.00630, eq. 26 to 29).
    """
    for cur, nxt in pairwise(levels):
        x_0, _ = denoise(x, cur)
        alpha = cur.alpha / nxt.alpha  # of q(x_cur | x_nxt)
        variance = cur.sigma**2 - alpha**2 * nxt.sigma**2
        coef_x_0 = nxt.alpha * variance / cur.sigma**2
        coef_x_t = alpha * nxt.sigma**2 / cur.sigma**2
        x = coef_x_0 * x_0 + coef_x_t * x
        if nxt.sigma > 0:
            x = x + posterior_std(cur, nxt) * noise_like(x)
        yield x


def ddim(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise_like: NoiseLike,
    *,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12): no noise at eta = 0, `ddpm` at eta = 1."""
    for cur, nxt in pairwise(levels):
        x_0, eps = denoise(x, cur)
        std = eta * posterior_std(cur, nxt)
        x = nxt.alpha * x_0 + sqrt(nxt.sigma**2 - std**2) * eps
        if std > 0:
            x = x + std * noise_like(x)
        yield x


SAMPLERS: dict[str, Callable[..., Iterator[Tensor]]] = {
    "ddpm": ddpm,
    "ddim": ddim,
}


def options_of(sampler: Callable) -> dict[str, float]:
    """The keyword-only options of a sampler with their defaults."""
    parameters = inspect.signature(sampler).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def posterior_std(cur: Level, nxt: Level) -> float:
    """Standard deviation of q(x_nxt | x_cur, x_0); 0 where nxt is clean. DDIM's eq.

    16 at eta = 1.
    """
    variance = cur.sigma**2 - (cur.alpha / nxt.alpha) ** 2 * nxt.sigma**2
    return sqrt(variance) * nxt.sigma / cur.sigma
