"""The flags of learn/check.py."""

from dataclasses import dataclass

from cli.declare import Flags, flag, number, path
from cli.parser import Command


# fmt: off
@dataclass(kw_only=True)
class LearnRequest(Flags):
    """Which exercises to check, or what to show of them."""

    exercises: list[int] | None = flag(
        None, "exercises to check (default: all)", parse=number(int, 1, 99), nargs="*",
        metavar="EXERCISES", positional=True)
    hint: bool = flag(
        False, "show a hint for the exercises", switch="on",
        unless=("solution", "watch", "class_report"))
    solution: bool = flag(
        False, "show a solution of the exercises", switch="on", unless=("watch", "class_report"))
    watch: bool = flag(
        False, "check each exercise when its file is saved, until Ctrl-C", switch="on",
        unless=("class_report",))
    folder: str | None = flag(
        None, "folder of your exercises (default: learn/exercises)", metavar="DIR", parse=path,
        unless=("class_report",))

    class_report: str | None = flag(
        None, "check a folder with a subfolder for each student", group="teachers",
        metavar="DIR", parse=path)

    seconds: float = flag(
        5.0, "time limit of each function in seconds, not of the training", group="machine",
        parse=number(float, 0.1, 3600), unless=("hint", "solution"))
    memory: int = flag(
        2048, "memory limit in MiB (Linux), not of the training", group="machine",
        parse=number(int, 1, 2**20), unless=("hint", "solution"))

    output: str | None = flag(
        None, "picture of exercise 16, or report (default: in outputs/learn)", group="output",
        metavar="FILE", parse=path, unless=("hint", "solution", "watch"))
# fmt: on


LEARN = Command(
    LearnRequest,
    "Check the exercises of learn/, and say which mistake a function has. Your code runs in a\n"
    "process of its own, with limits. --class-report writes a table of a class, .html and .csv.",
    ["python learn/check.py", "python learn/check.py 4", "python learn/check.py 4 --hint"],
)
