"""The reverse process: samplers go from noise to data.

Every sampler is a generator with one signature: `sampler(denoise, x, levels, noise_like,
**options)`.

    denoise     (x_t, level) -> (x_0, eps), from `GaussianDiffusion.denoiser`
    x           noise at levels[0], of any shape (B, ...)
    levels      noise levels from noisy to clean, from `GaussianDiffusion.levels`
    noise_like  x -> fresh standard normal noise of x's shape

It yields x at levels[1], levels[2], ..., so that one function serves the final samples, the
intermediate pictures and a progress bar. Keyword-only options are the sampler's own.

Samplers work with every schedule, because they are written in alpha and sigma. The papers on
solvers use x / alpha with the noise level sigma / alpha, or lambda = log(alpha / sigma). In pure
noise x / alpha is undefined, so each step here is a DDIM step plus a correction from past steps.
"""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import expm1, inf, isfinite, sqrt
from typing import Protocol

import numpy as np
from torch import Tensor

from schedules import Level

NoiseLike = Callable[[Tensor], Tensor]


class Denoise(Protocol):
    """The interface of denoisers, as samplers call them."""

    def __call__(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """The network's predictions (x_0, eps) for x_t."""

    def averaged(self, x_t: Tensor, level: Level, following: Level) -> Tensor:
        """x at another level, by the average velocity between both; used only by meanflow."""

    def nearest(self, ratio: float) -> Level:
        """The level of the process with the nearest sigma / alpha; used only by churn."""

    def with_variance(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """(x_0, eps, fraction), for a network with a learned variance; used only by ddpm."""


def ddpm(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise_like: NoiseLike,
    *,
    variance: str = "small",
) -> Iterator[Tensor]:
    """Ancestral sampling (Ho et al. 2020, arXiv:2006.11239, algorithm 2).

    Takes all T levels or a subset: eq. 7 written between any two levels (Kingma et al. 2021,
    arXiv:2107.00630, eq. 26 to 29). The variance is the posterior's (`small`), that of the forward
    step (`large`; section 3.2), or the network's own between them (`learned`; Nichol & Dhariwal
    2021, eq. 15).
    """
    for cur, nxt in pairwise(levels):
        if variance == "learned":
            x_0, _, fraction = denoise.with_variance(x, cur)
        else:
            (x_0, _), fraction = denoise(x, cur), float(variance == "large")
        alpha = cur.alpha / nxt.alpha  # of q(x_cur | x_nxt)
        beta = cur.sigma**2 - alpha**2 * nxt.sigma**2
        coef_x_0 = nxt.alpha * beta / cur.sigma**2
        coef_x_t = alpha * nxt.sigma**2 / cur.sigma**2
        x = coef_x_0 * x_0 + coef_x_t * x
        if nxt.sigma > 0:
            small = posterior_std(cur, nxt)
            std = small * (sqrt(beta) / small) ** fraction  # interpolated in log space
            x = x + std * noise_like(x)
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


def euler(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise_like: NoiseLike,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = inf,
    churn_noise: float = 1.0,
) -> Iterator[Tensor]:
    """Euler's method on the probability-flow ODE; equal to `ddim` without churn.

    Karras et al. 2022, arXiv:2206.00364, algorithm 2 without its lines 6 to 8.
    """
    gamma = churn_of(levels, churn, churn_min, churn_max)
    for cur, nxt in pairwise(levels):
        x, cur = churned(denoise, x, cur, gamma(cur), churn_noise, noise_like)
        x_0, eps = denoise(x, cur)
        x = nxt.alpha * x_0 + nxt.sigma * eps
        yield x


def heun(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise_like: NoiseLike,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = inf,
    churn_noise: float = 1.0,
) -> Iterator[Tensor]:
    """Heun's method, of order 2, with two calls a step (Karras et al. 2022, algorithm 2).

    `churn` is S_churn: noise is added before each step at which sigma / alpha lies within
    churn_min ... churn_max (S_min, S_max), scaled by churn_noise (S_noise).
    """
    gamma = churn_of(levels, churn, churn_min, churn_max)
    for cur, nxt in pairwise(levels):
        x, cur = churned(denoise, x, cur, gamma(cur), churn_noise, noise_like)
        x_0, eps = denoise(x, cur)
        x = nxt.alpha * x_0 + nxt.sigma * eps
        if nxt.sigma > 0 and cur.alpha > 0:
            _, eps_next = denoise(x, nxt)
            x = x + correction(cur, nxt) * (eps_next - eps) / 2
        yield x


def dpmpp_2m(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise_like: NoiseLike
) -> Iterator[Tensor]:
    """DPM-Solver++(2M), multistep of order 2 (Lu et al. 2022, arXiv:2211.01095, algorithm 2)."""
    past = deque(maxlen=2)  # (lambda, x_0), the newest first
    for cur, nxt in pairwise(levels):
        x_0, _ = denoise(x, cur)
        past.appendleft((cur.log_ratio, x_0))
        d1, _ = slopes(past, nxt)
        x = nxt.sigma / cur.sigma * x - nxt.alpha * expm1(-step(cur, nxt)) * (x_0 + d1 / 2)
        yield x


def dpmpp_3m(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise_like: NoiseLike
) -> Iterator[Tensor]:
    """DPM-Solver++(3M), multistep of order 3 (Lu et al. 2022, arXiv:2211.01095, appendix B).

    The last term is the integral of exp(lambda) lambda^2, as order 3 requires. The authors' code,
    and libraries that follow it, use half of this term and are of order 2.
    """
    past = deque(maxlen=3)
    for cur, nxt in pairwise(levels):
        x_0, _ = denoise(x, cur)
        past.appendleft((cur.log_ratio, x_0))
        d1, d2 = slopes(past, nxt)
        h = step(cur, nxt)
        x = nxt.sigma / cur.sigma * x - nxt.alpha * expm1(-h) * x_0
        if len(past) == 3 and nxt.sigma > 0:
            x = x + nxt.alpha * (expm1(-h) / h + 1) * d1
            x = x + nxt.alpha * (1 - 2 * (expm1(-h) + h) / h**2) * d2
        else:
            x = x - nxt.alpha * expm1(-h) * d1 / 2
        yield x


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise_like: NoiseLike
) -> Iterator[Tensor]:
    """SDE-DPM-Solver++(2M), the multistep form of `ddpm` (Lu et al. 2022, arXiv:2211.01095)."""
    past = deque(maxlen=2)
    for cur, nxt in pairwise(levels):
        x_0, _ = denoise(x, cur)
        past.appendleft((cur.log_ratio, x_0))
        d1, _ = slopes(past, nxt)
        h = step(cur, nxt)
        coef_x_t = nxt.sigma**2 / cur.sigma**2 * cur.alpha / nxt.alpha  # sigma ratio * exp(-h)
        x = coef_x_t * x - nxt.alpha * expm1(-2 * h) * (x_0 + d1 / 2)
        if nxt.sigma > 0:
            x = x + nxt.sigma * sqrt(-expm1(-2 * h)) * noise_like(x)
        yield x


def unipc(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise_like: NoiseLike,
    *,
    order: int = 3,
) -> Iterator[Tensor]:
    """UniPC, predictor and corrector of equal order (Zhao et al. 2023, arXiv:2302.04867, B_2).

    The corrector reuses the network call that the next predictor needs, so a step costs one call.
    """
    past, last = deque(maxlen=order), None  # last: the step that the corrector refines
    for i, (cur, nxt) in enumerate(pairwise(levels)):
        x_0, _ = denoise(x, cur)
        if last is not None:
            x = unipc_step(*last, cur, corrected_by=x_0)
        if cur.alpha > 0:
            past.appendleft((cur.log_ratio, x_0))
        left = len(levels) - 1 - i if levels[-1].sigma == 0 else order
        terms = list(past)[: min(order, left)] or [(cur.log_ratio, x_0)]  # order 1 to clean data
        last = (x, terms, cur) if cur.alpha > 0 else None
        x = unipc_step(x, terms, cur, nxt)
        yield x


def unipc_step(
    x: Tensor,
    past: Sequence[tuple[float, Tensor]],
    cur: Level,
    nxt: Level,
    corrected_by: Tensor | None = None,
) -> Tensor:
    """One step of UniP from cur to nxt, or of UniC if the x_0 predicted at nxt is given."""
    h, x_0 = step(cur, nxt), past[0][1]
    x_nxt = nxt.sigma / cur.sigma * x - nxt.alpha * expm1(-h) * x_0
    places = [(lam - cur.log_ratio) / h for lam, _ in past[1:]]
    values = [(old - x_0) / r for r, (_, old) in zip(places, past[1:], strict=True)]
    if corrected_by is not None:
        places, values = [*places, 1.0], [*values, corrected_by - x_0]
    if not places:
        return x_nxt
    for weight, value in zip(unipc_weights(places, h), values, strict=True):
        x_nxt = x_nxt - nxt.alpha * expm1(-h) * weight * value
    return x_nxt


def unipc_weights(places: Sequence[float], h: float) -> list[float]:
    """The a of theorem 3.1 and its corollary: R(places) a = phi / B with B = exp(-h) - 1.

    A single place has the weight 1/2, as in the authors' code (UniP of order 2, UniC of order 1).
    """
    if len(places) == 1:
        return [0.5]
    n, phi, factorial, right = len(places), expm1(-h) / -h - 1, 1, []
    for k in range(1, n + 1):
        right.append(phi * factorial / expm1(-h))
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    return np.linalg.solve([[r**k for r in places] for k in range(n)], right).tolist()


ADAMS_BASHFORTH = [  # weights of the newest eps and of those before it
    [1],
    [3 / 2, -1 / 2],
    [23 / 12, -16 / 12, 5 / 12],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
]


def ipndm(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise_like: NoiseLike
) -> Iterator[Tensor]:
    """iPNDM: Adams-Bashforth on eps, up to order 4 (Zhang & Chen 2022, arXiv:2204.13902).

    The weights are for equal steps in sigma / alpha; only for these is the order 4.
    """
    past = deque(maxlen=4)
    for cur, nxt in pairwise(levels):
        x_0, eps = denoise(x, cur)
        past.appendleft(eps)
        x = nxt.alpha * x_0 + nxt.sigma * eps
        if len(past) > 1:
            weights = ADAMS_BASHFORTH[len(past) - 1]
            combined = sum(w * e for w, e in zip(weights, past, strict=True))
            x = x + correction(cur, nxt) * (combined - eps)
        yield x


def gamma(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise_like: NoiseLike,
    *,
    gamma: float = 2.0,
    mu: float = 0.0,
) -> Iterator[Tensor]:
    """The accelerated sampler of Permenter & Yuan 2023, arXiv:2306.04848, section 4 and appendix.

    gamma = 1 and mu = 0 is `ddim`; gamma = 2 extrapolates from the last eps beyond the new one;
    mu = 1/2 adds noise as `ddpm` does.
    """
    eps_last = None
    for cur, nxt in pairwise(levels):
        x_0, eps = denoise(x, cur)
        goal = (nxt.ratio / cur.ratio**mu) ** (1 / (1 - mu))  # sigma / alpha without new noise
        x = nxt.alpha * (x_0 + goal * eps)
        if eps_last is not None:
            x = x + nxt.alpha * (goal - cur.ratio) * (gamma - 1) * (eps - eps_last)
        if nxt.ratio > goal:
            x = x + nxt.alpha * sqrt(nxt.ratio**2 - goal**2) * noise_like(x)
        eps_last = eps
        yield x


def consistency(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise_like: NoiseLike
) -> Iterator[Tensor]:
    """Multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1).

    For networks of `train.py --tune consistency` and `--tune meanflow`, which map x at any level to
    clean data. Each step predicts clean data, then adds fresh noise of the next level.
    """
    for cur, nxt in pairwise(levels):
        x_0, _ = denoise(x, cur)
        x = nxt.alpha * x_0
        if nxt.sigma > 0:
            x = x + nxt.sigma * noise_like(x)
        yield x


def meanflow(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise_like: NoiseLike
) -> Iterator[Tensor]:
    """Sampling of mean flows (Geng et al. 2025, arXiv:2505.13447, algorithm 2).

    For networks of `train.py --tune meanflow`, which predict the average velocity between two
    levels: with an exact network, a step of any length is exact.
    """
    for cur, nxt in pairwise(levels):
        x = denoise.averaged(x, cur, nxt)
        yield x


SAMPLERS: dict[str, Callable[..., Iterator[Tensor]]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
    "ipndm": ipndm,
    "gamma": gamma,
    "consistency": consistency,
    "meanflow": meanflow,
}


OF_TUNED = ("consistency", "meanflow")  # need networks that are tuned for them
AUTO = "dpmpp_2m_sde"  # gave the best digits for its number of network calls


def generate(
    denoise: Denoise,
    noise: Tensor,
    levels: Sequence[Level],
    noise_like: NoiseLike,
    sampler: Callable[..., Iterator[Tensor]] | None = None,
    x_0: Tensor | None = None,
) -> Iterator[Tensor]:
    """Go from noise to data: yield x at levels[0], levels[1], ... The last x is the sample.

    Args:
        denoise, levels, noise_like: see the top of this module.
        noise: standard normal, of the data's shape (B, ...); it is scaled to levels[0].
        sampler: one of `SAMPLERS`, with its options; `AUTO` where not given.
        x_0: clean data (B, ...) to start from, with that noise added; by default, noise alone.
    """
    first = levels[0]
    x = first.scale * noise if x_0 is None else first.alpha * x_0 + first.sigma * noise
    yield x
    yield from (sampler or SAMPLERS[AUTO])(denoise, x, levels, noise_like)


def options_of(sampler: Callable) -> dict[str, float | str]:
    """The keyword-only options of a sampler with their defaults."""
    parameters = inspect.signature(sampler).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def posterior_std(cur: Level, nxt: Level) -> float:
    """Standard deviation of q(x_nxt | x_cur, x_0), 0 where nxt is clean (DDIM's eq. 16)."""
    variance = cur.sigma**2 - (cur.alpha / nxt.alpha) ** 2 * nxt.sigma**2
    return sqrt(variance) * nxt.sigma / cur.sigma


def step(cur: Level, nxt: Level) -> float:
    """h, the step in lambda = log(alpha / sigma): infinite from pure noise and to clean data."""
    return nxt.log_ratio - cur.log_ratio


def correction(cur: Level, nxt: Level) -> float:
    """The derivative of x at nxt by eps: alpha at nxt times the change in sigma / alpha."""
    return nxt.sigma - nxt.alpha * cur.ratio


def slopes(past: Sequence[tuple[float, Tensor]], nxt: Level) -> tuple[Tensor, Tensor]:
    """First and second divided differences of x_0 over lambda, in units of the step to nxt.

    D_1 and D_2 of Lu et al. 2022, arXiv:2211.01095, eq. 12 and appendix; 0 with too few past
    values, or if the step is infinite.
    """
    none = past[0][1].new_zeros(())
    h = nxt.log_ratio - past[0][0]
    if len(past) == 1 or not isfinite(h):
        return none, none
    (lam_0, m_0), (lam_1, m_1) = past[0], past[1]
    r_0 = (lam_0 - lam_1) / h
    near = (m_0 - m_1) / r_0
    if len(past) == 2:
        return near, none
    lam_2, m_2 = past[2]
    r_1 = (lam_1 - lam_2) / h
    far = (m_1 - m_2) / r_1
    return near + r_0 / (r_0 + r_1) * (near - far), (near - far) / (r_0 + r_1)


def churn_of(
    levels: Sequence[Level], churn: float, churn_min: float, churn_max: float
) -> Callable[[Level], float]:
    """level -> gamma, the relative rise of its noise level (Karras et al. 2022, algorithm 2)."""
    most = min(churn / (len(levels) - 1), sqrt(2) - 1)
    return lambda level: most if churn_min <= level.ratio <= churn_max else 0.0


def churned(
    denoise: Denoise,
    x: Tensor,
    cur: Level,
    gamma: float,
    churn_noise: float,
    noise_like: NoiseLike,
) -> tuple[Tensor, Level]:
    """x with fresh noise added, and its new level: the nearest one in the process's table."""
    if gamma == 0 or cur.alpha == 0:
        return x, cur
    hat = denoise.nearest(cur.ratio * (1 + gamma))
    if hat.t <= cur.t:  # the top of the table
        return x, cur
    extra = churn_noise * sqrt(hat.ratio**2 - cur.ratio**2)
    return hat.alpha * (x / cur.alpha + extra * noise_like(x)), hat
