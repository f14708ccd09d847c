import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from diffusion import CLEAN, PREDICTIONS, SCHEDULES, GaussianDiffusion

SHAPES = [(4, 2), (4, 1, 8, 8), (4, 3, 5, 7), (4, 2, 3, 3, 3)]


@pytest.fixture(params=SCHEDULES)
def diffusion(request) -> GaussianDiffusion:
    return GaussianDiffusion(request.param)


def test_schedule_identities(diffusion):
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


def test_every_schedule_goes_from_data_to_noise(diffusion):
    assert diffusion.alphas_cumprod[0] > 0.999
    assert diffusion.alphas_cumprod[-1] < 1e-3


def test_linear_is_that_of_the_paper():
    betas = GaussianDiffusion("linear").betas
    assert_close(betas[[0, -1]], torch.tensor([1e-4, 0.02]))
    assert_close(betas.diff(), torch.full((999,), (0.02 - 1e-4) / 999), rtol=1e-3, atol=0)


def test_cosine_is_that_of_the_paper():
    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f((t + 1) / 1000) / f(0) for t in range(990)]  # the last betas are clipped
    assert_close(GaussianDiffusion("cosine").alphas_cumprod[:990], torch.tensor(expected))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [50, 4000])
def test_the_end_does_not_depend_on_the_number_of_steps(schedule, timesteps):
    assert GaussianDiffusion(schedule, timesteps).alphas_cumprod[-1] < 1e-3


def test_buffers_are_float32_and_registered(diffusion):
    buffers = dict(diffusion.named_buffers())
    assert {"betas", "alphas_cumprod", "posterior_variance"} <= buffers.keys()
    assert {b.dtype for b in buffers.values()} == {torch.float32}
    assert list(diffusion.parameters()) == []


def test_runs_on_another_device_than_it_was_made_on(diffusion):
    # "meta" stands in for a GPU: any tensor left behind on the CPU would raise here.
    diffusion = diffusion.to("meta")
    x_0 = torch.zeros(4, 1, 8, 8, device="meta")
    assert diffusion.loss(lambda x_t, t: x_t, x_0).device.type == "meta"
    x_0, eps = diffusion.denoiser(lambda x_t, t: x_t)(x_0, diffusion.levels(10)[0])
    assert x_0.device.type == eps.device.type == "meta"


@pytest.mark.parametrize("t", [0, 300, 999])
def test_q_sample_moments(diffusion, t):
    torch.manual_seed(0)
    x_0 = torch.full((200_000, 1), 0.7)
    x_t = diffusion.q_sample(x_0, torch.full((len(x_0),), t), torch.randn_like(x_0))
    alpha, sigma = diffusion.alpha[t].item(), diffusion.sigma[t].item()
    assert abs(x_t.mean().item() - 0.7 * alpha) < 5 * sigma / len(x_0) ** 0.5
    assert abs(x_t.std().item() / sigma - 1) < 0.01


def test_q_sample_is_the_chain_of_single_steps(diffusion):
    """Mean and variance after single steps q(x_t | x_t-1), eq. 2, are those of eq. 4."""
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(diffusion.betas[:600].double().tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        if t % 100 == 99:
            assert mean == pytest.approx(diffusion.alpha[t].item(), rel=1e-4)
            assert variance == pytest.approx(diffusion.sigma[t].item() ** 2, rel=1e-4)


@pytest.mark.parametrize("t", [1, 2, 500, 998])
def test_posterior_is_bayes_rule(diffusion, t):
    """q(x_t-1 | x_t, x_0), as the product of two Gaussians in x_t-1, integrated on a fine grid."""
    x_0, x_t = 0.4, -0.3
    beta = diffusion.betas[t].double()
    alpha, sigma = diffusion.alpha[t - 1].double(), diffusion.sigma[t - 1].double()
    width = max(sigma.item(), beta.sqrt().item())
    grid = torch.linspace(-8 * width - 2, 8 * width + 2, 2_000_001, dtype=torch.float64)
    log_density = -((grid - alpha * x_0) ** 2) / (2 * sigma**2)
    log_density -= (x_t - (1 - beta).sqrt() * grid) ** 2 / (2 * beta)
    weights = (log_density - log_density.max()).exp()
    weights /= weights.sum()
    expected_mean = (weights * grid).sum()
    expected_variance = (weights * (grid - expected_mean) ** 2).sum()

    mean, variance = diffusion.q_posterior(
        torch.tensor([[x_0]]), torch.tensor([[x_t]]), torch.tensor([t])
    )
    assert mean.item() == pytest.approx(expected_mean.item(), rel=2e-3, abs=1e-5)
    assert variance.item() == pytest.approx(expected_variance.item(), rel=2e-3)
    assert diffusion.posterior_log_variance[t].exp().item() == pytest.approx(
        variance.item(), rel=1e-4
    )


def test_posterior_at_the_first_step_is_the_data(diffusion):
    x_0, x_t = torch.randn(2, 4, 3)
    mean, variance = diffusion.q_posterior(x_0, x_t, torch.zeros(4, dtype=torch.long))
    assert_close(mean, x_0, rtol=1e-3, atol=1e-3)
    assert_close(variance, torch.zeros(4, 1))
    assert diffusion.posterior_log_variance.isfinite().all()


@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_imply_the_data_that_they_came_from(name, diffusion):
    torch.manual_seed(0)
    x_0, noise = torch.randn(2, 1000, 5, dtype=torch.float64)
    alpha, sigma = diffusion.alpha.double()[:, None], diffusion.sigma.double()[:, None]
    x_t = alpha * x_0 + sigma * noise
    target = PREDICTIONS[name].target(x_0, noise, alpha, sigma)
    assert_close(PREDICTIONS[name].x_0(target, x_t, alpha, sigma), x_0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape(shape, diffusion):
    x_0 = torch.rand(shape)
    t = torch.tensor([0, 5, 500, 999])
    assert diffusion.q_sample(x_0, t, torch.randn(shape)).shape == shape
    assert diffusion.q_posterior(x_0, x_0, t)[0].shape == shape
    assert diffusion.loss(lambda x_t, t: x_t, x_0).shape == ()


def test_loss_is_the_mean_squared_error_of_the_noise(diffusion):
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


def test_loss_draws_all_timesteps_evenly(diffusion):
    torch.manual_seed(0)
    drawn = []
    diffusion.loss(lambda x_t, t: drawn.append(t) or x_t, torch.zeros(100_000, 1))
    counts = torch.bincount(drawn[0], minlength=1000)
    assert counts.min() > 50
    assert counts.max() < 150


def test_denoiser_clips_x_0_and_derives_eps_anew(diffusion):
    torch.manual_seed(0)
    x_t, level = torch.randn(4, 3), diffusion.levels(10)[4]
    x_0, eps = diffusion.denoiser(lambda x_t, t: 3 * x_t)(x_t, level)
    assert x_0.abs().max() == 1
    assert_close(level.alpha * x_0 + level.sigma * eps, x_t)

    unclipped = GaussianDiffusion(clip=False)
    x_0, eps = unclipped.denoiser(lambda x_t, t: 3 * x_t)(x_t, unclipped.levels(10)[4])
    assert x_0.abs().max() > 1
    assert_close(eps, 3 * x_t, rtol=1e-4, atol=1e-4)


def test_levels(diffusion):
    levels = diffusion.levels()
    assert [level.t for level in levels] == [*range(999, -1, -1), -1]
    assert levels[-1] == CLEAN
    assert [level.t for level in diffusion.levels(4)] == [999, 749, 499, 249, -1]
    assert [level.t for level in diffusion.levels(1)] == [999, -1]
    for level in diffusion.levels(7)[:-1]:
        assert level.alpha == pytest.approx(diffusion.alpha[level.t].item(), rel=1e-6)
        assert level.sigma == pytest.approx(diffusion.sigma[level.t].item(), rel=1e-6)


@pytest.mark.parametrize("steps", range(1, 1001, 37))
def test_levels_are_distinct_and_fall(steps, diffusion):
    t = [level.t for level in diffusion.levels(steps)]
    assert len(t) == steps + 1
    assert all(a > b for a, b in pairwise(t))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps(steps, diffusion):
    with pytest.raises(ValueError, match="between 1 and 1000"):
        diffusion.levels(steps)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown schedule 'x'; choose from linear, cosine"):
        GaussianDiffusion("x")
    with pytest.raises(ValueError, match="unknown prediction 'x'; choose from eps"):
        GaussianDiffusion(prediction="x")
    with pytest.raises(ValueError, match="at least 2 timesteps"):
        GaussianDiffusion(timesteps=1)
    with pytest.raises(ValueError, match="at least 21 timesteps"):
        GaussianDiffusion("linear", timesteps=20)
