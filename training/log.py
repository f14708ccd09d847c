"""The metrics of a run: one JSON object a line, and a plot of the loss."""

import json
from contextlib import suppress
from pathlib import Path

from training.inspection import fits
from utils import save_whole


class Metrics:
    """A metrics file that is appended to, and TensorBoard's beside it if a folder for it is given.

    The lines after `step` are cut, as they will be written again, and so is a line that a crash
    left torn. Every line reaches the file at once.

    Raises ValueError if TensorBoard is not installed.
    """

    def __init__(self, path: Path, step: int, tensorboard: Path | None = None):
        kept = [row for row in read_metrics(path) if row["step"] <= step] if step else []
        text = "".join(json.dumps(row) + "\n" for row in kept)
        save_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._board = None if tensorboard is None else open_tensorboard(tensorboard, step)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *error) -> None:
        with suppress(OSError):  # what a full disk has refused once, it refuses again
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, row: dict) -> None:
        """Add a row; a value None is not shown on the board."""
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if name not in ("step", "epoch") and value is not None:
                    self._board.add_scalar(name, value, row["step"])
            self._board.flush()


def open_tensorboard(folder: Path, step: int):
    """A SummaryWriter; what an earlier session wrote after `step` is hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from None
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics file, none if there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # torn by a crash, or not ours
            continue
        if isinstance(row, dict) and fits(row.get("step"), int):
            rows.append(row)
    return rows


def running_average(average: float, value: float, count: int) -> float:
    """The average with one more value, after `count` of them; it forgets those of long ago."""
    keep = min(0.9, count / (count + 2))  # quickly in the beginning, when values fall fast
    return keep * average + (1 - keep) * value


def column(rows: list[dict], name: str) -> tuple[list[int], list[float]]:
    """The steps and the values of the rows that have a number of that name."""
    found = [row for row in rows if fits(row.get(name), float)]
    return [row["step"] for row in found], [row[name] for row in found]


def plot_loss(metrics: Path, path: Path) -> None:
    """Write a picture of the loss over the steps, and of the classifier-FID where rows have it."""
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    steps, distances = column(rows, "classifier_fid")
    figure = Figure(figsize=(7, 7 if steps else 4), layout="constrained")
    axes, *below = figure.subplots(2 if steps else 1, squeeze=False)[:, 0]
    draw_loss(axes, rows)
    axes.set(xlabel="step", ylabel="loss", title="Training and validation loss")
    for lower in below:
        lower.plot(steps, distances, ".-", color="tab:green")
        lower.set(xlabel="step", yscale="log", title="classifier-FID of 2,000 images")
        lower.grid(alpha=0.25)
    save_whole(path, lambda partial: figure.savefig(partial, dpi=110, format="png"))


def draw_loss(axes, rows: list[dict]) -> None:
    """Draw into matplotlib axes the training loss, its running average, and, where rows have it,
    the validation loss."""
    steps, losses = column(rows, "loss")
    average, averages = 0.0, []
    for count, loss in enumerate(losses):
        average = running_average(average, loss, count)
        averages.append(average)
    axes.plot(
        steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="mean since the last point"
    )
    axes.plot(steps, averages, color="tab:blue", linewidth=1.8, label="running average")
    held_out = column(rows, "validation_loss")
    if held_out[0]:
        axes.plot(*held_out, ".-", color="tab:orange", label="held-out items")
    if losses:  # the first losses are near 1 and would flatten all that follows
        axes.set_ylim(0, min(max(losses), 3 * averages[-1]) * 1.05)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
