"""How fast training is, against what the machine can do at most.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --precision bf16 --channels 96
    python benchmarks/throughput.py --contenders                        # beside other libraries
    python benchmarks/throughput.py --contenders diffusers smalldiffusion
    python benchmarks/throughput.py --dataset cifar10 --minutes 3 \\
        --contenders "ours, quality" "ours, quality, eager fp32" "diffusers, 6.8 M, bf16"

Runs train.py on the bundled digits, enlarged to 28 x 28, and reads images/s from its metrics;
before and after each run it takes the rate of a large matrix product in the same precision. The
fraction is the FLOPs of the network's convolutions and matrix products, forward and backward, over
the time of a training step (data, optimizer, moving average and log included), divided by that
rate. Flags that it does not know go to train.py.

With --contenders those of time_to_quality.py are trained on MNIST for a minute each, by its clock
and in a process of its own, and then draw 64 images. The last example is for a GPU: a larger
network as it is trained there, the same in fp32 and not compiled, and diffusers' loop with as many
parameters.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.contenders import CONTENDERS, Task, usual
from benchmarks.contest import COLUMNS, compute, table
from benchmarks.rates import flops_per_image, matmul_rate
from benchmarks.runs import train
from dataset.items import kind_of
from dataset.registry import DATASETS
from utils import choose_device, describe, has_native_bf16

STEPS = 80  # of a run
WARM_UP = 20  # first steps that do not count
ROUNDS = 3
COMPARED = ["contender", "parameters", "precision", "batch", "images/s", "GFLOP an image"]
COMPARED += ["of the matrix product", "sampler", "NFE", "64 images, s"]


def speeds_of(flags: list[str], precision: str) -> tuple[list[float], dict]:
    """images/s of each row of a run's metrics after the warm-up, and the run's configuration."""
    command = ["--dataset", "digits", "--image-size", "28", "--precision", precision]
    command += ["--max-steps", str(STEPS), "--validation", "0", *flags]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, rows = train(command, folder)
    speeds = [row["images_per_second"] for row in rows if row["step"] > WARM_UP]
    return speeds, checkpoint["config"]


def compare(names: list[str], task: Task) -> int:
    """Print a table of contenders; returns 1 if one could not be had."""
    found = {name: compute(name, task) for name in names}
    rows = [{"contender": name, **result} for name, (result, _) in found.items() if result]
    print(f"{describe(task.device, 'fp32').removesuffix(', fp32')}, torch {torch.__version__}\n")
    print(table(rows, {name: COLUMNS[name] for name in COMPARED}))
    return int(len(rows) < len(names))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    images = [name for name, source in DATASETS.items() if kind_of(source.shape) == "images"]
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="only this one")
    parser.add_argument("--contenders", nargs="*", choices=CONTENDERS, help="none: for the device")
    parser.add_argument("--minutes", type=float, help="of each contender (default: 1)")
    parser.add_argument("--dataset", choices=images, help="of contenders (default: mnist)")
    parser.add_argument("--data-dir", help="where it is (default: data)")
    args, flags = parser.parse_known_args()
    device = choose_device("auto")
    if args.contenders is None and (args.minutes or args.dataset or args.data_dir):
        parser.error("--minutes, --dataset and --data-dir are for --contenders")
    if args.contenders is not None:
        if flags or args.precision:
            parser.error("--contenders have the flags and the precision that contenders.py gives")
        data_dir = args.data_dir or str(ROOT / "data")
        minutes = args.minutes or 1
        task = Task(args.dataset or "mnist", data_dir, minutes, 0, 1, device, Path())
        return compare(args.contenders or usual(device), task)
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
