"""Decoded images in a file that is mapped into memory, for folders that do not fit into memory.

The file lies in a hidden folder within the folder of images, or in the folder of --cache-dir:

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
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from dataset.decoding import Decoded, DecodedImage, ImageFolder, decode_each, split_files
from dataset.finding import links_out
from dataset.image_files import rgb
from utils import DataError, save_whole

CACHE_DIR = ".tiny-diffusion"  # in the folder of images
VERSION = 2  # of pixels and record; raise it when the same files decode to other pixels
ABANDONED = 3600  # seconds without a write after which a partial file counts as abandoned


def decode_through_cache(
    folder: ImageFolder, cache_dir: str | Path | None, progress: Callable[..., Iterable]
) -> Decoded:
    """Map a folder's cache file; write it first if it is missing or does not fit the folder."""
    path, key = cache_file(folder, cache_dir), fingerprint(folder)
    record, note = read_cache_record(path), f"pixels are read from {path}"
    if record.get("fingerprint") != key:
        # Only now, because opening every file takes far longer than reading the record. The cache
        # never has pictures of this project, so new ones in the folder do not invalidate it.
        folder = folder.without_own_pictures()
        key = fingerprint(folder)
    if record.get("fingerprint") != key:
        stale = path.exists()
        record = write_cache(path, folder, key, progress)
        note = f"decoded into {path} ({gigabytes(math.prod(record['shape']))}); later runs reuse it"
        if stale:
            note += "; the previous file was damaged or out of date"
    parts = split_files(folder.files, record["left_out"])
    return Decoded(mapped_pixels(path, record), *parts, record["digests"], note)


def cache_file(folder: ImageFolder, cache_dir: str | Path | None) -> Path:
    """Path of a folder's cache file: one per folder and settings, replaced when images change."""
    root = folder.root.resolve()
    height, width = folder.size
    variant = f"{height if height == width else f'{height}x{width}'}_{folder.fit}"
    if folder.channels:
        variant += "_grey" if folder.channels == 1 else "_colour"
    if rgb(folder.background) != rgb("white"):
        variant += "_{:02x}{:02x}{:02x}".format(*rgb(folder.background))
    if cache_dir is None:
        hidden = folder.root / CACHE_DIR
        if links_out([hidden], root):
            raise DataError(
                f"{hidden} is a symbolic link that leads out of the folder; "
                "pass its target as --cache-dir"
            )
        return hidden / f"{variant}.pixels"
    digest = hashlib.blake2b(str(root).encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return Path(cache_dir, f"{root.name}_{variant}_{digest}.pixels")


def fingerprint(folder: ImageFolder) -> str:
    """Digest of what the pixels depend on: settings, and name, size and time of each file."""
    height, width = folder.size
    size = height if height == width else folder.size
    # Settings that were added later count only if they are not the default: old files stay valid.
    settings = (VERSION, size, folder.fit, folder.skip_bad)
    if folder.channels or rgb(folder.background) != rgb("white"):
        settings += (folder.channels, rgb(folder.background))
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for file in folder.files:
        state = (str(file.relative_to(folder.root)),)
        with suppress(OSError):  # a missing file: decoding reports it
            stat = file.stat()
            state += (stat.st_size, stat.st_mtime_ns)
        digest.update(repr(state).encode())
    return digest.hexdigest()


def read_cache_record(path: Path) -> dict:
    """The record of a cache file; empty if the file is missing, damaged or something else."""
    try:
        with open(path, "rb") as file:
            end = file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(8), "little")
            start = file.seek(end - length)
            record = json.loads(file.read(length))
        valid = start == math.prod(record["shape"]) and len(record["digests"]) == record["shape"][0]
        return record if valid else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def mapped_pixels(path: Path, record: dict) -> Tensor:
    """The pixels of a cache file with this record, uint8 (N, C, H, W), mapped into memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a read-only array; nothing writes to it
        # Mode "r" maps the file read-only; the system may refuse a writable map of this size.
        return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=tuple(record["shape"])))


def write_cache(
    path: Path, folder: ImageFolder, key: str, progress: Callable[..., Iterable]
) -> dict:
    """Decode a folder into a cache file with the fingerprint `key`; return the file's record.

    Raises DataError if an image cannot be decoded, or the file cannot be written.
    """
    shape = folder.shape()
    size = math.prod(shape)
    record = {"fingerprint": key, "shape": shape, "left_out": [], "digests": []}

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            write_content(file, record, decode_each(folder, shape[1], progress))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_abandoned(path.parent)
        path.unlink(missing_ok=True)  # it is out of date, and the disk may need its space
        if shutil.disk_usage(path.parent).free < size:  # fail before hours of decoding
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_whole(path, write)
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"the decoded images of {folder.root} ({gigabytes(size)}) cannot be written to "
            f"{path.parent} ({error.strerror or error}); choose another folder with --cache-dir, "
            "or hold them in memory with a higher --cache-limit"
        ) from None
    return record


def delete_abandoned(cache_dir: Path) -> None:
    """Delete the partial files of killed processes."""
    for partial in cache_dir.glob(".*.pixels.*.partial"):
        with suppress(FileNotFoundError):  # another process has just renamed it
            if time.time() - partial.stat().st_mtime > ABANDONED:
                partial.unlink()


def write_content(file: BinaryIO, record: dict, images: Iterable[DecodedImage | None]) -> None:
    """Write pixels, record and length; add digests, left-out files and shape to the record."""
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
