"""The process of a command: errors as one message, and exit codes."""

import os
import signal
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from cli.declare import Flags
from cli.streams import guard_output


def run(main: Callable[[Flags], int | None], flags: Flags) -> int:
    """Call `main(flags)` and turn an exception into one message on stderr and an exit code.

    The code is 2 for a value that cannot be used (ValueError), 130 for Ctrl-C, and 1 for all else.
    The traceback is shown only with --debug.
    """
    prepare()
    script = Path(sys.argv[0]).name
    try:
        return main(flags) or 0
    except KeyboardInterrupt:
        report_interrupt()
        return 128 + signal.SIGINT
    except Exception as error:
        if flags.debug:
            traceback.print_exc()
        else:
            process = int(os.environ.get("RANK", 0))
            if not (process and isinstance(error, ValueError)):  # the first process reports it
                which = f" (process {process})" if process else ""
                print(f"{script}: error{which}: {harmless(explain(error))}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def prepare() -> None:
    """Let printing never fail, and Ctrl-C print no traceback, even while modules are imported."""
    guard_output()
    sys.excepthook = show_error


def show_error(kind: type, error: BaseException, trace: TracebackType | None) -> None:
    """Show an uncaught exception. For Ctrl-C, the system sets the exit code."""
    if issubclass(kind, KeyboardInterrupt):
        report_interrupt()
    else:
        sys.__excepthook__(kind, error, trace)


def report_interrupt() -> None:
    print(f"\n{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)


def leave(code: int) -> NoReturn:
    """End the process with an exit code.

    A process of a torchrun job ends without Python's teardown. PyTorch's threads sometimes end the
    teardown with SIGABRT, and torchrun then reports the whole job as failed.
    """
    if "RANK" in os.environ:
        for thread in threading.enumerate():  # one may still be writing a checkpoint
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def harmless(text: str) -> str:
    """Lines of text without control characters, which a terminal would execute.

    A message may quote an untrusted file. Control characters, and invisible characters that change
    the direction of text, become "?".
    """
    control = ("Cc", "Cf")  # categories of Unicode
    return "".join("?" if unicodedata.category(c) in control and c != "\n" else c for c in text)


def explain(error: Exception) -> str:
    """The message of an error that we raised, or kind and first line of an unexpected one."""
    if isinstance(error, (ValueError, OSError, FloatingPointError)) or (
        isinstance(error, MemoryError) and str(error)
    ):
        return str(error)
    first = str(error).strip().partition("\n")[0]
    if isinstance(error, ModuleNotFoundError) and error.name:  # sklearn's package has another name
        return f"{error.name.partition('.')[0]} is not installed: pip install -r requirements.txt"
    if "operator torchvision::" in first:  # raised by a torchvision of another version
        return f"torch and torchvision do not fit together ({first}): install both anew"
    return f"{type(error).__name__}: {first}\n(--debug shows where)"
