"""What each library makes of the same minutes: train.py beside others, by the same measure.

    python benchmarks/time_to_quality.py
    python benchmarks/time_to_quality.py --minutes 4 --only ours diffusers
    python benchmarks/time_to_quality.py --dataset fashion_mnist --seeds 3

Lets each contender of contenders.py train for that time on the same data, in a process of its own,
one after the other; each draws 2,000 images by its own fast sampler, and all are measured by their
classifier-FID. Writes a row of time_to_quality.jsonl for each, its images as an .npz, and from all
rows of the same data, minutes and threads time_to_quality.md and time_to_quality.png, to
--output-dir. With the same folder it goes on where it was, and contenders may be run separately. A
contender whose package is not installed is left out, with the command that installs it.

What is not alike, and cannot be, is in PROTOCOL, which stands below the table.
"""

import argparse
import json
import re
import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.contenders import CONTENDERS, CURVE, WARM_UP, Task, usual
from benchmarks.contest import COLUMNS, compute, table
from benchmarks.runs import SAMPLING, Measured, measured_by
from dataset.items import kind_of
from dataset.registry import DATASETS
from sampling.parts import save_npz
from training.config import PRESETS
from utils import choose_device, describe, save_whole
from visuals.pictures import ImagePictures, save_figure

SAMPLES = 2000  # images that are measured
SIDE = 6  # images of a row, and of a column, of the picture
PROTOCOL = f"""\
Each contender trains for the same time on the same images (uint8 in memory, without a data loader,
which spares the others the decoding), in a process of its own, with as many threads. Each has the
network, optimizer, batch, precision and EMA of its documentation's example for small images; the
docstrings of benchmarks/contenders.py give the address and whatever differs.

- The others' clock runs in updates alone; {WARM_UP} before it starts are free, and it stands still
  while they draw. Ours is that of --max-minutes: reading the data, compiling if that is asked for,
  validation, checkpoints and the last grid are on it.
- Ours holds 1,024 images out of the training where there is a test split; the others use all.
- Ours lets its learning rate decay to 0 at the end of the time, which it is told; so its images on
  the way are not yet what a shorter run would have come to. The others keep theirs constant, as
  their examples do.
- "ours" is told the classes and drawn with guidance, which calls the network twice a step; the
  others learn without, as "ours, without classes" does. Its preset and its guidance were chosen by
  runs that were measured on the same held-out images (docs/presets.md).
- They were written for GPUs and longer trainings; nothing of theirs is tuned for this time.
- Mirroring is as suits the data set, for all.
- The classifier-FID is that of evaluate.py: of all samples in the table, of {CURVE} in the picture,
  where the floor is that of {CURVE} training images. The floor is what real images get."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    images = [name for name, source in DATASETS.items() if kind_of(source.shape) == "images"]
    parser.add_argument("--dataset", choices=images, default="mnist")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="(default: for the device)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "benchmarks")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    log, device = args.output_dir / "time_to_quality.jsonl", choose_device("auto")
    every = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    rows, left_out = [], []
    for seed in range(args.seeds):
        task = Task(args.dataset, args.data_dir, args.minutes, seed, args.samples, device, Path())
        measured = measured_by(task.real(), args.output_dir, device)
        setting = {
            "dataset": args.dataset,
            "minutes": args.minutes,
            "samples": args.samples,
            "machine": describe(device, "fp32").removesuffix(", fp32"),
            "judge": measured.judge,
            "seed": seed,
            "accuracy": measured.accuracy,
            "curve_samples": min(CURVE, args.samples),
            "torch": torch.__version__,
            "presets": PRESETS,  # as they are now, which contenders name
            "sampling": SAMPLING,
        }
        mine = [
            row
            for row in every
            if row.items() >= setting.items()
            and row["contender"] in CONTENDERS
            and row["options"] == CONTENDERS[row["contender"]].keywords  # as they are now
        ]
        rows += mine
        for name in args.only or usual(device):
            if name in {row["contender"] for row in mine}:
                continue
            print(f"{name}, seed {seed}", flush=True)
            if (row := run(name, task, measured, args.output_dir)) is None:
                left_out.append(f"{name}, seed {seed}")
                continue
            rows.append({**setting, **row})
            with open(log, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{name}, seed {seed}: classifier-FID {row['fid']:.3f}", flush=True)
    if rows:
        report(rows, args)
    if left_out:
        print(f"left out: {'; '.join(left_out)}", file=sys.stderr)
    return 1 if left_out else 0


# --- a contender ---------------------------------------------------------------------------------


def run(name: str, task: Task, measured: Measured, output_dir: Path) -> dict | None:
    """Train and measure a contender; None if that failed, after it has said why."""
    found, images = compute(name, task)
    if found is None:
        return None
    *_, last = found["moments"]
    array = ImagePictures().array(images[-1])
    path = output_dir / f"time_to_quality_{task.dataset}_{slug(name)}_{task.seed}.npz"
    save_npz(path, array.shape, array.dtype, [array.tobytes()])
    curve = [measured.reference.distance(some[:CURVE]) for some in images]
    return {
        "contender": name,
        "date": time.strftime("%Y-%m-%d"),
        "options": CONTENDERS[name].keywords,
        **{key: value for key, value in found.items() if key != "moments"},
        "seconds": last["seconds"],
        "updates": last["updates"],
        "fid": measured.reference.distance(images[-1]),
        "floor": measured.floor(len(images[-1])),
        "curve": [
            {**moment, "fid": fid} for moment, fid in zip(found["moments"], curve, strict=True)
        ],
        "curve_floor": measured.floor(len(images[-1][:CURVE])),
        "file": path.name,
    }


def slug(name: str) -> str:
    """A name as a part of a file's: "ours, cnn" as "ours_cnn"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


# --- the table and the picture --------------------------------------------------------------------


def report(rows: list[dict], args) -> None:
    """Write time_to_quality.md and time_to_quality.png of all rows."""
    rows = sorted(rows, key=lambda row: (list(CONTENDERS).index(row["contender"]), row["seed"]))
    first = rows[0]
    seeds = len({row["seed"] for row in rows})
    head = (
        f"{args.minutes:g} minutes each on {args.dataset}, {first['machine']}, torch "
        f"{first['torch']}, {seeds} seed{'s' if seeds > 1 else ''}. Classifier-FID of "
        f"{args.samples:,} images to the held-out ones, in the features of classifier "
        f"{first['judge'][:12]} (right on {100 * first['accuracy']:.2f} % of them); as many "
        f"training images: {first['floor']:.3f}."
    )
    path = args.output_dir / "time_to_quality.md"
    command = f"python benchmarks/time_to_quality.py --dataset {args.dataset}"
    command += f" --minutes {args.minutes:g}" + (f" --seeds {seeds}" if seeds > 1 else "")
    command += f" --samples {args.samples}" if args.samples != SAMPLES else ""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    usually = names == usual(choose_device("auto"))
    command += "" if usually else f" --only {shlex.join(names)}"
    text = (
        f"# Time to quality\n\n`{command}`, {rows[-1]['date']}: {head}\n\n"
        f"{table(rows, COLUMNS)}\n\n![the distance over the time]({path.stem}.png)\n\n"
        f"## Protocol\n\n{PROTOCOL}\n"
    )
    save_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    save_figure(path.with_suffix(".png"), picture(rows, args.output_dir))
    print(f"\n{text}\n{path}")


def picture(rows: list[dict], folder: Path) -> Figure:
    """The distance over the time, a line for each contender's mean, and below it images of each."""
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
