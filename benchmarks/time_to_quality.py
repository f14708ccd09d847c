"""The quality that train.py and other libraries reach in the same time, by the same measure.

    python benchmarks/time_to_quality.py
    python benchmarks/time_to_quality.py --minutes 4 --only ours diffusers
    python benchmarks/time_to_quality.py --dataset fashion_mnist --seeds 3

Trains each contender of contenders.py for that time on the same data, in its own process, one after
the other. Each then samples 2,000 images with its own fast sampler, and their classifier-FID is
measured. Writes a row of time_to_quality.jsonl and an .npz of images per contender, and from all
rows of the same data, minutes and threads time_to_quality.md and time_to_quality.png, to
--output-dir. The same command continues after an interruption, and contenders may be run one by
one. A contender whose package is not installed is skipped, with the command that installs it.

PROTOCOL, which is printed below the table, lists what differs between contenders.
"""

import re
import shlex
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import (
    SAMPLING,
    append_row,
    command_line,
    floor_of,
    machine,
    read_rows,
    reference_for,
)
from benchmarks.contenders import (
    CONTENDERS,
    CURVE,
    IMAGES,
    WARM_UP,
    Task,
    default_contenders,
)
from benchmarks.contest import COLUMNS, compute, table
from evaluation.measures import Reference
from sampling.parts import save_npz
from training.config import PRESETS
from utils import choose_device, save_whole
from visuals.pictures import ImagePictures, save_figure

SAMPLES = 2000  # images that are measured
SIDE = 6  # rows and columns of images in the picture
PROTOCOL = f"""\
Each contender trains for the same time on the same images, in its own process, with the same number
of threads. The images are uint8 tensors in memory, so no contender spends time on a data loader.
Network, optimizer, batch size, precision and EMA of the other libraries are those of their
documentation's example for small images. The docstrings of benchmarks/contenders.py give the
address and every difference.

- The clock of the other libraries counts training steps only. It starts after {WARM_UP} steps and
  stops while they sample. Ours is that of --max-minutes: it includes reading the data, compiling
  if requested, validation, checkpoints and the last grid.
- Ours trains on 1,024 images fewer, which it holds out, if the data has a test split.
- Ours knows the length of the run, and its learning rate decays to 0 at the end. Its images before
  the end are therefore worse than those of a shorter run. The others keep a constant learning rate,
  as their examples do.
- "ours" is class-conditional and samples with guidance, which calls the network twice per step. The
  others are unconditional, as is "ours, without classes". Preset and guidance were chosen by runs
  that were measured on the same held-out images (docs/presets.md).
- The other libraries were written for GPUs and longer trainings. None of them was tuned for this
  time.
- Images are mirrored at random, for all contenders, if mirrored images look natural.
- The classifier-FID is that of evaluate.py: of all samples in the table, and of {CURVE} in the
  picture. The floor is the classifier-FID of as many training images."""


def main() -> int:
    parser = command_line(__doc__, folders=True)
    parser.add_argument("--dataset", choices=IMAGES, default="mnist")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, help="(default: those for the device)"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    log, device = args.output_dir / "time_to_quality.jsonl", choose_device("auto")
    every, rows, skipped = read_rows(log), [], []
    for seed in range(args.seeds):
        task = Task(args.dataset, args.data_dir, args.minutes, seed, args.samples, device, Path())
        reference = reference_for(task.real(), args.output_dir, device)
        setting = {
            "dataset": args.dataset,
            "minutes": args.minutes,
            "samples": args.samples,
            "machine": machine(device),
            "judge": reference.classifier.sha256,
            "seed": seed,
            "accuracy": reference.classifier.accuracy,
            "curve_samples": task.curve_samples,
            "torch": torch.__version__,
            "presets": PRESETS,  # in their present meaning, as contenders name them
            "sampling": SAMPLING,
        }
        mine = [
            row
            for row in every
            if row.items() >= setting.items()
            and row["contender"] in CONTENDERS
            and row["options"] == CONTENDERS[row["contender"]].keywords  # in today's meaning
        ]
        rows += mine
        for name in args.only or default_contenders(device):
            if name in {row["contender"] for row in mine}:
                continue
            print(f"{name}, seed {seed}", flush=True)
            if (row := run(name, task, reference, args.output_dir)) is None:
                skipped.append(f"{name}, seed {seed}")
                continue
            rows.append({**setting, **row})
            append_row(log, rows[-1])
            print(f"{name}, seed {seed}: classifier-FID {row['fid']:.3f}", flush=True)
    if rows:
        report(rows, args)
    if skipped:
        print(f"skipped: {'; '.join(skipped)}", file=sys.stderr)
    return 1 if skipped else 0


# --- a contender ---------------------------------------------------------------------------------


def run(name: str, task: Task, reference: Reference, output_dir: Path) -> dict | None:
    """Train and measure a contender; None if it failed and has printed the reason."""
    if (result := compute(name, task)) is None:
        return None
    moments = result.pop("moments")
    seconds, updates, images = moments[-1]
    array = ImagePictures().array(images)
    path = output_dir / f"time_to_quality_{task.dataset}_{slug(name)}_{task.seed}.npz"
    save_npz(path, array.shape, array.dtype, [array.tobytes()])
    return {
        "contender": name,
        "date": time.strftime("%Y-%m-%d"),
        "options": CONTENDERS[name].keywords,
        **result,
        "seconds": seconds,
        "updates": updates,
        "fid": reference.distance(images),
        "floor": floor_of(reference, len(images)),
        "curve": [
            {"seconds": s, "updates": n, "fid": reference.distance(some[:CURVE])}
            for s, n, some in moments
        ],
        "curve_floor": floor_of(reference, task.curve_samples),
        "file": path.name,
    }


def slug(name: str) -> str:
    """A name for use in file names: "ours, cnn" becomes "ours_cnn"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


# --- the table and the picture --------------------------------------------------------------------


def report(rows: list[dict], args) -> None:
    """Write time_to_quality.md and time_to_quality.png from all rows."""
    rows = sorted(rows, key=lambda row: (list(CONTENDERS).index(row["contender"]), row["seed"]))
    first = rows[0]
    seeds = len({row["seed"] for row in rows})
    head = (
        f"{args.minutes:g} minutes each on {args.dataset}, {first['machine']}, torch "
        f"{first['torch']}, {seeds} seed{'s' if seeds > 1 else ''}. Classifier-FID of "
        f"{args.samples:,} images to the held-out images, in the features of classifier "
        f"{first['judge'][:12]} (accuracy on them: {100 * first['accuracy']:.2f} %). The floor is "
        f"{first['floor']:.3f}."
    )
    path = args.output_dir / "time_to_quality.md"
    command = f"python benchmarks/time_to_quality.py --dataset {args.dataset}"
    command += f" --minutes {args.minutes:g}" + (f" --seeds {seeds}" if seeds > 1 else "")
    command += f" --samples {args.samples}" if args.samples != SAMPLES else ""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    by_default = names == default_contenders(choose_device("auto"))
    command += "" if by_default else f" --only {shlex.join(names)}"
    text = (
        f"# Time to quality\n\n`{command}`, {rows[-1]['date']}: {head}\n\n"
        f"{table(rows, COLUMNS)}\n\n![classifier-FID over time, and samples]({path.stem}.png)\n\n"
        f"## Protocol\n\n{PROTOCOL}\n"
    )
    save_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    save_figure(path.with_suffix(".png"), picture(rows, args.output_dir))
    print(f"\n{text}\n{path}")


def picture(rows: list[dict], folder: Path) -> Figure:
    """The distance of each contender over time, and below it images of each."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure = Figure(figsize=(max(7, 2.1 * len(names)), 7.2), layout="constrained")
    grid = figure.add_gridspec(2, len(names), height_ratios=[2, 1])
    axes = figure.add_subplot(grid[0, :])
    for i, name in enumerate(names):
        for row in (row for row in rows if row["contender"] == name):
            seconds, distances = zip(*((m["seconds"], m["fid"]) for m in row["curve"]), strict=True)
            label = name if row is first_of(rows, name) else None
            axes.plot(seconds, distances, ".-", color=f"C{i}", label=label)
        images = grid_of(folder / first_of(rows, name)["file"])
        below = figure.add_subplot(grid[1, i])
        below.imshow(images)
        below.set_title(name.replace(", ", ",\n"), fontsize=7)
        below.axis("off")
    axes.axhline(rows[0]["curve_floor"], color="black", linewidth=0.8, linestyle=":")
    count = min(CURVE, rows[0]["samples"])
    axes.set(xlabel="seconds of training", ylabel=f"classifier-FID of {count} images", yscale="log")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    return figure


def first_of(rows: list[dict], name: str) -> dict:
    """The row of a contender's first seed."""
    return next(row for row in rows if row["contender"] == name)


def grid_of(path: Path) -> np.ndarray:
    """The first images of an .npz as a square."""
    with np.load(path) as file:
        images: Tensor = torch.from_numpy(file["arr_0"][: SIDE**2]).movedim(-1, 1)
    return ImagePictures().grid(images, SIDE)


if __name__ == "__main__":
    sys.exit(main())
