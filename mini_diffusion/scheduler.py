"""The process between data and noise, and the equations of the way back.

    x_t = alpha_t x_0 + sigma_t noise            (Ho et al. 2020, arXiv:2006.11239, eq. 4)

t = 0 is the least noise, T - 1 the most, and -1 is clean data. The tables are float64, and single
coefficients are Python floats, which leave the images float32.
"""

from collections.abc import Callable
from enum import Enum
from math import hypot, sqrt
from pathlib import Path

import numpy as np

from mini_diffusion.model_file import ModelFileError, read_model
from mini_diffusion.tensor import Rng, Tensor

Tables = tuple[np.ndarray, np.ndarray]  # alpha (T,), sigma (T,)


class ScheduleType(Enum):
    LINEAR = "linear"
    COSINE = "cosine"
    QUADRATIC = "quadratic"


def from_betas(betas: np.ndarray) -> Tables:
    """alpha and sigma of the chain q(x_t | x_t-1) = N(sqrt(1 - beta) x_t-1, beta)."""
    alphas_cumprod = np.cumprod(1 - betas)
    return np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)


def beta_ends(timesteps: int) -> tuple[float, float]:
    """The first and last beta, 1e-4 and 0.02 at T = 1000 (Ho et al. 2020, section 4).

    Scaled by 1000 / T, so that a shorter process ends in noise as well.
    """
    scale = 1000 / timesteps
    if scale * 0.02 >= 1:
        raise ValueError(
            f"the linear and quadratic schedules need at least 21 timesteps, not {timesteps}"
        )
    return scale * 1e-4, scale * 0.02


def linear(timesteps: int) -> Tables:
    """Betas on a line (Ho et al. 2020, section 4)."""
    return from_betas(np.linspace(*beta_ends(timesteps), timesteps))


def quadratic(timesteps: int) -> Tables:
    """Square roots of the betas on a line (Song et al. 2020, arXiv:2010.02502, appendix D)."""
    return from_betas(np.linspace(*np.sqrt(beta_ends(timesteps)), timesteps) ** 2)


def cosine(timesteps: int) -> Tables:
    """Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17, with betas of at most 0.999."""
    s = 0.008  # keeps the first steps from being too small to matter
    u = np.linspace(0, 1, timesteps + 1)
    f = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - f[1:] / f[:-1], 0.999))


SCHEDULES: dict[ScheduleType, Callable[[int], Tables]] = {
    ScheduleType.LINEAR: linear,
    ScheduleType.COSINE: cosine,
    ScheduleType.QUADRATIC: quadratic,
}


# What a network's output implies: (out, x_t, alpha, sigma) -> x_0.
PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "eps": lambda out, x_t, a, s: (x_t - s * out) / a,  # Ho et al. 2020, eq. 14
    "x_0": lambda out, x_t, a, s: out,
    # (a noise - s x_0) / r with r = hypot(a, s): Salimans & Ho 2022, arXiv:2202.00512, appendix D
    "v": lambda out, x_t, a, s: a / (a**2 + s**2) * x_t - s / hypot(a, s) * out,
    # the velocity noise - x_0: Liu et al. 2022, arXiv:2209.03003, eq. 1
    "flow": lambda out, x_t, a, s: (x_t - s * out) / (a + s),
    # c_skip x_t + c_out out: Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1
    "edm": lambda out, x_t, a, s: a / (a**2 + s**2) * x_t + s / hypot(a, s) * out,
}


class NoiseScheduler:
    """The process of a schedule, and what the output of a network that was trained for it means.

    Args:
        alpha, sigma: the schedule's tables (T,).
        prediction: a name in `PREDICTIONS`.
        clip: clip the x_0 that a network implies to [-1, 1], as is right for images.
        sigma_data: the data's standard deviation, the unit of the prediction's formula and of the
            network's inputs; 1 leaves both as they are in the papers.
    """

    def __init__(
        self,
        alpha: np.ndarray,
        sigma: np.ndarray,
        *,
        prediction: str = "eps",
        clip: bool = False,
        sigma_data: float = 1.0,
    ):
        if prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {prediction!r}; there are {[*PREDICTIONS]}")
        self.alpha, self.sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
        if self.alpha.ndim != 1 or self.alpha.shape != self.sigma.shape or not self.alpha.size:
            raise ValueError("alpha and sigma must be two tables of one length")
        self.timesteps = len(self.alpha)
        self.prediction, self.clip, self.sigma_data = prediction, clip, sigma_data

    @classmethod
    def of_type(cls, schedule: ScheduleType, timesteps: int = 1000, **options) -> "NoiseScheduler":
        """A named schedule over T timesteps; the options are those of `NoiseScheduler`."""
        return cls(*SCHEDULES[schedule](timesteps), **options)

    @classmethod
    def linear(cls, timesteps: int = 1000, **options) -> "NoiseScheduler":
        return cls.of_type(ScheduleType.LINEAR, timesteps, **options)

    @classmethod
    def cosine(cls, timesteps: int = 1000, **options) -> "NoiseScheduler":
        return cls.of_type(ScheduleType.COSINE, timesteps, **options)

    @classmethod
    def quadratic(cls, timesteps: int = 1000, **options) -> "NoiseScheduler":
        return cls.of_type(ScheduleType.QUADRATIC, timesteps, **options)

    @classmethod
    def load(cls, path: str | Path) -> "NoiseScheduler":
        """The process that the network of a file of export.py was trained for."""
        file = read_model(path)
        options = {name: file.config[name] for name in ("prediction", "clip", "sigma_data")}
        try:
            return cls(file.alpha, file.sigma, **options)
        except ValueError as error:
            raise ModelFileError(f"{path} contradicts itself: {error}") from None

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha^2, the papers' alpha-bar, of a variance-preserving schedule."""
        return self.alpha**2

    @property
    def betas(self) -> np.ndarray:
        """Variances of q(x_t | x_t-1)."""
        alpha_prev, sigma_prev = np.r_[1.0, self.alpha[:-1]], np.r_[0.0, self.sigma[:-1]]
        return self.sigma**2 - (self.alpha / alpha_prev * sigma_prev) ** 2

    def level(self, timestep: int) -> tuple[float, float]:
        """alpha and sigma at a timestep; 1 and 0 at -1, clean data."""
        if not -1 <= timestep < self.timesteps:
            raise ValueError(f"there is no timestep {timestep}: T is {self.timesteps}")
        if timestep == -1:
            return 1.0, 0.0
        return float(self.alpha[timestep]), float(self.sigma[timestep])

    def add_noise(self, sample: Tensor, noise: Tensor, timestep: int | np.ndarray) -> Tensor:
        """x_t of clean data, eq. 4, at one timestep or at one for each image (N,)."""
        if np.ndim(timestep) == 0:
            alpha, sigma = self.level(timestep)
        else:
            each = np.array([self.level(t) for t in timestep], np.float32)  # (N, 2)
            alpha, sigma = each.T.reshape(2, -1, 1, 1, 1)
        return alpha * sample + sigma * noise

    # --- the way back ----------------------------------------------------------------------------

    def step(self, noisy: Tensor, noise_pred: Tensor, timestep: int, rng: Rng = None) -> Tensor:
        """x_{t-1} by DDPM, for the noise that a network sees in x_t (Ho et al. 2020, algorithm 2).

        The last step, from t = 0 to clean data, draws no noise.
        """
        x_0, _ = self.x_0_and_eps(noise_pred, noisy, timestep, "eps")
        return self.posterior(x_0, noisy, timestep, timestep - 1, rng)

    def step_ddim(
        self, noisy: Tensor, noise_pred: Tensor, timestep: int, prev_timestep: int
    ) -> Tensor:
        """x at another timestep by DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12, eta = 0).

        All of the noise is taken out, and as much put back as there is at prev_timestep.
        """
        x_0, eps = self.x_0_and_eps(noise_pred, noisy, timestep, "eps")
        return self.add_noise(x_0, eps, prev_timestep)

    def posterior(
        self, x_0: Tensor, noisy: Tensor, timestep: int, prev_timestep: int, rng: Rng = None
    ) -> Tensor:
        """A draw from q(x_prev | x_t, x_0): Ho et al. 2020, eq. 6 and 7.

        Between any two timesteps (Kingma et al. 2021, arXiv:2107.00630, eq. 26 to 29).
        """
        (alpha, sigma), (alpha_prev, sigma_prev) = self.level(timestep), self.level(prev_timestep)
        step_alpha = alpha / alpha_prev  # of q(x_t | x_prev)
        beta = sigma**2 - step_alpha**2 * sigma_prev**2
        mean = alpha_prev * beta / sigma**2 * x_0 + step_alpha * sigma_prev**2 / sigma**2 * noisy
        std = sqrt(beta) * sigma_prev / sigma
        return mean if std == 0 else mean + std * Tensor.randn(noisy.shape, rng=rng)

    # --- a network's view ------------------------------------------------------------------------

    def scaled(self, noisy: Tensor, timestep: int) -> Tensor:
        """What the network sees of x_t: numbers of standard deviation 1."""
        alpha, sigma = self.level(timestep)
        return noisy / hypot(alpha * self.sigma_data, sigma)

    def x_0_and_eps(
        self, out: Tensor, noisy: Tensor, timestep: int, prediction: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """The clean data and the noise that an output implies, which together make x_t.

        The prediction is the scheduler's where none is named.
        """
        alpha, sigma = self.level(timestep)
        prediction, s = prediction or self.prediction, self.sigma_data
        if prediction == "eps" and alpha == 0:
            raise ValueError(f"t = {timestep} is pure noise: eps says nothing of the data there")
        x_0 = s * PREDICTIONS[prediction](out, noisy, s * alpha, sigma)
        if self.clip:
            x_0 = x_0.clip(-1, 1)
        return x_0, (noisy - alpha * x_0) / sigma
