"""The speed of training, and its share of what the machine can do at most.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --precision bf16 --channels 96
    python benchmarks/throughput.py --contenders                        # and other libraries
    python benchmarks/throughput.py --contenders diffusers smalldiffusion
    python benchmarks/throughput.py --dataset cifar10 --minutes 3 \\
        --contenders "ours, quality" "ours, quality, eager fp32" "diffusers, 6.8 M, bf16"

Runs train.py on the bundled digits, enlarged to 28 x 28, and reads images/s from its metrics.
Before and after each run it measures the FLOP/s of a large matrix product in the same precision.
The share is the FLOPs of the network's convolutions and matrix products, forward and backward,
divided by the time of a training step (which includes data, optimizer, moving average and log) and
by that rate. Unknown flags are passed to train.py.

--contenders trains those of time_to_quality.py, on MNIST for a minute each, and then samples 64
images. The last example is for a GPU: a larger network as it is trained there, the same in fp32
without compilation, and one of diffusers with as many parameters.
"""

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import ROOT, command_line, flops_per_image, machine, matmul_rate, train
from benchmarks.contenders import CONTENDERS, IMAGES, Task, default_contenders
from benchmarks.contest import COLUMNS, compute, table
from utils import choose_device, describe, has_native_bf16

STEPS = 80  # of a run
WARM_UP = 20  # first steps, which are not measured
ROUNDS = 3
COMPARED = ["contender", "parameters", "precision", "batch", "images/s", "GFLOPs per image"]
COMPARED += ["share", "sampler", "NFE", "64 images, s"]


def speeds_of(flags: list[str], precision: str) -> tuple[list[float], dict]:
    """images/s of each row of a run's metrics after the warm-up, and the run's configuration."""
    command = ["--dataset", "digits", "--image-size", "28", "--precision", precision]
    command += ["--max-steps", str(STEPS), "--validation", "0", *flags]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, rows = train(command, folder)
    speeds = [row["images_per_second"] for row in rows if row["step"] > WARM_UP]
    return speeds, checkpoint["config"]


def compare(names: list[str], task: Task) -> int:
    """Print a table of contenders; returns 1 if one of them failed."""
    found = {name: compute(name, task) for name in names}
    rows = [{"contender": name, **result} for name, result in found.items() if result]
    print(f"{machine(task.device)}, torch {torch.__version__}\n")
    print(table(rows, {name: COLUMNS[name] for name in COMPARED}))
    return int(len(rows) < len(names))


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="only this precision")
    parser.add_argument(
        "--contenders", nargs="*", choices=CONTENDERS, help="(default: those for the device)"
    )
    parser.add_argument("--minutes", type=float, help="of each contender (default: 1)")
    parser.add_argument("--dataset", choices=IMAGES, help="of contenders (default: mnist)")
    parser.add_argument("--data-dir", help="of contenders (default: data)")
    args, flags = parser.parse_known_args()
    device = choose_device("auto")
    if args.contenders is None and (args.minutes or args.dataset or args.data_dir):
        parser.error("--minutes, --dataset and --data-dir have no effect without --contenders")
    if args.contenders is not None:
        if flags or args.precision:
            parser.error("--contenders have fixed flags and precision, see contenders.py")
        data_dir, minutes = args.data_dir or str(ROOT / "data"), args.minutes or 1
        task = Task(args.dataset or "mnist", data_dir, minutes, 0, 1, device, Path())
        return compare(args.contenders or default_contenders(device), task)
    both = ["fp32", "bf16"] if has_native_bf16(device) else ["fp32"]
    for precision in [args.precision] if args.precision else both:
        speeds, rates = [], [matmul_rate(precision, device)]
        for _ in range(ROUNDS):
            more, config = speeds_of(flags, precision)
            speeds += more
            rates.append(matmul_rate(precision, device))
        speed, rate = statistics.median(speeds), statistics.median(rates)
        flops = flops_per_image(config)
        print(
            f"{describe(device, precision)}, batch size {config['train']['batch_size']}, "
            f"torch {torch.__version__}: {speed:.0f} images/s ({min(speeds):.0f} to "
            f"{max(speeds):.0f} in {len(speeds)} rows), {flops / 1e9:.3f} GFLOPs per image; "
            f"matrix product {rate / 1e9:.0f} GFLOP/s; share {speed * flops / rate:.2f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
