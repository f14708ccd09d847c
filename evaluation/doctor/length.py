"""How long a run has to be: its progress next to that of measured runs (docs/results.json)."""

import json
import math
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from cli.training import TRAIN
from evaluation.doctor.run import Run
from training.config import DEFAULTS, PRESETS
from visuals.compared_runs import Curve, Progress
from visuals.curves import column

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS, CURVES = DOCS / "results.json", DOCS / "loss_curves.json"
GOOD = 2.5  # times the floor: nearly all digits and garments of such rows are recognisable
# Settings that change the scale of the loss: losses of runs that differ in them are not compared.
PROCESS = ("schedule", "prediction", "loss_weight", "clip_loss", "zero_terminal_snr", "learn_sigma")


class Measured(NamedTuple):
    """A row of docs/results.json."""

    recipe: str
    dataset: str
    conditional: bool
    images: float  # seen in training
    ratio: float  # classifier-FID over its floor: the mean of three sample seeds
    spread: tuple[float, float]  # the lowest and highest of these
    floor: float  # classifier-FID of training images
    parameters: int


class Need(NamedTuple):
    """The number of images that measured runs saw until their samples were close to real images."""

    low: float
    middle: float  # of the measured network that is most like the run's
    high: float  # infinity if no run of this data came close
    text: str  # in words, after "and"


@cache
def measured_runs() -> tuple[Measured, ...]:
    """The rows with a classifier-FID; none if the file is missing."""
    return tuple(read_rows(RESULTS))


def read_rows(path: Path) -> Iterator[Measured]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for row in rows:
        if (fid := row.get("measures", {}).get("classifier_fid")) is None:
            continue
        flags = TRAIN.parsed(TRAIN.parser(), shlex.split(row["train"])[2:])
        preset = PRESETS.get(flags.preset, {})
        size = flags.batch_size or preset.get("batch_size") or DEFAULTS["images"]["batch_size"]
        ratios = [value / fid["floor"] for value in fid["values"]]
        yield Measured(
            recipe=row["recipe"],
            dataset=flags.dataset,
            conditional=flags.class_conditional is not False,
            images=row["updates"] * size,
            ratio=fid["ratio"],
            spread=(min(ratios), max(ratios)),
            floor=fid["floor"],
            parameters=row["parameters"],
        )


def needed_images(run: Run) -> Need:
    """How many images a run like this one needs, by measured runs of its data, or of others."""
    same = [row for row in measured_runs() if row.dataset == run.dataset]
    of = f"the measured runs of {run.dataset}"
    if same and not (good := shortest(same)):
        longest = max(same, key=lambda row: row.images)
        text = f"{of} reached {longest.ratio:.1f} times the floor after {longest.images:,.0f}"
        return Need(longest.images, 2 * longest.images, math.inf, text)
    if not same:
        good = shortest(measured_runs())
        others = sorted({row.dataset for row in good})
        of = f"measured runs of other data ({', '.join(others)})"
    if not good:
        return Need(0, 0, 0, "there are no measured runs to compare with")
    low, high = (f(good, key=lambda row: row.images) for f in (min, max))
    text = (
        f"{of} were close to real images after {low.images:,.0f} ({low.ratio:.1f} times the floor)"
    )
    if high is not low:
        text += f" to {high.images:,.0f} ({high.ratio:.1f} times), by the network"
    like = min(good, key=lambda row: unlikeness(run, row))
    return Need(low.images, like.images, high.images, text)


def shortest(rows: list[Measured]) -> list[Measured]:
    """For each network, the shortest run with good samples."""
    found = {}
    for row in sorted(rows, key=lambda row: row.images):
        if row.ratio <= GOOD:
            found.setdefault((row.dataset, row.parameters), row)
    return list(found.values())


def unlikeness(run: Run, row: Measured) -> float:
    """How much a measured network differs from that of a run, in its size and its condition."""
    conditional = bool(run.setting("model", "num_classes"))
    size = abs(math.log(run.parameters / row.parameters)) if run.parameters else 0.0
    return size + (conditional != row.conditional)


def estimate(run: Run) -> list[str]:
    """Lines that say how much longer a run of images has to train, with the spread."""
    if not (run.config and run.kind == "images" and run.draws and run.step) or run.tuned:
        return []
    need, seen = needed_images(run), run.images_seen
    if not need.high:
        return []
    lines = [
        f"{run.step:,} steps of {run.batch_size:g} are {seen:,.0f} images; {need.text}.",
    ]
    if seen >= need.high:
        lines.append("The length is sufficient; more training makes small differences.")
    else:
        low, high = max(0.0, need.low - seen), need.high - seen
        lines.append(f"That is {span(low, high, 'images')} more{minutes(run, low, high)}.")
    if run.total and run.total > run.step:
        lines.append(f"Its planned end is at {run.total * run.batch_size:,.0f} images.")
    return lines + trend(run)


def longer(run: Run) -> int | None:
    """The total steps that a finished run needs, by the measured network that is most like its own.

    None if the run has made as many steps already, or is not finished.
    """
    if not estimate(run) or not run.is_finished:
        return None
    steps = math.ceil(needed_images(run).middle / run.batch_size)
    return steps if steps > run.step else None


def span(low: float, high: float, unit: str) -> str:
    """A range in words."""
    if math.isinf(high):
        return f"more than {low:,.0f} {unit}"
    return f"0 to {high:,.0f} {unit}" if low <= 0 else f"{low:,.0f} to {high:,.0f} {unit}"


def minutes(run: Run, low: float, high: float) -> str:
    """The time for `low` to `high` images at the run's speed, in words; "" if it is unknown."""
    speeds = run.speeds[1]
    if not speeds:
        return ""
    per_minute = 60 * median(speeds[-max(1, len(speeds) // 3) :])
    if not per_minute > 0:
        return ""
    times = span(low / per_minute, high / per_minute, "minutes")
    return f" ({times} at its {per_minute / 60:,.0f} images/s)"


def trend(run: Run) -> list[str]:
    """A line on how much the loss still falls."""
    losses = run.losses[1]
    if len(losses) < 12:
        return []
    third = len(losses) // 3
    before, last = fmean(losses[third : 2 * third]), fmean(losses[-third:])
    if before <= 0:
        return []
    change = 1 - last / before
    verb = "fell" if change >= 0 else "rose"
    return [f"The training loss {verb} by {abs(change):.1%} from the second to the last third."]


# --- the picture ----------------------------------------------------------------------------------


def progress_of(run: Run) -> Progress:
    """The curves of a run and of measured ones, for a picture."""
    size = run.batch_size
    steps, losses = run.losses
    held_out = run.validation
    own = [Curve("this run", [s * size for s in steps], losses)]
    if held_out[0]:
        own.append(Curve("held-out items", [s * size for s in held_out[0]], held_out[1]))
    rows = [row for row in measured_runs() if row.dataset == run.dataset]
    same = bool(rows)
    rows = rows or [row for row in measured_runs() if row.ratio <= GOOD]
    if run.kind == "points" or not run.draws:
        rows = []
    by_network: dict[tuple, list[Measured]] = {}
    for row in sorted(rows, key=lambda row: row.images):
        by_network.setdefault((row.dataset, row.parameters), []).append(row)
    quality = []
    for (dataset, parameters), found in by_network.items():
        names = [row.recipe.removeprefix(f"{dataset}, ") for row in found]
        label = f"{'' if same else dataset + ', '}{'; '.join(names)} ({parameters / 1e6:.1f} M)"
        errors = [row.spread for row in found]
        quality.append(Curve(label, [r.images for r in found], [r.ratio for r in found], errors))
    distances = column(run.rows, "classifier_fid")
    if distances[0] and same:
        floor = fmean(row.floor for row in rows)
        ratios = [distance / floor for distance in distances[1]]
        quality.append(Curve("this run", [s * size for s in distances[0]], ratios))
    planned = run.total * size if run.total and run.total > run.step else None
    unit = run.kind
    return Progress(own, curves_like(run), quality, run.images_seen, planned, unit)


def curves_like(run: Run) -> list[Curve]:
    """The measured curves of the training loss of the same data and the same process."""
    try:
        saved = json.loads(CURVES.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    wanted = process_of(run.config)
    return [
        Curve(each["name"], each["images"], each["loss"])
        for each in saved
        if each["dataset"] == run.dataset and each["process"] == wanted
    ]


def process_of(config: dict) -> dict:
    """The choices of a configuration that decide the scale of the loss."""
    found = {name: config.get("diffusion", {}).get(name) for name in PROCESS}
    train, model = config.get("train", {}), config.get("model", {})
    found["timestep_sampling"] = train.get("timestep_sampling")
    found["noise_assignment"] = train.get("noise_assignment")
    found["super_resolution"] = model.get("super_resolution")
    found["latents"] = bool(model.get("autoencoder"))
    found["image_size"] = config.get("data", {}).get("image_size")
    return {name: value for name, value in found.items() if value not in (None, False)}
