import json
import os
import resource
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from conftest import TINY
from dataset.image_files import FITS
from dataset.registry import load_dataset
from images import assert_same_data, noise_pixels, save_image
from utils import DataError


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "pixels"


def load_mapped(root, cache, size=16, **options):
    return load_dataset("folder", root, image_size=size, cache_dir=cache, cache_limit=0, **options)


@pytest.fixture
def forbid_decoding(monkeypatch):
    def stop(*arguments):
        raise AssertionError("an image was decoded")

    return lambda: monkeypatch.setattr("dataset.decoding.decode_image", stop)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("grey", [False, True])
def test_mapped_pixels_equal_those_in_memory(image_folder, cache, fit, grey):
    for i, file in enumerate(sorted(image_folder.rglob("*.png"))):
        if grey or i % 2:
            Image.open(file).convert("L").save(file)
    (image_folder / "cats" / "empty.png").write_bytes(b"")
    options = {"fit": fit, "skip_bad_images": True}
    expected = load_dataset("folder", image_folder, image_size=16, **options)
    assert expected.items.shape == (12, 1 if grey else 3, 16, 16)
    for _ in range(2):  # decoded, then read from the cache
        found = load_mapped(image_folder, cache, **options)
        assert_same_data(found, expected)
        assert "1 of 13 images cannot be read and are left out" in found.note


def test_the_cache_limit_is_in_gigabytes_of_colour_pixels(image_folder, cache):
    size = 12 * 3 * 16 * 16 / 1e9
    options = {"image_size": 16, "cache_dir": cache}
    assert not load_dataset("folder", image_folder, cache_limit=size, **options).note
    assert load_dataset("folder", image_folder, cache_limit=0.99 * size, **options).note


def test_each_size_and_fit_is_decoded_once_into_its_own_file(image_folder, cache, forbid_decoding):
    choices = [{"size": 16}, {"size": 8}, {"size": 16, "fit": "stretch"}]
    first = [load_mapped(image_folder, cache, **choice) for choice in choices]
    assert all(f"decoded into {cache}" in data.note for data in first)
    assert "(9.22e-06 GB)" in first[0].note
    assert len(list(cache.iterdir())) == 3
    forbid_decoding()
    for choice, expected in zip(choices, first, strict=True):
        found = load_mapped(image_folder, cache, **choice)
        assert found.note.startswith(f"pixels are read from {cache}")
        assert_same_data(found, expected)


def test_the_cache_is_in_the_folder_of_images_by_default(image_folder, forbid_decoding):
    first = load_mapped(image_folder, None)
    assert (image_folder / ".tiny-diffusion" / "16_crop.pixels").exists()
    forbid_decoding()
    moved = image_folder.rename(image_folder.with_name("moved"))
    found = load_mapped(moved, None)
    assert found.note == f"pixels are read from {moved}/.tiny-diffusion/16_crop.pixels"
    assert_same_data(found, first)


def test_the_cache_is_not_written_through_a_link_out_of_the_folder(image_folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (image_folder / ".tiny-diffusion").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leads out of the folder; pass its target as --cache-dir"):
        load_mapped(image_folder, None)
    assert not list((tmp_path / "elsewhere").iterdir())


def replace_at_the_same_time(file: Path) -> None:
    time_before = file.stat().st_mtime_ns
    save_image(file, noise_pixels(40, 40, 3))
    os.utime(file, ns=(time_before, time_before))


FOLDER_CHANGES = {
    "removed": Path.unlink,
    "touched": lambda file: os.utime(file, ns=(0, 0)),
    "renamed": lambda file: file.rename(file.with_name("10.png")),
    "replaced": replace_at_the_same_time,
}


@pytest.mark.parametrize("change", FOLDER_CHANGES.values(), ids=FOLDER_CHANGES)
def test_a_changed_folder_is_decoded_again(image_folder, cache, change):
    load_mapped(image_folder, cache)
    change(image_folder / "cats" / "1.png")
    found = load_mapped(image_folder, cache)
    assert found.note.endswith("the previous file was damaged or out of date")
    assert_same_data(found, load_dataset("folder", image_folder, image_size=16))
    assert len(list(cache.iterdir())) == 1


def without_a_digest(content: bytes) -> bytes:
    length = int.from_bytes(content[-8:], "little")
    record = json.loads(content[-8 - length : -8])
    record["digests"].pop()
    text = json.dumps(record).encode()
    return content[: -8 - length] + text + len(text).to_bytes(8, "little")


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "headless": lambda content: content[100:],
    "longer": lambda content: content + b"more",
    "list": lambda content: b"[1, 2]" + (6).to_bytes(8, "little"),
    "another": lambda content: bytes(6) + b'{"shape": [6]}' + (14).to_bytes(8, "little"),
    "digest": without_a_digest,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_file_is_written_again(image_folder, cache, damage):
    expected = load_mapped(image_folder, cache).items.clone()
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.unlink()  # the first data set still maps it
    file.write_bytes(damage(content))
    found = load_mapped(image_folder, cache)
    assert "the previous file was damaged" in found.note
    assert torch.equal(found.items, expected)
    assert file.read_bytes() == content


def test_an_interrupted_decoding_leaves_no_file(image_folder, cache, monkeypatch):
    def interrupt(file, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("dataset.decoding.decode_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_mapped(image_folder, cache)
    assert list(cache.iterdir()) == []


def test_partial_files_of_killed_processes_are_deleted_after_an_hour(image_folder, cache):
    cache.mkdir(parents=True)
    old, new, other = (cache / name for name in (".a.pixels.1.partial", ".b.pixels.2.partial", "c"))
    for file in (old, new, other):
        file.write_bytes(b"half")
    for file in (old, other):
        os.utime(file, (time.time() - 7200,) * 2)
    load_mapped(image_folder, cache)
    assert not old.exists()
    assert new.exists()  # another process may be writing it
    assert other.exists()


@pytest.mark.parametrize(
    ("reason", "where"),
    [
        ("No space left on device", "cache"),
        ("File too large", "cache"),
        ("Not a directory", "file/pixels"),
    ],
)
def test_a_cache_that_cannot_be_written_is_one_line(
    script, image_folder, tmp_path, monkeypatch, reason, where
):
    (tmp_path / "file").write_text("")
    flags = ["--dataset", "folder", "--data-dir", "images", "--image-size", 256]
    flags += ["--cache-limit", 0, "--cache-dir", where]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if reason == "No space left on device":
        usage = SimpleNamespace(free=1000)
        monkeypatch.setattr("dataset.pixel_cache.shutil.disk_usage", lambda path: usage)
    elif reason == "File too large":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        result = script("train", *TINY, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 1
    assert f"images (0.00236 GB) cannot be written to {where} ({reason}); choose" in result.err
    assert "--cache-dir" in result.err
    assert len(result.err.splitlines()) == 1
    assert not list((tmp_path / "cache").glob("*"))
