"""Near-copies of training images among generated ones."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.distances import nearest
from visuals.pictures import ImagePictures

CLOSE = 0.01  # share of held-out images that are as near to a training image as a near-copy
SHOWN = 10  # pairs in the picture


class Copies(NamedTuple):
    """How near generated images (N) come to training images. Distances are root-mean-square over
    the pixels, in grey levels of 255."""

    distances: Tensor  # (N,) to the nearest training image
    indices: Tensor  # (N,) which that is
    held_out: Tensor  # (M,) distances of held-out images to their nearest

    @property
    def threshold(self) -> float:
        """Nearer than this are `CLOSE` of the held-out images."""
        return self.held_out.quantile(CLOSE).item()

    @property
    def share(self) -> float:
        """Of the generated images, that are nearer than that: `CLOSE` of them if they are new."""
        return (self.distances < self.threshold).double().mean().item()

    def record(self) -> dict[str, float]:
        return {
            "near_copies": self.share,
            "of_held_out": CLOSE,
            "threshold": self.threshold,
            "median_distance": self.distances.median().item(),
            "median_distance_of_held_out": self.held_out.median().item(),
        }


def copies(generated: Tensor, train: Tensor, held_out: Tensor) -> Copies:
    """The nearest training images of uint8 images (N, C, H, W), pixel by pixel.

    A distance alone says nothing: a plain stroke is near many. So held-out images, which are no
    copies, say how near is common.
    """
    known = train.flatten(1)
    scale = known.shape[1] ** 0.5
    distances, indices = nearest(generated.flatten(1), known)
    of_held_out, _ = nearest(held_out.flatten(1), known)
    return Copies(distances / scale, indices, of_held_out / scale)


def pairs(generated: Tensor, train: Tensor, found: Copies) -> np.ndarray:
    """A picture of the generated images that are nearest to a training image, each above it."""
    order = found.distances.argsort()[:SHOWN]
    shown = torch.cat([generated[order], train[found.indices[order]]])
    return ImagePictures().grid(shown, len(order))
