"""The likelihood of data under a model, in bits per dimension: lower is better.

Both measures give a value for each item. Pixels are uint8, mapped to k / 127.5 - 1. Data without
bounds (points) are continuous, and their bits may be negative.
"""

from collections.abc import Callable
from itertools import pairwise
from math import log, pi

import torch
from torch import Tensor

from diffusion import Denoiser, GaussianDiffusion
from objectives import gaussian_kl
from schedules import CLEAN, Level

BIN = 2 / 255  # width of a pixel value in [-1, 1]


@torch.no_grad()
def variational_bound(
    denoise: Denoiser,
    x_0: Tensor,
    noise_like: Callable[[Tensor], Tensor],
    done: Callable[[], object] = lambda: None,
) -> Tensor:
    """An upper bound of the bits per dimension of x_0 (B, ...): (B,).

    The sum of all T terms, with the decoder at t = 0, and of the prior term (Ho et al. 2020, eq.
    5). One noise is drawn for each term. The network is called T times, and `done` after each call.
    """
    diffusion = denoise.diffusion
    total = prior_bits(diffusion, x_0)
    for level in diffusion.levels()[:-1]:
        t = torch.full((len(x_0),), level.t, device=x_0.device)
        x_t = diffusion.q_sample(x_0, t, noise_like(x_0))
        x_0_hat, _, fraction = denoise.with_variance(x_t, level)
        total += diffusion.bound(x_0_hat, fraction, x_0, x_t, t)
        done()
    return total


def prior_bits(diffusion: GaussianDiffusion, x_0: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || p(x_T)) in bits per dimension (B,); sampling starts from p(x_T)."""
    last = diffusion.levels(1)[0]
    zero = torch.zeros_like(x_0)
    log_var, log_var_prior = zero + 2 * log(last.sigma), zero + 2 * log(last.scale)
    kl = gaussian_kl(last.alpha * x_0, log_var, zero, log_var_prior)
    return kl.flatten(1).mean(dim=1) / log(2)


def flow_likelihood(
    denoise: Denoiser,
    x_0: Tensor,
    noise_like: Callable[[Tensor], Tensor],
    steps: int = 100,
    done: Callable[[], object] = lambda: None,
) -> Tensor:
    """The bits per dimension of x_0 (B, ...) under the probability-flow ODE: (B,).

    d(x / alpha) = eps d(sigma / alpha) transports x to noise, and its log density changes by the
    divergence of eps (Song et al. 2020, arXiv:2011.13456, appendix D.2). The divergence is
    estimated with one random sign per element (Hutchinson), and integrated by Heun's method in
    equal steps of log-SNR. Pixels get uniform noise of the width of their bins. As in the paper,
    x_0 is assumed to be at the lowest noise level.

    Each step calls and differentiates the network twice; `done` is called after each step.
    """
    pixels = denoise.diffusion.clip
    levels = levels_from_data(denoise.diffusion, steps)
    x = x_0
    if pixels:
        x = x_0 + BIN * (torch.special.ndtr(noise_like(x_0)) - 0.5)
    signs = noise_like(x_0).sign()
    change = torch.zeros(len(x), device=x.device)
    for cur, nxt in pairwise(levels):
        h = nxt.ratio - cur.ratio
        eps, divergence = eps_and_divergence(denoise, x, cur, signs)
        eps_next, divergence_next = eps_and_divergence(denoise, x + h * eps, nxt, signs)
        x = x + h * (eps + eps_next) / 2
        change += h * (divergence + divergence_next) / 2
        done()
    dims, last = x_0[0].numel(), levels[-1]
    std = last.scale / last.alpha  # of x / alpha at the last level, which is almost pure noise
    log_p = -0.5 * (x / std).square().flatten(1).sum(dim=1) - dims * (log(std) + log(2 * pi) / 2)
    bits = -(log_p + change) / (dims * log(2))
    return bits - log(BIN) / log(2) if pixels else bits


def levels_from_data(diffusion: GaussianDiffusion, steps: int) -> list[Level]:
    """`steps` + 1 levels, at most T, from t = 0 up. Pure noise has no x / alpha: it is left out."""
    levels = diffusion.levels(min(steps + 1, diffusion.timesteps), "uniform-logsnr")
    return [level for level in reversed(levels[:-1]) if level.alpha > 0]


def eps_and_divergence(
    denoise: Denoiser, x: Tensor, level: Level, signs: Tensor
) -> tuple[Tensor, Tensor]:
    """eps at x = x_t / alpha, without clipping, and signs^T (d eps / d x) signs (B,)."""
    assert level != CLEAN
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x_t = level.alpha * x
        out, _ = denoise.output(x_t, level)
        x_0 = denoise.diffusion.x_0(out, x_t, level.alpha, level.sigma)
        eps = (x_t - level.alpha * x_0) / level.sigma
        (product,) = torch.autograd.grad((eps * signs).sum(), x)
    return eps.detach(), (product * signs).flatten(1).sum(dim=1)
