"""Decode the images of a folder, in order, with one thread per processor core."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataset.image_files import decode_image, has_colours, printable
from utils import DataError


class ImageFolder(NamedTuple):
    """A folder of images, and every setting that its decoded pixels depend on."""

    root: Path
    files: list[Path]
    size: tuple[int, int]  # height and width of the decoded images in pixels
    fit: str  # a key of image_files.FITS
    skip_bad: bool  # leave out images that cannot be read

    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) if all images can be read; C is 1 if no image is in colour."""
        channels = 3 if any(map(has_colours, self.files)) else 1
        return (len(self.files), channels, *self.size)


class Decoded(NamedTuple):
    """The decoded images of a folder."""

    pixels: Tensor  # uint8 (N, C, H, W), in memory or in a read-only mapped file
    left_out: list[int]  # indices of the files that could not be read
    digests: list[str]  # of the pixels of each image, N
    note: str = ""  # where the pixels are, if not in memory


def decode_in_memory(folder: ImageFolder, progress: Callable[..., Iterable]) -> Decoded:
    """Decode a folder into a tensor in memory."""
    shape = folder.shape()
    pixels, left_out, digests = torch.empty(shape, dtype=torch.uint8), [], []
    for i, image in enumerate(decode_each(folder, shape[1], progress)):
        if image is None:
            left_out.append(i)
        else:
            pixels[len(digests)] = torch.from_numpy(image.pixels)
            digests.append(image.digest)
    return Decoded(pixels[: len(digests)], left_out, digests)


class DecodedImage(NamedTuple):
    """One decoded image."""

    pixels: np.ndarray  # uint8 (C, H, W)
    digest: str  # of the pixels in colour, so that it is the same in a grey and a colour folder


def decode_each(
    folder: ImageFolder, channels: int, progress: Callable[..., Iterable]
) -> Iterator[DecodedImage | None]:
    """Decode each file; None if it cannot be read, and a DataError at the end unless `skip_bad`."""

    def attempt(file: Path) -> tuple[DecodedImage | None, str]:
        try:
            pixels = decode_image(file, folder.size, folder.fit)
            digest = hashlib.blake2b(pixels, digest_size=8).hexdigest()
            return DecodedImage(pixels[:channels], digest), ""
        except Exception as error:  # Pillow's decoders raise almost any exception
            return None, f"{printable(file.relative_to(folder.root))}: {error}"

    count, bad = len(folder.files), []
    attempts = map_ahead(attempt, folder.files)
    for image, problem in progress(attempts, total=count, desc="reading images"):
        if image is None:
            bad.append(problem)
        yield image
    if bad and (not folder.skip_bad or len(bad) == count):
        shown = "\n  ".join(bad[:10] + ([f"... and {len(bad) - 10} more"] if len(bad) > 10 else []))
        raise DataError(
            f"{len(bad)} of {count} images in {folder.root} cannot be read:\n  {shown}\n"
            "Repair or remove them, or leave them out with --skip-bad-images."
        )


def map_ahead(function: Callable, items: Iterable) -> Iterator:
    """`map` with threads, a few results ahead; `ThreadPoolExecutor.map` would store all results."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
