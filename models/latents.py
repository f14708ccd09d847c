"""The space of latents: a frozen autoencoder, and the scale that gives latents unit variance."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder

TILE = 64  # largest side of latents that are decoded at once
OVERLAP = 16  # of neighbouring tiles
BATCH_SIZE = 128  # images that are encoded at once


def space_of(network: nn.Module) -> "LatentSpace | None":
    """The latent space of a network that learns latents; None for a network that learns items."""
    space = getattr(network, "latent_space", None)
    return space if isinstance(space, LatentSpace) else None


def decoded_in_tiles(
    decode: Callable[[Tensor], Tensor],
    latents: Tensor,
    factor: int,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Tensor:
    """The images (B, C, H, W) of latents (B, c, h, w), decoded in tiles that overlap.

    Where tiles overlap, one fades into the next. A tile is normalised by its own statistics, so the
    result differs slightly from that of decoding everything at once.

    Args:
        decode: maps latents to images of `factor` times their sides.
        latents: to decode.
        factor: ratio of the sides of images and latents.
        tile: side of a tile, in latents.
        overlap: of neighbouring tiles, in latents.
    """
    height, width = latents.shape[2:]
    total = weights = None
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            part = decode(latents[:, :, top : top + tile, left : left + tile])
            rows = slice(factor * top, factor * top + part.shape[2])
            columns = slice(factor * left, factor * left + part.shape[3])
            if total is None:
                shape = (*part.shape[:2], factor * height, factor * width)
                total, weights = part.new_zeros(shape), part.new_zeros(shape[2:])
            vertical, horizontal = (ramp(side, factor * overlap) for side in part.shape[2:])
            weight = (vertical[:, None] * horizontal).to(part)
            total[:, :, rows, columns] += weight * part
            weights[rows, columns] += weight
    return total / weights


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side of this length; the last tile ends where the side ends."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def ramp(length: int, edge: int) -> Tensor:
    """Weights (length,) of a tile's pixels, which rise and fall over `edge` pixels at its ends."""
    at = torch.arange(length)
    return torch.minimum(at + 1, length - at).clamp(max=edge) / edge


class LatentSpace(nn.Module):
    """Encodes images (B, C, H, W) into latents (B, c, h, w) of zero mean and unit variance.

    It is a part of the network that learns the latents, so that each checkpoint can decode them.
    Training does not change it. `measure` sets the scale, by channel.
    """

    def __init__(self, autoencoder: Autoencoder):
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False)
        shape = (1, autoencoder.latent_channels, 1, 1)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    @torch.no_grad()
    def encode(self, x_0: Tensor) -> Tensor:
        """The latents of images in [-1, 1]: the mean of their distribution, scaled."""
        return (self.autoencoder.encode(x_0) - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The images of latents. Large ones are decoded in tiles, which takes less memory."""
        latents = latents.float() * self.std + self.mean
        if max(latents.shape[2:]) <= TILE:
            return self.autoencoder.decode(latents)
        return decoded_in_tiles(self.autoencoder.decode, latents, self.autoencoder.downsample)

    @torch.no_grad()
    def measure(self, parts: Sequence[Tensor]) -> None:
        """Set the scale from latents (B, c, h, w) that were encoded without one."""
        count, total, squares = 0, 0.0, 0.0
        for latents in parts:
            values = latents.double()
            count += values[:, 0].numel()
            total = total + values.sum(dim=(0, 2, 3), keepdim=True)
            squares = squares + (values**2).sum(dim=(0, 2, 3), keepdim=True)
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean**2).clamp(min=1e-12).sqrt())
