"""Rectangular images: --image-size HEIGHTxWIDTH, from the data to a sample."""

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from cli.training import TRAIN
from dataset.items import resized
from dataset.registry import load_dataset
from images import save_image
from runs import SMALL
from sample import sample

SIZE = (12, 20)


@pytest.mark.parametrize(
    ("text", "size"), [("64", 64), ("64x48", [64, 48]), ("64X64", 64), (" 64 x 48 ", [64, 48])]
)
def test_a_size_is_a_side_or_height_and_width(text, size):
    assert TRAIN.parse([f"--image-size={text}"]).image_size == size
    assert TRAIN.keywords(image_size=size).image_size == size
    TRAIN.require_valid("image_size", size)


@pytest.mark.parametrize("text", ["64x", "x48", "64x48x3", "64,48", "64.5", "big", "0x9", "9x5000"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match=r"HEIGHTxWIDTH, such as 64 or 64x48|between 1 and 4096"):
        TRAIN.keywords(image_size=text)


def test_square_data_are_cropped_to_the_aspect_ratio_or_stretched():
    squares = load_dataset("digits").items  # 8 x 8
    cropped = load_dataset("digits", image_size=(16, 12)).items
    assert torch.equal(cropped, resized(squares[:, :, :, 1:7], (16, 12)))
    stretched = load_dataset("digits", image_size=(16, 12), fit="stretch").items
    assert torch.equal(stretched, resized(squares, (16, 12)))
    with pytest.raises(ValueError, match="digits needs no fitting"):
        load_dataset("digits", image_size=16, fit="stretch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images that are red above and blue below, of the shape of SIZE."""
    root = tmp_path_factory.mktemp("rectangles")
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :, 0] = pixels[12:, :, 2] = 200
    for i in range(12):
        save_image(root / "images" / f"{i}.png", pixels + i)
    return root


def test_a_run_is_trained_resumed_and_sampled(script, folder):
    size = "x".join(map(str, SIZE))
    flags = [*SMALL, "--dataset", "folder", "--data-dir", folder / "images", "--image-size", size]
    run = folder / "run"
    assert script("train", *flags, "--max-steps", 2, "--output-dir", run).code == 0
    assert script("train", "--resume", "--max-steps", 4, "--output-dir", run).code == 0
    checkpoint = load_checkpoint(run / "model_final.pt")
    assert checkpoint["config"]["data"]["image_size"] == [*SIZE]
    refused = script("train", "--resume", "--image-size", 16, "--output-dir", run)
    assert "data.image_size: 12x20 in the checkpoint, 16 now" in refused.err

    assert sample(run / "model_final.pt", num_images=2, steps=2).shape == (2, *SIZE, 3)
    image = next((folder / "images").iterdir())
    flags = ["--checkpoint", run / "model_final.pt", "--steps", 2, "--num-images", 4]
    drawn = script("sample", *flags, "--start-from", image, "--animate", "--show-intermediate")
    assert drawn.code == 0, drawn.err
    scale = round(56 / SIZE[1])
    with Image.open("outputs/generated_samples.png") as grid:
        assert grid.size == (2 + 2 * (scale * SIZE[1] + 2), 2 + 2 * (scale * SIZE[0] + 2))
    assert script("visualize_diffusion", "--run", run).code == 0


def test_a_checkpoint_of_an_impossible_size_is_refused(script, folder, tmp_path):
    checkpoint = load_checkpoint(folder / "run" / "model_final.pt")
    for size in ([12, 20, 3], [12], []):
        for section in ("data", "model"):
            checkpoint["config"][section]["image_size"] = size
        save_checkpoint(tmp_path / "odd.pt", checkpoint)
        with pytest.raises(CheckpointError, match=r"an image size is N or .height, width."):
            load_checkpoint(tmp_path / "odd.pt")
