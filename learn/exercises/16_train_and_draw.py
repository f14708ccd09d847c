"""Exercise 16: train a network and draw with it. Every part of it is yours.

Chapter: docs/guide/06_training.md
Check:   python learn/check.py 16      (once both functions are right, it trains and draws digits)
"""

from collections.abc import Iterator

import torch
from pieces import (  # yours, of the earlier exercises
    attention,
    ddim_step,
    ema_decay,
    ema_update,
    loss,
    make_layers,
    residual_block,
    time_embedding,
    x_0_from_eps,
)
from torch import Tensor, nn


def train(
    network: nn.Module,
    average: nn.Module,
    images: Tensor,
    alphas_cumprod: Tensor,
    steps: int,
    batch_size: int = 64,
    lr: float = 2e-3,
) -> Iterator[float]:
    """Train a network (Ho et al. 2020, algorithm 1), and keep the average of its weights.

    Each step takes a random batch of images, a random t for each of them and new noise, computes
    the loss, and makes a step of torch.optim.Adam. Then it updates the average, with the decay
    ema_decay(step, 0.999), steps counted from 0.

    Args:
        network: maps (x_t, t) to the predicted noise.
        average: a copy of the network; it becomes the moving average of its weights.
        images: (N, C, H, W) in [-1, 1].
        alphas_cumprod: (T,). t is drawn from 0 to T - 1, all equally likely.

    Yields:
        At the end of each step: its loss, a float.

    Hint: a function with `yield loss.item()` in its loop is a generator; it needs no return.
    """
    raise NotImplementedError


def draw(
    network: nn.Module, alphas_cumprod: Tensor, count: int, shape: tuple[int, ...], steps: int
) -> Tensor:
    """Draw images, from noise to data in `steps` steps of DDIM.

    Start from N(0, I). Visit `steps` timesteps, evenly from T - 1 to 0 (rounded), and then -1,
    clean data. At each of them:

        x_0 = x_0_from_eps of the network's prediction, clipped to [-1, 1], as images are
        eps = (x - sqrt(alphas_cumprod[t]) * x_0) / sqrt(1 - alphas_cumprod[t])
        x   = ddim_step with this eps to the next timestep

    Without clipping, the errors of much noise grow. No gradients are recorded.

    Args:
        network: maps (x_t, t), t of shape (count,) and int64, to the predicted noise.
        count, shape: how many images, and the shape (C, H, W) of one.

    Returns:
        Images (count, C, H, W) in [-1, 1].

    Hint: torch.linspace(T - 1, 0, steps).round().long().tolist() + [-1]
    """
    raise NotImplementedError


# The network is given: read it, and find your functions in it.


class Network(nn.Module):
    """A small U-Net of your pieces: (x_t, t) to the predicted noise, both (B, 1, H, W)."""

    def __init__(self, channels: int = 32, dim: int = 64):
        super().__init__()
        self.dim = dim
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.enter = nn.Conv2d(4, channels, 3, padding=1)
        self.down_1 = make_layers(channels, channels, dim)
        self.shrink = nn.Conv2d(channels, 2 * channels, 3, padding=1, stride=2)
        self.down_2 = make_layers(2 * channels, 2 * channels, dim)
        self.qkv = nn.Conv2d(2 * channels, 6 * channels, 1)
        self.out = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.up_2 = make_layers(2 * channels, 2 * channels, dim)
        self.narrow = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.up_1 = make_layers(2 * channels, channels, dim)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, 4, 3, padding=1)
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        emb = self.time(time_embedding(t, self.dim))  # (B, dim)
        x = nn.functional.pixel_unshuffle(x_t, 2)  # (B, 4, H/2, W/2)
        wide = residual_block(self.down_1, self.enter(x), emb)  # (B, C, H/2, W/2)
        h = residual_block(self.down_2, self.shrink(wide), emb)  # (B, 2C, H/4, W/4)
        h = h + self.attended(h)
        h = residual_block(self.up_2, h, emb)
        h = nn.functional.interpolate(h, size=wide.shape[2:])  # (B, 2C, H/2, W/2)
        h = residual_block(self.up_1, torch.cat([self.narrow(h), wide], dim=1), emb)
        return nn.functional.pixel_shuffle(self.leave(h), 2)  # (B, 1, H, W)

    def attended(self, h: Tensor) -> Tensor:
        """Attention over the pixels, with heads of 32 channels."""
        batch, channels, height, width = h.shape
        split = self.qkv(h).view(batch, 3, channels // 32, 32, height * width)
        q, k, v = split.transpose(3, 4).unbind(dim=1)  # (B, heads, N, 32) each
        found = attention(q, k, v).transpose(2, 3)  # (B, heads, 32, N)
        return self.out(found.reshape(batch, channels, height, width))
