"""The cost of saving checkpoints during training.

    python benchmarks/saving.py
    python benchmarks/saving.py --channels 128 --rounds 10

Makes rounds of training steps on random images, in turns without and with a checkpoint that starts
after the first step. As in train.py, the state is copied, and a thread writes the copy while
training continues. Prints the time of the copy, the time of the write, and the extra time of a
round with a checkpoint as a share of the time between two checkpoints. Unknown flags are passed to
train.py.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import command_line, step_seconds, trainer_for
from checkpoints.checkpoint import save_checkpoint
from cli.training import TRAIN
from training.saver import Saver, on_host
from utils import choose_device, describe

STEPS = 8  # per round
MINUTES = (1, 10)  # between two checkpoints; 10 is the default of train.py


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    own, flags = parser.parse_known_args()
    config = TRAIN.parse(["--dataset", "mnist", *flags])
    images = torch.randint(0, 256, (config.batch_size or 128, 1, 28, 28), dtype=torch.uint8)
    device = choose_device(config.device)
    trainer = trainer_for(config, images, device)
    saver, copies, writes = Saver(print), [], []
    rounds = {False: [], True: []}  # seconds, without and with a checkpoint

    def save(path: Path) -> None:
        start = time.perf_counter()
        state = on_host(trainer.state())
        copies.append(time.perf_counter() - start)

        def write() -> None:
            start = time.perf_counter()
            save_checkpoint(path, state)
            writes.append(time.perf_counter() - start)

        saver.start(write)

    step_seconds(trainer, images, 3)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder, "checkpoint.pt")
        for _ in range(own.rounds):
            for saves, seconds in rounds.items():
                start = time.perf_counter()
                step_seconds(trainer, images, 1)
                if saves:
                    save(path)
                step_seconds(trainer, images, STEPS - 1)
                seconds.append(time.perf_counter() - start)
                saver.wait()
        megabytes = path.stat().st_size / 1e6

    lost = [saved - plain for plain, saved in zip(*rounds.values(), strict=True)]
    copy, write, cost = (1e3 * statistics.median(values) for values in (copies, writes, lost))
    per_step = 1e3 * statistics.median(rounds[False]) / STEPS
    print(f"{describe(device, trainer.precision)}, torch {torch.__version__}")
    print(f"a step of {len(images)} images: {per_step:.0f} ms; a checkpoint: {megabytes:.0f} MB")
    print(f"the copy: {copy:.0f} ms; the write, during training: {write:.0f} ms")
    print(
        f"time lost per checkpoint: {cost:.0f} ms ({1e3 * min(lost):.0f} to "
        f"{1e3 * max(lost):.0f} in {own.rounds} rounds)"
    )
    for minutes in MINUTES:
        print(f"every {minutes} min: {cost / (600 * minutes):.3f} % of the time")


if __name__ == "__main__":
    main()
