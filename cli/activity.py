"""Signs of life: what a command is doing, once that takes more than two seconds.

On a terminal it is a line with the time so far, below the progress bar if there is one. Elsewhere
it is a line of text, now and then.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread, local

from tqdm import tqdm

AFTER = 2.0  # seconds until an activity is shown
REFRESH = 1.0  # seconds between two looks at it
LINE_EVERY = 15.0  # seconds between two lines of the same activity, off a terminal

SHOWN: dict[str, float] = {}  # when a line of an activity was last printed


def bar_size() -> dict[str, object]:
    """Options of tqdm; a fixed size for a terminal that reports none, where it shows nothing."""
    with suppress(OSError, ValueError, AttributeError):
        if os.get_terminal_size(sys.stderr.fileno()).columns == 0:
            return {"ncols": 80, "nrows": 24}
    return {"dynamic_ncols": True}


class Activity:
    """Shows what is being done, from a thread of its own, until it ends.

    Args:
        what: the text.
        has_bar: on a terminal, a progress bar shows it already.
    """

    def __init__(self, what: str, has_bar: bool = False):
        self.what, self.has_bar, self.detail = what, has_bar, ""
        self.covered = False  # an activity within this one is shown instead
        self.ended, self.bar = Event(), None
        self.thread = Thread(target=self.show, daemon=True)

    @property
    def text(self) -> str:
        return f"{self.what}: {self.detail}" if self.detail else self.what

    def show(self) -> None:
        """Show the text from time to time."""
        wait = AFTER
        while not self.ended.wait(wait):
            if not self.covered:
                self.on_terminal() if sys.stderr.isatty() else self.on_line()
            wait = REFRESH

    def on_terminal(self) -> None:
        if self.has_bar:
            return
        if self.bar is None:
            self.bar = tqdm(bar_format="{desc} [{elapsed}]", leave=False, delay=1e-9, **bar_size())
            self.bar.start_t -= AFTER
        self.bar.set_description_str(self.text)

    def on_line(self) -> None:
        now = time.monotonic()
        if now - SHOWN.get(self.what, -LINE_EVERY) >= LINE_EVERY:
            SHOWN[self.what] = now
            tqdm.write(f"{self.text} ...", file=sys.stderr)

    def end(self) -> None:
        self.ended.set()
        self.thread.join()
        if self.bar is not None:
            self.bar.close()


class Open(local):
    """The open activities of a thread, the innermost last."""

    def __init__(self):
        self.activities: list[Activity] = []


OPEN = Open()


@contextmanager
def activity(what: str, *, has_bar: bool = False) -> Iterator[None]:
    """While open, and after two seconds, show on stderr what is being done.

    The main process of a job shows it for all. For `has_bar` see `Activity`.
    """
    if int(os.environ.get("RANK", 0)):
        yield
        return
    opened, now = OPEN.activities, Activity(what, has_bar)
    for outer in opened:
        outer.covered = True
    opened.append(now)
    now.thread.start()
    try:
        yield
    finally:
        now.end()
        opened.remove(now)
        if opened:
            opened[-1].covered = False


def tell(detail: str) -> None:
    """Set the progress of the current activity, such as "step 12 of 50"."""
    if OPEN.activities:
        OPEN.activities[-1].detail = detail


class Bar(tqdm):
    """A tqdm bar that is an activity off a terminal, where tqdm shows nothing."""

    def __init__(self, iterable=None, *, desc: str = "", shown: bool = True, **options):
        options |= bar_size() | {"disable": None if shown else True}
        super().__init__(iterable, desc=desc, **options)
        self.silent = shown and self.disable
        self.activity, self.done = activity(desc or "working", has_bar=True), 0

    def __iter__(self):
        if not self.silent:
            yield from super().__iter__()
            return
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def __enter__(self):
        if self.silent:
            self.activity.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        if self.silent:
            self.activity.__exit__(*error)

    def update(self, n=1):
        if self.silent:
            self.done += n
            tell(f"{self.done:,}" + (f" of {self.total:,}" if self.total else ""))
        return super().update(n)
