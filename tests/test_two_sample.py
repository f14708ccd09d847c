"""The classifier two-sample test and the comparison of grey levels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from dataset.registry import load_dataset
from evaluation import two_sample
from evaluation.real import RealData, subset
from evaluation.two_sample import area, coarse, compare_grey_levels, half_size, two_sample_test

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> RealData:
    data = load_dataset("digits")
    train, held_out = subset(data, torch.arange(1400)), subset(data, torch.arange(1400, 1797))
    return RealData("digits", train, held_out, "held out of training", False, Path("none"))


def test_the_area_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    real, generated = rng.integers(0, 30, 40) / 10, rng.integers(5, 40, 50) / 10  # with ties
    expected = roc_auc_score([1] * 40 + [0] * 50, [*real, *generated])
    assert area(torch.tensor(real), torch.tensor(generated)) == pytest.approx(expected, abs=1e-12)
    assert area(torch.ones(3), torch.zeros(2)) == 1
    assert area(torch.zeros(3), torch.ones(2)) == 0
    assert area(torch.zeros(3), torch.zeros(2)) == 0.5


def test_coarse_images_have_16_levels_from_black_to_white():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    levels = coarse(images)
    assert levels.unique().tolist() == list(range(0, 256, 17))
    assert torch.equal(coarse(levels), levels)
    assert (levels.int() - images.int()).abs().max() <= 15


def test_grey_levels_are_compared():
    real = torch.zeros(2, 1, 10, 10, dtype=torch.uint8)
    real[:, :, :2] = 255
    images = real.clone()
    images[:, :, 2:5] = 3
    found = compare_grey_levels(images, real)
    assert found.background == 0
    assert found.almost_background == pytest.approx(0.3)
    assert found.almost_background_of_real == 0
    assert found.difference == pytest.approx(0.3)


def test_images_that_differ_are_told_apart_and_others_are_not(digits, monkeypatch):
    monkeypatch.setattr(two_sample, "SEEDS", 1)
    monkeypatch.setattr(two_sample, "STEPS", 50)
    almost_black = digits.train.items[:400].clone()
    almost_black[almost_black == 0] = 15  # black, among 16 levels
    test = two_sample_test([almost_black], digits, CPU)
    raw, levels = test.measures["auc"], test.measures["auc_16_levels"]
    assert min(raw.values) > 0.95
    for found in (levels.values, levels.floor, raw.floor):
        assert len(found) == 1
        assert all(0.3 < value < 0.7 for value in found)
    assert test.picture().ndim == 3


def test_each_half_is_as_large_as_the_data_allow(digits):
    images = digits.train.items
    assert half_size([images[:100], images[:90]], digits) == 45
    assert half_size([images], digits) == 397  # held-out images
    small = digits._replace(train=subset(digits.train, torch.arange(30)))
    assert half_size([images], small) == 10
    with pytest.raises(ValueError, match="at least 4 images"):
        half_size([images[:3]], digits)


def test_the_command_reports_it(script, tmp_path):
    images = load_dataset("digits").items[:64].permute(0, 2, 3, 1).numpy()
    np.save(tmp_path / "samples.npy", images)
    flags = ["--samples", "samples.npy", "--dataset", "digits", "--metrics", "two-sample"]
    result = script("evaluate", *flags)
    assert result.code == 0, result.err
    assert "almost background (1 to 10 grey levels from 0)" in result.out
    report = json.loads(Path("metrics.json").read_text())["two_sample"]
    assert report.keys() == {"auc", "auc_16_levels", "num_images", "grey_levels"}
    assert report["num_images"] == len(images)
    assert len(report["auc"]["values"]) == len(report["auc"]["floor_values"]) == 3
    assert report["grey_levels"]["difference"] < 0.05
    with Image.open("metrics_two_sample.png") as picture:
        assert picture.size[1] > 4 * 56
