"""What gradient checkpointing and accumulation save in memory, and what they cost in time.

    python benchmarks/memory.py
    python benchmarks/memory.py --image-size 128 --model dit

Makes updates of 64 random images, each case in processes of its own, in turns, and prints a table:
the peak of memory during the updates over that before the first of them (resident memory on a CPU,
so that this needs Linux; allocated memory on CUDA), and the time of an update, the fastest and the
median. Flags that it does not know are train.py's.
"""

import argparse
import multiprocessing
import re
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

import train
from dataset.types import Data
from training.config import make_config
from training.trainer import Trainer
from utils import choose_device, choose_precision, describe

BATCH = 64  # images of an update
CASES = {
    "batch of 64": [],
    "`--grad-checkpoint`": ["--grad-checkpoint"],
    "`--grad-accum 4`, batches of 16": ["--grad-accum", "4"],
    "both": ["--grad-checkpoint", "--grad-accum", "4"],
}
STEPS = 8  # of a process; the first does not count for the time
ROUNDS = 3


def measure(flags: list[str]) -> tuple[int, list[float], str]:
    """Peak bytes and the seconds of each update with these flags, and what computed them."""
    args = train.parse_args(["--dataset", "folder", "--image-size", "64", *flags])
    args.batch_size = BATCH // args.grad_accum
    images = torch.randint(0, 256, (BATCH, 3, args.image_size, args.image_size), dtype=torch.uint8)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    config = make_config(args, Data(images, None, []))
    trainer = Trainer(config, device, precision, args.compile)

    before, times = memory(device, "VmRSS"), []
    for _ in range(STEPS):
        start = time.perf_counter()
        loss, _ = trainer.update(images, None, 1e-4)
        loss.item()  # waits for a GPU
        times.append(time.perf_counter() - start)
    peak = memory(device, "VmHWM") - before
    return peak, times[1:], describe(device, precision)


def memory(device: torch.device, field: str) -> int:
    """Bytes that are taken: now (VmRSS), or at most so far (VmHWM), as Linux calls them."""
    if device.type == "cuda":
        now = field == "VmRSS"
        return torch.cuda.memory_allocated() if now else torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s*(\d+) kB", status)[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _, flags = parser.parse_known_args()
    peaks, times = {case: [] for case in CASES}, {case: [] for case in CASES}
    for _ in range(ROUNDS):
        for case, added in CASES.items():
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                peak, seconds, where = fresh.apply(measure, ([*flags, *added],))
            peaks[case].append(peak)
            times[case] += seconds
    print(f"{where}, torch {torch.__version__}\n")
    print(f"| an update of {BATCH} images | memory | fastest | median |")
    print("| --- | --- | --- | --- |")
    for case in CASES:
        megabytes = statistics.median(peaks[case]) / 1e6
        fastest, median = min(times[case]), statistics.median(times[case])
        print(f"| {case} | {megabytes:,.0f} MB | {fastest:.2f} s | {median:.2f} s |")


if __name__ == "__main__":
    main()
