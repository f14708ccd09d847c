"""A convolutional autoencoder for diffusion in its latents (Rombach et al. 2021, arXiv:2112.10752,
section 3.1 and appendix G).
"""

from collections.abc import Sequence
from math import log2
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from models.layers import zero
from models.unet import group_norm, upsampled
from utils import pick, sides, size_of, size_text

DOWNSAMPLE = (4, 8)  # how many times smaller the sides of latents can be
REGULARIZERS = {"kl": 2, "none": 1}  # numbers of the encoder for each number of the latents
KL_WEIGHT = 1e-6  # of the Kullback-Leibler divergence, per number of the latents
ADVERSARIAL = 0.05  # weight of looking real to the discriminator
PATCH = 2  # side of the patches that the image is folded into
WIDEST = 4  # times `channels`, of the smallest feature maps
LOG_VARIANCE = (-20.0, 10.0)  # limits of the logarithm of the latents' variance


class Posterior(NamedTuple):
    """The normal distribution of the latents of each image."""

    mean: Tensor  # (B, c, h, w)
    log_variance: Tensor | None  # the same shape; None for a variance of zero

    def latents(self, noise: Tensor) -> Tensor:
        """Draw latents (B, c, h, w) with standard normal noise of that shape."""
        if self.log_variance is None:
            return self.mean
        return self.mean + (self.log_variance / 2).exp() * noise

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1) in nats, (B, c, h, w) (Kingma & Welling 2013, appendix B)."""
        if self.log_variance is None:
            return torch.zeros_like(self.mean)
        return (self.mean**2 + self.log_variance.exp() - 1 - self.log_variance) / 2


class Autoencoder(nn.Module):
    """Encodes images into latents of a quarter or an eighth of their sides, and decodes them.

    Args:
        image_size: side in pixels, or (height, width): multiples of `downsample`.
        image_channels: channels of the data.
        channels: width of the largest feature maps, at half the size of the image. It doubles with
            each level, up to four times.
        blocks: residual blocks of each level, on the way down and again on the way up.
        downsample: how many times smaller the sides of latents are, 4 or 8.
        latent_channels: channels of the latents.
        regularizer: "kl": latents are drawn from a normal distribution that the encoder outputs,
            and a penalty keeps it near the standard normal one; "none": they are the output.
        discriminator: also train a network that classifies patches as real or reconstructed, and
            add its score of the reconstructions to the loss (Esser et al. 2021, arXiv:2012.09841).

    Raises:
        ValueError: an image size that `downsample` does not divide, or a value out of range.
    """

    kind = "images"

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int,
        channels: int = 32,
        blocks: int = 1,
        downsample: int = 4,
        latent_channels: int = 4,
        regularizer: str = "kl",
        discriminator: bool = False,
    ):
        super().__init__()
        check(image_size, image_channels, channels, blocks, downsample, latent_channels)
        moments = pick(REGULARIZERS, regularizer, "regularizer")
        self.regularizer, self.latent_channels = regularizer, latent_channels
        self.downsample = downsample
        levels = int(log2(downsample // PATCH)) + 1
        widths = [channels * min(2**level, WIDEST) for level in range(levels)]
        pixels = image_channels * PATCH**2

        self.stem = nn.Conv2d(pixels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        width = channels
        for level, out in enumerate(widths):
            if level > 0:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
            for _ in range(blocks):
                self.down.append(ResidualBlock(width, out))
                width = out
        self.discriminator = PatchDiscriminator(image_channels, channels) if discriminator else None
        outputs = latent_channels * moments
        self.to_latents = nn.Sequential(
            group_norm(width), nn.SiLU(), nn.Conv2d(width, outputs, 3, padding=1)
        )

        self.from_latents = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(blocks):
                self.up.append(ResidualBlock(width, out))
                width = out
            if level > 0:
                self.up.append(Upsample(width))
        self.head = nn.Sequential(
            group_norm(width), nn.SiLU(), nn.Conv2d(width, pixels, 3, padding=1)
        )

    def ends(self) -> list[nn.Module]:
        """The first and the last layers, of both halves."""
        return [self.stem, self.to_latents, self.from_latents, self.head]

    def recomputable(self) -> list[nn.Module]:
        """The blocks, which gradient checkpointing computes twice."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    def forward(self, x_0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct images x_0 (B, C, H, W) from latents drawn with noise (B, c, h, w).

        Returns the reconstructions (B, C, H, W), and a scalar penalty to add to their loss.
        """
        posterior = self.posterior(x_0)
        penalty = KL_WEIGHT * posterior.kl().mean()
        reconstruction = self.decode(posterior.latents(noise))
        if self.discriminator is not None and self.training:
            penalty = penalty + self.discriminator.loss(x_0, reconstruction)
        return reconstruction, penalty

    def posterior(self, x_0: Tensor) -> Posterior:
        """The distribution of the latents of images (B, C, H, W)."""
        h = self.stem(F.pixel_unshuffle(x_0, PATCH))  # (B, channels, H/2, W/2)
        for layer in self.down:
            h = layer(h)
        moments = self.to_latents(h).float()  # (B, 2c, h, w)
        if self.regularizer == "none":
            return Posterior(moments, None)
        mean, log_variance = moments.chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE))

    def encode(self, x_0: Tensor) -> Tensor:
        """The mean latents (B, c, h, w) of images (B, C, H, W)."""
        return self.posterior(x_0).mean

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents (B, c, h, w)."""
        h = self.from_latents(latents)
        for layer in self.up:
            h = layer(h)
        return F.pixel_shuffle(self.head(h), PATCH)


class ResidualBlock(nn.Module):
    """Two convolutions, added to their input: (B, C, H, W) -> (B, D, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm_1 = group_norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_2 = group_norm(out_channels)
        self.conv_2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        return self.skip(x) + self.conv_2(F.silu(self.norm_2(h)))


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(upsampled(x, (2 * x.shape[2], 2 * x.shape[3])))


class PatchDiscriminator(nn.Module):
    """Scores patches of images (B, C, H, W): positive for real ones (Isola et al. 2016)."""

    def __init__(self, image_channels: int, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(image_channels, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            group_norm(2 * channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def loss(self, x_0: Tensor, reconstruction: Tensor) -> Tensor:
        """The discriminator's loss and the autoencoder's, in one scalar (Goodfellow et al. 2014).

        Each part trains one of the two networks only: the first treats reconstructions as
        constants, and the second the discriminator's weights.
        """
        judged = F.softplus(-self(x_0)).mean() + F.softplus(self(reconstruction.detach())).mean()
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        fooled = F.softplus(-functional_call(self, weights, reconstruction)).mean()
        return judged + ADVERSARIAL * fooled


def latent_shape(config: dict) -> tuple[int, int, int]:
    """The shape (c, h, w) of the latents of an autoencoder with this `config["model"]`."""
    height, width = (side // config["downsample"] for side in sides(config["image_size"]))
    return config["latent_channels"], height, width


def check(
    image_size: int | Sequence[int],
    image_channels: int,
    channels: int,
    blocks: int,
    downsample: int,
    latent_channels: int,
) -> None:
    """Raise ValueError for arguments that are out of range or do not fit together."""
    if channels < 1 or blocks < 1:
        raise ValueError("channels and blocks of the autoencoder must be at least 1")
    if downsample not in DOWNSAMPLE:
        raise ValueError(f"downsample is {' or '.join(map(str, DOWNSAMPLE))}, not {downsample}")
    most = image_channels * downsample**2
    if not 1 <= latent_channels <= most:
        raise ValueError(f"latent_channels must lie between 1 and {most}, not {latent_channels}")
    if any(side % downsample for side in sides(image_size)):
        below = [side // downsample * downsample for side in sides(image_size)]
        above = [-(-side // downsample) * downsample for side in sides(image_size)]
        near = " and ".join(size_text(size_of(*each)) for each in (below, above) if min(each) > 0)
        raise ValueError(
            f"an autoencoder with --downsample {downsample} takes image sizes that are multiples "
            f"of {downsample}, not {size_text(image_size)}; the nearest are {near}"
        )
