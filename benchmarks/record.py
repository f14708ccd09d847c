"""What train.py reaches in a given time: each recipe trained, measured, drawn and exported.

    python benchmarks/record.py                            # all that the machine is for
    python benchmarks/record.py --only "mnist, 10 minutes"

For each recipe: train.py, evaluate.py on three sets of 2,000 images, a grid of the first 64 by
sample.py, and, for those that are published, export.py's weights and model card. A row for each
goes to docs/results.json, in place of that recipe's last, and docs/results.md is written anew from
all of them. Runs stay in --output-dir.
"""

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from checkpoints.checkpoint import load_checkpoint
from training.environment import read_environment
from training.log import read_metrics
from utils import save_whole
from visuals.curves import column

ROWS, PAGE = ROOT / "docs" / "results.json", ROOT / "docs" / "results.md"


class Recipe(NamedTuple):
    train: str  # flags of train.py
    draw: str = ""  # flags of sample.py and evaluate.py
    weights: str = ""  # the name in weights/, of one that is published
    part: float | None = None  # minutes, after which train.py is ended, to go on with --resume
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
        "--steps 20",  # by now nearer to the training images than with guidance
        "fashion_mnist",
    ),
    "cifar10, 10 minutes on a GPU": Recipe(f"{CIFAR10} --max-minutes 10", GUIDED, needs_gpu=True),
    "cifar10, 40 minutes on a GPU, in parts of 10": Recipe(
        f"{CIFAR10} --max-minutes 40", GUIDED, part=10, needs_gpu=True
    ),
}
PROTOCOL = """\
Written by `python benchmarks/record.py`; each row has the commands that make it again.

- **Time** is that of the whole `train.py`, from its start to its end: imports, data, validation and
  pictures are in it.
- **classifier-FID** is of sets of 2,000 images by the averaged weights, against the whole test
  split, in the features of the data set's classifier (`evaluate.py`; it is not the FID). The
  **floor** is the same for 2,000 training images. Both are the mean, the lowest and the highest of
  three seeds, of drawing and not of training. Figures compare within one classifier.
- No test image is trained on. The presets were chosen by runs that were measured on the same test
  split ([presets.md](presets.md)), by differences far above chance; these runs came afterwards.
- **Seconds** are those of `sample.py` for 64 images, in bf16, without its start."""


def script(name: str, *flags: str) -> str:
    """Run one of the scripts in the project's folder; returns what it prints."""
    command = [sys.executable, f"{name}.py", *flags]
    print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(result.stdout, flush=True)
    return result.stdout


def train_in_parts(flags: list[str], folder: Path, minutes: float | None) -> None:
    """Run train.py to its end, which SIGTERM ends after so many minutes each time, if any."""
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
            process.wait()  # it saves
        rest = ["--resume"]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def run(name: str, recipe: Recipe, args) -> dict:
    """Train and measure by a recipe; the row of it."""
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
    script("evaluate", *draw, *data)
    grid = f"results_{slug}.png"
    drawn = script("sample", *draw, "--num-images", "64", "--output", f"docs/{grid}")
    if recipe.weights:
        weights = f"weights/{recipe.weights}.safetensors"
        script("export", "--checkpoint", str(checkpoint), "--card", str(report), weights)

    found, rows = json.loads(report.read_text()), read_metrics(folder / "metrics.jsonl")
    config = json.loads((folder / "config.json").read_text())
    train = config["train"]
    session, distance = read_environment(folder / "env.json")[-1], found["classifier"]
    speeds, updates = column(rows, "images_per_second")[1], rows[-1]["step"]
    return {
        "recipe": name,
        "train": train_command(recipe),
        "draw": f"--checkpoint outputs/model_final.pt {recipe.draw} --precision bf16 "
        "--batch-size 250",
        "date": session["time"][:10],
        "machine": f"{session['cpu']['name']}, {session['threads']} threads"
        if session["device"]["type"] == "cpu"
        else session["device"]["name"],
        "precision": session["precision"],
        "torch": session["packages"]["torch"],
        "minutes": float((folder / "minutes").read_text()),
        "updates": updates,
        "epochs": updates * train["update_size"] / (config["data"]["count"] - train["validation"]),
        "images_per_second": statistics.median(speeds),
        "parameters": sum(w.numel() for w in load_checkpoint(checkpoint)["ema"].values()),
        "classifier": {key: distance[key] for key in ("sha256", "accuracy")},
        "measures": {key: value for key, value in distance.items() if isinstance(value, dict)},
        "near_copies": found["copies"]["near_copies"],
        "seconds": float(re.search(r"images in ([\d.]+) s", drawn)[1]),
        "grid": grid,
    }


def train_command(recipe: Recipe) -> str:
    """What a reader types."""
    command = f"python train.py {recipe.train}"
    if recipe.part is None:
        return command
    timeout = f"timeout {recipe.part:g}m"
    return f"{timeout} {command}\n{timeout} python train.py --resume  # until it is done"


def page(rows: list[dict]) -> str:
    """docs/results.md."""
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
        judge = row["classifier"]
        lines += ["", f"## {row['recipe']}", "", "```", row["train"]]
        lines += [f"python {name}.py {row['draw']}" for name in ("evaluate", "sample")]
        lines += ["```", ""]
        lines += [
            f"{row['date']}, {row['machine']}, {row['precision']}, torch {row['torch']}. "
            f"Classifier `{judge['sha256'][:12]}`, right on {100 * judge['accuracy']:.2f} % of the "
            "test split. The first 64 images of seed 0, none left out:",
            "",
            f"![{row['recipe']}]({row['grid']})",
        ]
    return "\n".join(lines) + "\n"


def write(rows: list[dict]) -> None:
    """docs/results.json and docs/results.md."""
    for path, text in [(ROWS, json.dumps(rows, indent=1) + "\n"), (PAGE, page(rows))]:
        save_whole(path, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))


def spread(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=RECIPES, help="none writes the page alone")
    parser.add_argument("--trained", action="store_true", help="measure the runs that are there")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs") / "record")
    args = parser.parse_args()
    found = {row["recipe"]: row for row in json.loads(ROWS.read_text())} if ROWS.exists() else {}
    here = [name for name in RECIPES if torch.cuda.is_available() or not RECIPES[name].needs_gpu]
    for name in here if args.only is None else args.only:
        found[name] = run(name, RECIPES[name], args)
        write([found[name] for name in RECIPES if name in found])
    write([found[name] for name in RECIPES if name in found])
    print(PAGE)


if __name__ == "__main__":
    main()
