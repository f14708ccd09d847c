"""The metrics of a run: one JSON object a line, and a plot of the loss."""

import json
from contextlib import suppress
from pathlib import Path

from utils import matches_type, save_whole, write_errors


class Metrics:
    """Appends rows to a metrics file, and to TensorBoard if its folder is given.

    Rows after `step` are removed, because they will be written again, and so is an incomplete row.
    Every row is written at once.

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
        with suppress(OSError):  # closing flushes again what a full disk has refused
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, row: dict) -> None:
        """Add a row; a value None is not shown on the board."""
        with write_errors(Path(self._file.name)):
            self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if name not in ("step", "epoch") and value is not None:
                    self._board.add_scalar(name, value, row["step"])
            self._board.flush()


def open_tensorboard(folder: Path, step: int):
    """A SummaryWriter that hides rows of earlier sessions after `step`.

    Raises ValueError if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from None
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics file; none if it is missing."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # torn by a crash, or not ours
            continue
        if isinstance(row, dict) and matches_type(row.get("step"), int):
            rows.append(row)
    return rows
