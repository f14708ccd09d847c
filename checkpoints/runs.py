"""Which checkpoint the folder of a training run stands for."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

from checkpoints.reading import CheckpointError, step_of, verify_checkpoint
from utils import existing_path

FINAL = "model_final.pt"  # the finished model of a run
FOLDER = "checkpoints"  # folder of the other checkpoints
SNAPSHOTS = "snapshots"  # folder of weights files from during the training
# The files of checkpoints in the folder of a run. Others may be of other runs.
WRITTEN = (
    rf"{re.escape(FINAL)}|"
    rf"{FOLDER}/(interrupted|best|model_epoch_[0-9]{{3,}}|model_step_[0-9]{{8,}})\.pt"
)
SNAPSHOT = rf"{SNAPSHOTS}/step_[0-9]{{6,}}\.safetensors"
STAGE = rf"{SNAPSHOTS}/draws_in_[0-9]+\.safetensors"  # of a distillation, by its sampling steps
OF_A_RUN = (FINAL, "config.json", "metrics.jsonl")  # a run's folder has at least one of them
SHOWN = 8  # runs or files in a message, at most


def sharded(folder: Path) -> list[Path]:
    """The sharded checkpoints in a folder."""
    return list(folder.glob("model_step_*.shards"))


def run_path(folder: Path) -> Path:
    """The folder of a run, given this folder or that of the run's checkpoints or snapshots."""
    real, within = folder.resolve(), (FOLDER, SNAPSHOTS)
    if real.name not in within or any((folder / name).exists() for name in OF_A_RUN):
        return folder
    return folder.parent if folder.name in within else real.parent


def snapshots(folder: Path) -> list[Path]:
    """The snapshots in the folder of a run, oldest first."""
    files = (folder / SNAPSHOTS).glob("*.safetensors")
    ours = [p for p in files if re.fullmatch(SNAPSHOT, p.relative_to(folder).as_posix())]
    return sorted(ours, key=lambda path: (len(path.name), path.name))


def find_checkpoint(path: str | Path, say: Callable[[str], object] = warnings.warn) -> Path:
    """The file of a checkpoint: the path, or the one that the folder of a run stands for.

    That is `model_final.pt`, or else the valid checkpoint with the most steps, or else the newest
    snapshot. `say` is called with a line for each damaged one. Raises CheckpointError if a folder
    has none of them.
    """
    path = existing_path(path)
    if not path.is_dir():
        return path
    if path.suffix == ".shards":
        raise CheckpointError(
            f"{path} is a sharded checkpoint, which only train.py --resume reads; a finished run "
            f"has a {FINAL}"
        )
    named, path = path, run_path(path)
    steps, damaged = {}, []
    for file in [*path.glob("*.pt"), *(path / FOLDER).glob("*.pt")]:
        if not re.fullmatch(WRITTEN, file.relative_to(path).as_posix()):
            continue
        try:
            steps[file] = step_of(file)
        except OSError as error:  # CheckpointError, or deleted meanwhile
            damaged.append(str(error))
    order = {file: (file == path / FINAL, step, file.name) for file, step in steps.items()}
    files = sorted(order, key=order.get, reverse=True)
    for file in [*files, *reversed(snapshots(path))]:
        try:
            verify_checkpoint(file)
        except OSError as error:
            damaged.append(str(error))
        else:
            for reason in damaged:
                say(f"skipped: {reason}")
            return file
    raise CheckpointError(why_none(named, damaged))


def why_none(path: Path, damaged: list[str]) -> str:
    """A message: why no checkpoint is found in a folder, and what to give instead."""
    if damaged:
        return f"{path} has no valid checkpoint: {damaged[0]}"
    if sharded(path) or sharded(path / FOLDER):
        return (
            f"{path} has only sharded checkpoints, which only train.py --resume reads; a finished "
            f"run has a {FINAL}"
        )
    run = run_path(path)
    if (run / "metrics.jsonl").exists():
        return (
            f"the run in {run} has no checkpoint yet: train.py writes one every ten minutes "
            "(--save-every-minutes), when it is stopped, and at the end"
        )
    if runs := runs_below(path):
        return f"{path} holds no run; there are runs in {listed(runs)}"
    endings = ("*.pt", "*.safetensors", "*.ckpt")
    if files := [file for ending in endings for file in path.glob(ending)]:
        return f"{path} holds no run; there are files {listed(files)}"
    return f"{path} is a folder that holds no run of train.py and no checkpoint"


def runs_below(path: Path) -> list[Path]:
    """The runs in the subfolders of a folder, up to two levels deep."""
    found = {file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/{FINAL}")}
    found |= {file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/metrics.jsonl")}
    return sorted(found)


def listed(paths: list[Path]) -> str:
    """Some paths, in words."""
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(str, sorted(paths)[:SHOWN])) + more
