"""The folder of a run: its files, and operations on all of them."""

import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

from checkpoints.averages import KEPT, LENGTHS, average_files
from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from checkpoints.consistency import require_config
from checkpoints.inspection import PlainCopy
from checkpoints.reading import CheckpointError, step_of, verify_checkpoint
from checkpoints.runs import FINAL, FOLDER, SNAPSHOTS, run_path, snapshots
from checkpoints.shards import read_shard_record, verify_shards
from dataset.own_files import is_run_folder
from distributed import say
from training.foreign import CHECKPOINT, foreign_files, partial_files, written
from utils import save_whole, write_errors

LOCK = ".lock"
# Errors that mean that another process holds a lock; all others, that there are no locks.
HELD = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}
KEEP_STEPS = 3  # number of checkpoints between epochs that are kept


class RunFolder:
    """The files of a run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.environment = self.path / "env.json"
        self.data = self.path / "data.json"  # of a folder of images: {name: digest}
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.loss_plot = self.path / "training_loss.png"
        self.learning = self.path / "learning.png"
        self.report = self.path / "report.html"
        self.doctor = self.path / "doctor.png"
        self.samples = self.path / "samples"
        self.first_grid = self.samples / "first.png"  # before the end of the first epoch
        self.checkpoints = self.path / FOLDER
        self.snapshots = self.path / SNAPSHOTS
        self.interrupted = self.checkpoints / "interrupted.pt"
        self.best = self.checkpoints / "best.pt"
        self.final = self.path / FINAL
        self.lost_output = self.path / "lost_output.log"  # what could no longer be printed

    @classmethod
    def of(cls, checkpoint: Path) -> "RunFolder":
        """The folder of the run that a checkpoint, or a link to one, belongs to."""
        path = run_path(checkpoint.parent)
        if checkpoint.is_symlink() and not is_run_folder(path):
            path = run_path(checkpoint.resolve().parent)
        return cls(path)

    def grid(self, epoch: int) -> Path:
        return self.samples / f"epoch_{epoch:03d}.png"

    def checkpoint(self, epoch: int) -> Path:
        return self.checkpoints / f"model_epoch_{epoch:03d}.pt"

    def step_checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"model_step_{step:08d}.pt"

    def stage(self, steps: int) -> Path:
        """The file of a distilled network that samples in this number of steps."""
        return self.snapshots / f"draws_in_{steps}.safetensors"

    def snapshot(self, step: int) -> Path:
        return self.snapshots / f"step_{step:06d}.safetensors"

    def sharded_checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"model_step_{step:08d}.shards"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against other runs until the end, or until this process ends.

        The system releases the lock of a process that dies. The lock file stays. On a file system
        without locks, a message says so. Raises ValueError if another process holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / LOCK, "a+b", buffering=0) as file:
            file.seek(0)
            try:
                locked = lock_file(file)
            except OSError:
                holder = file.read().decode(errors="replace").strip() or "another process"
                raise ValueError(
                    f"a run is writing to {self.path} ({holder}): wait for it or stop it, or "
                    "choose another --output-dir"
                ) from None
            with write_errors(self.path / LOCK):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
            if locked:
                self.delete_partial()
            else:  # a partial file may be that of another run
                say(f"{self.path} cannot be locked: start no second run in it")
            yield

    def delete_partial(self) -> None:
        """Delete the incomplete files of a killed run."""
        for path in list(partial_files(self.path)):
            remove(path)

    def all_checkpoints(self) -> list[Path]:
        return list(written(self.path, CHECKPOINT))

    def steps(self) -> tuple[dict[Path, int], list[CheckpointError]]:
        """The steps of the checkpoints, and the errors of those that cannot be opened."""
        steps, damaged = {}, []
        for path in self.all_checkpoints():
            try:
                steps[path] = read_shard_record(path)["step"] if path.is_dir() else step_of(path)
            except CheckpointError as error:
                damaged.append(error)
        return steps, damaged

    def newest_checkpoint(self) -> tuple[Path | None, list[CheckpointError]]:
        """The valid checkpoint with the most steps, or None, and the errors of others."""
        steps, damaged = self.steps()
        for path in sorted(steps, key=steps.get, reverse=True):
            try:
                check(path)
            except CheckpointError as error:
                damaged.append(error)
            else:
                return path, damaged
        return None, damaged

    def best_loss(self, step: int) -> float:
        """The validation loss of best.pt; infinity if it is missing or of a later step."""
        try:
            best = load_checkpoint(self.best, mapped=True)
        except OSError:
            return inf
        return best["validation_loss"] if best["step"] <= step else inf

    def keep_newest(self, epochs: int | None, new: Path) -> None:
        """Delete old checkpoints between epochs, and those of all but the newest `epochs` epochs.

        None keeps those of all epochs. If the `new` checkpoint is damaged, nothing is deleted and
        CheckpointError is raised.
        """
        paths = sorted(written(self.path, r"checkpoints/model_.*\.(pt|shards)"), key=number_of)
        old = [path for path in paths if path.name.startswith("model_step_")][:-KEEP_STEPS]
        if epochs is not None:
            old += [path for path in paths if path.name.startswith("model_epoch_")][:-epochs]
        if old:
            check(new)
        for path in old:
            remove(path)

    def keep_newest_snapshots(self, count: int) -> None:
        """Delete all snapshots but the newest `count`."""
        for path in snapshots(self.path)[:-count]:
            remove(path)

    def keep_newest_averages(self) -> None:
        """Delete the oldest files of post-hoc averages."""
        files = average_files(self.path)
        for key in sorted(files)[: -KEPT * len(LENGTHS)]:
            remove(files[key])

    def holds_run(self) -> bool:
        """Are there metrics or checkpoints that a run wrote?"""
        foreign = foreign_files(self.path)
        return any(path not in foreign for path in written(self.path, f"metrics.*|{CHECKPOINT}"))

    def is_complete(self, steps: int, epoch: int) -> bool:
        """Has a run that ended after `steps` steps, in this epoch, written its last files?"""
        try:
            return step_of(self.final) == steps and self.grid(epoch).exists()
        except OSError:
            return False

    def clear(self) -> None:
        """Delete the files of a run, and no other files in the folder."""
        foreign = foreign_files(self.path)
        for path in list(written(self.path)):
            if path not in foreign and path.name != LOCK:
                remove(path)
        for folder in (self.samples, self.checkpoints, self.snapshots, self.tensorboard):
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()

    def set_aside(self, after: int) -> list[Path]:
        """Rename the checkpoints and snapshots of later steps, so that no run resumes from them.

        Returns the renamed checkpoints. If there are none, a session that was killed has written
        the later snapshots; they are deleted, because the run writes them again.
        """
        later = [path for path, step in self.steps()[0].items() if step > after]
        light = [path for path in snapshots(self.path) if number_of(path) > after]
        light += [path for (step, _), path in average_files(self.path).items() if step > after]
        stages = (self.path / SNAPSHOTS).glob("draws_in_*.safetensors")
        light += [path for path in stages if step_of(path) > after]
        for path in [*later, *light]:
            remove(path.with_name(f"{path.name}.aside"))
        for path in light:
            path.rename(path.with_name(f"{path.name}.aside")) if later else remove(path)
        return [path.rename(path.with_name(f"{path.name}.aside")) for path in later]

    def save(self, path: Path, checkpoint: dict) -> None:
        """Write a checkpoint, and its configuration as JSON."""
        save_checkpoint(path, checkpoint)
        self.save_config(checkpoint["config"])

    def saved_config(self) -> dict | None:
        """The configuration of the folder's run; None if there is none.

        Raises CheckpointError if it cannot be read or is invalid.
        """
        if not self.config.exists():
            return None
        try:
            if not self.config.is_file():
                raise ValueError("it is not a file")
            config = PlainCopy(0).copy(json.loads(self.config.read_text(encoding="utf-8-sig")))
            require_config(config)
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.config} cannot be read: {error}") from None
        return config

    def save_config(self, config: dict) -> None:
        text = json.dumps(config, indent=2) + "\n"
        save_whole(self.config, lambda partial: partial.write_text(text, encoding="utf-8"))


def number_of(path: Path) -> int:
    """The epoch or the step in a checkpoint's name."""
    return int(path.stem.rpartition("_")[2])


def check(path: Path) -> None:
    """Raise a CheckpointError if a checkpoint, a file or a folder of shards, is damaged."""
    if path.is_dir():
        verify_shards(path)
    else:
        verify_checkpoint(path)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def lock_file(file) -> bool:
    """Lock an open file for this process. False if its file system has no locks.

    Raises OSError if another process has locked it.
    """
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            file.seek(2**30)  # a locked byte cannot be read by others, so no text is locked
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in HELD:
            raise
        return False
    return True
