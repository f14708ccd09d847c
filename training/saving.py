"""The saving policy of a run: when it writes which checkpoints, and what happens if it cannot."""

import time
from collections.abc import Callable
from math import inf
from pathlib import Path

from checkpoints.averages import LENGTHS, average_path, is_average_step
from checkpoints.checkpoint import CheckpointError
from checkpoints.shards import save_shards
from checkpoints.weights import save_weights
from cli.activity import activity
from distributed import is_main
from training.folder import RunFolder
from training.plan import is_snapshot_step
from training.saver import Saver, on_host
from training.trainer import Trainer


class Saving:
    """The saving policy of a run. States of the run are passed to it as dicts.

    Args:
        trainer: what is saved; its step decides what is due.
        folder: where files are written.
        train: the configuration of the training.
        say: prints a message to the user.
    """

    def __init__(
        self, trainer: Trainer, folder: RunFolder, train: dict, say: Callable[[str], object]
    ):
        self.trainer, self.folder, self.say = trainer, folder, say
        self.keeps_best = train.get("tune") not in ("consistency", "distill")  # the loss changes
        self.keep, self.epochs = train["keep"], train["save_interval"]
        self.steps, self.minutes = train["save_every_steps"], train["save_every_minutes"]
        self.snapshots = train["snapshots"]
        self.saver = Saver(lambda error: self.report("a checkpoint", error))
        self.last_save = time.monotonic()
        self.late = False  # a checkpoint is due by the clock
        self.best = inf  # the lowest validation loss
        self.failing: set[str] = set()  # what could not be written the last time

    def __enter__(self) -> "Saving":
        return self

    def __exit__(self, *error) -> None:
        with activity("waiting for the last checkpoint to be written"):
            self.saver.wait()  # whatever ended the run, its last checkpoint is written

    # --- what is due ------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Is a checkpoint due between those of the epochs?"""
        return self.late or bool(self.steps and self.trainer.step % self.steps == 0)

    @property
    def snapshot_due(self) -> bool:
        """Is a snapshot due after this step?"""
        return bool(self.snapshots) and is_snapshot_step(self.trainer.step)

    @property
    def ends_stage(self) -> bool:
        """Has this step ended a stage of a distillation? Its network is kept."""
        trainer = self.trainer
        return "teacher" in trainer.frozen and trainer.objective.has_new_teacher(trainer.step)

    @property
    def averages_due(self) -> bool:
        """Are the post-hoc averages to be written after this step?"""
        return is_average_step(self.trainer.step)

    def is_late(self) -> bool:
        """Is a checkpoint due by the clock, and none being written?"""
        if not self.minutes or self.saver.busy():
            return False
        return time.monotonic() - self.last_save >= 60 * self.minutes

    def due_after(self, epoch: int) -> dict[Path, dict]:
        """The checkpoint that is due after an epoch, if any, as `save` takes it."""
        due = self.epochs and epoch % self.epochs == 0
        return {self.folder.checkpoint(epoch): {}} if due else {}

    def due_if_best(self, loss: float) -> dict[Path, dict]:
        """The best checkpoint, if this validation loss is the lowest yet, as `save` takes it."""
        if not (self.epochs and self.keeps_best) or loss >= self.best:
            return {}
        self.best = loss
        return {self.folder.best: {"validation_loss": loss}}

    def catch_up(self, state: dict, epoch_steps: int, total: int | None) -> None:
        """Write the checkpoints of this step that are missing because the process was killed.

        Not in shards: processes that look for files while others write them would not agree.
        """
        if self.trainer.sharded:
            return
        step = self.trainer.step
        epoch, rest = divmod(step, epoch_steps)
        due = self.due_after(epoch) if epoch and not rest else {}
        if self.due and step not in (0, total):
            due[self.folder.step_checkpoint(step)] = {}
        self.save({path: extra for path, extra in due.items() if not path.exists()}, state)

    # --- writing ----------------------------------------------------------------------------------

    def save(self, files: dict[Path, dict], state: dict) -> None:
        """Write a state to files, each with its extra entries, while training continues."""
        if not files or not (is_main() or self.trainer.sharded):
            return
        state = self.copied(state)
        if not is_main():
            return

        def write() -> None:
            for path, extra in files.items():
                self.folder.save(path, {**state, **extra})
            self.folder.keep_newest(self.keep, path)

        self.saver.start(write)

    def copied(self, state: dict) -> dict:
        """A copy of a state on the CPU, once the last file is written: only one is in memory."""
        with activity("waiting for the last checkpoint to be written"):
            self.saver.wait()
        return on_host(state)

    def save_stage(self, config: dict) -> None:
        """Write the network at the end of a stage of distillation, while training continues."""
        if is_main():
            self.save_light(self.folder.stage(config["train"]["student_steps"]), config)

    def save_snapshot(self, config: dict) -> None:
        """Write only the averaged weights, while training continues, and keep the newest files.

        The same thread also writes checkpoints, one file after the other. So the snapshots before a
        checkpoint on the disk are on the disk, too.
        """
        if not (is_main() or self.trainer.sharded):
            return
        self.save_light(self.folder.snapshot(self.trainer.step), config)

    def save_light(self, path: Path, config: dict) -> None:
        """Write the averaged weights to a file, while training continues."""
        step = self.trainer.step
        state = self.copied({"config": config, "ema": self.trainer.ema.module.state_dict()})
        if not is_main():
            return

        def write() -> None:
            save_weights(path, state["config"], step, "ema", state["ema"], half=True)
            self.folder.keep_newest_snapshots(self.snapshots)

        self.saver.start(lambda: self.attempt("a snapshot", write))

    def save_averages(self, config: dict) -> None:
        """Write the post-hoc averages of this step, while training continues."""
        if not (self.trainer.averages and is_main()):
            return
        step, folder = self.trainer.step, self.folder.path
        state = self.copied({"config": config, "averages": self.trainer.state_of_averages()})

        def write() -> None:
            for length in LENGTHS:
                weights = state["averages"][f"{length:.2f}"]
                path = average_path(folder, step, length)
                save_weights(path, state["config"], step, "ema", weights, half=True)
            self.folder.keep_newest_averages()

        self.saver.start(lambda: self.attempt("an average", write))

    def save_between(self, state: dict) -> None:
        """Write the checkpoint that is due between those of the epochs."""
        self.late, self.last_save = False, time.monotonic()
        if not self.trainer.sharded:
            self.save({self.folder.step_checkpoint(self.trainer.step): {}}, state)
            return

        def write() -> None:
            path = self.folder.sharded_checkpoint(self.trainer.step)
            save_shards(path, state)
            if is_main():
                self.folder.keep_newest(self.keep, path)

        with activity("writing a checkpoint"):
            self.saver.wait()  # for a snapshot
            self.attempt("a checkpoint", write)

    def save_now(self, path: Path, state: dict) -> None:
        """Write a state to a file, and wait for it. Raises OSError if that fails."""
        state = on_host(state) if self.trainer.sharded else state

        def write() -> None:
            self.folder.save(path, state)
            self.folder.keep_newest(self.keep, path)  # not done if a kill came before

        if is_main():
            try:
                with activity(f"writing {path}"):
                    self.saver.run(write)
            except CheckpointError:
                raise
            except OSError as error:
                raise OSError(
                    f"{path} cannot be written ({error.strerror or error}). Once there is space or "
                    "permission, --resume continues from the newest checkpoint"
                ) from None

    def attempt(
        self, what: str, write: Callable[[], None], errors: type[Exception] = OSError
    ) -> None:
        """Write a file that the run can do without, and report errors of the given types."""
        try:
            write()
        except errors as error:
            self.report(what, error)
        else:
            self.failing.discard(what)

    def report(self, what: str, error: Exception) -> None:
        """Say, once, that something cannot be written."""
        if what not in self.failing:
            self.say(f"{what} could not be written ({error}); training continues")
        self.failing.add(what)
