"""Memory that gradient checkpointing and accumulation save, and the time that they cost.

    python benchmarks/memory.py
    python benchmarks/memory.py --image-size 128 --model dit

Makes training steps of 64 random images, each case in processes of its own, in turns, and prints a
table: the peak memory above that before the first step (resident memory on a CPU, which needs
Linux; allocated memory on CUDA), and the fastest and the median time of a step. Unknown flags are
passed to train.py.
"""

import re
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import command_line, in_new_process, step_seconds, trainer_for
from cli.training import TRAIN
from utils import choose_device, describe

BATCH = 64  # images per training step
CASES = {
    "batch of 64": [],
    "`--grad-checkpoint`": ["--grad-checkpoint"],
    "`--grad-accum 4`, batches of 16": ["--grad-accum", "4"],
    "both": ["--grad-checkpoint", "--grad-accum", "4"],
}
STEPS = 8  # per process; the first is a warm-up
ROUNDS = 3


def measure(flags: list[str]) -> tuple[int, list[float], str]:
    """Peak memory in bytes, the seconds of each step, and what computes, for flags of train.py."""
    config = TRAIN.parse(["--dataset", "folder", "--image-size", "64", *flags])
    config.batch_size = BATCH // config.grad_accum
    shape = (BATCH, 3, config.image_size, config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    device = choose_device(config.device)
    trainer = trainer_for(config, images, device)
    before = memory(device, "VmRSS")
    seconds = step_seconds(trainer, images, STEPS)[1:]
    return memory(device, "VmHWM") - before, seconds, describe(device, trainer.precision)


def memory(device: torch.device, field: str) -> int:
    """Bytes in use now (VmRSS) or at the peak so far (VmHWM); the names are those of Linux."""
    if device.type == "cuda":
        now = field == "VmRSS"
        return torch.cuda.memory_allocated() if now else torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s*(\d+) kB", status)[1])


def main() -> None:
    _, flags = command_line(__doc__).parse_known_args()
    peaks, seconds = {case: [] for case in CASES}, {case: [] for case in CASES}
    for _ in range(ROUNDS):
        for case, added in CASES.items():
            peak, times, where = in_new_process(measure, [*flags, *added])
            peaks[case].append(peak)
            seconds[case] += times
    print(f"{where}, torch {torch.__version__}\n")
    print(f"| a training step of {BATCH} images | memory | fastest | median |")
    print("| --- | --- | --- | --- |")
    for case in CASES:
        megabytes = statistics.median(peaks[case]) / 1e6
        fastest, median = min(seconds[case]), statistics.median(seconds[case])
        print(f"| {case} | {megabytes:,.0f} MB | {fastest:.2f} s | {median:.2f} s |")


if __name__ == "__main__":
    main()
