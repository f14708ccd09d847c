"""Near-copies of training images among generated images."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.distances import nearest_neighbours
from visuals.pictures import ImagePictures

RARE = 0.01  # fraction of held-out images that are as close to a training image as a near-copy is
PAIRS = 10  # in the picture


class NearCopies(NamedTuple):
    """Distances of generated images to the nearest training images.

    Distances are root-mean-square over the pixels, in grey levels of 255.
    """

    distances: Tensor  # (N,)
    indices: Tensor  # (N,) of the nearest training images
    held_out: Tensor  # (M,) distances of held-out images, for comparison

    @property
    def threshold(self) -> float:
        """The distance below which an image is a near-copy: the quantile `RARE` of held-out images.

        Held-out images that equal a training image are ignored: the data set has them twice.
        """
        different = self.held_out[self.held_out > 0]
        return (different if len(different) else self.held_out).quantile(RARE).item()

    @property
    def fraction(self) -> float:
        """The fraction of generated images that are near-copies; about `RARE` for new images."""
        return (self.distances < self.threshold).double().mean().item()

    def record(self) -> dict[str, float]:
        """The figures for a report."""
        return {
            "near_copies": self.fraction,
            "of_held_out": RARE,
            "threshold": self.threshold,
            "median_distance": self.distances.median().item(),
            "median_distance_of_held_out": self.held_out.median().item(),
        }


def find_near_copies(generated: Tensor, train: Tensor, held_out: Tensor) -> NearCopies:
    """Compare uint8 images (N, C, H, W) with training images, pixel by pixel.

    A distance alone says little, because a plain stroke is close to many images. Held-out images,
    which are not copies, show which distances are common.
    """
    known = train.flatten(1)
    scale = known.shape[1] ** 0.5
    distances, indices = nearest_neighbours(generated.flatten(1), known)
    of_held_out, _ = nearest_neighbours(held_out.flatten(1), known)
    return NearCopies(distances / scale, indices, of_held_out / scale)


def picture_of_pairs(generated: Tensor, train: Tensor, found: NearCopies) -> np.ndarray:
    """A picture of the closest generated images, each above its nearest training image."""
    order = found.distances.argsort()[:PAIRS]
    images = torch.cat([generated[order], train[found.indices[order]]])
    return ImagePictures().grid(images, len(order))
