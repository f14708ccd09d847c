"""Image files: which types are read, their upright size, and their pixels."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dataset.opening import what_is
from utils import DataError, size_of, size_text

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 50_000_000  # per image file; a larger one is a mistake or an attack

# {ending: Pillow's name of the format}. No formats for which Pillow runs programs, such as EPS.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FORMATS |= {".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".apng": "PNG"}
FORMATS |= {".jpe": "JPEG", ".jfif": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000", ".qoi": "QOI"}
FORMATS |= {".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".tga": "TGA"}
FORMATS |= {".heic": "HEIF", ".heif": "HEIF"}  # where pillow-heif is installed


@cache
def readable() -> dict[str, str]:
    """The part of `FORMATS` that the installed Pillow can read."""
    from PIL import Image, features

    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    missing = {"AVIF", "WEBP"} - {name for name in ("AVIF", "WEBP") if features.check(name.lower())}
    known = Image.OPEN.keys() - missing
    return {ending: name for ending, name in FORMATS.items() if name in known}


def has_image_name(path: Path) -> bool:
    return path.suffix.lower() in readable()


def printable(path: str | Path) -> str:
    """A file name with "?" for characters that a terminal cannot print or would interpret."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Make Pillow raise for an enormous image, and silence its other warnings: they name no file.

    Do not use this in threads: warning filters are global.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@strict_pillow()
def read_image(
    file: Path, size: tuple[int, int] | None, channels: int, background: str = "white"
) -> Tensor:
    """Central part of an image file, uint8 (C, *size), in grey or in colour.

    Without a size, it is the whole image. Transparent pixels get the colour of the background.
    Raises DataError if the file cannot be read.
    """
    if not file.is_file():
        raise DataError(f"there is no image {file}")
    try:
        image = torch.from_numpy(decode_image(file, size, background=background))  # (3, H, W)
    except Exception as error:  # Pillow's decoders raise almost any exception
        raise unreadable(file, error) from None
    if channels == 1:
        image = image.float().mean(dim=0, keepdim=True).round().to(torch.uint8)
    return image


@strict_pillow()
def require_same_size(image: Path, mask: Path) -> None:
    """Raise ValueError if two upright images differ in width or height."""
    sizes = []
    for file in (image, mask):
        try:
            sizes.append(open_upright(file).size)
        except Exception as error:  # Pillow's decoders raise almost any exception
            raise unreadable(file, error) from None
    if sizes[0] != sizes[1]:
        (w, h), (mask_w, mask_h) = sizes
        raise ValueError(f"{mask} is {mask_w} x {mask_h} pixels, and {image} {w} x {h}")


@strict_pillow()
def require_large_enough(file: Path, size: tuple[int, int]) -> None:
    """Raise a ValueError for an image with fewer pixels than a size (height, width)."""
    if not file.is_file():
        raise DataError(f"there is no image {file}")
    try:
        width, height = open_upright(file).size
    except Exception as error:  # Pillow's decoders raise almost any exception
        raise unreadable(file, error) from None
    if height < size[0] or width < size[1]:
        raise ValueError(
            f"{file} has {size_text(size_of(height, width))} pixels, and this checkpoint enlarges "
            f"images of {size_text(size_of(*size))}"
        )


def unreadable(file: Path, error: Exception) -> DataError:
    """The error to raise for an image that cannot be read."""
    return DataError(f"{file} cannot be read as an image ({why_unreadable(file, error)})")


def why_unreadable(file: Path, error: Exception) -> str:
    """Why an image cannot be read: the decoder's message, or the real type of the file."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it claims more than {MAX_PIXELS:,} pixels"
    if not isinstance(error, UnidentifiedImageError):
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    kind = what_is(file)
    if not kind:
        return "it is not an image of a known type"
    if not kind.endswith("image"):
        return f"it is {kind}"
    name = kind.partition(" ")[2]
    if name.split()[0].upper() in readable().values():
        return f"it is a damaged {name}"
    return f"it is {kind}, a type that is not read: convert it to PNG or JPEG"


def has_colours(file: Path, background: str = "white") -> bool:
    """Is an image in colour, by its header? False if it cannot be read: decoding reports that."""
    try:
        with open_image(file) as image:
            if image.has_transparency_data and not is_grey(*rgb(background)):
                return True
            if image.mode in ("P", "PA"):
                return not is_grey(*palette_channels(image))
            return image.mode not in ("1", "L", "LA", "I", "F") and image.mode[:4] != "I;16"
    except Exception:
        return False


def palette_channels(image: "Image.Image") -> np.ndarray:
    """Red, green and blue, in any order, of all colours in an image's palette: uint8 (3, N)."""
    layout = image.palette.rawmode or image.palette.mode  # such as RGB, BGRX, or RGB;L for planes
    values = np.frombuffer(bytes(image.palette.palette), np.uint8)
    if layout.endswith(";L"):
        return values.reshape(3, -1)
    return values.reshape(-1, len(layout)).T[:3]


def is_grey(red: object, green: object, blue: object) -> bool:
    """Is a colour, or are all colours in three arrays, shades of grey?"""
    return bool(np.all(red == green) and np.all(green == blue))


def decode_image(
    file: Path, size: tuple[int, int] | None, fit: str = "crop", background: str = "white"
) -> np.ndarray:
    """Decode an image file as RGB, uint8 (3, *size).

    Args:
        size: height and width in pixels; None for those of the image.
        fit: a key of `FITS`.
        background: the colour behind transparent pixels, as Pillow's ImageColor reads it.

    Raises ValueError for pixels without a known range, and the errors of Pillow.
    """
    from PIL import Image

    image = open_upright(file)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image, np.float32) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    image = image.convert("RGB")
    if size is not None:
        box = FITS[fit](*image.size, size)
        image = image.resize(size[::-1], Image.Resampling.LANCZOS, box=box)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def open_upright(file: Path) -> "Image.Image":
    """Decode an image file, turned by its EXIF orientation, as viewers show it.

    Every size of an image in this project is that of the upright image.
    """
    from PIL import Image

    with open_image(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} is over {MAX_PIXELS:,} pixels")
        image.filename = ""  # or Pillow maps an uncompressed TIFF into memory, and turns it wrongly
        image.load()  # some formats store the orientation behind the pixels
        turn = None
        with suppress(Exception):  # damaged metadata; the pixels may be intact
            value = image.getexif().get(0x0112)
            turn = TURNS.get(value[0] if isinstance(value, bytes) else int(value))
        return image if turn is None else image.transpose(Image.Transpose[turn])


# {EXIF orientation: name of the transposition that turns the stored image upright}
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}


def open_image(file: Path) -> "Image.Image":
    """Open an image file; only its header is read."""
    from PIL import Image

    if not file.is_file():  # reading from a pipe would never end
        raise FileNotFoundError("it is missing, or not a regular file")
    formats = set(readable().values())
    if readable().get(file.suffix.lower()) != "TGA":
        formats -= {"TGA"}  # it has no signature: any bytes may look like one
    return Image.open(file, formats=sorted(formats))


def rgb(name: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour's name or #rrggbb. Raises ValueError for any other text."""
    from PIL import ImageColor

    try:
        (red, green, blue) = ImageColor.getrgb(name)
    except ValueError:
        raise ValueError(
            f"--background {name}: not an opaque colour; use a name, such as black, or #rrggbb"
        ) from None
    return red, green, blue


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
