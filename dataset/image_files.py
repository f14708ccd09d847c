"""Image files: find them in a folder, check them, decode one."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from utils import DataError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 50_000_000  # per image file; a larger one is a mistake or an attack

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FORMATS |= {".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF"}


def find_images(root: Path) -> tuple[list[Path], str]:
    """Image files in a folder and its subfolders, sorted, and a note on links left out.

    Hidden files and folders are ignored, and so are links to subfolders, whose images would count
    twice, and links that lead out of the folder. A broken link counts as a file: decoding reports
    it. Raises DataError if the folder does not exist or holds no images.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; --data-dir must name a folder of images")
    files, outside, real_root = [], 0, root.resolve()
    for parent, folders, names in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found = [Path(parent, n) for n in names if not n.startswith(".")]
        out = links_out([*found, *(Path(parent, f) for f in folders)], real_root)
        files += [p for p in found if has_image_name(p) and p not in out]
        outside += len(out)
    note = ""
    if outside:
        links, lead, are = ("links", "lead", "are") if outside > 1 else ("link", "leads", "is")
        note = f"{outside} symbolic {links} {lead} out of {root} and {are} left out"
    if not files:
        searched = f"no images in {root} and its subfolders; looked for {', '.join(FORMATS)}"
        raise DataError(f"{searched}; {note}" if note else searched)
    return sorted(files), note


def links_out(paths: Iterable[Path], root: Path) -> set[Path]:
    """The symbolic links that lead out of a folder: to an image, to a folder, or to nothing."""
    links = [p for p in paths if p.is_symlink()]
    links = [p for p in links if has_image_name(p) or p.is_dir() or not p.exists()]
    return {link for link in links if not Path(os.path.realpath(link)).is_relative_to(root)}


def has_image_name(path: Path) -> bool:
    return path.suffix.lower() in FORMATS


def printable(path: str | Path) -> str:
    """A file name without control characters, which a terminal would execute or cannot print."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


@contextmanager
def no_decompression_bombs() -> Iterator[None]:
    """Make Pillow raise for an enormous image. Not within threads: warning filters are global."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@no_decompression_bombs()
def read_image(file: Path, size: tuple[int, int], channels: int) -> Tensor:
    """Central part of an image file, uint8 (C, *size), in grey or in colour."""
    if not file.is_file():
        raise DataError(f"there is no image {file}")
    try:
        image = torch.from_numpy(decode_image(file, size))  # (3, H, W)
    except Exception as error:  # Pillow's decoders raise almost any exception
        raise DataError(f"{file} cannot be read as an image ({error})") from None
    if channels == 1:
        image = image.float().mean(dim=0, keepdim=True).round().to(torch.uint8)
    return image


@no_decompression_bombs()
def require_same_size(image: Path, mask: Path) -> None:
    """Raise a ValueError if two image files differ in width or height."""
    sizes = []
    for file in (image, mask):
        try:
            with open_image(file) as opened:
                sizes.append(opened.size)
        except Exception as error:  # Pillow's decoders raise almost any exception
            raise DataError(f"{file} cannot be read as an image ({error})") from None
    if sizes[0] != sizes[1]:
        (w, h), (mask_w, mask_h) = sizes
        raise ValueError(f"{mask} is {mask_w} x {mask_h} pixels, and {image} {w} x {h}")


def has_colours(file: Path) -> bool:
    """Is an image in colour, by its header? False if it cannot be read: decoding reports that."""
    try:
        with open_image(file) as image:
            return image.mode not in ("1", "L", "LA", "I", "F") and image.mode[:4] != "I;16"
    except Exception:
        return False


def decode_image(file: Path, size: tuple[int, int], fit: str = "crop") -> np.ndarray:
    """Decode an image file as RGB, uint8 (3, *size), on white.

    Args:
        size: height and width in pixels.
        fit: a key of `FITS`.
    """
    from PIL import Image, ImageOps

    with open_image(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} is over {MAX_PIXELS:,} pixels")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # convert() would clip it to 255
            image = Image.fromarray((np.asarray(image, np.float32) / 257).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode} have no known range")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        box = FITS[fit](*image.size, size)
        image = image.convert("RGB").resize(size[::-1], Image.Resampling.LANCZOS, box=box)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def open_image(file: Path) -> "Image.Image":
    """Open an image file; only its header is read."""
    from PIL import Image

    if not file.is_file():  # reading from a pipe would never end
        raise FileNotFoundError("it is missing, or not a regular file")
    return Image.open(file, formats=sorted(set(FORMATS.values())))


Box = tuple[int, int, int, int]  # left, top, right, bottom


def central_box(width: int, height: int, size: tuple[int, int]) -> Box:
    """The largest centred box with the aspect ratio of a size (height, width)."""
    rows, columns = size
    box_width = min(width, max(1, height * columns // rows))
    box_height = min(height, max(1, width * rows // columns))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return (left, top, left + box_width, top + box_height)


# (width, height, size) -> the box of an image that is resized to the size (height, width)
FITS: dict[str, Callable[[int, int, tuple[int, int]], Box]] = {
    "crop": central_box,
    "stretch": lambda width, height, size: (0, 0, width, height),
}
