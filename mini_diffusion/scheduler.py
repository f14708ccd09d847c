"""NoiseScheduler: noise schedules, the forward process, and the steps of DDPM and DDIM.

    x_t = alpha_t x_0 + sigma_t noise            (Ho et al. 2020, arXiv:2006.11239, eq. 4)

Timestep 0 has the least noise and T - 1 the most; -1 means clean data. The tables are float64, the
coefficients of one timestep Python floats, so that images stay float32.
"""

from collections.abc import Callable
from enum import Enum
from math import hypot, sqrt
from pathlib import Path

import numpy as np

from mini_diffusion.model_file import ModelFile, ModelFileError, read_model
from mini_diffusion.tensor import Rng, Tensor

Tables = tuple[np.ndarray, np.ndarray]  # alpha (T,), sigma (T,)


class ScheduleType(Enum):
    """Names of the noise schedules."""

    LINEAR = "linear"
    COSINE = "cosine"
    QUADRATIC = "quadratic"


def from_betas(betas: np.ndarray) -> Tables:
    """alpha and sigma (T,) of the chain with these betas (T,) (Ho et al. 2020, eq. 2 and 4)."""
    alphas_cumprod = np.cumprod(1 - betas)
    return np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)


def beta_ends(timesteps: int) -> tuple[float, float]:
    """First and last beta (Ho et al. 2020, section 4), scaled so that any T ends in noise."""
    scale = 1000 / timesteps
    if scale * 0.02 >= 1:
        raise ValueError(
            f"the linear and quadratic schedules need at least 21 timesteps, got {timesteps}"
        )
    return scale * 1e-4, scale * 0.02


def linear(timesteps: int) -> Tables:
    """Linearly spaced betas (Ho et al. 2020, section 4)."""
    return from_betas(np.linspace(*beta_ends(timesteps), timesteps))


def quadratic(timesteps: int) -> Tables:
    """Betas with linearly spaced square roots (Ho et al. 2020, appendix B)."""
    return from_betas(np.linspace(*np.sqrt(beta_ends(timesteps)), timesteps) ** 2)


def cosine(timesteps: int) -> Tables:
    """Cosine schedule, betas at most 0.999 (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17)."""
    s = 0.008  # offset that prevents very small betas near t = 0
    u = np.linspace(0, 1, timesteps + 1)
    f = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - f[1:] / f[:-1], 0.999))


SCHEDULES: dict[ScheduleType, Callable[[int], Tables]] = {
    ScheduleType.LINEAR: linear,
    ScheduleType.COSINE: cosine,
    ScheduleType.QUADRATIC: quadratic,
}


# x_0 implied by the output of a network: (out, x_t, alpha, sigma) -> x_0.
PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "eps": lambda out, x_t, a, s: (x_t - s * out) / a,  # Ho et al. 2020, eq. 15
    "x_0": lambda out, x_t, a, s: out,
    # out = (a noise - s x_0) / hypot(a, s): Salimans & Ho 2022, arXiv:2202.00512, appendix D
    "v": lambda out, x_t, a, s: a / (a**2 + s**2) * x_t - s / hypot(a, s) * out,
    # out = noise - x_0, the velocity: Liu et al. 2022, arXiv:2209.03003, eq. 1
    "flow": lambda out, x_t, a, s: (x_t - s * out) / (a + s),
    # x_0 = c_skip x_t + c_out out: Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1
    "edm": lambda out, x_t, a, s: a / (a**2 + s**2) * x_t + s / hypot(a, s) * out,
}


class NoiseScheduler:
    """Noise schedule and prediction type of a network: forward process and reverse steps.

    Args:
        alpha, sigma: signal and noise coefficients (T,).
        prediction: what the network predicts, a key of `PREDICTIONS`.
        clip: clip the implied x_0 to [-1, 1]. Use it for images.
        clip_loss: whether training counted no error outside [-1, 1]; guidance then clips each x_0.
        sigma_data: standard deviation of the data, the unit of predictions and network inputs.
            The papers' formulas of "eps", "x_0", "v" and "flow" have sigma_data = 1.
    """

    def __init__(
        self,
        alpha: np.ndarray,
        sigma: np.ndarray,
        *,
        prediction: str = "eps",
        clip: bool = False,
        clip_loss: bool = False,
        sigma_data: float = 1.0,
    ):
        if prediction not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise ValueError(f"unknown prediction {prediction!r}; choose one of {known}")
        self.alpha, self.sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
        if self.alpha.ndim != 1 or self.alpha.shape != self.sigma.shape or not self.alpha.size:
            raise ValueError("alpha and sigma must be non-empty arrays of the same shape (T,)")
        self.timesteps = len(self.alpha)
        self.prediction, self.sigma_data = prediction, sigma_data
        self.clip, self.clip_loss = clip, clip_loss

    @classmethod
    def of_type(cls, schedule: ScheduleType, timesteps: int = 1000, **options) -> "NoiseScheduler":
        """Scheduler with a named schedule. The options are keyword arguments of the class."""
        return cls(*SCHEDULES[schedule](timesteps), **options)

    @classmethod
    def linear(cls, timesteps: int = 1000, **options) -> "NoiseScheduler":
        """Scheduler with the linear schedule; T must be at least 21."""
        return cls.of_type(ScheduleType.LINEAR, timesteps, **options)

    @classmethod
    def cosine(cls, timesteps: int = 1000, **options) -> "NoiseScheduler":
        """Scheduler with the cosine schedule."""
        return cls.of_type(ScheduleType.COSINE, timesteps, **options)

    @classmethod
    def quadratic(cls, timesteps: int = 1000, **options) -> "NoiseScheduler":
        """Scheduler with the quadratic schedule; T must be at least 21."""
        return cls.of_type(ScheduleType.QUADRATIC, timesteps, **options)

    @classmethod
    def load(cls, path: str | Path | ModelFile) -> "NoiseScheduler":
        """The scheduler of a model file, or of its contents. Raises the errors of `read_model`."""
        file = read_model(path)
        options = {name: file.config[name] for name in ("prediction", "clip", "sigma_data")}
        options["clip_loss"] = file.config.get("clip_loss", False)
        try:
            return cls(file.alpha, file.sigma, **options)
        except ValueError as error:
            raise ModelFileError(f"{file.path} is inconsistent: {error}; export it again") from None

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha^2 (T,), called alpha-bar in Ho et al. 2020. Requires alpha^2 + sigma^2 = 1."""
        return self.alpha**2

    @property
    def betas(self) -> np.ndarray:
        """Variances (T,) of q(x_t | x_t-1)."""
        alpha_prev, sigma_prev = np.r_[1.0, self.alpha[:-1]], np.r_[0.0, self.sigma[:-1]]
        return self.sigma**2 - (self.alpha / alpha_prev * sigma_prev) ** 2

    def level(self, timestep: int) -> tuple[float, float]:
        """alpha and sigma at a timestep; 1 and 0 at timestep -1, clean data."""
        if not -1 <= timestep < self.timesteps:
            last = self.timesteps - 1
            raise ValueError(f"timestep must be between -1 and {last}, got {timestep}")
        if timestep == -1:
            return 1.0, 0.0
        return float(self.alpha[timestep]), float(self.sigma[timestep])

    def add_noise(self, sample: Tensor, noise: Tensor, timestep: int | np.ndarray) -> Tensor:
        """x_t (N, C, H, W) at one timestep, or at one per image (N,) (Ho et al. 2020, eq. 4)."""
        if np.ndim(timestep) == 0:
            alpha, sigma = self.level(timestep)
        else:
            each = np.array([self.level(t) for t in timestep], np.float32)  # (N, 2)
            alpha, sigma = each.T.reshape(2, -1, 1, 1, 1)
        return alpha * sample + sigma * noise

    # --- reverse steps ---------------------------------------------------------------------------

    def step(self, noisy: Tensor, noise_pred: Tensor, timestep: int, rng: Rng = None) -> Tensor:
        """DDPM step from x_t to x_{t-1}, without noise at t = 0 (Ho et al. 2020, algorithm 2)."""
        x_0, _ = self.x_0_and_eps(noise_pred, noisy, timestep, "eps")
        return self.posterior(x_0, noisy, timestep, timestep - 1, rng)

    def step_ddim(
        self, noisy: Tensor, noise_pred: Tensor, timestep: int, prev_timestep: int
    ) -> Tensor:
        """DDIM step to any timestep (Song et al. 2020, arXiv:2010.02502, eq. 12, eta = 0)."""
        x_0, eps = self.x_0_and_eps(noise_pred, noisy, timestep, "eps")
        return self.add_noise(x_0, eps, prev_timestep)

    def posterior(
        self, x_0: Tensor, noisy: Tensor, timestep: int, prev_timestep: int, rng: Rng = None
    ) -> Tensor:
        """Sample (N, C, H, W) from q(x_prev | x_t, x_0) (Ho et al. 2020, eq. 6 and 7).

        For any two timesteps: Kingma et al. 2021, arXiv:2107.00630, eq. 26 to 29.
        """
        (alpha, sigma), (alpha_prev, sigma_prev) = self.level(timestep), self.level(prev_timestep)
        step_alpha = alpha / alpha_prev  # of q(x_t | x_prev)
        beta = sigma**2 - step_alpha**2 * sigma_prev**2
        mean = alpha_prev * beta / sigma**2 * x_0 + step_alpha * sigma_prev**2 / sigma**2 * noisy
        std = sqrt(beta) * sigma_prev / sigma
        return mean if std == 0 else mean + std * Tensor.randn(noisy.shape, rng=rng)

    # --- network input and output ----------------------------------------------------------------

    def scaled(self, noisy: Tensor, timestep: int) -> Tensor:
        """Network input x_t / std(x_t) (N, C, H, W) (Karras et al. 2022, eq. 7, c_in)."""
        alpha, sigma = self.level(timestep)
        return noisy / hypot(alpha * self.sigma_data, sigma)

    def x_0_and_eps(
        self, out: Tensor, noisy: Tensor, timestep: int, prediction: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """x_0 and eps (N, C, H, W) implied by a network output, with x_t = alpha x_0 + sigma eps.

        `prediction` overrides the scheduler's. Raises ValueError for "eps" where alpha is 0.
        """
        x_0 = self.x_0(out, noisy, timestep, prediction)
        if self.clip:
            x_0 = x_0.clip(-1, 1)
        return x_0, self.eps(x_0, noisy, timestep)

    def guided(
        self, out: Tensor, null_out: Tensor, noisy: Tensor, timestep: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        """x_0 and eps (N, C, H, W) of classifier-free guidance (Ho & Salimans 2022,
        arXiv:2207.12598, eq. 6): null + scale (conditional - null).

        `out` is the output for a class, and `null_out` that for the null label. x_0 is an affine
        function of the output, so that guidance of x_0 equals guidance of the output.
        """
        x_0, null_x_0 = (self.x_0(each, noisy, timestep) for each in (out, null_out))
        if self.clip_loss:
            x_0, null_x_0 = x_0.clip(-1, 1), null_x_0.clip(-1, 1)
        x_0 = null_x_0 + scale * (x_0 - null_x_0)
        if self.clip:
            x_0 = x_0.clip(-1, 1)
        return x_0, self.eps(x_0, noisy, timestep)

    def eps(self, x_0: Tensor, noisy: Tensor, timestep: int) -> Tensor:
        """eps (N, C, H, W) with x_t = alpha x_0 + sigma eps."""
        alpha, sigma = self.level(timestep)
        return (noisy - alpha * x_0) / sigma

    def x_0(
        self, out: Tensor, noisy: Tensor, timestep: int, prediction: str | None = None
    ) -> Tensor:
        """x_0 (N, C, H, W) implied by a network output, not clipped."""
        alpha, sigma = self.level(timestep)
        prediction, s = prediction or self.prediction, self.sigma_data
        if prediction == "eps" and alpha == 0:
            raise ValueError(
                f"eps does not determine x_0 at timestep {timestep}: alpha is 0 (pure noise)"
            )
        return s * PREDICTIONS[prediction](out, noisy, s * alpha, sigma)
