"""The space of latents: a frozen autoencoder, and the scale that gives latents unit variance."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder

BATCH_SIZE = 128  # images that are encoded at once


def space_of(network: nn.Module) -> "LatentSpace | None":
    """The latent space of a network that learns latents; None for a network that learns items."""
    space = getattr(network, "latent_space", None)
    return space if isinstance(space, LatentSpace) else None


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
        """The images of latents."""
        return self.autoencoder.decode(latents.float() * self.std + self.mean)

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
