"""How the speed of training depends on processes, batch and resolution.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --processes 1 2 4 --threads 1

Makes updates of random images with train.py's default network, each case in processes of their own,
and prints images/s: of the median update, and the fastest. Cases run in turns, so that a machine
that slows down slows down all. Flags that it does not know are train.py's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

import train
from dataset.types import Data
from distributed import is_main, own_device, process_group, world_size
from training.config import make_config
from training.trainer import Trainer
from utils import choose_device, choose_precision, describe

WARM = 2  # updates that are not measured
STEPS = 8
ROUNDS = 3


def measure(batch: int, size: int, channels: int, flags: list[str]) -> dict:
    """Seconds of each update of `batch` images, of all processes, and what computed them."""
    args = train.parse_args(["--dataset", "folder", "--image-size", str(size), *flags])
    device = own_device(choose_device(args.device))
    precision = choose_precision(args.precision, device)
    with process_group(device):
        args.batch_size = batch // world_size()
        images = torch.randint(0, 256, (args.batch_size, channels, size, size), dtype=torch.uint8)
        config = make_config(args, Data(images, None, []))
        trainer, times = Trainer(config, device, precision, args.compile), []
        for _ in range(WARM + STEPS):
            start = time.perf_counter()
            loss, _ = trainer.update(images, None, 1e-4)
            loss.item()  # waits for a GPU
            times.append(time.perf_counter() - start)
    return {"times": times[WARM:], "where": describe(device, precision), "main": is_main()}


def run(case: tuple[int, int, int, int, int], flags: list[str]) -> dict:
    """The measurement of a case (processes, threads, batch, size, channels)."""
    processes, threads, *what = case
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        worker = [__file__, "--worker", json.dumps([what, str(result)]), *flags]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), *worker]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, env=environment)
        return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="of a single process; several have one each",
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    own, flags = parser.parse_known_args()
    if own.worker:
        what, result = json.loads(own.worker)
        measured = measure(*what, flags)
        if measured["main"]:
            Path(result).write_text(json.dumps(measured))
        return

    cases = {(1, 1, 128, 28, 1): [], (1, own.threads, 128, 28, 1): []}
    cases |= {(count, 1, 128, 28, 1): [] for count in own.processes}
    cases |= {(1, own.threads, batch, 28, 1): [] for batch in own.batches}
    cases |= {(1, own.threads, 64 * 32**2 // size**2 or 1, size, 3): [] for size in own.sizes}
    for _ in range(ROUNDS):
        for case, times in cases.items():
            measured = run(case, flags)
            times += measured["times"]
    print(
        f"{measured['where'].partition(',')[0]}, {measured['where'].rpartition(', ')[2]}, "
        f"torch {torch.__version__}\n"
    )
    print("| processes x threads | images of an update | size | images/s | of the fastest update |")
    print("| --- | --- | --- | --- | --- |")
    for (processes, threads, batch, size, channels), times in cases.items():
        median, fastest = (batch / t for t in (statistics.median(times), min(times)))
        print(
            f"| {processes} x {threads} | {batch} | {channels} x {size} x {size} | "
            f"{median:,.0f} | {fastest:,.0f} |"
        )


if __name__ == "__main__":
    main()
