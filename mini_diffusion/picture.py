"""Image grids, pictures of points, and PNG files."""

import math
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from mini_diffusion.tensor import Tensor

GAP, SHADE = 2, 40  # pixels between the images of a grid, and their grey value
MARK = b"Software\0made by Tiny Diffusion"  # by it, train.py tells our pictures from data
SCATTER, DOT, INK = 480, 3, (31, 119, 180)  # side of a picture of points and of a point; colour
SIDE = 56  # approximate minimum size of an image in a grid, on its larger side, in pixels


def to_uint8(x: Tensor) -> np.ndarray:
    """Pixels 0-255 of images in [-1, 1], clipped: (N, C, H, W) -> (N, H, W, C)."""
    return ((x.nhwc.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def grid(images: np.ndarray) -> np.ndarray:
    """Nearly square grid (H', W', 3) of uint8 images (N, H, W, 1 or 3); enlarges small ones."""
    scale = max(1, round(SIDE / max(images.shape[1:3])))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    n, h, w, _ = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    picture = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), SHADE, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (h + GAP) + GAP, i % columns * (w + GAP) + GAP
        picture[y : y + h, x : x + w] = image
    return picture


def scatter(points: np.ndarray) -> np.ndarray:
    """Picture (H, W, 3) of the first two coordinates of points (N, D); the second points up.

    The picture shows the square around 0 that contains all points.
    """
    half = max(float(np.abs(points[:, :2]).max(initial=0)), 1e-6)
    picture = np.full((SCATTER, SCATTER, 3), 255, np.uint8)
    at = (points[:, :2] / half * [1, -1] + 1) / 2 * (SCATTER - 2 * DOT) + DOT
    columns, rows = at.round().astype(int).clip(DOT, SCATTER - 1 - DOT).T
    for i, j in np.ndindex(DOT, DOT):
        picture[rows + i - DOT // 2, columns + j - DOT // 2] = INK
    return picture


def png(picture: np.ndarray) -> bytes:
    """PNG file of a uint8 RGB image (H, W, 3) (W3C, Portable Network Graphics, 3rd edition)."""
    height, width, _ = picture.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits per channel, RGB
    lines = np.insert(picture.reshape(height, -1), 0, 0, axis=1)  # filter type 0 before each row
    file = b"\x89PNG\r\n\x1a\n"
    chunks = [(b"IHDR", header), (b"tEXt", MARK), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    for kind, data in chunks:
        checksum = zlib.crc32(kind + data)
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    return file


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: to a temporary name in the same folder, which is then renamed.

    An OSError has the name of the file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):  # the first error is the one to report
            partial.unlink(missing_ok=True)
