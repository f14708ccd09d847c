"""Judges the functions of a student's files. Runs in a process of its own: see `server`."""

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from learn.catalogue import EXERCISES
from learn.differences import differences, shown
from learn.exercise import Case, Exercise, Outcome, Task, diagnose, outcomes, parameter_names
from learn.solved import load, solution, use_pieces

MAX_MESSAGE = 400  # characters of an error's message


class TimeLimit(BaseException):
    """The time of a function is over. A signal raises it, wherever the code is then."""


class Student:
    """The files of a student: a folder with `01_forward_process.py` and so on.

    Args:
        folder: it stays on the import path for the life of the process.
        seconds: the time limit of each function.
    """

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.seconds = folder.resolve(), seconds
        use_pieces(self.folder)

    def judge(self, exercise: Exercise) -> list[dict]:
        """The verdict on each function of an exercise: its name, status and explanation.

        The status is "right", "not begun", "mistake" (of the catalogue), "wrong", "error" or
        "waiting" (for functions of earlier exercises that are not right).
        """
        verdicts = []
        for task in exercise.tasks:
            try:
                with time_limit(self.seconds):
                    found = self.judge_task(exercise, task)
            except (Exception, SystemExit, TimeLimit, KeyboardInterrupt) as error:
                found = self.error(error)
            verdicts.append({"name": task.name, **found})
            if found.get("is_of_file"):  # it would be the same for the other functions
                break
        return verdicts

    def judge_task(self, exercise: Exercise, task: Task) -> dict:
        """The verdict on one function."""
        try:
            function = getattr(load(exercise.file), task.name, None)
        except (Exception, SystemExit) as error:
            return self.error(error) | {"is_of_file": True}
        if not callable(function):
            return {"status": "error", "lines": [f"The file has no function {task.name}."]}
        found = list(outcomes(function, task))
        cases = zip(task.cases, expected(task.name), found, strict=True)
        wrong = next((each for each in cases if not each[1].equals(each[2])), None)
        if wrong is None:
            return {"status": "right"}
        if isinstance(found[0].error, NotImplementedError):
            place = self.place(found[0].error)
            if place and place["file"] == str(self.path(exercise)):
                return {"status": "not begun"}
        if waits_for := [name for name in task.uses if not self.is_right(name)]:
            return {"status": "waiting", "waits_for": waits_for}
        case, right, got = wrong
        verdict = {"status": "wrong", "lines": []} if got.error is None else self.error(got.error)
        if mistake := diagnose(found, task):
            return verdict | {
                "status": "mistake",
                "mistake": mistake.name,
                "explanation": mistake.explanation,
            }
        lines = [*verdict["lines"], *input_lines(task, case)]
        if got.error is None:
            lines += result_lines(right, got)
            if before := task.cases.index(case):
                lines.append(f"Right for {before} other input{'s' * (before > 1)}.")
        return verdict | {"lines": lines}

    def is_right(self, name: str) -> bool:
        """Is a function of another exercise right?"""
        exercise, task = found_task(name)
        return self.judge_task(exercise, task)["status"] == "right"

    def path(self, exercise: Exercise) -> Path:
        return self.folder / f"{exercise.file}.py"

    # --- errors -----------------------------------------------------------------------------------

    def error(self, error: BaseException) -> dict:
        """The verdict on an error: its message, and the student's line that it came from."""
        verdict = {"status": "error", "lines": [self.message(error)]}
        if place := self.place(error):
            verdict["place"] = place
        return verdict

    def message(self, error: BaseException) -> str:
        """The message of an error in one line."""
        if isinstance(error, TimeLimit):
            return (
                f"It was still running after {self.seconds:g} seconds and was stopped here: is "
                "this an endless loop?"
            )
        if isinstance(error, SystemExit):
            return "Your code ends Python here (exit). The function must return instead."
        text = error.msg if isinstance(error, SyntaxError) else str(error).strip()
        text = text.partition("\n")[0][:MAX_MESSAGE]
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    def place(self, error: BaseException) -> dict | None:
        """The student's line that an error came from: its file, number and text."""
        if isinstance(error, SyntaxError) and self.is_own(error.filename):
            return {
                "file": error.filename,
                "line": error.lineno,
                "source": (error.text or "").strip(),
            }
        frames = [f for f in traceback.extract_tb(error.__traceback__) if self.is_own(f.filename)]
        if not frames:
            return None
        last = frames[-1]
        return {"file": last.filename, "line": last.lineno, "source": last.line}

    def is_own(self, file: str | None) -> bool:
        """Is this a file of the student's?"""
        return file is not None and Path(file).parent == self.folder


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimit in the code within after so many seconds."""

    def stop(*_) -> None:
        raise TimeLimit

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@cache
def expected(name: str) -> list[Outcome]:
    """What the solution of a function does with the inputs of its cases."""
    return list(outcomes(solution(name), found_task(name)[1]))


def found_task(name: str) -> tuple[Exercise, Task]:
    """The exercise and the task of a function."""
    return next((e, task) for e in EXERCISES for task in e.tasks if task.name == name)


def input_lines(task: Task, case: Case) -> list[str]:
    """The input of a case, for a student."""
    inputs = case.inputs()
    names = parameter_names(solution(task.name), len(inputs))
    simple = [
        f"    {name} = {shown(value)}"
        for name, value in zip(names, inputs, strict=True)
        if not (callable(value) or value is None)
    ]
    return [f"Input: {case.label}", *simple]


def result_lines(right: Outcome, got: Outcome) -> list[str]:
    """How a result differs from the right one, for a student."""
    lines = []
    if got.changed != right.changed:
        lines.append(
            f"The function changes its input {', '.join(got.changed)}: an operation in place, such "
            "as += or a method with a final underscore. Compute a new tensor instead."
        )
    try:
        return lines + differences(right.value, got.value)
    except Exception:  # of a result of a strange type, such as a complex tensor
        return [*lines, f"expected {shown(right.value)}, got a {type(got.value).__name__}"]
