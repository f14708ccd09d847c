"""Diffusion in the latents of an autoencoder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import train
from checkpoints.checkpoint import load_checkpoint, restore, save_checkpoint
from cli import process
from cli.training import TRAIN
from dataset.items import to_unit
from dataset.registry import load_dataset
from images import save_image
from models.autoencoder import Autoencoder
from models.latents import TILE, LatentSpace, decoded_in_tiles
from runs import assert_same_training
from training.latents import encoded
from training.trainer import Trainer

CPU = torch.device("cpu")
COMMON = ["--device", "cpu", "--precision", "fp32", "--sample-interval", "0", "--save-interval"]
COMMON += ["0", "--snapshots", "0", "--warmup-steps", "5", "--channels", "8"]


def run_train(*words) -> None:
    assert process.run(train.main, TRAIN.parse([*map(str, words)])) == 0


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Twenty-four images of 32 x 16 pixels, of two brightnesses."""
    folder = tmp_path_factory.mktemp("latents") / "images"
    generator = np.random.default_rng(0)
    for i in range(24):
        pixels = generator.integers(0, 60, (32, 16, 3), dtype=np.uint8) + 180 * (i % 2)
        save_image(folder / f"{i:02}.png", pixels.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def autoencoder(images) -> Path:
    """The folder of an autoencoder's run."""
    folder = images.parent / "autoencoder"
    data = ["--dataset", "folder", "--data-dir", images, "--image-size", "32x16"]
    more = ["--model", "autoencoder", "--max-steps", 30, "--batch-size", 8, "--validation", 4]
    run_train(*COMMON, *data, *more, "--output-dir", folder)
    return folder


def flags_of(images, autoencoder) -> list:
    words = [*COMMON, "--dataset", "folder", "--data-dir", images, "--image-size", "32x16"]
    return [*words, "--latents", autoencoder, "--batch-size", 8, "--validation", 4]


@pytest.fixture(scope="module")
def run(images, autoencoder) -> Path:
    """The folder of a run of six steps in the latents."""
    folder = images.parent / "run"
    words = [*flags_of(images, autoencoder), "--save-every-steps", 3, "--max-steps", 6]
    words += ["--multipliers", 1]
    run_train(*words, "--output-dir", folder)
    return folder


def test_latents_have_zero_mean_and_unit_variance():
    torch.manual_seed(0)
    space = LatentSpace(Autoencoder(16, 3, channels=8))
    x_0 = torch.randn(40, 3, 16, 16)
    raw = space.autoencoder.encode(x_0)
    assert torch.equal(space.encode(x_0), raw)
    space.measure(raw.split(7))
    scaled = space.encode(x_0)
    assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert_close(scaled.var(dim=(0, 2, 3), correction=0), torch.ones(4), atol=1e-5, rtol=0)
    assert_close(space.decode(scaled), space.autoencoder.decode(raw), atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in space.parameters())


@pytest.mark.parametrize("shape", [(70, 20), (64, 150), (129, 97)])
def test_tiles_of_a_local_decoder_join_without_a_seam(shape):
    """Each pixel of this decoder depends on its latent and on neighbours that all tiles see."""
    torch.manual_seed(0)
    latents, factor = torch.randn(1, 2, *shape), 4
    pooled = torch.nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def decode(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(pooled(x), scale_factor=factor)

    assert max(shape) > TILE
    found = decoded_in_tiles(decode, latents, factor)
    assert found.shape == (1, 2, factor * shape[0], factor * shape[1])
    error = (found - decode(latents)).abs()
    assert error.max() < 0.15  # at the edge of a tile, where it lacks a neighbour and counts little
    assert error.mean() < 0.001
    inner = decoded_in_tiles(lambda x: x, latents, 1)
    assert_close(inner, latents)


def test_large_latents_are_decoded_in_tiles():
    torch.manual_seed(0)
    space = LatentSpace(Autoencoder(288, 1, channels=8)).eval()
    latents = torch.randn(1, 4, 72, 72)
    sizes = []
    decode = space.autoencoder.decode
    space.autoencoder.decode = lambda x: sizes.append(tuple(x.shape[2:])) or decode(x)
    image = space.decode(latents)
    assert sizes == [(TILE, TILE)] * 4
    whole = decode(latents)
    assert image.shape == whole.shape == (1, 1, 288, 288)
    assert (image - whole).abs().mean() < 0.1 * whole.std()


def test_training_learns_scaled_latents(run, autoencoder, images, tmp_path):
    checkpoint = load_checkpoint(run / "model_final.pt")
    config = checkpoint["config"]
    assert config["data"]["image_size"] == [32, 16]
    assert config["model"]["image_size"] == [8, 4]
    assert not config["data"]["flip"]
    assert not config["diffusion"]["clip"]
    weights = load_checkpoint(autoencoder / "model_final.pt")["ema"]
    for name, weight in weights.items():
        for which in ("model", "ema"):
            assert torch.equal(checkpoint[which][f"latent_space.autoencoder.{name}"], weight)
    trainer = Trainer(config, CPU, "fp32")
    trainer.load(checkpoint)
    data = load_dataset("folder", images, image_size=(32, 16)).items
    where = {"data_dir": str(tmp_path)}

    def latents(progress) -> torch.Tensor:
        return encoded(trainer, data, where, progress, measure=False).float()

    found = latents(lambda parts, **_: parts)
    assert found.shape == (24, 4, 8, 4)
    assert_close(found.var(dim=(0, 2, 3), correction=0), torch.ones(4), atol=2e-3, rtol=0)
    direct = trainer.model.latent_space.encode(to_unit(data))
    assert_close(found, direct, atol=3e-3, rtol=1e-3)
    assert torch.equal(latents(None), found)  # from the file
    (file,) = (tmp_path / ".tiny-diffusion").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(latents(lambda parts, **_: parts), found)


def test_latent_training_resumes_bit_for_bit(run, autoencoder, script):
    shutil.copytree(run, "copy")
    start = "copy/checkpoints/model_step_00000003.pt"
    result = script("train", "--resume", start, "--max-steps", 6)
    assert result.code == 0, result.err  # the file of the autoencoder is not needed
    a, b = (load_checkpoint(folder / "model_final.pt") for folder in (run, Path("copy")))
    assert_same_training(a, b)
    result = script("train", "--resume", start, "--latents", autoencoder, "--max-steps", 7)
    assert result.code == 0, result.err  # the command that began the run can be repeated
    other = load_checkpoint(autoencoder / "model_final.pt")
    other["ema"]["stem.bias"] += 1
    save_checkpoint(Path("other.pt"), other)
    result = script("train", "--resume", start, "--latents", "other.pt", "--max-steps", 8)
    assert result.code in (1, 2)
    assert "is another autoencoder than that of the run" in result.err


def test_samples_are_images(run, images, script):
    def drawn(*flags) -> np.ndarray:
        words = [
            "--checkpoint",
            run / "model_final.pt",
            "--steps",
            4,
            "--num-images",
            4,
            "--output",
            "a.npz",
        ]
        result = script("sample", *words, *flags)
        assert result.code == 0, result.err
        return np.load("a.npz")["arr_0"]

    assert drawn().shape == (4, 32, 16, 3)
    batches = drawn("--batch-size", 1).astype(int)
    assert np.abs(batches - drawn()).max() <= 1
    picture = images / "01.png"
    assert drawn("--start-from", picture, "--strength", 0.3).shape == (4, 32, 16, 3)
    assert script("export", "--checkpoint", run / "model_final.pt", "weights.safetensors").code == 0
    words = ["--steps", 4, "--num-images", 4, "--output", "b.npz"]
    assert script("sample", "--checkpoint", "weights.safetensors", *words).code == 0
    assert np.array_equal(np.load("b.npz")["arr_0"], drawn())
    words = [
        "--checkpoint",
        run / "model_final.pt",
        "--steps",
        4,
        "--invert",
        picture,
        "--output",
        "c.png",
    ]
    result = script("sample", *words)
    assert result.code == 0, result.err
    assert "of 255 grey levels" in result.out
    words = [
        "--checkpoint",
        run / "model_final.pt",
        "--steps",
        4,
        "--show-intermediate",
        "--output",
        "d/d.png",
    ]
    assert script("sample", *words).code == 0


def test_inpainting_keeps_what_the_whole_patch_keeps(run, images, script):
    mask = np.zeros((32, 16), np.uint8)
    mask[:18] = 255  # the fifth row of latents is kept in part only, so it is sampled
    Image.fromarray(mask).save("mask.png")
    picture = images / "01.png"
    words = [
        "--checkpoint",
        run / "model_final.pt",
        "--steps",
        4,
        "--num-images",
        2,
        "--output",
        "a.npz",
    ]
    result = script("sample", *words, "--inpaint", picture, "--mask", "mask.png")
    assert result.code == 0, result.err
    drawn = torch.from_numpy(np.load("a.npz")["arr_0"]).permute(0, 3, 1, 2)
    model, _ = restore(load_checkpoint(run / "model_final.pt"))
    x_0 = to_unit(load_dataset("folder", images, image_size=(32, 16)).items[1:2])
    kept = model.latent_space.encode(x_0)[:, :, :4]
    again = model.latent_space.encode(to_unit(drawn))
    assert again.shape == (2, 4, 8, 4)
    assert (again[:, :, 0] - kept[:, :, 0]).abs().mean() < (again[:, :, 7]).abs().mean() + 1


def test_pictures_of_training_and_the_report(images, autoencoder, script):
    words = [*flags_of(images, autoencoder), "--multipliers", 1]
    words[words.index("--sample-interval") + 1] = "1"
    result = script("train", *words, "--max-steps", 2, "--output-dir", "run")
    assert result.code == 0, result.err
    (picture,) = Path("run/samples").glob("*.png")
    with Image.open(picture) as image:
        assert image.height > 4 * 32
    result = script("visualize_diffusion", "--run", "run", "--steps", 2)
    assert result.code == 0, result.err
    report = script("evaluate", "--checkpoint", "run", "--steps", 2, "--num-images", 8)
    assert report.code == 0, report.err
    assert "copies" in json.loads(Path("run/metrics.json").read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "autoencoder"], "--latents has no effect on --model autoencoder"),
        (["--flip"], "--flip mirrors images, and mirrored latents are not those of an image"),
        (["--image-size", "16"], "is for images of 3 x 32 x 16, and these are of 3 x 16 x 16"),
        (["--clip-loss"], "clip_loss cannot be used with data that are not clipped"),
    ],
)
def test_latents_that_do_not_fit(flags, message, images, autoencoder, script):
    result = script("train", *flags_of(images, autoencoder), "--max-steps", 1, *flags)
    assert result.code in (1, 2)
    assert message in result.err


def test_weights_alone_are_an_autoencoder(images, autoencoder, script):
    assert script("export", "--checkpoint", autoencoder, "ae.safetensors").code == 0
    words = [*flags_of(images, "ae.safetensors"), "--max-steps", 1, "--multipliers", 1]
    result = script("train", *words)
    assert result.code == 0, result.err


def test_latents_are_not_mirrored_by_tuning(run, script):
    words = ["--tune", "consistency", "--teacher", run, "--max-steps", 1, *COMMON[:-2]]
    result = script("train", *words, "--flip", "--output-dir", "tuned")
    assert "--flip mirrors images" in result.err


def test_eps_is_refused_for_latents_in_these_words(images, autoencoder, script):
    words = [*flags_of(images, autoencoder), "--max-steps", 1, "--prediction", "eps"]
    assert "--prediction eps is unstable for latents" in script("train", *words).err


def test_what_latents_cannot_do(run, images, autoencoder, script):
    words = [*flags_of(images, run), "--max-steps", 1]
    result = script("train", *words, "--output-dir", "other")
    assert "is a unet; train.py --model autoencoder trains what is needed" in result.err
    result = script("evaluate", "--checkpoint", run / "model_final.pt", "--metrics", "bpd")
    assert "the bits of latents are not those of images" in result.err
    result = script("export", "--checkpoint", run / "model_final.pt", "a.npz")
    assert result.code == 2
    assert "latents" in result.err
