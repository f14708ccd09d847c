"""The progress of a run: a bar on a terminal, elsewhere a line every few seconds."""

import sys
import time

from tqdm import tqdm

from cli.activity import bar_size
from visuals.curves import running_average

LINE_EVERY = 15  # seconds between two plain lines
SLOW = 18  # seconds without a line after which one without figures is printed


class Progress:
    """Shows steps, smoothed loss, speed and the time left, on stderr.

    Args:
        step: the run's first.
        kind: images or points.
        shown: shows nothing if false.
    """

    def __init__(self, step: int, kind: str = "images", shown: bool = True):
        self.shown = shown
        self.first_step, self.kind, self.bar = step, kind, None
        self.loss, self.updates = 0.0, 0
        self.validation: float | None = None  # the last validation loss

    def __enter__(self) -> "Progress":
        self.start = self.last_line = self.last_figures = time.monotonic()
        if self.shown and sys.stderr.isatty():
            options = {"unit": "step", "smoothing": 0.05, **bar_size()}
            self.bar = tqdm(initial=self.first_step, **options)
        return self

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.close()

    def count(self, step: int, total: int | None) -> None:
        """Show that a step was made. `update` shows the figures, which only some steps have."""
        if self.bar is not None and not sys.stderr.isatty():  # the terminal has gone
            self.bar.close()
            self.bar = None
        if self.bar is not None:
            self.bar.total = total
            self.bar.update(step - self.bar.n)
        elif time.monotonic() - self.last_line >= SLOW:
            self._line(step, total)

    def update(self, total: int | None, row: dict) -> None:
        """Show a row of metrics, its loss smoothed, and the time left to step `total`."""
        step, loss = row["step"], row["loss"]
        if loss is not None:
            self.loss = running_average(self.loss, loss, self.updates)
            self.updates += 1
        figures = {"loss": f"{self.loss:.4f}", f"{self.kind}/s": f"{row['images_per_second']:.0f}"}
        if self.validation is not None:
            figures["validation"] = f"{self.validation:.4f}"
        if row["skipped"]:
            figures["skipped"] = str(row["skipped"])
        if self.bar is not None:
            self.bar.set_postfix(figures, refresh=step == total)
        elif time.monotonic() - self.last_figures >= LINE_EVERY or step == total:
            self.last_figures = time.monotonic()
            shown = "  ".join(f"{name} {value}" for name, value in figures.items())
            self._line(step, total, f"{shown}  ")

    def _line(self, step: int, total: int | None, figures: str = "") -> None:
        self.last_line = time.monotonic()
        of = f"/{total:,}" if total else ""
        self.say(f"step {step:,}{of}  {figures}{self._left(step, total)}".rstrip())

    def _left(self, step: int, total: int | None) -> str:
        if not total or step == total:
            return ""
        seconds = (time.monotonic() - self.start) / (step - self.first_step) * (total - step)
        return f"{tqdm.format_interval(seconds)} left"

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.shown:
            tqdm.write(text, file=sys.stderr)
