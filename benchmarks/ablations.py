"""The effect of each choice of train.py on the samples: one flag is changed at a time.

    python benchmarks/ablations.py
    python benchmarks/ablations.py --only default "batch 64" --images 150000 --seeds 1
    python benchmarks/ablations.py --flags "--preset laptop --validation 10000" --images 278000

Trains on the same number of MNIST images each time, by default a small network at 16 x 16 pixels,
and samples as sample.py does, for several seeds. The classifier-FID is measured to the images that
the run held out, so the test split decides nothing. The floor is the classifier-FID of as many
training images. Writes ablations.md, and a row of ablations.jsonl per run, to --output-dir. The
same command continues after an interruption.
"""

import shlex
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import (
    SAMPLING,
    append_row,
    command_line,
    floor_of,
    read_rows,
    reference_for,
    sampled,
    train,
)
from cli.training import TRAIN
from dataset.items import held_out_count
from dataset.registry import load_dataset
from dataset.types import Data
from evaluation.classifier import RECIPE
from evaluation.measures import Reference
from evaluation.real import real_data
from training.config import with_defaults
from utils import choose_device, choose_precision, describe

BASE = "--no-class-conditional --channels 32 --image-size 16 --warmup-steps 50"
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "class-conditional": ["--class-conditional"],
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


def command_of(args, variant: str, seed: int) -> list[str]:
    """The flags of train.py for a run, except its length."""
    command = ["--dataset", "mnist", "--no-download", "--data-dir", args.data_dir]
    return [*command, "--seed", str(seed), *shlex.split(args.flags), *VARIANTS[variant]]


def run(command: list[str], args, data: Data, reference: Reference, sampling: dict) -> dict:
    """Train by train.py with these flags, and measure the samples."""
    flags = with_defaults(TRAIN.parse(command), data)
    length = ["--max-steps", str(args.images // flags.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, _ = train([*command, *length], folder)
        sampling = {**sampling, "num_images": args.samples, "seed": flags.seed}
        final = Path(folder, "model_final.pt")
        samples, *_ = sampled(final, labels=reference.train.labels, **sampling)
    return {"fid": reference.distance(samples.items), "seconds": checkpoint["seconds"]}


def main() -> None:
    parser = command_line(__doc__, folders=True)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=30_000, help="training images per run")
    parser.add_argument("--flags", default=BASE, help="of train.py, for all (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, help="of sample.py (default: its own)")
    parser.add_argument("--samples", type=int, default=2000)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    log, device = args.output_dir / "ablations.jsonl", choose_device("auto")
    sampling = {**SAMPLING, "guidance_scale": args.guidance_scale}
    setting = {"flags": args.flags, "images": args.images, "samples": args.samples}
    setting |= {"sampling": sampling, "recipe": RECIPE}  # the recipe of the classifier
    rows = [
        row
        for row in read_rows(log)
        if row.items() >= setting.items()
        and row["seed"] < args.seeds
        and row["changed"] == VARIANTS.get(row["variant"])  # in today's meaning of the name
    ]
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in range(args.seeds):  # one seed of all variants first: that is a complete table
        left = [variant for variant in args.only if (variant, seed) not in done]
        if not left:
            continue
        flags = TRAIN.parse(command_of(args, "default", seed))
        data = load_dataset("mnist", args.data_dir, image_size=flags.image_size, download=False)
        count = held_out_count(flags.validation, len(data.items))
        real = real_data("mnist", data, None, args.data_dir, count, seed)
        reference = reference_for(real, args.output_dir, device)
        found = {"floor": floor_of(reference, args.samples), "judge": reference.classifier.sha256}
        for variant in left:
            command = command_of(args, variant, seed)
            found |= run(command, args, data, reference, sampling)
            what = {"variant": variant, "changed": VARIANTS[variant], "seed": seed}
            rows.append({**what, **setting, **found})
            append_row(log, rows[-1])
            print(f"{variant}, seed {seed}: {found['fid']:.3f}", flush=True)
    floors = [row["floor"] for row in rows]
    guided = "" if args.guidance_scale is None else f" with guidance {args.guidance_scale:g}"
    head = (
        f"`train.py {args.flags}`, with one change at a time: classifier-FID of "
        f"{args.samples:,} samples in {sampling['steps']} steps{guided} to the held-out images, "
        f"after {args.images:,} training images, {args.seeds} seeds, "
        f"{describe(device, choose_precision('auto', device))}, torch {torch.__version__}. "
        f"The floor is {min(floors):.3f} to {max(floors):.3f}."
    )
    text = f"{head}\n\n{table(rows, args.only)}\n"
    (args.output_dir / "ablations.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{args.output_dir / 'ablations.md'}")


def table(rows: list[dict], variants: list[str]) -> str:
    """One row per variant: the mean, lowest and highest of the seeds."""
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
