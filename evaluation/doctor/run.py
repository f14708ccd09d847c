"""The files of a training run, read once."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from checkpoints.checkpoint import load_checkpoint
from checkpoints.consistency import CUSTOM
from checkpoints.reading import CheckpointError, step_of
from checkpoints.runs import FINAL, runs_below, sharded, snapshots
from checkpoints.shards import read_shard_record
from dataset.changes import read_files
from dataset.items import item_shape, kind_of
from dataset.registry import READING, load_dataset
from dataset.types import Data
from models import NOT_DENOISERS
from training.environment import read_environment
from training.folder import LOCK, RunFolder, check, lock_file, number_of
from training.foreign import written
from training.log import read_metrics
from utils import DataError, matches_type
from visuals.curves import column
from visuals.pictures import ImagePictures

GRIDS = r"samples/epoch_[0-9]{3,}\.png"
# Checkpoints that are read as a whole, to compare them with their SHA-256: those that a command
# would use, and the newest others. All are opened.
NAMED = ("model_final.pt", "best.pt", "interrupted.pt")
VERIFIED = 3
MAX_DATA = 2**28  # bytes of the training images that are compared with samples


class Pictures(NamedTuple):
    """The samples of a run and the real images below them, read from a sample grid."""

    path: Path
    samples: Tensor  # uint8 (N, C, H, W)
    real: Tensor  # uint8 (M, C, H, W)


@dataclass(frozen=True)
class Run:
    """The files of a run.

    Attributes:
        path: the folder.
        config: the configuration; empty if neither config.json nor a checkpoint has a valid one.
        config_error: why config.json cannot be used; "" if it can, or if there is none.
        rows: of metrics.jsonl; incomplete lines are left out.
        not_finite: steps of the rows with a value that is infinite or not a number.
        sessions: of env.json, oldest first.
        checkpoints: {path: step} of the valid ones, without snapshots.
        damaged: {path: reason} of the others.
        snapshots: files of averaged weights, oldest first.
        parameters: of the network; None if no file has its weights.
        digests: {name: digest of the pixels} for a folder of images.
        pictures: of the newest sample grid; None if there is none that can be read.
        writing: does a process hold the lock of the folder?
    """

    path: Path
    config: dict = field(repr=False)
    config_error: str
    rows: list[dict] = field(repr=False)
    not_finite: tuple[int, ...]
    sessions: list[dict] = field(repr=False)
    checkpoints: dict[Path, int]
    damaged: dict[Path, str]
    snapshots: tuple[Path, ...]
    parameters: int | None
    digests: dict[str, str] = field(repr=False)
    pictures: Pictures | None = field(repr=False)
    writing: bool

    # --- the configuration ------------------------------------------------------------------------

    def setting(self, section: str, name: str, default: object = None) -> object:
        """A value of the configuration."""
        return self.config.get(section, {}).get(name, default)

    def number(self, section: str, name: str, default: float = math.nan) -> float:
        """A number of the configuration; `default` if it has none."""
        value = self.setting(section, name)
        return value if matches_type(value, float) else default

    @property
    def kind(self) -> str:
        """ "images" or "points"."""
        return kind_of(item_shape(self.config["data"])) if self.config else "images"

    @property
    def dataset(self) -> str:
        return self.setting("data", "dataset", "unknown data")

    @property
    def model(self) -> str:
        return self.setting("model", "name", "")

    @property
    def is_custom(self) -> bool:
        """Is it a run of `fit`, with a network of the user's own?"""
        return self.model == CUSTOM

    @property
    def draws(self) -> bool:
        """Does the network draw images or points by itself?"""
        return self.model not in NOT_DENOISERS and not self.setting("model", "super_resolution")

    @property
    def tuned(self) -> str | None:
        """The way of tuning, of a run that began with a trained network; else None."""
        return self.setting("train", "tune")

    @property
    def batch_size(self) -> float:
        """Items of a training step."""
        return self.number("train", "update_size", self.number("train", "batch_size", 128))

    @property
    def held_out(self) -> int:
        """The number of held-out items."""
        return int(self.number("train", "validation", 0))

    @property
    def count(self) -> int:
        """The number of items to train on; 0 if it is unknown."""
        return max(0, int(self.number("data", "count", 0)) - self.held_out)

    # --- progress ---------------------------------------------------------------------------------

    @cached_property
    def step(self) -> int:
        """The last step that the files know of."""
        return max([0, *column(self.rows, "step")[1], *self.checkpoints.values()])

    @property
    def total(self) -> int | None:
        """The planned number of steps; None if it is unknown."""
        total = self.setting("train", "total_steps")
        if matches_type(total, int):
            return total
        limit = self.setting("train", "max_steps")  # config.json is written before the plan is made
        epochs, size = self.setting("train", "epochs"), int(min(self.batch_size, self.count))
        of_epochs = epochs * (self.count // size) if epochs and size else None
        return min((each for each in (limit, of_epochs) if each), default=None)

    @property
    def is_finished(self) -> bool:
        """Has it made its last step?"""
        final = self.path / FINAL
        if self.writing:
            return False
        return final in self.checkpoints or (self.total is not None and self.step >= self.total)

    @property
    def state(self) -> str:
        """Whether the run is in progress, finished or stopped, and its step, in words."""
        of = f" of {self.total:,}" if self.total and self.total >= self.step else ""
        if self.writing:
            return f"in progress, step {self.step:,}{of}"
        return f"{'finished' if self.is_finished else 'stopped'} at step {self.step:,}{of}"

    @property
    def epochs(self) -> float:
        """How often each item was seen, on average; 0 if the number of items is unknown."""
        return self.step * self.batch_size / self.count if self.count else 0.0

    @property
    def images_seen(self) -> float:
        """Items of all training steps."""
        return self.step * self.batch_size

    @cached_property
    def losses(self) -> tuple[list[int], list[float]]:
        """Steps and training losses, the mean over about ten steps each."""
        return column(self.rows, "loss")

    @cached_property
    def validation(self) -> tuple[list[int], list[float]]:
        """Steps and losses of the held-out items, by the averaged weights."""
        return column(self.rows, "validation_loss")

    @cached_property
    def speeds(self) -> tuple[list[int], list[float]]:
        """Steps and items per second."""
        return column(self.rows, "images_per_second")

    @cached_property
    def waiting(self) -> list[float]:
        """The share of the time of the steps that went into reading their items, row by row."""
        waited = dict(zip(*column(self.rows, "seconds_waiting_for_data"), strict=True))
        steps, speeds = self.speeds
        seconds = [
            (step - before) * self.batch_size / speed if speed > 0 else math.inf
            for before, step, speed in zip([0, *steps], steps, speeds, strict=False)
        ]
        rows = zip(steps, seconds, strict=True)
        return [waited[step] / time for step, time in rows if step in waited and time > 0]

    @property
    def seconds(self) -> float:
        """Time of the training steps."""
        return max([0.0, *column(self.rows, "seconds")[1]])

    # --- files ------------------------------------------------------------------------------------

    @cached_property
    def newest(self) -> Path | None:
        """The file that other commands would draw with; None if there is none."""
        files = {p: step for p, step in self.checkpoints.items() if not p.is_dir()}
        if self.path / FINAL in files:
            return self.path / FINAL
        if files:
            return max(files, key=lambda path: (files[path], path.name))
        return self.snapshots[-1] if self.snapshots else None

    @cached_property
    def data(self) -> Data | None:
        """The training data, if they are found without a download and are not large."""
        settings = self.config.get("data", {})
        if self.kind != "images" or self.is_custom:
            return None
        if math.prod(item_shape(settings)) * self.count > MAX_DATA:
            return None
        reading = {name: settings[name] for name in READING if name in settings}
        try:
            data = load_dataset(self.dataset, **reading, download=False).as_learned(settings)
        except (DataError, OSError, ValueError):
            return None
        same = tuple(data.items.shape[1:]) == item_shape(settings)
        return data if same and len(data.items) == settings["count"] else None


def read_run(path: Path, tell: Callable[[str], object] = lambda line: None) -> Run:
    """Read the folder of a run. `tell` is called with a line before each slow operation.

    Raises ValueError for a folder without a run.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise ValueError(f"{path} is not the folder of a run: there is no such folder")
    shards = [*sharded(path), *sharded(folder.checkpoints)]
    known = [*folder.all_checkpoints(), *snapshots(path), *shards]
    rows = read_metrics(folder.metrics)
    if not rows and not known and not folder.config.is_file():
        below = runs_below(path)
        hint = f"; there are runs in {', '.join(map(str, below[:8]))}" if below else ""
        raise ValueError(f"{path} holds no run: it has no config.json and no metrics.jsonl{hint}")
    tell("opening the checkpoints")
    steps, damaged = verified(folder, tell)
    config, error = config_of(folder, steps)
    return Run(
        path=path,
        config=config,
        config_error=error,
        rows=rows,
        not_finite=tuple(row["step"] for row in rows if any(map(is_not_finite, row.values()))),
        sessions=read_environment(folder.environment),
        checkpoints=steps,
        damaged=damaged,
        snapshots=tuple(snapshots(path)),
        parameters=parameters_of([*sorted(steps, key=steps.get), *snapshots(path)]),
        digests={k: v for k, v in read_files(folder.data).items() if isinstance(v, str)},
        pictures=pictures_of_grid(folder, config),
        writing=is_locked(path / LOCK),
    )


def verified(folder: RunFolder, tell: Callable) -> tuple[dict[Path, int], dict[Path, str]]:
    """The steps of the valid checkpoints, and the reasons why others are damaged."""
    steps, damaged = {}, {}
    for path in folder.all_checkpoints():
        try:
            steps[path] = read_shard_record(path)["step"] if path.is_dir() else step_of(path)
        except CheckpointError as error:
            damaged[path] = str(error)
        except OSError:  # deleted meanwhile
            continue
    newest = sorted(steps, key=steps.get)[-VERIFIED:]
    for path in [path for path in steps if path.name in NAMED or path in newest]:
        tell(f"reading {path.name}")
        try:
            check(path)
        except OSError as error:  # CheckpointError, or deleted meanwhile
            damaged[path] = str(error)
            del steps[path]
    return steps, damaged


def config_of(folder: RunFolder, steps: dict[Path, int]) -> tuple[dict, str]:
    """The configuration of a run, from config.json or a checkpoint; and config.json's error."""
    try:
        config, error = folder.saved_config(), ""
    except CheckpointError as reason:
        config, error = None, str(reason)
    for path in sorted(steps, key=steps.get, reverse=True):
        if config is None and not path.is_dir():
            try:
                config = load_checkpoint(path, mapped=True)["config"]
            except OSError:
                continue
    return config or {}, error


def parameters_of(paths: list[Path]) -> int | None:
    """The number of weights in the last of these files that can be read."""
    for path in reversed([path for path in paths if not path.is_dir()]):
        try:
            content = load_checkpoint(path, mapped=True)
        except OSError:
            continue
        weights = content.get("model") or content.get("ema") or {}
        return sum(weight.numel() for weight in weights.values() if weight.is_floating_point())
    return None


def pictures_of_grid(folder: RunFolder, config: dict) -> Pictures | None:
    """The samples and the real images in the newest sample grid; None if no grid can be read."""
    if not config or config["model"]["name"] in NOT_DENOISERS:
        return None
    shape = item_shape(config["data"])
    if kind_of(shape) == "points" or config["model"].get("super_resolution"):
        return None
    from PIL import Image

    for path in sorted(written(folder.path, GRIDS), key=number_of, reverse=True):
        try:
            with Image.open(path) as image:
                picture = np.array(image.convert("RGB"))
            found = ImagePictures().parts(picture, shape, config["data"].get("prompts", []))
        except (OSError, ValueError, SyntaxError):  # damaged, or of another version
            continue
        if len(found[1]):
            return Pictures(path, *found)
    return None


def is_locked(path: Path) -> bool:
    """Does another process hold the lock of a run's folder?"""
    try:
        with open(path, "rb") as file:
            lock_file(file)
    except FileNotFoundError:
        return False
    except OSError:
        return path.is_file()
    return False


def is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
