"""The results of train.py in a given time: each recipe is trained, measured, sampled and exported.

    python benchmarks/record.py --list                     # what --all would run, and how long
    python benchmarks/record.py --all                      # hours; may be interrupted and repeated
    python benchmarks/record.py --only "mnist, 10 minutes"
    python benchmarks/record.py --check                    # figures in README and docs

For each recipe: train.py, evaluate.py on three sets of 2,000 images, a grid of the first 64 images
by sample.py, and, for published recipes, weights and model card by export.py. The row of a recipe
in docs/results.json is replaced. docs/results.md and the figures that other pages quote (see
figures.py) are written from all rows.

A row that the present code and flags have made is skipped. Code means the modules that matter (see
code_digest.py); if only those of sampling and measuring have changed, the network is kept.
--output-dir holds the runs, and next to each a .json that says how far it has come: an interrupted
training is resumed, within the time that it had planned, unless the code has changed.
"""

import json
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.code_digest import code_digest
from benchmarks.common import ROOT, command_line, slug_of
from benchmarks.figures import (
    UnknownSource,
    all_quotes,
    corrected,
    wrong_lines_of_card,
)
from benchmarks.results_page import METRICS, PROMPTS, page
from benchmarks.sessions import train_to_the_end
from checkpoints.checkpoint import load_checkpoint
from training.environment import read_environment
from training.log import read_metrics
from utils import count_of_threads, save_whole
from visuals.curves import column

ROWS, PAGE = ROOT / "docs" / "results.json", ROOT / "docs" / "results.md"
PRECISION = ["--precision", "bf16", "--batch-size", "250"]  # unless a recipe has another


class Recipe(NamedTuple):
    """A training run and how it is sampled."""

    train: str  # flags of train.py
    draw: str = ""  # flags of sample.py and evaluate.py; {run}: the folder of the run
    weights: str = ""  # name in weights/ if it is published
    guide: str = ""  # its snapshot that is published as NAME_guide, for --guide
    part: float | None = None  # minutes after which train.py is stopped and resumed
    needs_gpu: bool = False
    metrics: tuple[str, ...] = METRICS  # of each call of evaluate.py, with other flags for them


GUIDED = "--steps 20 --guidance-scale 1.3"
BY_PROMPT = "--steps 20 --guidance-scale 2 --precision auto"
LESS_GUIDED = "--steps 20 --guidance-scale 1.15"  # better after longer training
CIFAR10 = "--dataset cifar10 --preset quality --compile reduce-overhead --sample-interval 0"
RECIPES = {  # changed flags make a row outdated
    "mnist, the main command": Recipe("--dataset mnist"),
    "mnist, 20 epochs": Recipe(
        "--dataset mnist --preset fast --epochs 20 --sample-interval 5", GUIDED
    ),
    "mnist, 2 minutes": Recipe(
        "--dataset mnist --preset laptop --max-minutes 2 --sample-interval 0", GUIDED
    ),
    "mnist, 5 minutes": Recipe(
        "--dataset mnist --preset laptop --max-minutes 5 --sample-interval 0", GUIDED
    ),
    "mnist, 10 minutes": Recipe(
        "--dataset mnist --preset laptop --max-minutes 10 --sample-interval 0", LESS_GUIDED, "mnist"
    ),
    "mnist, 10 minutes, without classes": Recipe(
        "--dataset mnist --preset laptop --no-class-conditional --max-minutes 10 "
        "--sample-interval 0",
        "--steps 20 --guide {run}/snapshots/step_000362.safetensors --guidance-scale 1.75",
    ),
    "fashion_mnist, 15 minutes": Recipe(
        "--dataset fashion_mnist --preset laptop --max-minutes 15 --sample-interval 0",
        "--steps 20 --guide {run}/snapshots/step_000512.safetensors --guidance-scale 1.5",
    ),
    "fashion_mnist, 60 minutes": Recipe(
        "--dataset fashion_mnist --preset laptop --max-minutes 60 --sample-interval 0",
        "--steps 20 --guide weights/fashion_mnist_guide.safetensors --guidance-scale 1.5",
        "fashion_mnist",
        guide="step_002048",
    ),
    "cifar10, 60 minutes": Recipe(
        "--dataset cifar10 --preset laptop --max-minutes 60 --sample-interval 0", GUIDED
    ),
    "cifar10, 110 minutes more": Recipe(  # each time it is run, the published network improves
        "--dataset cifar10 --preset laptop --init-from weights/cifar10.safetensors "
        "--max-minutes 110 --sample-interval 0",
        GUIDED,
        "cifar10",
    ),
    "cifar10, a night": Recipe(
        "--dataset cifar10 --preset laptop --max-minutes 480 --sample-interval 0", GUIDED
    ),
    "avatars, 10 minutes": Recipe(
        "--dataset avatars --max-minutes 10 --sample-interval 0", BY_PROMPT, metrics=PROMPTS
    ),
    "avatars, 30 minutes": Recipe(
        "--dataset avatars --max-minutes 30 --sample-interval 0", BY_PROMPT, metrics=PROMPTS
    ),
    "avatars, 60 minutes": Recipe(
        "--dataset avatars --max-minutes 60 --sample-interval 0", BY_PROMPT, metrics=PROMPTS
    ),
    "avatars, 14,915 steps": Recipe(  # an hour of two cores
        "--dataset avatars --max-steps 14915 --sample-interval 0",
        BY_PROMPT,
        "avatars",
        metrics=PROMPTS,
    ),
    "captioned_mnist, 60 minutes": Recipe(
        "--dataset captioned_mnist --max-minutes 60 --sample-interval 0", BY_PROMPT, metrics=PROMPTS
    ),
    "cifar10, 10 minutes on a GPU": Recipe(f"{CIFAR10} --max-minutes 10", GUIDED, needs_gpu=True),
    "cifar10, 40 minutes on a GPU, in parts of 10": Recipe(
        f"{CIFAR10} --max-minutes 40", GUIDED, part=10, needs_gpu=True
    ),
}


# --- what has been done, and by which code --------------------------------------------------------


class Code(NamedTuple):
    """Digests of the code that rows depend on."""

    training: str
    measuring: str

    @classmethod
    def now(cls) -> "Code":
        """Those of the working tree."""
        return cls(
            code_digest(ROOT, "train", without={"evaluation"}),
            code_digest(ROOT, "evaluate", "sample"),
        )


def commit() -> str | None:
    """The commit of the code, with "+" if it has changed since; None without git."""
    git = ["git", "-C", str(ROOT)]
    sources = ["--", "*.py"]  # this script itself writes pages and weights
    try:
        head = subprocess.check_output([*git, "rev-parse", "HEAD"], stderr=subprocess.DEVNULL)
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno", *sources])
    except (OSError, subprocess.SubprocessError):
        return None
    return head.decode().strip() + ("+" if changed.strip() else "")


class Work:
    """How far a recipe's run has come: a .json next to its folder.

    Args:
        recipe: the recipe.
        folder: of the run.
    """

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, folder
        self.path = folder.with_name(f"{folder.name}.json")
        self.state = json.loads(self.path.read_text()) if self.path.exists() else {}

    def interrupted(self) -> bool:
        """Has a training begun, and not finished?"""
        training = self.state.get("training", {})
        return bool(training.get("sessions")) and not training.get("finished")

    def of_stage(self, stage: str, key: list[str]) -> dict:
        """The state of a stage; a new one if it was made by other code or with other flags."""
        found = self.state.get(stage, {})
        if found.get("key") != key:
            found = {"key": key, "commit": commit()}
        self.state[stage] = found
        self.save()
        return found

    def training(self, code: Code) -> dict:
        """The state of the training: its sessions, and whether it has finished."""
        state = self.of_stage("training", [code.training, self.recipe.train])
        if state.get("finished") and not (self.folder / "model_final.pt").exists():
            state.update(sessions=[], finished=False)
        state.setdefault("sessions", [])
        return state

    def measuring(self, code: Code) -> dict:
        """The state of sampling and measuring: the figures of each finished command."""
        begun = self.state["training"]["sessions"][0]["start"]  # another network, other figures
        key = [code.measuring, self.recipe.draw, self.recipe.weights, str(begun)]
        key += [*self.recipe.metrics, self.recipe.guide]
        return self.of_stage("measuring", key)

    def save(self) -> None:
        text = json.dumps(self.state, indent=1) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_whole(self.path, lambda partial: partial.write_text(text, encoding="utf-8"))


def outdated(row: dict, code: Code) -> str:
    """Why a row is not what today's code and flags make; "" if it is."""
    recipe, made = RECIPES[row["recipe"]], row.get("code", {})
    if row["train"] != train_command(recipe):
        return "older flags"
    if made.get("training") != code.training:
        return "older code"
    others = {"draw": drawing(recipe), "metrics": list(recipe.metrics), "guide": recipe.guide}
    if any(row.get(name, value) != value for name, value in others.items()):
        return "older flags of sampling"
    return "" if made.get("measuring") == code.measuring else "older code of measuring"


# --- running --------------------------------------------------------------------------------------


def execute(name: str, *flags: str) -> str:
    """Run one of the commands in the project's folder; returns its output."""
    command = [sys.executable, f"{name}.py", *flags]
    print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(result.stdout, flush=True)
    return result.stdout


def run(name: str, work: Work, data_dir: str) -> dict:
    """Train and measure a recipe, as far as this is not done yet; returns its row."""
    slug, recipe, folder, data = slug_of(name), work.recipe, work.folder, ["--data-dir", data_dir]
    training = work.training(Code.now())
    if not training.get("finished"):
        flags, sessions = [*shlex.split(recipe.train), *data], training["sessions"]
        train_to_the_end(flags, folder, sessions, work.save, recipe.part)
        training["finished"] = True
        work.save()

    if recipe.guide:
        snapshot = folder / "snapshots" / f"{recipe.guide}.safetensors"
        shutil.copyfile(snapshot, ROOT / "weights" / f"{recipe.weights}_guide.safetensors")
    checkpoint, report = folder / "model_final.pt", folder / "metrics.json"
    words = [word.format(run=folder) for word in shlex.split(recipe.draw)]
    draw = ["--checkpoint", str(checkpoint), *PRECISION, *words]
    measuring = work.measuring(Code.now())
    reports = measuring.setdefault("reports", {})
    for metrics in recipe.metrics:
        if metrics in reports:
            continue
        start = time.monotonic()
        execute("evaluate", *draw, *data, "--metrics", *metrics.split())
        reports[metrics] = json.loads(report.read_text())
        minutes = measuring.get("minutes", 0) + (time.monotonic() - start) / 60
        measuring["minutes"] = minutes
        work.save()
    report.write_text(json.dumps(joined(reports)))  # for the model card
    grid = f"results_{slug}.png"
    if "seconds" not in measuring:
        drawn = execute("sample", *draw, "--num-images", "64", "--output", f"docs/{grid}")
        measuring["seconds"] = float(re.search(r"images in ([\d.]+) s", drawn)[1])
        work.save()
    if recipe.weights:
        weights = f"weights/{recipe.weights}.safetensors"
        execute(
            "export", "--checkpoint", str(checkpoint), "--card", str(report), weights, "--overwrite"
        )
    return row_of(name, recipe, folder, training, measuring, grid)


def row_of(
    name: str, recipe: Recipe, folder: Path, training: dict, measuring: dict, grid: str
) -> dict:
    """The row of a recipe that was trained and measured."""
    found, rows = joined(measuring["reports"]), read_metrics(folder / "metrics.jsonl")
    config = json.loads((folder / "config.json").read_text())
    train, sessions = config["train"], training["sessions"]
    last = read_environment(folder / "env.json")[-1]
    machine = last["device"].get("name")
    if machine is None:
        machine = f"{last['cpu']['name']}, {count_of_threads(last['threads'])}"
    updates = rows[-1]["step"]
    return {
        "recipe": name,
        "train": train_command(recipe),
        "draw": drawing(recipe),
        "guide": recipe.guide,
        "date": last["time"][:10],
        "code": {
            "commit": training["commit"],
            "training": training["key"][0],
            "measuring": measuring["key"][0],
        },
        "machine": machine,
        "precision": last["precision"],
        "torch": last["packages"]["torch"],
        "minutes": sum(each["seconds"] for each in sessions) / 60,
        "sessions": len(sessions),
        "measuring_minutes": measuring["minutes"],
        "start": sessions[0].get("begin"),
        "memory": max((each.get("memory") or 0 for each in sessions), default=0) or None,
        "updates": updates,
        "epochs": updates * train["update_size"] / (config["data"]["count"] - train["validation"]),
        "images_per_second": statistics.median(column(rows, "images_per_second")[1]),
        "parameters": parameters_of(folder / "model_final.pt"),
        "metrics": list(recipe.metrics),
        **measured(found),
        "near_copies": found["copies"]["near_copies"],
        "seconds": measuring["seconds"],
        "grid": grid,
    }


def joined(reports: dict[str, dict]) -> dict:
    """One report of several; what they say about the samples is that of the first."""
    first, *others = reports.values()
    return {key: value for report in [*others, first] for key, value in report.items()}


def measured(report: dict) -> dict:
    """The measures in a report of evaluate.py, for a row."""
    row = {"two_sample": report["two_sample"]} if "two_sample" in report else {}
    if prompts := report.get("prompt"):
        row["prompt"] = {key: prompts[key] for key in ("reader", "left_out")}
        for key in ("training", "held_out"):
            found = {k: value for k, value in prompts[key].items() if k != "confusion"}
            row["prompt"][key] = found
        return row
    distance = report["classifier"]
    row["classifier"] = {key: distance[key] for key in ("sha256", "accuracy")}
    row["measures"] = {key: value for key, value in distance.items() if isinstance(value, dict)}
    return row


def parameters_of(checkpoint: Path) -> int:
    """The number of weights in a checkpoint."""
    return sum(weight.numel() for weight in load_checkpoint(checkpoint)["ema"].values())


def drawing(recipe: Recipe) -> str:
    """The flags of evaluate.py and sample.py that a reader types."""
    words = f"--checkpoint outputs/model_final.pt {recipe.draw.format(run='outputs')}"
    words += f" {shlex.join(PRECISION[2:] if '--precision' in words else PRECISION)}"
    return " ".join(words.split())


def train_command(recipe: Recipe) -> str:
    """The command that a reader types."""
    command = f"python train.py {recipe.train}"
    if recipe.part is None:
        return command
    timeout = f"timeout {recipe.part:g}m"
    return f"{timeout} {command}\n{timeout} python train.py --resume  # repeat until finished"


# --- the record -----------------------------------------------------------------------------------


def read() -> dict[str, dict]:
    """The rows of docs/results.json, by recipe."""
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else []
    return {row["recipe"]: row for row in rows if row["recipe"] in RECIPES}


def write(rows: dict[str, dict]) -> None:
    """Write docs/results.json, docs/results.md, and the figures that other pages quote."""
    ordered, code = [rows[name] for name in RECIPES if name in rows], Code.now()
    for row in ordered:
        row["outdated"] = outdated(row, code)
    save(ROWS, json.dumps(ordered, indent=1) + "\n")
    save(PAGE, page(ordered))
    try:
        quotes = all_quotes(ROOT, ordered, list(RECIPES))
    except UnknownSource as error:  # no reason to end hours of work
        print(error, file=sys.stderr, flush=True)
        quotes = []
    for path in {quote.page for quote in quotes}:
        mine = [q for q in quotes if q.page == path and q.expected is not None and not q.holds()]
        if mine:
            save(ROOT / path, corrected((ROOT / path).read_text(encoding="utf-8"), mine))
            print(*(f"corrected: {quote}" for quote in mine), sep="\n")


def save(path: Path, text: str) -> None:
    save_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def check(rows: dict[str, dict]) -> list[str]:
    """The figures of all pages that are not those of the record; prints those without a record."""
    try:
        quotes = all_quotes(ROOT, list(rows.values()), list(RECIPES))
    except UnknownSource as error:
        return [str(error)]
    wrong = [str(quote) for quote in quotes if quote.expected is not None and not quote.holds()]
    for quote in quotes:
        if quote.expected is None:
            print(quote)
    for name, row in rows.items():
        card = Path("weights") / f"{RECIPES[name].weights}.md"
        if RECIPES[name].weights:
            wrong += wrong_lines_of_card(ROOT, card, row)
    if PAGE.read_text(encoding="utf-8") != page(list(rows.values())):
        wrong.append(f"{PAGE.relative_to(ROOT)}: not written from {ROWS.name}; run --write")
    return wrong


# --- the command ----------------------------------------------------------------------------------


def plan_of(
    names: list[str], rows: dict[str, dict], output_dir: Path, again: bool
) -> dict[str, str]:
    """Why each recipe is run, or "skipped: " and why it is not."""
    code, gpu, found = Code.now(), torch.cuda.is_available(), {}
    for name in names:
        if RECIPES[name].needs_gpu and not gpu:
            found[name] = "skipped: needs a GPU"
        elif name not in rows:
            found[name] = "not recorded yet"
        elif again:
            found[name] = "again"
        elif reason := outdated(rows[name], code):
            found[name] = reason
        elif Work(RECIPES[name], output_dir / slug_of(name)).interrupted():
            found[name] = "was interrupted"
        else:
            found[name] = "skipped: code and flags have not changed"
    return found


def show(planned: dict[str, str], rows: dict[str, dict]) -> None:
    """Print a plan, with the minutes that each recipe took the last time."""
    for name, reason in planned.items():
        row = rows.get(name, {})
        minutes = sum(row.get(key) or 0 for key in ("minutes", "measuring_minutes"))
        took = f"{row['date']}: {minutes:.0f} min" if row else ""
        print(f"{name:<46} {took:<22} {reason}")


def run_all(planned: dict[str, str], args) -> list[str]:
    """Run the recipes of a plan that are not skipped. Returns the names of those that failed."""
    failed = []
    for name, reason in planned.items():
        if reason.startswith("skipped"):
            continue
        work = Work(RECIPES[name], args.output_dir / slug_of(name))
        if args.again and not work.interrupted():
            work.state = {}
        print(f"{name}: {reason}", flush=True)
        try:
            row = run(name, work, args.data_dir)
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        write(read() | {name: row})  # another process may have written rows meanwhile
    return failed


def main() -> int:
    parser = command_line(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="run all recipes for this machine")
    what.add_argument("--only", nargs="+", choices=RECIPES, metavar="RECIPE", help="run these")
    what.add_argument("--list", action="store_true", help="what --all would run, and how long")
    what.add_argument("--write", action="store_true", help="write the pages from results.json")
    what.add_argument("--check", action="store_true", help="compare quoted figures with the record")
    parser.add_argument("--again", action="store_true", help="do not skip what has not changed")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs") / "record")
    args = parser.parse_args()
    args.output_dir = ROOT / args.output_dir
    rows = read()
    if args.check:
        wrong = check(rows)
        print(*wrong, sep="\n", file=sys.stderr)
        return 1 if wrong else 0
    if args.write:
        write(rows)
        print(PAGE)
        return 0
    planned = plan_of(args.only or list(RECIPES), rows, args.output_dir, args.again)
    show(planned, rows)
    if args.list:
        return 0
    for name in ("SIGTERM", "SIGHUP"):  # train.py is stopped and saves, as after Ctrl-C
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    failed = run_all(planned, args)
    write(read())
    print(PAGE)
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
