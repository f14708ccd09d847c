"""A time-conditioned U-Net (Ho et al. 2020, appendix B; Nichol & Dhariwal 2021, appendix A)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mini_diffusion.layers import (
    Attention,
    Conv2d,
    Embedding,
    GroupNorm,
    Layer,
    Linear,
    TimestepEmbedding,
    concat,
    fold,
    unfold,
)
from mini_diffusion.model_file import ModelFileError, read_model
from mini_diffusion.tensor import Rng, Tensor, generator

EMBEDDING = 256  # features of a timestep and a class
HEAD = 32  # channels of an attention head, at least
GROUP = 16  # channels of a GroupNorm group


class UNet(Layer):
    """Maps noisy images and their timesteps to a prediction of the same height and width.

    The image is folded into patches, runs down through levels of half the size each, through a
    middle with self-attention, and up again; every block on the way up also sees the output of its
    mirror image on the way down.

    Args:
        in_channels, out_channels: of the images and of the prediction.
        model_channels: width of the first level.
        rng: for the first weights. There is no training here: `load` brings trained ones.
        multipliers: width of each level, as a multiple of model_channels.
        blocks: residual blocks of each level, on the way down and again on the way up.
        attention_levels: levels (0, 1, ...) whose blocks attend too.
        patch_size: side of the patches.
        num_classes: class labels, or None. One more, the null label `num_classes`, means "any".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        model_channels: int = 64,
        rng: Rng = None,
        *,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention_levels: Sequence[int] = (),
        patch_size: int = 1,
        num_classes: int | None = None,
    ):
        rng = generator(rng)
        self.patch_size, self.num_classes = patch_size, num_classes
        self.factor = patch_size * 2 ** (len(multipliers) - 1)  # that image sizes are multiples of
        widths = [model_channels * m for m in multipliers]
        levels = range(len(widths))

        self.time = [
            TimestepEmbedding(EMBEDDING),
            Linear(EMBEDDING, EMBEDDING, rng),
            Tensor.silu,
            Linear(EMBEDDING, EMBEDDING, rng),
        ]
        self.label = Embedding(num_classes + 1, EMBEDDING, rng) if num_classes else None
        self.stem = Conv2d(in_channels * patch_size**2, widths[0], 3, padding=1, rng=rng)

        width, skips = widths[0], []  # skips: the width of each block's output on the way down
        self.down, self.up = [], []
        for level in levels:
            if level > 0:
                self.down.append(Downsample(width, rng))
            for _ in range(blocks):
                self.down.append(Block(width, widths[level], level in attention_levels, rng))
                width = widths[level]
                skips.append(width)

        self.middle = [Block(width, width, True, rng), Block(width, width, False, rng)]

        for level in reversed(levels):
            for _ in range(blocks):
                seen = width + skips.pop()
                self.up.append(Block(seen, widths[level], level in attention_levels, rng))
                width = widths[level]
            if level > 0:
                self.up.append(Upsample())

        self.norm = group_norm(width)
        self.head = Conv2d(width, out_channels * patch_size**2, 3, padding=1, rng=rng)

    def __call__(
        self, x: Tensor, timestep: int | np.ndarray, y: int | np.ndarray | None = None
    ) -> Tensor:
        """The prediction (N, out, H, W) for noisy images x (N, in, H, W).

        The timestep and the class label y are numbers for all images or arrays (N,); without y, the
        label is the null label. Raises ValueError for sizes that cannot be halved often enough, and
        for labels given to a network without classes.
        """
        n, _, height, width = x.shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"this U-Net takes images whose sides are multiples of {self.factor}, "
                f"not {height}x{width}"
            )
        emb = np.broadcast_to(timestep, n)
        for layer in self.time:
            emb = layer(emb)  # (N, 256)
        if self.label is not None:
            emb = emb + self.label(np.broadcast_to(self.num_classes if y is None else y, n))
        elif y is not None:
            raise ValueError("this network was made without classes: it takes no labels")
        emb = emb.silu()
        h = self.stem(fold(x, self.patch_size))  # (N, model_channels, H/p, W/p)

        skips = []
        for layer in self.down:
            h = layer(h, emb)
            if isinstance(layer, Block):
                skips.append(h)
        for layer in self.middle:
            h = layer(h, emb)
        for layer in self.up:
            if isinstance(layer, Block):
                h = concat(h, skips.pop())
            h = layer(h, emb)

        h = self.head(self.norm(h).silu())  # (N, out p^2, H/p, W/p)
        return unfold(h, self.patch_size)

    @classmethod
    def load(cls, path: str | Path) -> "UNet":
        """The network of a file of export.py; raises what `read_model` raises."""
        file = read_model(path)
        try:
            model = cls(**file.config["model"])
            parameters = dict(model.parameters())
            for name in parameters.keys() | file.weights.keys():
                if parameters[name].shape != file.weights[name].shape:
                    raise ValueError(f"the shape of {name}")
                parameters[name].data = Tensor(file.weights[name]).data
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} contradicts itself: {error}") from None
        return model


class Block(Layer):
    """A residual block and, where asked, self-attention: (N, C, H, W) -> (N, D, H, W)."""

    def __init__(self, in_channels: int, channels: int, attends: bool, rng: Rng):
        self.norm_1 = group_norm(in_channels)
        self.conv_1 = Conv2d(in_channels, channels, 3, padding=1, rng=rng)
        self.scale_shift = Linear(EMBEDDING, 2 * channels, rng)
        self.norm_2 = group_norm(channels)
        self.conv_2 = Conv2d(channels, channels, 3, padding=1, rng=rng)
        self.skip = Conv2d(in_channels, channels, 1, rng=rng) if in_channels != channels else None
        self.attention = attention(channels, rng) if attends else None

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.scale_shift(emb).reshape(len(x), 2, -1, 1, 1).data.swapaxes(0, 1)
        h = self.conv_1(self.norm_1(x).silu())  # (N, D, H, W)
        h = self.norm_2(h) * (1 + scale) + shift
        h = self.conv_2(h.silu())
        h = h + (x if self.skip is None else self.skip(x))
        return h if self.attention is None else self.attention(h)


class Downsample(Layer):
    """(N, C, H, W) -> (N, C, H/2, W/2)."""

    def __init__(self, channels: int, rng: Rng):
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1, rng=rng)

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(Layer):
    """(N, C, H, W) -> (N, C, 2H, 2W); the block that follows smooths it."""

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        return Tensor.from_nhwc(x.nhwc.repeat(2, axis=1).repeat(2, axis=2))


def group_norm(channels: int) -> GroupNorm:
    groups = max(1, channels // GROUP)
    return GroupNorm(groups if channels % groups == 0 else 1, channels)


def attention(channels: int, rng: Rng) -> Attention:
    most = max(1, channels // HEAD)
    heads = next(h for h in range(most, 0, -1) if channels % h == 0)
    return Attention(channels, heads, group_norm(channels), rng)
