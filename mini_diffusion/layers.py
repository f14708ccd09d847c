"""Layers of the networks, for inference. Weights are named and shaped as in PyTorch's state_dict.

`rng` is the generator of the initial weights; None means a random seed.
"""

import math
from collections.abc import Iterator
from itertools import product

import numpy as np

from mini_diffusion.tensor import Rng, Tensor

BUFFER = 2**21  # size of a convolution's buffer in floats (8 MB); a single image may exceed it


class Layer:
    """Base class of the layers and of the networks."""

    def parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Names and weights of the layer and its sublayers, as in PyTorch: up.0.norm_1.bias."""
        yield from named_weights(vars(self).items(), prefix)

    def parameter_count(self) -> int:
        """Number of weights of the layer and its sublayers."""
        return sum(weights.data.size for _, weights in self.parameters())


def named_weights(items, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of named tensors, layers and lists of layers; ignores other values."""
    for name, value in items:
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Layer):
            yield from value.parameters(f"{prefix}{name}.")
        elif isinstance(value, list):
            yield from named_weights(enumerate(value), f"{prefix}{name}.")


class Linear(Layer):
    """Linear layer y = x W^T + b: (..., in) -> (..., out)."""

    def __init__(self, in_features: int, out_features: int, rng: Rng = None):
        self.weight = Tensor.xavier(out_features, in_features, rng=rng)
        self.bias = Tensor.zeros(out_features)

    def __call__(self, x: Tensor) -> Tensor:
        y = x.data @ self.weight.data.T
        y += self.bias.data
        return Tensor(y)


class Conv2d(Layer):
    """Convolution with zero padding: (N, in, H, W) -> (N, out, H', W').

    H' = (H + 2 padding - k) // stride + 1. The k x k input patch of each output pixel becomes one
    row of a matrix (im2col). A few images are computed at a time to limit its memory.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        rng: Rng = None,
    ):
        self.weight = Tensor.kaiming(out_channels, in_channels, kernel_size, kernel_size, rng=rng)
        self.bias = Tensor.zeros(out_channels)
        self.stride, self.padding = stride, padding

    def __call__(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        out_channels, _, k, _ = self.weight.shape
        s, p = self.stride, self.padding
        h, w = (height + 2 * p - k) // s + 1, (width + 2 * p - k) // s + 1

        padded = np.zeros((n, height + 2 * p, width + 2 * p, c), np.float32)
        padded[:, p : p + height, p : p + width] = x.nhwc
        matrix = self.weight.nhwc.reshape(out_channels, k * k * c).T
        y = np.empty((n, h, w, out_channels), np.float32)
        images = max(1, BUFFER // (h * w * k * k * c))  # computed at a time
        buffer = np.empty((min(images, n), h, w, k, k, c), np.float32)
        for first in range(0, n, images):
            part = padded[first : first + images]
            rows = buffer[: len(part)]
            for i, j in product(range(k), repeat=2):
                rows[..., i, j, :] = part[:, i : i + s * h : s, j : j + s * w : s]
            out = y[first : first + images].reshape(-1, out_channels)
            np.matmul(rows.reshape(-1, k * k * c), matrix, out=out)
        y += self.bias.data
        return Tensor.from_nhwc(y)


class GroupNorm(Layer):
    """Group normalization of images (N, C, H, W) (Wu & He 2018, arXiv:1803.08494, section 3)."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5):
        if channels % groups:
            raise ValueError(f"channels ({channels}) must be divisible by groups ({groups})")
        self.weight, self.bias = Tensor.ones(channels), Tensor.zeros(channels)
        self.groups, self.eps = groups, eps

    def __call__(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        pixels = x.nhwc.reshape(n, h * w, c)
        y = pixels - self.group_mean(pixels.mean(axis=1))
        variance = self.group_mean(np.einsum("npc,npc->nc", y, y) / (h * w))
        y *= self.weight.data / np.sqrt(variance + self.eps)
        y += self.bias.data
        return Tensor.from_nhwc(y.reshape(n, h, w, c))

    def group_mean(self, x: np.ndarray) -> np.ndarray:
        """Mean of each channel's group: (N, C) -> (N, 1, C)."""
        means = x.reshape(len(x), self.groups, -1).mean(axis=2)
        return means.repeat(x.shape[1] // self.groups, axis=1)[:, None]


class LayerNorm(Layer):
    """Layer normalization over the last axis (..., C) (Ba et al. 2016, arXiv:1607.06450, eq. 4)."""

    def __init__(self, channels: int, eps: float = 1e-5):
        self.weight, self.bias = Tensor.ones(channels), Tensor.zeros(channels)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        y = x.data - x.data.mean(axis=-1, keepdims=True)
        y /= np.sqrt((y * y).mean(axis=-1, keepdims=True) + self.eps)
        return Tensor(y * self.weight.data + self.bias.data)


class Attention(Layer):
    """Residual multi-head self-attention over pixels: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, heads: int, norm: GroupNorm, rng: Rng = None):
        self.norm, self.heads = norm, heads
        self.qkv = Linear(channels, 3 * channels, rng)
        self.out = Linear(channels, channels, rng)

    def __call__(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = Tensor(self.norm(x).nhwc.reshape(n, h * w, c))
        qkv = self.qkv(tokens).data.reshape(n, h * w, 3, self.heads, -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each (N, heads, HW, d)
        a = np.stack([attend(*image) for image in zip(q, k, v, strict=True)])  # to save memory
        a = self.out(Tensor(a.swapaxes(1, 2).reshape(n, h * w, c)))
        return x + Tensor.from_nhwc(a.data.reshape(n, h, w, c))


class Embedding(Layer):
    """Learned vectors of class labels 0, ..., count - 1: (N,) -> (N, features)."""

    def __init__(self, count: int, features: int, rng: Rng = None):
        self.weight = Tensor.randn(count, features, rng=rng)

    def __call__(self, numbers: np.ndarray) -> Tensor:
        return self.weight[numbers]


class TimestepEmbedding(Layer):
    """Sinusoidal embedding of timesteps: (N,) -> (N, features). `features` must be even.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """

    def __init__(self, features: int, max_period: float = 10_000):
        exponents = np.arange(features // 2, dtype=np.float32) / (features // 2)
        self.frequencies = np.exp(-math.log(max_period) * exponents)

    def __call__(self, timesteps: np.ndarray) -> Tensor:
        angles = timesteps[:, None].astype(np.float32) * self.frequencies
        return Tensor(np.concatenate([np.cos(angles), np.sin(angles)], axis=1))


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v: (heads, N, d) (Vaswani et al. 2017, arXiv:1706.03762, eq. 1)."""
    weights = q * q.shape[-1] ** -0.5 @ k.swapaxes(1, 2)
    np.exp(weights - weights.max(axis=-1, keepdims=True), out=weights)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights @ v


def concat(a: Tensor, b: Tensor) -> Tensor:
    """Concatenation along the channels: (N, C, H, W) and (N, D, H, W) -> (N, C + D, H, W)."""
    return Tensor.from_nhwc(np.concatenate([a.nhwc, b.nhwc], axis=3))


def fold(x: Tensor, patch_size: int) -> Tensor:
    """Space to depth, patches of p x p pixels: (N, C, H, W) -> (N, C p^2, H/p, W/p)."""
    (n, c, h, w), p = x.shape, patch_size
    patches = x.data.reshape(n, c, h // p, p, w // p, p)
    return Tensor(patches.transpose(0, 1, 3, 5, 2, 4).reshape(n, c * p * p, h // p, w // p))


def unfold(x: Tensor, patch_size: int) -> Tensor:
    """Inverse of `fold`, depth to space: (N, C p^2, H, W) -> (N, C, H p, W p)."""
    (n, c, h, w), p = x.shape, patch_size
    patches = x.data.reshape(n, c // p**2, p, p, h, w)
    return Tensor(patches.transpose(0, 1, 4, 2, 5, 3).reshape(n, c // p**2, h * p, w * p))
