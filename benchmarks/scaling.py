"""The speed of training by number of processes, batch size and resolution.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --processes 1 2 4 --threads 1

Makes training steps of random images with the default network of train.py, each case in processes
of its own, and prints the images/s of the median step and of the fastest. Cases run in turns, so
that a slower machine slows down all of them. Unknown flags are passed to train.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import command_line, machine, step_seconds, trainer_for
from cli.training import TRAIN
from distributed import is_main, own_device, process_group, world_size
from utils import choose_device

WARM_UP = 2  # first steps, which are not measured
STEPS = 8
ROUNDS = 3


def measure(batch: int, size: int, channels: int, flags: list[str]) -> dict | None:
    """Seconds of each step of `batch` images in all processes; None except in the main process."""
    config = TRAIN.parse(["--dataset", "folder", "--image-size", str(size), *flags])
    device = own_device(choose_device(config.device))
    with process_group(device):
        config.batch_size = batch // world_size()
        shape = (config.batch_size, channels, size, size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        trainer = trainer_for(config, images, device)
        seconds = step_seconds(trainer, images, WARM_UP + STEPS)[WARM_UP:]
        where = f"{machine(device).partition(',')[0]}, {trainer.precision}"
        return {"seconds": seconds, "where": where} if is_main() else None


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
    threads = torch.get_num_threads()
    parser = command_line(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=threads, help="of a single process")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    own, flags = parser.parse_known_args()
    if own.worker:
        what, result = json.loads(own.worker)
        if measured := measure(*what, flags):
            Path(result).write_text(json.dumps(measured))
        return

    cases = {(1, 1, 128, 28, 1): [], (1, own.threads, 128, 28, 1): []}
    cases |= {(count, 1, 128, 28, 1): [] for count in own.processes}
    cases |= {(1, own.threads, batch, 28, 1): [] for batch in own.batches}
    cases |= {(1, own.threads, 64 * 32**2 // size**2 or 1, size, 3): [] for size in own.sizes}
    for _ in range(ROUNDS):
        for case, seconds in cases.items():
            measured = run(case, flags)
            seconds += measured["seconds"]
    print(f"{measured['where']}, torch {torch.__version__}\n")
    print("| processes x threads | images per step | size | images/s | of the fastest step |")
    print("| --- | --- | --- | --- | --- |")
    for (processes, threads, batch, size, channels), seconds in cases.items():
        median, fastest = (batch / s for s in (statistics.median(seconds), min(seconds)))
        print(
            f"| {processes} x {threads} | {batch} | {channels} x {size} x {size} | "
            f"{median:,.0f} | {fastest:,.0f} |"
        )


if __name__ == "__main__":
    main()
