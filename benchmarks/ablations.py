"""What each choice of train.py is worth: one changed at a time, the rest as it is by default.

    python benchmarks/ablations.py
    python benchmarks/ablations.py --only default "batch 64" --images 150000 --seeds 1
    python benchmarks/ablations.py --flags "--preset laptop --validation 10000" --images 278000

Lets train.py train on MNIST for the same number of images each time, by default a small network at
16 x 16, and draws images as sample.py does, for several seeds. Their classifier-FID is that to the
images that the run held out of training, so that the test split decides nothing; the floor is that
of as many training images. Writes ablations.md, and a row of ablations.jsonl for each run, to
--output-dir; with the same folder it goes on where it was.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.runs import SAMPLING, Measured, drawn_by_sample, measured_by, train
from dataset.items import held_out_count
from dataset.registry import load_dataset
from evaluation.classifier import RECIPE
from evaluation.real import Real, real_data
from train import parse_args
from training.config import choose_natural, choose_preset
from utils import choose_device, choose_precision, describe

BASE = "--channels 32 --image-size 16 --warmup-steps 50"
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "told the classes": ["--class-conditional"],
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
    "batch 32": ["--batch-size", "32"],
    "batch 64": ["--batch-size", "64"],
    "learning rate 1.5e-3": ["--lr", "1.5e-3"],
    "learning rate 6e-3": ["--lr", "6e-3"],
    "patches of 4": ["--patch-size", "4"],
}


def flags_for(args, variant: str, seed: int) -> argparse.Namespace:
    """The flags of train.py for a run, its preset's and those that are natural for images too."""
    words = ["--dataset", "mnist", "--no-download", "--data-dir", args.data_dir]
    words += ["--seed", str(seed), *shlex.split(args.flags), *VARIANTS[variant]]
    flags = parse_args(words)
    choose_preset(flags, "images", classes=10)
    choose_natural(flags, "images")
    flags.words = [*words, "--max-steps", str(args.images // flags.batch_size)]
    return flags


def run(flags: argparse.Namespace, args, measured: Measured, sampling: dict) -> dict:
    """Train one variant by train.py, and measure what it draws."""
    labels = measured.reference.train.labels
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, _ = train(flags.words, folder)
        path = Path(folder, "model_final.pt")
        drawn, *_ = drawn_by_sample(
            path, args.samples, seed=flags.seed, sampling=sampling, labels=labels
        )
    return {"fid": measured.reference.distance(drawn.items), "seconds": checkpoint["seconds"]}


def held_out_by(flags: argparse.Namespace) -> Real:
    """MNIST, with what a run holds out of training."""
    data = load_dataset("mnist", flags.data_dir, image_size=flags.image_size, download=False)
    count = held_out_count(flags.validation, len(data.items))
    return real_data("mnist", data, None, flags.data_dir, count, flags.seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=30_000, help="trained on, by each run")
    parser.add_argument("--flags", default=BASE, help="of train.py, for all (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, help="of sample.py (default: its own)")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "benchmarks")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    log, device = args.output_dir / "ablations.jsonl", choose_device("auto")
    sampling = {**SAMPLING, "guidance_scale": args.guidance_scale}
    setting = {"flags": args.flags, "images": args.images, "samples": args.samples}
    setting |= {"sampling": sampling, "recipe": RECIPE}  # the recipe is the classifier's
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    rows = [
        row
        for row in rows
        if row.items() >= setting.items()
        and row["seed"] < args.seeds
        and row["changed"] == VARIANTS.get(row["variant"])  # as it is now
    ]
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in range(args.seeds):  # the seeds outside: a part of the runs is a whole table
        left = [variant for variant in args.only if (variant, seed) not in done]
        if not left:
            continue
        real = held_out_by(flags_for(args, "default", seed))
        measured = measured_by(real, args.output_dir, device)
        found = {"floor": measured.floor(args.samples), "judge": measured.judge}
        for variant in left:
            found |= run(flags_for(args, variant, seed), args, measured, sampling)
            what = {"variant": variant, "changed": VARIANTS[variant], "seed": seed}
            rows.append({**what, **setting, **found})
            with open(log, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{variant}, seed {seed}: {found['fid']:.3f}", flush=True)
    floors = [row["floor"] for row in rows]
    guided = "" if args.guidance_scale is None else f", guidance {args.guidance_scale:g},"
    head = (
        f"`train.py {args.flags}`, one thing changed at a time: classifier-FID of "
        f"{args.samples:,} samples in {sampling['steps']} steps{guided} to the images "
        f"held out of training, after {args.images:,} images of it, {args.seeds} seeds, "
        f"{describe(device, choose_precision('auto', device))}, torch {torch.__version__}; as "
        f"many training images: {min(floors):.3f} to {max(floors):.3f}."
    )
    text = f"{head}\n\n{table(rows, args.only)}\n"
    (args.output_dir / "ablations.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{args.output_dir / 'ablations.md'}")


def table(rows: list[dict], variants: list[str]) -> str:
    head = "| changed | classifier-FID | lowest, highest | times the floor | training, s |"
    lines = [head, "| --- " * 5 + "|"]
    for variant in variants:
        mine = [row for row in rows if row["variant"] == variant]
        distances = [row["fid"] for row in mine]
        ratio = statistics.mean(row["fid"] / row["floor"] for row in mine)
        seconds = statistics.median(row["seconds"] for row in mine)
        lines.append(
            f"| {variant} | {statistics.mean(distances):.2f} | "
            f"{min(distances):.2f}, {max(distances):.2f} | {ratio:.1f} | {seconds:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
