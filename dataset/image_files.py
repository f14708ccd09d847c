"""Image files: finding, opening and decoding them."""

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


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Where Pillow would only warn that an image is enormous, it raises.

    To be entered around threads and not in them: such filters are those of the whole process.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


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


def printable(path: str | Path) -> str:
    """A file's name without what a terminal would obey, or could not encode."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


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
