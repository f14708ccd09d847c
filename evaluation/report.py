"""How a run learned: what each of its checkpoints draws from the same noise, its curves, and one
page of it all that opens without a connection."""

import os
import platform
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from itertools import starmap
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from checkpoints.checkpoint import CheckpointError, load_checkpoint, restore
from dataset.items import item_shape, kind_of
from dataset.registry import load_dataset
from diffusion import GaussianDiffusion
from samplers import AUTO, SAMPLERS
from training.folder import RunFolder
from training.log import read_metrics
from utils import NoisePerImage, describe, fits, save_whole
from visuals import page
from visuals.curves import column, draw_loss
from visuals.pictures import picture_of, pictures_of, square

STAGES = 12  # checkpoints, at most, that draw


STEPS = 50  # of a walk


FRAMES = 25  # of the animation


CURVES = {
    "loss": "loss",
    "classifier_fid": "classifier-FID",
    "lr": "learning rate",
    "gradient_norm": "gradient norm",
    "images_per_second": "{kind}/s",
}


class Stage(NamedTuple):
    """A checkpoint on the way of a run."""

    step: int
    label: str
    path: Path


class Learning(NamedTuple):
    """What the checkpoints of a run draw."""

    rows: dict[str, Tensor]  # "step N, epoch E" -> items as shown; of points, "data" comes first
    moments: list[Tensor]  # of the walk by the last of them, from noise to a grid of items
    newest: dict  # of the last of them: path, step, seconds, config; empty if there is none
    how: dict[str, object]  # they were drawn
    notes: list[str]  # what is missing or left out, and why


def learning_rows(
    run_folder: str | Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    say: Callable[[str], object] = lambda line: None,
) -> Learning:
    """Draw from the same noise by the checkpoints of a run, at most `STAGES`, from first to last.

    Args:
        steps: of each walk, at most the run's T (default: 50, or T).
        say: is told of each checkpoint before it draws.

    A checkpoint that cannot be read is left out and noted. Raises ValueError for too many steps.
    """
    device = torch.device(device)
    stages, notes = stages_of(RunFolder(run_folder))
    if not stages and not notes:
        notes.append(
            "There is no checkpoint yet: train.py writes one every few epochs (--save-interval), "
            "when it is stopped (Ctrl-C), and at the end."
        )
    chosen = evenly(stages, STAGES)
    if len(chosen) < len(stages):
        notes.append(f"{len(chosen)} of the {len(stages)} checkpoints are shown, evenly chosen.")
    rows, moments, newest, how = {}, [], {}, {"device": describe(device, "fp32")}
    for number, stage in enumerate(chosen, start=1):
        say(f"checkpoint {number} of {len(chosen)}: {stage.label}")
        try:
            checkpoint = load_checkpoint(stage.path)
            model, diffusion = restore(checkpoint, device)
            config = checkpoint["config"]
            shape = item_shape(config["data"])
            if rows and shape != next(iter(rows.values())).shape[1:]:
                raise CheckpointError(f"{stage.path} is of another run")
        except (OSError, ValueError) as error:  # ValueError: the weights as trained alone
            notes.append(f"Left out: {error}.")
            continue
        in_row, in_grid, _ = amounts(shape)
        if kind_of(shape) == "points" and not rows:
            rows["data"] = load_dataset(config["data"]["dataset"], split="test").items[:in_row]
        walked = steps or min(STEPS, diffusion.timesteps)
        draw = partial(walk, model, diffusion, config, steps=walked, seed=seed, device=device)
        rows[stage.label] = deque(draw(in_row), maxlen=1).pop()
        newest = {key: checkpoint[key] for key in ("step", "seconds", "config")}
        newest["path"] = stage.path
    if newest:
        kept = evenly(range(walked + 1), FRAMES)
        moments = [x for done, x in enumerate(draw(in_grid)) if done in kept]
        how |= {"sampler": AUTO, "steps": walked, "seed": seed, "weights": "moving average"}
    return Learning(rows, moments, newest, how, notes)


def stages_of(folder: RunFolder) -> tuple[list[Stage], list[str]]:
    """The checkpoints of a run by step, each step once, and notes on those that are damaged."""
    rows = read_metrics(folder.metrics)
    epochs = {row["step"]: row["epoch"] for row in rows if fits(row.get("epoch"), int)}
    steps, damaged = folder.steps()
    on_the_way = {path: step for path, step in steps.items() if path != folder.best}
    stages = {}
    for path, step in (on_the_way or steps).items():
        label = f"step {step:,}" + (f", epoch {epochs[step]}" if step in epochs else "")
        stages.setdefault(step, Stage(step, label, path))
    return sorted(stages.values()), [f"Left out: {error}." for error in damaged]


def evenly(items: Sequence, most: int) -> Sequence:
    """At most so many of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def amounts(shape: Sequence[int]) -> tuple[int, int, int]:
    """How many items of that shape are in a row, in the grid and in the animation."""
    if kind_of(shape) == "points":
        return 2000, 2000, 2000
    if shape[-1] > 64:
        return 4, 16, 4
    return 8, 64 if shape[-1] <= 32 else 16, 9


def walk(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    config: dict,
    count: int,
    *,
    steps: int,
    seed: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Items on their way from noise to data, as they are shown: `steps` + 1 times.

    Item i begins with noise i of the seed. A network that knows classes draws one a column.
    """
    shape, classes = item_shape(config["data"]), config["model"].get("num_classes")
    column_of = torch.arange(count, device=device) % amounts(shape)[0]
    denoise = diffusion.denoiser(model, column_of % classes if classes else None)
    levels = diffusion.levels(steps)
    noise = NoisePerImage(seed, range(count))
    start = noise.draw(shape).to(device)
    finished = pictures_of(shape).finished
    yield finished(start)
    walked = SAMPLERS[AUTO](denoise, levels[0].scale * start, levels, noise)
    for level, x in zip(levels[1:], walked, strict=True):
        yield finished(x / level.scale)  # edm's would be far too bright


def write_report(run_folder: str | Path, learning: Learning | None = None) -> Path:
    """Write `report.html` into the folder of a run, and return its path.

    Without `learning`, the run's checkpoints draw first. Raises ValueError if there is nothing to
    show.
    """
    folder = RunFolder(run_folder)
    learning = learning or learning_rows(folder.path)
    metrics = read_metrics(folder.metrics)
    notes, newest = list(learning.notes), learning.newest
    if not newest and not metrics:
        runs = [str(file.parent) for file in sorted(folder.path.glob("*/metrics.jsonl"))]
        hint = [f"There are runs in {', '.join(runs)}."] if runs else []
        raise ValueError(" ".join([f"{folder.path} holds no run: no metrics.", *notes, *hint]))

    config = newest["config"] if newest else config_of(folder, notes)
    step = max([newest.get("step", 0), *column(metrics, "step")[1]])
    total = config.get("train", {}).get("total_steps")
    if newest and step > newest["step"]:
        notes.append(f"The metrics go on to step {step:,}, and no checkpoint that can be read.")
    if step != total:
        of = f" of {total:,}" if total else ""
        notes.append(f"The run has not come to its end: it made {step:,}{of} updates.")
    seconds = duration(max([newest.get("seconds", 0), *column(metrics, "seconds")[1]]))
    kind = "points" if "dim" in config.get("data", {}) else "images"
    facts = {**facts_of(config, metrics, kind), "updates": f"{step:,}", "training time": seconds}
    html = page.document(
        f"How a model learned {facts.get('data set', 'its data')}",
        f"{step:,} updates in {seconds} of training",
        page.notes(notes),
        page.section("What each checkpoint draws", *rows_of(learning)),
        page.section("From noise to data", *walk_of(learning)),
        page.section("Curves", *curves_of(metrics, kind)),
        page.section("Run", page.table("", facts)),
        page.section("Go on", page.commands(commands_of(folder, newest, total))),
        page.section("Configuration", page.cards(*starmap(page.table, config.items()))),
        page.section("This report", page.table("", {**environment(), **learning.how})),
    )
    save_whole(folder.report, lambda partial: partial.write_text(html, encoding="utf-8"))
    return folder.report


def config_of(folder: RunFolder, notes: list[str]) -> dict:
    """The configuration of a run without checkpoints; none, and a note, if it cannot be read."""
    try:
        config = folder.saved_config()
    except CheckpointError as error:
        notes.append(f"The configuration cannot be read: {error}.")
        return {}
    if config is None:
        notes.append(f"The configuration cannot be read: there is no {folder.config}.")
    return config or {}


def facts_of(config: dict, metrics: list[dict], kind: str) -> dict[str, object]:
    """What the run learned from, and how fast."""
    facts = {}
    if data := config.get("data"):
        facts["data set"] = data["dataset"]
        if data["dataset"] == "folder":
            facts["data set"] += f" {data['data_dir']}"
        shape = " x ".join(map(str, item_shape(data)))
        facts["items"] = f"{data['count']:,} {kind} of {shape}"
        facts["classes"] = data["classes"]
    if epochs := column(metrics, "epoch")[1]:
        facts["epochs"] = max(epochs)
    steps, losses = column(metrics, "validation_loss")
    if losses:
        step = steps[losses.index(min(losses))]
        facts["lowest loss of held-out items"] = f"{min(losses):.4g}, at step {step:,}"
    if speeds := column(metrics, "images_per_second")[1]:
        facts["speed"] = f"{median(speeds):,.0f} {kind}/s, the median"
    return facts


def environment() -> dict[str, object]:
    """What computes now."""
    return {
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "platform": platform.platform(),
        "CPU cores": os.cpu_count(),
    }


def rows_of(learning: Learning) -> Iterator[str]:
    """A row of images, or a scatter plot, for each checkpoint."""
    figures = []
    for label, items in learning.rows.items():
        picture = pictures_of(items.shape[1:]).frame(items, len(items))
        alt = f"{described(items)}: {label}"
        figures.append(page.figure(label, alt, picture, plot=items.ndim == 2))
    if not figures:
        return
    known = learning.newest["config"]["model"].get("num_classes")
    yield page.paragraph(
        "From the same noise each time, by the moving average of the weights."
        + (" Each column is of one class." if known and items.ndim == 4 else "")
    )
    yield page.cards(*figures, small=True) if items.ndim == 2 else page.rows(*figures)


def walk_of(learning: Learning) -> Iterator[str]:
    """The walk of a few items by the newest checkpoint, and where the walk of more has led."""
    if not learning.moments:
        return
    last, label = learning.moments[-1], list(learning.rows)[-1]
    pictures, plot = pictures_of(last.shape[1:]), last.ndim == 2
    in_row, _, in_motion = amounts(last.shape[1:])
    frames = [pictures.frame(x[:in_motion], square(in_motion)) for x in learning.moments]
    grid = pictures.frame(last, in_row)
    moving = f"{described(last[:in_motion])} on their way from noise to data: {label}"
    yield page.cards(
        page.figure(f"the walk, {label}", moving, *frames, plot=plot),
        page.figure(f"its end, {label}", f"{described(last)}: {label}", grid, plot=plot),
    )


def described(items: Tensor) -> str:
    return f"{len(items):,} {kind_of(items.shape[1:])}"


def curves_of(metrics: list[dict], kind: str) -> Iterator[str]:
    """A small plot over the steps for each of the metrics that the rows have."""
    figures = []
    for name, title in CURVES.items():
        steps, values = column(metrics, name)
        if not steps:
            continue
        plot = Figure(figsize=(4, 2.8), dpi=180, layout="constrained")
        axes = plot.subplots()
        if name == "loss":
            draw_loss(axes, metrics)
        else:
            axes.plot(steps, values, linewidth=1.2, marker="." if len(steps) < 20 else None)
            axes.grid(alpha=0.25)
        axes.set(xlabel="step")
        title = title.format(kind=kind)
        alt = f"{title}: {values[0]:.3g} at step {steps[0]:,}, "
        alt += f"{values[-1]:.3g} at step {steps[-1]:,}"
        figures.append(page.figure(title, alt, picture_of(plot), plot=True))
    yield page.cards(*figures)


def commands_of(folder: RunFolder, newest: dict, total: int | None) -> list[str]:
    """What can be done with the newest checkpoint."""
    if not newest:
        return []
    run = shlex.quote(str(folder.path))
    further = f" --max-steps {2 * newest['step']}" if newest["step"] == total else ""
    return [
        f"python sample.py --checkpoint {shlex.quote(str(newest['path']))}",
        f"python train.py --resume --output-dir {run}{further}",
        f"python visualize_diffusion.py --run {run}",
    ]


def duration(seconds: float) -> str:
    """ "1 h 2 min 3 s", without the units that are zero."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"
