"""The samplers, against denoisers that are known in closed form, and against each other."""

import math
from itertools import groupby, pairwise

import pytest
import torch
from torch.testing import assert_close

from diffusion import GaussianDiffusion
from oracles import Perfect, exact, gaussian, last, noise_from
from samplers import (
    AUTO,
    OF_TUNED,
    SAMPLERS,
    ddim,
    ddpm,
    dpmpp_2m_sde,
    euler,
    gamma,
    generate,
    heun,
    options_of,
    posterior_std,
)
from schedules import SCHEDULES, SPACINGS, Level

OF_DENOISERS = [name for name in SAMPLERS if name != "meanflow"]  # that one: test_tuning.py
DETERMINISTIC = ["ddim", "euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "ipndm", "gamma"]
MIXTURE_STEPS = {name: (80, "karras") for name in ("edm", "cosine", "quadratic")}
ORDERS = {"ddim": 1, "euler": 1, "gamma": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 3}


@pytest.fixture(scope="module", params=SCHEDULES)
def diffusion(request) -> GaussianDiffusion:
    return GaussianDiffusion(request.param, prediction="v")


def equally_spaced_levels(steps: int, high: float, low: float, of) -> list[Level]:
    """Variance-preserving levels, equally spaced in `of(ratio)`, the logarithm or the identity.

    The first step is split into steps that double in size: all multistep solvers start with order
    1, and the error of a full first step would hide the order of the others.
    """
    inverse = math.exp if of is math.log else float
    h = (of(high) - of(low)) / steps
    places = [h * i for i in range(steps + 1)]
    while places[1] > 2 * h**3:
        places.insert(1, places[1] / 2)
    ratios = [inverse(of(high) - place) for place in places]
    return [Level(0, 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)) for ratio in ratios]


def assert_same_steps(a, b, **tolerance):
    """Assert that two samplers yield the same x after every step."""
    for x, other in zip(a, b, strict=True):
        assert_close(x, other, **tolerance)


def test_ddpm_equals_ddim_with_eta_1(diffusion):
    torch.manual_seed(0)
    x, denoise = torch.randn(8, 3, dtype=torch.float64), gaussian(0.3, 0.5)
    for steps in (1, 2, 10, 100):
        levels = diffusion.levels(steps)
        ancestral = ddpm(denoise, x, levels, noise_from(1))
        implicit = ddim(denoise, x, levels, noise_from(1), eta=1.0)
        assert_same_steps(ancestral, implicit, rtol=1e-9, atol=1e-9)


def test_a_step_of_ddpm_samples_the_posterior(diffusion):
    torch.manual_seed(0)
    x_0, x_t = torch.randn(2, 4, 3)
    levels = diffusion.levels()
    for t in (1, 10, 500, 999):
        cur, nxt = levels[999 - t], levels[1000 - t]
        [x] = ddpm(lambda x, level: (x_0, None), x_t, [cur, nxt], torch.zeros_like)
        mean, variance = diffusion.q_posterior(x_0, x_t, torch.full((4,), t))
        assert_close(x, mean, rtol=1e-4, atol=1e-4)
        assert posterior_std(cur, nxt) ** 2 == pytest.approx(variance[0].item(), rel=1e-3)


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_an_exact_denoiser_recovers_the_data(diffusion, name):
    torch.manual_seed(0)
    x_0, x = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    for steps in (1, 3, 50):
        steps_of_x = SAMPLERS[name](exact(x_0), x, diffusion.levels(steps), noise_from(2))
        assert_close(last(steps_of_x), x_0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_an_exact_denoiser_recovers_the_data_over_all_timesteps(name):
    torch.manual_seed(0)
    x_0, x = torch.randn(2, 4, 3, dtype=torch.float64)
    levels = GaussianDiffusion("linear").levels()
    assert_close(last(SAMPLERS[name](exact(x_0), x, levels, noise_from(2))), x_0)


def test_ddim_keeps_the_noise_of_an_exact_denoiser(diffusion):
    """x_t is alpha x_0 + sigma noise after every step, with the noise of the start."""
    torch.manual_seed(0)
    x_0, noise = torch.randn(2, 4, 2, dtype=torch.float64)
    for steps in (1, 3, 50):
        levels = diffusion.levels(steps)
        line = [level.alpha * x_0 + level.sigma * noise for level in levels]
        steps_of_x = ddim(exact(x_0), line[0], levels, noise_from(3))
        assert_same_steps(steps_of_x, line[1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "name", "options"),
    [
        *(
            (s, name, {})
            for s in ("linear", "flow", "edm")
            for name in SAMPLERS
            if name not in OF_TUNED
        ),
        *((s, AUTO, {}) for s in SCHEDULES if s not in ("linear", "flow", "edm")),
        ("cosine", "ddpm", {"variance": "large"}),
        ("cosine", "ddim", {"eta": 0.5}),
        ("linear", "euler", {"churn": 20.0}),
        ("edm", "heun", {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0}),
        ("flow", "unipc", {"order": 2}),
        ("quadratic", "gamma", {"mu": 0.5, "gamma": 1.0}),
    ],
)
def test_every_sampler_samples_a_mixture_of_gaussians(schedule, name, options):
    """The weights and the widths of two separate components, by the distribution function."""
    diffusion = GaussianDiffusion(schedule, prediction="v")
    levels = diffusion.levels(*MIXTURE_STEPS.get(schedule, (200, "trailing")))
    torch.manual_seed(0)
    count = 4000
    data = [(0.3, -1.0, 0.1), (0.7, 0.6, 0.2)]
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x = levels[0].scale * torch.special.ndtri(quantiles)  # evenly over the normal distribution
    denoise = Perfect(*data, diffusion=diffusion)
    x = last(SAMPLERS[name](denoise, x, levels, noise_from(5), **options)).sort().values

    grid = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    expected = sum(w * torch.special.ndtr((grid - mean) / std) for w, mean, std in data)
    sampled = torch.searchsorted(x, grid) / count
    assert (expected - sampled).abs().max() < 0.045  # Kolmogorov-Smirnov; 0.03 is p = 0.001


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("of", [math.log, float])
def test_solvers_converge_at_their_order(name, of):
    """On the ODE of Gaussian data, with its known solution: the slope over three doublings."""
    mean, std, high, low = 0.3, 0.5, *((20.0, 0.1) if of is math.log else (3.0, 0.3))
    start = torch.tensor([1.7, -0.4], dtype=torch.float64)
    shrunk = math.sqrt((low**2 + std**2) / (high**2 + std**2))
    errors = []
    for steps in (80, 640):
        levels = equally_spaced_levels(steps, high, low, of)
        solution = levels[-1].alpha * (mean + shrunk * (start / levels[0].alpha - mean))
        x = last(SAMPLERS[name](gaussian(mean, std), start, levels, torch.zeros_like))
        errors.append((x - solution).abs().max().item())
    slope = math.log(errors[0] / errors[1], 8)
    assert slope > ORDERS[name] - 0.15
    assert name == "unipc" or slope < ORDERS[name] + 0.4  # its corrector adds an order


def test_ipndm_has_order_4_in_equal_steps_of_sigma():
    """The start has a lower order, which shows only once the error is small."""
    errors = []
    for steps in (20, 40, 80):
        levels = equally_spaced_levels(steps, 3.0, 0.3, float)
        start = torch.tensor([1.7, -0.4], dtype=torch.float64)
        shrunk = math.sqrt((0.3**2 + 0.25) / (3.0**2 + 0.25))
        solution = levels[-1].alpha * (0.3 + shrunk * (start / levels[0].alpha - 0.3))
        x = last(SAMPLERS["ipndm"](gaussian(0.3, 0.5), start, levels, torch.zeros_like))
        errors.append((x - solution).abs().max().item())
    assert all(a / b > 14 for a, b in pairwise(errors))


def test_gamma_equals_ddim_at_gamma_1_and_ddpm_at_mu_one_half(diffusion):
    torch.manual_seed(0)
    levels, denoise = diffusion.levels(20), gaussian(0.3, 0.5)
    x = torch.randn(8, 3, dtype=torch.float64) * levels[0].scale
    plain = gamma(denoise, x, levels, noise_from(1), gamma=1.0)
    assert_same_steps(plain, ddim(denoise, x, levels, noise_from(1)))
    noisy = gamma(denoise, x, levels, noise_from(1), gamma=1.0, mu=0.5)
    assert_same_steps(noisy, ddpm(denoise, x, levels, noise_from(1)))


def test_gamma_extrapolates_from_the_last_eps():
    """Permenter & Yuan's form: x - (sigma - sigma') (gamma eps + (1 - gamma) last eps)."""
    levels = [Level(0, 1.0, sigma) for sigma in (3.0, 2.0, 1.0)]
    denoise = gaussian(0.3, 0.5)
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    first, second = gamma(denoise, x, levels, torch.zeros_like, gamma=1.7)
    eps, eps_next = denoise(x, levels[0])[1], denoise(first, levels[1])[1]
    assert_close(first, x - eps)
    assert_close(second, first - (1.7 * eps_next + (1 - 1.7) * eps))


def test_euler_without_churn_equals_ddim(diffusion):
    levels, denoise = diffusion.levels(20), gaussian(0.3, 0.5)
    x = torch.randn(8, 3, dtype=torch.float64) * levels[0].scale
    assert_same_steps(euler(denoise, x, levels, None), ddim(denoise, x, levels, None))


@pytest.mark.parametrize("sampler", [euler, heun])
def test_churn_raises_the_noise_level_within_its_bounds(sampler):
    diffusion = GaussianDiffusion("edm", prediction="edm", sigma_data=0.5)
    levels = diffusion.levels(10, "karras")
    denoise = gaussian(0.3, 0.5, diffusion)
    x = levels[0].scale * torch.randn(4, 2, dtype=torch.float64)
    last(sampler(denoise, x, levels, noise_from(1), churn=2.0, churn_min=0.1, churn_max=10.0))
    seen = [level for level in denoise.calls if level not in levels]
    inside = [level for level in levels if 0.1 <= level.ratio <= 10.0]
    assert len(seen) == len(inside)
    for churned, level in zip(seen, inside, strict=True):
        assert churned.ratio == pytest.approx(1.2 * level.ratio, rel=0.006)  # half a table step


@pytest.mark.parametrize("sampler", [euler, heun])
def test_churn_noise_scales_the_fresh_noise(sampler):
    """Karras et al. 2022, algorithm 2, line 6: x + sqrt(sigma_hat^2 - sigma^2) S_noise noise."""
    diffusion = GaussianDiffusion("edm", prediction="edm", sigma_data=0.5)
    levels = [diffusion.nearest(ratio) for ratio in (2.0, 1.0)]
    x, noise = torch.randn(2, 4, 2, dtype=torch.float64)
    for churn_noise in (0.0, 1.0, 1.007):
        seen = []
        denoise = gaussian(0.3, 0.5, diffusion)

        def watch(x_t, level, denoise=denoise, seen=seen):
            seen.append((x_t, level))
            return denoise(x_t, level)

        watch.nearest = diffusion.nearest
        last(sampler(watch, x, levels, lambda x: noise, churn=0.2, churn_noise=churn_noise))
        x_hat, level = seen[0]
        extra = math.sqrt(level.sigma**2 - levels[0].sigma ** 2)
        assert extra > 0
        assert_close(x_hat, x + churn_noise * extra * noise)


def test_the_first_step_of_dpmpp_2m_sde_equals_ddpm(diffusion):
    levels, denoise = diffusion.levels(5), gaussian(0.3, 0.5)
    x = levels[0].scale * torch.randn(8, 3, dtype=torch.float64)
    first = next(dpmpp_2m_sde(denoise, x, levels, noise_from(1)))
    assert_close(first, next(ddpm(denoise, x, levels, noise_from(1))))


def test_a_learned_variance_ranges_from_small_to_large(diffusion):
    denoise, levels = gaussian(0.3, 0.5), diffusion.levels(10)
    x = levels[0].scale * torch.randn(8, 3, dtype=torch.float64)
    for fraction, variance in [(0.0, "small"), (1.0, "large")]:

        def with_variance(x_t, level, fraction=fraction):
            return *denoise(x_t, level), torch.full_like(x_t, fraction)

        fixed = last(ddpm(denoise, x, levels, noise_from(1), variance=variance))
        denoise.with_variance = with_variance
        assert_close(last(ddpm(denoise, x, levels, noise_from(1), variance="learned")), fixed)


@pytest.mark.parametrize("name", OF_DENOISERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_sampler_starts_from_pure_noise(name, spacing):
    """alpha is 0 at the start, and no sampler may divide by it."""
    torch.manual_seed(0)
    for schedule, zero in [("flow", False), ("cosine", True)]:
        diffusion = GaussianDiffusion(schedule, prediction="v", zero_terminal_snr=zero)
        for steps in (1, 2, 3, 10):
            levels = diffusion.levels(steps, spacing)
            x_0, x = torch.randn(2, 4, 2, dtype=torch.float64)
            steps_of_x = SAMPLERS[name](exact(x_0), levels[0].scale * x, levels, noise_from(2))
            assert_close(last(steps_of_x), x_0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_every_sampler_yields_once_a_step_and_takes_the_levels_in_order(name):
    x, levels, calls = torch.zeros(2, 2), GaussianDiffusion().levels(7), []
    denoise = exact(torch.zeros(2, 2))
    steps_of_x = SAMPLERS[name](
        lambda x, level: calls.append(level) or denoise(x, level), x, levels, torch.randn_like
    )
    assert len(list(steps_of_x)) == 7
    assert [level for level, _ in groupby(calls)] == levels[:-1]  # heun calls twice a step
    assert len(calls) == 7 or name == "heun"


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_solvers_of_the_ode_draw_no_noise(name):
    draws, levels = [], GaussianDiffusion().levels(5)
    list(SAMPLERS[name](exact(torch.zeros(2, 2)), torch.randn(2, 2), levels, draws.append))
    assert draws == []


def test_stochastic_samplers_draw_no_noise_for_the_last_step():
    x, levels = torch.randn(2, 2), GaussianDiffusion().levels(5)
    for sampler, options in [(ddpm, {}), (ddim, {"eta": 1.0}), (dpmpp_2m_sde, {})]:
        draws = []

        def draw(x, draws=draws):
            draws.append(x)
            return torch.zeros_like(x)

        list(sampler(exact(torch.zeros(2, 2)), x, levels, draw, **options))
        assert len(draws) == 4


def test_generate_scales_the_noise_and_yields_it_first(diffusion):
    torch.manual_seed(0)
    noise, levels = torch.randn(4, 2, dtype=torch.float64), diffusion.levels(5)
    denoise, x = gaussian(0.3, 0.5), levels[0].scale * noise
    steps_of_x = list(generate(denoise, noise, levels, noise_from(1), heun))
    assert_close(steps_of_x[0], x)
    assert_same_steps(steps_of_x[1:], heun(denoise, x, levels, noise_from(1)))
    default = list(generate(denoise, noise, levels, noise_from(1)))[1:]
    assert_same_steps(default, SAMPLERS[AUTO](denoise, x, levels, noise_from(1)))


def test_options_of_a_sampler_are_its_keyword_arguments():
    assert options_of(ddim) == {"eta": 0.0}
    assert options_of(ddpm) == {"variance": "small"}
    assert options_of(SAMPLERS["dpmpp_2m"]) == {}
