"""Images for tests: random pixels, image files, and what every loaded image data set has."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset.types import Data


def noise_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save_image(path: Path, pixels, **options) -> None:
    """Save pixels (H, W) or (H, W, C); the folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def assert_images(data: Data, count: int, shape: tuple[int, int, int], num_classes: int) -> None:
    """Assert the shapes and types of a data set of images with labels, each class present."""
    assert data.items.shape == (count, *shape)
    assert data.items.dtype == torch.uint8
    assert data.items.is_contiguous()
    assert data.labels.shape == (count,)
    assert data.labels.dtype == torch.int64
    assert set(data.labels.tolist()) == set(range(num_classes))
    assert len(data.classes) == num_classes
