"""How fast a training step is, against what the machine can do at most.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --image-size 32 --image-channels 3 --batch-size 256

Prints, for each precision, images/s of the training step, the rate of a large matrix product taken
just before and after it, and what fraction of that rate the step reaches: FLOPs of its convolutions
and matrix products (forward and backward, as torch.utils.flop_counter counts them) over its time.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils.flop_counter import FlopCounterMode

from data import Images
from train import Trainer, make_config, parse_args
from utils import DTYPES, choose_device, describe, has_native_bf16


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function, repeats: int, device: torch.device) -> float:
    """Mean time of a call."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def matmul_rate(precision: str, device: torch.device) -> float:
    """FLOP/s of a square matrix product."""
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device, dtype=DTYPES[precision] or torch.float32)
    torch.mm(a, b)
    return 2 * n**3 / seconds(lambda: torch.mm(a, b), 8, device)


def flops_per_image(trainer: Trainer, images: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        trainer.update(images[:2], 0.0)
    return counter.get_total_flops() / 2


def measure(args, device: torch.device, precision: str) -> str:
    shape = (args.batch_size, args.image_channels, args.image_size, args.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8)
    flags = ["--dataset", "digits", "--precision", precision, *args.train_flags]
    options = parse_args(flags)
    trainer = Trainer(
        make_config(options, Images(images, None, [])), device, precision, options.compile
    )
    flops = flops_per_image(trainer, images)
    for _ in range(3):
        trainer.update(images, 1e-4)
    steps, rates = [], [matmul_rate(precision, device)]
    for _ in range(args.rounds):
        steps.append(seconds(lambda: trainer.update(images, 1e-4), args.repeats, device))
        rates.append(matmul_rate(precision, device))
    speed, rate = args.batch_size / statistics.median(steps), statistics.median(rates)
    spread = args.batch_size / max(steps), args.batch_size / min(steps)
    return (
        f"{precision:5} {speed:8.0f} images/s ({spread[0]:.0f} to {spread[1]:.0f})  "
        f"matrix product {rate / 1e9:8.0f} GFLOP/s  fraction {speed * flops / rate:.2f}  "
        f"({flops / 1e9:.3f} GFLOP an image)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--image-channels", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5, help="median over so many")
    parser.add_argument("--repeats", type=int, default=6, help="steps of a round")
    args, args.train_flags = (
        parser.parse_known_args()
    )  # the rest goes to train.py, --channels 96 say
    device = choose_device(args.device)
    print(f"{describe(device, '')[:-2]}, torch {torch.__version__}, batch {args.batch_size}")
    for precision in ["fp32", "bf16"] if has_native_bf16(device) else ["fp32"]:
        print(measure(args, device, precision), flush=True)


if __name__ == "__main__":
    main()
