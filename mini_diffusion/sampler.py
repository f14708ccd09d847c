"""Sampler: the sampling loop, from noise to images."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import hypot

from mini_diffusion.scheduler import NoiseScheduler
from mini_diffusion.tensor import Rng, Tensor, generator

Model = Callable[[Tensor, int], Tensor]  # (x_t, timestep) -> the scheduler's prediction
Callback = Callable[[int, int, int, Tensor], object]  # (step, total, timestep, x)


class Sampler:
    """Sampling loop from timestep T-1 to clean data, in 1 to T evenly spaced steps.

    `ancestral` draws fresh noise in each step (DDPM) instead of none (DDIM).
    """

    def __init__(self, scheduler: NoiseScheduler, num_inference_steps: int, ancestral: bool):
        total = scheduler.timesteps
        if not 1 <= num_inference_steps <= total:
            raise ValueError(f"steps must be between 1 and {total}, got {num_inference_steps}")
        self.scheduler, self.ancestral = scheduler, ancestral
        # "trailing" spacing, which starts at T-1 (Lin et al. 2023, arXiv:2305.08891, table 2)
        left = range(num_inference_steps, 0, -1)
        self.timesteps = [round(total * i / num_inference_steps - 1) for i in left]

    @classmethod
    def ddpm(cls, scheduler: NoiseScheduler, num_inference_steps: int | None = None) -> "Sampler":
        """DDPM sampler (Ho et al. 2020, arXiv:2006.11239, algorithm 2), by default with T steps."""
        steps = scheduler.timesteps if num_inference_steps is None else num_inference_steps
        return cls(scheduler, steps, ancestral=True)

    @classmethod
    def ddim(cls, scheduler: NoiseScheduler, num_inference_steps: int = 50) -> "Sampler":
        """Deterministic DDIM sampler (Song et al. 2020, arXiv:2010.02502, eq. 12, eta = 0)."""
        return cls(scheduler, num_inference_steps, ancestral=False)

    def sample(
        self,
        model: Model,
        shape: Sequence[int],
        rng: Rng = None,
        callback: Callback | None = None,
        *,
        null_model: Model | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Sample images (N, C, H, W), or points (N, D), from noise; in [-1, 1] if the scheduler
        clips.

        Additional output channels of the model, such as a learned variance, are ignored. Raises
        ValueError if the schedule ends in pure noise (alpha = 0) and the prediction is "eps", and
        for guidance without a `null_model`.

        Args:
            callback: called after each step with its number (1, ..., total), the total, the
                timestep at its start, and the current x (N, C, H, W).
            null_model: the model with the null label, for classifier-free guidance.
            guidance_scale: 1 is the prediction for the class, 0 that for the null label.
        """
        if guidance_scale != 1 and null_model is None:
            raise ValueError(f"guidance_scale={guidance_scale} needs null_model")
        scheduler, rng = self.scheduler, generator(rng)
        x = hypot(*scheduler.level(self.timesteps[0])) * Tensor.randn(shape, rng=rng)
        for i, (t, prev) in enumerate(pairwise([*self.timesteps, -1]), start=1):
            scaled = scheduler.scaled(x, t)
            out = model(scaled, t)[:, : shape[1]]
            if guidance_scale == 1:
                x_0, eps = scheduler.x_0_and_eps(out, x, t)
            else:
                null_out = null_model(scaled, t)[:, : shape[1]]
                x_0, eps = scheduler.guided(out, null_out, x, t, guidance_scale)
            if self.ancestral:
                x = scheduler.posterior(x_0, x, t, prev, rng)
            else:
                x = scheduler.add_noise(x_0, eps, prev)
            if callback is not None:
                callback(i, len(self.timesteps), t, x)
        return x
