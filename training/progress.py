"""The progress of a run: an estimate of its duration, and a bar on a terminal, or lines."""

import sys
import time

from tqdm import tqdm

from cli.activity import bar_size
from visuals.curves import running_average

LINE_EVERY = 15  # seconds between two plain lines
SLOW = 18  # seconds without a line after which one without figures is printed


class Estimate:
    """Estimates how long a session takes, in its first steps, and again if that was far off.

    Args:
        first_step: the step that the session starts from.
        shorter: flags of a shorter run, which are recommended if this one takes long.
    """

    SETTLE = 5  # first steps, slower than the rest, that are not measured
    MEASURE = 20  # steps that are measured
    PATIENCE = 10  # seconds after which fewer steps than SETTLE or MEASURE are enough
    REVIEW = 0.1  # fraction of the estimate after which it is reviewed, by the speed since then
    WORTH_SAYING = 60  # seconds; a shorter time, also in review, is not announced
    LONG = 15 * 60  # seconds from which a shorter run is recommended
    WRONG = 1.5  # ratio of two estimates from which the later one is announced, too

    def __init__(self, first_step: int, shorter: str = ""):
        self.first_step, self.shorter = first_step, shorter
        self.start = time.monotonic()
        self._mark: tuple[int, float] | None = None  # step and time since when speed is measured
        self._told: float | None = None  # seconds of the session, as last estimated

    def update(self, step: int, total: int) -> str | None:
        """A message for the user after `step`, or None. Call this after every step."""
        now = time.monotonic()
        if self._mark is None:
            if step - self.first_step >= self.SETTLE or now - self.start > self.PATIENCE:
                self._mark = step, now
            return None
        (since, mark), before = self._mark, self._told
        if before is None and step - since < self.MEASURE and now - mark < self.PATIENCE:
            return None
        if before is not None and now - mark < max(self.REVIEW * before, self.WORTH_SAYING):
            return None
        self._mark, per_step = (step, now), max(now - mark, 1e-9) / (step - since)
        left = (total - step) * per_step
        seconds = now - self.start + left
        if before is not None and 1 / self.WRONG <= seconds / before <= self.WRONG:
            return None
        self._told = seconds
        if left < self.WORTH_SAYING:
            return None
        speed = f"{1 / per_step:.1f} steps/s" if per_step < 1 else f"{per_step:.1f} s a step"
        steps = f"{total - step:,} steps at {speed}"
        if before is not None:
            return f"about {rounded(left)} left, not as estimated before: {steps}"
        hint = f". In less time: {self.shorter}" if self.shorter and seconds >= self.LONG else ""
        return f"about {rounded(left)}: {steps}{hint}"


def rounded(seconds: float) -> str:
    """A duration in words: "80 s", "55 min", "3.5 h", "2.1 days"."""
    for limit, unit, name in [(90, 1, "s"), (5400, 60, "min")]:
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


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
        """Show that a step was made. `update` shows loss and speed, which only some steps have."""
        if self.bar is not None and not sys.stderr.isatty():  # the terminal was closed
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
