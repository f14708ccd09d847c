"""Post-hoc averages of the weights: train.py --post-hoc-ema and evaluate.py --ema-length."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from checkpoints.averages import (
    KEPT,
    LENGTHS,
    average_files,
    averaged,
    exponent,
    inner_products,
    is_average_step,
    mixture,
    power_decay,
)
from checkpoints.checkpoint import load_checkpoint
from checkpoints.weights import load_weights
from runs import SMALL, assert_same_training
from training.ema import PowerEMA


@pytest.mark.parametrize("length", [0.03, 0.05, 0.1, 0.2])
def test_a_profile_has_its_length_and_is_a_power_of_the_step(length):
    gamma, steps = exponent(length), 4000
    profile = np.zeros(steps)
    for step in range(steps):
        decay = power_decay(step, gamma)
        profile *= decay
        profile[step] += 1 - decay
    place = (np.arange(steps) + 0.5) / steps
    expected = (gamma + 1) * place**gamma / steps
    assert np.abs(profile - expected).sum() < 2e-3
    mean = (profile * place).sum()
    std = np.sqrt((profile * (place - mean) ** 2).sum())
    assert std == pytest.approx(length, rel=2e-3)


def test_inner_products_are_the_integrals_of_profiles():
    t = (np.arange(200_000) + 0.5) / 1000  # up to 200

    def profile(end, gamma):
        return np.where(t < end, (gamma + 1) * t**gamma / end ** (gamma + 1), 0.0)

    for end_a, gamma_a, end_b, gamma_b in [(100, 7, 150, 17), (200, 17, 80, 7), (90, 7, 90, 7)]:
        expected = (profile(end_a, gamma_a) * profile(end_b, gamma_b)).sum() / 1000
        found = inner_products(float(end_a), gamma_a, float(end_b), gamma_b)
        assert found == pytest.approx(expected, rel=1e-3)


def test_an_average_that_is_there_is_found_again():
    steps, gammas = [50, 50, 80, 80], [7.0, 17.0, 7.0, 17.0]
    assert_close(mixture(steps, gammas, 80, 7.0), np.array([0.0, 0, 1, 0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", [0.03, 0.2])
@pytest.mark.parametrize("steps", [24, 100, 100_000])
def test_weights_that_stay_the_same_are_their_own_average(length, steps):
    kept = [s for s in range(1, steps + 1) if is_average_step(s) or s == steps][-KEPT:]
    places, lengths = zip(*((s, each) for s in kept for each in LENGTHS), strict=True)
    shares = mixture(places, [exponent(each) for each in lengths], steps, exponent(length))
    assert shares.sum() == pytest.approx(1, abs=1e-9)


def test_a_combination_of_files_is_the_average_that_is_tracked_directly():
    """Within a thousandth, of weights that move as in training."""
    torch.manual_seed(0)
    model, steps = nn.Linear(20, 20), 2000
    kept = {each: PowerEMA(model, exponent(each)) for each in LENGTHS}
    direct, files = {each: PowerEMA(model, exponent(each)) for each in (0.04, 0.07, 0.15)}, {}
    goal = torch.randn(20, 20)
    for step in range(steps):
        with torch.no_grad():
            pull = 0.003 * (goal - model.weight)
            model.weight += pull + 0.01 * torch.randn(20, 20)
        for average in (*kept.values(), *direct.values()):
            average.update(model, step)
        if is_average_step(step + 1) or step + 1 == steps:
            for each, average in kept.items():
                files[step + 1, each] = average.module.weight.detach().half().double()
    chosen = sorted(files)[-KEPT * len(LENGTHS) :]
    places, exponents = [step for step, _ in chosen], [exponent(each) for _, each in chosen]
    for length, average in direct.items():
        shares = mixture(places, exponents, steps, exponent(length)).tolist()
        found = sum(share * files[key] for share, key in zip(shares, chosen, strict=True))
        expected = average.module.weight.double()
        assert (found - expected).norm() / expected.norm() < 1e-3


def test_a_run_writes_averages_resumes_to_the_bit_and_makes_others(script):
    words = [*SMALL, "--post-hoc-ema", "--max-steps", "24", "--batch-size", "32"]
    assert script("train", *words, "--output-dir", "straight").code == 0
    assert script("train", *words, "--save-every-steps", 17, "--output-dir", "parts").code == 0
    Path("parts/model_final.pt").unlink()
    before = {key: load_weights(path) for key, path in average_files(Path("parts")).items()}
    assert {key[0] for key in average_files(Path("parts"))} == {16, 17, 19, 21, 23, 24}
    assert script("train", "--resume", "--output-dir", "parts").code == 0
    a, b = load_checkpoint("straight/model_final.pt"), load_checkpoint("parts/model_final.pt")
    assert_same_training(a, b)
    for length, weights in a["averages"].items():
        for name, weight in weights.items():
            assert torch.equal(weight, b["averages"][length][name])
    for key, path in average_files(Path("parts")).items():
        for name, weight in load_weights(path)["ema"].items():
            assert torch.equal(weight, before[key]["ema"][name])
    weights, _ = averaged(Path("straight"), 24, LENGTHS[0])
    for name, weight in a["averages"]["0.05"].items():
        assert_close(weights[name], weight, atol=1e-3, rtol=1e-3)

    flags = ["--metrics", "classifier", "--num-images", "20", "--repeats", "1", "--steps", "2"]
    words = ["--checkpoint", "straight", "--ema-length", "0.12", *flags]
    result = script("evaluate", *words)
    assert result.code == 0, result.err
    made = Path("straight/model_final_ema_0.120.safetensors")
    assert str(made) in result.out
    assert script("sample", "--checkpoint", made, "--num-images", 4, "--steps", 2).code == 0


def test_runs_without_averages_are_refused(script, trained):
    result = script("evaluate", "--checkpoint", trained, "--ema-length", "0.1")
    assert result.code == 1
    assert "--post-hoc-ema" in result.err
    assert script("evaluate", "--checkpoint", trained, "--ema-length", "0.5").code == 2
