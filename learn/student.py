"""Judges the functions of a student's files. Runs in a process of its own: see `server`."""

import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from learn.catalogue import EXERCISES
from learn.differences import differences, shown, weight_line
from learn.exercise import (
    Case,
    Exercise,
    Outcome,
    Task,
    diagnose,
    outcome,
    outcomes,
    parameter_names,
)
from learn.solved import PIECES, load, solution, use_pieces

MAX_MESSAGE = 400  # characters of an error's message
SLOW = 3  # a function that waits may take this many times its limit of processor time
TABLES = ("betas", "alphas_cumprod")
MEANINGS = {  # of common messages, by a pattern
    r"^NameError": "Python does not know this name: is it misspelled, or not yet defined?",
    r"must match the (size|existing size)|not broadcastable|cannot be multiplied|mat1 and mat2": (
        "The shapes do not fit; print(x.shape) shows one. One number for each image must be "
        "(B, 1, 1, 1) to multiply images (B, C, H, W)."
    ),
    r"used as indices must be": "An index must consist of whole numbers, int64: t.long().",
    r"same dtype|expected scalar type|Float and Double|Double and Float": (
        "Two tensors have different types. Everything here is float32, and t is int64."
    ),
    r"missing \d+ required|positional arguments? but|unexpected keyword": (
        "A function is called with other arguments than it has; its docstring lists them."
    ),
    r"leaf [Vv]ariable|view of a leaf": (
        "Weights must not be changed while gradients are recorded: put @torch.no_grad() above the "
        "function."
    ),
    r"does not require grad": (
        "What is differentiated does not depend on the network's weights, or was cut off from "
        "them, by detach(), item() or no_grad()."
    ),
    r"allocate memory|^MemoryError": "The code needs more memory than the limit (see --memory).",
    r"'NoneType'": "Something is None here: does a function before it lack its return?",
    r"math domain error|expected a positive input": "The logarithm of 0 or of a negative number.",
    r"only one element tensors|ambiguous": (
        "A tensor of several numbers is used as one number, for example in an `if`."
    ),
}


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
                found = self.judge_task(exercise, task)
            except (Exception, SystemExit, TimeLimit, KeyboardInterrupt) as error:
                found = self.error(error, exercise)
            verdicts.append({"name": task.name, **found})
            if found.get("is_of_file"):  # it would be the same for the other functions
                break
        return verdicts

    def judge_task(self, exercise: Exercise, task: Task) -> dict:
        """The verdict on one function."""
        try:
            with time_limit(self.seconds):
                function = getattr(load(exercise.file), task.name, None)
        except (Exception, SystemExit) as error:
            return self.error(error, exercise) | {"is_of_file": True}
        if not callable(function):
            return {"status": "error", "lines": [f"The file has no function {task.name}."]}
        with time_limit(self.seconds):
            found = list(outcomes(function, task))
        if (wrong := first_wrong(task, found)) is None:
            return {"status": "right"}
        if self.is_not_begun(exercise, found):
            return {"status": "not begun"}
        if broken := [name for name in task.uses if not self.is_right(name)]:
            # Judge the function itself: with the solutions of what it uses.
            found = self.outcomes_with_solutions(function, task, broken)
            if (wrong := first_wrong(task, found)) is None:
                return {"status": "waiting", "waits_for": self.needed(function, task, broken)}
            if self.is_not_begun(exercise, found):
                return {"status": "not begun"}
        case, right, got = wrong
        verdict = (
            {"status": "wrong", "lines": []}
            if got.error is None
            else self.error(got.error, exercise)
        )
        if mistake := diagnose(found, task):
            return verdict | {
                "status": "mistake",
                "mistake": mistake.name,
                "explanation": mistake.explanation,
            }
        lines = [*verdict["lines"], *input_lines(task, case)]
        if got.error is None:
            lines += result_lines(right, got)
            with time_limit(self.seconds):
                lines += weight_lines(function, task, case)
            if before := task.cases.index(case):
                lines.append(f"Right for {before} other input{'s' * (before > 1)}.")
        return verdict | {"lines": lines}

    def is_right(self, name: str) -> bool:
        """Is a function of another exercise right?"""
        exercise, task = found_task(name)
        return self.judge_task(exercise, task)["status"] == "right"

    def is_not_begun(self, exercise: Exercise, found: Sequence[Outcome]) -> bool:
        """Does the function itself raise NotImplementedError?"""
        if not isinstance(found[0].error, NotImplementedError):
            return False
        place = self.place(found[0].error)
        return place is not None and place["file"] == str(self.path(exercise))

    def outcomes_with_solutions(
        self, function: Callable, task: Task, names: Sequence[str]
    ) -> list[Outcome]:
        """The outcomes of a function that uses the solutions for some of the student's pieces."""
        with with_solutions(function, names), time_limit(self.seconds):
            return list(outcomes(function, task))

    def needed(self, function: Callable, task: Task, names: Sequence[str]) -> list[str]:
        """Those of the broken pieces without the solution of which a right function is wrong."""
        if len(names) == 1:
            return [*names]
        return [
            name
            for name in names
            if first_wrong(
                task,
                self.outcomes_with_solutions(function, task, [n for n in names if n != name]),
            )
        ]

    def path(self, exercise: Exercise) -> Path:
        return self.folder / f"{exercise.file}.py"

    # --- errors -----------------------------------------------------------------------------------

    def error(self, error: BaseException, exercise: Exercise | None = None) -> dict:
        """The verdict on an error: its message, and the line of the exercise that it came from."""
        message = self.message(error)
        verdict = {"status": "error", "lines": [message, *help_with(message)]}
        if place := self.place(error, exercise):
            verdict["place"] = place
            last = self.place(error)
            if last["file"] != place["file"]:
                where = f"{Path(last['file']).name}, line {last['line']}: {last['source']}"
                verdict["lines"].append(f"It came from your {where}")
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

    def place(self, error: BaseException, exercise: Exercise | None = None) -> dict | None:
        """The student's line that an error came from: its file, number and text.

        Of an exercise, if the error has passed through its file, else of any.
        """
        if isinstance(error, SyntaxError) and self.is_own(error.filename):
            return {
                "file": error.filename,
                "line": error.lineno,
                "source": (error.text or "").strip(),
            }
        frames = [f for f in traceback.extract_tb(error.__traceback__) if self.is_own(f.filename)]
        if not frames:
            return None
        own = [f for f in frames if exercise and Path(f.filename).stem == exercise.file]
        last = (own or frames)[-1]
        return {"file": last.filename, "line": last.lineno, "source": last.line}

    def is_own(self, file: str | None) -> bool:
        """Is this a file of the student's?"""
        return file is not None and Path(file).parent == self.folder


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimit in the code within after so many seconds of processor time.

    Processor time, because a busy computer must not make an endless loop of a slow function. Code
    that waits instead of computing gets `SLOW` times as long.
    """

    def stop(*_) -> None:
        raise TimeLimit

    timers = {signal.ITIMER_PROF: signal.SIGPROF, signal.ITIMER_REAL: signal.SIGALRM}
    previous = {number: signal.signal(number, stop) for number in timers.values()}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, SLOW * seconds)
    try:
        yield
    finally:
        for timer, number in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, previous[number])


@contextmanager
def with_solutions(function: Callable, names: Sequence[str]) -> Iterator[None]:
    """While open, a function of the student's finds the solutions under these names.

    Imported by `from pieces import ...`, under any name, or as an attribute of `pieces`.
    """
    pieces, own = sys.modules[PIECES], getattr(function, "__globals__", {})
    before = dict(own)
    for name in names:
        theirs = None
        with suppress(Exception, SystemExit):  # their file may be broken
            theirs = getattr(pieces, name)
        for key, value in before.items():
            if theirs is not None and value is theirs:
                own[key] = solution(name)
        setattr(pieces, name, solution(name))
    try:
        yield
    finally:
        own.update(before)
        for name in names:
            delattr(pieces, name)


def first_wrong(task: Task, found: Sequence[Outcome]) -> tuple[Case, Outcome, Outcome] | None:
    """The first case with another outcome than the solution's: the case and both outcomes."""
    cases = zip(task.cases, expected(task.name), found, strict=True)
    return next((each for each in cases if not each[1].equals(each[2])), None)


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
    names = case.names
    if names is None:
        names = parameter_names(solution(task.name), len(inputs))
    named = {name: value for name, value in zip(names, inputs, strict=False)}
    lines = [f"Input: {case.label}"]
    for name, value in named.items():
        if name in TABLES:
            lines += table_line(name, value, named["t"])
        elif not callable(value) and value is not None and f"{name} =" not in case.label:
            lines.append(f"    {name} = {shown(value)}")
    return lines


def table_line(name: str, table: Tensor, t: object) -> list[str]:
    """The entry of a table at the only t of a case; nothing if there are several."""
    t = t.flatten().tolist() if isinstance(t, Tensor) else [t]
    return [f"    {name}[{t[0]}] = {table[t[0]]:.5g}"] if len(t) == 1 else []


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
    except Exception:  # a result of a strange type
        return [*lines, f"expected {shown(right.value)}, got a {type(got.value).__name__}"]


def weight_lines(function: Callable, task: Task, case: Case) -> list[str]:
    """The weights of the inputs, if the result is a weighted sum: found by inputs of 0 and 1."""
    names = parameter_names(solution(task.name), len(case.inputs()))
    lines = []
    for name in task.linear:
        probe = Case("", lambda name=name: units(case.inputs(), names, task.linear, name))
        weights = [first_number(outcome(f, probe).value) for f in (solution(task.name), function)]
        if None in weights or case.inputs()[names.index(name)] is None:
            return []
        lines.append(weight_line(name, *weights))
    return lines


def units(inputs: tuple, names: Sequence[str], linear: Sequence[str], one: str) -> tuple:
    """Inputs with 1 for one of the terms of a weighted sum, and 0 for the others."""
    return tuple(
        torch.full_like(value, float(name == one))
        if name in linear and value is not None
        else value
        for name, value in zip(names, inputs, strict=True)
    )


def first_number(value: object) -> float | None:
    """The first number of a result; None if it is no tensor."""
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    if not isinstance(value, Tensor) or not value.numel() or value.is_complex():
        return None
    return value.flatten()[0].item()


def help_with(message: str) -> list[str]:
    """What a common message of Python or PyTorch means."""
    return [text for pattern, text in MEANINGS.items() if re.search(pattern, message)][:1]
