"""What this project wrote is never data, whatever its folder is called."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import visuals.pictures
from conftest import TINY
from dataset.own_files import is_own_picture
from dataset.registry import load_dataset
from images import assert_same_data, make_image_folder, noise_pixels, save_image
from utils import DataError

RUN = [*TINY, "--dataset", "folder", "--image-size", 16, "--model", "dit", "--patch-size", 8]
RUN += ["--blocks", 1, "--data-dir"]


def load(root: Path, **options):
    return load_dataset("folder", root, image_size=16, **options)


def own_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    visuals.pictures.save_picture(path, noise_pixels(20, 20, 3))
    assert is_own_picture(path)


@pytest.mark.parametrize(
    ("output", "limit"),
    [("images/outputs", 2), ("images", 0), ("images/cats", 2), ("images/run 2/a", 0)],
)
def test_a_run_never_learns_its_own_pictures(script, image_folder, output, limit):
    before = load(image_folder)
    flags = ["--cache-limit", limit, "--output-dir", output, "--sample-interval", 1]
    result = script("train", *RUN, "images", *flags, "--epochs", 1)
    assert result.code == 0, result.err
    assert list(Path(output, "samples").glob("epoch_*.png"))
    found = load(image_folder, cache_limit=limit)
    assert_same_data(found, before)
    assert "2 pictures that this project wrote are left out" in found.note
    result = script("train", "--resume", "--output-dir", output, "--epochs", 2)
    assert result.code == 0, result.err
    assert "has changed" not in result.out
    assert "pictures that this project wrote are left out" in result.out
    result = script("train", *RUN, "images", *flags, "--max-steps", 1, "--overwrite")
    assert result.code == 0, result.err
    assert "data: folder, 12 images" in result.out


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif"])
def test_samples_in_the_image_folder_are_left_out(script, conditional, image_folder, ending):
    before = load(image_folder, cache_limit=0)
    flags = ["--checkpoint", conditional, "--steps", 1, "--num-images", 4]
    name = image_folder / "cats" / f"new.{ending}"
    if ending == "gif":
        flags, name = [*flags, "--animate"], name.with_suffix(".png")
    assert script("sample", *flags, "--output", name).code == 0
    shutil.copy(name, image_folder / "copied.JPEG")
    found = load(image_folder, cache_limit=0)
    assert_same_data(found, before)
    own = 3 if ending == "gif" else 2
    assert f"{own} pictures that this project wrote are left out" in found.note
    assert "decoded into" not in found.note  # what was decoded is still valid
    assert_same_data(load(image_folder), before)


def test_own_pictures_are_left_out_before_colours_are_looked_for(tmp_path):
    save_image(tmp_path / "a.png", noise_pixels(16, 16))
    own_picture(tmp_path / "b.png")
    assert load(tmp_path).items.shape == (1, 1, 16, 16)


@pytest.mark.parametrize("limit", [2, 0])
def test_a_folder_of_own_pictures_has_no_images(tmp_path, limit):
    own_picture(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"no images in .*: 1 picture that this project wrote is"):
        load(tmp_path, cache_limit=limit)


@pytest.mark.parametrize("run", ["", "old", "cats"])
def test_unmarked_pictures_of_earlier_versions_are_known_by_their_names(image_folder, run):
    before = load(image_folder)
    folder = image_folder / run
    names = ["samples/epoch_001.png", "training_loss.png", "learning.png", "generated_samples.png"]
    for name in names:
        save_image(folder / name, noise_pixels(9, 9, 3))
    assert len(load(image_folder).items) == 16  # without a configuration it is no run
    config = {section: {} for section in ("data", "model", "diffusion", "train")}
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_data(load(image_folder), before)
    save_image(folder / "samples" / "cat.png", noise_pixels(9, 9, 3))
    assert len(load(image_folder).items) == 13


def test_own_pictures_can_be_measured(script, image_folder):
    for i in range(12):
        own_picture(image_folder / f"{i}.png")
    make_image_folder(image_folder.parent / "real")
    flags = ["--dataset", "folder", "--data-dir", "real", "--image-size", 20]
    shutil.rmtree(image_folder / "cats")
    shutil.rmtree(image_folder / "dogs")
    result = script("evaluate", "--samples", image_folder, *flags, "--metrics", "copies")
    assert result.code == 0, result.err
    assert "12 images" in result.out


def test_looking_for_the_mark_takes_a_small_share_of_the_reading(tmp_path, monkeypatch):
    """Files are opened once for it, and not at all where decoded images are at hand."""
    make_image_folder(tmp_path)
    looked = []
    monkeypatch.setattr("dataset.decoding.is_own_picture", lambda path: looked.append(path))
    load(tmp_path, cache_limit=0)
    assert len(looked) == 12
    load(tmp_path, cache_limit=0)
    assert len(looked) == 12
    assert np.unique(looked).size == 12
