"""The walk from noise to data."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import hypot

from mini_diffusion.scheduler import NoiseScheduler
from mini_diffusion.tensor import Rng, Tensor, generator

Model = Callable[[Tensor, int], Tensor]  # (x_t, timestep) -> what the scheduler's prediction says
Callback = Callable[[int, int, int, Tensor], object]  # (step, total, timestep, current)


class Sampler:
    """Visits evenly spaced timesteps from T-1 down, and then clean data.

    `Sampler.ddpm` draws fresh noise in each step, `Sampler.ddim` none.
    """

    def __init__(self, scheduler: NoiseScheduler, num_inference_steps: int, ancestral: bool):
        total = scheduler.timesteps
        if not 1 <= num_inference_steps <= total:
            raise ValueError(f"steps must lie between 1 and {total}, not {num_inference_steps}")
        self.scheduler, self.ancestral = scheduler, ancestral
        # trailing: from where training ended (Lin et al. 2023, arXiv:2305.08891, table 2)
        left = range(num_inference_steps, 0, -1)
        self.timesteps = [round(total * i / num_inference_steps - 1) for i in left]

    @classmethod
    def ddpm(cls, scheduler: NoiseScheduler, num_inference_steps: int | None = None) -> "Sampler":
        """Ho et al. 2020, arXiv:2006.11239, algorithm 2; by default in all T steps."""
        steps = scheduler.timesteps if num_inference_steps is None else num_inference_steps
        return cls(scheduler, steps, ancestral=True)

    @classmethod
    def ddim(cls, scheduler: NoiseScheduler, num_inference_steps: int = 50) -> "Sampler":
        """Song et al. 2020, arXiv:2010.02502, eq. 12 with eta = 0."""
        return cls(scheduler, num_inference_steps, ancestral=False)

    def sample(
        self,
        model: Model,
        shape: Sequence[int],
        rng: Rng = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Images of the shape (N, C, H, W).

        Args:
            model: maps (x_t, timestep) to the scheduler's prediction; channels beyond those of x_t,
                a learned variance, are left aside.
            shape: of x_t.
            rng: of the noise.
            callback: called after each step with its number (1 ... total), their total, the
                timestep that the step began at, and the images as they are now.
        """
        scheduler, rng = self.scheduler, generator(rng)
        x = hypot(*scheduler.level(self.timesteps[0])) * Tensor.randn(shape, rng=rng)
        for i, (t, prev) in enumerate(pairwise([*self.timesteps, -1]), start=1):
            out = model(scheduler.scaled(x, t), t)[:, : shape[1]]
            x_0, eps = scheduler.x_0_and_eps(out, x, t)
            if self.ancestral:
                x = scheduler.posterior(x_0, x, t, prev, rng)
            else:
                x = scheduler.add_noise(x_0, eps, prev)
            if callback is not None:
                callback(i, len(self.timesteps), t, x)
        return x
