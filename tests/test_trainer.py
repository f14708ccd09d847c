"""The training step."""

import time

import pytest
import torch
from torch.testing import assert_close

import train
from conftest import TINY
from data import load_dataset
from training.trainer import Trainer


def trainer_of(*arguments) -> Trainer:
    args = train.parse_args([*TINY, *map(str, arguments)])
    config = train.make_config(args, load_dataset("digits"))
    return Trainer(config, torch.device("cpu"), args.precision, args.compile)


def test_overfits_one_batch():
    trainer = trainer_of("--channels", 16, "--warmup-steps", 0)
    images = load_dataset("digits").images[:16]
    losses = []
    for _ in range(250):
        trainer.step %= 10  # ten draws of t and noise, again and again
        losses.append(trainer.update(images, lr=3e-3)[0].item())
    assert sum(losses[-10:]) < 0.12 * sum(losses[:10])


@pytest.mark.parametrize("flip", ["--flip", "--no-flip"])
def test_accumulation_makes_the_update_of_one_large_batch(flip):
    images = load_dataset("digits").images
    large = trainer_of("--batch-size", 32, flip)
    parts = trainer_of("--batch-size", 8, "--grad-accum", 4, flip)
    for step in range(3):
        batch = images[32 * step : 32 * (step + 1)]
        loss, norm = large.update(batch, 1e-3)
        assert_close(parts.update(batch, 1e-3), (loss, norm), rtol=1e-4, atol=1e-5)
    assert_close(parts.model.state_dict(), large.model.state_dict(), rtol=1e-4, atol=1e-5)


def test_the_gradient_is_clipped():
    trainer = trainer_of("--grad-clip", 1e-6)
    images = load_dataset("digits").images[:16]
    _, norm = trainer.update(images, 1e-3)
    assert norm > 1e-3  # reported as it was
    state = trainer.optimizer.state_dict()["state"]  # after one step exp_avg is 0.1 * gradient
    clipped = torch.cat([10 * s["exp_avg"].flatten() for s in state.values()]).norm()
    assert clipped.item() == pytest.approx(1e-6, rel=1e-3)
    trainer = trainer_of("--grad-clip", 0)
    _, norm = trainer.update(images, 1e-3)
    state = trainer.optimizer.state_dict()["state"]
    full = torch.cat([10 * s["exp_avg"].flatten() for s in state.values()]).norm()
    assert_close(full, norm, rtol=1e-3, atol=0)


def test_the_seed_decides_everything():
    images = load_dataset("digits").images[:32]

    def after_two_updates(seed):
        torch.manual_seed(time.time_ns())
        trainer = trainer_of("--seed", seed, "--dropout", 0.2)
        for _ in range(2):
            trainer.update(images, 1e-3)
        return trainer.model.state_dict()

    first, again, other = after_two_updates(1), after_two_updates(1), after_two_updates(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_bf16_and_compile_train_too():
    args = ("--channels", 8, "--multipliers", 1)
    images = load_dataset("digits").images[:16]
    expected, _ = trainer_of(*args).update(images, 1e-3)
    bf16, _ = trainer_of(*args, "--precision", "bf16").update(images, 1e-3)
    assert_close(bf16, expected, rtol=0.02, atol=0)
    compiled = trainer_of(*args)
    # The default backend takes a minute to build kernels; this one captures the same graph.
    compiled.network = torch.compile(compiled.model, backend="aot_eager")
    loss, _ = compiled.update(images, 1e-3)
    assert_close(loss, expected, rtol=1e-4, atol=0)
