"""The training of the classifier that gives images their features."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from conditions import Condition
from dataset.items import epoch_order, flipped, to_unit
from dataset.registry import load_dataset
from evaluation import classifier
from evaluation.classifier import ClassifierObjective, shifted, train_classifier
from evaluation.real import RealData, subset
from training.optimizers import muon
from utils import autocast, choose_precision, derive_seed

CPU = torch.device("cpu")


def digits(*, flip: bool, count: int = 300) -> RealData:
    """Some of the bundled digits."""
    data = subset(load_dataset("digits"), torch.arange(count))
    return RealData("digits", data, data, "training split", flip, Path("none"))


def train_by_plain_loop(real: RealData, total: int) -> dict[str, torch.Tensor]:
    """The weights after a loop without a Trainer, with random numbers of the global stream."""
    items, labels = real.train.items, real.train.labels
    size = min(128, len(items))
    torch.manual_seed(derive_seed("classifier", 0))
    model = classifier.Classifier(1, 10).to(memory_format=torch.channels_last)
    precision = choose_precision("auto", CPU)
    optimizers = muon(model, 3e-3, precision).values()
    for step in range(total):
        epoch, i = divmod(step, len(items) // size)
        chosen = epoch_order(len(items), 0, epoch)[i * size : (i + 1) * size]
        up, left = torch.randint(0, 3, (2, size)) - 1  # 8 / 14 is rounded to 1 pixel
        x = shifted(items[chosen], up, left)
        x = flipped(x, torch.rand(size) < 0.5) if real.flip else x
        x = to_unit(x).contiguous(memory_format=torch.channels_last)
        with autocast(CPU, precision):
            scores = model(x).float()
            loss = F.cross_entropy(scores, labels[chosen], label_smoothing=0.1)
        loss.backward()
        progress = step / total
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(progress / 0.1, (1 - progress) / 0.9)
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize(("flip", "count"), [(False, 300), (True, 100)])
def test_the_training_loop_gives_the_bits_of_a_plain_loop(monkeypatch, flip, count):
    """Published figures depend on the classifier's bits. A step of 100 images has all of them."""
    monkeypatch.setattr(classifier, "STEPS", 8)
    real = digits(flip=flip, count=count)
    trained = train_classifier(real, CPU).state_dict()
    expected = train_by_plain_loop(real, 8)
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


def test_a_batch_depends_on_the_step_and_not_on_earlier_batches():
    items, labels = load_dataset("digits").items[:50], torch.arange(50)
    torch.manual_seed(3)

    def batches(steps):
        objective = ClassifierObjective(torch.Generator().manual_seed(1), True, CPU)
        return {step: objective.batch(items, Condition(labels), step).x for step in steps}

    in_order, other = batches(range(4)), batches([2, 3, 0])
    assert all(torch.equal(x, in_order[step]) for step, x in other.items())
    assert not torch.equal(in_order[0], in_order[1])


def test_one_process_of_a_job_trains_the_same_classifier(monkeypatch):
    """Only the main process trains it, so it must not wait for the others' gradients."""
    monkeypatch.setattr(classifier, "STEPS", 3)
    real = digits(flip=False)
    alone = train_classifier(real, CPU).state_dict()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    in_job = train_classifier(real, CPU).state_dict()
    assert all(torch.equal(alone[name], in_job[name]) for name in alone)


def test_training_leaves_the_global_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 1)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train_classifier(digits(flip=True), CPU)
    assert torch.equal(torch.rand(3), expected)


def test_shifted_images_keep_their_pixels():
    x = torch.zeros(4, 3, 9, 11, dtype=torch.uint8)
    x[:, :, 4, 5] = 7
    up, left = torch.tensor([[0, 2, -2, 1], [0, 1, -1, -2]])
    moved = shifted(x, up, left)
    assert (moved.flatten(1).sum(dim=1) == 21).all()
    places = [tuple(image[0].nonzero()[0].tolist()) for image in moved]
    assert places == [(4, 5), (2, 4), (6, 6), (3, 7)]


def test_shifts_reach_a_fourteenth_of_the_size_in_every_direction():
    objective = ClassifierObjective(torch.Generator().manual_seed(0), False, CPU)
    shifts, mirror = objective.draw(torch.zeros(500, 1, 28, 28))
    assert {tuple(pair) for pair in shifts.T.tolist()} == {
        (up, left) for up in range(-2, 3) for left in range(-2, 3)
    }
    assert mirror is None
