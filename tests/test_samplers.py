import math
from itertools import groupby, pairwise

import pytest
import torch
from torch.testing import assert_close

from diffusion import GaussianDiffusion, Level
from oracles import Perfect, exact, gaussian, last, noise_from
from samplers import (
    SAMPLERS,
    ddim,
    ddpm,
    dpmpp_2m_sde,
    euler,
    gamma,
    heun,
    options_of,
    posterior_std,
)
from schedules import SCHEDULES, SPACINGS

DETERMINISTIC = ["ddim", "euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "ipndm", "gamma"]
ORDERS = {"ddim": 1, "euler": 1, "gamma": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 3}


@pytest.fixture(params=SCHEDULES)
def diffusion(request) -> GaussianDiffusion:
    return GaussianDiffusion(request.param, prediction="v")


def walk_in_equal_steps(steps: int, high: float, low: float, of) -> list[Level]:
    """A variance-preserving walk in equal steps of `of(ratio)`, log or identity.

    The first of them is broken up into steps that double: all multistep solvers begin with order 1,
    and the error of a first step of full size would hide the order of the rest.
    """
    inverse = math.exp if of is math.log else float
    h = (of(high) - of(low)) / steps
    places = [h * i for i in range(steps + 1)]
    while places[1] > 2 * h**3:
        places.insert(1, places[1] / 2)
    ratios = [inverse(of(high) - place) for place in places]
    return [Level(0, 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)) for ratio in ratios]


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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in SAMPLERS),
        ("ddpm", {"variance": "large"}),
        ("ddim", {"eta": 0.5}),
        ("euler", {"churn": 20.0}),
        ("heun", {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0}),
        ("unipc", {"order": 2}),
        ("gamma", {"mu": 0.5, "gamma": 1.0}),
    ],
)
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_every_sampler_lands_on_a_mixture_of_gaussians(diffusion, name, options, spacing):
    """Both the weights of two far components and their widths: compared by the quantiles."""
    torch.manual_seed(0)
    count = 4000
    data = [(0.3, -1.0, 0.1), (0.7, 0.6, 0.2)]
    levels = diffusion.levels(200 if spacing == "trailing" else 80, spacing)
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x = levels[0].scale * torch.special.ndtri(shares)  # evenly over the normal distribution
    denoise = Perfect(*data, diffusion=diffusion)
    x = last(SAMPLERS[name](denoise, x, levels, noise_from(5), **options)).sort().values

    places = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    below = sum(w * torch.special.ndtr((places - mean) / std) for w, mean, std in data)
    sampled = torch.searchsorted(x, places) / count
    assert (below - sampled).abs().max() < 0.045  # Kolmogorov-Smirnov; 0.03 is p = 0.001


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("of", [math.log, float])
def test_solvers_converge_at_their_order(name, of):
    """On the ODE of Gaussian data, whose solution is known: the slope over three doublings."""
    mean, std, high, low = 0.3, 0.5, *((20.0, 0.1) if of is math.log else (3.0, 0.3))
    start = torch.tensor([1.7, -0.4], dtype=torch.float64)
    shrunk = math.sqrt((low**2 + std**2) / (high**2 + std**2))
    errors = []
    for steps in (80, 640):
        levels = walk_in_equal_steps(steps, high, low, of)
        solution = levels[-1].alpha * (mean + shrunk * (start / levels[0].alpha - mean))
        x = last(SAMPLERS[name](gaussian(mean, std), start, levels, torch.zeros_like))
        errors.append((x - solution).abs().max().item())
    slope = math.log(errors[0] / errors[1], 8)
    assert slope > ORDERS[name] - 0.15
    assert name == "unipc" or slope < ORDERS[name] + 0.4  # its corrector adds an order


def test_ipndm_is_of_order_4_in_equal_steps_of_sigma():
    """The start is of lower order, and shows only where the error is small already."""
    errors = []
    for steps in (20, 40, 80):
        levels = walk_in_equal_steps(steps, 3.0, 0.3, float)
        start = torch.tensor([1.7, -0.4], dtype=torch.float64)
        shrunk = math.sqrt((0.3**2 + 0.25) / (3.0**2 + 0.25))
        solution = levels[-1].alpha * (0.3 + shrunk * (start / levels[0].alpha - 0.3))
        x = last(SAMPLERS["ipndm"](gaussian(0.3, 0.5), start, levels, torch.zeros_like))
        errors.append((x - solution).abs().max().item())
    assert all(a / b > 14 for a, b in pairwise(errors))


def test_gamma_1_is_ddim_and_mu_one_half_is_ddpm_s_noise(diffusion):
    torch.manual_seed(0)
    levels, denoise = diffusion.levels(20), gaussian(0.3, 0.5)
    x = torch.randn(8, 3, dtype=torch.float64) * levels[0].scale
    plain = list(ddim(denoise, x, levels, noise_from(1)))
    for a, b in zip(gamma(denoise, x, levels, noise_from(1), gamma=1.0), plain, strict=True):
        assert_close(a, b)
    noisy = list(ddpm(denoise, x, levels, noise_from(1)))
    same = list(gamma(denoise, x, levels, noise_from(1), gamma=1.0, mu=0.5))
    for a, b in zip(same, noisy, strict=True):
        assert_close(a, b)


def test_gamma_goes_beyond_each_step():
    """Permenter & Yuan's form: x - (sigma - sigma') (gamma eps + (1 - gamma) last eps)."""
    levels = [Level(0, 1.0, sigma) for sigma in (3.0, 2.0, 1.0)]
    denoise = gaussian(0.3, 0.5)
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    first, second = gamma(denoise, x, levels, torch.zeros_like, gamma=1.7)
    eps, eps_next = denoise(x, levels[0])[1], denoise(first, levels[1])[1]
    assert_close(first, x - eps)
    assert_close(second, first - (1.7 * eps_next + (1 - 1.7) * eps))


def test_euler_without_churn_is_ddim(diffusion):
    levels, denoise = diffusion.levels(20), gaussian(0.3, 0.5)
    x = torch.randn(8, 3, dtype=torch.float64) * levels[0].scale
    for a, b in zip(euler(denoise, x, levels, None), ddim(denoise, x, levels, None), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("sampler", [euler, heun])
def test_churn_raises_the_noise_level_where_it_is_asked_to(sampler):
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


def test_sde_of_two_steps_begins_as_ddpm(diffusion):
    levels, denoise = diffusion.levels(5), gaussian(0.3, 0.5)
    x = levels[0].scale * torch.randn(8, 3, dtype=torch.float64)
    first = next(dpmpp_2m_sde(denoise, x, levels, noise_from(1)))
    assert_close(first, next(ddpm(denoise, x, levels, noise_from(1))))


@pytest.mark.parametrize(("fraction", "variance"), [(0.0, "small"), (1.0, "large")])
def test_a_learned_variance_lies_between_small_and_large(diffusion, fraction, variance):
    denoise, levels = gaussian(0.3, 0.5), diffusion.levels(10)
    x = levels[0].scale * torch.randn(8, 3, dtype=torch.float64)

    def with_variance(x_t, level):
        return *denoise(x_t, level), torch.full_like(x_t, fraction)

    fixed = last(ddpm(denoise, x, levels, noise_from(1), variance=variance))
    denoise.with_variance = with_variance
    assert_close(last(ddpm(denoise, x, levels, noise_from(1), variance="learned")), fixed)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_from_pure_noise_at_every_spacing(name, spacing):
    """alpha = 0 at the start: no sampler may divide by it."""
    torch.manual_seed(0)
    for schedule, zero in [("flow", False), ("cosine", True)]:
        diffusion = GaussianDiffusion(schedule, prediction="v", zero_terminal_snr=zero)
        for steps in (1, 2, 3, 10):
            levels = diffusion.levels(steps, spacing)
            x_0, x = torch.randn(2, 4, 2, dtype=torch.float64)
            walk = SAMPLERS[name](exact(x_0), levels[0].scale * x, levels, noise_from(2))
            assert_close(last(walk), x_0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_yields_after_every_step(diffusion, name):
    x, levels, calls = torch.zeros(2, 2), diffusion.levels(7), []
    denoise = exact(torch.zeros(2, 2))
    walk = SAMPLERS[name](
        lambda x, level: calls.append(level) or denoise(x, level), x, levels, torch.randn_like
    )
    assert len(list(walk)) == 7
    assert [level for level, _ in groupby(calls)] == levels[:-1]  # heun asks twice for each
    assert len(calls) == 7 or name == "heun"


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_solvers_of_the_ode_draw_no_noise(diffusion, name):
    draws, levels = [], diffusion.levels(5)
    list(SAMPLERS[name](exact(torch.zeros(2, 2)), torch.randn(2, 2), levels, draws.append))
    assert draws == []


def test_no_sampler_draws_noise_for_the_last_step(diffusion):
    for sampler, options in [(ddpm, {}), (ddim, {"eta": 1.0}), (dpmpp_2m_sde, {})]:
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
    assert options_of(ddpm) == {"variance": "small"}
    assert options_of(SAMPLERS["dpmpp_2m"]) == {}
