"""How well an autoencoder reconstructs images: PSNR and SSIM."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.items import to_uint8, to_unit
from utils import autocast, memory_format

WINDOW, SPREAD = 11, 1.5  # side and standard deviation of SSIM's window, in pixels
STABILITY = (0.01, 0.03)  # K_1 and K_2 of SSIM
PEAK = 255.0
BATCH_SIZE = 100


@torch.no_grad()
def reconstructed(model: nn.Module, images: Tensor, device: torch.device, precision: str) -> Tensor:
    """uint8 images (N, C, H, W), encoded to their mean latents and decoded."""
    parts = []
    for batch in images.split(BATCH_SIZE):
        x_0 = to_unit(batch.to(device, memory_format=memory_format(device)))
        with autocast(device, precision):
            parts.append(to_uint8(model.decode(model.encode(x_0)).float()).cpu())
    return torch.cat(parts)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of each pair of uint8 images (N, C, H, W), in dB: (N,).

    The error of equal images is taken to be one grey level in one value, so the ratio is finite.
    """
    errors = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(PEAK**2 / errors.clamp(min=1 / images[0].numel()))


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """The structural similarity of each pair of uint8 images (N, C, H, W), at most 1: (N,).

    Wang et al. 2004 (doi:10.1109/TIP.2003.819861), in each channel, with a Gaussian window that
    lies within the image. The window is smaller for images of fewer than 11 pixels.
    """
    side = min(WINDOW, (min(images.shape[2:]) - 1) // 2 * 2 + 1)
    at = torch.arange(side, dtype=torch.float64) - side // 2
    weights = torch.exp(-(at**2) / (2 * SPREAD**2))
    weights = weights / weights.sum()
    kernel = (weights[:, None] * weights)[None, None]  # (1, 1, side, side)

    def local_mean(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], kernel)  # (N C, 1, ...)

    values = []
    for batch, other in zip(images.split(BATCH_SIZE), others.split(BATCH_SIZE), strict=True):
        x, y = batch.double(), other.double()
        mean_x, mean_y = local_mean(x), local_mean(y)
        var_x = local_mean(x * x) - mean_x**2
        var_y = local_mean(y * y) - mean_y**2
        cov = local_mean(x * y) - mean_x * mean_y
        c_1, c_2 = ((k * PEAK) ** 2 for k in STABILITY)
        similarity = (2 * mean_x * mean_y + c_1) * (2 * cov + c_2)
        similarity = similarity / ((mean_x**2 + mean_y**2 + c_1) * (var_x + var_y + c_2))
        values.append(similarity.view(len(x), -1).mean(dim=1))
    return torch.cat(values)


def mean_and_error(values: Tensor) -> dict[str, float]:
    """The mean of values (N,) and its standard error."""
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "standard_error": error}
