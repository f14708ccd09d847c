"""Solution 7: the residual block."""

import torch.nn.functional as F
from torch import Tensor, nn


def make_layers(channels_in: int, channels_out: int, dim: int) -> nn.ModuleDict:
    """The layers of a residual block, the last convolution zero."""
    same = channels_in == channels_out
    layers = nn.ModuleDict(
        {
            "norm_1": nn.GroupNorm(8, channels_in),
            "conv_1": nn.Conv2d(channels_in, channels_out, 3, padding=1),
            "time": nn.Linear(dim, channels_out),
            "norm_2": nn.GroupNorm(8, channels_out),
            "conv_2": nn.Conv2d(channels_out, channels_out, 3, padding=1),
            "skip": nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1),
        }
    )
    nn.init.zeros_(layers["conv_2"].weight)  # so that the block begins as its skip connection
    nn.init.zeros_(layers["conv_2"].bias)
    return layers


def residual_block(layers: nn.ModuleDict, x: Tensor, emb: Tensor) -> Tensor:
    """x (B, C, H, W) and features of the time (B, dim) to (B, C', H, W)."""
    h = layers["conv_1"](F.silu(layers["norm_1"](x)))
    h = h + layers["time"](emb)[:, :, None, None]  # the same for all pixels
    h = layers["conv_2"](F.silu(layers["norm_2"](h)))
    return layers["skip"](x) + h
