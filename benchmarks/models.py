"""What each network makes of the same time: trained on MNIST for as many minutes, side by side.

    python benchmarks/models.py
    python benchmarks/models.py --minutes 10 --models unet dit

Lets train.py train each with its defaults, and compares their validation loss (the same held-out
images, timesteps and noise for all) and the energy distance of images that they draw to the test
set, in the features of a small classifier. Writes models.md, and models.png with a row of images
for each network, to --output-dir.
"""

import argparse
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.runs import Measure, train
from data import item_shape, to_uint8
from models import cost
from pictures import ImagePictures, save_figure
from utils import describe

NETWORKS: dict[str, list[str]] = {
    "unet": [],
    "naive_unet": ["--model", "naive_unet"],
    # With its own 64 channels an image takes 26 GFLOPs: minutes for an update on a CPU.
    "cnn, 16 channels": ["--model", "cnn", "--channels", "16"],
    "dit": ["--model", "dit"],
    "dit, long skips": ["--model", "dit", "--long-skips"],
}
STEPS, SHOWN = 20, 16  # sampling steps, and images of a row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "benchmarks")
    args = parser.parse_args()
    measure = Measure(args.data_dir, args.samples)

    lines = ["| network | parameters | MFLOPs | images/s | updates | validation loss | distance |"]
    lines.append("| --- " * 7 + "|")
    rows = {}
    for name in args.models:
        flags = ["--dataset", "mnist", "--data-dir", args.data_dir, "--no-download"]
        flags += ["--max-minutes", str(args.minutes), *NETWORKS[name]]
        checkpoint, metrics = train(flags)
        config = checkpoint["config"]
        parameters, flops = cost(config["model"], item_shape(config["data"]))
        speeds = [row["images_per_second"] for row in metrics if "images_per_second" in row]
        loss = [row["validation_loss"] for row in metrics if "validation_loss" in row][-1]
        images = measure.draw(checkpoint, STEPS, seed=0)
        rows[name] = ImagePictures().grid(to_uint8(images[:SHOWN]), SHOWN)
        lines.append(
            f"| {name} | {parameters:,} | {flops / 1e6:,.0f} | {statistics.median(speeds):.0f} | "
            f"{checkpoint['step']:,} | {loss:.4f} | {measure.distance(images):.2f} |"
        )
        print(lines[-1], flush=True)

    head = (
        f"{args.minutes:g} minutes each on MNIST, {describe(measure.device, measure.precision)}, "
        f"torch {torch.__version__}, one seed. Distance: energy distance of {args.samples} images "
        f"in {STEPS} steps to the test images, in the features of a classifier (right on "
        f"{100 * measure.accuracy:.1f} % of them); as many training images: {measure.floor:.2f}."
    )
    text = f"{head}\n\n" + "\n".join(lines) + "\n"
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "models.md").write_text(text, encoding="utf-8")
    save_figure(args.output_dir / "models.png", picture(rows))
    print(f"\n{text}\n{args.output_dir}")


def picture(rows: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(9.5, 0.72 * len(rows)), layout="constrained")
    for axes, (name, grid) in zip(
        figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True
    ):
        axes.imshow(grid)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
