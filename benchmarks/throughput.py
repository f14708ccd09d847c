"""How fast training is, against what the machine can do at most.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --precision bf16 --channels 96

Runs train.py on the bundled digits, enlarged to 28 x 28, and reads images/s from its metrics;
before and after each run it takes the rate of a large matrix product in the same precision. The
fraction is the FLOPs of the network's convolutions and matrix products, forward and backward, over
the time of a training step (data, optimizer, moving average and log included), divided by that
rate. Flags that it does not know go to train.py.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.runs import train
from diffusion import GaussianDiffusion
from models import build_model
from utils import DTYPES, choose_device, describe, has_native_bf16

STEPS = 80  # of a run
WARM_UP = 20  # first steps that do not count
ROUNDS = 3


def matmul_rate(precision: str, device: torch.device) -> float:
    """FLOP/s of a square matrix product, the best of three."""
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


def speeds_of(flags: list[str], precision: str) -> tuple[list[float], dict]:
    """images/s of each row of a run's metrics after the warm-up, and the run's configuration."""
    command = ["--dataset", "digits", "--image-size", "28", "--precision", precision]
    checkpoint, rows = train([*command, "--max-steps", str(STEPS), "--validation", "0", *flags])
    speeds = [row["images_per_second"] for row in rows if row["step"] > WARM_UP]
    return speeds, checkpoint["config"]


def flops_per_image(config: dict) -> float:
    """FLOPs of the convolutions and matrix products of a training step, for one image."""
    size, channels = config["model"]["image_size"], config["model"]["image_channels"]
    model, diffusion = build_model(config["model"]), GaussianDiffusion(**config["diffusion"])
    with FlopCounterMode(display=False) as counter:
        diffusion.loss(model, torch.zeros(2, channels, size, size)).backward()
    return counter.get_total_flops() / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="only this one")
    args, flags = parser.parse_known_args()
    device = choose_device("auto")
    both = ["fp32", "bf16"] if has_native_bf16(device) else ["fp32"]
    for precision in [args.precision] if args.precision else both:
        speeds, rates = [], [matmul_rate(precision, device)]
        for _ in range(ROUNDS):
            speed, config = speeds_of(flags, precision)
            speeds += speed
            rates.append(matmul_rate(precision, device))
        speed, rate, flops = (
            statistics.median(speeds),
            statistics.median(rates),
            flops_per_image(config),
        )
        print(
            f"{describe(device, precision)}, batch {config['train']['batch_size']}, "
            f"torch {torch.__version__}: {speed:.0f} images/s ({min(speeds):.0f} to "
            f"{max(speeds):.0f} in {len(speeds)} rows), {flops / 1e9:.3f} GFLOP an image; "
            f"matrix product {rate / 1e9:.0f} GFLOP/s; fraction {speed * flops / rate:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
