"""What each choice of train.py is worth: one changed at a time, the rest as it is by default.

    python benchmarks/ablations.py

Lets train.py train a small network on MNIST at 16 x 16 for the same number of images each time,
draws images, and measures their energy distance to images of the test set in the features of a
small classifier, for several seeds. The floor is that distance for as many training images. Writes
ablations.md, and a row of ablations.jsonl for each run, to --output-dir; with the same folder it
goes on where it was.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.runs import Measure, train
from samplers import AUTO
from utils import describe

BASE = ["--channels", "32", "--image-size", "16", "--warmup-steps", "50", "--validation", "0"]
STEPS = 25  # of sampling
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "schedule linear": ["--schedule", "linear"],
    "schedule quadratic": ["--schedule", "quadratic"],
    "schedule sigmoid": ["--schedule", "sigmoid"],
    "schedule flow": ["--schedule", "flow"],
    "schedule edm, prediction edm": ["--schedule", "edm"],
    "zero terminal SNR": ["--zero-terminal-snr"],
    "prediction eps": ["--prediction", "eps"],
    "prediction x_0": ["--prediction", "x_0"],
    "prediction v": ["--prediction", "v"],
    "prediction edm": ["--prediction", "edm"],
    "weight snr": ["--loss-weight", "snr"],
    "weight min-snr": ["--loss-weight", "min-snr"],
    "t stratified": ["--timestep-sampling", "stratified"],
    "t logit-normal": ["--timestep-sampling", "logit-normal"],
    "noise optimal": ["--noise-assignment", "optimal"],
    "noise nearest": ["--noise-assignment", "nearest"],
    "learned variance": ["--learn-sigma"],
    "no EMA": ["--ema-decay", "0"],
    "optimizer adamw": ["--optimizer", "adamw"],
    "batch 64": ["--batch-size", "64"],
    "learning rate 1.5e-3": ["--lr", "1.5e-3"],
    "learning rate 6e-3": ["--lr", "6e-3"],
}


def run(flags: list[str], seed: int, args, measure: Measure) -> dict:
    """Train one variant by train.py, and measure what it draws."""
    command = ["--dataset", "mnist", "--no-download", "--data-dir", args.data_dir, *BASE]
    batch = int(flags[flags.index("--batch-size") + 1]) if "--batch-size" in flags else 128
    command += ["--batch-size", str(batch), "--max-steps", str(args.images // batch)]
    checkpoint, _ = train([*command, "--seed", str(seed), *flags])
    distance = measure.distance(measure.draw(checkpoint, STEPS, seed, args.spacing))
    return {"distance": distance, "seconds": checkpoint["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=30_000, help="trained on, by each run")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--spacing", default="trailing")
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "benchmarks")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    log = args.output_dir / "ablations.jsonl"
    setting = {"images": args.images, "samples": args.samples, "spacing": args.spacing}
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    rows = [
        row
        for row in rows
        if row.items() >= setting.items()
        and row["seed"] < args.seeds
        and row["flags"] == BASE + VARIANTS.get(row["variant"], [])  # as they are now
    ]
    done = {(row["variant"], row["seed"]) for row in rows}
    measure = Measure(args.data_dir, args.samples, image_size=16)
    for seed in range(args.seeds):  # the seeds outside: a part of the runs is a whole table
        for variant in args.only:
            if (variant, seed) in done:
                continue
            result = run(VARIANTS[variant], seed, args, measure)
            flags = BASE + VARIANTS[variant]
            rows.append({"variant": variant, "flags": flags, "seed": seed, **setting, **result})
            with open(log, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{variant}, seed {seed}: {result['distance']:.4f}", flush=True)
    head = (
        f"Energy distance to the test images in the features of a classifier (right on "
        f"{100 * measure.accuracy:.1f} % of them), {args.samples:,} samples by {AUTO} with "
        f"{STEPS} steps, after {args.images:,} images of training, {args.seeds} seeds, "
        f"{describe(measure.device, measure.precision)}, torch {torch.__version__}; as many "
        f"training images: {measure.floor:.4f}."
    )
    text = f"{head}\n\n{table(rows, args.only)}\n"
    (args.output_dir / "ablations.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{args.output_dir / 'ablations.md'}")


def table(rows: list[dict], variants: list[str]) -> str:
    lines = ["| changed | distance | lowest, highest | training, s |", "| --- | --- | --- | --- |"]
    for variant in variants:
        mine = [row for row in rows if row["variant"] == variant]
        distances = [row["distance"] for row in mine]
        seconds = statistics.median(row["seconds"] for row in mine)
        lines.append(
            f"| {variant} | {statistics.mean(distances):.4f} | "
            f"{min(distances):.4f}, {max(distances):.4f} | {seconds:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
