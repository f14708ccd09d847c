"""Anybody's images, as they come, as one uint8 tensor."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.image_files import find_images, read_image
from dataset.items import to_uint8
from utils import DataError

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow's grey has them (ITU-R 601)


def load_images(
    path: Path,
    shape: tuple[int, int, int],
    progress: Callable[..., Iterable] = lambda items, **_: items,
) -> tuple[Tensor, str]:
    """The images of a file or a folder as uint8 (N, C, H, W), and how its numbers were read.

    An .npz or .npy holds (N, H, W), (N, H, W, C) or (N, C, H, W), of uint8 or of floats in 0 ... 1,
    in -1 ... 1 or in 0 ... 255; a folder holds image files of that size. Grey becomes three equal
    channels where three are wanted, and colours become grey where one is.

    Args:
        path: an .npz (the array `arr_0`, or its only one), an .npy, or a folder.
        shape: (C, H, W) that is wanted. The size must be that of the images.
        progress: wraps the iteration over files, to show a bar.

    Raises DataError for what is not there or cannot be read so.
    """
    if path.is_dir():
        return read_folder(path, shape, progress)
    array = read_array(path)
    x, how = in_bytes(torch.from_numpy(array), path)
    return with_channels(channels_first(x, shape, path), shape[0]), how


def read_folder(path: Path, shape: tuple[int, int, int], progress) -> tuple[Tensor, str]:
    from PIL import Image

    files, _ = find_images(path)
    images = []
    for file in progress(files, desc="reading"):
        with Image.open(file) as image:
            size = image.size
        if size != (shape[2], shape[1]):
            raise DataError(
                f"{file} has {size[0]} x {size[1]} pixels; compared are images of {shape[2]} x "
                f"{shape[1]} (--image-size resizes the data set's)"
            )
        images.append(read_image(file, shape[-1], 3))
    return with_channels(torch.stack(images), shape[0]), f"{len(images):,} files"


def read_array(path: Path) -> np.ndarray:
    """The array of an .npy or .npz file; nothing in it is unpickled."""
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            names = content.files
            if "arr_0" not in names and len(names) != 1:
                raise DataError(f"{path} holds {', '.join(names) or 'nothing'}, and no arr_0")
            return content["arr_0" if "arr_0" in names else names[0]]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy have many
        raise DataError(f"{path} cannot be read as .npz or .npy: {error}") from None


def in_bytes(x: Tensor, path: Path) -> tuple[Tensor, str]:
    """uint8 of numbers in any of the usual ranges, and which that was."""
    if x.dtype == torch.uint8:
        return x, "uint8"
    if not x.is_floating_point():
        raise DataError(f"{path} holds {x.dtype}; images are uint8 or floats")
    if not x.isfinite().all():
        raise DataError(f"{path} holds numbers that are not finite")
    low, high = (x.min().item(), x.max().item()) if x.numel() else (0.0, 0.0)
    if low >= -1.001 and low < -0.001 and high <= 1.001:
        return to_uint8(x), "floats in -1 ... 1"
    if low >= -0.001 and high <= 1.001:
        return to_uint8(2 * x - 1), "floats in 0 ... 1"
    if low >= 0 and high <= 255:
        return x.round().byte(), "floats in 0 ... 255"
    raise DataError(
        f"{path} holds floats from {low:.3g} to {high:.3g}; images lie in 0 ... 1, -1 ... 1 or "
        "0 ... 255"
    )


def channels_first(x: Tensor, shape: tuple[int, int, int], path: Path) -> Tensor:
    """(N, C, H, W) of (N, H, W), (N, H, W, C) or (N, C, H, W)."""
    size = tuple(shape[1:])
    if x.ndim == 3 and x.shape[1:] == size:
        return x[:, None]
    if x.ndim == 4 and x.shape[2:] == size and x.shape[1] in (1, 3):
        return x
    if x.ndim == 4 and x.shape[1:3] == size and x.shape[3] in (1, 3):
        return x.movedim(-1, 1)
    raise DataError(
        f"{path} has the shape {tuple(x.shape)}; wanted are N images of {size[0]} x {size[1]}, as "
        "(N, H, W, C), (N, C, H, W) or (N, H, W) (--image-size resizes the data set's)"
    )


def with_channels(x: Tensor, channels: int) -> Tensor:
    """Grey or coloured images (N, C, H, W) with so many channels, 1 or 3."""
    if x.shape[1] == channels:
        return x.contiguous()
    if channels == 3:
        return x.expand(-1, 3, -1, -1).contiguous()
    if (x[:, :1] == x).all():
        return x[:, :1].contiguous()
    weights = torch.tensor(LUMA).view(1, 3, 1, 1)
    return (x.float() * weights).sum(dim=1, keepdim=True).round().byte()
