"""Solution 16: train a network and draw with it."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from pieces import (
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
    """Train `network` on images, with its average in `average`; yield the loss of each step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(steps):
        x_0 = images[torch.randint(len(images), (batch_size,))]
        t = torch.randint(len(alphas_cumprod), (batch_size,))  # one for each image
        noise = torch.randn_like(x_0)
        value = loss(network, x_0, t, noise, alphas_cumprod)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        ema_update(average, network, ema_decay(step, 0.999))
        yield value.item()


@torch.no_grad()
def draw(
    network: nn.Module, alphas_cumprod: Tensor, count: int, shape: tuple[int, ...], steps: int
) -> Tensor:
    """Images (count, *shape) in [-1, 1], from noise in `steps` steps of DDIM."""
    last = len(alphas_cumprod) - 1
    x = torch.randn(count, *shape)
    times = torch.linspace(last, 0, steps).round().long().tolist() + [-1]  # -1 is clean data
    for t, t_next in pairwise(times):
        time = torch.full((count,), t)
        x_0 = x_0_from_eps(network(x, time), x, time, alphas_cumprod).clamp(-1, 1)
        alpha_bar = alphas_cumprod[t]
        eps = (x - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()  # what the clipped x_0 implies
        x = ddim_step(eps, x, t, t_next, alphas_cumprod)
    return x


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
