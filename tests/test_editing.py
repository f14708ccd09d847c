import math

import pytest
import torch
from torch.testing import assert_close

from diffusion import GaussianDiffusion
from oracles import Perfect, exact, gaussian, last, noise_from
from samplers import ddim, heun
from sampling.editing import invert, noised, partway, repaint, slerp
from schedules import SCHEDULES


@pytest.fixture(params=SCHEDULES)
def diffusion(request) -> GaussianDiffusion:
    return GaussianDiffusion(request.param, prediction="v")


def test_partway_is_the_last_part_of_the_walk(diffusion):
    levels = diffusion.levels(10)
    assert partway(levels, 1.0) == levels
    assert partway(levels, 0.3) == levels[-4:]
    assert partway(levels, 0.001) == levels[-2:]
    for strength in (0, -1, 1.1):
        with pytest.raises(ValueError, match="strength must lie above 0"):
            partway(levels, strength)


def test_an_image_and_its_noise_walk_back_to_it(diffusion):
    x_0, noise = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    levels = partway(diffusion.levels(10), 0.5)
    x = noised(x_0, levels[0], noise)
    assert_close(last(ddim(exact(x_0), x, levels, None)), x_0)


def test_inversion_and_back_is_the_image_at_many_steps(diffusion):
    """For Gaussian data; the error falls with the steps, as DDIM is of order 1."""
    x_0 = torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64)
    errors = []
    for steps in (50, 500):
        levels, denoise = diffusion.levels(steps, "uniform-logsnr"), gaussian(0.3, 0.5)
        noise = last(invert(denoise, x_0, levels))
        errors.append((last(ddim(denoise, noise, levels, None)) - x_0).abs().max().item())
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.03


def test_inversion_gives_the_noise_that_a_solver_takes_back():
    """The ODE of N(m, s^2) keeps (x - alpha m) / (standard deviation of x_t)."""
    diffusion = GaussianDiffusion("linear")
    levels = diffusion.levels(1000)
    x_0 = torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64)
    noise = last(invert(gaussian(0.3, 0.5), x_0, levels))
    top = levels[0]
    expected = (x_0 - 0.3) / 0.5 * math.hypot(top.alpha * 0.5, top.sigma) + top.alpha * 0.3
    assert_close(noise, expected, rtol=0, atol=0.02)
    assert_close(last(heun(gaussian(0.3, 0.5), noise, levels, None)), x_0, rtol=0, atol=0.02)


def test_repaint_keeps_the_known_and_paints_what_fits_it():
    """Two far modes, both elements always of one: the painted one must follow the known one."""

    class Pairs(Perfect):
        """Data (m, m) + 0.1 noise with m = -0.8 or 0.8: the elements share their weights."""

        def __call__(self, x_t, level):
            variance = level.alpha**2 * 0.01 + level.sigma**2
            log_weights = torch.stack(
                [-((x_t - level.alpha * m) ** 2).sum(-1) / 2 / variance for m in (-0.8, 0.8)]
            )
            weights = log_weights.softmax(dim=0)[..., None]
            gain = level.alpha * 0.01 / variance
            means = torch.stack([m + gain * (x_t - level.alpha * m) for m in (-0.8, 0.8)])
            x_0 = (weights * means).sum(dim=0)
            return x_0, (x_t - level.alpha * x_0) / level.sigma

    known = torch.tensor([[0.8, 0.0], [-0.8, 0.0]], dtype=torch.float64).repeat(200, 1)
    mask = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(400, 2)
    levels = GaussianDiffusion("linear").levels(50)
    torch.manual_seed(0)
    agreement = []
    for resamplings in (1, 10):
        x = torch.randn(400, 2, dtype=torch.float64)
        walk = repaint(
            Pairs(), x, levels, noise_from(1), known=known, mask=mask, resamplings=resamplings
        )
        x = last(walk)
        assert_close(x[:, 0], known[:, 0])
        agreement.append((x[:, 1].sign() == known[:, 0].sign()).double().mean().item())
    assert agreement[1] > 0.95
    assert agreement[1] > agreement[0]


def test_slerp_keeps_the_size_and_the_ends():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    a, b = a / a.norm(), b / b.norm()
    assert_close(slerp(a, b, 0.0), a)
    assert_close(slerp(a, b, 1.0), b)
    for share in (0.25, 0.5, 0.9):
        assert slerp(a, b, share).norm().item() == pytest.approx(1)
    assert_close(slerp(a, a, 0.5), a)
    half = slerp(a, b, 0.5)
    assert_close((half * a).sum(), (half * b).sum())
