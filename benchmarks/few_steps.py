"""Few network calls: a teacher by its best sampler, and what --tune makes of it. Writes a table.

    python benchmarks/few_steps.py --teacher weights/mnist.safetensors --guidance 1.15
    python benchmarks/few_steps.py --teacher weights/fashion_mnist.safetensors --minutes 10

Tunes the teacher in each way for some minutes, draws with 1, 2, 4 and 8 network calls, and measures
the samples. The teacher's sampler is chosen for each number of calls on the held-out images, and
then measured on the test split as everything else. In --output-dir, what is there is not made
again. A guided step of the teacher counts as two calls.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, append_row, command_line, read_rows, sampled
from checkpoints.checkpoint import load_checkpoint
from utils import save_whole

CALLS = (1, 2, 4, 8)
SAMPLERS = ("dpmpp_2m_sde", "dpmpp_2m", "ddim", "unipc")  # of the teacher, to choose from
WAYS = {
    "consistency": "--tune consistency",
    "distill": "--tune distill --teacher-steps 16",
    "meanflow": "--tune meanflow",
}
ANY_STEPS = ("consistency", "meanflow")  # which draw in any number of steps
TEACHER = "teacher"


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
    command = [sys.executable, str(ROOT / "evaluate.py"), "--checkpoint", str(cell.checkpoint)]
    command += [*cell.flags, *flags, "--output", str(output)]
    print("$", *command[1:], flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(output.read_text())


def of_teacher(args, calls: int, folder: Path) -> Cell:
    """The teacher with the sampler and the guidance that are best for so many calls."""
    candidates = []
    for sampler in SAMPLERS:
        for guided in (False, True):
            steps = calls // (2 if guided else 1)
            if steps < 1 or (steps == 1 and sampler != "ddim"):  # which are all the same then
                continue
            flags = ["--sampler", sampler, "--steps", str(steps)]
            flags += ["--guidance-scale", str(args.guidance)] if guided else []
            cell = Cell(TEACHER, calls, args.teacher.resolve(), flags)
            validation = ["--split", "validation", "--metrics", "classifier", "--repeats", "1"]
            validation += ["--num-images", "1000"]
            report = evaluated(cell, folder, [*validation, *common(args)])
            candidates.append((report["classifier"]["classifier_fid"]["mean"], cell))
    return min(candidates, key=lambda pair: pair[0])[1]


def tuned_run(args, way: str, folder: Path) -> Path:
    """The folder of a tuned run, which is trained if it is not there."""
    run = folder / way
    if not (run / "model_final.pt").exists():
        command = [sys.executable, str(ROOT / "train.py"), *WAYS[way].split(), "--teacher"]
        command += [str(args.teacher.resolve()), "--teacher-guidance", str(args.guidance)]
        command += ["--max-minutes", str(args.minutes), "--sample-interval", "0", "--overwrite"]
        command += ["--data-dir", args.data_dir, "--output-dir", str(run), *args.train]
        print("$", *command[1:], flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


def of_tuned(way: str, run: Path, calls: int) -> Cell | None:
    """A tuned network with so many calls; None if none was tuned for them."""
    if way in ANY_STEPS:
        return Cell(way, calls, run / "model_final.pt", ["--steps", str(calls)])
    if load_checkpoint(run / "model_final.pt")["config"]["train"]["student_steps"] == calls:
        return Cell(way, calls, run / "model_final.pt", [])
    stage = run / "snapshots" / f"draws_in_{calls}.safetensors"
    return Cell(way, calls, stage, []) if stage.exists() else None


def common(args) -> list[str]:
    return ["--data-dir", args.data_dir, "--batch-size", "250", "--precision", "bf16"]


def seconds(cell: Cell) -> float:
    """The time to sample 64 images, the better of two."""
    options = dict(zip(cell.flags[::2], cell.flags[1::2], strict=True))
    flags = {name[2:].replace("-", "_"): value for name, value in options.items()}
    flags = {k: float(v) if k == "guidance_scale" else v for k, v in flags.items()}
    flags |= {k: int(v) for k, v in flags.items() if k == "steps"}
    times = [
        sampled(cell.checkpoint, num_images=64, precision="bf16", **flags)[2] for _ in range(3)
    ]
    return min(times[1:])


def table(rows: list[dict]) -> str:
    """All rows as Markdown."""
    heads = ("network calls", "way", "classifier-FID", "ratio to the floor", "AUC")
    heads += ("precision, recall", "64 images, s")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in sorted(rows, key=lambda row: row["calls"]):
        measures = row["report"]["classifier"]
        fid, tests = measures["classifier_fid"], row["report"].get("two_sample")
        low, high = min(fid["values"]), max(fid["values"])
        close = ", ".join(f"{measures[name]['mean']:.2f}" for name in ("precision", "recall"))
        auc = f"{tests['auc']['mean']:.3f}" if tests else ""
        named = row["way"]
        if row["way"] == TEACHER:
            named += f" ({' '.join(row['flags'])})".replace("--", "")
        lines.append(
            f"| {row['calls']} | {named} | {fid['mean']:.3f} ({low:.3f} to {high:.3f}) | "
            f"{fid['ratio']:.2f} | {auc} | {close} | {row['seconds']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = command_line(__doc__, folders=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--guidance", type=float, default=1.15, help="scale of the teacher")
    parser.add_argument("--minutes", type=float, default=10, help="of tuning in each way")
    parser.add_argument("--only", nargs="+", choices=[TEACHER, *WAYS], default=[TEACHER, *WAYS])
    parser.add_argument("--calls", nargs="+", type=int, default=list(CALLS))
    parser.add_argument("--metrics", nargs="+", default=["classifier", "two-sample"])
    parser.add_argument("--train", nargs="+", default=[], help="more flags of train.py, quoted")
    args = parser.parse_args()
    args.train = [word for words in args.train for word in words.split()]
    folder = args.output_dir / f"few_steps_{args.teacher.resolve().parent.name}_{args.teacher.stem}"
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    for way in args.only:
        for calls in args.calls:
            if (way, calls) in {(row["way"], row["calls"]) for row in read_rows(results)}:
                continue
            if way == TEACHER:
                cell = of_teacher(args, calls, folder)
            else:
                cell = of_tuned(way, tuned_run(args, way, folder), calls)
            if cell is None:
                continue
            report = evaluated(cell, folder, ["--metrics", *args.metrics, *common(args)])
            row = {"way": way, "calls": calls, "flags": cell.flags, "minutes": args.minutes}
            append_row(results, {**row, "seconds": seconds(cell), "report": report})
            text = table(read_rows(results))
            save_whole(folder / "table.md", lambda path, text=text: path.write_text(text))
            print(text, flush=True)


if __name__ == "__main__":
    main()
