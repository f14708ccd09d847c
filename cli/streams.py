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
from contextlib import suppress
from pathlib import Path

ESCAPING = {"backslashreplace", "namereplace", "xmlcharrefreplace", "replace", "ignore"}
HEADING = "Tiny Diffusion: "  # begins a log file
MAX_UNSAVED = 2**16  # bytes of lost output that are kept until there is a log file


class UnfailingWriter(io.RawIOBase):
    """Writes bytes to a file descriptor. After an error it writes to the log file instead.

    Args:
        number: the file descriptor.
        name: of the stream, for the log.
        raw: what writes to the descriptor now; None if it is closed.
    """

    def __init__(self, number: int, name: str, raw: io.RawIOBase | None):
        self.number, self.stream_name, self.raw = number, name, raw
        self.log: Path | None = None
        self.reason, self.unsaved = "", b""  # why the stream failed, and what was lost since
        if raw is None:
            self.replace(OSError("it is closed"))

    def write(self, data) -> int:
        """Write all of some bytes, to wherever that is possible. Raises no OSError."""
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
        """From now on write to the log file, or to nothing. This holds for C libraries, too."""
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
        elif self.is_lost():
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            heading = (
                f"{HEADING}{now}: {self.stream_name} failed ({self.reason}) and continues here"
            )
            with suppress(OSError):
                self.redirect(path)
                self.log, unsaved, self.unsaved = path, self.unsaved, b""
                self.write(f"{heading}\n".encode() + unsaved)

    def redirect(self, path: str | Path) -> None:
        """Let the descriptor lead to the end of a file. Raises OSError if that is impossible."""
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


GUARDED: dict[str, UnfailingWriter] = {}


def guard_output() -> None:
    """Let `sys.stdout` and `sys.stderr` write through an `UnfailingWriter`.

    Streams that something else has replaced (a notebook, a test) are left alone.
    """
    for number, name in [(1, "stdout"), (2, "stderr")]:
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or name in GUARDED:
            continue
        if stream is None and is_open(number):  # another file has taken the descriptor
            number = os.open(os.devnull, os.O_WRONLY)
        raw = None
        if stream is not None:
            with suppress(OSError):
                stream.flush()
            raw = getattr(stream.buffer, "raw", stream.buffer)
        GUARDED[name] = UnfailingWriter(number, name, raw)
        errors = getattr(stream, "errors", None)
        guarded = io.TextIOWrapper(
            GUARDED[name],
            encoding=getattr(stream, "encoding", "utf-8"),
            errors=errors if errors in ESCAPING else "backslashreplace",
            line_buffering=getattr(stream, "line_buffering", True),
            write_through=getattr(stream, "write_through", False),
        )
        setattr(sys, name, guarded)


def keep_lost_output(path: Path) -> None:
    """Continue the output of a stream that fails, or has failed, at the end of a file."""
    for writer in GUARDED.values():
        writer.continue_in(path)


def is_open(number: int) -> bool:
    """Is a file descriptor open?"""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
