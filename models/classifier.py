"""A classifier of noisy images, which guides sampling (Dhariwal & Nichol 2021, section 4)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from models.layers import time_embedding
from models.unet import Block, Downsample, check, default_patch_size, feature_sizes, group_norm

EMBEDDING = 128


class NoisyClassifier(nn.Module):
    """Maps noisy images and their timesteps to class scores: the downsampling half of a U-Net.

    Args:
        image_size, image_channels, channels, multipliers, blocks, dropout, patch_size: as in
            `models.unet.UNet`.
        num_classes: number of class labels.

    Raises:
        ValueError: a value out of range, or an image size that the patches do not divide.
    """

    kind = "images"

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        dropout: float = 0.1,
        patch_size: int | None = None,
        num_classes: int | None = None,
    ):
        super().__init__()
        patch_size = patch_size or default_patch_size(image_size)
        sizes = feature_sizes(image_size, patch_size, len(multipliers))
        check(channels, multipliers, blocks, dropout, sizes, {"attention": ()})
        if not num_classes:
            raise ValueError("a classifier needs classes")
        self.patch_size, self.num_classes = patch_size, num_classes
        self.time = time_embedding(EMBEDDING)
        self.stem = nn.Conv2d(image_channels * patch_size**2, channels, 3, padding=1)
        self.down, width = nn.ModuleList(), channels
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.down.append(Downsample(width))
            for _ in range(blocks):
                last = level + 1 == len(multipliers)
                block = Block(width, channels * multiplier, EMBEDDING, dropout, attends=last)
                self.down.append(block)
                width = channels * multiplier
        self.norm = group_norm(width)
        self.head = nn.Linear(width, num_classes)

    def ends(self) -> list[nn.Module]:
        """The first and the last layer."""
        return [self.stem, self.head]

    def recomputable(self) -> list[nn.Module]:
        """The blocks, which gradient checkpointing computes twice."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Scores (B, classes) of noisy images x_t (B, C, H, W) at the timesteps t (B,)."""
        emb = F.silu(self.time(t))  # (B, 128)
        h = self.stem(F.pixel_unshuffle(x_t, self.patch_size))  # (B, channels, H/p, W/p)
        for layer in self.down:
            h = layer(h, emb)
        return self.head(F.silu(self.norm(h)).mean(dim=(2, 3)))
