"""The forward process of a diffusion model, its training loss, and the denoiser that samplers call.

    x_t = alpha_t * x_0 + sigma_t * noise            (Ho et al. 2020, arXiv:2006.11239, eq. 4)

The process knows nothing of networks, data sets or devices: a network is an argument, the data may
have any shape, and the tables are computed once in float64 and kept as float32 buffers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear_betas(timesteps: int) -> Tensor:
    """Betas (T,) float64 from 1e-4 to 0.02 (Ho et al. 2020, section 4).

    The two ends were chosen for T = 1000; they are scaled by 1000 / T, so that a shorter process
    ends in noise as well. Raises ValueError where that would destroy a step outright (T < 21).
    """
    scale = 1000 / timesteps
    if scale * 0.02 >= 1:
        raise ValueError(f"the linear schedule needs at least 21 timesteps, not {timesteps}")
    return torch.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=torch.float64)


def cosine_betas(timesteps: int) -> Tensor:
    """Betas (T,) float64 of the cosine schedule (Nichol & Dhariwal 2021, arXiv:2102.09672, eq.

    17).
    """
    s = 0.008  # keeps the first steps from being too small to matter
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    alphas_cumprod = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    return betas.clamp(max=0.999)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
}


class Prediction(NamedTuple):
    """What a network's output means: two formulas over tensors, arrays or floats."""

    target: Callable  # (x_0, noise, alpha, sigma) -> what the network should output
    x_0: Callable  # (out, x_t, alpha, sigma) -> the clean data that this output implies


PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(
        target=lambda x_0, noise, alpha, sigma: noise,
        x_0=lambda out, x_t, alpha, sigma: (x_t - sigma * out) / alpha,
    ),
}


class Level(NamedTuple):
    """A noise level of the walk back, in Python floats: a sampler's coefficients are exact."""

    t: int  # 0 ... T-1, and -1 for clean data
    alpha: float
    sigma: float


CLEAN = Level(t=-1, alpha=1.0, sigma=0.0)

Denoise = Callable[[Tensor, Level], tuple[Tensor, Tensor]]  # (x_t, level) -> (x_0, eps)


def pick(table: dict, name: str, what: str):
    """`table[name]`, or a ValueError that lists the names there are."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(table)}")
    return table[name]


class GaussianDiffusion(nn.Module):
    """The variance-preserving process q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) over T discrete
    steps.

    Args:
        schedule: a name in `SCHEDULES`.
        timesteps: T, the number of steps; t runs from 0 (least noise) to T-1.
        prediction: a name in `PREDICTIONS`: what the network outputs.
        clip: clip the x_0 that the network implies to [-1, 1] while sampling (right for images).

    Raises:
        ValueError: an unknown name, or fewer than two timesteps.
    """

    def __init__(
        self,
        schedule: str = "cosine",
        timesteps: int = 1000,
        prediction: str = "eps",
        clip: bool = True,
    ):
        super().__init__()
        if timesteps < 2:
            raise ValueError(f"a diffusion process needs at least 2 timesteps, not {timesteps}")
        betas = pick(SCHEDULES, schedule, "schedule")(timesteps)
        self.prediction = pick(PREDICTIONS, prediction, "prediction")
        self.timesteps = timesteps
        self.clip = clip

        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        alphas_cumprod_prev = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
        alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

        # q(x_{t-1} | x_t, x_0), eq. 6 and 7; 0 at t = 0, where the log takes that of t = 1.
        posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
        posterior_log_variance = torch.cat([posterior_variance[1:2], posterior_variance[1:]]).log()
        posterior_coef_x_0 = betas * alphas_cumprod_prev.sqrt() / (1 - alphas_cumprod)
        posterior_coef_x_t = (1 - betas).sqrt() * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)

        def register(name: str, table: Tensor) -> None:
            self.register_buffer(name, table.float())  # never float64 on the device: MPS has none

        register("betas", betas)
        register("alphas_cumprod", alphas_cumprod)
        register("alphas_cumprod_prev", alphas_cumprod_prev)
        register("alpha", alpha)
        register("sigma", sigma)
        register("log_snr", alphas_cumprod.log() - torch.log1p(-alphas_cumprod))
        register("posterior_variance", posterior_variance)
        register("posterior_log_variance", posterior_log_variance)
        register("posterior_coef_x_0", posterior_coef_x_0)
        register("posterior_coef_x_t", posterior_coef_x_t)

        rows = zip(range(timesteps), alpha.tolist(), sigma.tolist(), strict=True)
        self._levels = [Level(*row) for row in rows]  # float64, for the samplers

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noisy data x_t, of x_0's shape, at the timesteps t (B,). Eq. 4."""
        return at(self.alpha, t, x_0) * x_0 + at(self.sigma, t, x_0) * noise

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (of x_0's shape) and variance (B, 1, ...) of q(x_{t-1} | x_t, x_0). Eq. 6 and 7."""
        mean = at(self.posterior_coef_x_0, t, x_0) * x_0 + at(self.posterior_coef_x_t, t, x_0) * x_t
        return mean, at(self.posterior_variance, t, x_0)

    def loss(
        self,
        model: nn.Module,
        x_0: Tensor,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the network's prediction, a scalar. Eq. 14.

        Args:
            model: maps (x_t, t) to a tensor of x_0's shape.
            x_0: clean data (B, ...).
            t: timesteps (B,); drawn uniformly where not given.
            noise: of x_0's shape; drawn from N(0, I) where not given.
        """
        if t is None:
            t = torch.randint(self.timesteps, (len(x_0),), device=x_0.device)
        if noise is None:
            noise = torch.randn_like(x_0)
        x_t = self.q_sample(x_0, t, noise)
        target = self.prediction.target(x_0, noise, at(self.alpha, t, x_0), at(self.sigma, t, x_0))
        return F.mse_loss(model(x_t, t).float(), target)

    def levels(self, steps: int | None = None) -> list[Level]:
        """The walk from t = T-1 to clean data in `steps` steps (default: all T), evenly spaced in
        t.

        Returns `steps` + 1 levels, the last of them `CLEAN`. Raises ValueError unless 1 <= steps <=
        T.
        """
        steps = self.timesteps if steps is None else steps
        if not 1 <= steps <= self.timesteps:
            raise ValueError(f"steps must lie between 1 and {self.timesteps}, not {steps}")
        # "Trailing" spacing: starts at T-1, where training ended (Lin et al. 2023, table 2).
        chosen = [round(self.timesteps * (steps - i) / steps) - 1 for i in range(steps)]
        return [self._levels[t] for t in chosen] + [CLEAN]

    def denoiser(self, model: nn.Module) -> Denoise:
        """The closure (x_t, level) -> (x_0, eps) that samplers call, without gradients.

        `eps` is derived again from the clipped x_0, so that the two always fit x_t.
        """

        @torch.no_grad()
        def denoise(x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            t = torch.full((len(x_t),), level.t, device=x_t.device)
            x_0 = self.prediction.x_0(model(x_t, t).float(), x_t, level.alpha, level.sigma)
            if self.clip:
                x_0 = x_0.clamp(-1, 1)
            eps = (x_t - level.alpha * x_0) / level.sigma
            return x_0, eps

        return denoise


def at(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Row t of a table (T,) for each item of a batch, shaped (B, 1, ...) to multiply x (B, ...)."""
    return table[t].view(-1, *[1] * (x.ndim - 1))
