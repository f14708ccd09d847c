"""Arithmetic on items: their shape, scaling, order, and the train/held-out split."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import derive_seed, sides, size_of

MAX_HELD_OUT = 1024  # default number of held-out items, if the data set is large enough
DEVICE_BYTES = 2 * 2**30  # size of the largest data set that is copied to a GPU as a whole


def kind_of(shape: Sequence[int]) -> str:
    """The kind of an item: "images" for the shape (C, H, W), "points" for (D,)."""
    return "points" if len(shape) == 1 else "images"


def shape_config(shape: Sequence[int]) -> dict:
    """The shape of an item, (C, H, W) or (D,), in the form in which a configuration stores it."""
    if kind_of(shape) == "points":
        return {"dim": shape[0]}
    return {"image_size": size_of(*shape[1:]), "image_channels": shape[0]}


def item_shape(config: dict) -> tuple[int, ...]:
    """Shape of an item, (C, H, W) or (D,), from a `config["data"]`; inverse of `shape_config`."""
    if "shape" in config:
        return tuple(config["shape"])
    if "dim" in config:
        return (config["dim"],)
    return (config["image_channels"], *sides(config["image_size"]))


def noise_shape(config: dict) -> tuple[int, ...]:
    """Shape of the noise that sampling with this configuration starts from.

    That is the shape of an item, or of its latents.
    """
    return item_shape(config["model"] if config["model"].get("autoencoder") else config["data"])


def to_unit(items: Tensor) -> Tensor:
    """Scale uint8 images in 0 ... 255 to floats in [-1, 1].

    Points and latents keep their values; float16 becomes float32.
    """
    if items.dtype == torch.uint8:
        return items.float() / 127.5 - 1
    return items.float() if items.dtype == torch.float16 else items


def to_uint8(x: Tensor) -> Tensor:
    """Clip floats to [-1, 1] and scale them to uint8 in 0 ... 255: the inverse of `to_unit`."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte()


def standard_deviation(items: Tensor) -> float:
    """Standard deviation over all values of points, or of uint8 images scaled to [-1, 1].

    Images are computed exactly, with integers: a resumed run needs the same value on any machine.
    """
    if items.dtype != torch.uint8:
        return round(items.double().std().item(), 6)
    chunk = max(1, 2**22 // items[0].numel())  # bincount takes 8 bytes a value
    counts = sum(torch.bincount(part.flatten(), minlength=256) for part in items.split(chunk))
    count, values = items.numel(), range(256)
    first = sum(v * n for v, n in zip(values, counts.tolist(), strict=True))
    second = sum(v * v * n for v, n in zip(values, counts.tolist(), strict=True))
    return math.sqrt(count * second - first**2) / count / 127.5


def resized(images: Tensor, size: tuple[int, int], chunk: int = 512) -> Tensor:
    """Resize uint8 images to (N, C, height, width) by antialiased bicubic interpolation."""
    parts = []
    for part in images.split(chunk):
        part = F.interpolate(part.float(), size, mode="bicubic", antialias=True)
        parts.append(part.round().clamp(0, 255).byte())
    return torch.cat(parts)


def low_resolution(x_0: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], resized to (B, C, h, w) and rounded to 256 levels.

    The values are those of `resized` and of an image file.
    """
    return to_unit(to_uint8(F.interpolate(x_0, size, mode="bicubic", antialias=True)))


def flipped(images: Tensor, mirror: Tensor) -> Tensor:
    """Images (B, C, H, W), mirrored left to right where `mirror`, bool (B,), is true."""
    return torch.where(mirror[:, None, None, None], images.flip(-1), images)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Order of the items in an epoch: a permutation (count,), a pure function of the arguments."""
    generator = torch.Generator().manual_seed(derive_seed("epoch", seed, epoch))
    return torch.randperm(count, generator=generator)


def held_out_count(wanted: int | None, count: int) -> int:
    """Number of items to hold out of `count`; by default 5 %, at most 1024."""
    return min(MAX_HELD_OUT, count // 20) if wanted is None else wanted


def split(count: int, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random indices to train on (count - held_out,) and to hold out (held_out,).

    A pure function of the arguments. Raises ValueError if no items are left to train on.
    """
    if held_out >= count:
        raise ValueError(f"cannot hold out {held_out} items of {count}: none are left to train on")
    generator = torch.Generator().manual_seed(derive_seed("validation", seed))
    order = torch.randperm(count, generator=generator)
    return order[held_out:].sort().values, order[:held_out]


def indices_like(total: int, count: int) -> Tensor:
    """Indices (count,) of `total` items, shuffled, and repeated if there are too few.

    Samples with the conditions of these items have the proportions of the data.
    """
    return epoch_order(total, 0, 0)[torch.arange(count) % total]


def on_device(items: Tensor, device: torch.device) -> Tensor:
    """Copy items or labels to a device; a tensor larger than `DEVICE_BYTES` stays where it is."""
    return items.to(device) if items.nbytes <= DEVICE_BYTES else items
