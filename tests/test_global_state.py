"""What train(), fit() and sample() find in a notebook, and what they leave behind."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from checkpoints.checkpoint import load_checkpoint
from diffusion import DDPM
from models.mlp import MLP
from sample import sample
from train import train
from training import preview
from training.fit import fit

QUICK = {"max_steps": 2, "warmup_steps": 1, "sample_interval": 0}
POINTS = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=torch.float32)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x, t):
        return self.layer(x)


@pytest.fixture(scope="module", autouse=True)
def small_grids():
    with mock.patch.multiple(preview, GRID_STEPS=2, NUM_POINTS=50):
        yield


def all_three(folder, model: nn.Module | None = None) -> list[np.ndarray]:
    """Figures that train(), fit() and sample() compute."""
    flags = {**QUICK, "device": "cpu", "precision": "fp32"}
    trained = train(dataset="moons", channels=8, blocks=1, output_dir=folder / "a", **flags)
    fitted = fit(model or Network(), POINTS, folder=folder / "b", **flags)
    losses = [run.metrics[0]["loss"] for run in (trained, fitted)]
    return [np.array(losses), sample(trained.checkpoint, num_images=4, steps=2)]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return all_three(tmp_path_factory.mktemp("usual"))


@pytest.fixture
def restored():
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(deterministic)


def assert_usual(found, usual) -> None:
    for ours, theirs in zip(found, usual, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_another_default_type(tmp_path, usual, restored, dtype):
    torch.set_default_dtype(dtype)
    assert_usual(all_three(tmp_path), usual)
    assert torch.get_default_dtype() == dtype


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(tmp_path, usual, context):
    with context():
        flags = {**QUICK, "device": "cpu", "precision": "fp32", "channels": 8, "blocks": 1}
        trained = train(dataset="moons", output_dir=tmp_path, **flags)
        assert_usual(
            [
                np.array(trained.metrics[0]["loss"]),
                sample(trained.checkpoint, num_images=4, steps=2),
            ],
            [usual[0][0], usual[1]],
        )
        assert not torch.is_grad_enabled()


def test_in_autocast(tmp_path, usual):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_usual(all_three(tmp_path), usual)
        assert torch.is_autocast_enabled("cpu")


def test_another_default_device(tmp_path, usual, restored):
    flags = {**QUICK, "device": "cpu", "precision": "fp32", "channels": 8, "blocks": 1}
    torch.set_default_device("meta")  # as "cuda" elsewhere
    trained = train(dataset="moons", output_dir=tmp_path, **flags)
    assert trained.metrics[0]["loss"] == usual[0][0]
    assert torch.get_default_device().type == "meta"
    torch.set_default_device(None)
    with torch.device("meta"):
        assert (sample(trained.checkpoint, num_images=4, steps=2) == usual[1]).all()


def test_random_state_and_algorithms_stay_the_callers(tmp_path, usual, restored):
    torch.use_deterministic_algorithms(True)
    model, before = Network(), torch.get_rng_state()
    all_three(tmp_path, model)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    train(dataset="moons", output_dir=tmp_path / "c", deterministic=True, **QUICK)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_ddpm_can_be_pickled_and_copied():
    ddpm = DDPM(MLP(2), schedule="edm", prediction="edm", loss_weight="min-snr", sigma_data=0.5)
    again = pickle.loads(pickle.dumps(ddpm))
    assert torch.equal(
        again.sample(2, (2,), steps=2, seed=0), ddpm.sample(2, (2,), steps=2, seed=0)
    )


def test_a_ddpm_says_that_bytes_are_no_data():
    with pytest.raises(ValueError, match="to_unit"):
        DDPM(MLP(2))(torch.zeros(3, 2, dtype=torch.uint8))


def test_a_ddpm_warns_once_of_data_that_samples_cannot_reach():
    ddpm = DDPM(MLP(2))
    with pytest.warns(UserWarning, match=r"in 255 to 255, and samples are clipped to \[-1, 1\]"):
        ddpm(torch.full((3, 2), 255.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ddpm(torch.full((3, 2), 255.0))
        DDPM(MLP(2), clip=False)(torch.full((3, 2), 255.0))
        DDPM(MLP(2))(torch.ones(3, 2))


def test_runs_in_two_threads_do_not_mix_their_random_numbers(tmp_path):
    """Nor does a sampler that ends while a run goes on."""

    def run(folder, seed: int) -> list[np.ndarray]:
        flags = {"max_steps": 15, "sample_interval": 0, "device": "cpu", "precision": "fp32"}
        flags |= {"dropout": 0.1, "channels": 8, "blocks": 1, "seed": seed}
        trained = train(dataset="moons", output_dir=folder / str(seed), **flags)
        weights = load_checkpoint(trained.checkpoint)["model"].values()
        return [weight.numpy() for weight in weights] + [
            sample(trained.checkpoint, num_images=2, steps=2) for _ in range(5)
        ]

    alone = [run(tmp_path / "alone", seed) for seed in (1, 2)]
    torch.set_default_dtype(torch.float64)
    state = torch.get_rng_state()
    try:
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(run, [tmp_path / "both"] * 2, (1, 2)))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert (torch.get_rng_state() == state).all()
    for one, other in zip(alone, both, strict=True):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)
