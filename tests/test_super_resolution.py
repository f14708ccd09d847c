"""Super-resolution and cascades: train.py --super-resolution, sample.py --start-from and --then."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import evaluate
import export
import train
from checkpoints.checkpoint import load_checkpoint
from cli import process
from cli.evaluation import EVALUATE
from cli.export import EXPORT
from cli.sampling import MAX_AUGMENTATION, SAMPLE
from cli.training import TRAIN
from conditions import NULL_LABEL, Condition, augmented
from dataset.items import indices_like, low_resolution, resized, to_uint8, to_unit
from dataset.registry import load_dataset
from diffusion import GaussianDiffusion
from evaluation import classifier
from evaluation.super_resolution import bicubic, compare_ways
from images import save_image
from models.tokenizer import FIRST_WORD
from models.unet import UNet
from runs import assert_same_training, trainer_of
from sampling.conditioning import Wanted
from sampling.draw import SamplingJob, draw
from training.conditioning import condition_of
from training.preview import SuperResolutionPreview
from training.stop import StopSignals
from utils import derive_seed
from visuals.pictures import stacked

COMMON = ["--device", "cpu", "--precision", "fp32", "--dataset", "digits", "--channels", "8"]
COMMON += ["--sample-interval", "0", "--save-interval", "0", "--snapshots", "0", "--batch-size"]
COMMON += ["16", "--threads", "1"]
SMALL = ["--super-resolution", "4", "--image-size", "8"]
FEW = {"steps": 3, "threads": 1, "device": "cpu"}


def run_train(*words) -> None:
    assert (
        process.run(train.main, TRAIN.parse([*COMMON, "--multipliers", "1", *map(str, words)])) == 0
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("super_resolution")


@pytest.fixture(scope="module")
def run(folder) -> Path:
    """A run of six steps that learns to enlarge digits from 4 x 4 to 8 x 8 pixels."""
    run_train(*SMALL, "--max-steps", 6, "--save-every-steps", 3, "--output-dir", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def base(folder) -> Path:
    """A run that learns digits of 4 x 4 pixels."""
    words = ["--image-size", 4, "--max-steps", 3]
    run_train(*words, "--output-dir", folder / "base")
    return folder / "base"


def drawn(**flags) -> torch.Tensor:
    return draw(SamplingJob(SAMPLE.keywords(**FEW, **flags))).items


def test_augmentation_preserves_the_variance_and_level_0_adds_nothing():
    torch.manual_seed(0)
    image, noise = torch.randn(2, 3, 50, 80, 80)
    level = torch.tensor([0.0, 0.3, 1.0])
    found = augmented(image[:3].mT, level, noise[:3].mT)
    assert torch.equal(found[0], image[0].mT)
    assert torch.equal(found[2], noise[2].mT)
    assert_close(found.var(dim=(1, 2, 3)), torch.ones(3), atol=0.02, rtol=0)


def test_low_resolution_is_that_of_data_sets_and_files():
    images = torch.randint(0, 256, (5, 3, 12, 16), dtype=torch.uint8)
    assert torch.equal(to_uint8(low_resolution(to_unit(images), (6, 8))), resized(images, (6, 8)))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_training_batch_has_its_images_in_low_resolution(parts):
    """Each process draws its part of the whole batch's noise."""
    trainer = trainer_of(*SMALL)
    x_0 = to_unit(load_dataset("digits").items[:8])
    whole = trainer.objective.conditioned(None, x_0, 3)
    size = len(x_0) // parts
    found = [
        trainer.objective.conditioned(None, x_0[i * size : (i + 1) * size], 3, parts, i)
        for i in range(parts)
    ]
    assert torch.equal(torch.cat([each.image for each in found]), whole.image)
    assert 0 <= whole.level.min() < whole.level.max() <= MAX_AUGMENTATION
    clean = low_resolution(x_0, (4, 4))
    scale = (1 - whole.level**2).sqrt().view(-1, 1, 1, 1)
    noise = (whole.image - scale * clean) / whole.level.view(-1, 1, 1, 1)
    assert 0.7 < noise.std() < 1.3
    assert not torch.equal(trainer.objective.conditioned(None, x_0, 4).image, whole.image)


def test_the_image_and_its_noise_level_change_the_prediction():
    torch.manual_seed(0)
    model = UNet(8, 1, channels=16, super_resolution=4).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([5, 500])
    image, level = torch.randn(2, 1, 4, 4), torch.zeros(2)
    out = model(x_t, t, Condition(image=image, level=level))
    grey = model(x_t, t, Condition(image=torch.zeros_like(image), level=level))
    assert torch.equal(model(x_t, t), grey)
    assert not torch.allclose(out, grey, atol=1e-3)
    noisier = model(x_t, t, Condition(image=image, level=level + 0.5))
    assert not torch.allclose(out, noisier, atol=1e-3)
    swapped = model(x_t.flip(0), t.flip(0), Condition(image=image.flip(0), level=level))
    assert_close(swapped, out.flip(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_guidance_is_by_the_class_and_keeps_the_image(scale):
    torch.manual_seed(0)
    model = UNet(8, 1, channels=16, num_classes=3, super_resolution=4).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    diffusion, label = GaussianDiffusion(timesteps=100), torch.tensor([1, 2])
    given = {"image": torch.randn(2, 1, 4, 4), "level": torch.tensor([0.0, 0.2])}
    level, x_t = diffusion.levels(10)[3], torch.randn(2, 1, 8, 8)

    def predicted(condition: Condition, scale: float) -> torch.Tensor:
        return diffusion.denoiser(model, condition, guidance_scale=scale).output(x_t, level)[0]

    cond = predicted(Condition(label, **given), 1.0)
    null = predicted(Condition(torch.full_like(label, NULL_LABEL), **given), 1.0)
    assert not torch.allclose(cond, null, atol=1e-3)
    found = predicted(Condition(label, **given), scale)
    assert_close(found, null + scale * (cond - null), atol=1e-4, rtol=1e-4)


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(run, script):
    shutil.copytree(run, "copy")
    start = "copy/checkpoints/model_step_00000003.pt"
    result = script("train", "--resume", start, "--max-steps", 6)
    assert result.code == 0, result.err
    whole, resumed = (load_checkpoint(path / "model_final.pt") for path in (run, Path("copy")))
    assert_same_training(whole, resumed)


def test_a_cascade_without_augmentation_enlarges_as_if_given_the_small_image(run, base, tmp_path):
    small = drawn(checkpoint=base / "model_final.pt", num_images=1, class_id="4")
    save_image(tmp_path / "small.png", small[0].permute(1, 2, 0).expand(-1, -1, 3).numpy())
    options = {"then_augmentation": [0.0], "then_steps": [3], "class_id": "4"}
    cascade = drawn(
        checkpoint=base / "model_final.pt", then=[run / "model_final.pt"], num_images=1, **options
    )
    flags = {"start_from": str(tmp_path / "small.png"), "num_images": 1, "class_id": "4"}
    job = SamplingJob(SAMPLE.keywords(checkpoint=run, **FEW, **flags))
    job.request.seed = derive_seed("stage", 1, 0)
    assert torch.equal(draw(job).items, cascade)
    augmented_by_default = drawn(
        checkpoint=base / "model_final.pt",
        then=[run / "model_final.pt"],
        num_images=1,
        class_id="4",
    )
    assert not torch.equal(augmented_by_default, cascade)


def test_a_cascade_of_three_stages_draws_the_same_in_batches_of_any_size(run, base, folder):
    words = ["--super-resolution", 8, "--image-size", 16, "--max-steps", 2]
    run_train(*words, "--output-dir", folder / "large")
    options = {
        "then": [str(run / "model_final.pt"), str(folder / "large/model_final.pt")],
        "num_images": 6,
        "then_steps": [3, 2],
    }
    whole = drawn(checkpoint=base / "model_final.pt", **options)
    assert whole.shape == (6, 1, 16, 16)
    parts = drawn(checkpoint=base / "model_final.pt", batch_size=4, **options)
    assert_close(parts.short(), whole.short(), atol=1, rtol=0)
    job = SamplingJob(SAMPLE.keywords(checkpoint=base / "model_final.pt", **FEW, **options))
    assert [len(job.plan.levels) - 1, job.steps] == [2, 8]
    decisive = job.decisive()
    other = SamplingJob(
        SAMPLE.keywords(
            checkpoint=base / "model_final.pt", **FEW, **options | {"then_steps": [2, 2]}
        )
    )
    assert other.decisive() != decisive


def test_a_cascade_in_parts_continues_and_depends_on_each_stage(run, base, script):
    words = ["--checkpoint", base, "--then", run, "--steps", 2, "--num-images", 6]
    words += ["--batch-size", 2, "--output", "a.npz"]
    result = script("sample", *words, "--then-steps", 2)
    assert result.code == 0, result.err
    assert result.out.index(str(base)) < result.out.index(str(run))
    assert np.load("a.npz")["arr_0"].shape == (6, 8, 8, 1)
    options = {"then": [str(run)], "num_images": 1, "checkpoint": base}
    keys = [
        SamplingJob(SAMPLE.keywords(**FEW, **options | changed)).decisive()
        for changed in (
            {},
            {"then": [str(run / "model_final.pt")]},
            {"then_augmentation": [0.3]},
            {"then_sampler": ["ddim"]},
            {"then_guidance_scale": [2.0]},
            {"then_steps": [7]},
            {"seed": 3},
        )
    ]
    assert keys[0] == keys[1]  # the file's content decides, not its name
    assert all(key != keys[0] for key in keys[2:])


def test_the_picture_of_training_shows_low_resolution_above_samples_above_originals():
    trainer = trainer_of(*SMALL)
    data = load_dataset("digits")
    config = {"model": {"super_resolution": 4}, "data": {"image_size": 8, "image_channels": 1}}
    preview = SuperResolutionPreview(
        torch.arange(5), trainer, config, data.items, None, StopSignals()
    )
    assert torch.equal(
        preview.condition_of(torch.arange(5)).image, low_resolution(to_unit(data.items[:5]), (4, 4))
    )
    picture = preview.picture(2)
    expected = stacked(
        low_resolution(to_unit(data.items[:5]), (4, 4)),
        to_unit(preview.samples),
        to_unit(data.items[:5]),
    )
    assert np.array_equal(picture, expected)

    def smoothed(steps, indices, condition):  # in place of the network
        assert steps == 10
        assert (condition.level == 0).all()
        return F.interpolate(condition.image, (8, 8), mode="bicubic")

    preview.sample, preview.at_once = smoothed, 7
    rows = indices_like(len(data.items), 20)
    expected = bicubic(low_resolution(to_unit(data.items[rows]), (4, 4)), (8, 8))
    assert torch.equal(preview.evaluated(10, 20), expected)  # what --eval-interval measures


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "RUN"], "enlarges images: give it one with --start-from"),
        (["--checkpoint", "RUN", "--interpolate"], "enlarges images; it has --start-from"),
        (["--checkpoint", "RUN", "--start-from", "TINY"], "has 3 pixels, and this checkpoint"),
        (["--checkpoint", "RUN", "--start-from", "BIG", "--strength", 0.5], "--strength has no"),
        (["--checkpoint", "BASE", "--then", "BASE"], "enlarges no images"),
        (["--checkpoint", "BASE", "--then", "RUN", "RUN"], "of 1 x 4 x 4, and the stage before"),
        (["--checkpoint", "BASE", "--augmentation", 0.1], "this checkpoint enlarges no images"),
        (["--checkpoint", "BASE", "--then-steps", 3], "has no effect without --then"),
        (["--checkpoint", "BASE", "--then", "RUN", "--then-steps", 3, 4], "give one, or one for"),
        (["--checkpoint", "BASE", "--then", "RUN", "--then-steps", 2000], "--then-steps 2000: the"),
    ],
)
def test_what_cannot_be_enlarged(words, message, run, base, script, tmp_path):
    save_image(tmp_path / "tiny.png", np.zeros((3, 3, 3), np.uint8))
    save_image(tmp_path / "big.png", np.zeros((9, 9, 3), np.uint8))
    places = {
        "RUN": run / "model_final.pt",
        "BASE": base / "model_final.pt",
        "TINY": "tiny.png",
        "BIG": "big.png",
    }
    found = script("sample", *(places.get(word, word) for word in words))
    assert found.code in (1, 2)
    assert message in found.err
    assert len(found.err.strip().splitlines()) <= 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--super-resolution", "8"], "super-resolution from 8 needs larger images than 8"),
        (["--super-resolution", "4", "--model", "cnn"], "the model cnn has no super_resolution"),
    ],
)
def test_what_cannot_be_trained(words, message, script):
    found = script("train", *COMMON, *words, "--max-steps", 1)
    assert message in found.err


def test_evaluation_compares_ways_of_enlarging(run, folder, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 60)
    output = folder / "metrics.json"
    words = ["--checkpoint", run, "--num-images", 60, "--repeats", 1, "--steps", 2]
    request = EVALUATE.parse([*map(str, words), "--output", str(output), "--threads", "1"])
    assert process.run(evaluate.main, request) == 0
    report = json.loads(output.read_text())["super_resolution"]
    ways = {"bicubic", "mean prediction (one step)", "samples"}
    assert report.keys() == ways | {"floor", "sha256", "size"}
    assert report["bicubic"]["psnr"][0] > report["samples"]["psnr"][0]  # after six steps
    assert 0.01 < report["floor"] < report["bicubic"]["classifier_fid"][0]
    weights = str(folder / "weights.safetensors")
    words = ["--checkpoint", str(run), "--card", str(output), weights]
    assert process.run(export.main, EXPORT.parse(words)) == 0
    card = Path(weights).with_suffix(".md").read_text(encoding="utf-8")
    assert "| bicubic |" in card
    assert "--start-from small.png" in card
    assert Path(folder, "metrics_super_resolution.png").exists()


def test_the_psnr_of_a_known_error():
    originals = torch.full((3, 1, 12, 12), 100, dtype=torch.uint8)
    found = compare_ways(originals, {"way": [originals + 10]}, None)
    assert found["way"]["psnr"].values[0] == pytest.approx(20 * np.log10(25.5))
    flat = bicubic(to_unit(originals)[:, :, :3, :3], (12, 12))
    assert torch.equal(flat, originals)


def test_a_stage_with_captions_follows_the_prompts_of_the_first():
    words = ["red", "blue", "cat"]
    model = {"caption_length": 4, "vocabulary_size": FIRST_WORD + len(words)}
    data = {"words": words, "prompts": ["red"], "classes": [], "image_size": 8}
    data["image_channels"] = 1
    config = {"model": model, "data": data, "train": {"label_dropout": 0.1, "validation": 1}}
    flags = {"checkpoint": "a", "num_images": 3}
    first = Wanted(
        SAMPLE.keywords(**flags, prompt=["red cat", "blue cat"], interpolate=True), config, {}
    )
    later = Wanted(SAMPLE.keywords(**flags), config, {})
    later.follow(first)
    assert torch.equal(later.condition.tokens, first.condition.tokens)
    assert torch.equal(later.blend[0].tokens, first.blend[0].tokens)
    assert torch.equal(later.blend[1], first.blend[1])
    without = {**config, "model": {}}
    unconditional = Wanted(SAMPLE.keywords(**flags), without, {})
    unconditional.follow(first)
    assert unconditional.condition is None
    third = Wanted(SAMPLE.keywords(**flags), config, {})
    third.follow(unconditional)
    assert torch.equal(third.condition.tokens, first.condition.tokens)
    with pytest.raises(ValueError, match="the first stage is not conditioned on captions"):
        third.follow(Wanted(SAMPLE.keywords(**flags), without, {}))


def test_classes_of_the_stages_must_be_the_same(run, folder, script):
    letters = folder / "letters"
    data = load_dataset("digits")
    for i, image in enumerate(data.items[:12]):
        pixels = image.permute(1, 2, 0).expand(-1, -1, 3).numpy()
        save_image(folder / "images" / "ab"[i % 2] / f"{i}.png", pixels)
    words = ["--dataset", "folder", "--data-dir", folder / "images", "--image-size", 4, "--grey"]
    words += ["--validation", 2, "--max-steps", 1, "--batch-size", 4]
    run_train(*words, "--class-conditional", "--output-dir", letters)
    found = script("sample", "--checkpoint", letters, "--then", run)
    assert "the first stage is not conditioned on the classes of this one" in found.err


def test_conditions_of_labels_are_unchanged():
    """A run without super-resolution has no image in its condition."""
    trainer = trainer_of("--class-conditional")
    data = load_dataset("digits")
    config = {"model": {"num_classes": 10}, "data": {}}
    condition = condition_of(data, config)
    batch = trainer.objective.batch(data.items[:4], condition[torch.arange(4)], 0)
    assert batch.condition.tensors().keys() == {"label"}
