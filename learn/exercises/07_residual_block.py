"""Exercise 7: the residual block.

Chapter: docs/guide/05_network.md
Check:   python learn/check.py 7
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make_layers(channels_in: int, channels_out: int, dim: int) -> nn.ModuleDict:
    """The layers of a residual block (Ho et al. 2020, appendix B).

        norm_1   GroupNorm with 8 groups          of channels_in
        conv_1   convolution 3 x 3, padding 1     channels_in to channels_out
        time     linear                           dim to channels_out
        norm_2   GroupNorm with 8 groups          of channels_out
        conv_2   convolution 3 x 3, padding 1     channels_out to channels_out
        skip     nn.Identity() if channels_in == channels_out, else a convolution 1 x 1

    The weight and the bias of conv_2 are 0 at first, so that the block begins as its skip.

    Returns:
        nn.ModuleDict with these names.

    Hint: nn.init.zeros_.
    """
    raise NotImplementedError


def residual_block(layers: nn.ModuleDict, x: Tensor, emb: Tensor) -> Tensor:
    """Apply the layers of a residual block.

    norm_1, SiLU, conv_1; add the time; norm_2, SiLU, conv_2; add the skip connection of x.

    Args:
        layers: from make_layers.
        x: features of the image (B, channels_in, H, W).
        emb: features of the time (B, dim). layers["time"] maps them to (B, channels_out), which is
            added to every pixel.

    Returns:
        (B, channels_out, H, W).

    Hint: F.silu; [:, :, None, None] gives a (B, C) tensor two axes of length 1.
    """
    raise NotImplementedError
