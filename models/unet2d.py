"""The U-Net of the library diffusers, `UNet2DModel`, with the same names of weights.

It is Ho et al. 2020's U-Net at the full resolution of the image, in the form that many published
networks have. `export.py --from diffusers` reads their folders.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from models.layers import MAX_SIDE, attend, embed, zero
from utils import sides

ACTIVATIONS = {"silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}


class UNet2D(nn.Module):
    """Maps noisy images and their timesteps to a prediction of the same shape.

    Levels of half the size each (rounded up) lead down to a middle, and up again. Every block on
    the way up concatenates its input with an output of the way down.

    Args:
        image_size: side in pixels, or (height, width); any.
        image_channels: channels of the data, 1 for grey and 3 for colour.
        channels: the width of the levels is a multiple of it.
        multipliers: width of each level, as a multiple of `channels`; one entry a level.
        blocks: residual blocks of each level on the way down; one more on the way up.
        attention_resolutions: sizes of feature maps, the larger side in pixels, that have
            self-attention.
        dropout: probability inside the residual blocks.
        num_classes, learn_sigma: as in `models.unet.UNet`.
        up_attention_resolutions: the same for the way up; None for the same sizes.
        middle_attention: self-attention in the middle.
        head_dim: channels of an attention head; None for a single head.
        norm_groups: groups of the norms; None for the most, up to 32, that divide `channels`.
        norm_eps: added to the variance in the norms.
        activation: a name in `ACTIVATIONS`.
        scale_shift: the time scales and shifts the second norm of a block, instead of being added
            before it. The attention in the middle then has no norm.
        time_width: number of time features; None for four times the width of the first level.
        flip_sin_to_cos: cosines before sines in the sinusoids of the time.
        freq_shift: the lowest frequency is 10000^(-(n - 1) / (n - freq_shift)), of n frequencies.
        downsample_padding: 1 pads all sides before halving the size; 0 the lower and right ones.
        center_input: double the images and subtract 1, for networks of images in [0, 1].

    Raises:
        ValueError: a value out of range, or an attention resolution that does not occur.
    """

    kind = "images"

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_resolutions: Sequence[int] = (),
        dropout: float = 0.0,
        num_classes: int | None = None,
        learn_sigma: bool = False,
        up_attention_resolutions: Sequence[int] | None = None,
        middle_attention: bool = True,
        head_dim: int | None = 8,
        norm_groups: int | None = None,
        norm_eps: float = 1e-5,
        activation: str = "silu",
        scale_shift: bool = False,
        time_width: int | None = None,
        flip_sin_to_cos: bool = True,
        freq_shift: float = 0.0,
        downsample_padding: int = 1,
        center_input: bool = False,
    ):
        super().__init__()
        on_way_up = attention_resolutions
        if up_attention_resolutions is not None:
            on_way_up = up_attention_resolutions
        sizes = [-(-max(sides(image_size)) // 2**level) for level in range(len(multipliers))]
        groups = norm_groups or math.gcd(32, channels)
        widths = [channels * multiplier for multiplier in multipliers]
        attended = [*attention_resolutions, *on_way_up]
        check(widths, blocks, dropout, sizes, attended, groups)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be {', '.join(ACTIVATIONS)}, not {activation}")
        if downsample_padding not in (0, 1):
            raise ValueError(f"downsample_padding must be 0 or 1, not {downsample_padding}")
        if middle_attention:
            attended.append(sizes[-1])
        with_attention = [w for w, s in zip(widths, sizes, strict=True) if s in attended]
        if head_dim is not None and any(width % head_dim for width in with_attention):
            raise ValueError(f"attention heads of {head_dim} channels do not divide {widths}")
        if max(attended, default=0) > MAX_SIDE:
            raise ValueError(f"a feature map with attention can be {MAX_SIDE} pixels wide")
        self.image_size, self.image_channels = image_size, image_channels
        self.num_classes, self.center_input = num_classes, center_input

        time_width = time_width or 4 * widths[0]
        self.sinusoids = Sinusoids(widths[0], flip_sin_to_cos, freq_shift)
        self.time_embedding = TimeNetwork(widths[0], time_width)
        self.class_embedding = nn.Embedding(num_classes + 1, time_width) if num_classes else None
        self.conv_in = nn.Conv2d(image_channels, widths[0], 3, padding=1)

        shared = {"groups": groups, "eps": norm_eps}
        block = {"time_width": time_width, "dropout": dropout, "scale_shift": scale_shift}
        block |= {"activation": activation, **shared}

        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, (size, out) in enumerate(zip(sizes, widths, strict=True)):
            stage = Stage()
            for _ in range(blocks):
                stage.resnets.append(Residual(width, out, **block))
                if size in attention_resolutions:
                    stage.attentions.append(Attention(out, head_dim, **shared))
                width = out
                skips.append(width)
            if level < len(sizes) - 1:
                stage.downsamplers = nn.ModuleList([Downsample(width, downsample_padding)])
                skips.append(width)
            self.down_blocks.append(stage)

        self.mid_block = Stage()
        self.mid_block.resnets.extend(Residual(width, width, **block) for _ in range(2))
        if middle_attention:
            middle = shared | ({"groups": None} if scale_shift else {})
            self.mid_block.attentions.append(Attention(width, head_dim, **middle))

        for level, (size, out) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            stage = Stage()
            for _ in range(blocks + 1):
                stage.resnets.append(Residual(width + skips.pop(), out, **block))
                if size in on_way_up:
                    stage.attentions.append(Attention(out, head_dim, **shared))
                width = out
            if level > 0:
                stage.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(stage)

        self.conv_norm_out = nn.GroupNorm(groups, width, eps=norm_eps)
        outputs = image_channels * (2 if learn_sigma else 1)
        self.conv_out = zero(nn.Conv2d(width, outputs, 3, padding=1))

    def ends(self) -> list[nn.Module]:
        """The layers that read the image and write the prediction."""
        return [self.conv_in, self.conv_out]

    def recomputable(self) -> list[nn.Module]:
        """The blocks, which gradient checkpointing computes twice."""
        return [module for module in self.modules() if isinstance(module, Residual)]

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Predict from noisy images x_t (B, C, H, W) at the timesteps t (B,).

        Returns (B, C, H, W), or (B, 2C, H, W) with `learn_sigma`. A network with classes uses the
        labels of the condition.
        """
        emb = embed(self.time, self.class_embedding, t, condition)  # (B, D)
        h = self.conv_in(2 * x_t - 1 if self.center_input else x_t)  # (B, channels, H, W)
        skips = [h]
        for stage in self.down_blocks:
            for number, block in enumerate(stage.resnets):
                h = stage.attended(block(h, emb), number)
                skips.append(h)
            for layer in stage.downsamplers:
                h = layer(h)
                skips.append(h)
        first, second = self.mid_block.resnets
        h = second(self.mid_block.attended(first(h, emb), 0), emb)
        for stage in self.up_blocks:
            for number, block in enumerate(stage.resnets):
                h = stage.attended(block(torch.cat([h, skips.pop()], dim=1), emb), number)
            for layer in stage.upsamplers:
                h = layer(h, skips[-1].shape[2:])
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def time(self, t: Tensor) -> Tensor:
        """Features (B, D) of the timesteps t (B,)."""
        return self.time_embedding(self.sinusoids(t).to(self.conv_in.weight.dtype))


def check(
    widths: Sequence[int],
    blocks: int,
    dropout: float,
    sizes: Sequence[int],
    attended: Sequence[int],
    groups: int,
) -> None:
    """Raise ValueError for arguments of a U-Net that are out of range or do not fit together.

    Args:
        widths, sizes: channels and larger sides of the feature maps of each level.
        attended: sizes with attention.
        groups: of the norms.
    """
    if blocks < 1 or min(widths, default=0) < 1:
        raise ValueError("channels, multipliers and blocks of the U-Net must be at least 1")
    if widths[0] % 2:
        raise ValueError(f"the first level of the U-Net must have an even width, not {widths[0]}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), not {dropout}")
    if any(width % groups for width in widths):
        raise ValueError(f"{groups} groups of the norms do not divide the widths {widths}")
    if unknown := set(attended) - set(sizes):
        raise ValueError(
            f"no feature map has the attention resolution {', '.join(map(str, sorted(unknown)))}; "
            f"there are {', '.join(map(str, sizes))}"
        )


class Stage(nn.Module):
    """The layers of one level on the way down or up, or of the middle."""

    def __init__(self):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(), nn.ModuleList()
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()

    def attended(self, h: Tensor, number: int) -> Tensor:
        """The output of a block after its attention, if the level has any."""
        return self.attentions[number](h) if self.attentions else h


class Residual(nn.Module):
    """A residual block: (B, C, H, W) -> (B, D, H, W)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int,
        dropout: float,
        scale_shift: bool,
        activation: str,
        groups: int,
        eps: float,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        self.activation = ACTIVATIONS[activation]()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        outputs = 2 * out_channels if scale_shift else out_channels
        self.time_emb_proj = nn.Linear(time_width, outputs)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.activation(self.norm1(x)))
        time = self.time_emb_proj(self.activation(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + time)
        return self.conv_shortcut(x) + self.conv2(self.dropout(self.activation(h)))


class Attention(nn.Module):
    """Self-attention among the pixels of a feature map (B, C, H, W), added to it."""

    def __init__(self, channels: int, head_dim: int | None, groups: int | None, eps: float):
        super().__init__()
        self.heads = channels // (head_dim or channels)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps) if groups else nn.Identity()
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).mT  # (B, HW, C)
        projected = (layer(tokens) for layer in (self.to_q, self.to_k, self.to_v))
        q, k, v = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in projected)
        a = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, HW, C)
        return x + self.to_out[0](a).mT.reshape(x.shape)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2), rounded up."""

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == 0:  # below and to the right, where an even size needs one and an odd two
            x = F.pad(x, (0, 1 + x.shape[3] % 2, 0, 1 + x.shape[2] % 2))
        return self.conv(x)


class Upsample(nn.Module):
    """(B, C, h, w) -> (B, C, H, W), by nearest pixels and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.conv(F.interpolate(x, size, mode="nearest"))


class Sinusoids(nn.Module):
    """Sinusoidal features (B, dim) of the timesteps t (B,)."""

    def __init__(self, dim: int, cosines_first: bool, shift: float):
        super().__init__()
        if not shift < dim // 2:
            raise ValueError(f"freq_shift must be less than half the first width, {dim // 2}")
        exponents = torch.arange(dim // 2) / (dim // 2 - shift)
        frequencies = torch.exp(-math.log(10_000) * exponents)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.cosines_first = cosines_first

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies  # (B, dim / 2)
        waves = [angles.cos(), angles.sin()] if self.cosines_first else [angles.sin(), angles.cos()]
        return torch.cat(waves, dim=1)


class TimeNetwork(nn.Module):
    """Two layers on the sinusoids of the time: (B, C) -> (B, D)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, waves: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(waves)))
