"""The three-level U-Net that many people write first, with a vector at its bottom."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from models.layers import embed
from utils import sides, size_text

GROUPS = 8
HALF = 0.5**0.5  # keeps the variance of a sum of two


class NaiveUNet(nn.Module):
    """Residual convolutions, max-pooling down to one vector, transposed convolutions up again.

    The time t / T goes through a linear layer and a sine, and is added at two depths: to the
    vector, and a level above it.

    Args:
        image_size: side in pixels, or (height, width), at least 8.
        image_channels: channels of the data, 1 for grey and 3 for colour.
        channels: n_feat, the width of the first level: a multiple of 8, the groups of the norms.
        timesteps: T of the process.
        num_classes, learn_sigma: as in `models.unet.UNet`.

    Raises:
        ValueError: a size or a width that does not fit.
    """

    kind = "images"

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int,
        channels: int = 64,
        timesteps: int = 1000,
        num_classes: int | None = None,
        learn_sigma: bool = False,
    ):
        super().__init__()
        if min(sides(image_size)) < 8:
            raise ValueError(
                f"the naive U-Net takes image sizes from 8 up, not {size_text(image_size)}"
            )
        if channels < 1 or channels % GROUPS:
            raise ValueError(
                f"the naive U-Net's channels (n_feat) must be a multiple of {GROUPS}, the groups "
                f"of its norms, not {channels}"
            )
        self.timesteps, self.num_classes = timesteps, num_classes
        c = channels
        bottom = tuple(-(-side // 8) for side in sides(image_size))  # three halvings
        self.stem = Residual(image_channels, c)
        self.down = nn.ModuleList([Residual(c, c), Residual(c, 2 * c), Residual(2 * c, 2 * c)])
        self.from_vector = up(2 * c, 2 * c, bottom)
        self.time = nn.Linear(1, 2 * c)
        self.label = nn.Embedding(num_classes + 1, 2 * c) if num_classes else None
        self.up = nn.ModuleList(
            nn.Sequential(up(a, b, 2), Residual(b, b))
            for a, b in [(4 * c, 2 * c), (4 * c, c), (2 * c, c)]
        )
        outputs = image_channels * (2 if learn_sigma else 1)
        self.head = nn.Conv2d(2 * c, outputs, 3, padding=1)

    def ends(self) -> list[nn.Module]:
        """The layers that read the image and write the prediction."""
        return [self.stem.conv_1, self.head]

    def recomputable(self) -> list[nn.Module]:
        """The blocks, which gradient checkpointing computes twice."""
        return [module for module in self.modules() if isinstance(module, Residual)]

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Predict from noisy images x_t (B, C, H, W) at the timesteps t (B,).

        Returns (B, C, H, W), or (B, 2C, H, W) with `learn_sigma`. A network with classes uses the
        labels of the condition.
        """
        emb = embed(self.sines, self.label, t, condition)[:, :, None, None]  # (B, 2c, 1, 1)
        h = self.stem(x_t)  # (B, c, H, W)
        skips = [h]
        for block in self.down:
            h = F.max_pool2d(block(h), 2, ceil_mode=True)
            skips.append(h)  # the last: (B, 2c, H/8, W/8)

        vector = F.relu(h.mean(dim=(2, 3), keepdim=True))  # (B, 2c, 1, 1)
        h = self.from_vector(vector + emb)  # (B, 2c, H/8, W/8)
        for depth, block in enumerate(self.up):
            h = block(torch.cat([h, skips.pop()], dim=1))
            h = h[:, :, : skips[-1].shape[2], : skips[-1].shape[3]]  # where halving rounded up
            if depth == 0:
                h = h + emb
        return self.head(torch.cat([h, skips.pop()], dim=1))

    def sines(self, t: Tensor) -> Tensor:
        """Timesteps (B,) to features (B, 2c): one linear layer on t / T, and sines."""
        return self.time(t[:, None] / self.timesteps).sin()


class Residual(nn.Module):
    """Two convolutions with GroupNorm and ReLU: the sum of both outputs, divided by sqrt(2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_1 = nn.GroupNorm(GROUPS, out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm_2 = nn.GroupNorm(GROUPS, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm_1(self.conv_1(x)))
        second = F.relu(self.norm_2(self.conv_2(first)))
        return (first + second) * HALF


def up(in_channels: int, out_channels: int, factor: int | tuple[int, int]) -> nn.Sequential:
    """A feature map `factor` (of height and width) times as large, by a transposed convolution."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, factor, factor),
        nn.GroupNorm(GROUPS, out_channels),
        nn.ReLU(),
    )
