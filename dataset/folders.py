"""Folders of image files, decoded into memory."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils import DataError

if TYPE_CHECKING:
    pass
from dataset.image_files import decode, has_colours, printable


class Folder(NamedTuple):
    """A folder of images, and all that decides its pixels."""

    root: Path
    files: list[Path]
    size: int  # side of the images in pixels
    fit: str  # a key of FITS
    skip_bad: bool  # leave out what cannot be read

    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) if all can be read. Grey if no image has colours."""
        channels = 3 if any(map(has_colours, self.files)) else 1
        return (len(self.files), channels, self.size, self.size)


class Decoded(NamedTuple):
    pixels: Tensor  # uint8 (N, C, H, W), in memory or mapped, and then not to be written to
    left_out: list[int]  # positions of the files that could not be read
    digests: list[str]  # N, of each image's pixels
    note: str = ""  # where the pixels are, if not in memory


def in_memory(folder: Folder, progress: Callable[..., Iterable]) -> Decoded:
    shape = folder.shape()
    pixels, left_out, digests = torch.empty(shape, dtype=torch.uint8), [], []
    for i, image in enumerate(images(folder, shape[1], progress)):
        if image is None:
            left_out.append(i)
        else:
            pixels[len(digests)] = torch.from_numpy(image.pixels)
            digests.append(image.digest)
    return Decoded(pixels[: len(digests)], left_out, digests)


class DecodedImage(NamedTuple):
    pixels: np.ndarray  # uint8 (channels, H, W)
    digest: str  # of them in colour, so that it does not depend on the folder's other images


def images(
    folder: Folder, channels: int, progress: Callable[..., Iterable]
) -> Iterator[DecodedImage | None]:
    """Each file's image in turn; None for one that cannot be read.

    Raises DataError at the end, with the names of those, unless they may be left out.
    """

    def attempt(file: Path) -> tuple[DecodedImage | None, str]:
        try:
            pixels = decode(file, folder.size, folder.fit)
            digest = hashlib.blake2b(pixels, digest_size=8).hexdigest()
            return DecodedImage(pixels[:channels], digest), ""
        except Exception as error:  # Pillow's decoders raise nearly anything
            return None, f"{printable(file.relative_to(folder.root))}: {error}"

    count, bad = len(folder.files), []
    attempts = ahead(attempt, folder.files)
    for image, problem in progress(attempts, total=count, desc="reading images"):
        if image is None:
            bad.append(problem)
        yield image
    if bad and (not folder.skip_bad or len(bad) == count):
        shown = "\n  ".join(bad[:10] + ([f"... and {len(bad) - 10} more"] if len(bad) > 10 else []))
        raise DataError(
            f"{len(bad)} of {count} images in {folder.root} cannot be read:\n  {shown}\n"
            "Mend or remove them, or leave them out with --skip-bad-images."
        )


def ahead(function: Callable, items: Iterable) -> Iterator:
    """`map` by threads that keep a few items ahead.

    `ThreadPoolExecutor.map` would go on to the last one, and hold all that nobody has taken yet.
    """
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        begun = deque()
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > 2 * workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
