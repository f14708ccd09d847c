"""Image to image, inpainting, inversion and interpolation, with denoisers in closed form."""

import math

import pytest
import torch
from torch.testing import assert_close

from diffusion import GaussianDiffusion
from oracles import Perfect, exact, gaussian, last, noise_from
from samplers import ddim, ddpm, heun
from sampling.editing import invert, last_part, noised, repaint, slerp
from schedules import SCHEDULES


@pytest.fixture(scope="module", params=SCHEDULES)
def diffusion(request) -> GaussianDiffusion:
    return GaussianDiffusion(request.param, prediction="v")


def test_the_strength_is_the_fraction_of_steps_that_are_sampled():
    levels = GaussianDiffusion().levels(10)
    assert last_part(levels, 1.0) == levels
    assert last_part(levels, 0.3) == levels[-4:]
    assert last_part(levels, 0.001) == levels[-2:]
    for strength in (0, -1, 1.1):
        with pytest.raises(ValueError, match="strength must"):
            last_part(levels, strength)


def test_an_exact_denoiser_recovers_a_noised_image(diffusion):
    x_0, noise = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    levels = last_part(diffusion.levels(10), 0.5)
    x = noised(x_0, levels[0], noise)
    assert_close(last(ddim(exact(x_0), x, levels, None)), x_0)


def test_inversion_and_ddim_return_to_the_image_at_many_steps(diffusion):
    """For Gaussian data. The error falls with the number of steps: DDIM has order 1."""
    x_0 = torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64)
    errors = []
    for steps in (50, 500):
        levels, denoise = diffusion.levels(steps, "uniform-logsnr"), gaussian(0.3, 0.5)
        noise = last(invert(denoise, x_0, levels))
        errors.append((last(ddim(denoise, noise, levels, None)) - x_0).abs().max().item())
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.03


def test_inversion_solves_the_ode():
    """The ODE of N(m, s^2) conserves (x - alpha m) / (standard deviation of x_t)."""
    diffusion = GaussianDiffusion("linear")
    levels = diffusion.levels(1000)
    x_0 = torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64)
    noise = last(invert(gaussian(0.3, 0.5), x_0, levels))
    top = levels[0]
    expected = (x_0 - 0.3) / 0.5 * math.hypot(top.alpha * 0.5, top.sigma) + top.alpha * 0.3
    assert_close(noise, expected, rtol=0, atol=0.02)
    assert_close(last(heun(gaussian(0.3, 0.5), noise, levels, None)), x_0, rtol=0, atol=0.02)


def test_repaint_keeps_the_known_part_and_fills_in_what_fits_it():
    """Two modes, with both elements always from the same: the second must follow the first."""

    class Pairs(Perfect):
        """Data (m, m) + 0.1 noise, with m either -0.8 or 0.8 for both elements."""

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
        options = {"known": known, "mask": mask, "resamplings": resamplings}
        x = last(repaint(Pairs(), x, levels, noise_from(1), **options))
        assert_close(x[:, 0], known[:, 0])
        agreement.append((x[:, 1].sign() == known[:, 0].sign()).double().mean().item())
    assert agreement[1] > 0.95
    assert agreement[1] > agreement[0]


def test_slerp_keeps_the_norm_and_the_ends():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    a, b = a / a.norm(), b / b.norm()
    assert_close(slerp(a, b, 0.0), a)
    assert_close(slerp(a, b, 1.0), b)
    for fraction in (0.25, 0.5, 0.9):
        assert slerp(a, b, fraction).norm().item() == pytest.approx(1)
    assert_close(slerp(a, a, 0.5), a)
    half = slerp(a, b, 0.5)
    assert_close((half * a).sum(), (half * b).sum())


def test_repaint_goes_back_by_a_step_of_the_forward_process():
    """With constant noise 0.5, the second input is q(x_cur | x_nxt), computed by hand."""
    cur, nxt = GaussianDiffusion("linear").levels(4)[1:3]
    x_0, x, inputs = torch.zeros(1, 2), torch.ones(1, 2), []

    def denoise(x_t, level):
        inputs.append(x_t)
        return exact(x_0)(x_t, level)

    def noise_like(x):
        return torch.full_like(x, 0.5)

    options = {"known": x_0, "mask": torch.zeros(1, 2), "resamplings": 2}
    last(repaint(denoise, x, [cur, nxt], noise_like, **options))
    (x_nxt,) = ddpm(exact(x_0), x, [cur, nxt], noise_like)
    alpha = cur.alpha / nxt.alpha
    variance = cur.sigma**2 - alpha**2 * nxt.sigma**2
    assert_close(inputs[1], alpha * x_nxt + math.sqrt(variance) * 0.5)
