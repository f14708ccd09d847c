"""A time-conditioned U-Net (Ho et al. 2020, appendix B; Nichol & Dhariwal 2021, appendix A)."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from models.layers import (
    MAX_SIDE,
    LowResolution,
    attend,
    embed,
    heads_for,
    span_embedding,
    time_embedding,
    zero,
)
from models.text import WIDTH, CrossAttention, Text, TextEncoder, encode
from utils import sides, size_of, size_text

GROUP = 16  # channels of one GroupNorm group: narrower ones run ten times slower on CPUs


class UNet(nn.Module):
    """Maps noisy images and their timesteps to a prediction of the same shape.

    The image is folded into patches. Levels of half the size each (rounded up) lead down to a
    middle with self-attention, and up again. Blocks on the way up also receive outputs from the way
    down.

    Args:
        image_size: side in pixels, or (height, width): multiples of patch_size.
        image_channels: channels of the data, 1 for grey and 3 for colour.
        channels: width of the first level.
        multipliers: width of each level, as a multiple of `channels`; one entry a level.
        blocks: residual blocks of each level, on the way down and again on the way up.
        attention_resolutions: sizes of feature maps, the larger side in pixels, that also have
            self-attention.
        dropout: probability inside the residual blocks.
        patch_size: side of the patches. By default 2, and 1 if a side has under 16 pixels: the
            levels then start at half the size, for a quarter of the work.
        num_classes: number of class labels, or None for an unconditional network. The embedding
            has one more row, for "any class".
        learn_sigma: output twice the channels, the second half for the variance.
        vocabulary_size, caption_length: for a network that is conditioned on captions: number of
            different tokens, and tokens of a caption. A transformer encodes captions: the state of
            the whole caption is added to the time embedding, and cross-attention reads the others.
        text_width: instead of a vocabulary, the width of the states of a pretrained text encoder.
        cross_attention_resolutions: sizes of feature maps that read the captions, besides the
            middle.
        super_resolution: size of the low-resolution images that the network also receives, smaller
            than image_size; None for none.
        average_velocity: predict the average velocity over the time spans of the condition (mean
            flows; Geng et al. 2025, arXiv:2505.13447).
        efficient: compute less at full resolution. The first level has no blocks on the way down,
            and the first block of each level on the way up adds the output of the way down to its
            input (Chaurasia & Culurciello 2017, LinkNet). Otherwise every block on the way up
            concatenates its input with the output of its counterpart (Ho et al. 2020).

    Raises:
        ValueError: an image size that the patches do not divide, an attention resolution that does
            not occur, or a value out of range.
    """

    kind = "images"

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 1, 2),
        blocks: int = 1,
        attention_resolutions: Sequence[int] = (),
        dropout: float = 0.0,
        patch_size: int | None = None,
        num_classes: int | None = None,
        learn_sigma: bool = False,
        efficient: bool = True,
        vocabulary_size: int | None = None,
        caption_length: int | None = None,
        text_width: int | None = None,
        cross_attention_resolutions: Sequence[int] = (),
        super_resolution: int | Sequence[int] | None = None,
        average_velocity: bool = False,
    ):
        super().__init__()
        patch_size = patch_size or default_patch_size(image_size)
        sizes = feature_sizes(image_size, patch_size, len(multipliers))
        resolutions = {"attention": attention_resolutions}
        resolutions["cross-attention"] = cross_attention_resolutions
        check(channels, multipliers, blocks, dropout, sizes, resolutions)
        self.image_size, self.image_channels = image_size, image_channels
        self.patch_size, self.num_classes = patch_size, num_classes

        widths = [channels * m for m in multipliers]
        patch_channels = image_channels * patch_size**2
        embedding = 256

        self.average_velocity = average_velocity
        self.time = time_embedding(embedding, smooth=average_velocity)
        self.span = span_embedding(embedding) if average_velocity else None
        self.label = nn.Embedding(num_classes + 1, embedding) if num_classes else None
        self.low_resolution, seen = None, patch_channels
        if super_resolution:
            self.low_resolution = LowResolution(super_resolution, image_size, embedding)
            seen = 2 * patch_channels
        self.stem = nn.Conv2d(seen, channels, 3, padding=1)

        self.encoder = None
        if caption_length:
            self.encoder = TextEncoder(vocabulary_size, caption_length, text_width)
            self.caption = nn.Linear(WIDTH, embedding)

        def options(size: int, attends: bool = False, reads: bool = False) -> dict:
            attends = attends or size in attention_resolutions
            reads = self.encoder is not None and (reads or size in cross_attention_resolutions)
            return {"embedding": embedding, "dropout": dropout, "attends": attends, "reads": reads}

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.kept, skips = [], []  # indices of outputs of [stem, *down] for the way up, and widths
        width = channels
        for level, (size, out) in enumerate(zip(sizes, widths, strict=True)):
            if level > 0:
                self.down.append(Downsample(width))
            for _ in range(0 if efficient and level == 0 else blocks):
                self.down.append(Block(width, out, **options(size)))
                width = out
                if not efficient:
                    self.kept.append(len(self.down))
                    skips.append(width)
            if efficient:
                self.kept.append(len(self.down))
                skips.append(width)

        first = Block(width, width, **options(0, attends=True, reads=True))
        self.middle = nn.ModuleList([first, Block(width, width, **options(0))])

        for level, (size, out) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            for number in range(blocks):
                if not efficient:
                    self.up.append(UpBlock(width, skips.pop(), out, **options(size)))
                elif number == 0:
                    self.up.append(AddingBlock(width, skips.pop(), out, **options(size)))
                else:
                    self.up.append(Block(width, out, **options(size)))
                width = out
            if level > 0:
                self.up.append(nn.Identity())  # the next block upsamples; kept for weights' names

        self.norm = group_norm(width)
        outputs = patch_channels * (2 if learn_sigma else 1)
        self.head = zero(nn.Conv2d(width, outputs, 3, padding=1))

    def ends(self) -> list[nn.Module]:
        """The layers that read the image and write the prediction."""
        return [self.stem, self.head]

    def recomputable(self) -> list[nn.Module]:
        """The blocks, which gradient checkpointing computes twice."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Predict from noisy images x_t (B, C, H, W) at the timesteps t (B,).

        Returns (B, C, H, W), or (B, 2C, H, W) with `learn_sigma`. A network with classes uses the
        labels of the condition, and one with a vocabulary the captions; without them it predicts
        for any class, and any caption.
        """
        emb = embed(self.time, self.label, t, condition, self.span)  # (B, 256)
        text = encode(self.encoder, t, condition)
        if text is not None:
            emb = emb + self.caption(text.states[:, 0])
        if self.low_resolution is not None:
            x_t, level = self.low_resolution(x_t, condition)  # (B, 2C, H, W)
            emb = emb + level
        emb = F.silu(emb)
        h = self.stem(F.pixel_unshuffle(x_t, self.patch_size))  # (B, channels, H/p, W/p)

        outputs = [h]
        for layer in self.down:
            h = layer(h, emb, text)
            outputs.append(h)
        skips = [outputs[i] for i in self.kept]
        for layer in self.middle:
            h = layer(h, emb, text)
        for layer in self.up:
            if isinstance(layer, (UpBlock, AddingBlock)):
                h = layer(h, emb, skips.pop(), text)
            elif isinstance(layer, Block):
                h = layer(h, emb, text)

        h = self.head(F.silu(self.norm(h)))  # (B, C p^2, H/p, W/p)
        return F.pixel_shuffle(h, self.patch_size)


def default_patch_size(image_size: int | Sequence[int]) -> int:
    """The patch size by default: 2, or 1 if a side has under 16 pixels."""
    return 2 if min(sides(image_size)) >= 16 else 1


def feature_sizes(image_size: int | Sequence[int], patch_size: int, levels: int) -> list[int]:
    """The larger side of each level's feature maps.

    Raises a ValueError that names the image sizes that work.
    """
    if any(side % patch_size for side in sides(image_size)):
        below = [side // patch_size * patch_size for side in sides(image_size)]
        above = [-(-side // patch_size) * patch_size for side in sides(image_size)]
        near = " and ".join(size_text(size_of(*each)) for each in (below, above) if min(each) > 0)
        raise ValueError(
            f"this U-Net takes image sizes that are multiples of its patches of {patch_size}, not "
            f"{size_text(image_size)}; the nearest are {near}"
        )
    return [-(-max(sides(image_size)) // (patch_size * 2**level)) for level in range(levels)]


def check(
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    dropout: float,
    sizes: Sequence[int],
    resolutions: Mapping[str, Sequence[int]],
) -> None:
    """Raise ValueError for arguments of a U-Net that are out of range or do not fit together.

    Args:
        sizes: sizes of the feature maps of each level.
        resolutions: sizes with attention, by the kind of attention.
    """
    if channels < 1 or blocks < 1 or min(multipliers, default=0) < 1:
        raise ValueError("channels, multipliers and blocks of the U-Net must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), not {dropout}")
    for kind, wanted in resolutions.items():
        if unknown := set(wanted) - set(sizes):
            raise ValueError(
                f"no feature map has the {kind} resolution {', '.join(map(str, sorted(unknown)))}; "
                f"there are {', '.join(map(str, sizes))}"
            )
    if (side := max(sizes[-1], *resolutions["attention"], 0)) > MAX_SIDE:
        raise ValueError(
            f"a feature map with attention can be {MAX_SIDE} pixels wide, not {side}; the last "
            "level always has it, and more multipliers or larger patches make it smaller"
        )


class Block(nn.Module):
    """A residual block: (B, C, H, W) -> (B, D, H, W).

    Self-attention (`attends`) and cross-attention to a text (`reads`) may follow.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        attends: bool,
        reads: bool = False,
    ):
        super().__init__()
        self.norm_1 = group_norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding, 2 * out_channels)
        self.norm_2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        self.attention = Attention(out_channels) if attends else nn.Identity()
        self.reading = CrossAttention(out_channels) if reads else None

    def forward(self, x: Tensor, emb: Tensor, text: Text | None = None) -> Tensor:
        return self.finish(self.conv_1(F.silu(self.norm_1(x))), self.skip(x), emb, text)

    def finish(self, h: Tensor, skip: Tensor, emb: Tensor, text: Text | None) -> Tensor:
        """The block after its first convolution h (B, D, H, W), with the skip connection."""
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_2(h), 1 + scale)
        h = self.conv_2(self.dropout(F.silu(h)))
        h = self.attention(skip + h)
        if self.reading is None:
            return h
        return h + self.reading(h.flatten(2).mT, text).mT.reshape(h.shape)


class UpBlock(Block):
    """A block on the way up, which also receives the output of its counterpart on the way down.

    (B, C, h, w) and (B, E, H, W) -> (B, D, H, W). The first input is upsampled to the size of the
    other, H = h, 2h or 2h - 1, and the block computes on the channels of both.
    """

    def __init__(
        self,
        in_channels: int,
        other_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        attends: bool,
        reads: bool = False,
    ):
        joined = in_channels + other_channels
        super().__init__(joined, out_channels, embedding, dropout, attends, reads)

    def forward(self, x: Tensor, emb: Tensor, other: Tensor, text: Text | None = None) -> Tensor:
        size = other.shape[2:]  # (H, W)
        group = self.norm_1.num_channels // self.norm_1.num_groups
        doubled = (2 * x.shape[2], 2 * x.shape[3]) == tuple(size)
        if x.device.type != "cpu" or not doubled or x.shape[1] % group:
            return super().forward(torch.cat([upsampled(x, size), other], dim=1), emb, text)
        # The same, upsampled late: the norm and the 1x1 convolution then do a quarter of the work.
        # A convolution of both inputs is the sum of one of each.
        channels = [x.shape[1], other.shape[1]]
        h, h_other = (F.silu(h) for h in norm_parts(self.norm_1, [x, other]))
        weight, weight_other = self.conv_1.weight.split(channels, dim=1)
        h = F.conv2d(upsampled(h, size), weight, self.conv_1.bias, padding=1)  # (B, D, H, W)
        h = h + F.conv2d(h_other, weight_other, padding=1)
        weight, weight_other = self.skip.weight.split(channels, dim=1)
        skip = upsampled(F.conv2d(x, weight, self.skip.bias), size)  # (B, D, H, W)
        return self.finish(h, skip + F.conv2d(other, weight_other), emb, text)


class AddingBlock(Block):
    """A block on the way up that adds an output of the way down to its input.

    (B, C, h, w) and (B, E, H, W) -> (B, D, H, W). If C and E differ, a 1x1 convolution maps the
    first input to E channels; then it is upsampled to the size of the other, H = h, 2h or 2h - 1.
    """

    def __init__(
        self,
        in_channels: int,
        other_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        attends: bool,
        reads: bool = False,
    ):
        super().__init__(other_channels, out_channels, embedding, dropout, attends, reads)
        same = in_channels == other_channels
        self.fit = nn.Identity() if same else nn.Conv2d(in_channels, other_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, other: Tensor, text: Text | None = None) -> Tensor:
        return super().forward(upsampled(self.fit(x), other.shape[2:]) + other, emb, text)


class Attention(nn.Module):
    """Self-attention among the pixels of a feature map (B, C, H, W), added to it."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = heads_for(channels)
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).mT  # (B, HW, C)
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))  # (B, HW, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, HW, d)
        a = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, HW, C)
        return x + self.out(a).mT.reshape(x.shape)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2), rounded up."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor, text: Text | None = None) -> Tensor:
        return self.conv(x)


def upsampled(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W) by nearest pixels; unchanged if it has that size."""
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="nearest")


def group_norm(channels: int) -> nn.GroupNorm:
    groups = max(1, channels // GROUP)
    return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)


def norm_parts(norm: nn.GroupNorm, parts: Sequence[Tensor]) -> list[Tensor]:
    """GroupNorm of the parts (B, C_i, H_i, W_i) of a feature map that may differ in size.

    Each part must consist of whole groups.
    """
    group = norm.num_channels // norm.num_groups
    channels = [part.shape[1] for part in parts]
    affine = zip(norm.weight.split(channels), norm.bias.split(channels), strict=True)
    return [
        F.group_norm(part, part.shape[1] // group, weight, bias, norm.eps)
        for part, (weight, bias) in zip(parts, affine, strict=True)
    ]
