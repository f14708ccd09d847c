"""The run around the updates: what a training does from its first step to its last."""

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.shards import save_shards
from dataset.items import classes_like, epoch_order, item_shape, kind_of, on_device, split
from dataset.types import Data
from distributed import gather, is_main, largest, rank, share, world_size
from samplers import AUTO, SAMPLERS
from training.folder import RunFolder
from training.log import Metrics, read_metrics
from training.plan import TimePlan, learning_rate
from training.progress import Progress
from training.saver import Saver, on_host
from training.stop import StopSignals
from training.trainer import Diverged, Trainer
from training.validation import validation_loss
from utils import NoisePerImage, autocast
from visuals.curves import plot_loss
from visuals.pictures import pictures_of, save_picture, square

LOG_EVERY = 10  # steps between two rows of metrics
GRID_STEPS = 50  # sampling steps of a grid
NUM_POINTS = 2000  # points of a picture
DEFAULT_EPOCHS = 20
EVALUATION_STEPS = 10  # sampling steps of images that are evaluated
EVALUATED = 2000  # of them
AT_ONCE = 250  # of which so many of 32 x 32 pixels are computed
BAD_IN_A_ROW = 20  # updates that are left out before the run gives up


class Run:
    """The loop around the updates: order of the data, length, log, grids and checkpoints.

    Args:
        config: of the run, as its checkpoints keep it.
        trainer: made from it; with the state of a checkpoint if the run goes on from one.
        data: its data set.
        folder: where it writes.
        keep: epochs' checkpoints to keep, the newest; None keeps all.
        total: updates of the whole run, where they are known already.
        start: a reading of `time.monotonic()` from which a limit of minutes counts.
        tensorboard: log for TensorBoard too.
        distance: of uint8 images (N, C, H, W) to real ones, for --eval-interval.

    Raises:
        ValueError: nothing to train on, or nothing left to do.
    """

    def __init__(
        self,
        config: dict,
        trainer: Trainer,
        data: Data,
        folder: RunFolder,
        *,
        keep: int | None = None,
        total: int | None = None,
        start: float,
        tensorboard: bool = False,
        distance: Callable[[Tensor], float] | None = None,
    ):
        train = config["train"]
        self.config, self.trainer, self.data = config, trainer, data
        self.items = on_device(data.items, trainer.device)  # a GPU does not wait for batches then
        self.trained_on, self.held_out = split(len(data.items), train["validation"], train["seed"])
        self.shape = item_shape(config["data"])
        self.kind, self.pictures = kind_of(self.shape), pictures_of(self.shape)
        self.labels = None
        if config["model"].get("num_classes"):
            self.labels = on_device(data.labels, trainer.device)
        self.folder, self.keep, self.tensorboard = folder, keep, tensorboard
        self.sample_interval, self.save_interval = train["sample_interval"], train["save_interval"]
        self.eval_interval, self.distance = train["eval_interval"], distance
        self.at_once = max(1, AT_ONCE * 32**2 // self.shape[-1] ** 2)
        self.save_steps, self.save_minutes = train["save_every_steps"], train["save_every_minutes"]
        self.batch = update_size(train, len(self.trained_on))
        self.epoch_steps = len(self.trained_on) // self.batch
        self.stop = StopSignals()
        self.stopping: int | None = None  # the signal that all processes stop for
        self.progress = Progress(trainer.step, self.kind, shown=is_main())
        self.saver = Saver(lambda error: self.report("a checkpoint", error))
        self.last_save, self.late = time.monotonic(), False  # late: the next one is due
        self.failing: set[str] = set()  # what could not be written the last time
        self.drawn: Tensor | None = None  # the last picture's items
        self.loss, self.made = 0.0, 0  # the sum over updates since the last row, and their number
        self.seconds = 0.0  # of training, over all sessions
        self.best = inf  # the lowest validation loss
        self.cap = step_limit(train, self.epoch_steps)
        self.total = total  # steps of the whole run; None until the time plan knows it
        self.plan = None
        if total is not None:
            self.set_total(total)
        elif train["max_minutes"]:
            grid_steps = self.epoch_steps * (self.sample_interval or 10**9)
            self.plan = TimePlan(train["max_minutes"], start, trainer.step, grid_steps)
            self.plan.evaluation_steps = self.epoch_steps * (self.eval_interval or inf)
        else:
            self.set_total(self.cap)
        limit = self.total or self.cap
        if limit == trainer.step and not folder.finished(limit, self.last_epoch):
            self.set_total(limit)  # it was killed while it wrote its last files
        elif limit is not None and limit <= trainer.step:
            raise ValueError(
                f"this run has made its {trainer.step:,} updates; to train longer, raise --epochs, "
                "--max-steps or --max-minutes"
            )

    def train(self) -> int | None:
        """Train to the end, or to a signal, whose number it returns.

        What cannot be written on the way, for a full disk say, is reported, and the run goes on;
        its last checkpoint must be.

        Raises:
            FloatingPointError: losses, gradients or weights are no longer finite.
            OSError: the last checkpoint cannot be written.
        """
        trainer, board = self.trainer, self.folder.tensorboard if self.tensorboard else None
        mine = share(self.batch)
        mine = slice(mine.start, mine.stop)
        last_lr = trainer.lr  # of the run that is resumed
        if self.plan:
            self.plan.grid_seconds = self.time_of_epoch_end()
            self.plan.evaluation_seconds = self.time_of_evaluation()
        since, mark = trainer.step, time.monotonic()
        order, order_epoch = None, None
        metrics = Metrics(self.folder.metrics, trainer.step, board) if is_main() else nullcontext()
        with metrics as self.metrics, self.stop, self.progress:
            self.catch_up()
            while trainer.step != (self.total or self.cap) and not self.stopping:
                epoch, i = divmod(trainer.step, self.epoch_steps)
                if epoch != order_epoch:
                    order = self.trained_on[epoch_order(len(self.trained_on), trainer.seed, epoch)]
                    order, order_epoch = order.to(self.items.device), epoch
                chosen = order[i * self.batch : (i + 1) * self.batch][mine]
                lr = learning_rate(trainer.step, self.total, self.config["train"])
                lr = min(lr, last_lr) if self.total is None else lr
                step_loss, norm = self.update(chosen, lr)
                if trainer.skipped_now:
                    self.count_skipped()
                else:
                    self.loss, self.made = self.loss + step_loss, self.made + 1

                logs, epoch_ends = trainer.step % LOG_EVERY == 0, i + 1 == self.epoch_steps
                if logs or epoch_ends or world_size() == 1:
                    self.agree()
                ends = trainer.step == self.total or self.stopping
                if logs or epoch_ends or ends:
                    now = time.monotonic()
                    self.seconds += now - mark
                    row = {
                        "step": trainer.step,
                        "epoch": epoch + 1,
                        "loss": float(self.loss) / self.made if self.made else None,
                        "lr": lr,
                        "images_per_second": (trainer.step - since) * self.batch / (now - mark),
                        "gradient_norm": float(norm) if norm.isfinite() else None,
                        "skipped": trainer.skipped,
                        "seconds": self.seconds,
                    }
                    self.log(row)
                    self.progress.update(self.total, row)
                    self.loss, self.made, since, mark = 0.0, 0, trainer.step, now
                if epoch_ends:
                    self.end_epoch(epoch + 1)
                    mark = time.monotonic()
                elif trainer.step == self.total:
                    self.save(self.validate(epoch + 1))
                    self.evaluate(epoch + 1)
                if self.save_due and not ends:
                    self.save_between()
            return self.finish() if trainer.step == self.total else self.interrupt()

    def update(self, chosen: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        try:
            return self.trainer.update(self.items[chosen], self.labels_of(chosen), lr)
        except Diverged as error:
            self.saver.wait()
            raise FloatingPointError(
                f"{error}, and are not saved; go on from the last checkpoint (--resume) with a "
                "lower --lr"
            ) from None

    def labels_of(self, chosen: Tensor) -> Tensor | None:
        return None if self.labels is None else self.labels[chosen]

    def set_total(self, total: int) -> None:
        self.total = min(total, self.cap or total)
        self.config["train"]["total_steps"] = self.total

    def agree(self) -> None:
        """Settle with the other processes how long the run is, whether it stops, and whether it is
        time for a checkpoint between epochs: the main process's clock decides."""
        step, total, late = self.trainer.step, 0, False
        if is_main():
            planned = self.plan.update(step, self.total) if self.plan else None
            total = planned or (self.cap if step == self.cap else 0)
            late = bool(self.save_minutes) and not self.saver.busy()
            late &= time.monotonic() - self.last_save >= 60 * self.save_minutes
        wishes = [self.stop.received or 0, total, late]
        stop, total, late = largest(wishes, self.trainer.device)
        self.stopping, self.late = stop or None, bool(late)
        if total and total != self.total:
            if self.total is None:
                epochs = total / self.epoch_steps
                self.progress.say(f"the time holds {total:,} updates, {epochs:.1f} epochs")
            self.set_total(total)

    @property
    def save_due(self) -> bool:
        """Is a checkpoint due, between those of the epochs?"""
        return self.late or bool(self.save_steps and self.trainer.step % self.save_steps == 0)

    def count_skipped(self) -> None:
        """Say that an update was left out; end the run when many were, one after the other."""
        trainer = self.trainer
        if trainer.skipped_now == 1:
            self.progress.say(
                f"step {trainer.step:,}: loss or gradient is not finite; the update is left out"
            )
        if trainer.skipped_now == BAD_IN_A_ROW:
            self.save_now(self.folder.interrupted)
            raise FloatingPointError(
                f"{BAD_IN_A_ROW} updates in a row had a loss or gradient that is not finite, up to "
                f"step {trainer.step:,}. The weights from before are saved in "
                f"{self.folder.interrupted}; go on with a lower --lr, or with --precision fp32"
            )

    def end_epoch(self, epoch: int) -> None:
        """Validate, and write the sample grid and the checkpoints that are due after an epoch."""
        start = time.monotonic()
        checkpoints = self.validate(epoch)
        grid_due = self.sample_interval and epoch % self.sample_interval == 0
        if grid_due and self.trainer.step != self.total:  # the last one is finish()'s
            self.write_grid(epoch)
            self.plot()
            if self.plan:
                self.plan.grid_seconds = time.monotonic() - start
        self.save(checkpoints | self.due_after(epoch))
        if self.trainer.step == self.total or not epoch % (self.eval_interval or epoch + 1):
            self.evaluate(epoch)
        if self.plan:
            self.plan.pause(time.monotonic() - start)

    def due_after(self, epoch: int) -> dict[Path, dict]:
        """What to save after an epoch: its checkpoint, if one is due."""
        due = self.save_interval and epoch % self.save_interval == 0
        return {self.folder.checkpoint(epoch): {}} if due else {}

    def catch_up(self) -> None:
        """Write the checkpoints of this step that are missing: a kill came between them.

        Not in shards: processes that look for files while others write them would not agree.
        """
        if self.trainer.sharded:
            return
        step = self.trainer.step
        epoch, rest = divmod(step, self.epoch_steps)
        due = self.due_after(epoch) if epoch and not rest else {}
        if self.save_due and step not in (0, self.total):
            due[self.folder.step_checkpoint(step)] = {}
        self.save({path: extra for path, extra in due.items() if not path.exists()})

    def validate(self, epoch: int) -> dict[Path, dict]:
        """Measure the loss of the held-out items. Returns what to save: the best checkpoint, if it
        is the lowest loss yet."""
        if not len(self.held_out):
            return {}
        loss = self.held_out_loss()
        self.log({"step": self.trainer.step, "epoch": epoch, "validation_loss": loss})
        self.progress.validation = loss
        if not self.save_interval or loss >= self.best:
            return {}
        self.best = loss
        return {self.folder.best: {"validation_loss": loss}}

    def evaluate(self, epoch: int) -> None:
        """Measure how far images by the averaged weights are from real ones."""
        if self.distance is None or self.stopping:
            return
        start, images = time.monotonic(), self.evaluated(EVALUATION_STEPS, EVALUATED)
        if images is None:
            return
        if is_main():
            distance = self.distance(images)
            self.log({"step": self.trainer.step, "epoch": epoch, "classifier_fid": distance})
            self.progress.say(f"epoch {epoch}: classifier-FID {distance:.3f}")
        if self.plan:
            self.plan.evaluation_seconds = time.monotonic() - start

    def evaluated(self, steps: int, count: int) -> Tensor | None:
        """uint8 images (count, C, H, W) by a few steps, with the shares that the classes have
        in the data; None if stopped.

        Each process draws equally many: a sharded network needs all of them.
        """
        each = -(-count // world_size())
        numbers, parts = torch.arange(rank() * each, (rank() + 1) * each), []
        classes = None if self.labels is None else classes_like(self.labels, numbers[-1] + 1)
        for part in numbers.split(self.at_once):
            y = None if classes is None else classes[part]
            if (x := self.walk(steps, part, y)) is None:
                return None
            parts.append(self.pictures.finished(x))
        return gather(torch.cat(parts))[:count].cpu()

    def held_out_loss(self) -> float:
        items, y = self.items[self.held_out], self.labels_of(self.held_out)
        return validation_loss(self.trainer, items, y)

    @property
    def last_epoch(self) -> int:
        """The number of the epoch that the last update was in."""
        return -(-self.trainer.step // self.epoch_steps)

    def finish(self) -> None:
        """Write what a finished run leaves behind.

        The grid comes last: a run without it was killed before, and does this again when resumed.
        """
        folder = self.folder
        if is_main():  # there may be one of when the run was shorter
            with suppress(OSError):
                folder.grid(self.last_epoch).unlink()
        self.save_now(folder.final)
        if is_main():
            with suppress(OSError):
                folder.interrupted.unlink()
        self.plot()
        self.stop.received = None  # a Ctrl-C in the last step has nothing left to stop
        self.write_grid(self.last_epoch)

    def interrupt(self) -> int:
        """Write what it takes to go on; returns the signal's number."""
        self.save_now(self.folder.interrupted)
        self.plot()
        return self.stopping

    def checkpoint(self) -> dict:
        return {
            **self.trainer.state(),
            "config": self.config,
            "seconds": self.seconds,
            "unlogged_loss": float(self.loss),
            "unlogged_updates": self.made,
        }

    def load(self, checkpoint: dict) -> None:
        """Go on from a checkpoint that the trainer has loaded."""
        self.seconds = checkpoint["seconds"]
        self.best = self.folder.best_loss(self.trainer.step)
        self.loss, self.made = checkpoint["unlogged_loss"], checkpoint["unlogged_updates"]

    def save(self, files: dict[Path, dict]) -> None:
        """Write the run's state to files, with something added to each, while training goes on."""
        if not files or not (is_main() or self.trainer.sharded):
            return
        self.saver.wait()  # before memory is taken for another copy
        state = on_host(self.checkpoint())
        if not is_main():
            return

        def write() -> None:
            for path, extra in files.items():
                self.folder.save(path, {**state, **extra})
            self.folder.keep_newest(self.keep, path)

        self.saver.start(write)

    def save_between(self) -> None:
        """Write the checkpoint that is due between those of the epochs."""
        self.late, self.last_save = False, time.monotonic()
        if not self.trainer.sharded:
            self.save({self.folder.step_checkpoint(self.trainer.step): {}})
            return

        def write() -> None:
            path = self.folder.sharded_checkpoint(self.trainer.step)
            save_shards(path, self.checkpoint())
            if is_main():
                self.folder.keep_newest(self.keep, path)

        self.attempt("a checkpoint", write)

    def save_now(self, path: Path) -> None:
        """Write the run's state to a file; raises an OSError if that fails."""
        state = on_host(self.checkpoint()) if self.trainer.sharded else self.checkpoint()

        def write() -> None:
            self.folder.save(path, state)
            self.folder.keep_newest(self.keep, path)  # a kill may have come before it the last time

        if is_main():
            self.saver.run(write)

    def log(self, row: dict) -> None:
        if is_main():
            self.attempt("the metrics", lambda: self.metrics.write(row))

    def plot(self) -> None:
        if is_main():
            draw = partial(plot_loss, read_metrics(self.folder.metrics), self.folder.loss_plot)
            self.attempt("the plot of the loss", draw)

    def attempt(self, what: str, write: Callable[[], None]) -> None:
        """Write something that the run can do without."""
        try:
            write()
        except OSError as error:
            self.report(what, error)
        else:
            self.failing.discard(what)

    def report(self, what: str, error: OSError) -> None:
        """Say, once, that something cannot be written."""
        if what not in self.failing:
            self.progress.say(f"{what} could not be written ({error}); the run goes on")
        self.failing.add(what)

    def write_grid(self, epoch: int) -> None:
        self.drawn = self.sample(GRID_STEPS)
        if self.drawn is not None and is_main():
            grid = self.pictures.grid(self.drawn, square(len(self.drawn)), real=self.data.items)
            self.attempt("the grid", lambda: save_picture(self.folder.grid(epoch), grid))

    def sample(self, steps: int) -> Tensor | None:
        """Items by the averaged weights, from the same noise each time; None if stopped.

        Each process draws its share of them.
        """
        trainer = self.trainer
        count = NUM_POINTS if self.kind == "points" else 64 if self.shape[-1] <= 32 else 16
        mine = share(count)
        mine = range(
            mine.start, max(mine.stop, mine.start + 1)
        )  # a sharded network needs all of us
        indices, y = torch.arange(count)[mine.start : mine.stop], None
        if self.labels is not None:  # one class a column, as far as they go
            y = indices % square(count) % trainer.model.num_classes
        x = self.walk(steps, indices, y)
        return None if x is None else self.pictures.finished(gather(x[: len(share(count))]))

    def walk(self, steps: int, numbers: Tensor, y: Tensor | None) -> Tensor | None:
        """The items of those numbers (N, ...), of the classes y (N,); None if stopped."""
        trainer, noise = self.trainer, NoisePerImage(self.trainer.seed, numbers.tolist())
        y = None if y is None else y.to(trainer.device)
        denoise = trainer.diffusion.denoiser(trainer.ema.module, y)
        levels = trainer.diffusion.levels(min(steps, trainer.diffusion.timesteps))
        start = levels[0].scale * noise.draw(self.shape).to(trainer.device)
        with autocast(trainer.device, trainer.precision):
            for x in SAMPLERS[AUTO](denoise, start, levels, noise):  # noqa: B007
                if self.stop.received and world_size() == 1:  # the others would wait for our share
                    return None
        return x

    def time_of_epoch_end(self) -> float:
        """Seconds that a sample grid, by a few of its steps, and a validation take."""
        self.sample(1)  # the first call is slower than the rest
        start = time.monotonic()
        self.sample(3)
        seconds = (time.monotonic() - start) * GRID_STEPS / 3
        start = time.monotonic()
        if len(self.held_out):
            self.held_out_loss()
        return seconds + time.monotonic() - start

    def time_of_evaluation(self) -> float:
        """Seconds that it takes, by a step of its first images."""
        if self.distance is None:
            return 0.0
        start, count = time.monotonic(), min(EVALUATED, self.at_once * world_size())
        self.evaluated(1, count)
        return (time.monotonic() - start) * EVALUATION_STEPS * EVALUATED / count


def step_limit(train: dict, epoch_steps: int) -> int | None:
    """The number of steps that --epochs and --max-steps allow; None if only time limits the run."""
    epochs = train["epochs"]
    if not (train["epochs"] or train["max_steps"] or train["max_minutes"]):
        epochs = DEFAULT_EPOCHS
    limits = [train["max_steps"], epochs and epochs * epoch_steps]
    return min((limit for limit in limits if limit), default=None)


def update_size(train: dict, count: int) -> int:
    """Data of an update, of all processes: the whole set, if it is smaller than that."""
    parts = train["grad_accum"] * train["processes"]
    size = min(train["batch_size"] * parts, count // parts * parts)
    if size == 0:
        raise ValueError(f"an update of {parts} batches: there are only {count} images")
    return size
