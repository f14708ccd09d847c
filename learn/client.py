"""Asks the process that checks exercises. Nothing here imports torch."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "guide"
GRACE = 20.0  # seconds; enough on a busy computer
TRAINING_SECONDS, TRAINING_MEMORY = 1200.0, 8192  # limits of training, in seconds and MiB


class CheckerError(RuntimeError):
    """The process that checks exercises has failed, not a student's code."""


class Checker:
    """A context manager that checks exercises, each in a process of its own.

    Args:
        seconds, memory: limits of each function, in seconds and MiB. A system without a limit of
            memory for processes (macOS) does not apply the latter.
        grace: seconds for the diagnosis, after which a process is killed in any case.
    """

    def __init__(self, seconds: float, memory: int, grace: float = GRACE):
        self.seconds, self.memory, self.grace = seconds, memory, grace
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Checker":
        if not hasattr(os, "fork"):
            raise CheckerError("the checker needs Linux, macOS or WSL: Windows has no fork()")
        self.scratch = tempfile.TemporaryDirectory(prefix="learn-", ignore_cleanup_errors=True)
        return self

    def __exit__(self, *_) -> None:
        self.stop()
        self.scratch.cleanup()

    def contents(self, folder: str | Path) -> list[dict]:
        """The exercises of a folder: see `server.contents`; with the paths of file and chapter."""
        if self.process is None:
            self.start()
        return [
            each
            | {
                "path": str(Path(folder).resolve() / f"{each['file']}.py"),
                "chapter": str(GUIDE / each["chapter"]),
            }
            for each in self.known
        ]

    def check(self, folder: str | Path, number: int) -> dict:
        """The verdict on an exercise of a folder: see `server.answers`."""
        return self.ask(folder, number, self.seconds, self.memory)

    def draw(
        self, folder: str | Path, number: int, picture: Path, say: Callable[[str], None]
    ) -> dict:
        """Train and draw with the functions of a folder; the verdict on this exercise."""
        limits = TRAINING_SECONDS, TRAINING_MEMORY
        return self.ask(folder, number, *limits, picture=str(picture.resolve()), say=say)

    def ask(
        self,
        folder: str | Path,
        number: int,
        seconds: float,
        memory: int,
        picture: str | None = None,
        say: Callable[[str], None] = print,
    ) -> dict:
        """Send a request and wait for the verdict; `say` gets the progress."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        request = {"folder": str(Path(folder).resolve()), "number": number, "seconds": seconds}
        request |= {
            "memory": memory,
            "grace": self.grace,
            "picture": picture,
            "scratch": self.scratch.name,
        }
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            answer = json.loads(line)
            if "progress" not in answer:
                return answer
            say(answer["progress"])
        self.process.wait()
        reason = "The code has ended the program that checks it."
        path = next(each["path"] for each in self.contents(folder) if each["number"] == number)
        return {"number": number, "path": path, "functions": [], "ended": reason}

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        environment = os.environ | {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}  # macOS
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by `stop`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "learn.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
            env=environment,
            cwd=ROOT,  # from which -m imports
            start_new_session=True,  # Ctrl-C is for the command, which ends this process
        )
        if not (line := self.process.stdout.readline()):
            self.process.wait()
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
            raise CheckerError(f"the checker did not start: {lines[-1] if lines else 'no message'}")
        self.known = json.loads(line)["contents"]

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.errors.close()
