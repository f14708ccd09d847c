"""What a file really is, whatever its name says."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, features
from safetensors.torch import save_file

from conftest import ROOT
from dataset.opening import what_is

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
CONTENTS = {
    "empty": b"",
    "filled with zeros": bytes(5000),
    "a git-LFS pointer": POINTER.encode(),
    "a git-annex pointer": b"/annex/objects/SHA256E-s31390--f50d7ac4.jpg\n",
    "a web page": b"\r\n<!DOCTYPE html><html lang=en><title>Sign in</title>",
    "an XML document": b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "an SVG drawing": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "a text file": "à".encode() * 3000,  # a character is cut after 4096 bytes
    "a HEIC image": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "a video (MP4)": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(100),
    "a gzip archive": b"\x1f\x8b\x08" + bytes(range(100)),
    "an IDX file of images": b"\0\0\x08\x03" + bytes(range(100)),
    "a Python pickle": pickle.dumps(["a"]),
    "": bytes(range(256)),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_is_recognized_by_its_content(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(CONTENTS[kind])
    found = what_is(tmp_path / "a.png")
    assert found.startswith(kind)
    assert bool(found) == bool(kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("png", "a PNG"), ("jpeg", "a JPEG"), ("gif", "a GIF"), ("webp", "a WebP"), ("bmp", "a BMP")]
    + [("tiff", "a TIFF"), ("avif", "an AVIF"), ("jp2", "a JPEG 2000"), ("ppm", "a PPM")],
)
def test_images_are_recognized(tmp_path, name, kind):
    if name == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.new("RGB", (8, 8))
    with open(tmp_path / "a.pt", "wb") as file:
        image.save(file, format={"jp2": "JPEG2000"}.get(name, name.upper()))
    assert what_is(tmp_path / "a.pt") == f"{kind} image"


def test_arrays_and_weights_are_recognized(tmp_path):
    path = tmp_path / "a.jpg"
    for write, kind in [
        (lambda file: np.save(file, np.zeros(3)), "a NumPy array (.npy)"),
        (lambda file: np.save(file, np.array([None, "O"])), "a NumPy array of pickled Python obje"),
        (lambda file: np.savez(file, np.zeros(3)), "a file of NumPy arrays (.npz)"),
        (lambda file: torch.save({"a": torch.zeros(3)}, file), "a PyTorch file"),
        (lambda file: save_file({"a": torch.zeros(3)}, file.name), "a safetensors file"),
    ]:
        with open(path, "wb") as file:
            write(file)
        assert what_is(path).startswith(kind)
    torch.save({}, path)
    path.write_bytes(path.read_bytes()[:-100])
    assert what_is(path) == "a damaged copy of a PyTorch file"


def test_what_is_no_file_is_named(tmp_path):
    assert what_is(tmp_path) == "a folder"
    assert what_is(tmp_path / "gone") == "missing"
    os.mkfifo(tmp_path / "pipe")  # reading it would never end
    assert what_is(tmp_path / "pipe") == "not a regular file"


def test_nothing_slow_is_imported():
    program = "import sys, dataset.opening; print({'torch', 'PIL', 'numpy'} & {*sys.modules})"
    command = [sys.executable, "-c", program]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == "set()\n"
