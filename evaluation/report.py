"""Report of a run: samples of its checkpoints, curves of its metrics, and an HTML page of both."""

import math
import os
import platform
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from checkpoints.checkpoint import CheckpointError, load_checkpoint, restore
from checkpoints.runs import snapshots
from dataset.image_files import printable
from dataset.items import item_shape, kind_of, noise_shape
from dataset.registry import load_dataset
from diffusion import GaussianDiffusion
from models import NOT_DENOISERS
from models.latents import space_of
from samplers import SAMPLERS, generate
from sampling.conditioning import grid_condition
from sampling.draw import evenly_spread
from sampling.plan import default_sampler, default_spacing, default_steps
from training.folder import RunFolder, number_of
from training.log import read_metrics
from utils import NoisePerImage, describe, existing_path, matches_type, save_whole
from visuals.curves import column, draw_loss
from visuals.page import PagePicture, render
from visuals.pictures import pictures_of, pixels_of, square
from visuals.style import Figure, default_style

MAX_CHECKPOINTS = 12  # that are sampled from, unless epochs are chosen
STEPS = 50  # of sampling
FRAMES = 25  # of the animation
CURVES = {"loss": "loss", "classifier_fid": "classifier-FID", "lr": "learning rate"}
CURVES |= {"gradient_norm": "gradient norm", "images_per_second": "{kind}/s"}


class SavedStep(NamedTuple):
    """A checkpoint, or a snapshot, of a run."""

    step: int
    label: str  # "step N, epoch E"
    path: Path
    ended_epoch: int | None  # the epoch that ends with this step, if one does

    @property
    def is_snapshot(self) -> bool:
        return self.path.suffix == ".safetensors"


class Learning(NamedTuple):
    """Samples from the checkpoints of a run."""

    samples: dict[str, Tensor]  # label -> uint8 images or points; for points, "data" comes first
    frames: list[Tensor]  # from noise to samples, by the newest checkpoint
    newest: dict  # path, step, seconds, config of the newest checkpoint; empty if there is none
    settings: dict[str, object]  # of sampling
    notes: list[str]  # what is missing or left out, and why


def learning_rows(
    run_folder: str | Path,
    *,
    epochs: Sequence[int] | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    say: Callable[[str], object] = lambda line: None,
) -> Learning:
    """Sample from the same noise with the checkpoints and snapshots of a run, oldest first.

    A file that cannot be read is left out and noted. Raises ValueError for too many steps, or
    an epoch that has no checkpoint.

    Args:
        epochs: use the checkpoints at the end of these epochs (default: 12 checkpoints, evenly
            spaced in the step, or in its logarithm if there are snapshots).
        steps: sampling steps, at most the run's T (default: 50, or T).
        say: called with a line for each checkpoint.
    """
    device = torch.device(device)
    saved, notes = saved_steps(RunFolder(existing_path(run_folder)))
    if epochs is not None:
        chosen = at_epochs(saved, epochs)
    else:
        chosen = evenly_chosen(saved)
        if len(chosen) < len(saved) and not any(each.is_snapshot for each in saved):
            notes.append(f"{len(chosen)} of {len(saved)} checkpoints are shown, evenly spaced.")
        if not chosen and not notes:
            notes.append(
                "There is no checkpoint yet: train.py writes one every few epochs "
                "(--save-interval), when it is stopped (Ctrl-C), and at the end."
            )
    samples, frames, newest, settings = {}, [], {}, {"device": describe(device, "fp32")}
    for number, each in enumerate(chosen, start=1):
        say(f"checkpoint {number} of {len(chosen)}: {each.label}")
        try:
            checkpoint = load_checkpoint(each.path)
            config = checkpoint["config"]
            if config["model"]["name"] in NOT_DENOISERS:
                notes.append(f"The model {config['model']['name']} draws nothing.")
                break
            if config["model"].get("super_resolution"):
                notes.append("The model enlarges images; the pictures in samples/ show how.")
                break
            model, diffusion = restore(checkpoint, device)
            shape = item_shape(config["data"])
            if samples and shape != next(iter(samples.values())).shape[1:]:
                raise CheckpointError(f"{each.path} is of another run")
        except (OSError, ValueError) as error:  # ValueError: without the weights' moving average
            notes.append(f"Left out: {error}.")
            continue
        in_row, in_grid, _ = item_counts(shape)
        if kind_of(shape) == "points" and not samples:
            samples["data"] = load_dataset(config["data"]["dataset"], split="test").items[:in_row]
        if steps is not None and config.get("train", {}).get("student_steps") not in (None, steps):
            notes.append(f"{each.label} draws in its own number of steps, not in {steps}.")
            steps = None
        usual = min(default_steps(config, STEPS), diffusion.timesteps)
        used = {"steps": steps or usual, "seed": seed}
        sampled = partial(trajectory, model, diffusion, config, device=device, **used)
        samples[each.label] = deque(sampled(in_row), maxlen=1).pop()
        newest = {key: checkpoint[key] for key in ("step", "seconds", "config")}
        newest["path"] = each.path
    if newest:
        shown = evenly_spread(used["steps"], FRAMES)
        frames = [x for done, x in enumerate(sampled(in_grid)) if done in shown]
        settings |= {"sampler": default_sampler(config), **used, "weights": "moving average"}
    return Learning(samples, frames, newest, settings, notes)


def saved_steps(folder: RunFolder) -> tuple[list[SavedStep], list[str]]:
    """The checkpoints of a run, and its snapshots at other steps, oldest first.

    Also returns notes on damaged checkpoints.
    """
    steps, damaged = folder.steps()
    named = {steps[path]: number_of(path) for path in steps if path.match("model_epoch_*.pt")}
    rows = read_metrics(folder.metrics)
    epochs = {row["step"]: row["epoch"] for row in rows if matches_type(row.get("epoch"), int)}
    epochs |= named
    last_steps = {epoch: step for step, epoch in sorted(epochs.items())}
    # The newest epoch may still be in progress.
    ended_epochs = last_steps.keys() - {max(last_steps, default=None)}
    ended_epochs |= {epochs.get(step) for step in [*named, steps.get(folder.final)]}
    regular = {path: step for path, step in steps.items() if path != folder.best}
    light = {path: number_of(path) for path in snapshots(folder.path)}
    saved = {}
    for path, step in [*(regular or steps).items(), *light.items()]:
        epoch = epochs.get(step)
        if path in light:  # most have no row of metrics; the next row is of the same epoch
            epoch = min((row for row in epochs.items() if row[0] >= step), default=(0, epoch))[1]
        label = f"step {step:,}" + (f", epoch {epoch}" if epoch else "")
        ended = epoch if epoch in ended_epochs and last_steps.get(epoch) == step else None
        saved.setdefault(step, SavedStep(step, label, path, ended))
    return sorted(saved.values()), [f"Left out: {error}." for error in damaged]


def evenly_chosen(saved: list[SavedStep]) -> list[SavedStep]:
    """At most `MAX_CHECKPOINTS` of the saved steps: the first, the last, and others evenly spaced.

    If there are snapshots, which follow the logarithm of the step, the spacing is logarithmic.
    """
    if len(saved) <= MAX_CHECKPOINTS:
        return saved
    if not any(each.is_snapshot for each in saved):
        return [saved[i] for i in sorted(evenly_spread(len(saved) - 1, MAX_CHECKPOINTS))]
    places = [math.log(max(1, each.step)) for each in saved]
    wanted = np.linspace(places[0], places[-1], MAX_CHECKPOINTS)
    nearest = {int(np.abs(np.array(places) - place).argmin()) for place in wanted}
    return [saved[i] for i in sorted(nearest)]


def at_epochs(saved: list[SavedStep], epochs: Sequence[int]) -> list[SavedStep]:
    """The saved steps at the end of these epochs. Raises ValueError for an epoch without one."""
    found = {s.ended_epoch: s for s in saved if s.ended_epoch is not None}
    if missing := sorted(set(epochs) - found.keys()):
        wanted, known = (", ".join(map(str, numbers)) or "none" for numbers in (missing, found))
        raise ValueError(f"epochs without a checkpoint: {wanted}; epochs with one: {known}")
    return [found[epoch] for epoch in sorted(set(epochs))]


def item_counts(shape: Sequence[int]) -> tuple[int, int, int]:
    """The number of items of a shape in a row, in the grid and in the animation."""
    if kind_of(shape) == "points":
        return 2000, 2000, 2000
    side = max(shape[1:])
    if side > 64:
        return 4, 16, 4
    return 8, 64 if side <= 32 else 16, 9


def trajectory(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    config: dict,
    count: int,
    *,
    steps: int,
    seed: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield uint8 images or points: noise, then each step of sampling.

    In a grid of these items, each column has one class, or each row one prompt.
    """
    shape, space = item_shape(config["data"]), space_of(model)
    pictures = pictures_of(shape, None, space and space.decode)
    indices = torch.arange(count, device=device)
    denoise = diffusion.denoiser(model, grid_condition(config, indices, item_counts(shape)[0]))
    levels = diffusion.levels(steps, default_spacing(config))
    noise_like = NoisePerImage(seed, range(count))
    noise = noise_like.draw(noise_shape(config)).to(device)
    sampled = generate(denoise, noise, levels, noise_like, SAMPLERS[default_sampler(config)])
    for level, x in zip(levels, sampled, strict=True):
        yield pictures.to_items(x / level.scale)  # edm's x_t would be far too bright


# --- the page ------------------------------------------------------------------------------------


def write_report(run_folder: str | Path, learning: Learning | None = None) -> Path:
    """Write `report.html` into the folder of a run. Raises ValueError if it holds no run."""
    folder = RunFolder(existing_path(run_folder))
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
        notes.append(f"The metrics reach step {step:,}, but no readable checkpoint does.")
    if step != total:
        notes.append(f"The run is not finished: step {step:,}{f' of {total:,}' if total else ''}.")
    seconds = duration(max([newest.get("seconds", 0), *column(metrics, "seconds")[1]]))
    kind = kind_of(item_shape(config["data"])) if config else "images"
    facts = facts_of(config, metrics, kind)
    conditional = config.get("model", {}).get("num_classes") and kind == "images"
    html = render(
        title=f"How a model learned {facts.get('data set', 'its data')}",
        summary=f"{step:,} training steps in {seconds}",
        notes=notes,
        samples=list(sample_pictures(learning)),
        samples_text="Each starts from the same noise and uses the moving average of the weights."
        + (" Each column is one class." if conditional else ""),
        sampling=trajectory_pictures(learning),
        curves=list(curve_pictures(metrics, kind)),
        facts={**facts, "training steps": f"{step:,}", "training time": seconds},
        commands=commands_of(folder, newest, total),
        config=config,
        report_facts={**software(), **learning.settings},
    )
    content = html.encode(errors="replace")  # names of folders may not be UTF-8
    save_whole(folder.report, lambda partial: partial.write_bytes(content))
    return folder.report


def config_of(folder: RunFolder, notes: list[str]) -> dict:
    """The configuration of a run without checkpoints; empty, with a note, if it is unreadable."""
    try:
        config = folder.saved_config()
    except CheckpointError as error:
        notes.append(f"The configuration cannot be read: {error}.")
        return {}
    if config is None:
        notes.append(f"The configuration cannot be read: there is no {folder.config}.")
    return config or {}


def facts_of(config: dict, metrics: list[dict], kind: str) -> dict[str, object]:
    """The data set, the lowest loss and the speed of a run."""
    facts = {}
    if data := config.get("data"):
        facts["data set"] = data["dataset"]
        if data["dataset"] == "folder":
            facts["data set"] += f" {data['data_dir']}"
        shape = " x ".join(map(str, item_shape(data)))
        facts["items"] = f"{data['count']:,} {kind} of {shape}"
        facts["classes"] = list(map(printable, data["classes"]))
    if epochs := column(metrics, "epoch")[1]:
        facts["epochs"] = max(epochs)
    steps, losses = column(metrics, "validation_loss")
    if losses:
        step = steps[losses.index(min(losses))]
        facts["lowest validation loss"] = f"{min(losses):.4g} at step {step:,}"
    if speeds := column(metrics, "images_per_second")[1]:
        facts["median speed"] = f"{median(speeds):,.0f} {kind}/s"
    return facts


def software() -> dict[str, object]:
    """Time, versions and machine of the report."""
    return {
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "platform": platform.platform(),
        "CPU cores": os.cpu_count(),
    }


def sample_pictures(learning: Learning) -> Iterator[PagePicture]:
    """A row of images, or a scatter plot, for each checkpoint."""
    for label, items in learning.samples.items():
        picture = pictures_of(items.shape[1:]).frame(items, len(items))
        yield PagePicture(label, f"{counted(items)}: {label}", [picture], items.ndim == 2)


def trajectory_pictures(learning: Learning) -> list[PagePicture]:
    """An animation of sampling a few items with the newest checkpoint, and more of its samples."""
    if not learning.frames:
        return []
    last, label = learning.frames[-1], list(learning.samples)[-1]
    pictures, is_plot = pictures_of(last.shape[1:]), last.ndim == 2
    in_row, _, in_motion = item_counts(last.shape[1:])
    frames = [pictures.frame(x[:in_motion], square(in_motion)) for x in learning.frames]
    grid = pictures.frame(last, in_row)
    alt = f"{counted(last[:in_motion])} from noise to data: {label}"
    return [
        PagePicture(f"sampling, {label}", alt, frames, is_plot),
        PagePicture(f"samples, {label}", f"{counted(last)}: {label}", [grid], is_plot),
    ]


def counted(items: Tensor) -> str:
    """Number and kind of items, such as "8 images"."""
    return f"{len(items):,} {kind_of(items.shape[1:])}"


def curve_pictures(metrics: list[dict], kind: str) -> Iterator[PagePicture]:
    """A small plot over the steps for each metric of `CURVES` that was measured."""
    for name, title in CURVES.items():
        steps, values = column(metrics, name)
        if not steps:
            continue
        title = title.format(kind=kind)
        alt = f"{title}: {values[0]:.3g} at step {steps[0]:,}, "
        alt += f"{values[-1]:.3g} at step {steps[-1]:,}"
        yield PagePicture(title, alt, [curve_picture(metrics, name)], is_plot=True)


@default_style()
def curve_picture(metrics: list[dict], name: str) -> np.ndarray:
    """The plot (H, W, 3) of a metric over the steps."""
    figure = Figure(figsize=(4, 2.8), dpi=180, layout="constrained")
    axes = figure.subplots()
    if name == "loss":
        draw_loss(axes, metrics)
    else:
        steps, values = column(metrics, name)
        axes.plot(steps, values, linewidth=1.2, marker="." if len(steps) < 20 else None)
        axes.grid(alpha=0.25)
    axes.set(xlabel="step")
    return pixels_of(figure)


def commands_of(folder: RunFolder, newest: dict, total: int | None) -> list[str]:
    """Commands to sample with the newest checkpoint, and to continue its run."""
    if not newest:
        return []
    run = shlex.quote(str(folder.path))
    longer = f" --max-steps {2 * newest['step']}" if newest["step"] == total else ""
    return [
        f"python sample.py --checkpoint {shlex.quote(str(newest['path']))}",
        f"python train.py --resume --output-dir {run}{longer}",
        f"python visualize_diffusion.py --run {run}",
    ]


def duration(seconds: float) -> str:
    """Format as "1 h 2 min 3 s", without the units that are zero."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"
