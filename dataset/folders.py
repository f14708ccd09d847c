"""A folder of image files as a data set. Its subfolders are the classes."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from dataset.decoding import Decoded, ImageFolder, decode_in_memory
from dataset.image_files import find_images, no_decompression_bombs
from dataset.pixel_cache import decode_through_cache
from dataset.types import Data, Request

MAX_DIGITS = 15  # of a class name that counts as a number
FOLDER_SIZE = 64  # default height and width of the images in pixels


def load_folder(request: Request) -> Data:
    """Any folder of images, made one size. Subfolders are classes if they hold all images."""
    root, size = request.data_dir, request.image_size or (FOLDER_SIZE, FOLDER_SIZE)
    files, links_note = find_images(root)
    folder = ImageFolder(root, files, size, request.fit, request.skip_bad_images)
    decoded = decode_folder(folder, request.cache_dir, request.cache_limit, request.progress)
    bad = set(decoded.left_out)
    kept = [file.relative_to(root) for i, file in enumerate(files) if i not in bad]
    bad_note = f"{len(bad)} of {len(files)} images cannot be read and are left out" if bad else ""

    labels, classes = None, []
    if all(len(file.parts) > 1 for file in kept):
        classes = sorted({file.parts[0] for file in kept}, key=class_order)
        number = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([number[file.parts[0]] for file in kept])
    note = "\n".join(filter(None, [decoded.note, links_note, bad_note]))
    names = [file.as_posix() for file in kept]
    digests = dict(zip(names, decoded.digests, strict=True))
    return Data(decoded.pixels, labels, classes, note, digests)


def class_order(name: str) -> tuple:
    """Sort key of the classes: numbers by their value, before other names."""
    if name.isdecimal() and len(name) <= MAX_DIGITS:
        return 0, int(name), name
    return 1, 0, name


@no_decompression_bombs()
def decode_folder(
    folder: ImageFolder,
    cache_dir: str | Path | None = None,
    cache_limit: float = 2,
    progress: Callable[..., Iterable] = lambda items, **_: items,
) -> Decoded:
    """Decode a folder of images into memory or, if it is too large, into a mapped file.

    `cache_limit` is in gigabytes, all images counted in colour; a `cache_dir` of None is hidden.
    """
    if len(folder.files) * 3 * math.prod(folder.size) <= cache_limit * 1e9:
        return decode_in_memory(folder, progress)
    return decode_through_cache(folder, cache_dir, progress)
