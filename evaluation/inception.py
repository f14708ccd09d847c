"""FID, IS and KID in Inception's features, by torch-fidelity.

torch-fidelity would download Inception's weights by itself. Here they must be given, so that
nothing is downloaded without being asked for; the error message says what to copy.
"""

import hashlib
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from evaluation.real import RealData
from utils import DataError

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
NAME = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}"
FID_IMAGES = 50_000  # of fewer images N, the result is called FID@N


class Pixels(Dataset):
    """uint8 images (N, C, H, W) with three channels, as torch-fidelity needs them."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i].expand(3, -1, -1).contiguous()


def inception_figures(
    generated: Tensor, real: RealData, weights: Path, device: torch.device
) -> dict[str, str | int | float]:
    """FID, IS and KID of uint8 images (N, C, H, W) against held-out images, for a report.

    Args:
        generated: the images to measure.
        real: the data set, with its held-out images.
        weights: the file `NAME`.
        device: the device to compute on; torch-fidelity supports CUDA and the CPU.

    Raises DataError if the package or the weights are missing, or are not the known weights.
    """
    try:
        import torch_fidelity
    except ImportError:
        raise DataError("needs the package torch-fidelity: pip install torch-fidelity") from None
    require_inception_weights(weights)
    count, held_out = len(generated), real.held_out.items
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        metrics = torch_fidelity.calculate_metrics(
            input1=Pixels(generated),
            input2=Pixels(held_out),
            cuda=device.type == "cuda",
            isc=True,
            isc_splits=min(10, count),
            fid=True,
            kid=True,
            kid_subset_size=min(1000, count, len(held_out)),
            feature_extractor_weights_path=str(weights),
            cache=False,
            verbose=False,
        )
    name = "FID" if count >= FID_IMAGES else f"FID@{count}"
    return {
        name: metrics["frechet_inception_distance"],
        "IS": metrics["inception_score_mean"],
        "IS_standard_deviation": metrics["inception_score_std"],
        "KID": metrics["kernel_inception_distance_mean"],
        "KID_standard_deviation": metrics["kernel_inception_distance_std"],
        "tool": f"torch-fidelity {torch_fidelity.__version__}",
        "weights_sha256": SHA256,
        "num_images": count,
        "num_reference": len(held_out),
        "compared_with": real.origin,
    }


def require_inception_weights(path: Path) -> None:
    """Raise DataError unless the file contains the known Inception network."""
    if not path.is_file():
        raise DataError(
            f"{path} does not exist. Download {URL}\nand name the file by --inception-weights"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise DataError(
            f"{path} has the SHA-256 {found}, not {SHA256}: its figures could not be compared with "
            f"published ones. Download {URL}"
        )
