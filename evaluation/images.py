"""Reading given images, in any of the usual forms, as one uint8 tensor."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.finding import Found, find_images
from dataset.image_files import read_image
from dataset.items import to_uint8
from dataset.opening import NPY, NPZ, PICKLED_ARRAY, what_is
from utils import DataError, size_of, size_text

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in Pillow's grey (ITU-R 601)


def load_images(
    path: Path,
    shape: tuple[int, int, int],
    progress: Callable[..., Iterable] = lambda items, **_: items,
    *,
    skip_bad_images: bool = False,
    follow_links: bool = False,
) -> tuple[Tensor, str]:
    """Read a file or a folder as uint8 images (N, C, H, W); also returns how, in words.

    An .npz or .npy contains (N, H, W), (N, H, W, C) or (N, C, H, W), as uint8 or as floats in
    0 ... 1, -1 ... 1 or 0 ... 255. A folder contains image files. Grey images are repeated to three
    channels if three are needed, and colours are converted to grey if one is.

    Args:
        path: an .npz (the array `arr_0`, or its only one), an .npy, or a folder.
        shape: the (C, H, W) that is needed. The images must have this size.
        progress: wraps the iteration over files, as tqdm does.
        skip_bad_images: leave out the files of a folder that cannot be read.
        follow_links: follow links that lead out of a folder.

    Raises DataError for images that are missing, or that cannot be read.
    """
    if path.is_dir():
        found = find_images(path, follow_links=follow_links, data=False)
        return read_files(found, shape, progress, skip_bad_images)
    x, how = to_bytes(torch.from_numpy(plain_numbers(read_array(path), path)), path)
    return with_channels(channels_first(x, shape, path), shape[0]), how


def read_files(
    found: Found, shape: tuple[int, int, int], progress: Callable[..., Iterable], skip_bad: bool
) -> tuple[Tensor, str]:
    """Read the image files of a folder. Raises DataError unless all have the size of the shape."""
    images, notes = [], list(found.notes)
    for file in progress(found.files, desc="reading"):
        try:
            image = read_image(file, None, 3)
        except DataError as error:
            if not skip_bad:
                raise DataError(f"{error}; --skip-bad-images leaves it out") from None
            continue
        height, width = image.shape[1:]
        if (height, width) != tuple(shape[1:]):
            wanted = f"the data set has {shape[2]} x {shape[1]}; {resizing(height, width)}"
            if images:
                wanted = f"{found.files[0]} {shape[2]} x {shape[1]}; all need the same size"
            raise DataError(f"{file} has {width} x {height} pixels, but {wanted}")
        images.append(image)
    if bad := len(found.files) - len(images):
        notes.append(f"{bad} of {len(found.files)} cannot be read and are left out")
    if not images:
        raise DataError(f"{found.files[0].parent}: {'; '.join(notes)}")
    how = "; ".join([f"{len(images):,} files", *notes])
    return with_channels(torch.stack(images), shape[0]), how


def resizing(height: int, width: int) -> str:
    """The remedy, for a message, if images have another size than the data set."""
    return f"--image-size {size_text(size_of(height, width))} resizes the data set"


def read_array(path: Path) -> np.ndarray:
    """Read the array of an .npy or .npz file; nothing is unpickled."""
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if (kind := what_is(path)) and kind not in (NPY, NPZ):
        raise DataError(f"{path} is {kind}; --samples takes an .npz, an .npy or a folder of images")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            names = content.files
            if "arr_0" not in names and len(names) != 1:
                raise DataError(
                    f"{path} contains {', '.join(names) or 'nothing'}, but no arr_0, which is the "
                    "name of the images"
                )
            return content["arr_0" if "arr_0" in names else names[0]]
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds
        reason = PICKLED_ARRAY if "allow_pickle" in str(error) else error
        raise DataError(f"{path} cannot be read as .npz or .npy: {reason}") from None


def plain_numbers(x: np.ndarray, path: Path) -> np.ndarray:
    """An array as uint8, float32 or float64 in this machine's byte order.

    Raises DataError for integers outside 0 ... 255 and for what is not a number.
    """
    if x.dtype.kind == "f":
        return x.astype(np.float64 if x.itemsize > 4 else np.float32, copy=False)
    low, high = (x.min(), x.max()) if x.dtype.kind in "iu" and x.size else (0, 0)
    if x.dtype.kind not in "iu" or low < 0 or high > 255:
        values = f" from {low} to {high}" if x.dtype.kind in "iu" else ""
        raise DataError(
            f"{path} contains {x.dtype.name}{values}; images must be integers in 0 ... 255, or "
            "floats in 0 ... 1, -1 ... 1 or 0 ... 255"
        )
    return x.astype(np.uint8, copy=False)


def to_bytes(x: Tensor, path: Path) -> tuple[Tensor, str]:
    """Convert numbers in one of the usual ranges to uint8; also returns the range, in words."""
    if x.dtype == torch.uint8:
        return x, "uint8"
    if not x.isfinite().all():
        raise DataError(f"{path} contains numbers that are not finite")
    low, high = (x.min().item(), x.max().item()) if x.numel() else (0.0, 0.0)
    if low >= -1.001 and low < -0.001 and high <= 1.001:
        return to_uint8(x), "floats in -1 ... 1"
    if low >= -0.001 and high <= 1.001:
        return to_uint8(2 * x - 1), "floats in 0 ... 1"
    if low >= 0 and high <= 255:
        return x.round().byte(), "floats in 0 ... 255"
    raise DataError(
        f"{path} contains floats from {low:.3g} to {high:.3g}; images must be in 0 ... 1, -1 ... 1 "
        "or 0 ... 255"
    )


def channels_first(x: Tensor, shape: tuple[int, int, int], path: Path) -> Tensor:
    """Convert (N, H, W), (N, H, W, C) or (N, C, H, W) to (N, C, H, W)."""
    size = tuple(shape[1:])
    if x.ndim == 3 and x.shape[1:] == size:
        return x[:, None]
    if x.ndim == 4 and x.shape[2:] == size and x.shape[1] in (1, 3):
        return x
    if x.ndim == 4 and x.shape[1:3] == size and x.shape[3] in (1, 3):
        return x.movedim(-1, 1)
    has = None
    if x.ndim == 3:
        has = x.shape[1:]
    elif x.ndim == 4 and {x.shape[1], x.shape[3]} & {1, 3}:
        has = x.shape[2:] if x.shape[1] in (1, 3) else x.shape[1:3]
    raise DataError(
        f"{path} has the shape {tuple(x.shape)}, but the data set has images of {size[0]} x "
        f"{size[1]}: (N, H, W, C), (N, C, H, W) or (N, H, W), with C 1 or 3"
        + (f"; {resizing(*has)}" if has else "")
    )


def with_channels(x: Tensor, channels: int) -> Tensor:
    """Convert grey or colour images (N, C, H, W) to 1 or 3 channels."""
    if x.shape[1] == channels:
        return x.contiguous()
    if channels == 3:
        return x.expand(-1, 3, -1, -1).contiguous()
    if (x[:, :1] == x).all():
        return x[:, :1].contiguous()
    weights = torch.tensor(LUMA).view(1, 3, 1, 1)
    return (x.float() * weights).sum(dim=1, keepdim=True).round().byte()
