"""Folders of image files: decoded once, into memory or, where that is too small, into a file.

Such a file lies in a hidden folder beside the images, unless another is named, and is mapped into
memory, so that the system holds as much of it as fits:

pixels   uint8 (N, C, H, W)
record   JSON: {"fingerprint", "shape", "left_out", "digests"}
length   of the record in bytes; 8 bytes, little-endian
"""

import errno
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from utils import DataError, save_whole

if TYPE_CHECKING:
    pass
from dataset.folders import Decoded, DecodedImage, Folder, images, in_memory
from dataset.image_files import bombs_refused, links_out

CACHE_DIR = ".tiny-diffusion"  # in the folder of images


VERSION = 2  # of pixels and record: to be raised when the same files decode to others


ABANDONED = 3600  # seconds without a write after which a half-written file is nobody's


@bombs_refused()
def decode_folder(
    folder: Folder,
    cache_dir: str | Path | None = None,
    cache_limit: float = 2,
    progress: Callable[..., Iterable] = lambda items, **_: items,
) -> Decoded:
    """The pixels of a folder's images, from memory or from a mapped file.

    Args:
        folder: what to decode.
        cache_dir: where mapped files lie; by default in a hidden folder beside the images.
        cache_limit: gigabytes, with all images in colour, up to which they are held in memory.
        progress: wraps the iteration over files, to show a bar.

    Raises:
        DataError: images that cannot be read, or a file that cannot be written.
    """
    if len(folder.files) * 3 * folder.size**2 <= cache_limit * 1e9:
        return in_memory(folder, progress)
    return mapped(folder, cache_dir, progress)


def mapped(
    folder: Folder, cache_dir: str | Path | None, progress: Callable[..., Iterable]
) -> Decoded:
    """The pixels in a folder's file, which is written first if there is none that fits."""
    path, key = cache_file(folder, cache_dir), fingerprint(folder)
    record, note = read_record(path), f"pixels are read from {path}"
    if record.get("fingerprint") != key:
        stale = path.exists()
        record = write_cache(path, folder, key, progress)
        note = f"decoded into {path}, {gigabytes(math.prod(record['shape']))}, for other runs too"
        if stale:
            note += "; what was there was damaged, or of other files"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the tensor is read-only; nobody writes to it
        # Read-only and shared: a private mapping may not be larger than the memory.
        pixels = torch.from_numpy(np.memmap(path, np.uint8, "r", shape=tuple(record["shape"])))
    return Decoded(pixels, record["left_out"], record["digests"], note)


def cache_file(folder: Folder, cache_dir: str | Path | None) -> Path:
    """One for each place, size and fit, so that a folder that changes does not pile up files.

    Raises DataError if it would be written to where a link in the folder of images leads.
    """
    root = folder.root.resolve()
    if cache_dir is None:
        hidden = folder.root / CACHE_DIR
        if links_out([hidden], root):
            raise DataError(f"{hidden} is a link out of the folder; give its target as --cache-dir")
        return hidden / f"{folder.size}_{folder.fit}.pixels"
    digest = hashlib.blake2b(str(root).encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return Path(cache_dir, f"{root.name}_{folder.size}_{folder.fit}_{digest}.pixels")


def fingerprint(folder: Folder) -> str:
    """Of all that decides the pixels: the files' names, sizes and times, and what is asked.

    A file that is gone has a fingerprint too: it is for `images` to name it.
    """
    how = (VERSION, folder.size, folder.fit, folder.skip_bad)
    digest = hashlib.blake2b(repr(how).encode(), digest_size=16)
    for file in folder.files:
        state = (str(file.relative_to(folder.root)),)
        with suppress(OSError):
            stat = file.stat()
            state += (stat.st_size, stat.st_mtime_ns)
        digest.update(repr(state).encode())
    return digest.hexdigest()


def read_record(path: Path) -> dict:
    """What a mapped file says of itself; nothing if it is missing, cut off, or something else."""
    try:
        with open(path, "rb") as file:
            end = file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(8), "little")
            start = file.seek(end - length)
            record = json.loads(file.read(length))
        whole = start == math.prod(record["shape"]) and len(record["digests"]) == record["shape"][0]
        return record if whole else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def write_cache(path: Path, folder: Folder, key: str, progress: Callable[..., Iterable]) -> dict:
    """Decode a folder into a file, whole or not at all. Returns the file's record.

    Raises DataError for images that cannot be read, or if the file cannot be written.
    """
    shape = folder.shape()
    record = {"fingerprint": key, "shape": shape, "left_out": [], "digests": []}

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            write_content(file, record, images(folder, shape[1], progress))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_abandoned(path.parent)
        path.unlink(missing_ok=True)  # it is of no use any more, and may be what fills the disk
        if shutil.disk_usage(path.parent).free < math.prod(shape):  # known before hours of decoding
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_whole(path, write)
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"the images of {folder.root}, {gigabytes(math.prod(shape))} when decoded, cannot be "
            f"written to {path.parent} ({error.strerror or error}); name another folder with "
            "--cache-dir, or hold them in memory with a higher --cache-limit"
        ) from None
    return record


def delete_abandoned(cache_dir: Path) -> None:
    """Delete what killed processes have half written."""
    for partial in cache_dir.glob(".*.pixels.*.partial"):
        with suppress(FileNotFoundError):  # another process has just finished it
            if time.time() - partial.stat().st_mtime > ABANDONED:
                partial.unlink()


def write_content(file: BinaryIO, record: dict, images: Iterable[DecodedImage | None]) -> None:
    for i, image in enumerate(images):
        if image is None:
            record["left_out"].append(i)
        else:
            file.write(image.pixels)
            record["digests"].append(image.digest)
    record["shape"] = [len(record["digests"]), *record["shape"][1:]]
    text = json.dumps(record).encode()
    file.write(text + len(text).to_bytes(8, "little"))


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
