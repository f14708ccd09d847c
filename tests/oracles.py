"""Denoisers in closed form, and helpers for tests of samplers."""

import math

import torch


def last(iterator):
    """The last item of an iterator: the sample."""
    *_, x = iterator
    return x


def noise_from(seed: int):
    """A `noise_like` with its own random stream, in the data type of its argument."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def exact(x_0):
    """The denoiser of data that consists of the single point x_0."""
    return lambda x_t, level: (x_0, (x_t - level.alpha * x_0) / level.sigma)


class Perfect:
    """The denoiser E[x_0 | x_t] of a mixture of Gaussians (weight, mean, std).

    `calls` lists the levels at which it was called.
    """

    def __init__(self, *components: tuple[float, float, float], diffusion=None):
        self.components, self.calls = components, []
        self.nearest = diffusion and diffusion.nearest

    def __call__(self, x_t, level):
        self.calls.append(level)
        alpha, sigma = level.alpha, level.sigma
        log_weights, means = [], []
        for weight, mean, std in self.components:
            variance = alpha**2 * std**2 + sigma**2
            log_weights.append(
                math.log(weight) - math.log(variance) / 2 - (x_t - alpha * mean) ** 2 / 2 / variance
            )
            means.append(mean + alpha * std**2 / variance * (x_t - alpha * mean))
        weights = torch.stack(log_weights).softmax(dim=0)
        x_0 = (weights * torch.stack(means)).sum(dim=0)
        return x_0, (x_t - alpha * x_0) / sigma


def gaussian(mean: float, std: float, diffusion=None) -> Perfect:
    """The denoiser of data from N(mean, std^2)."""
    return Perfect((1.0, mean, std), diffusion=diffusion)
