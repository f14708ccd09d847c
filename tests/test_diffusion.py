"""The forward process, the training loss and the denoiser, against the papers' equations."""

import copy
import math
from itertools import pairwise, permutations

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from conditions import NULL_LABEL, Condition
from diffusion import DDPM, GaussianDiffusion
from objectives import (
    LOSS_WEIGHTS,
    MIN_SNR_GAMMA,
    NOISE_ASSIGNMENTS,
    PREDICTIONS,
    TIMESTEP_SAMPLINGS,
    discretized_gaussian_nll,
    gaussian_kl,
)
from samplers import SAMPLERS, generate
from schedules import CLEAN, SCHEDULES, SPACINGS
from utils import NoisePerImage

PRESERVING = [name for name in SCHEDULES if name not in ("flow", "edm")]
SHAPES = [(4, 2), (4, 1, 8, 8), (4, 3, 5, 7), (4, 2, 3, 3, 3)]


@pytest.fixture(scope="module", params=SCHEDULES)
def diffusion(request) -> GaussianDiffusion:
    return GaussianDiffusion(request.param, prediction="v")


@pytest.fixture(scope="module", params=PRESERVING)
def preserving(request) -> GaussianDiffusion:
    """A variance-preserving process."""
    return GaussianDiffusion(request.param)


# --- the tables of the process ------------------------------------------------------------------


def test_tables_of_a_variance_preserving_process(preserving):
    diffusion = preserving
    betas = diffusion.betas.double()
    assert betas.min() > 0
    assert betas.max() < 1
    assert_close(
        diffusion.alphas_cumprod, torch.cumprod(1 - betas, 0).float(), rtol=1e-4, atol=1e-7
    )
    assert (diffusion.alphas_cumprod.diff() < 0).all()
    assert_close(diffusion.alpha**2 + diffusion.sigma**2, torch.ones(1000))
    assert_close(diffusion.alphas_cumprod_prev[1:], diffusion.alphas_cumprod[:-1])
    assert diffusion.alphas_cumprod_prev[0] == 1
    assert_close(diffusion.log_snr, 2 * (diffusion.alpha.log() - diffusion.sigma.log()))


def test_schedules_go_from_data_to_noise(diffusion):
    assert diffusion.ratio[0] < 0.04
    assert diffusion.ratio[-1] > 30
    assert (diffusion.ratio.diff() > 0).all()


def test_the_noise_variances_of_the_steps_add_up(diffusion):
    """sigma_t^2 = (alpha_t / alpha_t-1)^2 sigma_t-1^2 + beta_t, in every process."""
    alpha, sigma, betas = (x.double() for x in (diffusion.alpha, diffusion.sigma, diffusion.betas))
    carried = (alpha[1:] / alpha[:-1] * sigma[:-1]) ** 2
    assert_close(carried + betas[1:], sigma[1:] ** 2, rtol=1e-5, atol=1e-9)
    assert (betas > 0).all()


def test_flow_is_a_straight_line_from_data_to_noise():
    diffusion = GaussianDiffusion("flow", 10, prediction="flow")
    assert_close(diffusion.sigma, torch.arange(1, 11) / 10)
    assert_close(diffusion.alpha + diffusion.sigma, torch.ones(10))


def test_edm_has_sigmas_from_0_002_to_80_in_equal_ratios():
    diffusion = GaussianDiffusion("edm", prediction="edm")
    assert_close(diffusion.alpha, torch.ones(1000))
    assert_close(diffusion.sigma[[0, -1]], torch.tensor([0.002, 80.0]))
    assert_close(diffusion.sigma.log().diff(), torch.full((999,), math.log(40_000) / 999))


def test_quadratic_has_evenly_spaced_square_roots_of_beta():
    betas = GaussianDiffusion("quadratic").betas.double()
    assert_close(betas[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))
    steps = betas.sqrt().diff()
    assert_close(steps, steps.mean().expand(999), rtol=1e-3, atol=0)


def test_sigmoid_matches_the_paper():
    def f(u):
        return 1 / (1 + math.exp(6 * u - 3))

    expected = [(f((t + 1) / 1000) - f(1)) / (f(0) - f(1)) for t in range(990)]
    assert_close(GaussianDiffusion("sigmoid").alphas_cumprod[:990], torch.tensor(expected))


@pytest.mark.parametrize("schedule", PRESERVING)
def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_start(schedule):
    plain = GaussianDiffusion(schedule, prediction="v")
    diffusion = GaussianDiffusion(schedule, prediction="v", zero_terminal_snr=True)
    assert diffusion.alpha[-1] == 0
    assert_close(diffusion.alpha[0], plain.alpha[0])
    assert_close(diffusion.alpha**2 + diffusion.sigma**2, torch.ones(1000))
    assert (diffusion.alpha.diff() < 0).all()


def test_linear_matches_the_paper():
    betas = GaussianDiffusion("linear").betas
    assert_close(betas[[0, -1]], torch.tensor([1e-4, 0.02]))
    assert_close(betas.diff(), torch.full((999,), (0.02 - 1e-4) / 999), rtol=1e-3, atol=0)


def test_cosine_matches_the_paper():
    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f((t + 1) / 1000) / f(0) for t in range(990)]  # the last betas are clipped
    assert_close(GaussianDiffusion("cosine").alphas_cumprod[:990], torch.tensor(expected))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_short_and_long_processes_end_in_noise_too(schedule):
    for timesteps in (50, 4000):
        assert GaussianDiffusion(schedule, timesteps, prediction="v").ratio[-1] > 30


def test_tables_are_registered_float32_buffers(diffusion):
    buffers = dict(diffusion.named_buffers())
    assert {"betas", "alpha", "sigma", "posterior_variance"} <= buffers.keys()
    preserving = torch.allclose(diffusion.alpha**2 + diffusion.sigma**2, torch.ones(1000))
    assert ("alphas_cumprod" in buffers) == preserving
    assert {b.dtype for b in buffers.values()} == {torch.float32}
    assert list(diffusion.parameters()) == []


def test_a_process_can_move_to_another_device(diffusion):
    """The device "meta" stands in for a GPU: a tensor left on the CPU would raise here."""
    diffusion = copy.deepcopy(diffusion).to("meta")
    x_0 = torch.zeros(4, 1, 8, 8, device="meta")
    assert diffusion.loss(lambda x_t, t: x_t, x_0).device.type == "meta"
    x_0, eps = diffusion.denoiser(lambda x_t, t: x_t)(x_0, diffusion.levels(10)[0])
    assert x_0.device.type == eps.device.type == "meta"


# --- q(x_t | x_0) and q(x_t-1 | x_t, x_0) --------------------------------------------------------


def test_q_sample_has_mean_alpha_x_0_and_standard_deviation_sigma(diffusion):
    torch.manual_seed(0)
    count, t = 100_000, torch.tensor([0, 300, 999])
    x_0 = torch.full((3 * count, 1), 0.7)
    x_t = diffusion.q_sample(x_0, t.repeat_interleave(count), torch.randn_like(x_0))
    std, mean = torch.std_mean(x_t.view(3, count), dim=1)
    alpha, sigma = diffusion.alpha[t], diffusion.sigma[t]
    assert ((mean - 0.7 * alpha).abs() < 5 * sigma / count**0.5 + 1e-6).all()
    assert ((std / sigma - 1).abs() < 0.01).all()


def test_q_sample_equals_a_chain_of_single_steps(preserving):
    """Mean and variance after steps of q(x_t | x_t-1), eq. 2, are those of eq. 4."""
    diffusion, mean, variance = preserving, 1.0, 0.0
    for t, beta in enumerate(diffusion.betas[:600].double().tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        if t % 100 == 99:
            assert mean == pytest.approx(diffusion.alpha[t].item(), rel=1e-4)
            assert variance == pytest.approx(diffusion.sigma[t].item() ** 2, rel=1e-4)


def test_posterior_follows_bayes_rule(diffusion):
    """q(x_t-1 | x_t, x_0) is a product of two Gaussians in x_t-1, integrated here on a grid."""
    x_0, x_t = 0.4, -0.3
    for t in (1, 2, 500, 998):
        beta = diffusion.betas[t].double()
        alpha, sigma = diffusion.alpha[t - 1].double(), diffusion.sigma[t - 1].double()
        step_alpha = diffusion.alpha[t].double() / alpha  # of q(x_t | x_t-1)
        width = max(sigma.item(), beta.sqrt().item())
        grid = torch.linspace(-8 * width - 2, 8 * width + 2, 200_001, dtype=torch.float64)
        log_density = -((grid - alpha * x_0) ** 2) / (2 * sigma**2)
        log_density -= (x_t - step_alpha * grid) ** 2 / (2 * beta)
        weights = log_density.softmax(dim=0)
        expected_mean = (weights * grid).sum()
        expected_variance = (weights * (grid - expected_mean) ** 2).sum()

        mean, variance = diffusion.q_posterior(
            torch.tensor([[x_0]]), torch.tensor([[x_t]]), torch.tensor([t])
        )
        assert mean.item() == pytest.approx(expected_mean.item(), rel=2e-3, abs=1e-5)
        assert variance.item() == pytest.approx(expected_variance.item(), rel=2e-3)
        assert_close(diffusion.posterior_log_variance[t].exp(), variance[0, 0], rtol=1e-4, atol=0)


def test_posterior_at_the_first_timestep_is_the_data(diffusion):
    x_0, x_t = torch.randn(2, 4, 3)
    mean, variance = diffusion.q_posterior(x_0, x_t, torch.zeros(4, dtype=torch.long))
    assert_close(mean, x_0, rtol=1e-3, atol=1e-3)
    assert_close(variance, torch.zeros(4, 1))
    assert diffusion.posterior_log_variance.isfinite().all()


# --- predictions --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_target_of_a_prediction_implies_the_original_x_0(name, diffusion):
    torch.manual_seed(0)
    rows = slice(0, 999 if name == "eps" else 1000)  # eps implies no x_0 where alpha is 0
    x_0, noise = torch.randn(2, 1000, 5, dtype=torch.float64)[:, rows]
    alpha, sigma = diffusion.alpha.double()[rows, None], diffusion.sigma.double()[rows, None]
    x_t = alpha * x_0 + sigma * noise
    target = PREDICTIONS[name].target(x_0, noise, alpha, sigma)
    assert_close(PREDICTIONS[name].x_0(target, x_t, alpha, sigma), x_0, rtol=1e-8, atol=1e-8)


def test_edm_is_v_for_data_of_standard_deviation_1(preserving):
    x_0, noise = torch.randn(2, 1000, 5, dtype=torch.float64)
    alpha, sigma = preserving.alpha.double()[:, None], preserving.sigma.double()[:, None]
    v = PREDICTIONS["v"].target(x_0, noise, alpha, sigma)
    assert_close(PREDICTIONS["edm"].target(x_0, noise, alpha, sigma), -v, rtol=1e-6, atol=1e-5)


def test_edm_has_the_preconditioning_of_the_paper():
    """Karras et al. 2022, table 1: c_skip, c_out and c_in for the data's standard deviation."""
    s = 0.5
    diffusion = GaussianDiffusion("edm", prediction="edm", sigma_data=s, clip=False)
    torch.manual_seed(0)
    x, out = torch.randn(2, 4, 3)
    for level in (diffusion.nearest(r) for r in (0.01, 0.5, 20.0)):
        sigma, seen = level.sigma, []
        x_0, _ = diffusion.denoiser(lambda x_t, t: seen.append(x_t) or out)(x, level)  # noqa: B023
        c_skip, c_out = s**2 / (sigma**2 + s**2), sigma * s / math.hypot(sigma, s)
        assert_close(x_0, c_skip * x + c_out * out)
        assert_close(seen[0], x / math.hypot(sigma, s))


def test_network_inputs_have_unit_variance(diffusion):
    torch.manual_seed(0)
    x_0, t = torch.randn(20_000, 1), torch.tensor([0, 500, 999]).repeat_interleave(20_000)
    x_t = diffusion.q_sample(x_0.repeat(3, 1), t, torch.randn(60_000, 1))
    std = diffusion.scaled(x_t, t).view(3, -1).std(dim=1)
    assert_close(std, torch.ones(3), rtol=0.02, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_data_may_have_any_shape(shape):
    diffusion = GaussianDiffusion()
    x_0, t = torch.rand(shape), torch.tensor([0, 5, 500, 999])
    assert diffusion.q_sample(x_0, t, torch.randn(shape)).shape == shape
    assert diffusion.q_posterior(x_0, x_0, t)[0].shape == shape
    assert diffusion.loss(lambda x_t, t: x_t, x_0).shape == ()


# --- the loss and the denoiser ------------------------------------------------------------------


def test_loss_is_the_mean_squared_error_of_the_noise(preserving):
    diffusion = preserving
    x_0, noise, out = torch.randn(3, 4, 1, 8, 8)
    t = torch.tensor([0, 10, 500, 999])
    seen = {}

    def model(x_t, t):
        seen.update(x_t=x_t, t=t)
        return out

    loss = diffusion.loss(model, x_0, t=t, noise=noise)
    assert_close(loss, ((out - noise) ** 2).mean())
    assert_close(seen["x_t"], diffusion.q_sample(x_0, t, noise))
    assert_close(seen["t"], t)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_clipped_loss_has_the_posterior_mean_as_its_clipped_optimum(prediction, share):
    """A pixel is -1 with probability `share`, else 0.5; x_t tells nothing about it."""
    diffusion = GaussianDiffusion(prediction=prediction, loss_weight="edm", clip_loss=True)
    x_0, t = torch.full((10, 1), 0.5), torch.full((10,), 500)
    x_0[: round(10 * share)] = -1.0
    alpha, sigma = diffusion.alpha[t, None], diffusion.sigma[t, None]
    candidates = torch.linspace(-1.5, 1.5, 61)
    losses = []
    for x_0_hat in candidates.tolist():
        target = torch.full_like(x_0, x_0_hat)  # is implied by the output that it has as its target
        out = diffusion.prediction.target(target, -alpha / sigma * target, alpha, sigma)
        noise = -alpha / sigma * x_0  # so that x_t is 0
        losses.append(diffusion.loss(lambda x_t, t, out=out: out, x_0, t=t, noise=noise))
    optimum = candidates[torch.stack(losses).argmin()].clamp(-1, 1)
    assert_close(optimum, x_0.mean(), rtol=0, atol=0.01)


def test_the_clipped_loss_ignores_errors_beyond_the_bound_alone():
    x_0 = torch.tensor([[-1.0, -1.0, 1.0, 1.0, 0.99, -0.5]])
    x_0_hat = torch.tensor([[-1.5, -0.5, 1.5, -1.5, 1.5, -1.5]], requires_grad=True)
    diffusion = GaussianDiffusion(prediction="x_0", clip_loss=True)
    diffusion.loss(lambda x_t, t: x_0_hat, x_0).backward()
    assert_close(x_0_hat.grad != 0, torch.tensor([[False, True, False, True, True, True]]))
    inside = 0.9 * x_0
    plain = GaussianDiffusion(prediction="x_0").loss(lambda x_t, t: x_0_hat, inside)
    assert_close(diffusion.loss(lambda x_t, t: x_0_hat, inside), plain, rtol=0, atol=0)


def test_loss_draws_timesteps_uniformly():
    torch.manual_seed(0)
    drawn = []
    GaussianDiffusion().loss(lambda x_t, t: drawn.append(t) or x_t, torch.zeros(100_000, 1))
    counts = torch.bincount(drawn[0], minlength=1000)
    assert counts.min() > 50
    assert counts.max() < 150


def test_loss_passes_the_condition_to_the_network():
    seen, condition = [], Condition(label=torch.tensor([0, 1]))
    network = lambda x_t, t, condition: seen.append(condition) or x_t  # noqa: E731
    GaussianDiffusion().loss(network, torch.zeros(2, 3), condition)
    assert seen == [condition]


def test_denoiser_clips_x_0_and_recomputes_eps(diffusion):
    torch.manual_seed(0)
    x_t, level = torch.randn(4, 3), diffusion.levels(10)[4]
    x_0, eps = diffusion.denoiser(lambda x_t, t: 3 * x_t)(x_t, level)
    assert x_0.abs().max() == 1
    assert_close(level.alpha * x_0 + level.sigma * eps, x_t)


def test_clipping_can_be_switched_off():
    torch.manual_seed(0)
    x_t = torch.randn(4, 3)
    assert GaussianDiffusion().clip
    unclipped = GaussianDiffusion(clip=False)
    x_0, eps = unclipped.denoiser(lambda x_t, t: 3 * x_t)(x_t, unclipped.levels(10)[4])
    assert x_0.abs().max() > 1
    assert_close(eps, 3 * x_t, rtol=1e-4, atol=1e-4)


# --- levels and spacings ------------------------------------------------------------------------


def test_levels_run_from_the_noisiest_timestep_to_clean_data(diffusion):
    levels = diffusion.levels()
    assert [level.t for level in levels] == [*range(999, -1, -1), -1]
    assert levels[-1] == CLEAN
    assert [level.t for level in diffusion.levels(4)] == [999, 749, 499, 249, -1]
    assert [level.t for level in diffusion.levels(1)] == [999, -1]
    for level in diffusion.levels(7)[:-1]:
        assert level.alpha == pytest.approx(diffusion.alpha[level.t].item(), rel=1e-6)
        assert level.sigma == pytest.approx(diffusion.sigma[level.t].item(), rel=1e-6)


def test_number_of_steps_must_be_between_1_and_the_timesteps():
    for steps in (0, -1, 1001):
        with pytest.raises(ValueError, match="between 1 and 1000"):
            GaussianDiffusion().levels(steps)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_levels_of_every_spacing_are_distinct_and_decrease(spacing, diffusion):
    for steps in (2, 3, 7, 50, 999, *range(1, 1001, 111)):
        levels = diffusion.levels(steps, spacing)
        assert len(levels) == steps + 1
        assert levels[-1] == CLEAN
        assert all(a.t > b.t for a, b in pairwise(levels))
        assert all(0 <= level.t < 1000 for level in levels[:-1])


def test_each_spacing_is_even_in_its_own_quantity():
    diffusion = GaussianDiffusion("linear")

    def noisy_levels(spacing):
        return diffusion.levels(10, spacing)[:-1]

    assert [level.t for level in noisy_levels("trailing")] == [*range(999, 0, -100)]
    assert [level.t for level in noisy_levels("leading")] == [*range(900, -1, -100)]
    assert [level.t for level in noisy_levels("quadratic")][::9] == [999, 0]
    assert [level.t for level in diffusion.levels(5, "upper")] == [999, 899, 799, 699, 599, -1]
    assert [level.t for level in diffusion.levels(1, "upper")] == [999, -1]
    roots = torch.tensor([math.sqrt(level.t) for level in noisy_levels("quadratic")])
    assert_close(roots.diff(), torch.full((9,), -math.sqrt(999) / 9), rtol=0, atol=0.5)
    lam = torch.tensor([level.log_ratio for level in noisy_levels("uniform-logsnr")])
    assert_close(lam.diff(), ((lam[-1] - lam[0]) / 9).expand(9), rtol=0.05, atol=0.05)
    root = torch.tensor([level.ratio ** (1 / 7) for level in noisy_levels("karras")])
    assert_close(root.diff(), ((root[-1] - root[0]) / 9).expand(9), rtol=0.05, atol=0.01)


# --- timesteps and noise of training ------------------------------------------------------------


@pytest.mark.parametrize("name", TIMESTEP_SAMPLINGS)
def test_timestep_samplings_give_valid_timesteps(name, diffusion):
    t = diffusion.sample_t(5000, name)
    assert t.shape == (5000,)
    assert t.dtype == torch.int64
    assert t.min() >= 0
    assert t.max() <= 999


@pytest.mark.parametrize("name", ["uniform", "stratified"])
def test_timesteps_are_uniform_at_each_position_of_the_batch(name):
    """Stratified timesteps depend on each other within a batch, and each alone is uniform."""
    torch.manual_seed(0)
    diffusion = GaussianDiffusion()
    t = torch.stack([diffusion.sample_t(4, name) for _ in range(5000)])  # (5000, 4)
    for position in t.T:
        counts = torch.histc(position.float(), 10, 0, 1000)
        chi_square = ((counts - 500) ** 2 / 500).sum().item()
        assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001


def test_stratified_timesteps_are_evenly_spread_in_each_batch():
    for _ in range(20):
        t = GaussianDiffusion().sample_t(10, "stratified").sort().values
        assert_close(t.diff().float(), torch.full((9,), 100.0), rtol=0, atol=1)


def test_logit_normal_and_log_normal_have_the_papers_moments():
    torch.manual_seed(0)
    t = GaussianDiffusion("flow", prediction="flow").sample_t(50_000, "logit-normal")
    logits = torch.logit((t + 0.5) / 1000)
    assert logits.mean().item() == pytest.approx(0, abs=0.03)
    assert logits.std().item() == pytest.approx(1, rel=0.03)
    edm = GaussianDiffusion("edm", prediction="edm")
    log_sigma = edm.sigma[edm.sample_t(50_000, "log-normal")].log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert log_sigma.std().item() == pytest.approx(1.2, rel=0.03)


@pytest.mark.parametrize("name", NOISE_ASSIGNMENTS)
def test_noise_has_the_shape_and_memory_layout_of_the_data(name):
    x_0 = torch.randn(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    noise = GaussianDiffusion().sample_noise(x_0, name)
    assert noise.shape == x_0.shape
    assert noise.is_contiguous(memory_format=torch.channels_last)


def test_optimal_assignment_is_the_permutation_with_the_smallest_distance():
    torch.manual_seed(0)
    x_0 = torch.randn(5, 2)
    torch.manual_seed(1)
    independent = GaussianDiffusion().sample_noise(x_0)
    torch.manual_seed(1)
    optimal = GaussianDiffusion().sample_noise(x_0, "optimal")
    assert_close(optimal.sort(0).values, independent.sort(0).values)
    best = min(((x_0 - independent[list(p)]) ** 2).sum() for p in permutations(range(5)))
    assert_close(((x_0 - optimal) ** 2).sum(), best)


def test_nearest_assignment_gives_noise_closer_to_the_data():
    torch.manual_seed(0)
    x_0 = torch.randn(2000, 2)
    near = GaussianDiffusion().sample_noise(x_0, "nearest")
    far = GaussianDiffusion().sample_noise(x_0)
    assert (near - x_0).norm(dim=1).mean() < 0.8 * (far - x_0).norm(dim=1).mean()


# --- loss weights and the variational bound -----------------------------------------------------


def weighted_loss(prediction: str, weight: str):
    """The loss of a network that outputs zeros, on fixed data, and its inputs."""
    torch.manual_seed(0)
    x_0, noise, out = *torch.randn(2, 4, 3), torch.zeros(4, 3)
    t = torch.tensor([5, 300, 600, 900])
    diffusion = GaussianDiffusion(prediction=prediction, loss_weight=weight)
    loss = diffusion.loss(lambda x_t, t: out, x_0, t=t, noise=noise)
    return loss, diffusion, x_0, noise, t, out


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weight", [w for w in LOSS_WEIGHTS if LOSS_WEIGHTS[w]])
def test_weights_multiply_the_squared_error_of_x_0(prediction, weight):
    loss, diffusion, x_0, noise, t, out = weighted_loss(prediction, weight)
    alpha, sigma = diffusion.alpha[t, None], diffusion.sigma[t, None]
    x_0_hat = PREDICTIONS[prediction].x_0(out, diffusion.q_sample(x_0, t, noise), alpha, sigma)
    snr = (alpha / sigma) ** 2
    expected = {"snr": snr, "min-snr": snr.clamp(max=MIN_SNR_GAMMA), "edm": snr + 1}[weight]
    assert_close(loss, (expected * (x_0_hat - x_0) ** 2).mean(), rtol=1e-4, atol=1e-5)


def test_some_weights_equal_the_unweighted_error_of_a_prediction():
    """SNR of x_0 is eps (Ho et al.); SNR + 1 is v (Salimans & Ho) and EDM's own network."""
    for prediction, weight in [("eps", "snr"), ("v", "edm"), ("edm", "edm")]:
        plain, *_ = weighted_loss(prediction, "uniform")
        weighted, *_ = weighted_loss(prediction, weight)
        assert_close(weighted, plain, rtol=1e-4, atol=1e-5)


def test_min_snr_of_eps_matches_the_paper():
    """Hang et al. 2023, section 3.4: min(SNR, gamma) / SNR on the error of eps."""
    loss, diffusion, _, noise, t, out = weighted_loss("eps", "min-snr")
    snr = diffusion.log_snr[t, None].exp()
    expected = (snr.clamp(max=5) / snr * (out - noise) ** 2).mean()
    assert_close(loss, expected, rtol=1e-3, atol=1e-5)


def test_bound_of_the_true_posterior_is_zero(diffusion):
    torch.manual_seed(0)
    x_0, noise = torch.randn(2, 4, 3)
    t = torch.tensor([1, 10, 500, 999])
    x_t = diffusion.q_sample(x_0, t, noise)
    assert_close(diffusion.bound(x_0, None, x_0, x_t, t), torch.zeros(4), rtol=0, atol=2e-6)


def test_bound_with_a_fixed_variance_is_weighted_by_the_difference_of_snr(preserving):
    """Kingma et al. 2021, eq. 14: half of SNR(t-1) - SNR(t) times the squared error of x_0."""
    torch.manual_seed(0)
    x_0, noise, out = torch.randn(3, 4, 3)
    t = torch.tensor([10, 300, 600, 900])
    x_t = preserving.q_sample(x_0, t, noise)
    alpha, sigma = preserving.alpha[t, None], preserving.sigma[t, None]
    x_0_hat = PREDICTIONS["eps"].x_0(out, x_t, alpha, sigma)
    error = (x_0_hat - x_0) ** 2
    snr = preserving.log_snr.double().exp()
    expected = 0.5 * (snr[t - 1] - snr[t]) * error.mean(dim=1) / math.log(2)
    bound = preserving.bound(x_0_hat, None, x_0, x_t, t)
    assert_close(bound.double(), expected, rtol=2e-3, atol=0)


def test_kl_of_gaussians_matches_pytorch():
    mean_1, log_var_1, mean_2, log_var_2 = torch.randn(4, 100)
    expected = kl_divergence(
        Normal(mean_1, (log_var_1 / 2).exp()), Normal(mean_2, (log_var_2 / 2).exp())
    )
    assert_close(gaussian_kl(mean_1, log_var_1, mean_2, log_var_2), expected)


def test_probabilities_of_the_256_pixel_values_sum_to_1():
    pixels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (-1.0, -0.3, 0.999):
        for std in (1e-3, 0.05, 1.0):
            log_var = torch.full_like(pixels, 2 * math.log(std))
            nll = discretized_gaussian_nll(pixels, torch.full_like(pixels, mean), log_var)
            assert torch.exp(-nll).sum().item() == pytest.approx(1, abs=1e-3)


def test_only_the_bound_trains_the_learned_variance():
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(learn_sigma=True)
    out = torch.zeros(4, 2, 8, 8, requires_grad=True)
    x_0, t = torch.rand(4, 1, 8, 8) * 2 - 1, torch.tensor([1, 100, 500, 900])
    noise = torch.randn_like(x_0)
    diffusion.loss(lambda x_t, t: out, x_0, t=t, noise=noise).backward()
    mean, variance = out.grad.chunk(2, dim=1)
    assert variance.abs().max() > 0
    assert_close(mean, 2 * (0 - noise) / noise.numel())  # no gradient from the bound


def test_loss_with_weight_vlb_is_the_mean_bound_over_all_timesteps():
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(learn_sigma=True, loss_weight="vlb")
    x_0, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    out, t = torch.randn(4, 2, 8, 8).clamp(-1, 1), torch.tensor([0, 100, 500, 900])
    loss = diffusion.loss(lambda x_t, t: out, x_0, t=t, noise=noise)
    eps, fraction = diffusion.split(out)
    x_t = diffusion.q_sample(x_0, t, noise)
    alpha, sigma = (table[t].view(4, 1, 1, 1) for table in (diffusion.alpha, diffusion.sigma))
    bound = diffusion.bound((x_t - sigma * eps) / alpha, fraction, x_0, x_t, t)
    assert_close(loss, 1000 * bound.mean())
    assert (bound >= 0).all()


# --- guidance -----------------------------------------------------------------------------------


class TwoClasses(torch.nn.Module):
    """Outputs 1 for class 0, 3 for class 1 and 0.5 without a label; records its batch sizes."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x_t, t, condition=None):
        self.batches.append(len(x_t))
        label = torch.full_like(t, NULL_LABEL) if condition is None else condition.label
        values = torch.tensor([1.0, 3.0, 0.5])[label]  # row -1 for the null label
        return values[:, None] * torch.tensor([1.0, -1.0]) * torch.ones_like(x_t)


def guided(scale, **options):
    """The network's output under guidance, for one image of class 0 and one of class 1."""
    diffusion, model = GaussianDiffusion(prediction="x_0", clip=False), TwoClasses()
    condition = Condition(label=torch.tensor([0, 1]))
    denoise = diffusion.denoiser(model, condition, guidance_scale=scale, **options)
    x_0, _ = denoise(torch.zeros(2, 2), diffusion.levels(10)[4])
    return x_0, model.batches


def test_guidance_extrapolates_from_the_unconditional_prediction():
    assert_close(guided(1.0)[0], torch.tensor([[1.0, -1.0], [3.0, -3.0]]))  # conditional
    assert_close(guided(0.0)[0], torch.tensor([[0.5, -0.5], [0.5, -0.5]]))  # unconditional
    assert_close(guided(2.5)[0], torch.tensor([[1.75, -1.75], [6.75, -6.75]]))


def test_a_guide_takes_the_place_of_the_unconditional_prediction():
    """With the same condition: 2.5 (cond - guide) + guide, where the guide has half of cond."""
    half = TwoClasses()
    guide = lambda *inputs: half(*inputs) / 2  # noqa: E731
    assert_close(guided(2.5, guide=guide)[0], torch.tensor([[1.75, -1.75], [5.25, -5.25]]))
    assert_close(guided(0.0, guide=guide)[0], torch.tensor([[0.5, -0.5], [1.5, -1.5]]))
    assert_close(guided(1.0, guide=guide)[0], guided(1.0)[0])
    diffusion, level = GaussianDiffusion(prediction="x_0"), GaussianDiffusion().levels(10)[4]
    network, weaker = (lambda x_t, t: x_t), (lambda x_t, t: 0.5 * x_t)
    denoise = diffusion.denoiser(network, guide=weaker, guidance_scale=2)
    assert_close(denoise(torch.full((1, 2), 0.5), level)[0], torch.full((1, 2), 0.75))
    assert denoise.calls == 2


@pytest.mark.parametrize("prediction", ["flow", "v", "eps", "edm"])
def test_guidance_compares_clipped_predictions_of_a_network_that_learned_with_them(prediction):
    """One predicts -1.2 and the other -1.6 for a black pixel, and 0.5 and 0.1 for a grey one."""
    diffusion = GaussianDiffusion(prediction=prediction, clip_loss=True)
    x_t, level = torch.tensor([[-0.7, 0.3]]), diffusion.levels(10)[4]

    def network(*x_0):
        x_0 = torch.tensor([x_0])
        noise = (x_t - level.alpha * x_0) / level.sigma
        return lambda x_in, t: diffusion.prediction.target(x_0, noise, level.alpha, level.sigma)

    weaker = network(-1.6, 0.1)
    denoise = diffusion.denoiser(network(-1.2, 0.5), guide=weaker, guidance_scale=2)
    assert_close(denoise(x_t, level)[0], torch.tensor([[-1.0, 0.9]]), rtol=0, atol=1e-5)
    plain = GaussianDiffusion(prediction=prediction)
    unclipped = plain.denoiser(network(-1.2, 0.5), guide=weaker, guidance_scale=2)
    assert_close(unclipped(x_t, level)[0], torch.tensor([[-0.8, 0.9]]), rtol=0, atol=1e-5)


def test_guidance_calls_the_network_once_with_a_doubled_batch():
    assert guided(2.5)[1] == [4]
    assert guided(1.0)[1] == guided(0.0)[1] == [2]


def test_guidance_acts_only_within_its_interval():
    ratio = GaussianDiffusion().levels(10)[4].ratio
    assert_close(guided(2.5, guidance_interval=(0, ratio * 0.9))[0], guided(1.0)[0])
    assert_close(guided(2.5, guidance_interval=(0, ratio * 1.1))[0], guided(2.5)[0])


def test_guidance_rescale_restores_the_standard_deviation():
    assert_close(guided(2.5, guidance_rescale=1.0)[0], guided(1.0)[0])
    half = (guided(2.5)[0] + guided(1.0)[0]) / 2
    assert_close(guided(2.5, guidance_rescale=0.5)[0], half)


def test_guidance_needs_a_condition():
    with pytest.raises(ValueError, match="needs a condition"):
        GaussianDiffusion().denoiser(TwoClasses(), guidance_scale=2.0)


def test_denoiser_counts_network_calls():
    diffusion = GaussianDiffusion()
    denoise = diffusion.denoiser(lambda x_t, t: x_t)
    for level in diffusion.levels(3)[:-1]:
        denoise(torch.zeros(2, 2), level)
    assert denoise.calls == 3


# --- DDPM ----------------------------------------------------------------------------------------


class Halving(torch.nn.Module):
    """Predicts half of its input, and records the mode and the condition of its calls."""

    def __init__(self):
        super().__init__()
        self.modes, self.conditions = [], []

    def forward(self, x_t, t, condition=None):
        self.modes.append(self.training)
        self.conditions.append(condition)
        return x_t / 2


def test_ddpm_has_the_loss_of_its_process():
    network, x_0 = Halving(), torch.rand(4, 1, 8, 8)
    torch.manual_seed(0)
    expected = GaussianDiffusion("linear", 100, "eps", loss_weight="min-snr").loss(network, x_0)
    torch.manual_seed(0)
    assert_close(DDPM(network, "linear", 100, "eps", loss_weight="min-snr")(x_0), expected)


def test_ddpm_samples_with_its_process_in_evaluation_mode():
    network = Halving()
    ddpm = DDPM(network, prediction="v", clip=False).train()
    x_0 = ddpm.sample(3, (1, 4, 4), sampler="ddpm", steps=5, seed=7)
    noise_like = NoisePerImage(7, range(3))
    noise, levels = noise_like.draw((1, 4, 4)), ddpm.diffusion.levels(5)
    *_, expected = generate(
        ddpm.diffusion.denoiser(network), noise, levels, noise_like, SAMPLERS["ddpm"]
    )
    assert_close(x_0, expected)
    assert not any(network.modes[:5])
    assert network.training


def test_ddpm_passes_on_the_condition_and_guidance():
    network, condition = Halving(), Condition(label=torch.tensor([1, 0]))
    DDPM(network).sample(2, (3,), steps=1, condition=condition, guidance_scale=2.0)
    assert network.conditions[0].label.tolist() == [1, 0, NULL_LABEL, NULL_LABEL]


def test_ddpm_without_a_seed_draws_from_the_global_generator():
    ddpm = DDPM(Halving())
    torch.manual_seed(0)
    first, second = ddpm.sample(2, (3,), steps=2), ddpm.sample(2, (3,), steps=2)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert_close(ddpm.sample(2, (3,), steps=2), first)


# --- invalid arguments --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"schedule": "flow"}, "prediction eps cannot be used with the schedule flow"),
        ({"zero_terminal_snr": True}, "prediction eps cannot be used with zero_terminal_snr"),
        (
            {"schedule": "flow", "prediction": "v", "zero_terminal_snr": True},
            "ends in pure noise already",
        ),
        (
            {"schedule": "edm", "prediction": "v", "zero_terminal_snr": True},
            "never loses the signal",
        ),
        ({"sigma_data": 0.0}, "sigma_data must be positive"),
        ({"loss_weight": "x"}, "unknown loss weight 'x'; choose from uniform, snr"),
        ({"clip_loss": True, "clip": False}, "clip_loss cannot be used with data that are not cli"),
    ],
)
def test_contradictory_arguments_raise(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        GaussianDiffusion(**arguments)


def test_unknown_names_raise_and_list_the_known_names():
    with pytest.raises(ValueError, match="unknown schedule 'x'; choose from linear, quadratic"):
        GaussianDiffusion("x")
    with pytest.raises(ValueError, match="unknown prediction 'x'; choose from eps, x_0, v"):
        GaussianDiffusion(prediction="x")
    with pytest.raises(ValueError, match="unknown spacing 'x'; choose from trailing"):
        GaussianDiffusion().levels(10, "x")
    with pytest.raises(ValueError, match="unknown timestep sampling 'x'"):
        GaussianDiffusion().sample_t(4, "x")
    with pytest.raises(ValueError, match="at least 2 timesteps"):
        GaussianDiffusion(timesteps=1)
    with pytest.raises(ValueError, match="at least 21 timesteps"):
        GaussianDiffusion("linear", timesteps=20)
