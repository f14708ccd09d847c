"""How well a model enlarges images: compared with interpolation, and with the mean prediction."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.items import low_resolution, to_uint8, to_unit
from evaluation.measures import Measure
from evaluation.reconstruction import psnr, ssim

BATCH_SIZE = 500


def in_low_resolution(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 images (N, C, H, W) as a model enlarges them: (N, C, h, w) in [-1, 1]."""
    return torch.cat([low_resolution(to_unit(b), size) for b in images.split(BATCH_SIZE)])


def bicubic(small: Tensor, size: Sequence[int]) -> Tensor:
    """Images (N, C, h, w) in [-1, 1], enlarged by interpolation to uint8 (N, C, H, W)."""
    return to_uint8(F.interpolate(small, tuple(size), mode="bicubic"))


def compare_ways(
    originals: Tensor,
    ways: Mapping[str, Sequence[Tensor]],
    distance: Callable[[Tensor], float] | None,
) -> dict[str, dict[str, Measure]]:
    """Measures of each way of enlarging images, by its name.

    PSNR rewards the mean of all images that fit, which is blurred; the classifier-FID does not.

    Args:
        originals: uint8 images (N, C, H, W).
        ways: the enlarged images, uint8 (N, C, H, W), in one or several sets.
        distance: the classifier-FID of images, or None for data without classes.
    """
    found = {}
    for name, sets in ways.items():
        measures = {
            "psnr": Measure([psnr(originals, images).mean().item() for images in sets], []),
            "ssim": Measure([ssim(originals, images).mean().item() for images in sets], []),
        }
        if distance is not None:
            measures["classifier_fid"] = Measure([distance(images) for images in sets], [])
        found[name] = measures
    return found
