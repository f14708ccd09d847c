"""Pixels, a grid of images, and the PNG format."""

import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from mini_diffusion.tensor import Tensor

GAP, SHADE = 2, 40  # pixels between the images of a grid, and their grey
SIDE = 56  # pixels that an image of a grid has at least, about


def to_uint8(x: Tensor) -> np.ndarray:
    """Images in [-1, 1], clipped, as 0 ... 255: (N, C, H, W) -> (N, H, W, C)."""
    return ((x.nhwc.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def grid(images: np.ndarray) -> np.ndarray:
    """uint8 images (N, H, W, C), enlarged, as one picture (H', W', 3) that is about square."""
    scale = max(1, round(SIDE / images.shape[2]))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    n, h, w, _ = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    picture = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), SHADE, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (h + GAP) + GAP, i % columns * (w + GAP) + GAP
        picture[y : y + h, x : x + w] = image
    return picture


def png(picture: np.ndarray) -> bytes:
    """A uint8 picture (H, W, 3) as a PNG file (W3C, Portable Network Graphics, 3rd edition)."""
    height, width, _ = picture.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    lines = np.insert(picture.reshape(height, -1), 0, 0, axis=1)  # each begins with its filter, 0
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]:
        checksum = zlib.crc32(kind + data)
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    return file


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name first: whoever opens `path` never finds a part of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
