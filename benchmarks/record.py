"""The results of train.py in a given time: each recipe is trained, measured, sampled and exported.

    python benchmarks/record.py                            # all recipes for this machine
    python benchmarks/record.py --only "mnist, 10 minutes"

For each recipe: train.py, evaluate.py on three sets of 2,000 images, a grid of the first 64 images
by sample.py, and, for published recipes, weights and model card by export.py. The row of a recipe
in docs/results.json is replaced, and docs/results.md is written from all rows. Runs stay in
--output-dir.
"""

import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import ROOT, command_line
from checkpoints.checkpoint import load_checkpoint
from training.environment import read_environment
from training.log import read_metrics
from utils import save_whole
from visuals.curves import column

ROWS, PAGE = ROOT / "docs" / "results.json", ROOT / "docs" / "results.md"


class Recipe(NamedTuple):
    """A training run and how it is sampled."""

    train: str  # flags of train.py
    draw: str = ""  # flags of sample.py and evaluate.py
    weights: str = ""  # name in weights/ if it is published
    part: float | None = None  # minutes after which train.py is stopped and resumed
    needs_gpu: bool = False


GUIDED = "--steps 20 --guidance-scale 1.3"
CIFAR10 = "--dataset cifar10 --preset quality --compile reduce-overhead --sample-interval 0"
RECIPES = {
    "mnist, 20 epochs": Recipe("--dataset mnist --preset fast --sample-interval 5", GUIDED),
    "mnist, 10 minutes": Recipe(
        "--dataset mnist --preset laptop --max-minutes 10 --sample-interval 0", GUIDED, "mnist"
    ),
    "mnist, 10 minutes, without classes": Recipe(
        "--dataset mnist --preset laptop --no-class-conditional --max-minutes 10 "
        "--sample-interval 0",
        "--steps 20",
    ),
    "fashion_mnist, 15 minutes": Recipe(
        "--dataset fashion_mnist --preset laptop --max-minutes 15 --sample-interval 0", GUIDED
    ),
    "fashion_mnist, 60 minutes": Recipe(
        "--dataset fashion_mnist --preset laptop --max-minutes 60 --sample-interval 0",
        "--steps 20",  # after an hour closer to the training images than with guidance
        "fashion_mnist",
    ),
    "cifar10, 10 minutes on a GPU": Recipe(f"{CIFAR10} --max-minutes 10", GUIDED, needs_gpu=True),
    "cifar10, 40 minutes on a GPU, in parts of 10": Recipe(
        f"{CIFAR10} --max-minutes 40", GUIDED, part=10, needs_gpu=True
    ),
}
PROTOCOL = """\
Written by `python benchmarks/record.py`. The commands of each row reproduce it.

- **Minutes** are those of the whole `train.py`, with imports, data, validation and pictures.
- **classifier-FID** is measured between 2,000 samples by the averaged weights and the whole test
  split, in the features of the data set's classifier (`evaluate.py`; it is not the FID). The
  **floor** is the classifier-FID of 2,000 training images. Both are the mean, and in brackets the
  lowest and highest, of three seeds of sampling, not of training. Figures can be compared only if
  they are from the same classifier.
- No test image is trained on. The presets were chosen by runs that were measured on the same test
  split ([presets.md](presets.md)), by differences far above chance. These runs were made later.
- **Seconds** are those of `sample.py` for 64 images in bf16, without starting Python."""


def execute(name: str, *flags: str) -> str:
    """Run one of the commands in the project's folder; returns its output."""
    command = [sys.executable, f"{name}.py", *flags]
    print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(result.stdout, flush=True)
    return result.stdout


def train_in_parts(flags: list[str], folder: Path, minutes: float | None) -> None:
    """Run train.py to its end; stop and resume it after so many minutes each time, if given."""
    rest = [*flags, "--overwrite"]
    while True:
        command = [sys.executable, "train.py", *rest, "--output-dir", str(folder)]
        print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            process.wait(minutes and 60 * minutes)
            break
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()  # it saves a checkpoint
        rest = ["--resume"]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def run(name: str, recipe: Recipe, args) -> dict:
    """Train and measure a recipe; returns its row."""
    slug = re.sub(r"\W+", "_", name)
    folder = args.output_dir / slug
    checkpoint, report = folder / "model_final.pt", folder / "metrics.json"
    draw = ["--checkpoint", str(checkpoint), *shlex.split(recipe.draw), "--precision", "bf16"]
    draw += ["--batch-size", "250"]
    data = ["--data-dir", args.data_dir]

    if not args.trained:
        start = time.monotonic()
        train_in_parts([*shlex.split(recipe.train), *data], folder, recipe.part)
        (folder / "minutes").write_text(str((time.monotonic() - start) / 60))
    execute("evaluate", *draw, *data)
    grid = f"results_{slug}.png"
    drawn = execute("sample", *draw, "--num-images", "64", "--output", f"docs/{grid}")
    if recipe.weights:
        weights = f"weights/{recipe.weights}.safetensors"
        execute("export", "--checkpoint", str(checkpoint), "--card", str(report), weights)

    found, rows = json.loads(report.read_text()), read_metrics(folder / "metrics.jsonl")
    config = json.loads((folder / "config.json").read_text())
    train = config["train"]
    session, distance = read_environment(folder / "env.json")[-1], found["classifier"]
    machine = session["device"].get("name") or (
        f"{session['cpu']['name']}, {session['threads']} threads"
    )
    updates = rows[-1]["step"]
    return {
        "recipe": name,
        "train": train_command(recipe),
        "draw": f"--checkpoint outputs/model_final.pt {recipe.draw} --precision bf16 "
        "--batch-size 250",
        "date": session["time"][:10],
        "machine": machine,
        "precision": session["precision"],
        "torch": session["packages"]["torch"],
        "minutes": float((folder / "minutes").read_text()),
        "updates": updates,
        "epochs": updates * train["update_size"] / (config["data"]["count"] - train["validation"]),
        "images_per_second": statistics.median(column(rows, "images_per_second")[1]),
        "parameters": sum(w.numel() for w in load_checkpoint(checkpoint)["ema"].values()),
        "classifier": {key: distance[key] for key in ("sha256", "accuracy")},
        "measures": {key: value for key, value in distance.items() if isinstance(value, dict)},
        "near_copies": found["copies"]["near_copies"],
        "seconds": float(re.search(r"images in ([\d.]+) s", drawn)[1]),
        "grid": grid,
    }


def train_command(recipe: Recipe) -> str:
    """The command that a reader types."""
    command = f"python train.py {recipe.train}"
    if recipe.part is None:
        return command
    timeout = f"timeout {recipe.part:g}m"
    return f"{timeout} {command}\n{timeout} python train.py --resume  # repeat until finished"


def page(rows: list[dict]) -> str:
    """The content of docs/results.md."""
    head = "recipe | minutes | epochs | images/s | parameters | classifier-FID | floor | ratio | "
    head += "precision, recall | near-copies | seconds"
    lines = ["# Results", "", PROTOCOL, "", f"| {head} |", "| --- " * 11 + "|"]
    for row in rows:
        measures = row["measures"]
        distance = measures["classifier_fid"]
        floor = f"{distance['floor']:.3f} ({spread(distance['floor_values'])})"
        close = ", ".join(f"{measures[key]['mean']:.2f}" for key in ("precision", "recall"))
        cells = [
            row["recipe"],
            f"{row['minutes']:.1f}",
            f"{row['epochs']:.1f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['parameters']:,}",
            f"{distance['mean']:.3f} ({spread(distance['values'])})",
            floor,
            f"**{distance['ratio']:.2f}**",
            close,
            f"{100 * row['near_copies']:.2f} %",
            f"{row['seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for row in rows:
        classifier = row["classifier"]
        lines += ["", f"## {row['recipe']}", "", "```", row["train"]]
        lines += [f"python {name}.py {row['draw']}" for name in ("evaluate", "sample")]
        lines += ["```", ""]
        lines += [
            f"{row['date']}, {row['machine']}, {row['precision']}, torch {row['torch']}. "
            f"Classifier `{classifier['sha256'][:12]}`, accuracy on the test split "
            f"{100 * classifier['accuracy']:.2f} %. The first 64 samples of seed 0, not selected:",
            "",
            f"![{row['recipe']}]({row['grid']})",
        ]
    return "\n".join(lines) + "\n"


def write(rows: list[dict]) -> None:
    """Write docs/results.json and docs/results.md."""
    for path, text in [(ROWS, json.dumps(rows, indent=1) + "\n"), (PAGE, page(rows))]:
        save_whole(path, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))


def spread(values: list[float]) -> str:
    """The lowest and the highest value."""
    return f"{min(values):.3f} to {max(values):.3f}"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="*", choices=RECIPES, help="none: only write the page")
    parser.add_argument("--trained", action="store_true", help="measure finished runs")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs") / "record")
    args = parser.parse_args()
    found = {row["recipe"]: row for row in json.loads(ROWS.read_text())} if ROWS.exists() else {}
    here = [name for name in RECIPES if torch.cuda.is_available() or not RECIPES[name].needs_gpu]
    for name in here if args.only is None else args.only:
        found[name] = run(name, RECIPES[name], args)
        write([found[recipe] for recipe in RECIPES if recipe in found])
    write([found[recipe] for recipe in RECIPES if recipe in found])
    print(PAGE)


if __name__ == "__main__":
    main()
