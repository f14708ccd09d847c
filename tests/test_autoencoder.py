"""The autoencoder: its latents, its training, and the measures of reconstructions."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

import train
from checkpoints.checkpoint import load_checkpoint, restore
from cli import process
from cli.training import TRAIN
from dataset.items import to_unit
from dataset.registry import load_dataset
from evaluation import classifier
from evaluation.features import FeatureDistance, TrainedClassifier
from evaluation.reconstruction import psnr, reconstructed, ssim
from models import build_model, model_config
from models.autoencoder import (
    ADVERSARIAL,
    KL_WEIGHT,
    REGULARIZERS,
    PatchDiscriminator,
    Posterior,
    latent_shape,
)
from runs import assert_same_training
from training.objective import AutoencoderObjective, NoisyBatch

CPU = torch.device("cpu")
FLAGS = ["--dataset", "digits", "--model", "autoencoder", "--channels", "8", "--device", "cpu"]
FLAGS += ["--precision", "fp32", "--sample-interval", "0", "--save-interval", "0"]
FLAGS += ["--snapshots", "0", "--warmup-steps", "5"]


def autoencoder(size=16, channels=3, **options):
    shape = {"image_size": size, "image_channels": channels}
    config = model_config("autoencoder", shape, 1000, {"channels": 8, **options})
    torch.manual_seed(0)
    return build_model(config), config


# --- the network ----------------------------------------------------------------------------------


def test_the_penalty_is_the_divergence_from_a_standard_normal_distribution():
    mean, log_variance = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0, 1))
    assert_close(Posterior(mean, log_variance).kl(), expected)
    assert not Posterior(mean, None).kl().any()


def test_latents_are_drawn_around_the_mean():
    noise = torch.randn(50_000, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    posterior = Posterior(torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 4.0).log())
    drawn = posterior.latents(noise)
    assert_close(drawn.mean(), torch.tensor(3.0), atol=0.03, rtol=0)
    assert_close(drawn.std(), torch.tensor(2.0), atol=0.03, rtol=0)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize(("size", "downsample"), [(16, 4), ([16, 24], 8)])
def test_latents_have_the_promised_shape(size, downsample, regularizer):
    options = {"downsample": downsample, "latent_channels": 5, "regularizer": regularizer}
    model, config = autoencoder(size, **options)
    height, width = (16, 16) if size == 16 else size
    x_0 = torch.randn(2, 3, height, width)
    shape = (2, 5, height // downsample, width // downsample)
    assert latent_shape(config) == shape[1:]
    out, penalty = model(x_0, torch.randn(shape))
    posterior = model.posterior(x_0)
    assert out.shape == x_0.shape
    assert posterior.mean.shape == shape
    assert torch.equal(model.encode(x_0), posterior.mean)
    assert (posterior.log_variance is None) == (regularizer == "none")
    assert (penalty > 0) == (regularizer != "none")
    assert all(p.requires_grad for p in model.parameters())


def test_the_loss_is_the_absolute_error_and_the_penalty():
    model, config = autoencoder()
    run = {"model": config, "train": {"seed": 0, "timestep_sampling": "uniform"}}
    run["train"] |= {"noise_assignment": "independent", "label_dropout": 0.1}
    objective = AutoencoderObjective(None, run | {"data": {"flip": False}}, CPU)
    x_0, noise = torch.randn(2, 2, 3, 16, 16)
    loss = objective(model, NoisyBatch(x_0, None, torch.zeros(2), noise))
    latent_noise = torch.stack([each.flatten()[:64].view(4, 4, 4) for each in noise])
    out, penalty = model(x_0, latent_noise)
    assert_close(penalty, KL_WEIGHT * model.posterior(x_0).kl().mean())
    assert_close(loss, (out - x_0).abs().mean() + penalty)


def test_the_discriminator_and_the_autoencoder_each_have_their_own_loss():
    torch.manual_seed(0)
    judge = PatchDiscriminator(1, 8)
    x_0 = torch.randn(2, 1, 16, 16)
    made = torch.randn(2, 1, 16, 16, requires_grad=True)
    judge.loss(x_0, made).backward()
    found = [p.grad.clone() for p in judge.parameters()]
    judge.zero_grad()
    alone = made.detach()
    (F.softplus(-judge(x_0)).mean() + F.softplus(judge(alone)).mean()).backward()
    assert_close(found, [p.grad for p in judge.parameters()])
    again = alone.clone().requires_grad_()
    (ADVERSARIAL * F.softplus(-judge(again)).mean()).backward()
    assert_close(made.grad, again.grad)


def test_latents_leave_the_discriminator_out(script):
    words = [*FLAGS, "--discriminator", "--image-size", 16, "--max-steps", 2, "--batch-size", 8]
    result = script("train", *words, "--output-dir", "a")
    assert result.code == 0, result.err
    assert any("discriminator" in name for name in load_checkpoint(Path("a/model_final.pt"))["ema"])
    words = ["--dataset", "digits", "--image-size", 16, "--latents", "a", "--channels", 8]
    words += ["--max-steps", 1, "--batch-size", 8, "--sample-interval", 0, "--snapshots", 0]
    result = script("train", *words, "--output-dir", "b")
    assert result.code == 0, result.err
    found = load_checkpoint(Path("b/model_final.pt"))
    assert not any("discriminator" in name for name in found["ema"])
    assert script("sample", "--checkpoint", "b", "--num-images", 2, "--steps", 2).code == 0


# --- the measures ---------------------------------------------------------------------------------


def test_psnr_and_ssim_are_those_of_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.functional.image")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 20, 32), generator=generator, dtype=torch.uint8)
    change = torch.randint(-40, 41, images.shape, generator=generator)
    others = (images + change).clamp(0, 255).byte()
    a, b = images.double(), others.double()
    options = {"data_range": 255.0, "reduction": "none"}
    expected = metrics.peak_signal_noise_ratio(b, a, dim=(1, 2, 3), **options)
    assert_close(psnr(images, others), expected)
    measure = metrics.structural_similarity_index_measure
    _, everywhere = measure(b, a, return_full_image=True, **options)
    inside = everywhere[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # where the window lies in the image
    assert_close(ssim(images, others), inside, rtol=1e-4, atol=1e-4)
    assert_close(ssim(images, images), torch.ones(3, dtype=torch.float64))
    assert bool(psnr(images, images).isfinite().all())


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run of 40 steps on digits."""
    folder = tmp_path_factory.mktemp("autoencoder") / "run"
    words = [*FLAGS, "--max-steps", "40", "--save-every-steps", "20", "--output-dir", str(folder)]
    words += ["--batch-size", "32"]
    assert process.run(train.main, TRAIN.parse(words)) == 0
    return folder


def test_training_resumes_bit_for_bit_and_reports(run, script):
    shutil.copytree(run, "copy")
    start = "copy/checkpoints/model_step_00000020.pt"
    result = script("train", "--resume", start, "--max-steps", 40)
    assert result.code == 0, result.err
    assert "next: python evaluate.py --checkpoint" in result.out
    a, b = (load_checkpoint(folder / "model_final.pt") for folder in (run, Path("copy")))
    assert_same_training(a, b)
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in losses if "validation_loss" in row]
    assert losses[-1] < 0.6  # the mean absolute pixel is above 0.7


def test_reconstructions_are_measured(run, script):
    result = script(
        "evaluate", "--checkpoint", run / "model_final.pt", "--num-images", 20, "--output", "m.json"
    )
    assert result.code == 0, result.err
    report = json.loads(Path("m.json").read_text())
    model, _ = restore(load_checkpoint(run / "model_final.pt"))
    data = load_dataset("digits").items
    found = reconstructed(model, data, CPU, "fp32")
    with torch.no_grad():
        direct = model.decode(model.encode(to_unit(data[:5])))
    assert_close(to_unit(found[:5]), direct.clamp(-1, 1), atol=1 / 127, rtol=0)
    assert abs(report["reconstruction"]["psnr"]["mean"] - float(psnr(data, found).mean())) < 3
    assert 0 < report["reconstruction"]["ssim"]["mean"] < 1
    assert report["classifier"]["classifier_fid"]["mean"] > 0
    with Image.open("m_reconstruction.png") as picture:
        assert picture.height < picture.width


def test_pictures_of_training_show_reconstructions(script):
    flags = [*FLAGS, "--sample-interval", 1, "--max-steps", 2, "--output-dir", "run"]
    assert script("train", *flags).code == 0
    (picture,) = Path("run/samples").glob("*.png")
    with Image.open(picture) as image:
        assert image.width > 3 * image.height


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--downsample", "3"], "downsample is 4 or 8, not 3"),
        (
            ["--downsample", "8", "--image-size", "20"],
            "multiples of 8, not 20; the nearest are 16 ",
        ),
        (["--latent-channels", "40"], "latent_channels must lie between 1 and 16, not 40"),
        (["--schedule", "linear"], "--schedule has no effect on --model autoencoder"),
        (["--label-dropout", "0"], "--label-dropout has no effect on --model autoencoder"),
        (["--regularizer", "vq"], "invalid choice"),
        (["--eval-interval", "1"], "--model autoencoder draws none"),
        (["--model", "unet", "--downsample", "4"], "the model unet has no downsample"),
        (["--dataset", "moons"], "the model autoencoder is for images"),
    ],
)
def test_what_does_not_fit_is_explained(flags, message, script):
    result = script("train", *FLAGS, *flags, "--max-steps", 1)
    assert result.code in (1, 2)
    assert message in result.err


def test_an_autoencoder_draws_nothing(run, script):
    for command, *flags in [
        ("sample",),
        ("evaluate", "--metrics", "copies"),
        ("evaluate", "--steps", 3),
        ("evaluate", "--metrics", "reconstruction", "--guidance-scale", 2),
    ]:
        result = script(command, "--checkpoint", run / "model_final.pt", *flags)
        assert result.code == 2
        assert "an autoencoder" in result.err
        assert "draws nothing" in result.err
    flags = ["--samples", run, "--dataset", "digits", "--metrics", "reconstruction"]
    result = script("evaluate", *flags)
    assert "--metrics reconstruction needs the --checkpoint of an autoencoder" in result.err


def test_the_distance_of_features_is_zero_for_equal_images_and_grows_with_blur():
    torch.manual_seed(0)
    network = classifier.Classifier(1, 3, channels=(8, 8)).eval()
    distance = FeatureDistance(TrainedClassifier(network, 1.0, "abc", None))
    x = torch.rand(4, 1, 8, 8)
    blurred = [
        F.avg_pool2d(x, 3, stride=1, padding=1) * share + x * (1 - share) for share in (0.5, 1)
    ]
    found = [float(distance(y, x)) for y in (x, *blurred)]
    assert found[0] == 0
    assert 0 < found[1] < found[2]
    assert len(network.maps(x)) == 3
    assert_close(network.trunk[-2:](network.maps(x)[-1]), network.features(x))
    y = x.clone().requires_grad_()
    distance(y + 0.1, x).backward()
    assert y.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())


def test_a_run_with_a_feature_loss_resumes_bit_for_bit(script, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 3)
    words = [*FLAGS, "--batch-size", 16, "--save-every-steps", 2]
    with_features = [*words, "--feature-loss", 0.5]
    assert script("train", *with_features, "--max-steps", 4, "--output-dir", "a").code == 0
    shutil.copytree("a", "b")
    start = "b/checkpoints/model_step_00000002.pt"
    assert script("train", "--resume", start, "--max-steps", 4).code == 0
    whole, resumed = (load_checkpoint(Path(name, "model_final.pt")) for name in "ab")
    assert_same_training(whole, resumed)
    assert len(whole["config"]["train"]["feature_classifier"]) == 64
    assert script("train", *words, "--max-steps", 4, "--output-dir", "c").code == 0
    other = load_checkpoint(Path("c", "model_final.pt"))
    assert not torch.equal(other["model"]["stem.weight"], whole["model"]["stem.weight"])
    result = script("train", *words[:2], "--feature-loss", 1, "--max-steps", 1, "--output-dir", "d")
    assert "--feature-loss has no effect without --model autoencoder" in result.err
