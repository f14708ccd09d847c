"""The log of a run: loss and speed since the last row, metrics on disk, progress for the user."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from torch import Tensor

from cli.activity import activity
from distributed import is_main
from training.folder import RunFolder
from training.log import Metrics, read_metrics
from training.progress import Progress
from training.trainer import Trainer
from visuals.curves import plot_loss


class RunLog:
    """Adds up losses and time between rows, and writes the rows.

    Args:
        trainer: its step, and the steps that it skipped, are logged.
        folder: where the metrics are.
        kind: "images" or "points".
        batch_size: items of a training step, for the speed.
        tensorboard: also log for TensorBoard.
    """

    def __init__(
        self, trainer: Trainer, folder: RunFolder, kind: str, batch_size: int, tensorboard: bool
    ):
        self.trainer, self.folder, self.batch_size = trainer, folder, batch_size
        self.board = folder.tensorboard if tensorboard else None
        self.progress = Progress(trainer.step, kind, shown=is_main())
        self.loss, self.losses = 0.0, 0  # sum over the steps since the last row, and their number
        self.seconds = 0.0  # of training, over all sessions
        self.waited = 0.0  # seconds since the last row, for the items of the steps
        self.last_step, self.mark = trainer.step, time.monotonic()  # of the last row

    @contextmanager
    def open(self, attempt: Callable[[str, Callable], None]) -> Iterator[None]:
        """Open metrics and progress bar. `attempt(name, write)` writes files that may fail."""
        self.attempt = attempt
        step = self.trainer.step
        metrics = Metrics(self.folder.metrics, step, self.board) if is_main() else nullcontext()
        with metrics as self.metrics, self.progress:
            yield

    def add(self, loss: Tensor) -> None:
        """Add the loss of a step."""
        self.loss, self.losses = self.loss + loss, self.losses + 1

    def pause(self, seconds: float) -> None:
        """Do not count time that was not spent on training steps."""
        self.mark += seconds

    def restart_clock(self) -> None:
        """Leave out the time that was spent on something other than training steps."""
        self.mark = time.monotonic()

    def step_row(self, epoch: int, lr: float, norm: Tensor, total: int | None) -> None:
        """Write a row of the steps since the last one, and show it."""
        step, now = self.trainer.step, time.monotonic()
        self.seconds += now - self.mark
        row = {
            "step": step,
            "epoch": epoch,
            "loss": float(self.loss) / self.losses if self.losses else None,
            "lr": lr,
            "images_per_second": (step - self.last_step) * self.batch_size / (now - self.mark),
            "gradient_norm": float(norm) if norm.isfinite() else None,
            "skipped": self.trainer.skipped,
            "seconds": self.seconds,
            "seconds_waiting_for_data": self.waited,
        }
        self.row(row)
        self.progress.update(total, row)
        self.loss, self.losses, self.last_step, self.mark = 0.0, 0, step, now
        self.waited = 0.0

    def row(self, values: dict) -> None:
        """Append a row to the metrics."""
        if is_main():
            self.attempt("the metrics", lambda: self.metrics.write(values))

    def plot(self) -> None:
        """Plot the losses so far."""
        if is_main():
            metrics, path = self.folder.metrics, self.folder.loss_plot
            write = partial(plot_loss, read_metrics(metrics), path)
            with activity("plot of the loss"):
                self.attempt("the plot of the loss", write, Exception)

    def state(self) -> dict:
        """The log's part of a checkpoint."""
        return {
            "seconds": self.seconds,
            "unlogged_loss": float(self.loss),
            "unlogged_updates": self.losses,
        }

    def load(self, checkpoint: dict) -> None:
        """Continue from a checkpoint."""
        self.seconds = checkpoint["seconds"]
        self.loss, self.losses = checkpoint["unlogged_loss"], checkpoint["unlogged_updates"]
