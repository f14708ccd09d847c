"""Decoding of single image files."""

import struct
import sys
import types
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, features

from dataset import image_files
from dataset.image_files import (
    FITS,
    decode_image,
    has_colours,
    open_upright,
    read_image,
    require_same_size,
)
from dataset.registry import load_dataset
from images import noise_pixels, save_image
from utils import DataError

TURNED = struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)  # an EXIF entry: orientation 6


def exif(*entries: bytes, count: int | None = None) -> bytes:
    """EXIF data of entries (tag, type, count, value or offset) of 12 bytes each."""
    head = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries) if count is None else count)
    return head + b"".join(entries) + bytes(4)


def tiff(width: int, height: int, *entries: bytes) -> bytes:
    """An uncompressed grey TIFF whose rows are 0, 1, 2, ..."""
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 400, 277: 1, 278: height}
    values[279] = width * height
    tags = [struct.pack(">HHII", tag, 4, 1, value) for tag, value in values.items()]
    body = b"MM\0*" + struct.pack(">IH", 8, len(tags) + len(entries))
    return (body + b"".join(sorted([*tags, *entries]))).ljust(400, b"\0") + (
        bytes(range(width)) * height
    )


# --- orientation and size -------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_images_are_turned_as_their_exif_orientation_says(tmp_path, orientation, ending):
    """Of the upright image, the left upper corner is bright."""
    upright = np.zeros((24, 16), np.uint8)
    upright[:8, :8] = 255
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turns |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # the inverse of the orientation
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose[turns[orientation]])
    metadata = Image.Exif()
    metadata[0x0112] = orientation
    stored.save(tmp_path / f"a.{ending}", exif=metadata)
    found = decode_image(tmp_path / f"a.{ending}", None)[0].astype(int)
    assert found.shape == (24, 16)
    assert np.abs(found - upright).mean() < 8


DAMAGES = {
    "a text where a number belongs": exif(TURNED, struct.pack(">HHI4s", 0x11A, 2, 3, b"72\0\0")),
    "an offset beyond the end": exif(struct.pack(">HHII", 0x10F, 2, 5000, 65535), TURNED),
    "an unknown type": exif(struct.pack(">HHII", 0x10F, 99, 1, 0), TURNED),
    "a wrong offset of a folder": exif(TURNED, struct.pack(">HHII", 0x8769, 4, 1, 2**32 - 1)),
    "a folder that is the first again": exif(TURNED, struct.pack(">HHII", 0x8825, 4, 1, 8)),
    "too few entries": exif(TURNED, count=200),
    "a division by zero": exif(TURNED, struct.pack(">HHII", 0x11A, 5, 1, 38)) + bytes(8),
    "an orientation of 4 bytes": exif(struct.pack(">HHII", 0x112, 4, 1, 6)),
    "an orientation as a text": exif(struct.pack(">HHI4s", 0x112, 2, 2, b"6\0\0\0")),
}
HOPELESS = [b"Exif\0\0", b"Exif\0\0MM", b"Exif\0\0garbage, garbage", exif(b"\1\x12" + bytes(10))]
HOPELESS += [exif(struct.pack(">HHII", 0x112, 3, 1, 99 << 16))]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_damaged_metadata_do_not_make_an_image_unreadable(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    for metadata in DAMAGES.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.new("RGB", (40, 30)).save(path, exif=metadata)
        assert read_image(path, None, 3).shape == (3, 40, 30)
    for metadata in HOPELESS:
        Image.new("RGB", (40, 30)).save(path, exif=metadata)
        assert read_image(path, None, 3).shape == (3, 30, 40)


@pytest.mark.filterwarnings("error")
def test_an_uncompressed_tiff_is_turned_even_if_its_other_tags_are_damaged(tmp_path):
    path = tmp_path / "a.tif"
    for damage in (
        [],
        [struct.pack(">HHI4s", 282, 2, 3, b"72\0\0")],
        [b"\1\x0f" + b"\0\2\xff" * 3],
    ):
        path.write_bytes(tiff(20, 10, TURNED, *[each.ljust(12, b"\0")[:12] for each in damage]))
        found = read_image(path, None, 1)
        assert found.shape == (1, 20, 10)
        assert found[0, :, 0].tolist() == list(range(20))


def test_a_size_is_that_of_the_upright_image(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.jpg", exif=turned)
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.tif", exif=turned)
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.png")
    png, chunk = (tmp_path / "photo.png").read_bytes(), b"eXIf" + exif(TURNED)[6:]
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "photo.png").write_bytes(png[:-12] + late + png[-12:])  # behind the pixels
    Image.new("L", (40, 60)).save(tmp_path / "seen.png")
    Image.new("L", (60, 40)).save(tmp_path / "stored.png")
    for photo in ("photo.jpg", "photo.tif", "photo.png"):
        assert open_upright(tmp_path / photo).size == (40, 60)
        require_same_size(tmp_path / photo, tmp_path / "seen.png")
        with pytest.raises(ValueError, match=rf"stored.png is 60 x 40 .*{photo} 40 x 60"):
            require_same_size(tmp_path / photo, tmp_path / "stored.png")


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(1, 64))
def test_the_cropped_box_is_centred_in_the_image_and_has_the_aspect_ratio(w, h, rows, columns):
    left, top, right, bottom = FITS["crop"](w, h, (rows, columns))
    width, height = right - left, bottom - top
    assert (left, top) == ((w - width) // 2, (h - height) // 2)
    assert width == w or height == h  # the largest such box
    assert width <= w
    assert height <= h
    assert abs(width - height * columns / rows) < 1 + columns / rows
    if rows == columns:
        assert width == height == min(w, h)


def test_images_are_cropped_to_a_rectangle(tmp_path):
    pixels = np.zeros((60, 40), np.uint8)
    pixels[18:42] = 255  # the central rectangle, and the margin that resampling looks at
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = decode_image(tmp_path / "a.png", (10, 20))
    assert found.shape == (3, 10, 20)
    assert found.min() > 250


# --- types ----------------------------------------------------------------------------------------


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
LOSSLESS = ["png", "apng", "bmp", "gif", "tif", "tiff", "tga", "jp2", "qoi", "pgm", "pnm", "ppm"]


@pytest.mark.parametrize("ending", [*LOSSLESS, "jpg", "JPEG", "jpe", "jfif", "webp", "avif"])
def test_every_type_is_read(tmp_path, ending):
    if ending in ("avif", "webp") and not features.check(ending):
        pytest.skip("this Pillow cannot read it")
    kind = image_files.FORMATS[f".{ending.lower()}"]
    mode = "RGB" if ending in ("ppm", "qoi") else "L"
    Image.fromarray(GREY).convert(mode).save(tmp_path / f"a.{ending}", format=kind)
    (found,) = load_dataset("folder", tmp_path, image_size=8).items
    assert np.abs(found[0].numpy().astype(int) - GREY).max() <= (0 if ending in LOSSLESS else 8)


def test_numbers_of_more_than_8_bits_are_scaled(tmp_path):
    for depth, bits in [(65535, 16), (1023, 10)]:
        values = np.round(GREY / 255 * depth).astype(">u2")
        (tmp_path / "a.pgm").write_bytes(b"P5 8 8 %d\n" % depth + values.tobytes())
        found = decode_image(tmp_path / "a.pgm", None)[0]
        assert np.abs(found.astype(int) - GREY).max() <= 1, bits


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", GREY)
    (tmp_path / "a.png").rename(tmp_path / "a.heic")
    with pytest.raises(DataError, match=r"no images .*1 file is left out.*1 \.heic"):
        load_dataset("folder", tmp_path, image_size=8)
    module = types.ModuleType("pillow_heif")
    plugin = PngImagePlugin.PngImageFile
    module.register_heif_opener = lambda: Image.register_open("HEIF", plugin)
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    image_files.readable.cache_clear()
    try:
        assert load_dataset("folder", tmp_path, image_size=8).items[0, 0].tolist() == GREY.tolist()
    finally:
        image_files.readable.cache_clear()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
            "it is a git-LFS pointer",
        ),
        (b"<!DOCTYPE html><html></html>", "it is a web page"),
        (
            b"\0\0\0\x18ftypheic" + bytes(100),
            "it is a HEIC image, a type that is not read: convert",
        ),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "it is a damaged PNG image"),
        (bytes(range(200)) * 9, "it is not an image of a known type"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a PostScript document"),
    ],
)
def test_the_reason_says_what_a_file_really_is(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=f"a.jpg: {reason}"):
        load_dataset("folder", tmp_path)
    with pytest.raises(DataError, match=rf"a.jpg cannot be read as an image \({reason}"):
        read_image(tmp_path / "a.jpg", (8, 8), 3)


def test_an_image_is_read_by_its_content_whatever_its_ending(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.jpg", format="GIF")
    assert decode_image(tmp_path / "a.jpg", None)[0].tolist() == GREY.tolist()
    # A TGA has no signature. Any file could be taken for one, so that its ending decides.
    Image.fromarray(GREY).save(tmp_path / "b.png", format="TGA")
    with pytest.raises(DataError, match="not an image of a known type"):
        read_image(tmp_path / "b.png", None, 3)


# --- grey, colour and transparency ----------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "gif", "bmp", "tif", "tga"])
def test_a_palette_of_greys_is_grey(tmp_path, ending):
    greys = Image.fromarray(GREY).quantize(16)
    greys.save(tmp_path / f"a.{ending}")
    assert not has_colours(tmp_path / f"a.{ending}")
    Image.fromarray(noise_pixels(8, 8, 3)).quantize(16).save(tmp_path / f"b.{ending}")
    assert has_colours(tmp_path / f"b.{ending}")


def test_a_background_can_colour_grey_images(tmp_path):
    half = Image.fromarray(GREY).convert("LA")
    half.putalpha(0)
    half.save(tmp_path / "a.png")
    palette = Image.fromarray(GREY).quantize(16)
    palette.save(tmp_path / "b.gif", transparency=0)
    for path in (tmp_path / "a.png", tmp_path / "b.gif"):
        assert not has_colours(path, "black")
        assert has_colours(path, "#ff0000")
    assert decode_image(tmp_path / "a.png", (8, 8), background="#f00")[:, 0, 0].tolist() == [
        255,
        0,
        0,
    ]
