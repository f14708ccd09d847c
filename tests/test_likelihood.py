"""Likelihoods against the exact entropy of Gaussian data, and evaluate.py, which reports them."""

import json
import math
from pathlib import Path

import pytest
import torch

from cli.evaluation import EVALUATE
from dataset.items import shape_config, split
from dataset.registry import load_dataset
from diffusion import GaussianDiffusion
from evaluation.likelihood import flow_likelihood, variational_bound
from evaluation.real import load_real_data
from runs import SMALL
from schedules import SCHEDULES

MEAN, STD, DIMS = 0.3, 0.5, 2
TIMESTEPS = 200  # of the bound, which calls the network once for each
ENTROPY = math.log2(STD * math.sqrt(2 * math.pi * math.e))  # bits per dimension


def perfect(diffusion: GaussianDiffusion):
    """The network that outputs E[x_0 | x_t] for data from N(MEAN, STD^2)."""

    def model(x_in, t):
        alpha, sigma = diffusion.alpha[t][:, None], diffusion.sigma[t][:, None]
        x_t = x_in / diffusion.scale_in[t][:, None]
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x_0 = MEAN + gain * (x_t - alpha * MEAN)
        if not diffusion.learn_sigma:
            return x_0
        variance = (
            diffusion.posterior_variance[t]
            + (diffusion.posterior_coef_x_0[t] * STD * sigma[:, 0] / (x_scale(alpha, sigma))) ** 2
        )  # of q(x_{t-1} | x_t) for such data
        small, large = diffusion.posterior_log_variance[t], diffusion.betas[t].log()
        fraction = (variance.log() - small) / (large - small).clamp(min=1e-9)
        return torch.cat([x_0, (2 * fraction[:, None] - 1).expand_as(x_0)], dim=1)

    def x_scale(alpha, sigma):
        return (alpha[:, 0] ** 2 * STD**2 + sigma[:, 0] ** 2).sqrt()

    return model


def perfect_denoiser(schedule: str, timesteps: int = 1000, **options):
    diffusion = GaussianDiffusion(schedule, timesteps, prediction="x_0", clip=False, **options)
    return diffusion.denoiser(perfect(diffusion))


def spread_data(count: int) -> torch.Tensor:
    """Points of N(MEAN, STD^2) with the mean log density of the distribution."""
    quantiles = (torch.arange(count) + 0.5) / count
    points = MEAN + STD * torch.special.ndtri(quantiles)
    torch.manual_seed(0)
    return torch.stack([points, points[torch.randperm(count)]], dim=1)  # (count, DIMS)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_ode_gives_the_density_of_each_point_and_the_entropy(schedule):
    denoise = perfect_denoiser(schedule)
    torch.manual_seed(0)
    x_0 = torch.cat([torch.tensor([[0.3, 0.3], [1.5, -0.4], [-0.2, 0.9]]), spread_data(2000)])
    bits = flow_likelihood(denoise, x_0, torch.randn_like, steps=200)
    assert denoise.calls == 2 * 200
    normal = torch.distributions.Normal(MEAN, STD)
    expected = -normal.log_prob(x_0).mean(dim=1) / math.log(2)
    torch.testing.assert_close(bits[:3], expected[:3], rtol=0, atol=0.02)
    assert bits[3:].mean().item() == pytest.approx(ENTROPY, abs=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_with_the_best_variance_is_the_entropy(schedule):
    """For Gaussian data each reverse step is Gaussian, so the bound is tight."""
    denoise = perfect_denoiser(schedule, TIMESTEPS, learn_sigma=True)
    torch.manual_seed(0)
    bits = variational_bound(denoise, spread_data(2000), torch.randn_like)
    error = bits.std().item() / 2000**0.5
    assert bits.mean().item() == pytest.approx(ENTROPY, abs=3 * error + 0.005)
    assert denoise.calls == TIMESTEPS


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_with_a_fixed_variance_is_above_the_entropy(schedule):
    torch.manual_seed(0)
    denoise = perfect_denoiser(schedule, TIMESTEPS)
    bits = variational_bound(denoise, spread_data(2000), torch.randn_like)
    # By up to 3 bits where the first steps are wide: flow halves the noise from t = 1 to 0.
    assert ENTROPY < bits.mean().item() < ENTROPY + 3


def test_random_pixels_need_more_than_eight_bits():
    """With a network that always predicts grey."""
    diffusion = GaussianDiffusion("cosine", TIMESTEPS, prediction="x_0")
    denoise = diffusion.denoiser(lambda x_t, t: torch.zeros_like(x_t))
    torch.manual_seed(0)
    x_0 = torch.randint(256, (4, 1, 8, 8)) / 127.5 - 1
    assert (variational_bound(denoise, x_0, torch.randn_like) > 8).all()


def test_evaluate_reports_bits_per_dimension(script, conditional):
    """With a learned variance and labels, and with neither."""
    assert script("train", *SMALL, "--max-steps", 2, "--timesteps", 100).code == 0
    for checkpoint in ("outputs/model_final.pt", conditional):
        flags = ["--metrics", "bpd", "--num-images", 3, "--ode-steps", 5]
        result = script("evaluate", "--checkpoint", checkpoint, *flags, "--output", "m.json")
        assert result.code == 0, result.err
        assert "variational bound: " in result.out
        assert "3 items (held out of training)" in result.out
        figures = json.loads(Path("m.json").read_text())
        assert 0 < figures["bpd_bound"] < 100
        assert 0 < figures["bpd_ode"] < 100
        assert figures["bpd_bound_standard_error"] > 0
        assert figures["bpd_num_images"] == 3


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        (["--metrics", "bpd", "--steps", 5], "--steps"),
        (["--metrics", "bpd", "--repeats", 2], "--repeats"),
        (["--metrics", "copies", "--ode-steps", 5], "--ode-steps"),
    ],
)
def test_flags_of_other_metrics_are_rejected(script, conditional, flags, flag):
    result = script("evaluate", "--checkpoint", conditional, *flags)
    assert result.code == 2
    assert f"{flag} has no effect on --metrics {flags[1]}" in result.err


def test_held_out_images_are_the_test_split(real_data):
    flags = ["--samples", "x.npz", "--dataset", "mnist", "--data-dir", str(real_data)]
    real = load_real_data(EVALUATE.parse(flags), None)
    assert real.origin == "test split"
    assert (len(real.held_out.items), len(real.train.items)) == (10_000, 60_000)


def test_held_out_images_may_be_the_validation_set_of_the_run(real_data):
    request = EVALUATE.parse(["--checkpoint", "x.pt", "--split", "validation"])
    data = load_dataset("mnist", real_data, download=False)
    of_data = {"dataset": "mnist", "data_dir": str(real_data), "classes": data.classes}
    config = {
        "data": {**of_data, **shape_config((1, 28, 28))},
        "model": {},
        "train": {"validation": 500, "seed": 3},
    }
    real = load_real_data(request, {"config": config})
    trained_on, held_out = split(60_000, 500, 3)
    assert real.origin == "held out of training"
    assert torch.equal(real.held_out.items, data.items[held_out])
    assert torch.equal(real.train.items, data.items[trained_on])
    config["train"]["validation"] = 0
    with pytest.raises(ValueError, match="this run held nothing out"):
        load_real_data(request, {"config": config})


def test_the_ode_uses_each_timestep_but_pure_noise_at_most_once():
    denoise = perfect_denoiser("flow", 20)
    bits = flow_likelihood(denoise, spread_data(100), torch.randn_like, steps=50)
    assert bits.isfinite().all()
    assert denoise.calls == 2 * 18


def test_a_folder_with_different_classes_is_rejected(script, image_folder):
    flags = ["--dataset", "folder", "--image-size", 8, "--class-conditional", "--max-steps", 2]
    assert script("train", *SMALL, *flags, "--data-dir", image_folder, "--batch-size", 4).code == 0
    (image_folder / "cats").rename(image_folder / "lions")
    flags = ["--num-images", 2, "--data-dir", image_folder]
    result = script("evaluate", "--checkpoint", "outputs/model_final.pt", *flags)
    assert result.code == 2
    assert "other classes than the checkpoint was trained with" in result.err
