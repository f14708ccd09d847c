"""Time-conditioned residual network for points."""

from pathlib import Path

import numpy as np

from mini_diffusion.layers import Embedding, Layer, LayerNorm, Linear, TimestepEmbedding
from mini_diffusion.model_file import ModelFile, read_model, with_weights
from mini_diffusion.tensor import Rng, Tensor, generator

OCTAVES = 5  # of the sines and cosines of a coordinate


class MLP(Layer):
    """Residual network from noisy points (N, dim) to a prediction (N, out).

    Args:
        dim: coordinates of a point.
        out: numbers of the prediction: dim, or twice that with a learned variance.
        channels: width of the hidden layers.
        blocks: residual blocks of two layers each.
        num_classes: number of class labels. The additional label `num_classes` means no class.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        channels: int = 128,
        rng: Rng = None,
        *,
        blocks: int = 4,
        num_classes: int | None = None,
    ):
        rng = generator(rng)
        self.num_classes = num_classes
        self.time = [
            TimestepEmbedding(channels),
            Linear(channels, channels, rng),
            Tensor.silu,
            Linear(channels, channels, rng),
        ]
        self.label = Embedding(num_classes + 1, channels, rng) if num_classes else None
        self.stem = PointEmbedding(dim, channels, rng)
        self.blocks = [MLPBlock(channels, rng) for _ in range(blocks)]
        self.norm = LayerNorm(channels)
        self.head = Linear(channels, out, rng)

    def __call__(
        self, x: Tensor, timestep: int | np.ndarray, y: int | np.ndarray | None = None
    ) -> Tensor:
        """Prediction (N, out) for points (N, dim), scaled by `NoiseScheduler.scaled`.

        The timestep and the class label y are numbers for all points or arrays (N,). The default y
        is the null label.
        """
        emb = np.broadcast_to(timestep, len(x))
        for layer in self.time:
            emb = layer(emb)  # (N, channels)
        if self.label is not None:
            emb = emb + self.label(np.broadcast_to(self.num_classes if y is None else y, len(x)))
        elif y is not None:
            raise ValueError("y must be None: this network has no classes")
        emb = emb.silu()
        h = self.stem(x)  # (N, channels)
        for block in self.blocks:
            h = block(h, emb)
        return self.head(self.norm(h).silu())

    @classmethod
    def load(cls, path: str | Path | ModelFile) -> "MLP":
        """The network of a model file, or of its contents. Raises the errors of `read_model`."""
        return with_weights(read_model(path), "mlp", cls)


class PointEmbedding(Layer):
    """Linear layer on coordinates and their sines and cosines: (N, dim) -> (N, channels).

    Tancik et al. 2020, arXiv:2006.10739, with 1, 2, 4, ... radians per unit.
    """

    def __init__(self, dim: int, channels: int, rng: Rng):
        self.linear = Linear(dim * (1 + 2 * OCTAVES), channels, rng)

    def __call__(self, x: Tensor) -> Tensor:
        angles = x.data[:, :, None] * 2 ** np.arange(OCTAVES, dtype=np.float32)
        angles = angles.reshape(len(x), -1)  # (N, dim * octaves)
        features = np.concatenate([x.data, np.sin(angles), np.cos(angles)], axis=1)
        return self.linear(Tensor(features))


class MLPBlock(Layer):
    """Residual block of two layers, scaled and shifted by the embedding: (N, C) -> (N, C)."""

    def __init__(self, channels: int, rng: Rng):
        self.norm = LayerNorm(channels)
        self.linear_1 = Linear(channels, channels, rng)
        self.scale_shift = Linear(channels, 2 * channels, rng)
        self.linear_2 = Linear(channels, channels, rng)

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = np.split(self.scale_shift(emb).data, 2, axis=1)
        h = self.linear_1(self.norm(x).silu()) * (1 + scale) + shift
        return x + self.linear_2(h.silu())
