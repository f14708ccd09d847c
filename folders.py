"""Folders of image files."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils import DataError

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


def image_files(root: Path) -> list[Path]:
    """The image files below a folder, sorted, without hidden ones.

    Raises DataError if there is none.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; --data-dir names the folder of images")
    files = []
    for parent, folders, names in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        files += [Path(parent, n) for n in names if not n.startswith(".")]
    files = sorted(f for f in files if f.suffix.lower() in FORMATS)
    if not files:
        raise DataError(f"no images in {root}; looked for {', '.join(FORMATS)}, in subfolders too")
    return files


def decode(file: Path, size: int) -> tuple[np.ndarray, bool]:
    """The central square of an image file, uint8 (size, size, 3), and whether the image is grey."""
    from PIL import Image, ImageOps

    with Image.open(file, formats=sorted(set(FORMATS.values()))) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} is over {MAX_PIXELS:,} pixels")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # which convert() would cut off at 255
            image = Image.fromarray((np.asarray(image, np.float32) / 257).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode} have no known range")
        grey = image.mode in ("1", "L", "LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, box=box)
        return np.array(image), grey


def read_image(file: Path, size: int, channels: int) -> Tensor:
    """The central square of one image file, uint8 (C, size, size), grey or in colour.

    Raises DataError if it is missing or cannot be read.
    """
    if not file.is_file():
        raise DataError(f"there is no image {file}")
    try:
        pixels, _ = decode(file, size)
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise DataError(f"{file} cannot be read as an image ({error})") from None
    image = torch.from_numpy(pixels).permute(2, 0, 1)  # (3, size, size)
    if channels == 1:
        image = image.float().mean(dim=0, keepdim=True).round().to(torch.uint8)
    return image


def require_same_size(image: Path, mask: Path) -> None:
    """Raise a ValueError if two image files are not of one width and height."""
    from PIL import Image

    sizes = []
    for file in (image, mask):
        try:
            with Image.open(file, formats=sorted(set(FORMATS.values()))) as opened:
                sizes.append(opened.size)
        except OSError as error:
            raise DataError(f"{file} cannot be read as an image ({error})") from None
    if sizes[0] != sizes[1]:
        (w, h), (mask_w, mask_h) = sizes
        raise ValueError(f"{mask} is {mask_w} x {mask_h} pixels, and {image} {w} x {h}")
