"""Guidance by a classifier of noisy images: closed forms, training it, and sampling with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import train
from checkpoints.checkpoint import load_checkpoint
from cli import process
from cli.training import TRAIN
from conftest import TINY
from diffusion import GaussianDiffusion
from guidance import classifier_guidance
from runs import assert_same_training

MEANS = torch.tensor([[-1.5, 0.5], [1.0, 1.0], [0.0, -1.0]], dtype=torch.float64)  # of the classes
WIDTH = 0.4  # standard deviation of each


class Mixture:
    """Points in the plane of three classes, each a Gaussian: everything is known exactly."""

    def __init__(self, diffusion: GaussianDiffusion):
        self.diffusion = diffusion

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (
            table[t].double()[:, None] for table in (self.diffusion.alpha, self.diffusion.sigma)
        )
        return alpha, sigma

    def scores(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(x_t | y) up to a constant, (B, 3): the exact classifier."""
        alpha, sigma = self.coefficients(t)
        distance = (x_t[:, None] - alpha[:, None] * MEANS).square().sum(dim=2)
        return -distance / (2 * ((alpha * WIDTH) ** 2 + sigma**2))

    def conditional(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t, y] for each class, (B, 3, 2)."""
        alpha, sigma = self.coefficients(t)
        gain = alpha * WIDTH**2 / ((alpha * WIDTH) ** 2 + sigma**2)
        return MEANS + gain[:, None] * (x_t[:, None] - alpha[:, None] * MEANS)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t], (B, 2): what a perfect unconditional network predicts."""
        weights = self.scores(x_t, t).softmax(dim=1)
        return (weights[:, :, None] * self.conditional(x_t, t)).sum(dim=1)


@pytest.mark.parametrize("t", [3, 40, 80, 99])
def test_the_exact_classifier_turns_the_unconditional_prediction_into_the_conditional_one(t):
    diffusion = GaussianDiffusion("cosine", 100, prediction="x_0", clip=False)
    mixture, labels = Mixture(diffusion), torch.tensor([0, 1, 2, 2])
    x_t, times = torch.randn(4, 2, dtype=torch.float64), torch.full((4,), t)
    steering = classifier_guidance(mixture.scores, lambda x, t: x, labels, 1.0)
    alpha, sigma = mixture.coefficients(times)
    found = mixture(x_t, times) + sigma**2 / alpha * steering(x_t, times)
    expected = mixture.conditional(x_t, times)[torch.arange(4), labels]
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_denoiser_adds_the_gradient_where_guidance_acts():
    diffusion = GaussianDiffusion("cosine", 100, prediction="x_0", clip=False)
    x_t, gradient = torch.randn(5, 3), torch.randn(5, 3)
    level = diffusion.levels(10)[4]

    def predicted(**options) -> Tensor:
        denoise = diffusion.denoiser(lambda x, t: 0 * x, steering=lambda x, t: gradient, **options)
        return denoise(x_t, level)[0]

    assert_close(predicted(), level.sigma**2 / level.alpha * gradient)
    assert not predicted(guidance_interval=(2 * level.ratio, 3 * level.ratio)).any()


def test_the_gradient_reaches_through_no_grad():
    labels = torch.tensor([1, 0])
    linear = nn.Linear(3, 2)
    steering = classifier_guidance(lambda x, t: linear(x), lambda x, t: x, labels, 2.0)
    x = torch.randn(2, 3)
    with torch.no_grad():
        found = steering(x, torch.zeros(2, dtype=torch.int64))
    p = linear(x).softmax(dim=1)
    expected = 2.0 * (linear.weight[labels] - p @ linear.weight)
    assert_close(found, expected)
    assert linear.weight.grad is None


# --- training and sampling ------------------------------------------------------------------------

CLASSIFIER = [*TINY, "--model", "classifier", "--timesteps", "100", "--save-every-steps", "10"]
CLASSIFIER = [word for word in CLASSIFIER if word != "--no-class-conditional"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """The folder of a small classifier of noisy digits."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    words = [*CLASSIFIER, "--max-steps", "60", "--lr", "0.01", "--output-dir", str(folder)]
    assert process.run(train.main, TRAIN.parse(words)) == 0
    return folder


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory) -> Path:
    """A checkpoint without classes, of the same process."""
    folder = tmp_path_factory.mktemp("unconditional") / "run"
    words = [*TINY, "--timesteps", "100", "--max-steps", "30", "--output-dir", str(folder)]
    assert process.run(train.main, TRAIN.parse(words)) == 0
    return folder


def test_a_classifier_is_trained_by_the_one_loop(classifier, script):
    rows = [json.loads(line) for line in (classifier / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.8 * np.log(10)
    assert list((classifier / "samples").glob("epoch_*.png"))  # the diagram of its accuracy
    result = script("train", "--resume", classifier / "checkpoints/model_step_00000030.pt",
                    "--output-dir", "again", "--max-steps", 60)  # fmt: skip
    assert result.code == 0, result.err
    assert "--classifier again/model_final.pt --class-id all" in result.out
    a, b = (load_checkpoint(folder / "model_final.pt") for folder in (classifier, Path("again")))
    assert_same_training(a, b)


def test_a_classifier_guides_an_unconditional_checkpoint(classifier, unconditional, script):
    def drawn(*flags) -> np.ndarray:
        words = ["--checkpoint", unconditional, "--steps", 5, "--output", "a.npz"]
        result = script("sample", *words, "--num-images", 4, *flags)
        assert result.code == 0, result.err
        return np.load("a.npz")["arr_0"]

    guided = ["--classifier", classifier, "--classifier-scale"]
    plain, threes = drawn(), drawn(*guided, 5, "--class-id", 3)
    assert not np.array_equal(plain, threes)
    assert not np.array_equal(threes, drawn(*guided, 5, "--class-id", 4))
    assert np.array_equal(plain, drawn(*guided, 0, "--class-id", 3))
    assert np.array_equal(drawn(*guided, 5, "--class-id", "0,1,2,3"), drawn(*guided, 5))


def test_classifier_guidance_is_combined_with_classes(classifier, conditional, script):
    words = ["--checkpoint", conditional, "--classifier", classifier, "--steps", 2]
    result = script("sample", *words, "--class-id", 3, "--guidance-scale", 2, "--num-images", 2)
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "CLASSIFIER"], "is a classifier, which draws nothing"),
        (["--classifier", "PLAIN"], "is a unet; train.py --model classifier trains one"),
        (["--classifier", "OTHER"], "diffusion.timesteps: 50 in the checkpoint, 100 now"),
        (["--classifier-scale", "2"], "--classifier-scale has no effect without --classifier"),
        (["--classifier", "CLASSIFIER", "--start-from", "IMAGE"], "give the --class-id"),
    ],
)
def test_classifiers_that_do_not_fit(classifier, unconditional, script, flags, message):
    words = [*CLASSIFIER, "--max-steps", "1", "--timesteps", "50", "--output-dir", "other"]
    assert script("train", *words).code == 0
    image = next((unconditional / "samples").glob("*.png"))
    paths = {"CLASSIFIER": classifier, "PLAIN": unconditional, "OTHER": "other", "IMAGE": image}
    words = [str(paths.get(word, word)) for word in ["--checkpoint", "PLAIN", *flags]]
    result = script("sample", *words, "--steps", 2)
    assert result.code in (1, 2)
    assert message in result.err


def test_a_classifier_has_a_report_and_cannot_be_measured(classifier, script):
    result = script("visualize_diffusion", "--run", classifier)
    assert result.code == 0, result.err
    assert "A classifier draws nothing." in result.err
    result = script("evaluate", "--checkpoint", classifier, "--metrics", "bpd")
    assert result.code == 2
    assert "is a classifier, which draws nothing" in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prediction", "v"], "--prediction has no effect on --model classifier"),
        (["--eval-interval", "1"], "--eval-interval measures samples, and a classifier draws none"),
        (["--dataset", "moons"], "the model classifier is for images"),
    ],
)
def test_flags_that_a_classifier_has_no_use_for(script, flags, message):
    result = script("train", *CLASSIFIER, *flags, "--max-steps", 1)
    assert result.code == 2
    assert message in result.err
