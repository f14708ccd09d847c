"""The batches that the diffusion objective draws."""

import pytest
import torch

from conditions import Condition
from diffusion import GaussianDiffusion
from training.objective import DiffusionObjective

CPU = torch.device("cpu")


def objective(seed: int = 0, flip: bool = False, label_dropout: float = 0.0) -> DiffusionObjective:
    train = {"seed": seed, "timestep_sampling": "uniform", "noise_assignment": "independent"}
    config = {"train": {**train, "label_dropout": label_dropout}, "data": {"flip": flip}}
    return DiffusionObjective(GaussianDiffusion(prediction="flow"), config, CPU)


def left_bright(count: int) -> torch.Tensor:
    """uint8 images (count, 1, 2, 2), bright at the left."""
    return torch.tensor([255, 0], dtype=torch.uint8).expand(count, 1, 2, 2).contiguous()


def test_about_half_of_the_images_are_mirrored():
    left = objective(flip=True).batch(left_bright(400), None, step=0).x_0[:, 0, 0, 0]
    assert 150 < (left == 1).sum() < 250
    assert (left.abs() == 1).all()
    assert (objective().batch(left_bright(40), None, step=0).x_0[:, 0, 0, 0] == 1).all()


def test_draws_depend_on_the_seed_and_the_step():
    items = left_bright(8)
    first = objective().batch(items, None, step=3)
    again = objective().batch(items, None, step=3)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.t, again.t)
    for other in (objective().batch(items, None, step=4), objective(1).batch(items, None, step=3)):
        assert not torch.equal(first.noise, other.noise)
        assert not torch.equal(first.t, other.t)


def test_dropped_labels_become_the_null_label():
    labels = torch.arange(200) % 10
    batch = objective(label_dropout=0.25).batch(left_bright(200), Condition(labels), step=0)
    dropped = batch.condition.label == -1
    assert 25 < dropped.sum() < 75
    assert torch.equal(batch.condition.label[~dropped], labels[~dropped])


def test_rows_of_a_batch_stay_together():
    batch = objective().batch(left_bright(6), Condition(torch.arange(6)), step=0)
    part = batch.rows(slice(2, 4))
    for whole, some in [(batch.x_0, part.x_0), (batch.t, part.t), (batch.noise, part.noise)]:
        assert torch.equal(whole[2:4], some)
    assert part.condition.label.tolist() == [2, 3]


@pytest.mark.parametrize("size", [3, 10])
def test_the_held_out_loss_is_the_mean_over_items_and_the_same_each_time(size):
    """A network that predicts 0 has the mean square of noise - x_0 as its loss."""
    items = left_bright(10)

    def network(x_t, t):
        return torch.zeros_like(x_t)

    losses = {objective().held_out_loss(network, items, None, size, "fp32") for _ in range(2)}
    assert len(losses) == 1
    assert 1 < losses.pop() < 3  # E[(noise - x_0)^2] = 1 + 1
