"""Time-conditioned U-Net (Ho et al. 2020, appendix B; Nichol & Dhariwal 2021, appendix A)."""

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
from mini_diffusion.model_file import ModelFile, read_model, with_weights
from mini_diffusion.tensor import Rng, Tensor, generator

EMBEDDING = 256  # features of the timestep and class embeddings
HEAD = 32  # minimum number of channels per attention head
GROUP = 16  # channels per group of GroupNorm


class UNet(Layer):
    """U-Net from noisy images (N, in, H, W) to a prediction (N, out, H, W).

    The image is folded into patches. The encoder halves the resolution at each level, the middle
    blocks apply self-attention, and the decoder restores the resolution. Decoder blocks also
    receive encoder outputs (skip connections).

    Args:
        model_channels: channels of the first level.
        multipliers: channels of each level, as a multiple of model_channels.
        blocks: residual blocks per level, in the encoder and in the decoder.
        attention_levels: levels (0, 1, ...) with self-attention in their blocks.
        patch_size: side of the patches in pixels.
        num_classes: number of class labels. The additional label `num_classes` means no class.
        efficient: the first level has no encoder blocks, and the first decoder block of each level
            adds the level's encoder output to its input. Otherwise each decoder block concatenates
            its input with the output of the corresponding encoder block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        model_channels: int = 64,
        rng: Rng = None,
        *,
        multipliers: Sequence[int] = (1, 1, 2),
        blocks: int = 1,
        attention_levels: Sequence[int] = (),
        patch_size: int = 1,
        num_classes: int | None = None,
        efficient: bool = True,
    ):
        rng = generator(rng)
        self.patch_size, self.num_classes = patch_size, num_classes
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

        width, skips = widths[0], []  # skips: channels of the outputs that the decoder receives
        self.kept = []  # their indices, in [stem, *down]
        self.down, self.up = [], []
        for level in levels:
            if level > 0:
                self.down.append(Downsample(width, rng))
            for _ in range(0 if efficient and level == 0 else blocks):
                self.down.append(Block(width, widths[level], level in attention_levels, rng))
                width = widths[level]
                if not efficient:
                    self.kept.append(len(self.down))
                    skips.append(width)
            if efficient:
                self.kept.append(len(self.down))
                skips.append(width)

        self.middle = [Block(width, width, True, rng), Block(width, width, False, rng)]

        for level in reversed(levels):
            for number in range(blocks):
                arguments = widths[level], level in attention_levels, rng
                if not efficient:
                    self.up.append(ConcatenatingBlock(width, skips.pop(), *arguments))
                elif number == 0:
                    self.up.append(AddingBlock(width, skips.pop(), *arguments))
                else:
                    self.up.append(Block(width, *arguments))
                width = widths[level]
            if level > 0:
                self.up.append(Upsample())

        self.norm = group_norm(width)
        self.head = Conv2d(width, out_channels * patch_size**2, 3, padding=1, rng=rng)

    def __call__(
        self, x: Tensor, timestep: int | np.ndarray, y: int | np.ndarray | None = None
    ) -> Tensor:
        """Prediction (N, out, H, W) for images (N, in, H, W), scaled by `NoiseScheduler.scaled`.

        The timestep and the class label y are numbers for all images or arrays (N,). The default y
        is the null label. H and W must be multiples of `patch_size`.
        """
        n, _, height, width = x.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image height and width must be multiples of {self.patch_size}, "
                f"got {height}x{width}"
            )
        emb = np.broadcast_to(timestep, n)
        for layer in self.time:
            emb = layer(emb)  # (N, 256)
        if self.label is not None:
            emb = emb + self.label(np.broadcast_to(self.num_classes if y is None else y, n))
        elif y is not None:
            raise ValueError("y must be None: this network has no classes")
        emb = emb.silu()
        h = self.stem(fold(x, self.patch_size))  # (N, model_channels, H/p, W/p)

        outputs = [h]
        for layer in self.down:
            h = layer(h, emb)
            outputs.append(h)
        skips = [outputs[i] for i in self.kept]
        for layer in self.middle:
            h = layer(h, emb)
        for layer in self.up:
            if isinstance(layer, (ConcatenatingBlock, AddingBlock)):
                h = layer.joined(h, skips.pop())
            h = layer(h, emb)

        h = self.head(self.norm(h).silu())  # (N, out p^2, H/p, W/p)
        return unfold(h, self.patch_size)

    @classmethod
    def load(cls, path: str | Path | ModelFile) -> "UNet":
        """The network of a model file, or of its contents. Raises the errors of `read_model`."""
        older = {"efficient": False}  # the default of files that lack it
        return with_weights(read_model(path), "unet", lambda **arguments: cls(**older | arguments))


class Block(Layer):
    """Residual block, optionally with self-attention: (N, C, H, W) -> (N, D, H, W)."""

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
        h = self.norm_2(h) * (1 + scale) + shift  # Nichol & Dhariwal 2021, appendix A
        h = self.conv_2(h.silu())
        h = h + (x if self.skip is None else self.skip(x))
        return h if self.attention is None else self.attention(h)


class ConcatenatingBlock(Block):
    """Block on the channels of its input (N, C, h, w) and of an encoder output (N, E, H, W)."""

    def __init__(self, in_channels: int, encoder: int, channels: int, attends: bool, rng: Rng):
        super().__init__(in_channels + encoder, channels, attends, rng)

    def joined(self, x: Tensor, encoder_output: Tensor) -> Tensor:
        """The input of the block (N, C + E, H, W)."""
        return concat(cropped(x, encoder_output), encoder_output)


class AddingBlock(Block):
    """Block on the sum of its input (N, C, h, w) and an encoder output (N, E, H, W)."""

    def __init__(self, in_channels: int, encoder: int, channels: int, attends: bool, rng: Rng):
        super().__init__(encoder, channels, attends, rng)
        self.fit = Conv2d(in_channels, encoder, 1, rng=rng) if in_channels != encoder else None

    def joined(self, x: Tensor, encoder_output: Tensor) -> Tensor:
        """The input of the block (N, E, H, W)."""
        x = cropped(x, encoder_output)
        return (x if self.fit is None else self.fit(x)) + encoder_output


def cropped(x: Tensor, other: Tensor) -> Tensor:
    """x (N, C, h, w) with the height and width of other: upsampling rounds up to even sizes."""
    height, width = other.shape[2:]
    return Tensor.from_nhwc(x.nhwc[:, :height, :width])


class Downsample(Layer):
    """Downsampling by a convolution with stride 2: (N, C, H, W) -> (N, C, H/2, W/2), rounded up."""

    def __init__(self, channels: int, rng: Rng):
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1, rng=rng)

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(Layer):
    """Nearest-neighbour upsampling: (N, C, H, W) -> (N, C, 2H, 2W)."""

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        return Tensor.from_nhwc(x.nhwc.repeat(2, axis=1).repeat(2, axis=2))


def group_norm(channels: int) -> GroupNorm:
    """GroupNorm with groups of 16 channels, or with one group if that does not divide evenly."""
    groups = max(1, channels // GROUP)
    return GroupNorm(groups if channels % groups == 0 else 1, channels)


def attention(channels: int, rng: Rng) -> Attention:
    """Attention with as many heads of at least 32 channels as divide the channels evenly."""
    most = max(1, channels // HEAD)
    heads = next(h for h in range(most, 0, -1) if channels % h == 0)
    return Attention(channels, heads, group_norm(channels), rng)
