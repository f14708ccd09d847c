"""The training loop, and the run around it: log, validation, samples and checkpoints."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cli.activity import Bar, activity
from conditions import Condition
from dataset.items import epoch_order, kind_of, on_device, split
from dataset.types import Data
from distributed import is_main, largest, say, share, world_size
from training.conditioning import condition_of
from training.folder import RunFolder
from training.latents import encoded
from training.log import read_metrics
from training.pairs import with_noise
from training.plan import RunLength
from training.preview import EVALUATED, EVALUATION_STEPS, FIRST_GRID_STEPS, preview_of
from training.progress import Estimate
from training.run_log import RunLog
from training.saving import Saving
from training.stop import StopSignals
from training.threads import Threads
from training.trainer import Trainer
from visuals.pictures import save_picture

LOG_EVERY = 10  # steps between two rows of metrics
FIRST_GRID = 90  # seconds after which a new run writes its first grid, if an epoch takes longer
SOON = 30  # seconds; no first grid is written if the next regular one is due within them
FIRST_GRID_STEP = 100  # before it, there is hardly anything to see
SLOW_STEP = 5  # seconds; after a step that took longer, a message is shown during the next one
LONG_PREPARATION = 0.2  # fraction of --max-minutes before the first step that is explained
MAX_SKIPPED = 20  # steps in a row without a finite loss and gradient, before the run gives up


class Batches:
    """The items of each training step: a pure function of the seed and the step.

    Args:
        items, condition: the data (N, ...) and its condition (N), or None.
        indices: the items to train on.
        size: items of a training step, in all processes together.
        seed: of the order.
    """

    def __init__(
        self,
        items: Tensor,
        condition: Condition | None,
        indices: Tensor,
        size: int,
        seed: int,
    ):
        self.items, self.condition, self.indices = items, condition, indices
        self.size, self.seed = size, seed
        self.per_epoch = len(indices) // size
        mine = share(size)
        self.mine = slice(mine.start, mine.stop)
        self.order, self.order_epoch = indices, None

    def of_step(self, step: int) -> tuple[Tensor, Condition | None]:
        """This process's items (B, ...) of a step, and their condition."""
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self.order_epoch:
            order = self.indices[epoch_order(len(self.indices), self.seed, epoch)]
            self.order, self.order_epoch = order.to(self.items.device), epoch
        return self.items_of(self.order[i * self.size : (i + 1) * self.size][self.mine])

    def last_epoch(self, step: int) -> int:
        """The epoch, from 1, of the last step of a run with this number of steps."""
        return -(-step // self.per_epoch)

    def items_of(self, indices: Tensor) -> tuple[Tensor, Condition | None]:
        """The items (N, ...) with these indices, and their condition."""
        return self.items[indices], None if self.condition is None else self.condition[indices]


class Step(NamedTuple):
    """A training step that was made."""

    number: int  # steps made so far
    epoch: int  # from 1
    ends_epoch: bool
    loss: Tensor
    norm: Tensor  # of the gradient
    lr: float
    waited: float  # seconds, for its items


def training_steps(
    trainer: Trainer,
    batches: Batches,
    learning_rate: Callable[[int], float],
    last_step: Callable[[], int | None],
) -> Iterator[Step]:
    """The training loop: yields after each step, up to `last_step()`, which may change meanwhile.

    Raises Diverged if the weights become infinite.
    """
    while trainer.step != last_step():
        epoch, i = divmod(trainer.step, batches.per_epoch)
        start = time.monotonic()
        items, condition = batches.of_step(trainer.step)
        waited = time.monotonic() - start
        lr = learning_rate(trainer.step)
        loss, norm = trainer.train_step(items, condition, lr)
        yield Step(trainer.step, epoch + 1, i + 1 == batches.per_epoch, loss, norm, lr, waited)


def with_signs_of_life(steps: Iterator[Step]) -> Iterator[Step]:
    """The steps, with a message during the first, which may compile, and during slow ones."""
    name, slow = "first training step", True
    while True:
        start = time.monotonic()
        with activity(name) if slow else nullcontext():
            step = next(steps, None)
        if step is None:
            return
        name, slow = "training step", time.monotonic() - start > SLOW_STEP
        yield step


class Finished(ValueError):
    """A run that has made all its steps."""


class Trained(NamedTuple):
    """Result of a training run."""

    folder: Path
    checkpoint: Path  # model_final.pt, or interrupted.pt
    metrics: list[dict]  # the rows of metrics.jsonl
    exit_code: int  # 0, or 128 + the number of a signal


class Run:
    """A training run in its folder: the loop, with log, validation, samples and checkpoints.

    Args:
        config: the configuration, as checkpoints keep it.
        trainer: built from `config`, with the state of a checkpoint if the run is resumed.
        data: the data set.
        folder: where files are written.
        start: a reading of `time.monotonic()` from which a limit of minutes counts.
        tensorboard: also log for TensorBoard.
        distance: of uint8 images (N, C, H, W) to real ones, for --eval-interval.
        shorter: flags of a shorter run, which are recommended if this one takes long.

    Raises:
        ValueError: nothing to train on.
        Finished: nothing left to do.
    """

    def __init__(
        self,
        config: dict,
        trainer: Trainer,
        data: Data,
        folder: RunFolder,
        *,
        start: float,
        tensorboard: bool = False,
        distance: Callable[[Tensor], float] | None = None,
        shorter: str = "",
    ):
        train = config["train"]
        self.config, self.trainer, self.folder = config, trainer, folder
        self.distance = distance
        self.sample_interval, self.eval_interval = train["sample_interval"], train["eval_interval"]
        items = data.items
        if config["model"].get("autoencoder"):
            bar = partial(Bar, shown=is_main())
            new = trainer.step == 0 and not train.get("teacher")  # else the scale is known
            items = encoded(trainer, items, config["data"], bar, measure=new)
        if train.get("pairs"):
            items = with_noise(items, train["pairs_seed"], config)
        items = on_device(items, trainer.device)
        condition = condition_of(data, config, partial(Bar, shown=is_main()))
        if condition is not None:
            condition = condition.to(trainer.device)
        indices, self.held_out = split(len(data.items), train["validation"], train["seed"])
        batch_size = update_size(train, len(indices))
        self.batches = Batches(items, condition, indices, batch_size, trainer.seed)
        self.epoch_steps = self.batches.per_epoch
        self.kind = kind_of(data.items.shape[1:])
        self.start = start
        self.estimate = Estimate(trainer.step, shorter)
        self.first_grid = trainer.step == 0 and self.sample_interval > 0  # still to be written
        self.first_grid_due = False  # as agreed by all processes
        self.stop = StopSignals()
        self.stopping: int | None = None  # the signal that all processes stop for
        self.log = RunLog(trainer, folder, self.kind, batch_size, tensorboard)
        self.saving = Saving(trainer, folder, train, self.log.progress.say)
        self.threads = Threads(trainer, train, self.batches.of_step, batch_size, self.kind)
        self.preview = preview_of(trainer, config, data.items, condition, self.held_out, self.stop)
        self.length = RunLength(train, self.epoch_steps, trainer.step, start, trainer.lr)
        end = self.length.end
        if end == trainer.step and not folder.is_complete(end, self.batches.last_epoch(end)):
            self.length.fix(end)  # the run was killed while it wrote its last files
        elif end is not None and end <= trainer.step:
            raise Finished(
                f"this run has finished its {trainer.step:,} steps; to train longer, raise "
                "--epochs, --max-steps or --max-minutes"
            )

    def train(self) -> int | None:
        """Train to the end, or until a signal. Returns the number of the signal, or None.

        If a file cannot be written (because the disk is full, for example), this is reported and
        the run continues. Only the last checkpoint must be written.

        Raises:
            FloatingPointError: losses, gradients or weights are no longer finite.
            OSError: the last checkpoint cannot be written.
        """
        log, saving = self.log, self.saving
        if self.length.plan:
            self.explain_preparation()
            with activity("measuring the time that grids and validation take"):
                self.measure_pauses()
        steps = training_steps(
            self.trainer, self.batches, self.length.learning_rate, lambda: self.length.end
        )
        with log.open(saving.attempt), self.stop, saving:
            saving.catch_up(self.checkpoint(), self.epoch_steps, self.length.total)
            log.restart_clock()
            for step in self.threads.timed(with_signs_of_life(steps)):
                self.count(step)
                logs = step.number % LOG_EVERY == 0 or step.ends_epoch
                if logs or world_size() == 1:
                    self.agree()
                last = step.number == self.length.total
                if logs or last or self.stopping:
                    log.step_row(step.epoch, step.lr, step.norm, self.length.total)
                if logs and self.first_grid_due and not (last or step.ends_epoch or self.stopping):
                    self.write_first_grid()
                    log.restart_clock()
                if saving.snapshot_due:
                    saving.save_snapshot(self.config)
                if saving.ends_stage:
                    saving.save_stage(self.config)
                if saving.averages_due:
                    saving.save_averages(self.config)
                if step.ends_epoch:
                    self.end_epoch(step.epoch)
                    log.restart_clock()
                elif last:
                    saving.save(self.validate(step.epoch), self.checkpoint())
                    self.evaluate(step.epoch)
                if not (last or self.stopping) and self.threads.due():
                    self.adapt_threads()
                if saving.due and not (last or self.stopping):
                    saving.save_between(self.checkpoint())
                if self.stopping:
                    break
            return self.finish() if self.trainer.step == self.length.total else self.interrupt()

    def explain_preparation(self) -> None:
        """Say where the time has gone, if much of it has passed before the first step."""
        minutes, limit = (time.monotonic() - self.start) / 60, self.config["train"]["max_minutes"]
        if minutes > LONG_PREPARATION * limit and self.trainer.step == 0:
            say(
                f"{minutes:.1f} of the {limit:g} minutes have passed before the first training "
                "step. Prepared data is kept: the same command with --overwrite has more time"
            )

    def agree(self) -> None:
        """Agree with the other processes on the run's length, a stop, and what is due by the clock.

        A checkpoint or the first grid may be due. The main process decides, but a signal to any
        process stops all.
        """
        wishes = [self.stop.received or 0, 0, False, False]
        if is_main():
            wishes[1] = self.length.proposed(self.trainer.step)
            wishes[2:] = self.saving.is_late(), self.is_first_grid_due()
        stop, total, late, first = largest(wishes, self.trainer.device)
        self.stopping, self.saving.late = stop or None, bool(late)
        self.first_grid_due = bool(first)
        if total and total != self.length.total:
            if self.length.total is None:
                epochs = total / self.epoch_steps
                self.log.progress.say(f"the time allows {total:,} steps, {epochs:.1f} epochs")
            self.length.correct(total, self.trainer.step)

    def count(self, step: Step) -> None:
        """Add the loss of a step to the log, or report that it was skipped.

        Raises FloatingPointError after many skipped steps in a row.
        """
        trainer = self.trainer
        self.log.progress.count(step.number, self.length.total)
        timed = self.length.plan is not None  # its duration is known
        if not timed and (text := self.estimate.update(step.number, self.length.end)):
            self.log.progress.say(text)
        self.log.waited += step.waited
        if not trainer.skipped_in_a_row:
            self.log.add(step.loss)
        if trainer.skipped_in_a_row == 1:
            self.log.progress.say(
                f"step {step.number:,}: loss or gradient is not finite; the step is skipped"
            )
        if trainer.skipped_in_a_row == MAX_SKIPPED:
            self.saving.save_now(self.folder.interrupted, self.checkpoint())
            raise FloatingPointError(
                f"loss or gradient was not finite in {MAX_SKIPPED} steps in a row, up to step "
                f"{trainer.step:,}. The weights from before are saved in "
                f"{self.folder.interrupted}; resume with a lower --lr, or with --precision fp32"
            )

    def adapt_threads(self) -> None:
        """Choose the number of threads anew, because the machine's load has changed.

        The last bits of results depend on this number. A checkpoint records a change, so that a
        resumed run repeats it.
        """
        start = time.monotonic()
        self.saving.late |= self.threads.adapt(self.log.progress.say)
        seconds = time.monotonic() - start
        self.log.pause(seconds)
        if self.length.plan:
            self.length.plan.pause(seconds)

    # --- validation, samples, evaluation ----------------------------------------------------------

    def end_epoch(self, epoch: int) -> None:
        """Validate, and write the sample grid and the checkpoints that are due after an epoch."""
        start, plan = time.monotonic(), self.length.plan
        checkpoints = self.validate(epoch)
        last = self.trainer.step == self.length.total
        grid_due = self.sample_interval and epoch % self.sample_interval == 0
        if grid_due and not last:  # the last one is written by finish()
            self.write_grid(epoch)
            self.log.plot()
            if plan:
                plan.grid_seconds = time.monotonic() - start
        self.saving.save(checkpoints | self.saving.due_after(epoch), self.checkpoint())
        if last or not epoch % (self.eval_interval or epoch + 1):
            self.evaluate(epoch)
        if plan:
            plan.pause(time.monotonic() - start)

    def validate(self, epoch: int) -> dict:
        """Measure the loss of the held-out items. Returns the checkpoints to write for it."""
        if not len(self.held_out):
            return {}
        with activity("validation"):
            loss = self.held_out_loss()
        self.log.row({"step": self.trainer.step, "epoch": epoch, "validation_loss": loss})
        self.log.progress.validation = loss
        return self.saving.due_if_best(loss)

    def held_out_loss(self) -> float:
        """The validation loss."""
        return self.trainer.held_out_loss(*self.batches.items_of(self.held_out))

    def evaluate(self, epoch: int) -> None:
        """Measure the distance of samples by the averaged weights to real images."""
        if self.distance is None or self.stopping:
            return
        start = time.monotonic()
        with activity("classifier-FID, sampling"):
            images = self.preview.evaluated(EVALUATION_STEPS, EVALUATED)
        if images is None:
            return
        if is_main():
            with activity("classifier-FID"):
                distance = self.distance(images)
            self.log.row({"step": self.trainer.step, "epoch": epoch, "classifier_fid": distance})
            self.log.progress.say(f"epoch {epoch}: classifier-FID {distance:.3f}")
        if self.length.plan:
            self.length.plan.evaluation_seconds = time.monotonic() - start

    def measure_pauses(self) -> None:
        """Measure what the time plan must leave room for: grid, validation, evaluation."""
        plan = self.length.plan
        plan.grid_seconds = self.preview.seconds_of_grid()
        start = time.monotonic()
        if len(self.held_out):
            self.held_out_loss()
        plan.grid_seconds += time.monotonic() - start
        if self.distance is not None:
            plan.evaluation_seconds = self.preview.seconds_of_evaluation()

    def write_grid(self, epoch: int) -> None:
        """Write the sample grid of an epoch, with a row of real items."""
        with activity("sample grid"):
            picture = self.preview.picture()
        self.first_grid = False
        if picture is not None:
            path = self.folder.grid(epoch)
            self.saving.attempt("the grid", lambda: save_picture(path, picture), Exception)

    def is_first_grid_due(self) -> bool:
        """Is a grid due by the clock, because the first regular one comes much later?"""
        step, seconds = self.trainer.step, time.monotonic() - self.start
        if not self.first_grid or step < FIRST_GRID_STEP or seconds < FIRST_GRID:
            return False
        regular = self.sample_interval * self.epoch_steps
        until = min(regular, self.length.end or regular) - step
        return until * (seconds / step) > SOON

    def write_first_grid(self) -> None:
        """Write a grid with few sampling steps, before the first regular one."""
        start = time.monotonic()
        with activity("first sample grid"):
            picture = self.preview.picture(FIRST_GRID_STEPS)
        self.first_grid = self.first_grid_due = False
        if picture is not None:
            path = self.folder.first_grid
            self.saving.attempt("the grid", lambda: save_picture(path, picture), Exception)
            self.log.progress.say(f"early samples, after {self.trainer.step:,} steps: {path}")
        if self.length.plan:
            self.length.plan.pause(time.monotonic() - start)

    # --- beginning and end ------------------------------------------------------------------------

    def checkpoint(self) -> dict:
        """The state of the run, as a checkpoint keeps it."""
        return {**self.trainer.state(), **self.log.state(), "config": self.config}

    def load(self, checkpoint: dict) -> None:
        """Continue from a checkpoint that the trainer has loaded."""
        self.log.load(checkpoint)
        self.saving.best = self.folder.best_loss(self.trainer.step)

    def choose_threads(self, checkpoint: dict | None) -> str:
        """Choose the number of threads, for a run from a checkpoint or a new one; "" on a GPU."""
        end, minutes = self.length.end, self.config["train"]["max_minutes"]
        steps = None if end is None else end - self.trainer.step
        return self.threads.choose(checkpoint and checkpoint["config"]["train"], steps, minutes)

    def finish(self) -> None:
        """Write the last files of a finished run.

        The grid is written last: without it, the run was killed before the end of this method, and
        a resumed run calls it again.
        """
        folder, last_epoch = self.folder, self.batches.last_epoch(self.trainer.step)
        if is_main():  # written if the run was shorter before
            with suppress(OSError):
                folder.grid(last_epoch).unlink()
        self.saving.save_averages(self.config)
        self.saving.save_now(folder.final, self.checkpoint())
        if is_main():
            with suppress(OSError):
                folder.interrupted.unlink()
        self.log.plot()
        self.stop.received = None  # a Ctrl-C in the last step has nothing left to stop
        self.write_grid(last_epoch)

    def result(self, signal: int | None) -> Trained:
        """The result of a run that ended, by a signal or by itself."""
        last = self.folder.interrupted if signal else self.folder.final
        metrics = read_metrics(self.folder.metrics)
        return Trained(self.folder.path, last, metrics, 128 + signal if signal else 0)

    def interrupt(self) -> int:
        """Write the files from which the run can be resumed. Returns the signal's number."""
        self.saving.save_averages(self.config)
        self.saving.save_now(self.folder.interrupted, self.checkpoint())
        self.log.plot()
        return self.stopping


def trained_before(folder: RunFolder, finished: Finished) -> Trained:
    """The result of a run that had finished before. Raises `finished` if its model is missing."""
    if not folder.final.exists():
        raise finished
    return Trained(folder.path, folder.final, read_metrics(folder.metrics), 0)


def update_size(train: dict, count: int) -> int:
    """Items of a training step in all processes, at most `count`, the size of the training set.

    Raises ValueError if there are fewer items than batches in a step.
    """
    parts = train["grad_accum"] * train["processes"]
    size = min(train["batch_size"] * parts, count // parts * parts)
    if size == 0:
        raise ValueError(f"a training step needs {parts} batches, but there are only {count} items")
    return size
