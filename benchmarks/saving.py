"""What saving checkpoints costs a training.

    python benchmarks/saving.py
    python benchmarks/saving.py --channels 128 --rounds 10

Makes rounds of updates of random images, by turns without and with a checkpoint that is begun after
the first update, as train.py does it: copied, then written by a thread while updates go on. Prints
the time of the copy, of the write, and what a round with a checkpoint takes more than one without,
as a share of the time between two checkpoints. Flags that it does not know are train.py's.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

import train
from checkpoints.checkpoint import save_checkpoint
from dataset.types import Data
from training.config import make_config
from training.saver import Saver, on_host
from training.trainer import Trainer
from utils import choose_device, choose_precision, describe

UPDATES = 8  # of a round
MINUTES = (1, 10)  # between two checkpoints; the second is train.py's default


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    own, flags = parser.parse_known_args()
    args = train.parse_args(["--dataset", "mnist", *flags])
    images = torch.randint(0, 256, (args.batch_size or 128, 1, 28, 28), dtype=torch.uint8)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    trainer = Trainer(make_config(args, Data(images, None, [])), device, precision, None)
    saver, copies, writes = Saver(print), [], []
    times = {False: [], True: []}

    def update() -> None:
        trainer.update(images, None, 1e-4)

    def save(folder: str) -> None:
        start = time.perf_counter()
        state = on_host(trainer.state())
        copies.append(time.perf_counter() - start)

        def write() -> None:
            start = time.perf_counter()
            save_checkpoint(Path(folder, "checkpoint.pt"), state)
            writes.append(time.perf_counter() - start)

        saver.start(write)

    for _ in range(3):
        update()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for _ in range(own.rounds):
            for saves in (False, True):
                start = time.perf_counter()
                update()
                if saves:
                    save(folder)
                for _ in range(UPDATES - 1):
                    update()
                times[saves].append(time.perf_counter() - start)
                saver.wait()
        size = Path(folder, "checkpoint.pt").stat().st_size

    lost = [saved - plain for plain, saved in zip(times[False], times[True], strict=True)]
    copy, write, cost = (1e3 * statistics.median(values) for values in (copies, writes, lost))
    per_update = 1e3 * statistics.median(times[False]) / UPDATES
    print(f"{describe(device, precision)}, torch {torch.__version__}")
    print(f"an update of {len(images)}: {per_update:.0f} ms; a checkpoint: {size / 1e6:.0f} MB")
    print(f"the copy: {copy:.0f} ms, the write beside the training: {write:.0f} ms")
    print(
        f"time lost to a checkpoint: {cost:.0f} ms ({1e3 * min(lost):.0f} to "
        f"{1e3 * max(lost):.0f} in {own.rounds} rounds)"
    )
    for minutes in MINUTES:
        print(f"every {minutes} min: {cost / (600 * minutes):.3f} % of the time")


if __name__ == "__main__":
    main()
