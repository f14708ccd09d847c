"""Foreign files: they have the names of a run's files, and no run of this project wrote them.

They are recognised by their content and are never replaced or deleted. The pictures of older
versions carry no mark; in the folder of a run they count as the run's.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from checkpoints import runs
from checkpoints.averages import FILE as AVERAGE
from checkpoints.averages import MADE
from checkpoints.checkpoint import CheckpointError
from checkpoints.seal import is_sealed
from checkpoints.shards import read_shard_record
from checkpoints.weights import is_own_weights
from cli.streams import HEADING
from dataset.changes import read_files
from dataset.own_files import is_own_figure, is_own_page, is_own_picture, is_run_folder
from training.environment import read_environment
from training.log import read_metrics

SHOWN = 5  # names in a message
MEASURED = {"images_per_second", "validation_loss", "classifier_fid"}


def is_config(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # damaged: env.json decides
        return is_environment(path.with_name("env.json"))
    return is_run_folder(path.parent)


def is_environment(path: Path) -> bool:
    sessions = read_environment(path)
    return bool(sessions) and all(
        {"time", "command", "packages"} <= each.keys() for each in sessions
    )


def is_file_list(path: Path) -> bool:
    digests = [digest for digest in read_files(path).values() if isinstance(digest, str)]
    return any(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests)


def is_metrics(path: Path) -> bool:
    rows = read_metrics(path)
    return not path.stat().st_size or any("epoch" in row and MEASURED & row.keys() for row in rows)


def is_log(path: Path) -> bool:
    with open(path, errors="replace") as file:
        return file.read(len(HEADING)) in ("", HEADING)


def is_lock(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    return not text or re.fullmatch(r"process [0-9]+ on .*\n", text) is not None


def is_sharded(path: Path) -> bool:
    try:
        read_shard_record(path)
    except CheckpointError:
        return False
    return True


# Paths in a run's folder that the run and its report write, and a function that recognises each.
WRITTEN: dict[str, Callable[[Path], bool]] = {
    r"config\.json": is_config,
    r"env\.json": is_environment,
    r"data\.json": is_file_list,
    r"metrics\.jsonl": is_metrics,
    r"lost_output\.log": is_log,
    r"\.lock": is_lock,
    r"(training_loss|learning|doctor)\.png": is_own_picture,
    r"report\.html": is_own_page,
    r"samples/(epoch_[0-9]{3,}|first)\.png": is_own_picture,
    rf"({runs.WRITTEN})(\.aside)?": is_sealed,
    r"checkpoints/model_step_[0-9]{8,}\.shards(\.aside)?": is_sharded,
    rf"({runs.SNAPSHOT})(\.aside)?": is_own_weights,
    rf"{AVERAGE}(\.aside)?": is_own_weights,
    MADE: is_own_weights,
    rf"({runs.STAGE})(\.aside)?": is_own_weights,
    r"tensorboard/events\.out\.tfevents\..+": lambda path: is_run_folder(path.parent.parent),
}
REPORT = ("learning.png", "doctor.png", "report.html")  # of visualize_diffusion.py
FOLDERS = ("samples", "checkpoints", "snapshots", "tensorboard")
CHECKPOINT = r".*\.(pt|shards)"
# Checked in the folder of a run, too: older versions already marked these files.
ALWAYS_CHECKED = r"(training_loss|learning|doctor)\.png|report\.html"


def written(folder: Path, pattern: str = ".*") -> Iterator[Path]:
    """The files in a folder that have the names of a run's files and match a pattern."""
    for place in (folder, *(folder / name for name in FOLDERS)):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            name = path.relative_to(folder).as_posix()
            if check_of(name) and re.fullmatch(pattern, name):
                yield path


def partial_files(folder: Path) -> Iterator[Path]:
    """The incomplete files, and sharded checkpoints, of a killed run."""
    for place in (folder, *(folder / name for name in FOLDERS)):
        for path in place.glob(".*.partial"):
            name = re.fullmatch(r"\.(.+?)(\.[0-9]+)?\.partial", path.name)
            if name and check_of(path.with_name(name[1]).relative_to(folder).as_posix()):
                yield path


def check_of(name: str) -> Callable[[Path], bool] | None:
    """The function that recognises a run's file of this name; None if no run writes this name."""
    return next((check for each, check in WRITTEN.items() if re.fullmatch(each, name)), None)


def foreign_files(folder: Path) -> list[Path]:
    """The foreign files in a folder."""
    ours = is_run_folder(folder)
    found = [folder / name for name in FOLDERS if is_other_than_folder(folder / name)]
    return found + [path for path in written(folder) if is_foreign(folder, path, ours)]


def is_foreign(folder: Path, path: Path, ours: bool) -> bool:
    """Is a file of a run's name foreign? `ours`: the folder is that of a run."""
    name = path.relative_to(folder).as_posix()
    if not (path.is_file() or path.is_dir()):  # reading from a pipe would never end
        return True
    if path.is_dir() != bool(re.fullmatch(r".*\.shards(\.aside)?", name)):
        return True
    if not ours:
        return not check_of(name)(path)
    if not re.fullmatch(ALWAYS_CHECKED, name):
        return False
    return not (is_own_page(path) if path.suffix == ".html" else is_own_figure(path))


def is_other_than_folder(path: Path) -> bool:
    return path.exists() and not path.is_dir()


def require_no_foreign_files(folder: Path, *, deleted: bool = False) -> None:
    """Raise ValueError if foreign files are in the way of a run.

    Args:
        folder: of the run.
        deleted: the run in the folder, and its report, will be deleted first.
    """
    files = foreign_files(folder)
    if not deleted and is_run_folder(folder):
        files = [path for path in files if path.name not in REPORT]
    if files:
        names = ", ".join(path.relative_to(folder).as_posix() for path in files[:SHOWN])
        more = f" and {len(files) - SHOWN:,} more" if len(files) > SHOWN else ""
        raise ValueError(
            f"{folder} has files that a run would replace and that no run wrote: {names}{more}. "
            "Choose another --output-dir, or move these files"
        )
