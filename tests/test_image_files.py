"""Decoding of single image files."""

import numpy as np
import pytest
from PIL import Image

from dataset.image_files import decode_image


@pytest.mark.parametrize(("orientation", "bright"), [(1, "left"), (3, "right"), (6, "top")])
def test_images_are_turned_as_their_exif_orientation_says(tmp_path, orientation, bright):
    """The stored pixels are bright at the left; orientation 6 turns them clockwise."""
    pixels = np.zeros((20, 20), np.uint8)
    pixels[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = decode_image(tmp_path / "a.png", 20)[0].astype(float)
    halves = {
        "left": found[:, :10],
        "right": found[:, 10:],
        "top": found[:10],
        "bottom": found[10:],
    }
    assert max(halves, key=lambda name: halves[name].mean()) == bright
