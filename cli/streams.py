"""Standard output and standard error that cannot fail: printing never ends a command.

Text that the encoding of a stream cannot express is written with backslash escapes. A stream that
cannot be written any longer (`| head`, a closed terminal, a full disk) is replaced by a log file,
if there is one, or by nothing.
"""

import io
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

ESCAPING = {"backslashreplace", "namereplace", "xmlcharrefreplace", "replace", "ignore"}
HEADING = "Tiny Diffusion: "  # begins a log file
MAX_UNSAVED = 2**16  # bytes of lost output that are kept until there is a log file


class UnfailingWriter(io.RawIOBase):
    """Writes bytes to a file descriptor. After an error it writes to the log file instead.

    Args:
        number: the file descriptor.
        name: of the stream, for the log.
        raw: the stream that writes to the descriptor now; None if it is closed.
    """

    def __init__(self, number: int, name: str, raw: io.RawIOBase | None):
        self.number, self.stream_name, self.raw = number, name, raw
        self.log: Path | None = None
        self.reason, self.unsaved = "", b""  # why the stream failed, and what was lost since
        if raw is None:
            self.replace(OSError("it is closed"))

    def write(self, data) -> int:
        """Write all bytes, to the stream or else to the log file. Never raises OSError."""
        rest = memoryview(data).cast("B")
        while len(rest):
            if self.is_lost():
                self.unsaved = (self.unsaved + bytes(rest))[-MAX_UNSAVED:]
                break
            try:
                written = self.raw.write(rest)
                if written is None:  # a pipe that does not block is full
                    select.select([], [self.number], [])
                rest = rest[written or 0 :]
            except (OSError, ValueError) as error:  # ValueError: something has closed the file
                self.replace(error)
        return len(data)

    def is_lost(self) -> bool:
        """Has the stream failed, and is there no log file in its place?"""
        return bool(self.reason) and self.log is None

    def replace(self, error: Exception) -> None:
        """From now on, write to the log file, or to nothing; this includes C libraries' output."""
        path = None if self.reason else self.log  # a log file that fails is given up
        self.reason = self.reason or getattr(error, "strerror", None) or str(error)
        self.log = None
        with suppress(OSError):
            self.redirect(os.devnull)
        if path is not None:
            self.continue_in(path)

    def continue_in(self, path: Path) -> None:
        """Set the log file. If the stream has failed already, its output goes there from now on."""
        if not self.reason:
            self.log = path
        elif path != self.log:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            heading = (
                f"{HEADING}{now}: {self.stream_name} failed ({self.reason}) and continues here"
            )
            with suppress(OSError):
                self.redirect(path)  # from the log of an earlier run, too
                self.log, unsaved, self.unsaved = path, self.unsaved, b""
                self.write(f"{heading}\n".encode() + unsaved)

    def redirect(self, path: str | Path) -> None:
        """Redirect the descriptor to the end of a file. Raises OSError if that is impossible."""
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        if file != self.number:
            os.dup2(file, self.number)
            os.close(file)
        else:
            os.set_inheritable(file, True)
        self.raw = open(self.number, "wb", buffering=0, closefd=False)  # noqa: SIM115

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)


class ShelteredStream:
    """A stream of another program, such as a notebook or a logger; its failures are ignored.

    `sys.stderr` is None in a program without a console.
    """

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError, AttributeError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def isatty(self) -> bool:
        return hasattr(self.stream, "isatty") and self.stream.isatty()


GUARDED: dict[str, io.TextIOWrapper] = {}  # the replacements of the standard streams, by name
CALLS, COUNTING = [], Lock()  # open contexts of `unfailing_output`, in all threads


def guard_output() -> dict[str, io.TextIOBase | None]:
    """Let `sys.stdout` and `sys.stderr` write through an `UnfailingWriter`.

    Streams that something else has replaced (a notebook, a test) are left alone. Returns those that
    were replaced, by name.
    """
    replaced = {}
    for number, name in [(1, "stdout"), (2, "stderr")]:
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            GUARDED[name] = GUARDED.get(name) or guarded(stream, number, name)
            replaced[name] = stream
            setattr(sys, name, GUARDED[name])
    return replaced


def guarded(stream: io.TextIOBase | None, number: int, name: str) -> io.TextIOWrapper:
    """A text stream that writes to a stream, or its descriptor, through an `UnfailingWriter`."""
    raw, closed = None, stream is None or stream.closed
    if closed and is_open(number):  # another file has taken the descriptor
        number = os.open(os.devnull, os.O_WRONLY)
    if not closed:
        with suppress(OSError):
            stream.flush()
        raw = getattr(stream.buffer, "raw", stream.buffer)
    errors = getattr(stream, "errors", None)
    return io.TextIOWrapper(
        UnfailingWriter(number, name, raw),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors=errors if errors in ESCAPING else "backslashreplace",
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )


@contextmanager
def unfailing_output() -> Iterator[None]:
    """While open, or in a function that this decorates, printing cannot fail.

    The streams of a notebook or of a logger still receive what is printed.
    """
    with COUNTING:
        CALLS.append(guard_output() if CALLS else guard_output() | shelter_output())
    try:
        yield
    finally:
        with COUNTING:  # the last to leave restores what the first has replaced
            for name, stream in CALLS.pop(len(CALLS) > 1).items():
                getattr(sys, name).flush()
                setattr(sys, name, stream)


def shelter_output() -> dict[str, object]:
    """Ignore failures of streams that other programs have installed. Returns these streams."""
    replaced = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not GUARDED.get(name):
            replaced[name] = stream
            setattr(sys, name, ShelteredStream(stream))
    return replaced


def keep_lost_output(path: Path) -> None:
    """Continue the output of a stream that fails, or has failed, at the end of a file."""
    for stream in GUARDED.values():
        stream.buffer.continue_in(path)


def is_open(number: int) -> bool:
    """Is a file descriptor open?"""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
