import pytest
import torch
from torch.testing import assert_close

from diffusion import SCHEDULES, GaussianDiffusion
from samplers import SAMPLERS, ddim, ddpm, options_of, posterior_std


@pytest.fixture(params=SCHEDULES)
def diffusion(request) -> GaussianDiffusion:
    return GaussianDiffusion(request.param)


def last(iterator):
    *_, x = iterator
    return x


def noise_from(seed: int):
    """noise_like with its own stream, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def exact(x_0):
    """The denoiser of data that is the one point x_0."""
    return lambda x_t, level: (x_0, (x_t - level.alpha * x_0) / level.sigma)


def gaussian(mean: float, std: float):
    """The denoiser of data from N(mean, std^2): E[x_0 | x_t], by Gaussian conditioning."""

    def denoise(x_t, level):
        gain = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
        x_0 = mean + gain * (x_t - level.alpha * mean)
        return x_0, (x_t - level.alpha * x_0) / level.sigma

    return denoise


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_ddpm_is_ddim_with_eta_1(diffusion, steps):
    torch.manual_seed(0)
    x = torch.randn(8, 3, dtype=torch.float64)
    levels, denoise = diffusion.levels(steps), gaussian(0.3, 0.5)
    ancestral = list(ddpm(denoise, x, levels, noise_from(1)))
    implicit = list(ddim(denoise, x, levels, noise_from(1), eta=1.0))
    for a, b in zip(ancestral, implicit, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_step_of_ddpm_is_the_posterior(diffusion):
    torch.manual_seed(0)
    x_0, x_t = torch.randn(2, 4, 3)
    levels = diffusion.levels()
    for t in (1, 10, 500, 999):
        cur, nxt = levels[999 - t], levels[1000 - t]
        [x] = ddpm(lambda x, level: (x_0, None), x_t, [cur, nxt], torch.zeros_like)
        mean, variance = diffusion.q_posterior(x_0, x_t, torch.full((4,), t))
        assert_close(x, mean, rtol=1e-4, atol=1e-4)
        assert posterior_std(cur, nxt) ** 2 == pytest.approx(variance[0].item(), rel=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 50, 1000])
def test_an_exact_denoiser_gives_the_data_back(diffusion, name, steps):
    torch.manual_seed(0)
    x_0, x = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    walk = SAMPLERS[name](exact(x_0), x, diffusion.levels(steps), noise_from(2))
    assert_close(last(walk), x_0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_ddim_stays_on_the_line_between_data_and_noise(diffusion, steps):
    torch.manual_seed(0)
    x_0, noise = torch.randn(2, 4, 2, dtype=torch.float64)
    levels = diffusion.levels(steps)
    start = levels[0].alpha * x_0 + levels[0].sigma * noise
    walk = ddim(exact(x_0), start, levels, noise_from(3))
    for x, level in zip(walk, levels[1:], strict=True):
        assert_close(x, level.alpha * x_0 + level.sigma * noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_perfect_denoiser_of_a_gaussian_gives_that_gaussian(diffusion, name):
    torch.manual_seed(0)
    x = torch.randn(20_000, 1, dtype=torch.float64)
    walk = SAMPLERS[name](gaussian(0.4, 0.3), x, diffusion.levels(), noise_from(4))
    x = last(walk)
    assert x.mean().item() == pytest.approx(0.4, abs=0.012)
    assert x.std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_yields_after_every_step(diffusion, name):
    x, levels, calls = torch.zeros(2, 2), diffusion.levels(7), []
    denoise = exact(torch.zeros(2, 2))
    walk = SAMPLERS[name](
        lambda x, level: calls.append(level) or denoise(x, level), x, levels, torch.randn_like
    )
    assert len(list(walk)) == 7
    assert calls == levels[:-1]


def test_ddim_draws_no_noise_by_default(diffusion):
    draws = []
    list(ddim(exact(torch.zeros(2, 2)), torch.randn(2, 2), diffusion.levels(5), draws.append))
    assert draws == []


def test_no_sampler_draws_noise_for_the_last_step(diffusion):
    for sampler, options in [(ddpm, {}), (ddim, {"eta": 1.0})]:
        draws = []
        list(
            sampler(
                exact(torch.zeros(2, 2)),
                torch.randn(2, 2),
                diffusion.levels(5),
                lambda x, draws=draws: draws.append(1) or torch.zeros_like(x),
                **options,
            )
        )
        assert len(draws) == 4


def test_options_of():
    assert options_of(ddim) == {"eta": 0.0}
    assert options_of(ddpm) == {}
