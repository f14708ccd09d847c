"""Images for tests: pixels, files and folders of them, and assertions on loaded data sets."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset.types import Data


def noise_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save_image(path: Path, pixels, **options) -> None:
    """Save pixels (H, W) or (H, W, C); the folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def make_image_folder(root: Path) -> None:
    """Twelve colour PNGs of odd sizes in two subfolders, "cats" and "dogs"."""
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        save_image(root / ("cats" if i % 2 else "dogs") / f"{i}.png", pixels)


def assert_images(data: Data, count: int, shape: tuple[int, int, int], num_classes: int) -> None:
    """Assert the shapes and types of a data set of images with labels, each class present."""
    assert data.items.shape == (count, *shape)
    assert data.items.dtype == torch.uint8
    assert data.items.is_contiguous()
    assert data.labels.shape == (count,)
    assert data.labels.dtype == torch.int64
    assert set(data.labels.tolist()) == set(range(num_classes))
    assert len(data.classes) == num_classes


def assert_same_data(a: Data, b: Data) -> None:
    assert torch.equal(a.items, b.items)
    assert a.labels.tolist() == b.labels.tolist()
    assert a.classes == b.classes
    assert a.files == b.files


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


# Small files that claim enormous images. Of each three sizes, Pillow raises an error for the first,
# warns of the second and accepts the third.
BOMBS = {
    **{f"{side}.png": png(side, side) for side in (100_000, 10_000, 8000)},
    **{f"{side}.gif": gif(side, side) for side in (65_535, 10_000, 8000)},
    **{f"frame_{side}.gif": gif(side, side, (1, 1)) for side in (65_535, 10_000, 8000)},
    **{f"{side}.tiff": tiff(side, side) for side in (100_000, 10_000, 8000)},
    **{f"{side}.webp": webp(side, side) for side in (16_383, 10_000, 8000)},
}
