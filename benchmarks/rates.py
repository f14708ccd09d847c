"""The clock; what a network asks of a machine, and what the machine can do at most."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion import GaussianDiffusion
from models import build_model
from utils import DTYPES


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_rate(precision: str, device: torch.device) -> float:
    """FLOP/s of a square matrix product, the best of three.

    In fp32 a GPU's convolutions take TF32 by default, and this does not: shares there may exceed 1.
    """
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device, dtype=DTYPES[precision] or torch.float32)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(4):
            product = a @ b
        product[0, 0].item()  # waits for a GPU
        times.append((time.perf_counter() - start) / 4)
    return 2 * n**3 / min(times[1:])


def flops_per_image(config: dict) -> float:
    """FLOPs of the convolutions and matrix products of a training step, for one image."""
    size, channels = config["model"]["image_size"], config["model"]["image_channels"]
    model, diffusion = build_model(config["model"]), GaussianDiffusion(**config["diffusion"])
    y = torch.zeros(2, dtype=torch.int64) if config["model"].get("num_classes") else None
    with FlopCounterMode(display=False) as counter:
        diffusion.loss(model, torch.zeros(2, channels, size, size), y).backward()
    return counter.get_total_flops() / 2
