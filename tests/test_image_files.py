"""Decoding of single image files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.image_files import FITS, decode_image


@pytest.mark.parametrize(("orientation", "bright"), [(1, "left"), (3, "right"), (6, "top")])
def test_images_are_turned_as_their_exif_orientation_says(tmp_path, orientation, bright):
    """The stored pixels are bright at the left; orientation 6 turns them clockwise."""
    pixels = np.zeros((20, 20), np.uint8)
    pixels[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = decode_image(tmp_path / "a.png", (20, 20))[0].astype(float)
    halves = {
        "left": found[:, :10],
        "right": found[:, 10:],
        "top": found[:10],
        "bottom": found[10:],
    }
    assert max(halves, key=lambda name: halves[name].mean()) == bright


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
