"""Weights as 8-bit integers, with one scale for each output channel.

A weight (out, ...) of 32-bit floats with at least two axes is stored as integers from -127 to 127
and a scale (out,), weight = scale * integers (Jacob et al. 2018, arXiv:1712.05877, eq. 1, with
zero point 0). Biases and norms, which have one axis, stay 32-bit floats: they are few.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from checkpoints.inspection import Refused

SCALE = ":scale"  # ends the name of a scale; names of weights in a module have no colon
LARGEST = 127


def quantized(weights: dict[str, Tensor], kept: Collection[str] = ()) -> dict[str, Tensor]:
    """The weights of a network, with matrices and kernels as integers and scales, except `kept`."""
    found = {}
    for name, weight in weights.items():
        able = weight.dtype == torch.float32 and weight.ndim >= 2 and weight.isfinite().all()
        if name in kept or not able:
            found[name] = weight
            continue
        rows = weight.flatten(1)  # (out, in)
        scale = rows.abs().amax(dim=1) / LARGEST  # (out,)
        divisor = torch.where(scale > 0, scale, 1)
        integers = (rows / divisor[:, None]).round().clamp(-LARGEST, LARGEST)
        found[name] = integers.to(torch.int8).view(weight.shape)
        found[name + SCALE] = scale
    return found


def dequantized(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `quantized`, up to rounding. Raises Refused if a scale does not fit."""
    found = {}
    for name, weight in weights.items():
        if name.endswith(SCALE):
            continue
        scale = weights.get(name + SCALE)
        if scale is None:
            found[name] = weight
            continue
        if weight.dtype != torch.int8 or weight.ndim < 2 or scale.shape != weight.shape[:1]:
            raise Refused(f"is damaged: the scale of {name[:80]} does not fit")
        found[name] = weight.float() * scale.float().view(-1, *[1] * (weight.ndim - 1))
    if orphans := {name for name in weights if name.removesuffix(SCALE) not in weights}:
        raise Refused(f"is damaged: {min(orphans)[:80]} belongs to no weight")
    return found
