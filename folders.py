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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils import DataError, save_whole

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 50_000_000  # of one image file; a larger one is taken for a mistake or an attack
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
CACHE_DIR = ".tiny-diffusion"  # in the folder of images
VERSION = 2  # of pixels and record: to be raised when the same files decode to others
ABANDONED = 3600  # seconds without a write after which a half-written file is nobody's
SHOWN = 3  # names of changed files in a message


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


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Where Pillow would only warn that an image is enormous, it raises.

    To be entered around threads and not in them: such filters are those of the whole process.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


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


# --- image files ---------------------------------------------------------------------------------


def image_files(root: Path) -> tuple[list[Path], str]:
    """The image files below a folder, sorted, without hidden ones; and a line on what is left out.

    Symbolic links to files within the folder are taken for files, and are for `images` to name
    where they are broken. Links that lead out of it, to files or to folders, are left out. Links to
    folders within it are not followed either, as their images would then come twice.

    Raises DataError if there is none.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; --data-dir names the folder of images")
    files, outside, real_root = [], 0, root.resolve()
    for parent, folders, names in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found = [Path(parent, n) for n in names if not n.startswith(".")]
        out = links_out([*found, *(Path(parent, f) for f in folders)], real_root)
        files += [p for p in found if is_image(p) and p not in out]
        outside += len(out)
    note = ""
    if outside:
        links, lead, are = ("links", "lead", "are") if outside > 1 else ("link", "leads", "is")
        note = f"{outside} symbolic {links} {lead} out of {root} and {are} left out"
    if not files:
        looked = f"no images in {root}; looked for {', '.join(FORMATS)}, in subfolders too"
        raise DataError(f"{looked}; {note}" if note else looked)
    return sorted(files), note


def links_out(paths: Iterable[Path], root: Path) -> set[Path]:
    """The symbolic links that lead out of a folder: to images, to folders, or to nothing."""
    links = [p for p in paths if p.is_symlink() and (is_image(p) or p.is_dir() or not p.exists())]
    return {link for link in links if not Path(os.path.realpath(link)).is_relative_to(root)}


def is_image(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in FORMATS


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


def printable(path: str | Path) -> str:
    """A file's name without what a terminal would obey, or could not encode."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


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


def central_square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return (left, top, left + side, top + side)


def whole(width: int, height: int) -> tuple[int, int, int, int]:
    return (0, 0, width, height)


# (width, height) of an image -> the part of it that becomes the square: left, top, right, bottom
FITS: dict[str, Callable[[int, int], tuple[int, int, int, int]]] = {
    "crop": central_square,
    "stretch": whole,
}


def open_image(file: Path) -> "Image.Image":
    """An image file of which no more than the header is read. Raises what Pillow raises."""
    from PIL import Image

    if not file.is_file():  # a pipe would keep us waiting for ever
        raise FileNotFoundError("it is missing, or not a regular file")
    return Image.open(file, formats=sorted(set(FORMATS.values())))


def decode(file: Path, size: int, fit: str = "crop") -> np.ndarray:
    """An image file as uint8 (3, size, size)."""
    from PIL import Image, ImageOps

    with open_image(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} is over {MAX_PIXELS:,} pixels")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # which convert() would cut off at 255
            image = Image.fromarray((np.asarray(image, np.float32) / 257).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode} have no known range")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        box = FITS[fit](*image.size)
        image = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, box=box)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def has_colours(file: Path) -> bool:
    """Is an image in colour, as far as its header says? False for what cannot be read."""
    try:
        with open_image(file) as image:
            return image.mode not in ("1", "L", "LA", "I", "F") and image.mode[:4] != "I;16"
    except Exception:  # `images` names it
        return False


@bombs_refused()
def read_image(file: Path, size: int, channels: int) -> Tensor:
    """The central square of one image file, uint8 (C, size, size), grey or in colour.

    Raises DataError if it is missing or cannot be read.
    """
    if not file.is_file():
        raise DataError(f"there is no image {file}")
    try:
        image = torch.from_numpy(decode(file, size))  # (3, size, size)
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise DataError(f"{file} cannot be read as an image ({error})") from None
    if channels == 1:
        image = image.float().mean(dim=0, keepdim=True).round().to(torch.uint8)
    return image


@bombs_refused()
def require_same_size(image: Path, mask: Path) -> None:
    """Raise a ValueError if two image files are not of one width and height.

    Raises DataError if one cannot be read.
    """
    sizes = []
    for file in (image, mask):
        try:
            with open_image(file) as opened:
                sizes.append(opened.size)
        except Exception as error:  # Pillow's decoders raise nearly anything
            raise DataError(f"{file} cannot be read as an image ({error})") from None
    if sizes[0] != sizes[1]:
        (w, h), (mask_w, mask_h) = sizes
        raise ValueError(f"{mask} is {mask_w} x {mask_h} pixels, and {image} {w} x {h}")


# --- mapped files --------------------------------------------------------------------------------


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


# --- what has changed ----------------------------------------------------------------------------


def digest_of(files: Mapping[str, str]) -> str | None:
    """One digest of the images of a folder, {name: digest}; None of none."""
    if not files:
        return None
    text = json.dumps(sorted(files.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def save_files(path: Path, files: Mapping[str, str]) -> None:
    text = json.dumps(dict(files), indent=0) + "\n"
    save_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_files(path: Path) -> dict[str, str]:
    """What `save_files` wrote; nothing if it is missing, or something else."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return files if isinstance(files, dict) else {}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How a folder's images differ: "3 images were added (a.png, b.png, c.png), 1 removed (d.png)"

    A renamed image was removed and added.
    """
    kinds = {
        "added": now.keys() - before.keys(),
        "removed": before.keys() - now.keys(),
        "changed": {name for name in before.keys() & now.keys() if before[name] != now[name]},
    }
    parts = []
    for verb, names in kinds.items():
        if names:
            subject = "" if parts else " image was" if len(names) == 1 else " images were"
            parts.append(f"{len(names):,}{subject} {verb} ({some(sorted(names))})")
    return ", ".join(parts)


def some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more
