"""mini_diffusion agrees with the PyTorch code, its independent reference implementation."""

import ast
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from PIL import Image
from torch import nn

import export
import samplers
import schedules
from checkpoints.checkpoint import load_checkpoint, restore, save_checkpoint
from cli import process
from cli.export import EXPORT
from conditions import label_condition
from conftest import ROOT
from dataset.items import to_uint8
from dataset.own_files import is_own_picture
from diffusion import GaussianDiffusion
from mini_diffusion import (
    MLP,
    Attention,
    Conv2d,
    GroupNorm,
    LayerNorm,
    Linear,
    ModelFileError,
    NoiseScheduler,
    Sampler,
    ScheduleType,
    Tensor,
    UNet,
    demo,
    load_network,
    read_model,
    sample,
)
from mini_diffusion.layers import attend
from mini_diffusion.picture import grid, png, scatter
from mini_diffusion.scheduler import PREDICTIONS
from models import build_model
from models import unet as torch_unet
from objectives import PREDICTIONS as TORCH_PREDICTIONS
from schedules import CLEAN, Level
from utils import sides
from visuals.pictures import ImagePictures, square

T = 50
DEFAULTS = {"name": "unet", "image_size": 8, "image_channels": 1, "channels": 8}
POINTS = {"name": "mlp", "dim": 2, "channels": 16, "blocks": 2}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def randn(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def as_torch(x: Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.data))


def write_checkpoint(folder: Path, diffusion: dict | None = None, **model) -> Path:
    """Write a checkpoint with random weights."""
    config = {**DEFAULTS, **model} if "dim" not in model else model
    torch.manual_seed(0)
    network, weights = build_model(config), {}
    for which in ("model", "ema"):
        for p in network.parameters():  # the initial values are partly zero
            p.data += 0.1 * torch.randn_like(p)
        weights[which] = {name: w.clone() for name, w in network.state_dict().items()}
    name = "moons" if "dim" in config else "digits"
    data = {"dataset": name, "data_dir": "data", "count": 1}
    shape = ("image_size", "image_channels", "dim")
    data |= {key: config[key] for key in shape if key in config}
    data["classes"] = [str(i) for i in range(config.get("num_classes", 0))]
    process = {"timesteps": T, "learn_sigma": config.get("learn_sigma", False), **(diffusion or {})}
    train = {"label_dropout": 0.1, "total_steps": None}
    train |= {"batch_size": 8, "update_size": 8, "processes": 1}
    config = {"data": data, "model": config, "diffusion": process, "train": train}
    rest = {"step": 0, "skipped": 0, "seconds": 0.0, "optimizer": {}, "scaler": None}
    rest |= {"unlogged_loss": 0.0, "unlogged_updates": 0}
    path = folder / "checkpoint.pt"
    save_checkpoint(path, {"config": config, **weights, **rest})
    return path


def exported(checkpoint: Path, folder: Path, *arguments: str) -> Path:
    """Model file that export.py writes for a checkpoint."""
    path = folder / "model.npz"
    command = ["--checkpoint", str(checkpoint), "--to", "numpy", *arguments, str(path)]
    assert process.run(export.main, EXPORT.parse(command)) == 0
    return path


@pytest.fixture(scope="module")
def conditional_file(conditional, tmp_path_factory) -> Path:
    """Model file of a trained network with ten classes and a learned variance."""
    return exported(conditional, tmp_path_factory.mktemp("exported"))


# --- tensors -------------------------------------------------------------------------------------


def test_tensor_creation(rng):
    for make in (Tensor.zeros, Tensor.ones, Tensor.randn, Tensor.xavier, Tensor.kaiming):
        for x in (make(2, 3, 4, 5), make((2, 3, 4, 5))):
            assert x.shape == (2, 3, 4, 5)
            assert x.data.dtype == np.float32
    assert not Tensor.zeros(3).data.any()
    assert (Tensor.ones(3).data == 1).all()
    expected = randn(np.random.default_rng(3), 2, 3, 4, 5)
    assert_allclose(Tensor.randn(2, 3, 4, 5, rng=np.random.default_rng(3)).data, expected)
    assert Tensor.xavier(200, 100, rng=rng).std() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert Tensor.kaiming(64, 32, 3, 3, rng=rng).std() == pytest.approx((2 / 288) ** 0.5, rel=0.02)


@pytest.mark.parametrize("make", [Tensor.randn, Tensor.xavier, Tensor.kaiming])
def test_the_generator_is_the_last_positional_argument_or_a_keyword(make):
    def seeded():
        return np.random.default_rng(3)

    expected = make(64, 128, rng=seeded()).data
    for actual in (
        make(64, 128, seeded()),
        make((64, 128), seeded()),
        make([64, 128], rng=seeded()),
        make(64, 128, None, rng=seeded()),
    ):
        assert actual.shape == (64, 128)
        assert (actual.data == expected).all()
    assert (make(64, 128, None).data != expected).any()  # None: a random seed
    with pytest.raises(TypeError, match="generator is given twice"):
        make(64, 128, seeded(), rng=seeded())


def test_constants_take_no_generator(rng):
    for make in (Tensor.zeros, Tensor.ones):
        with pytest.raises(TypeError):
            make(64, 128, rng)


def test_arithmetic_matches_numpy_in_any_layout(rng):
    a, b = randn(rng, 2, 3, 4, 5), randn(rng, 2, 3, 4, 5) + 3
    x, y = Tensor(a), Tensor(b)
    for actual, expected in [
        (x + y, a + b),
        (x - y, a - b),
        (x * y, a * b),
        (x / y, a / b),
        (-x, -a),
        (2 + x * 3, 2 + a * 3),
        (1 - x, 1 - a),
        (1 / y, 1 / b),
        (a + y, a + b),
        (x * b[:, :, :1, :1], a * b[:, :, :1, :1]),
        (x.clip(-1, 1), a.clip(-1, 1)),
        (x.reshape(6, 20), a.reshape(6, 20)),
        (x[:, :2], a[:, :2]),
        (x.reshape(6, 20) @ y.reshape(20, 6), a.reshape(6, 20) @ b.reshape(20, 6)),
    ]:
        assert isinstance(actual, Tensor)
        assert actual.data.dtype == np.float32
        assert_allclose(actual.data, expected, rtol=1e-5, atol=1e-5)
    assert x.nhwc.flags.c_contiguous
    assert x.mean() == pytest.approx(a.mean(), abs=1e-6)
    assert "mean" in repr(x)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("relu", F.relu),
        ("sigmoid", torch.sigmoid),
        ("silu", F.silu),
        ("gelu", lambda x: F.gelu(x, approximate="tanh")),
    ],
)
def test_activations(name, truth):
    x = np.r_[np.linspace(-10, 10, 101), -1000, 1000].astype(np.float32)
    actual = getattr(Tensor(x), name)().data
    assert_allclose(actual, truth(torch.from_numpy(x)), rtol=1e-5, atol=1e-6)


# --- layers --------------------------------------------------------------------------------------


def same_weights(layer, module):
    """Give a layer and its PyTorch module the same random weights. Returns the module."""
    torch.manual_seed(0)
    parameters = dict(layer.parameters())
    assert parameters.keys() == dict(module.named_parameters()).keys()
    for name, p in module.named_parameters():
        nn.init.normal_(p, std=0.3)
        parameters[name].data = Tensor(p.detach().numpy()).data
    return module.requires_grad_(False)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (5, 1, 0), (2, 2, 1)]
)
def test_conv2d(rng, kernel, stride, padding):
    layer = Conv2d(3, 6, kernel, stride, padding, rng)
    module = same_weights(layer, nn.Conv2d(3, 6, kernel, stride, padding))
    for size in [(8, 8), (7, 10)]:
        x = Tensor(randn(rng, 5, 3, *size))
        assert_allclose(layer(x).data, module(as_torch(x)), rtol=1e-4, atol=1e-5)


def test_conv2d_in_chunks_of_images(rng, monkeypatch):
    monkeypatch.setattr("mini_diffusion.layers.BUFFER", 2 * 64 * 27)  # two of five images at a time
    test_conv2d(rng, 3, 1, 1)


def test_linear(rng):
    layer = Linear(6, 4, rng)
    module = same_weights(layer, nn.Linear(6, 4))
    for shape in [(5, 6), (2, 7, 6)]:
        x = Tensor(randn(rng, *shape))
        assert_allclose(layer(x).data, module(as_torch(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(rng, groups):
    layer = GroupNorm(groups, 6)
    module = same_weights(layer, nn.GroupNorm(groups, 6))
    noise = randn(rng, 3, 6, 4, 5)
    for x in (
        Tensor(3 * noise + 100),  # far from 0, where E[x^2] - E[x]^2 cancels
        Tensor(1e-3 * noise),  # variance below eps
    ):
        assert_allclose(layer(x).data, module(as_torch(x)), rtol=1e-3, atol=1e-4)


def test_group_norm_refuses_uneven_groups():
    with pytest.raises(ValueError, match=r"channels \(6\) must be divisible by groups \(4\)"):
        GroupNorm(4, 6)


def test_layer_norm(rng):
    layer = LayerNorm(12)
    module = same_weights(layer, nn.LayerNorm(12))
    noise = randn(rng, 5, 12)
    for x in (Tensor(3 * noise + 100), Tensor(1e-3 * noise)):
        assert_allclose(layer(x).data, module(as_torch(x)), rtol=1e-3, atol=1e-4)


def test_attention(rng):
    module = torch_unet.Attention(64)
    layer = Attention(64, module.heads, GroupNorm(module.norm.num_groups, 64), rng)
    same_weights(layer, module)
    x = Tensor(randn(rng, 2, 64, 4, 6))
    assert_allclose(layer(x).data, module(as_torch(x)), rtol=1e-4, atol=1e-4)


def test_the_softmax_does_not_overflow(rng):
    q, k, v = 40 * randn(rng, 3, 2, 5, 8)  # logits in the thousands
    actual = attend(q, k, v)
    expected = F.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)))
    assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


# --- the process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ScheduleType)
def test_schedules(kind):
    for timesteps in (T, 1000):
        scheduler = getattr(NoiseScheduler, kind.value)(timesteps)
        alpha, sigma = schedules.SCHEDULES[kind.value](timesteps)
        assert_allclose(scheduler.alpha, alpha, rtol=1e-10)
        assert_allclose(scheduler.sigma, sigma, rtol=1e-10)
        diffusion = GaussianDiffusion(kind.value, timesteps)
        assert_allclose(scheduler.betas, diffusion.betas, rtol=1e-5)
        assert_allclose(scheduler.alphas_cumprod, diffusion.alphas_cumprod, rtol=1e-5)


def test_schedules_refuse_too_few_timesteps():
    with pytest.raises(ValueError, match="at least 21 timesteps, got 20"):
        NoiseScheduler.linear(20)


def test_add_noise_is_q_sample(rng):
    scheduler, diffusion = NoiseScheduler.cosine(T), GaussianDiffusion("cosine", T)
    x_0, noise = Tensor(randn(rng, 3, 2, 4, 4)), Tensor(randn(rng, 3, 2, 4, 4))
    for t in (7, np.array([0, 20, T - 1])):
        expected = diffusion.q_sample(as_torch(x_0), torch.as_tensor(t).expand(3), as_torch(noise))
        assert_allclose(scheduler.add_noise(x_0, noise, t).data, expected, rtol=1e-5, atol=1e-6)
    assert_allclose(scheduler.add_noise(x_0, noise, -1).data, x_0.data)
    for t in (-2, T):
        with pytest.raises(ValueError, match=f"timestep must be between -1 and 49, got {t}"):
            scheduler.add_noise(x_0, noise, t)


def torch_step(sampler, diffusion, x_t, eps, t, prev, noise=None):
    """One step of a PyTorch sampler, for a network that predicts eps."""
    levels = [*diffusion.levels()[::-1][1:], CLEAN]  # by timestep, and -1
    cur, nxt = levels[t], levels[prev]

    def denoise(x: torch.Tensor, level: Level):
        return (x - level.sigma * eps) / level.alpha, eps

    (x,) = sampler(denoise, x_t, [cur, nxt], lambda x: noise)
    return x


@pytest.mark.parametrize("kind", ScheduleType)
def test_step_is_ddpm(rng, kind):
    scheduler, diffusion = NoiseScheduler.of_type(kind, T), GaussianDiffusion(kind.value, T)
    x_t, eps = Tensor(randn(rng, 2, 1, 4, 4)), Tensor(randn(rng, 2, 1, 4, 4))
    noise = torch.from_numpy(randn(np.random.default_rng(5), 2, 1, 4, 4))
    for t in (0, 1, 20, T - 1):
        actual = scheduler.step(x_t, eps, t, np.random.default_rng(5)).data
        args = (as_torch(x_t), as_torch(eps), t, t - 1, noise)
        expected = torch_step(samplers.ddpm, diffusion, *args)
        assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)

        alpha, sigma = scheduler.level(t)
        x_0 = (as_torch(x_t) - sigma * as_torch(eps)) / alpha
        mean, variance = diffusion.q_posterior(x_0, as_torch(x_t), torch.tensor([t]))
        assert_allclose(actual, mean + variance.sqrt() * noise, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ScheduleType)
def test_step_ddim_is_ddim(rng, kind):
    scheduler, diffusion = NoiseScheduler.of_type(kind, T), GaussianDiffusion(kind.value, T)
    x_t, eps = Tensor(randn(rng, 2, 1, 4, 4)), Tensor(randn(rng, 2, 1, 4, 4))
    for t, prev in [(0, -1), (T - 1, T - 2), (T - 1, 10), (30, -1)]:
        actual = scheduler.step_ddim(x_t, eps, t, prev).data
        expected = torch_step(samplers.ddim, diffusion, as_torch(x_t), as_torch(eps), t, prev)
        assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


PURE_NOISE = [name for name, f in schedules.SCHEDULES.items() if f(T)[0][-1] == 0]  # alpha = 0


def test_eps_is_refused_in_pure_noise():
    assert "flow" in PURE_NOISE
    x = Tensor.zeros(1, 1, 2, 2)
    for name in PURE_NOISE:
        scheduler = NoiseScheduler(*schedules.SCHEDULES[name](T))
        with pytest.raises(ValueError, match="eps does not determine x_0 at timestep 49"):
            scheduler.step(x, x, T - 1)


def test_invalid_schedulers_are_refused():
    with pytest.raises(ValueError, match="unknown prediction 'x'; choose one of eps, x_0, v"):
        NoiseScheduler([0.9], [0.1], prediction="x")
    with pytest.raises(ValueError, match="non-empty arrays of the same shape"):
        NoiseScheduler([0.9, 0.5], [0.1])


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [
        (prediction, schedule)
        for prediction in TORCH_PREDICTIONS
        for schedule in schedules.SCHEDULES
        if not (prediction == "eps" and schedule in PURE_NOISE)
    ],
)
def test_every_prediction_with_every_schedule(rng, prediction, schedule):
    x_t, out = Tensor(randn(rng, 2, 1, 2, 2)), Tensor(randn(rng, 2, 1, 2, 2))
    for clip, sigma_data in product([True, False], [1.0, 0.4]):
        options = {"prediction": prediction, "clip": clip, "sigma_data": sigma_data}
        scheduler = NoiseScheduler(*schedules.SCHEDULES[schedule](T), **options)
        diffusion = GaussianDiffusion(schedule, T, **options)
        inputs = []

        def model(x: torch.Tensor, t: torch.Tensor, inputs=inputs) -> torch.Tensor:
            inputs.append(x)
            return as_torch(out)

        for level in (diffusion.levels()[0], diffusion.levels()[20], diffusion.levels()[-2]):
            expected = diffusion.denoiser(model)(as_torch(x_t), level)
            actual = scheduler.x_0_and_eps(out, x_t, level.t)
            for a, b in zip(actual, expected, strict=True):
                assert_allclose(a.data, b, rtol=1e-4, atol=1e-4, err_msg=str(options))
            assert_allclose(scheduler.scaled(x_t, level.t).data, inputs[-1], rtol=1e-5)


def test_the_predictions_have_the_same_names():
    assert PREDICTIONS.keys() == TORCH_PREDICTIONS.keys()


# --- the network ---------------------------------------------------------------------------------


def test_unet_with_random_weights(rng):
    model = UNet(1, 3, 16, rng)
    x = Tensor.randn(2, 1, 8, 12, rng=rng)
    out = model(x, 7)
    assert out.shape == (2, 3, 8, 12)
    assert out.data.dtype == np.float32
    assert np.isfinite(out.data).all()
    assert_allclose(model(x, np.array([7, 7])).data, out.data)
    assert np.abs(model(x, 500).data - out.data).max() > 1e-3
    assert model.parameter_count() == sum(w.data.size for _, w in model.parameters())
    same = UNet(1, 3, 16, np.random.default_rng(0))
    assert_allclose(same(x, 7).data, out.data)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"efficient": True},
        {"image_size": 28, "image_channels": 3, "channels": 40, "patch_size": 7},
        {"image_size": [16, 10], "multipliers": [1, 2, 2], "blocks": 2},
        {"image_size": [16, 10], "multipliers": [1, 2, 2], "blocks": 2, "efficient": True},
        {"patch_size": 1, "channels": 64, "attention_resolutions": [8, 4]},
        {"channels": 50, "multipliers": [1]},  # not divisible by 16 or 32
        {"channels": 1},
        {"num_classes": 3, "learn_sigma": True, "image_channels": 3, "dropout": 0.5},
    ],
)
def test_the_unet_matches_pytorch(rng, tmp_path, config):
    checkpoint = write_checkpoint(tmp_path, **config)
    model = UNet.load(exported(checkpoint, tmp_path))
    expected, _ = restore(load_checkpoint(checkpoint))
    assert model.parameter_count() == sum(p.numel() for p in expected.parameters())
    t = np.array([0, 400, 999])
    x = randn(rng, 3, expected.image_channels, *sides(expected.image_size))
    for y in [None] if model.num_classes is None else [None, [0, 2, model.num_classes]]:
        actual = model(Tensor(x), t, y).data
        labels = label_condition(None if y is None else torch.tensor(y))
        truth = expected(torch.from_numpy(x), torch.from_numpy(t), labels)
        assert truth.std() > 0.01
        assert_allclose(actual, truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [{}, {"num_classes": 3, "learn_sigma": True}])
def test_the_mlp_matches_pytorch(rng, tmp_path, config):
    config = POINTS | config
    checkpoint = write_checkpoint(tmp_path, {"clip": False}, **config)
    file = exported(checkpoint, tmp_path)
    model = load_network(file)
    assert isinstance(model, MLP)
    expected, _ = restore(load_checkpoint(checkpoint))
    assert model.parameter_count() == sum(p.numel() for p in expected.parameters())
    t, x = np.array([0, 20, T - 1]), randn(rng, 3, 2)
    for y in [None] if model.num_classes is None else [None, [0, 2, model.num_classes]]:
        labels = label_condition(None if y is None else torch.tensor(y))
        truth = expected(torch.from_numpy(x), torch.from_numpy(t), labels)
        assert truth.std() > 0.01
        assert_allclose(model(Tensor(x), t, y).data, truth, rtol=0, atol=1e-4)
    with pytest.raises(ModelFileError, match="the network mlp, not unet; use load_network"):
        UNet.load(file)


def test_the_unet_refuses_invalid_arguments(rng):
    model = UNet(1, 1, 8, rng, patch_size=4)
    with pytest.raises(ValueError, match="multiples of 4, got 10x16"):
        model(Tensor.zeros(1, 1, 10, 16), 0)
    with pytest.raises(ValueError, match="this network has no classes"):
        model(Tensor.zeros(1, 1, 8, 8), 0, 1)


# --- sampling ------------------------------------------------------------------------------------


def test_samplers_report_each_step(rng):
    steps = []

    def model(x, t):
        return 0 * x

    sampler = Sampler.ddim(NoiseScheduler.cosine(T), 5)
    x = sampler.sample(model, (2, 1, 4, 4), rng, lambda *step: steps.append(step))
    assert [step[:3] for step in steps] == [
        (1, 5, 49), (2, 5, 39), (3, 5, 29), (4, 5, 19), (5, 5, 9)
    ]  # fmt: skip
    assert_allclose(steps[-1][3].data, x.data)
    assert len(Sampler.ddpm(NoiseScheduler.cosine(T)).timesteps) == T
    for steps in (0, T + 1):
        with pytest.raises(ValueError, match=f"between 1 and {T}, got {steps}"):
            Sampler.ddpm(NoiseScheduler.cosine(T), steps)
    with pytest.raises(ValueError, match="guidance_scale=2 needs null_model"):
        sampler.sample(model, (2, 1, 4, 4), rng, guidance_scale=2)


def test_the_timesteps_are_those_of_trailing_spacing():
    diffusion, scheduler = GaussianDiffusion("cosine", T), NoiseScheduler.cosine(T)
    for steps in (1, 2, 7, 33, 49, T):
        timesteps = Sampler.ddim(scheduler, steps).timesteps
        assert [*timesteps, -1] == [level.t for level in diffusion.levels(steps)]


def torch_trajectory(model, diffusion, sampler: str, steps: int, count: int, y=None, **guidance):
    """x after each step of a PyTorch sampler, with noise from NumPy's seed 0."""
    rng = np.random.default_rng(0)
    levels = diffusion.levels(steps)

    def noise_like(x):
        return torch.from_numpy(randn(rng, *x.shape))

    shape = (count, 2)
    if model.kind == "images":
        shape = (count, model.image_channels, *sides(model.image_size))
    x = levels[0].scale * noise_like(torch.empty(shape))
    labels = label_condition(None if y is None else torch.tensor(y))
    denoise = diffusion.denoiser(model, labels, **guidance)
    return [*samplers.SAMPLERS[sampler](denoise, x, levels, noise_like)]


def assert_same_trajectory(checkpoint, file, steps=5, y=None, raw=False, scale=1.0):
    """Compare each step of DDIM and DDPM sampling with PyTorch, from the same noise."""
    model, scheduler = load_network(file), NoiseScheduler.load(file)
    reference = restore(load_checkpoint(checkpoint), raw=raw)
    config = read_model(file).config
    shape = (3, *sample.shape_of_sample(config))
    for name in ("ddim", "ddpm"):
        trajectory = []
        getattr(Sampler, name)(scheduler, steps).sample(
            lambda x, t: model(x, t, y),
            shape,
            np.random.default_rng(0),
            lambda step, total, t, x, trajectory=trajectory: trajectory.append(x),
            null_model=model,
            guidance_scale=scale,
        )
        expected = torch_trajectory(*reference, name, steps, 3, y, guidance_scale=scale)
        for a, b in zip(trajectory, expected, strict=True):
            assert_allclose(a.data, b, rtol=1e-3, atol=1e-3, err_msg=name)
        assert np.abs(trajectory[-1].data).max() > 0.5


def test_a_trained_model_samples_as_in_pytorch(conditional, conditional_file):
    assert_same_trajectory(conditional, conditional_file, steps=10, y=[1, 9, 10])


def test_raw_weights_sample_as_in_pytorch(conditional, conditional_file, tmp_path):
    file = exported(conditional, tmp_path, "--raw")
    assert_same_trajectory(conditional, file, y=[1, 9, 10], raw=True)
    weights, averages = read_model(file).weights, read_model(conditional_file).weights
    assert (weights["stem.weight"] != averages["stem.weight"]).any()


@pytest.mark.parametrize(
    "process",
    [
        {"schedule": "flow", "prediction": "flow"},
        {"schedule": "edm", "prediction": "edm", "sigma_data": 0.5},
        {"schedule": "cosine", "prediction": "v", "zero_terminal_snr": True},
        {"schedule": "linear", "prediction": "eps"},
        {"schedule": "sigmoid", "prediction": "x_0", "clip": False},
    ],
)
def test_every_process_samples_as_in_pytorch(tmp_path, process):
    checkpoint = write_checkpoint(tmp_path, process)
    assert_same_trajectory(checkpoint, exported(checkpoint, tmp_path))


GUIDED = [
    ({"schedule": "cosine", "prediction": "flow", "clip_loss": True}, 2.0),
    ({"schedule": "linear", "prediction": "eps"}, 1.5),
    ({"schedule": "edm", "prediction": "edm", "sigma_data": 0.5, "clip_loss": True}, 3.0),
    ({"schedule": "flow", "prediction": "v", "clip": False}, 0.0),
]


@pytest.mark.parametrize(("process", "scale"), GUIDED)
def test_guidance_is_that_of_pytorch(tmp_path, process, scale):
    checkpoint = write_checkpoint(tmp_path, process, num_classes=3)
    file = exported(checkpoint, tmp_path)
    assert_same_trajectory(checkpoint, file, y=[0, 2, 1], scale=scale)


def test_points_are_sampled_as_in_pytorch(draw, tmp_path):
    process = {"schedule": "flow", "prediction": "flow", "clip": False}
    checkpoint = write_checkpoint(tmp_path, process, num_classes=2, **POINTS)
    file = exported(checkpoint, tmp_path)
    assert_same_trajectory(checkpoint, file, y=[0, 1, 1], scale=1.5)
    flags = ["--steps", 5, "--guidance-scale", 1.5, "--num-images", 7]
    done = draw(file, *flags, "--output", "points.npz")
    assert (done.code, done.err) == (0, "")
    assert "ddim, 5 steps, guidance 1.5" in done.out
    assert "7 points in" in done.out
    reference, labels = restore(load_checkpoint(checkpoint)), np.arange(7) % 2
    expected = torch_trajectory(*reference, "ddim", 5, 7, labels, guidance_scale=1.5)[-1]
    assert_allclose(pixels_of("points.npz"), expected, rtol=1e-3, atol=1e-3)
    assert draw(file, *flags, "--output", "points.png").code == 0
    with Image.open("points.png") as picture:
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) == 2


def test_rectangular_images_are_sampled_as_in_pytorch(tmp_path):
    checkpoint = write_checkpoint(tmp_path, image_size=[8, 12], attention_resolutions=[12])
    assert_same_trajectory(checkpoint, exported(checkpoint, tmp_path))


# --- export.py -----------------------------------------------------------------------------------


def test_the_contents_of_a_model_file(conditional_file):
    with np.load(conditional_file, allow_pickle=False) as arrays:
        assert arrays["alpha"].dtype == arrays["sigma"].dtype == np.float64
        alpha, sigma = schedules.cosine(100)
        assert_allclose(arrays["alpha"], alpha, rtol=1e-15)
        assert_allclose(arrays["sigma"], sigma, rtol=1e-15)
    config = read_model(conditional_file).config
    assert config["dataset"] == "digits"
    assert config["classes"] == [str(i) for i in range(10)]
    assert (config["prediction"], config["clip"], config["sigma_data"]) == ("flow", True, 1.0)
    assert config["model"]["num_classes"] == 10


def test_export_by_default(script, conditional, tmp_path):
    done = script("export", "--checkpoint", conditional)
    assert done.code == 0
    assert "digits, weights: moving average" in done.out
    assert (tmp_path / "outputs" / "model.npz").is_file()


def test_export_refuses(script, tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    done = script("export", "--checkpoint", checkpoint, "--to", "numpy", "model.pt")
    assert done.code == 2
    assert "model.pt" in done.err
    assert ".npz" in done.err
    done = script("export", "--checkpoint", checkpoint, "--to", "onnx", "model.npz")
    assert done.code == 2
    done = script("export", "--checkpoint", tmp_path / "none.pt", "--to", "numpy", "model.npz")
    assert done.code == 1
    assert "none.pt" in done.err

    checkpoint = write_checkpoint(tmp_path, name="cnn")
    done = script("export", "--checkpoint", checkpoint, "--to", "numpy", "model.npz")
    assert done.code == 2
    assert "cnn" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "model.npz").exists()


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """Run Python in an environment with NumPy and mini_diffusion, and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for package in [ROOT / "mini_diffusion", *Path(np.__file__).parents[1].glob("numpy*")]:
        (packages / package.name).symlink_to(package)

    def call(*arguments, cwd=folder):
        command = [folder / "bin" / "python", "-I", *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return call


def test_samples_without_torch(without_torch, conditional, conditional_file, tmp_path):
    done = without_torch("-c", "import torch")
    assert "No module named 'torch'" in done.err

    arguments = [conditional_file, "--num-images", 5, "--steps=10"]
    done = without_torch("-m", "mini_diffusion.sample", *arguments, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "digits" in done.out
    assert "ddim, 10 steps" in done.out
    assert "5 images in" in done.out
    with Image.open(tmp_path / "outputs" / "mini_samples.png") as picture:
        pixels = np.asarray(picture)
    reference = restore(load_checkpoint(conditional))
    images = to_uint8(torch_trajectory(*reference, "ddim", 10, 5, range(5))[-1])
    expected = ImagePictures().grid(images, square(5))
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_the_demo_prints_correct_numbers_without_torch(without_torch):
    done = without_torch("-m", "mini_diffusion.demo")
    assert (done.code, done.err) == (0, "")
    assert f"{UNet(1, 1, 64).parameter_count():,} parameters" in done.out
    last_lines = [line for line in done.out.splitlines() if "step   50 of   50" in line]
    last_lines += [line for line in done.out.splitlines() if "step 1000 of 1000" in line]
    assert len(last_lines) == 2
    for line in last_lines:
        mean, std = line.split("mean ")[1].split(", std ")
        assert float(mean) == pytest.approx(demo.MEAN, abs=0.02)
        assert float(std) == pytest.approx(demo.STD, abs=0.02)


def test_it_imports_only_numpy_and_the_standard_library():
    allowed = {"numpy", "mini_diffusion", *sys.stdlib_module_names}
    for path in (ROOT / "mini_diffusion").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            modules = [node.module] if isinstance(node, ast.ImportFrom) else names
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert {module.partition(".")[0] for module in modules} <= allowed


@pytest.fixture
def draw(capsys, tmp_path, monkeypatch):
    """Run mini_diffusion.sample in this process."""

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capsys.readouterr()
        try:
            code = sample.main([*map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return call


def pixels_of(path) -> np.ndarray:
    with np.load(path) as file:
        return file["arr_0"]


def test_a_model_file_is_read_once(draw, conditional_file, monkeypatch):
    read, paths = np.load, []
    monkeypatch.setattr(
        np, "load", lambda path, **options: paths.append(path) or read(path, **options)
    )
    draw(conditional_file, "--num-images", 1, "--steps", 1, "--output", "x.png")
    assert len(paths) == 1


def test_seeds_classes_and_samplers(draw, conditional_file):
    def images(*arguments, count=4):
        flags = ["--num_images", count, "--steps", "4", "--output", "out.npz"]
        done = draw(conditional_file, *flags, *arguments)
        assert (done.code, done.err) == (0, "")
        return pixels_of("out.npz")

    first = images()
    assert first.shape == (4, 8, 8, 1)
    assert first.dtype == np.uint8
    assert (images("--seed", 0, "--sampler", "ddim") == first).all()
    assert (images(count=70)[:4] == first).all()  # two batches
    for changed in (["--seed", 1], ["--sampler", "ddpm"], ["--class-id", 3]):
        assert (images(*changed) != first).any()
    assert (images("--class-id", 3)[3] == first[3]).all()  # image i has class i


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory) -> Path:
    """Folder with model.npz and with files that are not valid model files."""
    folder = tmp_path_factory.mktemp("bad")
    whole = exported(write_checkpoint(folder), folder).read_bytes()
    middle = len(whole) // 2
    (folder / "text").write_text("some text")
    (folder / "empty").touch()
    (folder / "cut.npz").write_bytes(whole[:middle])
    flipped = bytes([whole[middle] ^ 255])
    (folder / "flipped.npz").write_bytes(whole[:middle] + flipped + whole[middle + 1 :])
    np.savez(folder / "other.npz", np.zeros(3))
    np.savez(folder / "pickle.npz", config=np.array({"format": 1}, dtype=object))
    np.save(folder / "array.npy", np.zeros(3))
    with np.load(folder / "model.npz") as loaded:
        arrays = dict(loaded)
    text = str(arrays["config"])
    for name, old, new in [
        ("config", text, "{}"),
        ("newer", '"format": 1', '"format": 2'),
        ("mlp", '"network": "unet"', '"network": "mlp"'),
        ("narrow", '"model_channels": 8', '"model_channels": 4'),
        ("deeper", '"blocks": 1', '"blocks": 2'),
        ("unknown", '"prediction": "eps"', '"prediction": "x"'),
    ]:
        assert old in text
        config = np.array(text.replace(old, new))
        np.savez(folder / f"{name}.npz", **arrays | {"config": config})
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["model.npz", "--steps", "51"], 2, "--steps must be at most 50 for this model, got 51"),
        (["model.npz", "--steps", "0"], 2, "--steps: must be an integer of at least 1, got '0'"),
        (
            ["model.npz", "--num-images", "x"],
            2,
            "--num-images: must be an integer of at least 1, got 'x'",
        ),
        (["model.npz", "--seed", "-1"], 2, "--seed: must be an integer of at least 0, got '-1'"),
        (["model.npz", "--sampler", "heun"], 2, "invalid choice: 'heun'"),
        (["model.npz", "--class-id", "1"], 2, "--class-id is not supported"),
        (["model.npz", "--guidance-scale", "2"], 2, "--guidance-scale is not supported"),
        (["model.npz", "--guidance-scale", "inf"], 2, "must be a number, got 'inf'"),
        (["mlp.npz"], 1, "mlp.npz contains the network 'mlp', but not the shape of its data"),
        (["model.npz", "--output", "a.jpg"], 2, "--output must end in .png or .npz"),
        (["model.npz", "--output", "text/a.png"], 1, "text"),
        (["model.npz", "--guidance", "2"], 2, "unrecognized arguments: --guidance 2"),
        ([], 2, "the following arguments are required: MODEL"),
        (["none.npz"], 1, "model file none.npz not found"),
        (["."], 1, "model file . not found"),
        (["text"], 1, "text is damaged or not a model file"),
        (["empty"], 1, "empty is damaged or not a model file"),
        (["other.npz"], 1, "other.npz is damaged or not a model file"),
        (["pickle.npz"], 1, "pickle.npz is damaged or not a model file"),
        (["array.npy"], 1, "array.npy is damaged or not a model file"),
        (["config.npz"], 1, "config.npz is not a model file"),
        (["newer.npz"], 1, "newer.npz has format 2; this version of mini_diffusion reads 1"),
        (["cut.npz"], 1, "cut.npz is damaged or not a model file"),
        (["flipped.npz"], 1, "flipped.npz is damaged or not a model file"),
        (["narrow.npz"], 1, "narrow.npz is inconsistent: "),
        (["deeper.npz"], 1, "deeper.npz is inconsistent: weights missing or unexpected: down."),
        (["unknown.npz"], 1, "unknown.npz is inconsistent: unknown prediction 'x'"),
    ],
)
def test_errors_are_one_line(draw, bad_files, monkeypatch, arguments, code, message):
    monkeypatch.chdir(bad_files)
    done = draw(*arguments)
    assert done.code == code
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.err.startswith("python -m mini_diffusion.sample: error: ")
    assert not (bad_files / "outputs").exists()


def test_unknown_classes_are_refused(draw, conditional_file):
    for text in ("10", "-1", "cat"):
        done = draw(conditional_file, f"--class-id={text}")
        assert done.code == 2
        assert f"error: --class-id {text}: the classes are 0 0, 1 1, 2 2" in done.err


def test_classes_are_found_by_name_or_else_by_index():
    assert [sample.class_index(t, ["1", "2", "10"]) for t in ("1", "2", "10", "0")] == [0, 1, 2, 0]
    assert [sample.class_index(t, ["Cat", "cat", "Dog"]) for t in ("cat", "Cat", "DOG", "2")] == [
        1,
        0,
        2,
        2,
    ]
    with pytest.raises(ValueError, match="CAT: the classes are 0 Cat, 1 cat"):
        sample.class_index("CAT", ["Cat", "cat"])


def test_invalid_model_files_raise_the_documented_errors(tmp_path):
    for load in (UNet.load, NoiseScheduler.load, read_model):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "none.npz")
        (tmp_path / "text.npz").write_text("text")
        with pytest.raises(ModelFileError):
            load(tmp_path / "text.npz")


def test_the_picture_of_points():
    picture = scatter(np.array([[1.0, 0.0], [0.0, 0.5], [-0.2, -1.0]]))
    inked = np.argwhere((picture != 255).any(axis=2))  # rows and columns, from the top
    assert len(inked) == 27  # three points of 3 x 3 pixels
    centres = inked.reshape(3, 9, 2).mean(axis=1) / len(picture)
    assert_allclose(centres, [[0.25, 0.5], [0.5, 1.0], [1.0, 0.4]], atol=0.02)


@pytest.mark.parametrize(
    ("size", "channels", "count"),
    [(8, 1, 1), (8, 3, 9), (28, 3, 2), (28, 1, 5), (64, 1, 9), (64, 3, 5)],
)
def test_pictures(rng, tmp_path, size, channels, count):
    images = rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    picture = grid(images)
    expected = ImagePictures().grid(torch.from_numpy(images).permute(0, 3, 1, 2), square(count))
    assert (picture == expected).all()
    (tmp_path / "picture.png").write_bytes(png(picture))
    with Image.open(tmp_path / "picture.png") as decoded:
        assert (np.asarray(decoded) == picture).all()
    assert is_own_picture(tmp_path / "picture.png")
