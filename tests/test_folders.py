import json
import os
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import train
from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from conftest import ROOT, TINY
from dataset.changes import changes, digest_of, read_files
from dataset.folders import FOLDER_SIZE
from dataset.image_files import read_image, require_same_size
from dataset.registry import load_dataset
from evaluation.images import load_images
from images import (
    BOMBS,
    assert_images,
    assert_same_data,
    make_image_folder,
    noise_pixels,
    save_image,
)
from utils import DataError

DIT = ["--model", "dit", "--patch-size", 8, "--blocks", 1]
# A tiny training run on the folder images/.
TRAIN = ["train", *TINY, "--dataset", "folder", "--data-dir", "images", "--image-size", 16]


# --- decoding ------------------------------------------------------------------------------------


def test_subfolders_are_classes(image_folder):
    dataset = load_dataset("folder", image_folder, image_size=16)
    assert_images(dataset, 12, (3, 16, 16), 2)
    assert dataset.classes == ["cats", "dogs"]
    assert dataset.labels.tolist() == [0] * 6 + [1] * 6


def test_one_subfolder_is_one_class_and_images_of_the_right_size_keep_their_pixels(tmp_path):
    pixels = noise_pixels(FOLDER_SIZE, FOLDER_SIZE, 3)
    save_image(tmp_path / "only" / "a.png", pixels)
    dataset = load_dataset("folder", tmp_path)
    assert_images(dataset, 1, (3, FOLDER_SIZE, FOLDER_SIZE), 1)
    assert dataset.classes == ["only"]
    assert (dataset.items[0].permute(1, 2, 0).numpy() == pixels).all()


def test_there_are_no_classes_if_an_image_is_in_no_subfolder_and_images_are_cropped(tmp_path):
    pixels = np.zeros((218, 178, 3), np.uint8)  # as in CelebA
    pixels[16:202] = [255, 0, 0]  # the central square, and the margin that a JPEG blurs
    for i in range(3):
        save_image(tmp_path / ("more" if i else "") / f"{i:06d}.jpg", pixels, quality=95)
    dataset = load_dataset("folder", tmp_path, image_size=32)
    assert dataset.items.shape == (3, 3, 32, 32)
    assert dataset.labels is None
    assert dataset.classes == []
    assert dataset.items[:, 0].min() > 240
    assert dataset.items[:, 1:].max() < 16


def test_a_folder_of_grey_images_is_grey(tmp_path):
    save_image(tmp_path / "a.png", noise_pixels(16, 16))
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)  # 16 bits a pixel
    Image.fromarray(deep).save(tmp_path / "b.png")
    grey = load_dataset("folder", tmp_path, image_size=16)
    assert grey.items.shape == (2, 1, 16, 16)
    assert grey.items[1].flatten().tolist() == list(range(256))
    save_image(tmp_path / "c.png", noise_pixels(16, 16, 3))
    colour = load_dataset("folder", tmp_path, image_size=16)
    assert colour.items.shape == (3, 3, 16, 16)
    # The digest of an image does not depend on the other images.
    assert colour.files["a.png"] == grey.files["a.png"] != colour.files["c.png"]


def test_images_are_cropped_or_stretched(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20, 0] = 255
    pixels[:, 40:, 2] = 255  # red, black, blue
    save_image(tmp_path / "a.png", pixels)
    (cropped,) = load_dataset("folder", tmp_path, image_size=16).items
    assert cropped[:, :, 2:-2].max() < 16
    (stretched,) = load_dataset("folder", tmp_path, image_size=16, fit="stretch").items
    assert stretched[0, :, :4].min() > 240
    assert stretched[2, :, -4:].min() > 240
    assert stretched[:, :, 8].max() < 16


@pytest.mark.parametrize("name", ["train", "visualize_diffusion"])
def test_fit_is_an_error_for_other_data_sets(script, name):
    result = script(name, "--dataset", "digits", "--fit", "stretch")
    assert result.code == 2
    assert "--fit stretch applies only to --dataset folder" in result.err


# --- files that cannot be read -------------------------------------------------------------------


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset("folder", tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(DataError, match=r"no images in .*; looked for \.png"):
        load_dataset("folder", tmp_path)


@pytest.fixture
def bad_folder(image_folder):
    (image_folder / "cats" / "empty.png").write_bytes(b"")
    (image_folder / "cats" / "text.jpg").write_text("hello")
    content = (image_folder / "dogs" / "0.png").read_bytes()
    (image_folder / "dogs" / "cut.png").write_bytes(content[: len(content) // 2])
    (image_folder / "dogs" / ".hidden.png").write_text("ignored")
    return image_folder


@pytest.mark.parametrize("limit", [2, 0])
def test_bad_images_are_named_or_left_out(bad_folder, tmp_path, limit):
    options = {"image_size": 16, "cache_dir": tmp_path / "cache", "cache_limit": limit}
    for _ in range(2):
        with pytest.raises(DataError, match="3 of 15 images") as error:
            load_dataset("folder", bad_folder, **options)
        for name in ("cats/empty.png", "cats/text.jpg", "dogs/cut.png", "--skip-bad-images"):
            assert name in str(error.value)
        assert "hidden" not in str(error.value)
        assert not list((tmp_path / "cache").glob("*"))
        found = load_dataset("folder", bad_folder, skip_bad_images=True, **options)
        assert_images(found, 12, (3, 16, 16), 2)
        assert found.note.endswith("3 of 15 images cannot be read and are left out")


def test_unreadable_images_give_their_reasons_and_cannot_all_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.image_files.MAX_PIXELS", 900)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(noise_pixels(8, 8, 3)).save(tmp_path / "icon.png", format="ICO")
    save_image(tmp_path / "large.png", noise_pixels(31, 30))
    with pytest.raises(DataError, match="3 of 3 images") as error:
        load_dataset("folder", tmp_path, skip_bad_images=True)
    for reason in (
        "float.tiff: pixels of mode F",
        "icon.png: it is an icon",
        "30 x 31 is over 900 pixels",
    ):
        assert reason in str(error.value)


@pytest.fixture(params=BOMBS)
def bomb(request, tmp_path, monkeypatch) -> Path:
    """A file of a few bytes with an enormous image, which must not be decoded."""

    def load(image):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    path = tmp_path / "bombs" / request.param
    path.parent.mkdir()
    path.write_bytes(BOMBS[request.param])
    assert path.stat().st_size < 200
    return path


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("limit", [2, 0])
def test_an_enormous_image_is_named_and_not_decoded(bomb, tmp_path, recwarn, limit):
    start = time.process_time()
    with pytest.raises(DataError) as error:
        load_dataset("folder", bomb.parent, cache_dir=tmp_path / "cache", cache_limit=limit)
    assert time.process_time() - start < 3
    reason = "is over 50,000,000 pixels" if "8000" in bomb.name else "claims more than 50,000,000"
    assert f"{bomb.name}: " in str(error.value)
    assert reason in str(error.value)
    assert not recwarn.list  # the error is all that is printed


@pytest.mark.filterwarnings("default")
def test_an_enormous_image_to_start_from_is_rejected(bomb, recwarn):
    with pytest.raises(DataError, match=f"{bomb} cannot be read as an image"):
        read_image(bomb, (16, 16), 3)
    with pytest.raises(DataError, match=f"{bomb} cannot be read as an image"):
        require_same_size(bomb, bomb)
    assert not recwarn.list


def test_links_that_lead_out_of_the_folder_are_left_out(image_folder, tmp_path):
    before = load_dataset("folder", image_folder, image_size=16)
    outside = tmp_path / "outside" / "dogs"
    save_image(outside / "a.png", noise_pixels(16, 16, 3))
    (image_folder / "cats" / "absolute.png").symlink_to(outside / "a.png")
    (image_folder / "cats" / "relative.png").symlink_to("../../outside/dogs/a.png")
    (image_folder / "cats" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (image_folder / "wolves").symlink_to(outside)
    (image_folder / "foxes").symlink_to(tmp_path / "nowhere")
    (image_folder / "notes.txt").symlink_to(__file__)  # not an image, so not counted
    found = load_dataset("folder", image_folder, image_size=16)
    assert found.note == (
        f"5 symbolic links lead out of {image_folder} and are left out; --follow-links reads them"
    )
    assert_same_data(found, before)

    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.png").symlink_to(outside / "a.png")
    with pytest.raises(DataError, match=r"no images .*; 1 symbolic link leads out of .* is left"):
        load_dataset("folder", tmp_path / "links")


def test_links_within_the_folder_are_followed_to_files_but_not_to_folders(image_folder, tmp_path):
    (image_folder / "cats" / "dog.png").symlink_to(image_folder / "dogs" / "0.png")
    (image_folder / "more").symlink_to(image_folder / "dogs")
    (tmp_path / "link").symlink_to(image_folder)  # the folder itself may be a link
    found = load_dataset("folder", tmp_path / "link", image_size=16)
    assert_images(found, 13, (3, 16, 16), 2)
    assert not found.note
    cat, dog = found.items[found.labels == 0][-1], found.items[found.labels == 1][0]
    assert torch.equal(cat, dog)


@pytest.mark.parametrize("limit", [2, 0])
def test_broken_links_and_pipes_are_bad_images(image_folder, tmp_path, limit):
    (image_folder / "cats" / "gone.png").symlink_to("nothing.png")
    (image_folder / "cats" / "round.png").symlink_to("round.png")
    os.mkfifo(image_folder / "dogs" / "pipe.png")  # reading it would never end
    options = {"image_size": 16, "cache_dir": tmp_path / "cache", "cache_limit": limit}
    with pytest.raises(DataError, match=r"3 of 15 images") as error:
        load_dataset("folder", image_folder, **options)
    for name in ("cats/gone.png", "cats/round.png", "dogs/pipe.png"):
        assert f"{name}: it is missing, or not a regular file" in str(error.value)
    found = load_dataset("folder", image_folder, skip_bad_images=True, **options)
    assert_images(found, 12, (3, 16, 16), 2)


def test_control_characters_in_a_file_name_are_not_printed(image_folder):
    (image_folder / "cats" / "\x1b[2J\n\udcff.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cats/\?\[2J\?\?\.png: it is empty"):
        load_dataset("folder", image_folder)


# --- what is read, and what is left out ----------------------------------------------------------


def test_files_of_other_types_are_counted_by_ending(image_folder):
    for name in ("cats/a.heic", "cats/b.HEIC", "dogs/c.svg", "foxes/d.webm", "foxes/cats.txt"):
        (image_folder / name).parent.mkdir(exist_ok=True)
        (image_folder / name).write_bytes(b"hello")
    found = load_dataset("folder", image_folder, image_size=16)
    assert_images(found, 12, (3, 16, 16), 2)
    assert found.note.splitlines() == [
        "4 files are left out, of types that are not read: 2 .heic, 1 .svg, 1 .webm",
        "foxes is no class: it has no images that are read",
    ]
    save_image(image_folder / "foxes" / "a.png", noise_pixels(16, 16, 3))
    _, how = load_images(image_folder / "foxes", (3, 16, 16))
    assert how == "1 files; 1 file is left out, of types that are not read: 1 .webm"


def test_what_accompanies_images_is_not_missed(image_folder):
    names = ["1.txt", "1.json", "README", "Thumbs.db", "desktop.ini", "labels.csv", ".DS_Store"]
    for name in [*names, "._1.png", "notes.md", "list.xml", "model.pt"]:
        (image_folder / "cats" / name).write_text("hello")
    assert not load_dataset("folder", image_folder, image_size=16).note


def test_images_without_an_ending_are_missed(image_folder):
    shutil.copy(image_folder / "dogs" / "0.png", image_folder / "dogs" / "image")
    note = load_dataset("folder", image_folder, image_size=16).note
    assert note == "1 file is left out, of types that are not read: 1 without an ending"


def test_pictures_outside_the_class_folders_are_named(script, image_folder):
    for name in ("stray.png", "b.png"):
        save_image(image_folder / name, noise_pixels(9, 9, 3))
        found = load_dataset("folder", image_folder, image_size=16)
        assert found.classes == []
        assert f"stray.png {'lie' if name == 'b.png' else 'lies'} outside the class" in found.note
    result = script(*TRAIN, "--preset", "fast", "--channels", 8, "--max-steps", 1)
    assert result.code == 0, result.err
    assert "b.png, stray.png lie outside the class folders of images, so that" in result.out
    result = script(*TRAIN, "--class-conditional", "--overwrite")
    assert "stray.png" in result.out
    assert "has no classes here; its classes are the subfolders of images" in result.err
    (image_folder / "stray.png").unlink()
    (image_folder / "b.png").unlink()
    shutil.rmtree(image_folder / "cats")
    result = script(*TRAIN, "--class-conditional", "--overwrite")
    assert "folder has only one class here, dogs; its classes are" in result.err


def test_a_flat_folder_with_a_few_images_below_has_no_note(tmp_path):
    for name in ("a.png", "b.png", "c.png", "old/d.png"):
        save_image(tmp_path / name, noise_pixels(9, 9, 3))
    assert not load_dataset("folder", tmp_path, image_size=8).note


@pytest.mark.parametrize(
    ("names", "hint"), [(["test", "Train"], True), (["train"], True), (["train", "car"], False)]
)
def test_classes_that_look_like_splits_are_pointed_out(tmp_path, names, hint):
    for name in names:
        save_image(tmp_path / name / "a.png", noise_pixels(9, 9, 3))
    found = load_dataset("folder", tmp_path, image_size=8)
    assert set(found.classes) == set(names)
    assert ("splits" in found.note) == hint
    assert (f"--data-dir {tmp_path}/{names[-1]}" in found.note) == hint


def test_a_folder_that_cannot_be_opened_is_named(image_folder):
    (image_folder / "cats").chmod(0)
    try:
        if os.access(image_folder / "cats", os.R_OK):
            pytest.skip("root may read everything")
        note = load_dataset("folder", image_folder, image_size=16).note
    finally:
        (image_folder / "cats").chmod(0o755)
    assert f"{image_folder / 'cats'} cannot be opened (Permission denied)" in note


def test_names_that_are_not_utf8_are_files_and_classes(script, image_folder):
    os.rename(image_folder / "cats", os.fsencode(image_folder) + b"/caf\xe9")
    os.rename(image_folder / "dogs" / "0.png", os.fsencode(image_folder) + b"/dogs/\xff.png")
    (image_folder / "dogs" / "bad.png").write_bytes(b"")
    flags = [*DIT, "--class-conditional", "--skip-bad-images", "--cache-limit", 0]
    assert script(*TRAIN, *flags, "--max-steps", 1).code == 0
    assert script("train", "--resume", "--max-steps", 2).code == 0
    saved = load_checkpoint("outputs/model_final.pt")["config"]["data"]["classes"]
    assert saved == ["caf\udce9", "dogs"]
    assert "dogs/\udcff.png" in json.loads(Path("outputs/data.json").read_text())


# --- links that lead out of the folder -----------------------------------------------------------


def test_links_that_lead_out_can_be_followed(script, image_folder, tmp_path):
    outside = tmp_path / "outside"
    save_image(outside / "wolves" / "deep" / "a.png", noise_pixels(16, 16, 3))
    (image_folder / "wolves").symlink_to(outside / "wolves")
    (image_folder / "cats" / "new.png").symlink_to(outside / "wolves" / "deep" / "a.png")
    (image_folder / "again").symlink_to("cats")  # a second time the same images
    (outside / "wolves" / "round").symlink_to(image_folder)
    (outside / "wolves" / "deep" / "up").symlink_to("../..")
    (outside / "wolves" / "deep" / "self").symlink_to(".")
    (outside / "wolves" / "deep" / "all").symlink_to("/")
    found = load_dataset("folder", image_folder, image_size=16, follow_links=True)
    assert_images(found, 14, (3, 16, 16), 3)
    assert not found.note
    (image_folder / "gone.png").symlink_to(outside / "nothing.png")
    with pytest.raises(DataError, match=r"1 of 15 .*\n  gone.png: it is missing"):
        load_dataset("folder", image_folder, image_size=16, follow_links=True)
    (image_folder / "gone.png").unlink()

    assert script(*TRAIN, *DIT, "--follow-links", "--max-steps", 1).code == 0
    result = script("train", "--resume", "--max-steps", 2)
    assert result.code == 0, result.err
    assert "14 images" in result.out


# --- grey, colour and transparency ----------------------------------------------------------------


@pytest.mark.parametrize("limit", [2, 0])
def test_images_are_read_in_grey_or_in_colour(image_folder, tmp_path, limit):
    options = {"image_size": 16, "cache_limit": limit}
    colour = load_dataset("folder", image_folder, **options)
    grey = load_dataset("folder", image_folder, grey=True, **options)
    assert grey.items.shape == (12, 1, 16, 16)
    assert grey.files == colour.files
    first = Image.fromarray(colour.items[0].permute(1, 2, 0).numpy()).convert("L")
    assert (grey.items[0, 0].numpy() == np.asarray(first)).all()
    save_image(tmp_path / "greys" / "a.png", noise_pixels(16, 16))
    plain = load_dataset("folder", tmp_path / "greys", **options)
    assert torch.equal(
        load_dataset("folder", tmp_path / "greys", grey=True, **options).items, plain.items
    )
    coloured = load_dataset("folder", tmp_path / "greys", colour=True, **options)
    assert torch.equal(coloured.items, plain.items.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("limit", [2, 0])
def test_transparent_pixels_get_the_colour_of_the_background(tmp_path, limit):
    pixels = np.zeros((8, 8, 4), np.uint8)
    save_image(tmp_path / "a.png", pixels)
    for name, value in [("white", 255), ("black", 0), ("#808080", 128), ("white", 255)]:
        options = {"image_size": 8, "cache_limit": limit, "background": name}
        assert (load_dataset("folder", tmp_path, **options).items == value).all()


@pytest.mark.parametrize("name", ["#ff", "transparent", "#00000000", "no colour", ""])
def test_a_background_is_an_opaque_colour(tmp_path, name):
    with pytest.raises(ValueError, match="not an opaque colour"):
        load_dataset("folder", tmp_path, background=name)


@pytest.mark.parametrize(
    "flags", [["--gray"], ["--color"], ["--colour"], ["--background", "red"], ["--follow-links"]]
)
def test_flags_of_folders_are_errors_for_other_data_sets(script, flags):
    result = script("train", *TINY, *flags)
    assert result.code == 2
    assert "applies only to --dataset folder, not to digits" in result.err


def test_how_a_folder_is_read_is_saved_and_fixed(script, image_folder):
    flags = [*DIT, "--grey", "--background", "black", "--max-steps"]
    assert script(*TRAIN, *flags, 1).code == 0
    data = load_checkpoint("outputs/model_final.pt")["config"]["data"]
    assert (data["grey"], data["colour"], data["background"]) == (True, False, "black")
    result = script("train", "--resume", "--max-steps", 2)
    assert result.code == 0, result.err
    assert "12 images of 1 x 16 x 16" in result.out
    result = script("train", "--resume", "--background", "red", "--max-steps", 3)
    assert "data.background: black in the checkpoint, red now" in result.err
    result = script("train", "--resume", "--colour", "--max-steps", 3)
    assert "data.colour: False in the checkpoint, True now" in result.err
    assert script(*TRAIN, *DIT, "--colour", "--max-steps", 1, "--overwrite").code == 0
    result = script("train", "--resume", "--grey", "--max-steps", 3)
    assert "data.grey: False in the checkpoint, True now" in result.err
    assert "has no effect with --colour" in script(*TRAIN, "--grey", "--colour").err
    flags = ["--metrics", "copies", "--num-images", 2, "--steps", 1, "--repeats", 1]
    result = script("evaluate", "--checkpoint", "outputs/model_final.pt", *flags)
    assert result.code == 0, result.err


def test_a_run_from_before_these_flags_continues(script, tmp_path):
    """It has read grey palettes in colour."""
    for i in range(4):
        picture = Image.fromarray(noise_pixels(16, 16 + i)).quantize(16)
        (tmp_path / "images").mkdir(exist_ok=True)
        picture.save(tmp_path / "images" / f"{i}.png")
    assert script(*TRAIN, *DIT, "--colour", "--max-steps", 1).code == 0
    path = Path("outputs/model_final.pt")
    checkpoint = load_checkpoint(path)
    for name in ("grey", "colour", "background", "follow_links"):
        del checkpoint["config"]["data"][name]
    save_checkpoint(path, checkpoint)
    result = script("train", "--resume", "--max-steps", 2)
    assert result.code == 0, result.err
    assert "4 images of 3 x 16 x 16" in result.out
    flags = ["--metrics", "copies", "--num-images", 2, "--steps", 1, "--repeats", 1]
    assert script("evaluate", "--checkpoint", path, *flags).code == 0


# --- images that become unreadable while the folder is read --------------------------------------


FILE_DAMAGES = {
    "deleted": Path.unlink,
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:200]),
    "text": lambda file: file.write_text("hello"),
}


@pytest.fixture
def damage_after(image_folder, monkeypatch):
    """damage_after("module.function", damage): damage an image after the function's first call."""

    def patch(name: str, damage=Path.unlink) -> None:
        module, attribute = name.rsplit(".", 1)
        function = getattr(import_module(module), attribute)

        def damaging(*arguments, **options):
            result = function(*arguments, **options)
            damage(image_folder / "cats" / "1.png")
            monkeypatch.setattr(name, function)
            return result

        monkeypatch.setattr(name, damaging)

    return patch


@pytest.mark.parametrize("damage", FILE_DAMAGES.values(), ids=FILE_DAMAGES)
@pytest.mark.parametrize(
    ("limit", "moment"),
    [
        (2, "dataset.folders.find_images"),
        (2, "dataset.decoding.has_colours"),
        (0, "dataset.pixel_cache.fingerprint"),
        (0, "dataset.decoding.has_colours"),
    ],
)
def test_an_image_damaged_during_loading_is_named_or_left_out(
    image_folder, tmp_path, damage_after, limit, moment, damage
):
    damage_after(moment, damage)
    options = {"image_size": 16, "cache_dir": tmp_path / "cache", "cache_limit": limit}
    with pytest.raises(DataError, match=r"1 of 12 images in (.|\n)*  cats/1\.png: "):
        load_dataset("folder", image_folder, **options)
    assert not list((tmp_path / "cache").glob("*"))

    shutil.rmtree(image_folder)
    make_image_folder(image_folder)
    damage_after(moment, damage)
    found = load_dataset("folder", image_folder, skip_bad_images=True, **options)
    assert_images(found, 11, (3, 16, 16), 2)
    assert found.note.endswith("1 of 12 images cannot be read and are left out")


def test_an_image_damaged_after_it_was_cached_is_named(image_folder, damage_after):
    load_dataset("folder", image_folder, cache_limit=0)
    damage_after("dataset.folders.find_images")
    with pytest.raises(DataError, match=r"1 of 12 images in (.|\n)*  cats/1\.png: "):
        load_dataset("folder", image_folder, cache_limit=0)


def test_an_image_damaged_during_loading_ends_training_with_a_message(
    script, image_folder, damage_after
):
    damage_after("dataset.folders.find_images")
    result = script(*TRAIN)
    assert result.code == 1
    assert result.err.startswith("train.py: error: 1 of 12 images in images cannot be read")
    assert "Traceback" not in result.err


# --- memory, and where files are written ---------------------------------------------------------

# Runs commands, one per argument, and prints the peak memory of each in bytes. Pages of mapped
# files do not count: the system takes them back when it needs them.
PROGRAM = """
import re, runpy, shlex, sys, threading, time
from pathlib import Path
import training.preview

def watch():
    while True:
        status = Path("/proc/self/status").read_text()
        peaks[-1] = max(peaks[-1], 1024 * int(re.search(r"RssAnon:\\s*(\\d+)", status)[1]))
        time.sleep(0.005)

training.preview.GRID_STEPS = 2
peaks = [0]
threading.Thread(target=watch, daemon=True).start()
for command in sys.argv[1:]:
    sys.argv = shlex.split(command)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise
    peaks.append(0)
print(peaks)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_set_and_files_are_written_to_known_folders(tmp_path):
    save_image(tmp_path / "one.png", noise_pixels(16, 16, 3))
    for name, count in [("small", 100), ("large", 1800)]:  # 88 MB decoded
        (tmp_path / name).mkdir()
        for i in range(count):
            os.link(tmp_path / "one.png", tmp_path / name / f"{i}.png")
    output, watched = tmp_path / "output", tmp_path / "watched"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "cwd"):
        (watched / name).mkdir(parents=True)
        environment[name] = str(watched / name)
    # matplotlib keeps a list of fonts in the home folder, or here, where there is one already.
    environment["MPLCONFIGDIR"] = matplotlib.get_cachedir()
    data = f"--dataset folder --image-size 128 --cache-limit 0 --data-dir {tmp_path}"
    run = "--model dit --patch-size 32 --blocks 1 --channels 4 --schedule edm --optimizer adamw "
    run += "--precision fp32 --device cpu --batch-size 10 --validation 10 --max-steps 3"
    commands = [
        f"train.py {data}/small {run} --output-dir {output}",
        f"train.py {data}/large {run} --output-dir {output} --overwrite",
        f"sample.py --checkpoint {output}/model_final.pt --device cpu --num-images 2 --steps 2 "
        f"--animate --output {output}/samples.png",
        f"visualize_diffusion.py --run {output} --steps 2 --device cpu",
        f"visualize_diffusion.py {data}/small --fit stretch --num-images 1 --timesteps 0 "
        f"--save-path {output}/forward.png",
    ]
    commands = [f"{ROOT}/{command}" for command in commands]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *commands],
        cwd=watched / "cwd",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert f"decoded into {tmp_path}/small/.tiny-diffusion/128_stretch.pixels" in result.stdout
    small, large, *_ = json.loads(result.stdout.splitlines()[-1])
    assert large - small < 42e6
    assert [p for p in watched.rglob("*") if p.is_file()] == []
    for name in ("model_final.pt", "samples.gif", "report.html", "forward.png"):
        assert (output / name).exists()


# --- training on folders -------------------------------------------------------------------------


def test_mapped_pixels_train_to_the_same_weights(script, image_folder):
    flags = [*DIT, "--fit", "stretch", "--schedule", "edm", "--batch-size", 4, "--max-steps", 5]
    assert script(*TRAIN, *flags, "--output-dir", "memory").code == 0
    mapped = ["--cache-limit", 0, "--cache-dir", "cache"]
    result = script(*TRAIN, *flags, *mapped, "--output-dir", "mapped")
    assert result.code == 0, result.err
    assert "decoded into cache/" in result.out
    runs = [load_checkpoint(f"{name}/model_final.pt") for name in ("memory", "mapped")]
    assert runs[0]["config"]["diffusion"] == runs[1]["config"]["diffusion"]  # sigma_data too
    for name, tensor in runs[0]["model"].items():
        assert torch.equal(tensor, runs[1]["model"][name]), name

    flags = ["--checkpoint", "mapped/model_final.pt", "--metrics", "copies", "--num-images", 2]
    result = script("evaluate", *flags, "--steps", 2, "--repeats", 1)
    assert result.code == 0, result.err
    assert "pixels are read from" in result.out

    longer = ["--resume", "--output-dir", "mapped", "--max-steps"]
    result = script("train", *longer, 6)
    assert "pixels are read from" in result.out  # the run's flags hold
    result = script("train", *longer, 7, "--cache-limit", 1)
    assert result.code == 0, result.err  # from memory now
    assert "pixels are" not in result.out


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        (64, ["--class-conditional", "--patch-size", 4, "--batch-size", 8]),
        (128, ["--fit", "stretch", *DIT]),
    ],
)
def test_large_images_are_drawn_in_a_grid_of_their_size(script, image_folder, size, flags):
    result = script(*TRAIN, "--image-size", size, *flags, "--max-steps", 2)
    assert result.code == 0, result.err
    assert f"data: folder, 12 images of 3 x {size} x {size}" in result.out
    config = load_checkpoint("outputs/model_final.pt")["config"]
    assert config["data"]["classes"] == ["cats", "dogs"]
    (grid,) = Path("outputs/samples").glob("*.png")
    with Image.open(grid) as image:
        assert len(image.convert("RGB").getcolors(1 << 22)) > 1000  # not empty
        # 4 x 4 samples, a line, and a row of real images
        assert image.size == (4 * (size + 2) + 2, 5 * (size + 2) + 6)


# --- a folder that changes between two sessions --------------------------------------------------


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory) -> Path:
    """A folder with `images` and a run of one step on them, `run`, with mapped pixels."""
    root = tmp_path_factory.mktemp("folder_run")
    make_image_folder(root / "images")
    file = root / "images" / "cats" / "1.png"
    with Image.open(file) as image:
        image.save(file, compress_level=0)  # then other pixels take as many bytes
    options = {"data_dir": "images", "image_size": 16, "cache_limit": 0, "output_dir": "run"}
    options |= {"model": "dit", "patch_size": 8, "blocks": 1, "channels": 8, "schedule": "edm"}
    options |= {"precision": "fp32", "device": "cpu", "sample_interval": 0, "max_steps": 1}
    options |= {"class_conditional": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert train.train(dataset="folder", **options).exit_code == 0
    return root


@pytest.fixture
def resume(script, folder_run, tmp_path):
    """Resume a copy of `folder_run` for one step: resume("--flag", ...) -> Result."""
    shutil.copytree(folder_run, tmp_path, dirs_exist_ok=True)
    steps = iter(range(2, 9))
    flags = ["--resume", "--output-dir", "run", "--max-steps"]
    return lambda *more: script("train", *flags, next(steps), *more)


CAT = Path("images/cats/1.png")


def invert() -> None:
    """Change the pixels of an image and keep the size of its file."""
    size = CAT.stat().st_size
    with Image.open(CAT) as image:
        pixels = 255 - np.asarray(image)
    save_image(CAT, pixels, compress_level=0)
    assert CAT.stat().st_size == size


def change_several() -> None:
    for i in range(5):
        save_image(CAT.with_name(f"new_{i}.png"), noise_pixels(20, 20, 3))
    CAT.with_name("3.png").unlink()
    invert()


@pytest.mark.parametrize(
    ("change", "flags", "difference"),
    [
        (invert, [], "1 image was changed (cats/1.png)"),
        (
            change_several,
            ["--cache-limit", 2],  # in memory
            "5 images were added (cats/new_0.png, cats/new_1.png, cats/new_2.png and 2 more), "
            "1 removed (cats/3.png), 1 changed (cats/1.png)",
        ),
    ],
)
def test_a_changed_folder_ends_the_run_with_the_difference(resume, change, flags, difference):
    change()
    before = {name: Path("run", name).read_bytes() for name in ("config.json", "data.json")}
    result = resume(*flags)
    assert result.code == 1
    assert f"the data has changed: {difference}" in result.err
    assert "--allow-data-change" in result.err
    assert "data.count" not in result.err  # the difference is the only reason
    assert {name: Path("run", name).read_bytes() for name in before} == before

    result = resume(*flags, "--allow-data-change")
    assert result.code == 0, result.err
    assert f"the data has changed since the last session: {difference}" in result.out
    now = load_checkpoint("run/model_final.pt")["config"]
    data_now = load_dataset("folder", "images", image_size=16)
    assert now["data"]["count"] == len(data_now.items)
    assert json.loads(Path("run/data.json").read_text()) == data_now.files
    assert now["diffusion"] == json.loads(before["config.json"])["diffusion"]  # sigma_data too

    result = resume(*flags)  # the changed folder is the run's data now
    assert result.code == 0, result.err
    assert "has changed" not in result.out


def test_the_difference_of_two_folders_counts_added_removed_and_changed_images():
    before = {"a.png": "1", "b.png": "2"}
    assert changes(before, {**before, "c.png": "3"}) == "1 image was added (c.png)"
    assert changes(before, {"a.png": "1"}) == "1 image was removed (b.png)"
    renamed = {"a.png": "1", "c.png": "2"}
    assert changes(before, renamed) == "1 image was added (c.png), 1 removed (b.png)"
    assert digest_of(renamed) != digest_of(before) == digest_of(dict(reversed(before.items())))


def test_a_folder_that_was_touched_or_copied_has_not_changed(resume):
    os.utime(CAT, ns=(0, 0))
    result = resume()
    assert result.code == 0, result.err
    ignored = shutil.ignore_patterns(".tiny-diffusion")
    shutil.copytree("images", "copy", copy_function=shutil.copy, ignore=ignored)
    shutil.rmtree("images")
    result = resume("--data-dir", "copy")
    assert result.code == 0, result.err
    assert "has changed" not in result.out


@pytest.mark.parametrize("content", [None, '{"cats/1.png": "0123456789abcdef"}'])
def test_a_change_is_found_without_the_list_of_images(resume, content):
    listed = Path("run/data.json")
    listed.unlink() if content is None else listed.write_text(content)
    CAT.unlink()
    result = resume()
    assert result.code == 1
    assert "the data has changed" in result.err
    assert "run/data.json" in result.err
    assert resume("--allow-data-change").code == 0
    assert len(json.loads(listed.read_text())) == 11


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"cats'])
def test_a_damaged_list_of_images_is_empty(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    assert read_files(tmp_path / "data.json") == {}


def test_an_image_that_becomes_unreadable_between_two_sessions_can_be_left_out(resume):
    CAT.write_bytes(b"")
    assert "1 of 12 images" in resume("--allow-data-change").err
    assert "1 image was removed (cats/1.png)" in resume("--skip-bad-images").err
    result = resume("--skip-bad-images", "--allow-data-change")
    assert result.code == 0, result.err


def test_a_different_size_or_fit_is_not_a_change_of_the_data(resume):
    result = resume("--fit", "stretch", "--image-size", 8)
    assert result.code == 1
    assert "data.fit: crop in the checkpoint, stretch now" in result.err
    assert "data.image_size: 16 in the checkpoint, 8 now" in result.err
    assert "has changed" not in result.err


def test_a_new_class_is_an_error_only_for_conditional_networks(script, resume):
    assert script(*TRAIN, *DIT, "--class-conditional", "--max-steps", 1).code == 0
    save_image(CAT.parent.with_name("wolves") / "a.png", noise_pixels(16, 16, 3))
    result = script("train", "--resume", "--max-steps", 2, "--allow-data-change")
    assert result.code == 1
    assert "model.num_classes: 2 in the checkpoint, 3 now" in result.err
    assert resume("--allow-data-change").code == 0
    classes = load_checkpoint("run/model_final.pt")["config"]["data"]["classes"]
    assert classes == ["cats", "dogs", "wolves"]


def test_a_checkpoint_without_a_digest_of_its_images_resumes(resume):
    checkpoint = load_checkpoint("run/model_final.pt")
    del checkpoint["config"]["data"]["digest"]
    save_checkpoint(Path("run/model_final.pt"), checkpoint)
    result = resume()
    assert result.code == 0, result.err
    assert load_checkpoint("run/model_final.pt")["config"]["data"]["digest"]


def test_the_list_of_images_is_replaced_with_its_run(script, resume):
    listed = Path("run/data.json")
    assert json.loads(listed.read_text()).keys() >= {"cats/1.png", "dogs/0.png"}
    flags = ["--max-steps", 1, "--overwrite", "--output-dir", "run"]
    assert script("train", *TINY, *DIT, *flags).code == 0
    assert not listed.exists()
    assert load_checkpoint("run/model_final.pt")["config"]["data"]["digest"] is None
