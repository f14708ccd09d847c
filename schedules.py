"""Noise schedules: signal and noise at each timestep, and the timesteps that sampling visits.

A schedule gives alpha and sigma of `x_t = alpha_t * x_0 + sigma_t * noise`, two tables (T,) in
float64 with t = 0 the least noisy. Betas follow from them.
"""

import math
from collections.abc import Callable
from math import hypot, inf, log
from typing import NamedTuple

import torch
from torch import Tensor

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # of edm (Karras et al. 2022, table 1)
RHO = 7.0  # (ibid.)

Tables = tuple[Tensor, Tensor]  # alpha (T,), sigma (T,)


class Level(NamedTuple):
    """A noise level, in Python floats, so that the coefficients of samplers are exact."""

    t: int  # 0 ... T-1, and -1 for clean data
    alpha: float
    sigma: float

    @property
    def scale(self) -> float:
        """Standard deviation of x_t for data of standard deviation 1: 1 if variance-preserving."""
        return hypot(self.alpha, self.sigma)

    @property
    def ratio(self) -> float:
        """sigma / alpha, the noise level of Karras et al. 2022; infinite for pure noise."""
        return self.sigma / self.alpha if self.alpha > 0 else inf

    @property
    def log_ratio(self) -> float:
        """log(alpha / sigma), lambda of Lu et al. 2022; from -inf, pure noise, to inf, clean."""
        if self.alpha == 0 or self.sigma == 0:
            return -inf if self.alpha == 0 else inf
        return log(self.alpha) - log(self.sigma)


CLEAN = Level(t=-1, alpha=1.0, sigma=0.0)


def from_betas(betas: Tensor) -> Tables:
    """alpha and sigma of the chain q(x_t | x_t-1) = N(sqrt(1 - beta) x_t-1, beta)."""
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


def from_signal_power(f: Callable[[Tensor], Tensor], timesteps: int) -> Tables:
    """alpha and sigma with alphas_cumprod = f(u) / f(0), u = (t + 1) / T, and betas <= 0.999."""
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    alphas_cumprod = f(u)
    betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    return from_betas(betas.clamp(max=0.999))


def beta_ends(timesteps: int) -> tuple[float, float]:
    """The first and last beta, 1e-4 and 0.02 at T = 1000 (Ho et al. 2020, section 4).

    They are scaled by 1000 / T, so that a shorter process ends in noise as well. Raises ValueError
    for T < 21, where the last beta would be 1 or more.
    """
    scale = 1000 / timesteps
    if scale * 0.02 >= 1:
        raise ValueError(
            f"the linear and quadratic schedules need at least 21 timesteps, not {timesteps}"
        )
    return scale * 1e-4, scale * 0.02


def linear(timesteps: int) -> Tables:
    """Betas on a line (Ho et al. 2020, arXiv:2006.11239, section 4)."""
    return from_betas(torch.linspace(*beta_ends(timesteps), timesteps, dtype=torch.float64))


def quadratic(timesteps: int) -> Tables:
    """Square roots of the betas on a line (Ho et al. 2020, arXiv:2006.11239, appendix B)."""
    first, last = (math.sqrt(beta) for beta in beta_ends(timesteps))
    return from_betas(torch.linspace(first, last, timesteps, dtype=torch.float64) ** 2)


def cosine(timesteps: int) -> Tables:
    """Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17."""
    s = 0.008  # keeps the first steps from being too small to matter
    return from_signal_power(lambda u: torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2, timesteps)


def sigmoid(timesteps: int) -> Tables:
    """Jabri et al. 2022, arXiv:2212.11972, algorithm 1, from -3 to 3 with temperature 1."""
    start, end = torch.tensor([-3.0, 3.0], dtype=torch.float64).sigmoid()
    return from_signal_power(
        lambda u: ((end - (6 * u - 3).sigmoid()) / (end - start)).clamp(min=0), timesteps
    )


def flow(timesteps: int) -> Tables:
    """The straight line from data to noise (Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022).

    It ends in pure noise: alpha = 0 at t = T-1.
    """
    u = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
    return 1 - u, u


def edm(timesteps: int) -> Tables:
    """alpha = 1: noise is added to unscaled data (Karras et al. 2022, arXiv:2206.00364).

    Sigma runs from 0.002 to 80 in equal ratios, so that t is c_noise = log(sigma) / 4 up to an
    affine map.
    """
    ends = math.log(SIGMA_MIN), math.log(SIGMA_MAX)
    sigma = torch.linspace(*ends, timesteps, dtype=torch.float64).exp()
    return torch.ones_like(sigma), sigma


SCHEDULES: dict[str, Callable[[int], Tables]] = {
    "linear": linear,
    "quadratic": quadratic,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "flow": flow,
    "edm": edm,
}


def zero_terminal_snr(alpha: Tensor, sigma: Tensor) -> Tables:
    """A variance-preserving schedule shifted and scaled to end in pure noise; alpha[0] is kept.

    Lin et al. 2023, arXiv:2305.08891, algorithm 1.
    """
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return alpha, (1 - alpha**2).sqrt()


# --- spacing: the timesteps that sampling visits --------------------------------------------------

# A spacing maps (the table of sigma / alpha (T,), steps) to timesteps from noisy to clean, in
# floats: `distinct` rounds them.


def trailing(ratio: Tensor, steps: int) -> Tensor:
    """Evenly spaced from T-1, the noisiest timestep (Lin et al. 2023, table 2)."""
    return len(ratio) * (steps - torch.arange(steps, dtype=torch.float64)) / steps - 1


def leading(ratio: Tensor, steps: int) -> Tensor:
    """Evenly spaced, ending at 0; the noisiest timesteps are left out (DDIM's code)."""
    return torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (len(ratio) // steps)


def quadratic_spacing(ratio: Tensor, steps: int) -> Tensor:
    """Square roots of the timesteps on a line (Song et al. 2020, appendix D.2)."""
    return torch.linspace((len(ratio) - 1) ** 0.5, 0, steps, dtype=torch.float64) ** 2


def uniform_logsnr(ratio: Tensor, steps: int) -> Tensor:
    """Evenly spaced in log-SNR, from sigma / alpha <= 80 (Lu et al. 2022, arXiv:2206.00927)."""
    top = ratio.clamp(max=SIGMA_MAX)[-1].log()
    return nearest_index(
        ratio, torch.linspace(top, ratio[0].log(), steps, dtype=torch.float64).exp()
    )


def karras(ratio: Tensor, steps: int) -> Tensor:
    """(sigma / alpha)^(1/7) on a line, from sigma / alpha <= 80 (Karras et al. 2022, eq. 5)."""
    top = ratio.clamp(max=SIGMA_MAX)[-1] ** (1 / RHO)
    return nearest_index(ratio, torch.linspace(top, ratio[0] ** (1 / RHO), steps) ** RHO)


def upper(ratio: Tensor, steps: int) -> Tensor:
    """Evenly spaced from T-1 to 0.6 T, for samplers that go to clean data in each step.

    With less noise, a step would not correct the errors of the previous one.
    """
    return len(ratio) * torch.linspace(1, 0.6, steps, dtype=torch.float64) - 1


SPACINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "trailing": trailing,
    "leading": leading,
    "quadratic": quadratic_spacing,
    "uniform-logsnr": uniform_logsnr,
    "karras": karras,
    "upper": upper,
}


def nearest_index(ratio: Tensor, wanted: Tensor) -> Tensor:
    """Indices of the entries of an ascending table that are nearest to `wanted`, in log space."""
    log_ratio = ratio.log()
    middles = (log_ratio[1:] + log_ratio[:-1]) / 2
    return torch.searchsorted(middles, wanted.to(log_ratio).log())


def distinct(t: Tensor, timesteps: int) -> list[int]:
    """Round descending timesteps to different integers in 0 ... T-1, as near to t as possible.

    Timesteps that would round to the same integer are moved apart.
    """
    chosen: list[int] = []
    for i, value in enumerate(t.tolist()):
        below = chosen[-1] - 1 if chosen else timesteps - 1
        chosen.append(max(min(round(value), below), len(t) - 1 - i))
    return chosen


MAX_TIMESTEPS = 10_000  # of a process; more than is useful, and still fast to tabulate
