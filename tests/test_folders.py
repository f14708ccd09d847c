import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from conftest import ROOT, TINY
from dataset import folders
from dataset import registry as data
from dataset.registry import FOLDER_SIZE, load_dataset
from test_data import check, noise_pixels
from utils import DataError


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "pixels"


def save_image(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def load_mapped(root, cache, size=16, **options):
    return load_dataset("folder", root, image_size=size, cache_dir=cache, cache_limit=0, **options)


def test_folder_with_classes(image_folder):
    dataset = load_dataset("folder", image_folder, image_size=16)
    check(dataset, 12, (3, 16, 16), 2)
    assert dataset.classes == ["cats", "dogs"]
    assert dataset.labels.tolist() == [0] * 6 + [1] * 6


def test_folder_without_classes_and_of_another_shape(tmp_path):
    pixels = np.zeros((218, 178, 3), np.uint8)  # as in CelebA
    pixels[16:202] = [255, 0, 0]  # the central square, and what a JPEG smears
    for i in range(3):
        save_image(tmp_path / f"{i:06d}.jpg", pixels, quality=95)
    dataset = load_dataset("folder", tmp_path, image_size=32)
    assert dataset.items.shape == (3, 3, 32, 32)
    assert dataset.labels is None
    assert dataset.classes == []
    assert dataset.items[:, 0].min() > 240
    assert dataset.items[:, 1:].max() < 16


def test_folder_with_one_class(tmp_path):
    save_image(tmp_path / "only" / "a.png", noise_pixels(9, 9, 3))
    dataset = load_dataset("folder", tmp_path)
    assert dataset.items.shape == (1, 3, FOLDER_SIZE, FOLDER_SIZE)
    assert dataset.classes == ["only"]
    assert dataset.labels.tolist() == [0]


def test_folder_keeps_the_pixels_of_images_that_fit(tmp_path):
    pixels = noise_pixels(16, 16, 3)
    save_image(tmp_path / "a.png", pixels)
    dataset = load_dataset("folder", tmp_path, image_size=16)
    assert (dataset.items[0].permute(1, 2, 0).numpy() == pixels).all()


def test_folder_of_grey_images_is_grey(tmp_path):
    save_image(tmp_path / "a.png", noise_pixels(16, 16))
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)  # 16 bits a pixel
    Image.fromarray(deep).save(tmp_path / "b.png")
    images = load_dataset("folder", tmp_path, image_size=16).items
    assert images.shape == (2, 1, 16, 16)
    assert images[1].flatten().tolist() == list(range(256))
    save_image(tmp_path / "c.png", noise_pixels(16, 16, 3))
    assert load_dataset("folder", tmp_path, image_size=16).items.shape == (3, 3, 16, 16)


def test_pixels_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="mode F have no known range"):
        load_dataset("folder", tmp_path)


def test_transparent_pixels_become_white(tmp_path):
    save_image(tmp_path / "a.png", np.zeros((8, 8, 4)))
    assert load_dataset("folder", tmp_path, image_size=8).items.min() == 255


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(DataError, match=r"no images in .*; looked for \.png"):
        load_dataset("folder", tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset("folder", tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(DataError, match="no images"):
        load_dataset("folder", tmp_path)


@pytest.fixture
def bad_folder(image_folder):
    (image_folder / "cats" / "empty.png").write_bytes(b"")
    (image_folder / "cats" / "text.jpg").write_text("hello")
    whole = (image_folder / "dogs" / "0.png").read_bytes()
    (image_folder / "dogs" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (image_folder / "dogs" / ".hidden.png").write_text("left out without a word")
    return image_folder


def test_bad_images_are_named(bad_folder):
    with pytest.raises(DataError) as error:
        load_dataset("folder", bad_folder, image_size=16)
    message = str(error.value)
    assert "3 of 15 images" in message
    for name in ("cats/empty.png", "cats/text.jpg", "dogs/cut.png", "--skip-bad-images"):
        assert name in message
    assert "hidden" not in message


def test_bad_images_can_be_left_out(bad_folder):
    dataset = load_dataset("folder", bad_folder, image_size=16, skip_bad_images=True)
    check(dataset, 12, (3, 16, 16), 2)
    assert dataset.note == "3 of 15 images cannot be read and are left out"


def test_a_folder_of_bad_images_alone_is_refused_all_the_same(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images"):
        load_dataset("folder", tmp_path, skip_bad_images=True)


def test_images_over_the_cap_are_refused_undecoded(image_folder, monkeypatch):
    monkeypatch.setattr(folders, "MAX_PIXELS", 900)
    with pytest.raises(DataError, match=r"30 x 31 is over 900 pixels"):
        load_dataset("folder", image_folder)


def test_a_file_is_what_its_content_says_and_only_in_known_formats(tmp_path):
    Image.fromarray(noise_pixels(8, 8, 3)).save(tmp_path / "a.png", format="PPM")
    with pytest.raises(DataError, match="1 of 1 images"):
        load_dataset("folder", tmp_path)


# --- hostile files -------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def gif(width: int, height: int, screen: tuple[int, int] | None = None) -> bytes:
    frame = struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"
    width, height = screen or (width, height)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + b"," + frame


def tiff(width: int, height: int) -> bytes:
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 1}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + tags + bytes(4)


def webp(width: int, height: int) -> bytes:
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(11)
    lossless = b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(lossless)) + lossless


# Of the three sizes of each, Pillow refuses the first, warns of the second and takes the third.
BOMBS = {
    **{f"{side}.png": png(side, side) for side in (100_000, 10_000, 8000)},
    **{f"{side}.gif": gif(side, side) for side in (65_535, 10_000, 8000)},
    **{f"frame_{side}.gif": gif(side, side, (1, 1)) for side in (65_535, 10_000, 8000)},
    **{f"{side}.tiff": tiff(side, side) for side in (100_000, 10_000, 8000)},
    **{f"{side}.webp": webp(side, side) for side in (16_383, 10_000, 8000)},
}


@pytest.fixture(params=BOMBS)
def bomb(request, tmp_path, monkeypatch) -> Path:
    """A file of a few bytes that says that its image is enormous, and must not be decoded."""

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
def test_an_enormous_image_is_refused_by_name_and_undecoded(bomb, cache, recwarn, limit):
    start = time.monotonic()
    with pytest.raises(DataError) as error:
        load_dataset("folder", bomb.parent, cache_dir=cache, cache_limit=limit)
    assert time.monotonic() - start < 1
    refused = "is over 50,000,000 pixels" if "8000" in bomb.name else "could be decompression bomb"
    assert f"{bomb.name}: " in str(error.value)
    assert refused in str(error.value)
    assert not recwarn.list  # nothing is said of it beside the error


@pytest.mark.filterwarnings("default")
def test_an_enormous_image_to_start_from_is_refused(bomb, recwarn):
    with pytest.raises(DataError, match=f"{bomb} cannot be read as an image"):
        folders.read_image(bomb, 16, 3)
    if "8000" not in bomb.name:  # whose header is as good as any
        with pytest.raises(DataError, match=f"{bomb} cannot be read as an image"):
            folders.require_same_size(bomb, bomb)
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
    (image_folder / "notes.txt").symlink_to(__file__)  # no image anyway
    found = load_dataset("folder", image_folder, image_size=16)
    assert found.note == f"5 symbolic links lead out of {image_folder} and are left out"
    assert_same_data(found, before)


def test_a_folder_of_nothing_but_links_out_says_so(tmp_path):
    save_image(tmp_path / "a.png", noise_pixels(16, 16, 3))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"no images in .*; 1 symbolic link leads out of .* is left"
    ):
        load_dataset("folder", tmp_path / "images")


def test_links_within_the_folder_are_followed_to_files_alone(image_folder, tmp_path):
    (image_folder / "cats" / "dog.png").symlink_to(image_folder / "dogs" / "0.png")
    (image_folder / "more").symlink_to(image_folder / "dogs")  # or they would come twice
    (tmp_path / "link").symlink_to(image_folder)  # the folder's own name may be a link
    found = load_dataset("folder", tmp_path / "link", image_size=16)
    check(found, 13, (3, 16, 16), 2)
    assert not found.note
    cat, dog = found.items[found.labels == 0][-1], found.items[found.labels == 1][0]
    assert torch.equal(cat, dog)


@pytest.mark.parametrize("limit", [2, 0])
def test_broken_links_and_pipes_are_bad_images(image_folder, cache, limit):
    (image_folder / "cats" / "gone.png").symlink_to("nothing.png")
    (image_folder / "cats" / "round.png").symlink_to("round.png")
    os.mkfifo(image_folder / "dogs" / "pipe.png")  # which would keep a reader waiting
    options = {"image_size": 16, "cache_dir": cache, "cache_limit": limit}
    with pytest.raises(DataError, match=r"3 of 15 images") as error:
        load_dataset("folder", image_folder, **options)
    for name in ("cats/gone.png", "cats/round.png", "dogs/pipe.png"):
        assert f"{name}: it is missing, or not a regular file" in str(error.value)
    found = load_dataset("folder", image_folder, skip_bad_images=True, **options)
    check(found, 12, (3, 16, 16), 2)


def test_a_file_name_does_not_reach_the_terminal_as_it_is(image_folder):
    (image_folder / "cats" / "\x1b[2J\n\udcff.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cats/\?\[2J\?\?\.png: cannot identify"):
        load_dataset("folder", image_folder)


# --- images that go bad while they are read ------------------------------------------------------


def delete(file: Path) -> None:
    file.unlink()


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def replace_by_text(file: Path) -> None:
    file.write_text("hello")


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.fixture(params=[delete, cut_off, replace_by_text, replace_by_folder])
def damage_after(request, image_folder, monkeypatch):
    """damage_after(module, function): an image goes bad when the function has been called."""

    def patch(module, name: str) -> None:
        function = getattr(module, name)

        def damaging(*arguments):
            result = function(*arguments)
            request.param(image_folder / "cats" / "1.png")
            monkeypatch.setattr(module, name, function)
            return result

        monkeypatch.setattr(module, name, damaging)

    return patch


@pytest.mark.parametrize(
    ("limit", "module", "moment"),
    [
        (2, data, "image_files"),
        (2, folders, "has_colours"),
        (0, data, "image_files"),
        (0, folders, "fingerprint"),
        (0, folders, "has_colours"),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_an_image_that_goes_bad_is_named_or_left_out(
    image_folder, cache, damage_after, limit, module, moment, skip
):
    damage_after(module, moment)
    options = {"image_size": 16, "cache_dir": cache, "cache_limit": limit}
    if skip:
        found = load_dataset("folder", image_folder, skip_bad_images=True, **options)
        check(found, 11, (3, 16, 16), 2)
        assert found.note.endswith("1 of 12 images cannot be read and are left out")
    else:
        with pytest.raises(DataError, match=r"1 of 12 images in (.|\n)*  cats/1\.png: "):
            load_dataset("folder", image_folder, **options)
        assert not list(cache.glob("*"))


def test_an_image_that_goes_bad_after_it_was_decoded_once(image_folder, cache, damage_after):
    load_mapped(image_folder, cache)
    damage_after(data, "image_files")
    with pytest.raises(DataError, match=r"1 of 12 images in (.|\n)*  cats/1\.png: "):
        load_mapped(image_folder, cache)


@pytest.mark.parametrize("damage_after", [delete], indirect=True)
@pytest.mark.parametrize("limit", [2, 0])
def test_an_image_that_goes_bad_is_one_message(script, image_folder, damage_after, limit):
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    damage_after(data, "image_files")
    result = script("train", *TINY, *flags, "--cache-limit", limit)
    assert result.code == 1
    assert result.err.startswith(f"train.py: error: 1 of 12 images in {image_folder} cannot be")
    assert "Traceback" not in result.err


# --- fit -----------------------------------------------------------------------------------------


def test_an_image_is_cropped_or_stretched(tmp_path):
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
def test_fit_is_refused_where_it_has_no_effect(script, name):
    result = script(name, "--dataset", "digits", "--fit", "stretch")
    assert result.code == 2
    assert "--fit stretch is for folders of images; those of digits are squares" in result.err


# --- mapped files --------------------------------------------------------------------------------


@pytest.fixture
def no_decoding(monkeypatch):
    """To be called when nothing is to be decoded any more."""

    def stop(*arguments):
        raise AssertionError("an image was decoded")

    return lambda: monkeypatch.setattr(folders, "decode", stop)


def assert_same_data(a, b):
    assert torch.equal(a.items, b.items)
    assert a.labels.tolist() == b.labels.tolist()
    assert a.classes == b.classes
    assert a.files == b.files


@pytest.mark.parametrize("fit", folders.FITS)
@pytest.mark.parametrize("grey", [False, True])
def test_mapped_pixels_are_those_in_memory(bad_folder, cache, fit, grey):
    for i, file in enumerate(sorted(bad_folder.rglob("[0-9]*.png"))):
        if grey or i % 2:
            Image.open(file).convert("L").save(file)
    (bad_folder / "dogs" / "cut.png").unlink()  # its header says that it is in colour
    options = {"image_size": 16, "fit": fit, "skip_bad_images": True}
    expected = load_dataset("folder", bad_folder, **options)
    assert expected.items.shape == (12, 1 if grey else 3, 16, 16)
    for _ in range(2):  # decoded, and read again
        found = load_dataset("folder", bad_folder, cache_dir=cache, cache_limit=0, **options)
        assert_same_data(found, expected)
        assert "2 of 14 images cannot be read and are left out" in found.note


def test_a_folder_is_decoded_once(image_folder, cache, no_decoding):
    first = load_mapped(image_folder, cache)
    (file,) = cache.iterdir()
    assert first.note.startswith(f"decoded into {file}, 9.22e-06 GB")
    no_decoding()
    again = load_mapped(image_folder, cache)
    assert_same_data(first, again)
    assert again.note == f"pixels are read from {file}"


def test_the_limit_is_in_gigabytes_of_colour(image_folder, cache):
    size = 12 * 3 * 16 * 16 / 1e9
    options = {"image_size": 16, "cache_dir": cache}
    assert not load_dataset("folder", image_folder, cache_limit=size, **options).note
    assert load_dataset("folder", image_folder, cache_limit=0.99 * size, **options).note


def test_the_cache_lies_beside_the_images_and_moves_with_them(image_folder, no_decoding):
    first = load_mapped(image_folder, None)
    assert (image_folder / ".tiny-diffusion" / "16_crop.pixels").exists()
    no_decoding()
    assert_same_data(load_mapped(image_folder, None), first)
    moved = image_folder.rename(image_folder.with_name("moved"))
    found = load_mapped(moved, None)
    assert found.note == f"pixels are read from {moved}/.tiny-diffusion/16_crop.pixels"
    assert_same_data(found, first)


def test_a_folder_that_cannot_be_written_to_asks_for_another(script, image_folder):
    (image_folder / ".tiny-diffusion").write_text("in the way")
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    result = script("train", *TINY, *flags, "--cache-limit", 0)
    assert result.code == 1
    reason = f"cannot be written to {image_folder}/.tiny-diffusion (File exists); name another"
    assert reason in result.err
    assert "--cache-dir" in result.err


def test_pixels_are_not_written_to_where_the_data_links(image_folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (image_folder / ".tiny-diffusion").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link out of the folder; give its target as --cache"):
        load_mapped(image_folder, None)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("change", ["added", "removed", "touched", "replaced", "renamed"])
def test_a_folder_that_changed_is_decoded_again(image_folder, cache, change):
    load_mapped(image_folder, cache)
    file = image_folder / "cats" / "1.png"
    if change == "added":
        save_image(image_folder / "cats" / "new.png", noise_pixels(20, 20, 3))
    elif change == "removed":
        file.unlink()
    elif change == "touched":
        os.utime(file, ns=(0, 0))
    elif change == "replaced":  # and as old as it was
        time_before = file.stat().st_mtime_ns
        save_image(file, noise_pixels(40, 40, 3))
        os.utime(file, ns=(time_before, time_before))
    else:
        file.rename(image_folder / "dogs" / "1.png")
    found = load_mapped(image_folder, cache)
    assert found.note.endswith("what was there was damaged, or of other files")
    assert_same_data(found, load_dataset("folder", image_folder, image_size=16))
    assert len(list(cache.iterdir())) == 1


def test_each_size_and_fit_has_its_own_file(image_folder, cache, no_decoding):
    choices = [{"size": 16}, {"size": 8}, {"size": 16, "fit": "stretch"}]
    first = [load_mapped(image_folder, cache, **choice) for choice in choices]
    assert len(list(cache.iterdir())) == 3
    no_decoding()
    for choice, expected in zip(choices, first, strict=True):
        assert_same_data(load_mapped(image_folder, cache, **choice), expected)


def without_a_digest(content: bytes) -> bytes:
    length = int.from_bytes(content[-8:], "little")
    record = json.loads(content[-8 - length : -8])
    record["digests"].pop()
    text = json.dumps(record).encode()
    return content[: -8 - length] + text + len(text).to_bytes(8, "little")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[100:],
        lambda content: content + b"more",
        lambda content: bytes(len(content)),
        lambda content: b"[1, 2]" + (6).to_bytes(8, "little"),
        lambda content: bytes(6) + b'{"shape": [6]}' + (14).to_bytes(8, "little"),
        without_a_digest,
    ],
    ids=["empty", "cut", "half", "headless", "longer", "zeros", "list", "another", "shorter"],
)
def test_a_damaged_file_is_written_again(image_folder, cache, damage):
    expected = load_mapped(image_folder, cache).items.clone()
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.unlink()  # the first one is still mapped
    file.write_bytes(damage(content))
    found = load_mapped(image_folder, cache)
    assert "what was there was damaged" in found.note
    assert torch.equal(found.items, expected)
    assert file.read_bytes() == content


def test_an_interrupted_decode_leaves_nothing(image_folder, cache, monkeypatch):
    def decode(file, *arguments):
        if file.name == "7.png":
            raise KeyboardInterrupt
        return decode_all(file, *arguments)

    decode_all = folders.decode
    monkeypatch.setattr(folders, "decode", decode)
    with pytest.raises(KeyboardInterrupt):
        load_mapped(image_folder, cache)
    assert list(cache.iterdir()) == []


def test_what_a_killed_decode_left_is_deleted_once_it_is_old(image_folder, cache):
    cache.mkdir(parents=True)
    old, new, other = (cache / name for name in (".a.pixels.1.partial", ".b.pixels.2.partial", "c"))
    for file in (old, new, other):
        file.write_bytes(b"half")
    for file in (old, other):
        os.utime(file, (time.time() - 7200,) * 2)
    load_mapped(image_folder, cache)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it
    assert other.exists()


def test_bad_images_are_named_before_anything_is_kept(bad_folder, cache):
    with pytest.raises(DataError, match=r"(?s)3 of 15 images.*cats/empty\.png.*dogs/cut\.png"):
        load_mapped(bad_folder, cache)
    assert list(cache.iterdir()) == []
    load_mapped(bad_folder, cache, skip_bad_images=True)
    with pytest.raises(DataError, match="3 of 15 images"):  # not passed over as in the file
        load_mapped(bad_folder, cache)


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_a_full_disk_is_one_line(script, image_folder, cache, monkeypatch, when):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 256]
    flags += ["--cache-limit", 0, "--cache-dir", cache]
    if when == "before":
        monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: DiskUsage(1000))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        result = script("train", *TINY, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 1
    reason = "No space left on device" if when == "before" else "File too large"
    assert f"0.00236 GB when decoded, cannot be written to {cache} ({reason})" in result.err
    assert "--cache-dir" in result.err
    assert len(result.err.splitlines()) == 1
    assert list(cache.iterdir()) == []


class DiskUsage:
    def __init__(self, free: int):
        self.free = free


def test_bad_cache_flags_are_one_line(script, image_folder, tmp_path):
    (tmp_path / "file").write_text("")
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    result = script("train", *TINY, *flags, "--cache-limit", 0, "--cache-dir", "file/pixels")
    assert result.code == 1
    assert "cannot be written to file/pixels (Not a directory)" in result.err
    assert len(result.err.splitlines()) == 1
    result = script("train", *TINY, *flags, "--cache-limit", -1)
    assert result.code == 2
    assert "--cache-limit: must be at least 0, not -1" in result.err


def test_a_digest_is_of_the_image_alone(tmp_path):
    save_image(tmp_path / "grey.png", noise_pixels(16, 16))
    grey = load_dataset("folder", tmp_path, image_size=16)
    save_image(tmp_path / "red.png", noise_pixels(16, 16, 3))  # the other gets three channels
    both = load_dataset("folder", tmp_path, image_size=16)
    assert grey.items.shape[1] == 1
    assert both.items.shape[1] == 3
    assert both.files["grey.png"] == grey.files["grey.png"] != both.files["red.png"]


# --- memory --------------------------------------------------------------------------------------

# Trains on a small folder, then on a large one, goes through an epoch of each, and prints how many
# bytes the second took more. Pages of a mapped file are left out: the system takes them back when
# it needs them.
GROWTH = """
import re, sys, threading, time
from pathlib import Path
import data, flags, train, training.run

def watch():
    while True:
        status = Path("/proc/self/status").read_text()
        peaks[-1] = max(peaks[-1], 1024 * int(re.search(r"RssAnon:\\s*(\\d+)", status)[1]))
        time.sleep(0.002)

training.run.GRID_STEPS = 2
peaks = [0]
threading.Thread(target=watch, daemon=True).start()
for folder in sys.argv[2:]:
    args = train.parse_args([*sys.argv[1].split(), "--data-dir", folder, "--output-dir", folder])
    if flags.run(train.main, args):
        sys.exit(1)
    options = {"cache_limit": args.cache_limit, "cache_dir": args.cache_dir}
    images = data.load_dataset("folder", folder, image_size=128, **options).items
    for chosen in data.epoch_order(len(images), 0, 0).split(50):
        images[chosen]
    peaks.append(0)
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_set(tmp_path):
    save_image(tmp_path / "one.png", noise_pixels(16, 16, 3))
    for name, count in [("small", 100), ("large", 3000)]:  # 147 MB
        (tmp_path / name).mkdir()
        for i in range(count):
            os.link(tmp_path / "one.png", tmp_path / name / f"{i}.png")
    arguments = "--dataset folder --image-size 128 --cache-limit 0 --max-steps 5 --batch-size 10 "
    arguments += "--model dit --patch-size 32 --blocks 1 --channels 4 --schedule edm --device cpu "
    arguments += f"--precision fp32 --cache-dir {tmp_path / 'cache'}"
    command = [sys.executable, "-c", GROWTH, arguments, tmp_path / "small", tmp_path / "large"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.splitlines()[-1]) < 70e6


# --- training on folders -------------------------------------------------------------------------


def test_mapped_pixels_train_to_the_same_bits(script, image_folder, cache):
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    flags += ["--fit", "stretch", "--schedule", "edm", "--batch-size", 4, "--max-steps", 5]
    assert script("train", *TINY, *flags, "--output-dir", "memory").code == 0
    mapped = ["--cache-limit", 0, "--cache-dir", cache]
    result = script("train", *TINY, *flags, *mapped, "--output-dir", "mapped")
    assert result.code == 0, result.err
    assert f"decoded into {cache}" in result.out
    runs = [load_checkpoint(f"{name}/model_final.pt") for name in ("memory", "mapped")]
    assert runs[0]["config"]["diffusion"] == runs[1]["config"]["diffusion"]  # sigma_data too
    for name, tensor in runs[0]["model"].items():
        assert torch.equal(tensor, runs[1]["model"][name]), name

    longer = ["--resume", "--output-dir", "mapped", "--max-steps"]
    result = script("train", *longer, 6)
    assert "pixels are read from" in result.out  # the flags are the run's
    result = script("train", *longer, 7, "--cache-limit", 1)
    assert result.code == 0, result.err  # from memory now
    assert "pixels are" not in result.out
    result = script("train", *longer, 8, "--fit", "crop")
    assert result.code == 1
    assert "data.fit: stretch in the checkpoint, crop now" in result.err

    save_checkpoint(Path("mapped.pt"), runs[1])
    flags = ["--checkpoint", "mapped.pt", "--metrics", "copies", "--num-images", 2]
    result = script("evaluate", *flags, "--steps", 2, "--repeats", 1)
    assert result.code == 0, result.err
    assert "pixels are read from" in result.out


def test_the_forward_process_of_a_mapped_folder(script, image_folder, cache):
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    flags += ["--cache-limit", 0, "--cache-dir", cache, "--fit", "stretch", "--timesteps", 0, 999]
    result = script("visualize_diffusion", *flags)
    assert result.code == 0, result.err
    assert result.out.startswith(f"decoded into {cache}")


# --- a folder that changes between two sessions --------------------------------------------------


@pytest.fixture(params=["memory", "mapped"])
def resume(request, script, image_folder):
    """Goes on with a run on the image folder by a step: resume("--flag", ...) -> Result."""
    file = image_folder / "cats" / "1.png"
    with Image.open(file) as image:
        image.save(file, compress_level=0)  # so that other pixels take as many bytes
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    flags += ["--cache-limit", 2 if request.param == "memory" else 0, "--output-dir", "run"]
    flags += ["--model", "dit", "--patch-size", 8, "--blocks", 1, "--schedule", "edm"]
    assert script("train", *TINY, *flags, "--max-steps", 1).code == 0
    steps = iter(range(2, 9))
    return lambda *more: script(
        "train", "--resume", "--output-dir", "run", "--max-steps", next(steps), *more
    )


def invert(file: Path) -> None:
    """Other pixels in a file of the same size."""
    size = file.stat().st_size
    with Image.open(file) as image:
        pixels = 255 - np.asarray(image)
    save_image(file, pixels, compress_level=0)
    assert file.stat().st_size == size


def add_five(file: Path) -> None:
    for i in range(5):
        save_image(file.with_name(f"new_{i}.png"), noise_pixels(20, 20, 3))


def change_all(file: Path) -> None:
    add_five(file)
    invert(file)
    file.with_name("3.png").unlink()


CHANGES = {
    "added": (
        lambda file: shutil.copy(file, file.with_name("new.png")),
        "1 image was added (cats/new.png)",
    ),
    "removed": (Path.unlink, "1 image was removed (cats/1.png)"),
    "changed": (invert, "1 image was changed (cats/1.png)"),
    "renamed": (
        lambda file: file.rename(file.with_name("x.png")),
        "1 image was added (cats/x.png), 1 removed (cats/1.png)",
    ),
    "many": (
        change_all,
        "5 images were added (cats/new_0.png, cats/new_1.png, cats/new_2.png and 2 more), "
        "1 removed (cats/3.png), 1 changed (cats/1.png)",
    ),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_folder_that_changed_is_refused_with_the_difference(resume, image_folder, change, said):
    change(image_folder / "cats" / "1.png")
    before = {name: Path("run", name).read_bytes() for name in ("config.json", "data.json")}
    result = resume()
    assert result.code == 1
    expected = f"the data has changed: {said}; --allow-data-change goes on all the same"
    assert result.err.splitlines()[1:] == [f"  {expected}"]  # and nothing else, as its count
    assert {name: Path("run", name).read_bytes() for name in before} == before

    result = resume("--allow-data-change")
    assert result.code == 0, result.err
    expected = f"the data has changed since the last session: {said}; this run's bits are those of"
    assert expected in result.out
    now = load_checkpoint("run/model_final.pt")["config"]
    data_now = load_dataset("folder", image_folder, image_size=16)
    assert now["data"]["count"] == len(data_now.items)
    assert json.loads(Path("run/data.json").read_text()) == data_now.files
    assert now["diffusion"] == json.loads(before["config.json"])["diffusion"]  # sigma_data too

    result = resume()  # as it is now, it is the run's
    assert result.code == 0, result.err
    assert "has changed" not in result.out


def test_a_folder_that_was_touched_or_copied_is_the_same(resume, image_folder, tmp_path):
    os.utime(image_folder / "cats" / "1.png", ns=(0, 0))
    result = resume()
    assert result.code == 0, result.err
    ignored = shutil.ignore_patterns(".tiny-diffusion")
    shutil.copytree(image_folder, tmp_path / "copy", copy_function=shutil.copy, ignore=ignored)
    shutil.rmtree(image_folder)
    result = resume("--data-dir", tmp_path / "copy")
    assert result.code == 0, result.err
    assert "has changed" not in result.out


@pytest.mark.parametrize("resume", ["memory"], indirect=True)
@pytest.mark.parametrize("content", [None, "", "[1, 2]", '{"cats/1.png": "0123456789abcdef"}'])
def test_without_its_list_a_change_is_refused_all_the_same(resume, image_folder, content):
    listed = Path("run/data.json")
    listed.unlink() if content is None else listed.write_text(content)
    (image_folder / "cats" / "1.png").unlink()
    result = resume()
    assert result.code == 1
    expected = "the data has changed: its pixels are others (run/data.json does not say which);"
    assert expected in result.err
    assert resume("--allow-data-change").code == 0
    assert len(json.loads(listed.read_text())) == 11


def test_an_image_that_goes_bad_between_two_sessions_can_be_left_out(resume, image_folder):
    (image_folder / "cats" / "1.png").write_bytes(b"")
    assert "1 of 12 images" in resume("--allow-data-change").err
    assert "1 image was removed (cats/1.png)" in resume("--skip-bad-images").err
    result = resume("--skip-bad-images", "--allow-data-change")
    assert result.code == 0, result.err


@pytest.mark.parametrize("resume", ["memory"], indirect=True)
def test_other_reasons_to_refuse_are_no_change_of_the_data(resume):
    result = resume("--fit", "stretch", "--image-size", 8)
    assert result.code == 1
    assert "data.fit: crop in the checkpoint, stretch now" in result.err
    assert "data.image_size: 16 in the checkpoint, 8 now" in result.err
    assert "has changed" not in result.err


def test_another_number_of_classes_is_for_networks_without_them(script, image_folder):
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    for name, more in {"with": ["--class-conditional"], "without": []}.items():
        out = ["--output-dir", name]
        assert script("train", *TINY, *flags, *more, *out, "--max-steps", 1).code == 0
    save_image(image_folder / "wolves" / "a.png", noise_pixels(16, 16, 3))
    resumed = ["--resume", "--max-steps", 2, "--allow-data-change", "--output-dir"]
    result = script("train", *resumed, "with")
    assert result.code == 1
    assert "model.num_classes: 2 in the checkpoint, 3 now" in result.err
    assert script("train", *resumed, "without").code == 0
    classes = load_checkpoint("without/model_final.pt")["config"]["data"]["classes"]
    assert classes == ["cats", "dogs", "wolves"]


def test_a_checkpoint_that_knows_nothing_of_its_images_goes_on(script, image_folder):
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    assert script("train", *TINY, *flags, "--max-steps", 1).code == 0
    checkpoint = load_checkpoint("outputs/model_final.pt")
    del checkpoint["config"]["data"]["digest"]
    save_checkpoint(Path("outputs/model_final.pt"), checkpoint)
    result = script("train", "--resume", "--max-steps", 2)
    assert result.code == 0, result.err
    assert load_checkpoint("outputs/model_final.pt")["config"]["data"]["digest"]


def test_the_list_of_images_goes_with_its_run(script, image_folder, tmp_path):
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    assert script("train", *TINY, *flags, "--max-steps", 1).code == 0
    listed = tmp_path / "outputs" / "data.json"
    assert json.loads(listed.read_text()).keys() >= {"cats/1.png", "dogs/0.png"}
    assert script("train", *TINY, "--max-steps", 1, "--overwrite").code == 0
    assert not listed.exists()
    assert load_checkpoint("outputs/model_final.pt")["config"]["data"]["digest"] is None


# --- where files are written ---------------------------------------------------------------------

# Runs commands, one an argument, as their scripts would.
COMMANDS = """
import importlib, shlex, sys
import flags, training.run

training.run.GRID_STEPS = 2
for command in sys.argv[1:]:
    name, *arguments = shlex.split(command)
    script = importlib.import_module(name)
    if code := flags.run(script.main, script.parse_args(arguments)):
        sys.exit(code)
"""


def test_nothing_is_written_beside_the_data_and_the_output(image_folder, tmp_path):
    output, watched = tmp_path / "output", tmp_path / "watched"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "cwd"):
        (watched / name).mkdir(parents=True)
        environment[name] = str(watched / name)
    # matplotlib keeps its list of fonts in the home folder, or here, where it has one already.
    environment["MPLCONFIGDIR"] = matplotlib.get_cachedir()
    data_flags = f"--dataset folder --data-dir {image_folder} --image-size 16 --cache-limit 0 "
    checkpoint = f"--checkpoint {output}/model_final.pt --device cpu "
    network = "--model dit --patch-size 8 --blocks 1 --channels 4 --optimizer adamw "
    commands = [
        f"train {data_flags} {network} --max-steps 2 --device cpu --output-dir {output}",
        f"sample {checkpoint} --num-images 2 --steps 2 --animate --output {output}/samples.png",
        f"visualize_diffusion --run {output} --steps 2 --device cpu",
        f"visualize_diffusion {data_flags} --save-path {output}/forward.png",
    ]
    subprocess.run(
        [sys.executable, "-c", COMMANDS, *commands],
        cwd=watched / "cwd",
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert [p for p in watched.rglob("*") if p.is_file()] == []
    for name in ("model_final.pt", "samples.gif", "report.html", "forward.png"):
        assert (output / name).exists()


# --- pictures of other sizes ---------------------------------------------------------------------


def grid_size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert len(image.convert("RGB").getcolors(1 << 22)) > 1000  # it shows something
        return image.size


def test_cifar10_as_a_folder_of_classes(script, real_data, tmp_path):
    cifar10 = load_dataset("cifar10", real_data, download=False)
    for i in range(200):
        name = cifar10.classes[cifar10.labels[i]]
        save_image(tmp_path / "cifar10" / name / f"{i}.png", cifar10.items[i].permute(1, 2, 0))
    flags = ["--dataset", "folder", "--data-dir", tmp_path / "cifar10", "--image-size", 64]
    flags += ["--cache-limit", 0, "--cache-dir", tmp_path / "cache", "--class-conditional"]
    flags += ["--multipliers", 1, 1, 1, "--batch-size", 8, "--max-steps", 3]
    result = script("train", *TINY, *flags)
    assert result.code == 0, result.err
    assert "data: folder, 200 images of 3 x 64 x 64" in result.out
    assert load_checkpoint("outputs/model_final.pt")["config"]["data"]["classes"] == cifar10.classes
    # 4 x 4 drawn ones, a line, and a row of real ones
    assert grid_size("outputs/samples/epoch_001.png") == (4 * 66 + 2, 4 * 66 + 2 + 2 + 66 + 2)


@pytest.mark.parametrize("fit", folders.FITS)
def test_images_of_128_pixels(script, tmp_path, fit):
    for i in range(8):
        save_image(tmp_path / "made" / f"{i}.jpg", noise_pixels(128 + 16 * i, 160, 3))
    flags = ["--dataset", "folder", "--data-dir", tmp_path / "made", "--image-size", 128]
    flags += ["--fit", fit, "--model", "dit", "--patch-size", 16, "--max-steps", 2]
    result = script("train", *TINY, *flags)
    assert result.code == 0, result.err
    assert "data: folder, 8 images of 3 x 128 x 128" in result.out
    size = (4 * 130 + 2, 4 * 130 + 2 + 2 + 130 + 2)
    assert grid_size("outputs/samples/epoch_002.png") == size
