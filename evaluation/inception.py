"""FID, IS and KID with Inception's features, by torch-fidelity.

torch-fidelity downloads the weights by itself; here they are asked for, so that nothing is fetched
unseen, and so that a machine without a network says what to copy where.
"""

import hashlib
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils import DataError

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
NAME = "weights-inception-2015-12-05-6726825d.pth"
WHERE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}"
USUAL = 50_000  # samples of a figure that is called FID without a number


class Pixels(Dataset):
    """uint8 images (N, C, H, W) as torch-fidelity takes them: of three channels."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i].expand(3, -1, -1).contiguous()


def inception_figures(
    generated: Tensor,
    reference: Tensor,
    weights: Path,
    device: torch.device,
    what: str,
) -> dict[str, str | int | float]:
    """FID, IS and KID of uint8 images (N, C, H, W) against others, and all that they depend on.

    Args:
        generated, reference: what is compared.
        weights: the file `NAME`.
        device: what computes; torch-fidelity knows CUDA and the CPU.
        what: of the data set the reference is, for the report.

    Raises DataError where the package or the weights are missing, or are not the known ones.
    """
    try:
        import torch_fidelity
    except ImportError:
        raise DataError("needs the package torch-fidelity: pip install torch-fidelity") from None
    require_inception_weights(weights)
    count = len(generated)
    on = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with on:  # it takes the current one
        metrics = torch_fidelity.calculate_metrics(
            input1=Pixels(generated),
            input2=Pixels(reference),
            cuda=device.type == "cuda",
            isc=True,
            isc_splits=min(10, count),
            fid=True,
            kid=True,
            kid_subset_size=min(1000, count, len(reference)),
            feature_extractor_weights_path=str(weights),
            cache=False,
            verbose=False,
        )
    name = "FID" if count >= USUAL else f"FID@{count}"
    return {
        name: metrics["frechet_inception_distance"],
        "IS": metrics["inception_score_mean"],
        "IS_standard_deviation": metrics["inception_score_std"],
        "KID": metrics["kernel_inception_distance_mean"],
        "KID_standard_deviation": metrics["kernel_inception_distance_std"],
        "tool": f"torch-fidelity {torch_fidelity.__version__}",
        "weights_sha256": SHA256,
        "num_images": count,
        "num_reference": len(reference),
        "compared_with": what,
    }


def require_inception_weights(path: Path) -> None:
    """Raise a DataError unless the file is that of the known Inception network."""
    if not path.is_file():
        raise DataError(
            f"{path} does not exist. Where there is a network: {WHERE}\nThen name it by "
            "--inception-weights"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise DataError(
            f"{path} has the SHA-256 {found}, and not {SHA256}: with it figures would compare with "
            f"nobody's. The right one: {WHERE}"
        )
