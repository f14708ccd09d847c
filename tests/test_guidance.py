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
from conditions import Condition
from conftest import TINY
from diffusion import GaussianDiffusion
from guidance import classifier_guidance, clip_guidance
from images import save_image
from runs import assert_same_training
from training.log import read_metrics
from training.objective import ClipObjective

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
    words += ["--batch-size", "48"]
    assert process.run(train.main, TRAIN.parse(words)) == 0
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """The folder of a classifier of another process."""
    folder = tmp_path_factory.mktemp("other") / "run"
    words = [*CLASSIFIER, "--max-steps", "1", "--timesteps", "50", "--output-dir", str(folder)]
    assert process.run(train.main, TRAIN.parse(words)) == 0
    return folder


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory) -> Path:
    """A checkpoint without classes, of the same process."""
    folder = tmp_path_factory.mktemp("unconditional") / "run"
    words = [*TINY, "--timesteps", "100", "--max-steps", "5", "--output-dir", str(folder)]
    words += ["--multipliers", "1"]
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
        words = [
            "--checkpoint",
            unconditional / "model_final.pt",
            "--steps",
            5,
            "--output",
            "a.npz",
        ]
        result = script("sample", *words, "--num-images", 4, *flags)
        assert result.code == 0, result.err
        return np.load("a.npz")["arr_0"]

    guided = ["--classifier", classifier / "model_final.pt", "--classifier-scale"]
    plain, threes = drawn(), drawn(*guided, 5, "--class-id", 3)
    assert not np.array_equal(plain, threes)
    assert not np.array_equal(threes, drawn(*guided, 5, "--class-id", 4))
    assert np.array_equal(plain, drawn(*guided, 0, "--class-id", 3))
    assert np.array_equal(drawn(*guided, 5, "--class-id", "0,1,2,3"), drawn(*guided, 5))


def test_classifier_guidance_is_combined_with_classes(classifier, conditional, script):
    words = [
        "--checkpoint",
        conditional,
        "--classifier",
        classifier / "model_final.pt",
        "--steps",
        2,
    ]
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
def test_classifiers_that_do_not_fit(classifier, other, unconditional, script, flags, message):
    image = next((unconditional / "samples").glob("*.png"))
    paths = {"CLASSIFIER": classifier, "PLAIN": unconditional, "OTHER": other}
    paths = {name: path / "model_final.pt" for name, path in paths.items()} | {"IMAGE": image}
    words = [str(paths.get(word, word)) for word in ["--checkpoint", "PLAIN", *flags]]
    result = script("sample", *words, "--steps", 2)
    assert result.code in (1, 2)
    assert message in result.err


def test_a_classifier_has_a_report_and_cannot_be_measured(classifier, script):
    result = script("visualize_diffusion", "--run", classifier)
    assert result.code == 0, result.err
    assert "The model classifier draws nothing." in result.err
    result = script("evaluate", "--checkpoint", classifier, "--metrics", "bpd")
    assert result.code == 2
    assert "is a classifier, which draws nothing" in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prediction", "v"], "--prediction has no effect on --model classifier"),
        (
            ["--eval-interval", "1"],
            "--eval-interval measures samples, and --model classifier draws none",
        ),
        (["--dataset", "moons"], "the model classifier is for images"),
    ],
)
def test_flags_that_a_classifier_has_no_use_for(script, flags, message):
    result = script("train", *CLASSIFIER, *flags, "--max-steps", 1)
    assert result.code == 2
    assert message in result.err


# --- a model of images and captions ---------------------------------------------------------------


def test_the_gradient_of_the_similarity():
    class Pair(nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return torch.stack([x.sin(), condition.tokens.float()], dim=1)

    x, captions = torch.randn(2, 3), torch.tensor([[1, 2, 3], [4, 5, 6]])
    steering = clip_guidance(Pair(), lambda x, t: x, Condition(tokens=captions), 2.0)
    with torch.no_grad():
        found = steering(x, torch.zeros(2, dtype=torch.int64))
    assert_close(found, 2.0 * captions * x.cos())


def test_the_contrastive_loss_is_that_of_the_paper():
    """Radford et al. 2021, figure 3; equal captions count as one."""
    diffusion = GaussianDiffusion("cosine", 100)
    config = {"train": {"seed": 0, "timestep_sampling": "uniform", "label_dropout": 0.1}}
    config["train"]["noise_assignment"] = "independent"
    config["data"] = {"flip": False}
    objective = ClipObjective(diffusion, config, torch.device("cpu"))
    embeddings = torch.randn(4, 2, 8)
    tokens = torch.tensor([[1, 0], [2, 0], [1, 0], [3, 4]])
    batch = objective.batch(torch.zeros(4, 1, 4, 4), Condition(tokens=tokens), 0)
    assert torch.equal(batch.condition.tokens, tokens)  # none is dropped
    loss = objective(lambda x, t, condition: embeddings, batch)
    images, captions = embeddings.unbind(dim=1)
    p, q = ((a @ b.T).log_softmax(dim=1) for a, b in [(images, captions), (captions, images)])
    same = [[0, 2], [1], [0, 2], [3]]
    expected = [-each[i, same[i]].mean() for each in (p, q) for i in range(4)]
    assert_close(loss, torch.stack(expected).mean())


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    """Forty images in two colours with captions, a clip model for them, and a plain checkpoint."""
    folder = tmp_path_factory.mktemp("clip")
    lines = []
    for i in range(40):
        colour = ("red", "blue")[i % 2]
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[:, :, 0 if colour == "red" else 2] = 150 + i
        save_image(folder / "images" / f"{i:02d}.png", pixels)
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": f"a {colour} square"}))
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines))
    words = [*TINY, "--dataset", "folder", "--data-dir", str(folder / "images"), "--image-size"]
    words += ["16", "--batch-size", "16", "--timesteps", "100", "--validation", "8"]
    clip = [
        *(word for word in words if word != "--no-class-conditional"),
        "--captions",
        *("--model", "clip", "--multipliers", "1", "2", "--max-steps", "40", "--lr", "0.01"),
    ]
    assert process.run(train.main, TRAIN.parse([*clip, "--output-dir", str(folder / "clip")])) == 0
    plain = [*words, "--max-steps", "4", "--multipliers", "1", "--output-dir", str(folder / "run")]
    assert process.run(train.main, TRAIN.parse(plain)) == 0
    return folder


def test_a_clip_model_is_trained_by_the_one_loop(captioned):
    rows = read_metrics(captioned / "clip" / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    # One of two captions, of which each batch has about eight times each.
    assert losses[-1] < np.log(16) - 0.5
    assert list((captioned / "clip" / "samples").glob("epoch_*.png"))


def test_a_clip_model_guides_a_checkpoint_without_captions(captioned, script):
    def drawn(*flags) -> np.ndarray:
        words = [
            "--checkpoint",
            captioned / "run/model_final.pt",
            "--steps",
            5,
            "--output",
            "a.npz",
        ]
        result = script("sample", *words, "--num-images", 4, *flags)
        assert result.code == 0, result.err
        return np.load("a.npz")["arr_0"].astype(float)

    guided = ["--clip", captioned / "clip/model_final.pt", "--clip-scale"]
    plain, red = drawn(), drawn(*guided, 20, "--prompt", "a red square")
    blue = drawn(*guided, 20, "--prompt", "a blue square")
    assert np.array_equal(plain, drawn(*guided, 0, "--prompt", "a red square"))
    redness = [(images[..., 0] - images[..., 2]).mean() for images in (red, plain, blue)]
    assert redness == sorted(redness, reverse=True)


def test_networks_that_judge_are_no_guides_and_other_data_are_refused(
    captioned, classifier, script
):
    words = [
        "sample",
        "--checkpoint",
        captioned / "run/model_final.pt",
        "--steps",
        2,
        "--guidance-scale",
        2,
    ]
    result = script(*words, "--guide", captioned / "clip")
    assert result.code == 2
    assert "is a clip, which draws nothing" in result.err
    result = script(*words[:-2], "--classifier", classifier, "--class-id", 0)
    assert result.code == 2
    assert "data.dataset: digits in the checkpoint, folder now" in result.err


def test_all_kinds_of_guidance_are_combined(captioned, script):
    words = [
        "sample",
        "--checkpoint",
        captioned / "run/model_final.pt",
        "--steps",
        4,
        "--num-images",
        2,
    ]
    guide = [
        "--guide",
        captioned / "run/model_final.pt",
        "--guidance-scale",
        2,
        "--guidance-rescale",
        0.5,
    ]
    clip = [
        "--clip",
        captioned / "clip/model_final.pt",
        "--prompt",
        "a red square",
        "--clip-scale",
        9,
    ]
    drawn = []
    for flags in ([], guide, clip, [*guide, *clip], [*guide, *clip]):
        interval = ["--guidance-interval", 0.1, 9] if flags else []
        result = script(*words, *flags, *interval, "--output", "a.npz")
        assert result.code == 0, result.err
        drawn.append(np.load("a.npz")["arr_0"])
    assert np.array_equal(drawn[3], drawn[4])
    # A guide that is the network itself changes nothing but where predictions are clipped.
    plain, alone, steered, both, _ = (images.astype(int) for images in drawn)
    assert np.abs(plain - alone).max() <= 1
    assert np.abs(steered - both).mean() < np.abs(steered - plain).mean() / 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", ""], "--clip cannot guide to an empty prompt"),
        (["--interpolate", "--prompt", "red", "blue"], "--clip guides to one prompt"),
        ([], "give the --prompt that --clip guides to"),
        (["--prompt", "a red square", "--negative-prompt", "blue", "--guidance-scale", "2"],
         "--negative-prompt: this checkpoint is unconditional"),
        (["--prompt", "a red square", "--guidance-scale", "2"], "this checkpoint is unconditional"),
        (["--prompt", "moustache " * 3], "has 30 tokens, and this checkpoint takes at most"),
    ],
)  # fmt: skip
def test_clip_guidance_that_is_impossible(captioned, script, flags, message):
    words = [
        "--checkpoint",
        captioned / "run/model_final.pt",
        "--clip",
        captioned / "clip/model_final.pt",
        "--steps",
        2,
    ]
    result = script("sample", *words, *flags)
    assert result.code == 2
    assert message in result.err
