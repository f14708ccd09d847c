"""Training networks and data of one's own."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from checkpoints.checkpoint import CheckpointError, load_checkpoint
from conditions import Condition
from dataset.registry import load_dataset
from sample import sample
from training.fit import fit

TINY = {"batch_size": 32, "validation": 8, "device": "cpu", "precision": "fp32"}
TINY |= {"sample_interval": 0, "save_interval": 0}


class Network(nn.Module):
    """Two convolutions that see the time as a channel, and the label as a bias."""

    def __init__(self, channels: int, classes: int = 0):
        super().__init__()
        self.stem = nn.Conv2d(channels + 1, 8, 3, padding=1)
        self.label = nn.Embedding(classes + 1, 8) if classes else None
        self.head = nn.Conv2d(8, channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        time = (t / 1000).view(-1, 1, 1, 1).expand(-1, 1, *x_t.shape[2:])
        h = self.stem(torch.cat([x_t, time], dim=1))
        if self.label is not None:
            label = torch.full_like(t, -1) if condition is None else condition.label
            h = h + self.label(label + 1)[:, :, None, None]
        return self.head(h.relu())


class PointNetwork(nn.Module):
    """One linear layer."""

    def __init__(self, dim: int):
        super().__init__()
        self.layer = nn.Linear(dim + 1, dim)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.layer(torch.cat([x_t, t[:, None] / 1000], dim=1))


def network(*arguments) -> Network:
    torch.manual_seed(0)
    return Network(*arguments)


def test_labelled_uint8_images_train_a_conditional_network(tmp_path):
    digits = load_dataset("digits")
    model = network(1, 10)
    run = fit(model, digits.items, digits.labels, folder=tmp_path, max_steps=30, **TINY)
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    assert losses[-1] < losses[0]
    assert run.checkpoint == tmp_path / "model_final.pt"
    assert (tmp_path / "samples").is_dir()
    flags = {"num_images": 4, "steps": 2, "seed": 1, "device": "cpu"}
    threes = sample(run.checkpoint, model=model, class_id=3, guidance_scale=2, **flags)
    sevens = sample(run.checkpoint, model=model, class_id=7, guidance_scale=2, **flags)
    assert threes.shape == (4, 8, 8, 1)
    assert threes.dtype == np.uint8
    assert (threes != sevens).any()
    assert model.stem.weight.requires_grad  # sampling has left the network as it was


def test_the_same_call_resumes_to_the_bits_of_an_uninterrupted_run(tmp_path):
    items = load_dataset("digits").items
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = {**TINY, "max_steps": 12, "save_every_steps": 5}
    fit(network(1), items, folder=whole, **flags)
    fit(network(1), items, folder=parts, **flags)
    (parts / "model_final.pt").unlink()
    (parts / "checkpoints" / "model_step_00000010.pt").unlink()  # back to step 5
    run = fit(network(1), items, folder=parts)  # with the flags that the run was started with
    ours, theirs = load_checkpoint(run.checkpoint), load_checkpoint(whole / "model_final.pt")
    assert ours["step"] == theirs["step"] == 12
    for part in ("model", "ema"):
        for name, tensor in theirs[part].items():
            assert torch.equal(ours[part][name], tensor), (part, name)
    before = run.checkpoint.stat().st_mtime_ns
    again = fit(network(1), items, folder=parts)  # nothing is left to do
    assert again.checkpoint.stat().st_mtime_ns == before
    assert again.metrics == run.metrics


def test_floats_of_any_shape_are_sampled_in_their_own_range(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = 10 * torch.rand(60, 2, 6, 10, generator=generator) + 5
    model = network(2)
    run = fit(model, data, folder=tmp_path, value_range=(5, 15), max_steps=20, **TINY)
    items = sample(run.checkpoint, model=model, num_images=3, steps=3, device="cpu")
    assert items.shape == (3, 6, 10, 2)
    assert items.dtype == np.float32
    assert items.min() >= 5
    assert items.max() <= 15
    assert 8 < items.mean() < 12


def test_points_of_any_dimension(tmp_path):
    data = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    model = PointNetwork(3)
    run = fit(model, data, folder=tmp_path, max_steps=5, **TINY)
    points = sample(run.checkpoint, model=model, num_images=7, steps=2, device="cpu")
    assert points.shape == (7, 3)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (torch.zeros(4, 8, 8), {}, r"images \(N, C, H, W\) or points \(N, D\)"),
        (torch.zeros(4, 1, 8, 8), {}, "value_range"),
        (torch.full((4, 1, 8, 8), 2.0), {"value_range": (0, 1)}, "exceeds value_range"),
        (torch.full((4, 3), torch.nan), {}, "not finite"),
        (torch.zeros(4, 1, 8, 8).long(), {}, "images of torch.int64 need value_range"),
        (torch.zeros(4, 3), {"labels": torch.tensor([0, 1])}, r"labels must have the shape \(4,\)"),
        (torch.zeros(4, 3), {"channels": 8}, "no argument channels"),
        (torch.zeros(4, 3), {"preset": "fast"}, "no argument preset"),
        (torch.zeros(4, 3), {"stepps": 8}, "unknown flag stepps"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path, data, options, message
):
    with pytest.raises(ValueError, match=message):
        fit(PointNetwork(3), data, folder=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_with_other_data_or_another_network(tmp_path):
    items = load_dataset("digits").items
    fit(network(1), items, folder=tmp_path, max_steps=2, **TINY)
    with pytest.raises(CheckpointError, match=r"data\.count"):
        fit(network(1), items[:100], folder=tmp_path, max_steps=4, **TINY)
    with pytest.raises(CheckpointError, match=r"model\.class"):
        fit(PointNetwork(3), items, folder=tmp_path, max_steps=4, **TINY)


def test_a_checkpoint_of_ones_own_network_asks_for_it(script, tmp_path):
    run = fit(network(1), load_dataset("digits").items, folder=tmp_path, max_steps=2, **TINY)
    result = script("sample", "--checkpoint", run.checkpoint)
    assert result.code == 2
    assert "Network" in result.err
    result = script("train", "--resume", "--output-dir", run.folder)
    assert result.code == 1
    assert "resume it with fit()" in result.err
