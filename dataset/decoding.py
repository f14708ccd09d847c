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

from dataset.finding import own_pictures_note
from dataset.image_files import (
    decode_image,
    has_colours,
    printable,
    why_unreadable,
)
from dataset.own_files import is_own_picture
from utils import DataError


class ImageFolder(NamedTuple):
    """A folder of images, and every setting that its decoded pixels depend on."""

    root: Path
    files: list[Path]
    size: tuple[int, int]  # height and width of the decoded images in pixels
    fit: str  # a key of image_files.FITS
    skip_bad: bool  # leave out images that cannot be read
    channels: int | None = None  # 1 for grey, 3 for colour; None: grey if all images are grey
    background: str = "white"  # colour behind transparent pixels

    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) if all images can be read; C is 1 if no image is in colour."""
        coloured = (has_colours(file, self.background) for file in self.files)
        return (len(self.files), self.channels or (3 if any(coloured) else 1), *self.size)

    def without_own_pictures(self) -> "ImageFolder":
        """The folder without the pictures that this project wrote.

        Raises DataError if there are no others.
        """
        files = [file for file in self.files if not is_own_picture(file)]
        if not files:
            raise DataError(f"no images in {self.root}: {own_pictures_note(len(self.files))}")
        return self._replace(files=files)


class Decoded(NamedTuple):
    """The decoded images of a folder."""

    pixels: Tensor  # uint8 (N, C, H, W), in memory or in a read-only mapped file
    files: list[Path]  # of these images, N
    unreadable: list[Path]  # files that are left out
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
    return Decoded(pixels[: len(digests)], *split_files(folder.files, left_out), digests)


def split_files(files: list[Path], left_out: Iterable[int]) -> tuple[list[Path], list[Path]]:
    """The files of a folder in two parts: those that were read, and those at `left_out` indices."""
    bad = set(left_out)
    read = [file for i, file in enumerate(files) if i not in bad]
    return read, [files[i] for i in sorted(bad)]


class DecodedImage(NamedTuple):
    """One decoded image."""

    pixels: np.ndarray  # uint8 (C, H, W)
    digest: str  # of the pixels in colour, so that it is the same in a grey and a colour folder


def decode_each(
    folder: ImageFolder, channels: int, progress: Callable[..., Iterable]
) -> Iterator[DecodedImage | None]:
    """Decode each file; yields None for a file that cannot be read.

    After the last file, raises DataError if files cannot be read, unless `skip_bad` is set.
    """

    def attempt(file: Path) -> tuple[DecodedImage | None, str]:
        try:
            pixels = decode_image(file, folder.size, folder.fit, folder.background)
            digest = hashlib.blake2b(pixels, digest_size=8).hexdigest()
            return DecodedImage(in_grey(pixels) if channels == 1 else pixels, digest), ""
        except Exception as error:  # Pillow's decoders raise almost any exception
            reason = why_unreadable(file, error)
            return None, f"{printable(file.relative_to(folder.root))}: {reason}"

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


def in_grey(pixels: np.ndarray) -> np.ndarray:
    """Convert colours, uint8 (3, H, W), to grey (1, H, W) as Pillow does; shades of grey stay."""
    red, green, blue = pixels.astype(np.uint32)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)[None]


def usable_cores() -> int:
    """The processor cores that this process may use; a job scheduler may have set them aside."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS or Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_ahead(function: Callable, items: Iterable) -> Iterator:
    """`map` with threads, a few results ahead; `ThreadPoolExecutor.map` would store all results."""
    workers = usable_cores()
    with ThreadPoolExecutor(workers) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
