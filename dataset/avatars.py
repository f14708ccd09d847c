"""Synthetic avatars with captions, rendered once and kept in a file.

The pictures are those of DiceBear. Its definitions "voxel-art" (by DiceBear) and "open-peeps" (by
Pablo Stanley) are in the public domain (CC0 1.0). `avatar_styles` says which pictures are drawn,
and `avatar_captions` describes them.

The file has the form of a cache file of a folder of images (`pixel_cache`). It is joined from
parts, each of which is complete or absent: a process that is killed loses only the parts that it
renders, and processes that render at the same time divide the parts between them.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataset.avatar_captions import GRAMMARS, write_caption
from dataset.avatar_styles import (
    AvatarStyle,
    draw_avatar,
    held_out_pairs,
    options,
    style_of,
)
from dataset.decoding import DecodedImage, usable_cores
from dataset.pixel_cache import gigabytes, mapped_pixels, read_cache_record, write_content
from dataset.types import Attributes, Data, Request
from utils import DataError, save_whole

VERSION = 1  # of the pixels; raise it when the same attributes give other options of the renderer
AVATAR_SIZE = 32  # default height and width in pixels
COUNTS = {"train": 50_000, "test": 10_000}  # avatars of each split
PART = 1000  # avatars that one process renders; reading the style takes it two seconds
PACKAGES = ("dicebear-core", "dicebear-styles", "resvg-py")
ROOT = Path(__file__).resolve().parent.parent


def load_avatars(request: Request) -> Data:
    """One split of the avatars, with captions and attributes but without classes.

    A tenth of the pairs of top and outfit, and of glasses and top, occur only in the test split,
    and each of its pictures has such a pair (`avatar_styles.held_out_pairs`). The test split
    therefore tests combinations that no training picture shows.
    """
    name, split = request.avatar_style, request.split
    style = style_of(name)
    held_out = held_out_pairs(style)
    every = [draw_avatar(style, held_out, split, i) for i in range(COUNTS[split])]
    captions = [write_caption(style, GRAMMARS[name], d, split, i) for i, d in enumerate(every)]
    # A rectangle is cut out of a square, as for the other data sets.
    side = max(request.image_size or (AVATAR_SIZE, AVATAR_SIZE))
    folder = request.cache_dir or request.data_dir / "avatars"
    avatars = Avatars(style, every, side, Path(folder, f"{name}_{side}_{split}.pixels"))
    record, note = find_or_render(avatars, request)
    pairs = " and ".join(
        f"{len(values)} pairs of {a} and {b}" for (a, b), values in held_out.items()
    )
    note += f"\n{pairs} occur only in the test split"
    pixels = mapped_pixels(avatars.path, record)
    attributes = coded(style, every)
    return Data(pixels, None, [], note, captions=captions, attributes=attributes)


class Avatars(NamedTuple):
    """The pictures of a split, and the file that they are kept in."""

    style: AvatarStyle
    drawn: Sequence[Mapping[str, str]]  # the attributes of each
    side: int  # height and width in pixels
    path: Path

    def fingerprint(self) -> str:
        """Digest of what the pixels depend on, except for the versions of the packages."""
        digest = hashlib.blake2b(digest_size=16)
        settings = VERSION, self.style.definition, self.style.parts, self.style.palettes
        digest.update(repr((*settings, self.style.fixed, self.side)).encode())
        digest.update(coded(self.style, self.drawn).codes.numpy().tobytes())
        return digest.hexdigest()

    def parts(self) -> dict[Path, range]:
        """The indices in each part, by the name of its file."""
        count = len(self.drawn)
        return {
            self.path.with_name(f".{self.path.stem}.{i:06}.part"): range(i, min(i + PART, count))
            for i in range(0, count, PART)
        }


def coded(style: AvatarStyle, every: Sequence[Mapping[str, str]]) -> Attributes:
    """The attributes of avatars as indices into their possible values."""
    values = style.values()
    number = {name: {value: i for i, value in enumerate(values[name])} for name in values}
    codes = [[number[name][drawn[name]] for name in values] for drawn in every]
    return Attributes(values, torch.tensor(codes, dtype=torch.uint8))


# --- the file ------------------------------------------------------------------------------------


def find_or_render(avatars: Avatars, request: Request) -> tuple[dict, str]:
    """The record of the file of the avatars, and a note for the user; render them if need be.

    Raises DataError if they cannot be rendered or written.
    """
    path, key, count = avatars.path, avatars.fingerprint(), len(avatars.drawn)
    record, stale = sound_record(path, key, count), path.exists()
    if record:
        return record, f"pixels are read from {path}"
    require_packages()
    try:
        while not record:
            render_missing(avatars, key, request.progress)
            record = join_parts(avatars, key) or sound_record(path, key, count)
        for part in avatars.parts():
            part.unlink(missing_ok=True)
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"the rendered avatars cannot be written to {path.parent} "
            f"({error.strerror or error}); choose another folder with --cache-dir"
        ) from None
    note = f"rendered into {path} ({gigabytes(math.prod(record['shape']))}); later runs reuse it"
    return record, f"{note}; the previous file was damaged or out of date" if stale else note


def sound_record(path: Path, key: str, count: int) -> dict:
    """The record of a file with `count` images; empty if it is missing, damaged or out of date.

    If the packages that render are not installed, a file by any version of them is accepted.
    """
    record = read_cache_record(path)
    if record.get("fingerprint") != key or record["shape"][0] != count:
        return {}
    if installed() and record.get("packages") != installed():
        return {}
    digests = map(digest_of_pixels, stored_pixels(path, record))
    return record if list(digests) == record["digests"] else {}


def stored_pixels(path: Path, record: dict) -> np.ndarray:
    """The pixels of a file, uint8 (N, 3, H, W)."""
    return np.fromfile(path, np.uint8, math.prod(record["shape"])).reshape(record["shape"])


def digest_of_pixels(pixels: np.ndarray) -> str:
    """Digest of one image."""
    return hashlib.blake2b(pixels, digest_size=8).hexdigest()


class MissingPart(Exception):
    """A part is missing, because another process has joined the parts and deleted them."""


def join_parts(avatars: Avatars, key: str) -> dict:
    """Write the file of the avatars from its parts; its record, empty if a part is missing."""

    def images() -> Iterator[np.ndarray]:
        for path, indices in avatars.parts().items():
            record = sound_record(path, key, len(indices))
            if not record:
                raise MissingPart
            try:
                yield from stored_pixels(path, record)
            except FileNotFoundError:
                raise MissingPart from None

    try:
        return write_pixels(avatars.path, key, avatars.side, images())
    except MissingPart:
        return {}


def write_pixels(path: Path, key: str, side: int, images: Iterable[np.ndarray]) -> dict:
    """Write images into a file in the form of `pixel_cache`, whole or not at all."""
    record = {"fingerprint": key, "packages": installed(), "shape": [0, 3, side, side]}
    record |= {"left_out": [], "digests": []}
    decoded = (DecodedImage(pixels, digest_of_pixels(pixels)) for pixels in images)

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            write_content(file, record, decoded)

    save_whole(path, write)
    return record


# --- rendering -----------------------------------------------------------------------------------


def installed() -> dict[str, str]:
    """The versions of the packages that render; empty if one is not installed."""
    try:
        return {name: version(name) for name in PACKAGES}
    except PackageNotFoundError:
        return {}


def require_packages() -> None:
    """Raise DataError if a package that renders is not installed."""
    try:
        import dicebear  # noqa: F401
        import dicebear_styles  # noqa: F401
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"--dataset avatars renders its pictures, and {error.name} is not installed.\n"
            "Install it: pip install -r requirements-avatars.txt\n"
            "Or use --dataset digits, which needs no download."
        ) from None


def render_missing(avatars: Avatars, key: str, progress: Callable[..., Iterable]) -> None:
    """Render the parts that are missing, with one process per processor core."""
    missing = [
        (path, indices)
        for path, indices in avatars.parts().items()
        if not sound_record(path, key, len(indices))
    ]
    # Two programs that render at the same time start at different parts.
    first = os.getpid() % max(1, len(missing))
    missing = missing[first:] + missing[:first]
    with ThreadPoolExecutor(usable_cores()) as pool:
        work = [pool.submit(render_part, avatars, key, *part) for part in missing]
        try:
            done = as_completed(work)
            for part in progress(done, total=len(work), desc="rendering avatars"):
                part.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def render_part(avatars: Avatars, key: str, path: Path, indices: range) -> None:
    """Render a part in a separate process, unless another program has just done so."""
    if avatars.path.exists() and sound_record(avatars.path, key, len(avatars.drawn)):
        return
    if sound_record(path, key, len(indices)):
        return
    every = [options(avatars.style, avatars.drawn[i]) for i in indices]
    pixels = run_renderer(avatars.style.definition, avatars.side, every)
    write_pixels(path, key, avatars.side, pixels)


def run_renderer(definition: str, side: int, every: Sequence[dict]) -> np.ndarray:
    """Render avatars in a separate process: uint8 (N, 3, side, side).

    `multiprocessing` is not used: its process would import the program that trains, with torch, or
    run the user's script again.
    """
    asked = json.dumps({"definition": definition, "side": side, "every": every}).encode()
    command = [sys.executable, "-m", "dataset.avatar_renderer"]
    result = subprocess.run(command, input=asked, cwd=ROOT, capture_output=True)
    shape = (len(every), 3, side, side)
    if result.returncode or len(result.stdout) != math.prod(shape):
        last = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise DataError(
            f"the avatars cannot be rendered ({last or 'the process was ended'})\n"
            "Parts that are complete are kept: repeat the command to continue.\n"
            "Other versions of the packages: pip install -U -r requirements-avatars.txt"
        )
    return np.frombuffer(result.stdout, np.uint8).reshape(shape)
