"""Few network calls: a teacher by its best sampler, and what --tune makes of it. Writes a table.

    python benchmarks/few_steps.py --teacher weights/mnist.safetensors --guidance 1.15
    python benchmarks/few_steps.py --teacher weights/fashion_mnist.safetensors \\
        --guide weights/fashion_mnist_guide.safetensors --guidance 1.5
    python benchmarks/few_steps.py --teacher outputs/moons/model_final.pt --minutes 1 --pairs 20000

Tunes the teacher in each way for some minutes, draws with 1, 2, 4 and 8 network calls, and measures
the samples: images by evaluate.py, points by their energy distance. The teacher's sampler is chosen
for each number of calls on the held-out images, and then measured on the test split as everything
else. The minutes of reflow include those of sampling its pairs. In --output-dir, what is there is
not made again. A guided step of the teacher counts as two calls.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, command_line, read_rows, sampled
from checkpoints.checkpoint import load_checkpoint
from dataset.items import item_shape, kind_of
from evaluation.points import point_distances
from utils import save_whole

CALLS = (1, 2, 4, 8)
SAMPLERS = ("dpmpp_2m_sde", "dpmpp_2m", "ddim", "unipc")  # of the teacher, to choose from
WAYS = {
    "consistency": "--tune consistency",
    "distill": "--tune distill --teacher-steps 16",
    "meanflow": "--tune meanflow",
    "reflow": "--tune reflow",
}
ANY_STEPS = ("consistency", "meanflow", "reflow")  # which draw in any number of steps
TEACHER = "teacher"
POINTS = 2000  # of a set whose energy distance is measured


class Cell(NamedTuple):
    """One way to draw: a checkpoint with flags of evaluate.py, and the calls that it takes."""

    way: str
    calls: int
    checkpoint: Path
    flags: list[str]

    @property
    def name(self) -> str:
        return f"{self.way}, {self.calls}"


def evaluated(cell: Cell, folder: Path, flags: list[str]) -> dict:
    """The report of evaluate.py for a cell."""
    output = folder / "report.json"
    where = ["--checkpoint", str(cell.checkpoint), "--output", str(output)]
    called("evaluate.py", *where, *cell.flags, *flags)
    return json.loads(output.read_text())


def chosen_by(args, cell: Cell, folder: Path) -> float:
    """The distance by which the teacher's samplers are compared: of one set, to held-out images."""
    if args.dataset:
        return measured_points(cell, args.dataset, seeds=[100])["mean"]
    flags = ["--split", "validation", "--metrics", "classifier", "--repeats", "1"]
    report = evaluated(cell, folder, [*flags, "--num-images", "1000", *common(args)])
    return distance_of(report)["mean"]


def missing(args, calls: int, report: dict) -> list[str]:
    """The measures that a report lacks."""
    wanted = ["energy_distance"] if args.dataset else ["classifier"]
    if calls in args.two_sample and not args.dataset:
        wanted.append("two_sample")
    return [name for name in wanted if name not in report]


def measured(args, cell: Cell, folder: Path, measures: list[str]) -> dict:
    """The report of a cell, for three sets."""
    if args.dataset:
        return {"energy_distance": measured_points(cell, args.dataset, seeds=[0, 1, 2])}
    names = [name.replace("_", "-") for name in measures]
    return evaluated(cell, folder, ["--metrics", *names, *common(args)])


def measured_points(cell: Cell, dataset: str, seeds: list[int]) -> dict:
    """The energy distances of sets of samples to fresh points, and their floor."""
    options = dict(num_images=POINTS, **options_of(cell))
    found = []
    for seed in seeds:
        samples, _, _ = sampled(cell.checkpoint, seed=seed, **options)
        found.append(point_distances(samples.items, dataset))
    values, floor = [ours for ours, _ in found], found[0][1]
    return {"values": values, "mean": fmean(values), "floor": floor, "ratio": fmean(values) / floor}


def distance_of(report: dict) -> dict:
    """The distance in a report, with its values, their mean and its ratio to the floor."""
    return report.get("energy_distance") or report["classifier"]["classifier_fid"]


def of_teacher(args, calls: int, folder: Path) -> Cell:
    """The teacher with the sampler and the guidance that are best for so many calls."""
    candidates = []
    for sampler in SAMPLERS:
        for guided in (False, True) if args.guidance != 1 else (False,):
            steps = calls // (2 if guided else 1)
            if steps < 1 or (steps == 1 and sampler != "ddim"):  # which are all the same then
                continue
            flags = ["--sampler", sampler, "--steps", str(steps)]
            flags += guidance(args) if guided else []
            cell = Cell(TEACHER, calls, args.teacher.resolve(), flags)
            candidates.append((chosen_by(args, cell, folder), cell))
    return min(candidates, key=lambda pair: pair[0])[1]


def tuned_run(args, way: str, folder: Path) -> Path:
    """The folder of a tuned run, which is trained if it is not there."""
    run, minutes = folder / way, args.minutes
    if (run / "model_final.pt").exists():
        return run
    flags = [*WAYS[way].split(), "--teacher", str(args.teacher.resolve())]
    if way == "reflow":
        pairs, seconds = drawn_pairs(args, folder)
        flags += ["--pairs", str(pairs)]
        minutes -= seconds / 60
    elif args.guidance != 1:
        flags += guidance(args, "--teacher-guidance", "--teacher-guide")
    flags += ["--max-minutes", f"{minutes:g}", "--sample-interval", "0", "--overwrite"]
    flags += ["--data-dir", args.data_dir, "--output-dir", str(run), *args.train]
    called("train.py", *flags)
    return run


def guidance(args, scale: str = "--guidance-scale", guide: str = "--guide") -> list[str]:
    """The flags that guide the teacher."""
    flags = [scale, str(args.guidance)]
    return flags if args.guide is None else [*flags, guide, str(args.guide.resolve())]


def drawn_pairs(args, folder: Path) -> tuple[Path, float]:
    """The file of samples with the noise that they came from, and the seconds of sampling them."""
    path, start = folder / "pairs.npz", time.monotonic()
    flags = ["--checkpoint", str(args.teacher.resolve()), "--num-images", str(args.pairs)]
    flags += ["--steps", "20", "--sampler", "dpmpp_2m", "--pairs", "--output", str(path)]
    flags += guidance(args) if args.guidance != 1 else []
    called("sample.py", *flags, "--batch-size", "250")
    return path, time.monotonic() - start


def called(script: str, *flags: str) -> None:
    """Run a script, and print its command."""
    print("$", script, *flags, flush=True)
    subprocess.run(
        [sys.executable, str(ROOT / script), *flags], check=True, stdout=subprocess.DEVNULL
    )


def of_tuned(way: str, run: Path, calls: int) -> Cell | None:
    """A tuned network with so many calls; None if none was tuned for them."""
    if way in ANY_STEPS:
        return Cell(way, calls, run / "model_final.pt", ["--steps", str(calls)])
    if load_checkpoint(run / "model_final.pt")["config"]["train"]["student_steps"] == calls:
        return Cell(way, calls, run / "model_final.pt", [])
    stage = run / "snapshots" / f"draws_in_{calls}.safetensors"
    return Cell(way, calls, stage, []) if stage.exists() else None


def common(args) -> list[str]:
    return ["--data-dir", args.data_dir, "--batch-size", "250", "--precision", "auto"]


def seconds(args, cell: Cell) -> float:
    """The time to sample 64 images or points, the better of two."""
    precision = "fp32" if args.dataset else "auto"
    options = dict(num_images=64, precision=precision, **options_of(cell))
    return min([sampled(cell.checkpoint, **options)[2] for _ in range(3)][1:])


def options_of(cell: Cell) -> dict:
    """The arguments of sample() for a cell."""
    types = {"guidance_scale": float, "steps": int}
    flags = zip(cell.flags[::2], cell.flags[1::2], strict=True)
    named = {name[2:].replace("-", "_"): value for name, value in flags}
    return {name: types.get(name, str)(value) for name, value in named.items()}


def table(rows: list[dict]) -> str:
    """All rows as Markdown."""
    points = "energy_distance" in rows[0]["report"]
    heads = ("network calls", "way", "energy distance" if points else "classifier-FID")
    heads += ("ratio to the floor", "AUC")
    heads += ("precision, recall", "64 samples, s")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in sorted(rows, key=lambda row: row["calls"]):
        distance, tests = distance_of(row["report"]), row["report"].get("two_sample")
        low, high = min(distance["values"]), max(distance["values"])
        measures = row["report"].get("classifier", {})
        names = [name for name in ("precision", "recall") if name in measures]
        close = ", ".join(f"{measures[name]['mean']:.2f}" for name in names)
        auc = f"{tests['auc']['mean']:.3f}" if tests else ""
        named = row["way"]
        if row["way"] == TEACHER:
            named += f" ({' '.join(row['flags'])})".replace("--", "")
        lines.append(
            f"| {row['calls']} | {named} | {distance['mean']:.4g} ({low:.4g} to {high:.4g}) | "
            f"{distance['ratio']:.2f} | {auc} | {close} | {row['seconds']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = command_line(__doc__, folders=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--guidance", type=float, default=1.15, help="scale of the teacher")
    parser.add_argument("--guide", type=Path, help="weaker network that guides the teacher")
    parser.add_argument("--minutes", type=float, default=10, help="of tuning in each way")
    parser.add_argument("--only", nargs="+", choices=[TEACHER, *WAYS], default=[TEACHER, *WAYS])
    parser.add_argument("--calls", nargs="+", type=int, default=list(CALLS))
    parser.add_argument(
        "--two-sample", nargs="*", type=int, default=[2], metavar="CALLS",
        help="calls with the two-sample test, which takes minutes",
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, default=8192, help="of noise and sample, for reflow")
    parser.add_argument("--train", nargs="+", default=[], help="more flags of train.py, quoted")
    args = parser.parse_args()
    args.train = [word for words in args.train for word in words.split()]
    data = load_checkpoint(args.teacher)["config"]["data"]
    points = kind_of(item_shape(data)) == "points"
    args.dataset = data["dataset"] if points else None  # of the points that are measured
    folder = args.output_dir / f"few_steps_{args.teacher.resolve().parent.name}_{args.teacher.stem}"
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    for way in args.only:
        for calls in args.calls:
            rows = {(row["way"], row["calls"]): row for row in read_rows(results)}
            row = rows.get((way, calls))
            lacking = missing(args, calls, row["report"] if row else {})
            if not lacking:
                continue
            if row is None:
                row = new_row(args, way, calls, folder)
            if row is None:
                continue
            cell = Cell(way, calls, Path(row["checkpoint"]), row["flags"])
            row["report"] |= measured(args, cell, folder, lacking)
            rows[way, calls] = row
            lines = "".join(f"{json.dumps(row)}\n" for row in rows.values())
            save_whole(results, lambda path, lines=lines: path.write_text(lines))
            text = table(list(rows.values()))
            save_whole(folder / "table.md", lambda path, text=text: path.write_text(text))
            print(text, flush=True)


def new_row(args, way: str, calls: int, folder: Path) -> dict | None:
    """The row of a cell, without measures; None if no network was tuned for so many calls."""
    if way == TEACHER:
        cell = of_teacher(args, calls, folder)
    else:
        cell = of_tuned(way, tuned_run(args, way, folder), calls)
    if cell is None:
        return None
    row = {"way": way, "calls": calls, "checkpoint": str(cell.checkpoint), "flags": cell.flags}
    return {**row, "minutes": args.minutes, "seconds": seconds(args, cell), "report": {}}


if __name__ == "__main__":
    main()
