"""The run around the updates: what a training does from its first step to its last."""

import json
import time
from math import inf, isfinite
from typing import TextIO

import torch
from torch import Tensor

from data import Data, epoch_order, item_shape, kind_of
from pictures import pictures_of, save_picture, square
from samplers import AUTO, SAMPLERS
from training.folder import RunFolder
from training.log import open_metrics, plot_loss
from training.plan import TimePlan, learning_rate
from training.progress import Progress
from training.stop import StopSignals
from training.trainer import Trainer
from training.validation import split, validation_loss
from utils import NoisePerImage, autocast

LOG_EVERY = 10  # steps between two rows of metrics
GRID_STEPS = 50  # sampling steps of a grid
NUM_POINTS = 2000  # points of a picture
DEFAULT_EPOCHS = 20


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
    ):
        train = config["train"]
        self.config, self.trainer, self.items = config, trainer, data.items
        self.trained_on, self.held_out = split(len(data.items), train["validation"], train["seed"])
        self.shape = item_shape(config["data"])
        self.kind, self.pictures = kind_of(self.shape), pictures_of(self.shape)
        self.labels = data.labels if config["model"].get("num_classes") else None
        self.folder, self.keep = folder, keep
        self.sample_interval, self.save_interval = train["sample_interval"], train["save_interval"]
        self.batch = update_size(train, len(self.trained_on))
        self.epoch_steps = len(self.trained_on) // self.batch
        self.stop = StopSignals()
        self.progress = Progress(trainer.step, self.kind)
        self.drawn: Tensor | None = None  # the last picture's items
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
        else:
            self.set_total(self.cap)
        if (limit := self.total or self.cap) is not None and limit <= trainer.step:
            raise ValueError(
                f"this run has made its {trainer.step:,} updates; to train longer, raise --epochs, "
                "--max-steps or --max-minutes"
            )

    def train(self) -> int | None:
        """Train to the end, or to a signal, whose number it returns."""
        trainer = self.trainer
        self.folder.save_config(self.config)
        last_lr = trainer.lr  # of the run that is resumed
        if self.plan:
            self.plan.grid_seconds = self.time_of_epoch_end()
        loss, since, mark = 0.0, trainer.step, time.monotonic()
        order, order_epoch = None, None
        with open_metrics(self.folder.metrics, trainer.step) as metrics, self.stop, self.progress:
            while self.total is None or trainer.step < self.total:
                epoch, i = divmod(trainer.step, self.epoch_steps)
                if epoch != order_epoch:
                    order = self.trained_on[epoch_order(len(self.trained_on), trainer.seed, epoch)]
                    order_epoch = epoch
                chosen = order[i * self.batch : (i + 1) * self.batch]
                y = self.labels_of(chosen)
                lr = learning_rate(trainer.step, self.total, self.config["train"])
                lr = min(lr, last_lr) if self.total is None else lr
                step_loss, norm = trainer.update(self.items[chosen], y, lr)
                loss += step_loss
                self.follow_plan()

                epoch_ends = i + 1 == self.epoch_steps
                ends = trainer.step == self.total or self.stop.received
                if trainer.step % LOG_EVERY == 0 or epoch_ends or ends:
                    steps, now = trainer.step - since, time.monotonic()
                    self.seconds += now - mark
                    row = {
                        "step": trainer.step,
                        "epoch": epoch + 1,
                        "loss": float(loss) / steps,
                        "lr": lr,
                        "images_per_second": steps * self.batch / (now - mark),
                        "gradient_norm": float(norm) if norm.isfinite() else None,
                        "seconds": self.seconds,
                    }
                    if not isfinite(row["loss"]):
                        raise FloatingPointError(
                            f"the loss is {row['loss']} at step {trainer.step:,}; try a lower "
                            "--lr, or --precision fp32. The checkpoints are as they were."
                        )
                    metrics.write(json.dumps(row) + "\n")
                    self.progress.update(self.total, row)
                    loss, since, mark = 0.0, trainer.step, now
                if epoch_ends:
                    self.end_epoch(epoch + 1, metrics)
                    mark = time.monotonic()
                elif trainer.step == self.total:
                    self.validate(epoch + 1, metrics)
                if self.stop.received:
                    break
        return self.finish() if trainer.step == self.total else self.interrupt()

    def labels_of(self, chosen: Tensor) -> Tensor | None:
        return None if self.labels is None else self.labels[chosen]

    def set_total(self, total: int) -> None:
        self.total = min(total, self.cap or total)
        self.config["train"]["total_steps"] = self.total

    def follow_plan(self) -> None:
        """Let the time plan, if there is one, set or correct the number of steps."""
        if self.plan is None:
            return
        known, step = self.total is not None, self.trainer.step
        planned = self.plan.update(step, self.total)
        if planned is None and step == self.cap:
            planned = step
        if planned is not None:
            self.set_total(planned)
            if not known:
                epochs = self.total / self.epoch_steps
                self.progress.say(f"the time holds {self.total:,} updates, {epochs:.1f} epochs")

    def end_epoch(self, epoch: int, metrics: TextIO) -> None:
        """Validate, and write the sample grid and the checkpoint that are due after an epoch."""
        start = time.monotonic()
        self.validate(epoch, metrics)
        grid_due = self.sample_interval and epoch % self.sample_interval == 0
        if grid_due and self.trainer.step != self.total:  # the last one is finish()'s
            self.write_grid(epoch)
            plot_loss(self.folder.metrics, self.folder.loss_plot)
            if self.plan:
                self.plan.grid_seconds = time.monotonic() - start
        if self.save_interval and epoch % self.save_interval == 0:
            self.folder.save(self.folder.checkpoint(epoch), self.checkpoint())
            self.folder.keep_newest(self.keep)
        if self.plan:
            self.plan.pause(time.monotonic() - start)

    def validate(self, epoch: int, metrics: TextIO) -> None:
        """Measure the loss of the held-out items; a checkpoint with the lowest yet is the best."""
        if not len(self.held_out):
            return
        loss = self.held_out_loss()
        row = {"step": self.trainer.step, "epoch": epoch, "validation_loss": loss}
        metrics.write(json.dumps(row) + "\n")
        self.progress.validation = loss
        if self.save_interval and loss < self.best:
            self.best = loss
            self.folder.save(self.folder.best, {**self.checkpoint(), "validation_loss": loss})

    def held_out_loss(self) -> float:
        items, y = self.items[self.held_out], self.labels_of(self.held_out)
        return validation_loss(self.trainer, items, y)

    def finish(self) -> None:
        """Write what a finished run leaves behind."""
        folder = self.folder
        folder.save(folder.final, self.checkpoint())
        plot_loss(folder.metrics, folder.loss_plot)
        self.stop.received = None  # a Ctrl-C in the last step has nothing left to stop
        self.write_grid(-(-self.trainer.step // self.epoch_steps))
        folder.interrupted.unlink(missing_ok=True)

    def interrupt(self) -> int:
        """Write what it takes to go on; returns the signal's number."""
        folder = self.folder
        folder.save(folder.interrupted, self.checkpoint())
        plot_loss(folder.metrics, folder.loss_plot)
        return self.stop.received

    def checkpoint(self) -> dict:
        return {**self.trainer.state(), "config": self.config, "seconds": self.seconds}

    def write_grid(self, epoch: int) -> None:
        self.drawn = self.sample(GRID_STEPS)
        if self.drawn is not None:
            grid = self.pictures.grid(self.drawn, square(len(self.drawn)), real=self.items)
            save_picture(self.folder.grid(epoch), grid)

    def sample(self, steps: int) -> Tensor | None:
        """Items by the averaged weights, from the same noise each time; None if stopped."""
        trainer = self.trainer
        count = NUM_POINTS if self.kind == "points" else 64 if self.shape[-1] <= 32 else 16
        noise, y = NoisePerImage(trainer.seed, range(count)), None
        if self.labels is not None:  # one class a column, as far as they go
            columns = torch.arange(count, device=trainer.device) % square(count)
            y = columns % trainer.model.num_classes
        denoise = trainer.diffusion.denoiser(trainer.ema.module, y)
        levels = trainer.diffusion.levels(min(steps, trainer.diffusion.timesteps))
        start = levels[0].scale * noise.draw(self.shape).to(trainer.device)
        with autocast(trainer.device, trainer.precision):
            for x in SAMPLERS[AUTO](denoise, start, levels, noise):  # noqa: B007
                if self.stop.received:
                    return None
        return self.pictures.finished(x)

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


def step_limit(train: dict, epoch_steps: int) -> int | None:
    """The number of steps that --epochs and --max-steps allow; None if only time limits the run."""
    epochs = train["epochs"]
    if not (train["epochs"] or train["max_steps"] or train["max_minutes"]):
        epochs = DEFAULT_EPOCHS
    limits = [train["max_steps"], epochs and epochs * epoch_steps]
    return min((limit for limit in limits if limit), default=None)


def update_size(train: dict, count: int) -> int:
    """Data of an update: the whole set, if it is smaller than that."""
    accum = train["grad_accum"]
    size = min(train["batch_size"] * accum, count // accum * accum)
    if size == 0:
        raise ValueError(f"--grad-accum {accum}: there are only {count} images")
    return size
