"""A diffusion transformer (Peebles & Xie 2022, arXiv:2212.09748)."""

import math
from collections.abc import Sequence

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
from utils import sides, size_text


class DiT(nn.Module):
    """A transformer on patches, with norms that are modulated by the time and the class.

    Args:
        image_size: side in pixels, or (height, width): multiples of the patch size.
        image_channels: channels of the data, 1 for grey and 3 for colour.
        channels: width of a token: a multiple of 4; there is an attention head for each 32.
        blocks: transformer blocks.
        patch_size: side of a patch. By default 4, and 2 if a side has under 16 pixels.
        long_skips: join the first blocks' outputs to the last blocks' inputs, outermost to
            outermost (U-ViT, Bao et al. 2022, arXiv:2209.12152).
        dropout: probability inside the blocks.
        num_classes, learn_sigma, vocabulary_size, caption_length, text_width, super_resolution,
            average_velocity: as in `models.unet.UNet`. Every block reads the captions.

    Raises:
        ValueError: a patch size that does not divide the image, or a value out of range.
    """

    kind = "images"

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int,
        channels: int = 192,
        blocks: int = 6,
        patch_size: int | None = None,
        long_skips: bool = False,
        dropout: float = 0.0,
        num_classes: int | None = None,
        learn_sigma: bool = False,
        vocabulary_size: int | None = None,
        caption_length: int | None = None,
        text_width: int | None = None,
        super_resolution: int | Sequence[int] | None = None,
        average_velocity: bool = False,
    ):
        super().__init__()
        height, width = sides(image_size)
        patch_size = patch_size or (4 if min(height, width) >= 16 else 2)
        if height % patch_size or width % patch_size:
            common = math.gcd(height, width)
            fitting = [str(p) for p in range(1, common + 1) if common % p == 0]
            raise ValueError(
                f"patches of {patch_size} do not divide images of {size_text(image_size)}; these "
                f"do: {', '.join(fitting)}"
            )
        rows, columns = height // patch_size, width // patch_size
        if max(rows, columns) > MAX_SIDE:
            raise ValueError(
                f"the transformer takes at most {MAX_SIDE} patches in a row, not "
                f"{max(rows, columns)}; larger patches are fewer"
            )
        if channels < 4 or channels % 4:
            raise ValueError(f"the transformer's channels must be a multiple of 4, not {channels}")
        if blocks < 1 or not 0 <= dropout < 1:
            raise ValueError("blocks must be at least 1, and dropout lie in [0, 1)")
        self.patch_size, self.num_classes = patch_size, num_classes
        pixels = image_channels * patch_size**2
        self.average_velocity = average_velocity
        self.time = time_embedding(channels, smooth=average_velocity)
        self.span = span_embedding(channels) if average_velocity else None
        self.label = nn.Embedding(num_classes + 1, channels) if num_classes else None
        self.encoder = None
        if caption_length:
            self.encoder = TextEncoder(vocabulary_size, caption_length, text_width)
            self.caption = nn.Linear(WIDTH, channels)
        self.low_resolution = None
        if super_resolution:
            self.low_resolution = LowResolution(super_resolution, image_size, channels)
        self.stem = nn.Linear(2 * pixels if super_resolution else pixels, channels)
        positions = position_embedding(rows, columns, channels)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(channels, dropout, reads=bool(caption_length)) for _ in range(blocks)
        )
        joined = blocks // 2 if long_skips else 0
        self.joins = nn.ModuleList(nn.Linear(2 * channels, channels) for _ in range(joined))
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.scale_shift = zero(nn.Linear(channels, 2 * channels))
        self.head = zero(nn.Linear(channels, pixels * (2 if learn_sigma else 1)))

    def ends(self) -> list[nn.Module]:
        """The layers that read the image and write the prediction."""
        return [self.stem, self.head]

    def recomputable(self) -> list[nn.Module]:
        """The blocks, which gradient checkpointing computes twice."""
        return list(self.blocks)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Predict from noisy images x_t (B, C, H, W) at the timesteps t (B,).

        Returns (B, C, H, W), or (B, 2C, H, W) with `learn_sigma`. Labels and captions of the
        condition are used if the network was built for them.
        """
        emb = embed(self.time, self.label, t, condition, self.span)  # (B, D)
        text = encode(self.encoder, t, condition)
        if text is not None:
            emb = emb + self.caption(text.states[:, 0])
        if self.low_resolution is not None:
            x_t, level = self.low_resolution(x_t, condition)  # (B, 2C, H, W)
            emb = emb + level
        emb = F.silu(emb)
        patches = F.pixel_unshuffle(x_t, self.patch_size)  # (B, C p^2, H/p, W/p)
        h = self.stem(patches.flatten(2).mT) + self.positions  # (B, N, D)

        skips, half = [], len(self.joins)
        for i, block in enumerate(self.blocks):
            if (j := i - (len(self.blocks) - half)) >= 0:
                h = self.joins[j](torch.cat([h, skips.pop()], dim=2))
            h = block(h, emb, text)
            if i < half:
                skips.append(h)

        scale, shift = self.scale_shift(emb)[:, None].chunk(2, dim=2)
        out = self.head(torch.addcmul(shift, self.norm(h), 1 + scale))  # (B, N, C p^2)
        out = out.mT.unflatten(2, patches.shape[2:])  # (B, C p^2, H/p, W/p)
        return F.pixel_shuffle(out, self.patch_size)


class Block(nn.Module):
    """Attention and an MLP, each with adaLN-zero: (B, N, D) -> (B, N, D).

    Scales, shifts and gates come from the features emb (B, D); the gates begin at zero, so that
    the block begins as the identity (section 3.2). With `reads`, cross-attention to a text follows
    the attention.
    """

    def __init__(self, channels: int, dropout: float, reads: bool = False):
        super().__init__()
        self.heads = heads_for(channels)
        self.modulation = zero(nn.Linear(channels, 6 * channels))
        self.norm_1 = nn.LayerNorm(channels, elementwise_affine=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.reading = CrossAttention(channels) if reads else None
        self.norm_2 = nn.LayerNorm(channels, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, x: Tensor, emb: Tensor, text: Text | None = None) -> Tensor:
        modulation = self.modulation(emb)[:, None].chunk(6, dim=2)  # each (B, 1, D)
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = modulation
        x = x + gate_1 * self.attention(torch.addcmul(shift_1, self.norm_1(x), 1 + scale_1))
        x = x if self.reading is None else x + self.reading(x, text)
        return x + gate_2 * self.mlp(torch.addcmul(shift_2, self.norm_2(x), 1 + scale_2))

    def attention(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


def position_embedding(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed sines and cosines (rows * columns, dim) of a token's row (first half) and column."""
    quarter = dim // 4
    frequencies = torch.exp(-math.log(10_000) * torch.arange(quarter) / quarter)
    angles = torch.arange(max(rows, columns))[:, None] * frequencies  # (largest, dim / 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (largest, dim / 2)
    of_row = waves[:rows, None].expand(rows, columns, -1)
    of_column = waves[None, :columns].expand(rows, columns, -1)
    return torch.cat([of_row, of_column], dim=2).flatten(0, 1)
