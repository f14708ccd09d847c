"""What guidance by a prompt gains and what it costs, over its scale: guidance.md and guidance.png.

    python benchmarks/guidance.py --checkpoint outputs/model_final.pt --scales 1 1.5 2 3 5

The samples are drawn by captions of training and of held-out images, and measured by `evaluate.py
--metrics prompt`. Scales are chosen on the run's held-out items, so that is the default split.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, command_line
from visuals.style import Figure, default_style

SCALES = [1.0, 1.5, 2.0, 3.0, 5.0]
NAMES = {
    "exact_match": "exact match",
    "attribute_accuracy": "attribute accuracy",
    "precision": "precision",
    "recall": "recall",
}


class Point(NamedTuple):
    """A scale, and the measures of samples with captions of held-out images, with their floor."""

    scale: float
    values: dict[str, float]
    floors: dict[str, float]


def measured(checkpoint: str, scale: float, folder: Path, flags: list[str]) -> Point:
    """Sample with one scale, and measure the samples."""
    output = folder / f"guidance_{scale:g}.json"
    command = [sys.executable, "evaluate.py", "--checkpoint", checkpoint, "--metrics", "prompt"]
    command += ["--guidance-scale", f"{scale:g}", "--output", str(output.resolve()), *flags]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = json.loads(output.read_text())["prompt"]["held_out"]
    values = {name: found[name]["mean"] for name in NAMES}
    return Point(scale, values, {name: found[name]["floor"] for name in NAMES})


def table(points: list[Point]) -> str:
    """A Markdown table; the last row has the measures of real images."""
    rows = [f"| guidance | {' | '.join(NAMES.values())} |", "| --- " * (len(NAMES) + 1) + "|"]
    for point in points:
        cells = [f"{point.values[name]:.3f}" for name in NAMES]
        rows.append(f"| {point.scale:g} | {' | '.join(cells)} |")
    cells = [f"{points[0].floors[name]:.3f}" for name in NAMES]
    return "\n".join([*rows, f"| real images | {' | '.join(cells)} |"])


@default_style()
def plot(points: list[Point], path: Path) -> None:
    """The measures over the scale, and precision over recall."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    scales = [point.scale for point in points]
    for name, label in NAMES.items():
        left.plot(scales, [point.values[name] for point in points], ".-", label=label)
    left.set(xlabel="guidance scale", xscale="log", ylim=(0, 1.02), title="held-out captions")
    left.set_xticks(scales, [f"{scale:g}" for scale in scales])
    left.minorticks_off()
    left.legend(fontsize=8)
    recall = [point.values["recall"] for point in points]
    precision = [point.values["precision"] for point in points]
    right.plot(recall, precision, ".-")
    for point, x, y in zip(points, recall, precision, strict=True):
        right.annotate(f"{point.scale:g}", (x, y), textcoords="offset points", xytext=(5, 4))
    floors = points[0].floors
    right.plot(floors["recall"], floors["precision"], "k*", label="real images")
    right.locator_params(axis="x", nbins=5)
    right.set(xlabel="recall", ylabel="precision", title="diversity, by guidance scale")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = command_line(__doc__, folders=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--scales", nargs="+", type=float, default=SCALES)
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    flags = ["--split", args.split, "--data-dir", str(args.data_dir)]
    flags += ["--num-images", str(args.num_images), "--repeats", str(args.repeats)]
    flags += ["--steps", str(args.steps)]
    checkpoint, points = str(Path(args.checkpoint).resolve()), []
    for scale in args.scales:
        points.append(measured(checkpoint, scale, args.output_dir, flags))
        print(table(points[-1:]), flush=True)
    text = table(points)
    (args.output_dir / "guidance.md").write_text(f"{text}\n", encoding="utf-8")
    plot(points, args.output_dir / "guidance.png")
    print(f"\n{text}\n{args.output_dir}")


if __name__ == "__main__":
    main()
