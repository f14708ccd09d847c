"""Arithmetic on items: shapes, order, split, scaling, mirroring."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import derive_seed

DEVICE_BYTES = 2 * 2**30  # bytes of data that a GPU holds throughout


def resized(images: Tensor, size: int, chunk: int = 512) -> Tensor:
    """uint8 images (N, C, size, size), by antialiased bicubic interpolation."""
    parts = [
        F.interpolate(part.float(), (size, size), mode="bicubic", antialias=True)
        .round()
        .clamp(0, 255)
        .byte()
        for part in images.split(chunk)
    ]
    return torch.cat(parts)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The permutation (count,) of an epoch: a pure function of (count, seed, epoch)."""
    generator = torch.Generator().manual_seed(derive_seed("epoch", seed, epoch))
    return torch.randperm(count, generator=generator)


def on_device(items: Tensor, device: torch.device) -> Tensor:
    """Items, or their labels, on a device; what is larger than DEVICE_BYTES stays where it is."""
    return items.to(device) if items.nbytes <= DEVICE_BYTES else items


def classes_like(labels: Tensor, count: int) -> Tensor:
    """Classes (count,) to ask a network for: with the shares that labels (N,) have, in an order
    that is always the same."""
    order = epoch_order(len(labels), 0, 0)
    return labels[order[torch.arange(count) % len(labels)]]


def flipped(images: Tensor, mirror: Tensor) -> Tensor:
    """Images (B, C, H, W), those mirrored left to right for which `mirror` (B,) is true."""
    return torch.where(mirror[:, None, None, None], images.flip(-1), images)


def to_unit(items: Tensor) -> Tensor:
    """uint8 images in 0 ... 255 as floats in [-1, 1]; points as they are."""
    return items.float() / 127.5 - 1 if items.dtype == torch.uint8 else items


def kind_of(shape: Sequence[int]) -> str:
    """What items of a shape are: "images", (C, H, W), or "points", (2,)."""
    return "points" if len(shape) == 1 else "images"


def shape_config(shape: Sequence[int]) -> dict:
    """The shape of an item, (C, H, W) or (2,), as networks and checkpoints are told it."""
    if kind_of(shape) == "points":
        return {"dim": shape[0]}
    return {"image_size": shape[-1], "image_channels": shape[0]}


def item_shape(config: dict) -> tuple[int, ...]:
    """The shape of an item of a checkpoint's `config["data"]`: the inverse of `shape_config`."""
    if "dim" in config:
        return (config["dim"],)
    return (config["image_channels"], config["image_size"], config["image_size"])


def standard_deviation(images: Tensor) -> float:
    """That of uint8 images (N, C, H, W) in [-1, 1], over all their pixels, or of points.

    Pixels are counted in whole numbers: a resumed run must find the very same, on whatever machine.
    """
    if images.dtype != torch.uint8:
        return round(images.double().std().item(), 6)
    chunk = max(1, 2**22 // images[0].numel())  # counting takes 8 bytes a pixel
    counts = sum(torch.bincount(part.flatten(), minlength=256) for part in images.split(chunk))
    count, values = images.numel(), range(256)
    first = sum(v * n for v, n in zip(values, counts.tolist(), strict=True))
    second = sum(v * v * n for v, n in zip(values, counts.tolist(), strict=True))
    return math.sqrt(count * second - first**2) / count / 127.5


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1], clipped, as uint8 in 0 ... 255: the inverse of `to_unit`."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte()


MOST = 1024  # items held out by default


def held_out_count(asked: int | None, count: int) -> int:
    """Items to hold out of `count`: those asked for, or by default a twentieth, 1024 at most."""
    return min(MOST, count // 20) if asked is None else asked


def split(count: int, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on, and indices held out: a pure function of its arguments.

    Raises ValueError if none would be left to train on.
    """
    if held_out >= count:
        raise ValueError(f"{held_out} items cannot be held out of training: there are {count}")
    generator = torch.Generator().manual_seed(derive_seed("validation", seed))
    order = torch.randperm(count, generator=generator)
    return order[held_out:].sort().values, order[:held_out]
