"""Declaration of a flag: one dataclass field holds its name, default, help and nature."""

import argparse
import ast
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MAX_THREADS = 1024
LARGEST = {int: 10**9, float: 1e30}  # accepted by a flag without an upper limit of its own


class Declaration(NamedTuple):
    """The properties of a flag, in addition to its name and default."""

    help: str  # one line
    group: str = "options"  # heading in --help
    parse: Callable[[str], object] = str  # raises argparse.ArgumentTypeError
    choices: Sequence[str] | None = None
    metavar: str | tuple[str, ...] | None = None
    nargs: str | int | None = None
    join: Callable[[Sequence[object]], str] | None = None  # spells a list as one word
    const: object = None  # value of the flag without an argument, where nargs is "?"
    switch: str | None = None  # "on" for --flag, "on-off" for --flag and --no-flag
    names: tuple[str, ...] = ()  # further spellings
    positional: bool = False
    required: bool = False
    section: str | None = None  # of a run's configuration; None for a flag that is not saved
    fixed: bool = False  # a resumed run must have the same value
    before: object = None  # value in runs from before the flag existed, if it is not the default
    limit: bool = False  # limits the length of a run; on resume, a new limit replaces all
    needs: tuple[str, ...] = ()  # has an effect only with one of these flags
    unless: tuple[str, ...] = ()  # has no effect with any of these flags
    decides: str | None = None  # samples depend on its "value", or on the "file" that it names
    use: str = ""  # in evaluate.py: for "drawing" or for "likelihood"; "" for both


def flag(default: object, help: str, **nature):
    """A dataclass field that is a flag; for its nature see `Declaration`."""
    make = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(**make, metadata={"flag": Declaration(help, **nature)})


@dataclass(kw_only=True)
class Flags:
    """The flags of a command, by name. `given` are those that were set explicitly."""

    debug: bool = flag(False, "show the traceback of an error", switch="on")
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    @classmethod
    def declarations(cls) -> Iterator[tuple[Field, Declaration]]:
        """Each flag's field and declaration."""
        for each in fields(cls):
            if "flag" in each.metadata:
                yield each, each.metadata["flag"]

    @classmethod
    def named(cls, *, section: str | None = None, **nature: object) -> list[str]:
        """Names of the flags of a section, or with other properties, such as `limit=True`."""
        wanted = ({} if section is None else {"section": section}) | nature
        return [
            each.name
            for each, declared in cls.declarations()
            if all(getattr(declared, name) == value for name, value in wanted.items())
        ]

    def chosen(self, names: Sequence[str]) -> dict[str, object]:
        """The values of some flags."""
        return {name: getattr(self, name) for name in names}

    def read(self) -> list[str]:
        """The files and folders that the flags name for reading."""
        names = [e.name for e, d in self.declarations() if d.parse is path and d.group != "output"]
        values = [value for value in self.chosen(names).values() if value]
        return [
            each for value in values for each in (value if isinstance(value, list) else [value])
        ]

    def check(self) -> None:
        """Raise ValueError for flags that contradict each other."""
        for each, declared in self.declarations():
            if each.name not in self.given:
                continue
            if declared.needs and not any(map(self.in_use, declared.needs)):
                needed = " or ".join(map(self.effective, declared.needs))
                raise ValueError(f"{option(each.name)} has no effect without {needed}")
            if excluded := [name for name in declared.unless if self.in_use(name)]:
                raise ValueError(f"{option(each.name)} has no effect with {option(excluded[0])}")

    def default(self, name: str) -> object:
        """The default of a flag; None for a flag of another command."""
        for each in fields(self):
            if each.name == name:
                return each.default if each.default is not MISSING else each.default_factory()
        return None

    def in_use(self, name: str) -> bool:
        """Does a flag have a value other than its default, and other than None or an empty one?"""
        value, default = getattr(self, name, None), self.default(name)
        return bool(value) if default is None else value != default

    def effective(self, name: str) -> str:
        """A flag that is in use, in words: "--x", or "a --x other than 1" if 1 is the default."""
        default = self.default(name)
        return f"a {option(name)} other than {default}" if default else option(name)


def option(name: str) -> str:
    """The spelling of a flag on the command line: `batch_size` is `--batch-size`.

    `from_` is `--from`, because `from` is a keyword of Python.
    """
    return f"--{name.rstrip('_').replace('_', '-')}"


@cache
def keys(file: str, table: str) -> tuple[str, ...]:
    """The keys of a dict literal in one of our modules, read without importing it (or torch)."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if table in [getattr(target, "id", None) for target in targets]:
            return tuple(ast.literal_eval(key) for key in node.value.keys)
    raise LookupError(f"{file} has no dict {table}")


# --- text to value -------------------------------------------------------------------------------


def number(kind: type, low: float | None = None, high: float | None = None) -> Callable:
    """A parser of an int or float within [low, high]."""

    def parse_number(text: str):
        try:
            value = kind(text)
        except ValueError:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None
        if value != value or value in (float("inf"), float("-inf")):
            raise argparse.ArgumentTypeError(f"{text!r} is not finite")
        if (low is not None and value < low) or (high is not None and value > high):
            if high is None:
                raise argparse.ArgumentTypeError(f"must be at least {low}, not {text}")
            raise argparse.ArgumentTypeError(f"must lie between {low} and {high}, not {text}")
        if high is None and value > LARGEST[kind]:
            raise argparse.ArgumentTypeError(f"must be at most {LARGEST[kind]}, not {text}")
        return value

    parse_number.metavar = "N" if kind is int else "X"
    return parse_number


def path(text: str) -> str:
    """Parse the name of a file or a folder: `~` is the user's home folder, `~name` that of a user.

    A shell expands `~` only at the beginning of a word, so not in `--output-dir=~/run`. Empty text,
    which would be the current folder, is what a shell makes of a variable that is not set.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return os.path.expanduser(text)


def device_name(text: str) -> str:
    """Parse auto, cpu, cuda, cuda:N or mps."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of auto, cpu, cuda, cuda:N, mps")
    return text


def thread_count(text: str) -> str | int:
    """Parse auto, or a number of threads."""
    return text if text == "auto" else number(int, 1, MAX_THREADS)(text)


thread_count.metavar = "N"


def image_size(text: str) -> int | list[int]:
    """Parse N, or HEIGHTxWIDTH as [height, width]; equal sides become N."""
    if not re.fullmatch(r"\s*-?\d+\s*([xX]\s*\d+\s*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not N or HEIGHTxWIDTH, such as 64 or 64x48")
    sides = [number(int, 1, 4096)(side) for side in text.lower().split("x")]
    return sides if len(set(sides)) == 2 else sides[0]


def class_names(text: str) -> str:
    """Parse names or indices of classes; only the checkpoint knows which there are."""
    if not text.strip():
        raise argparse.ArgumentTypeError("names no class")
    return text


def joined_sides(sides: Sequence[object]) -> str:
    """The inverse of `image_size`: HEIGHTxWIDTH."""
    return "x".join(map(str, sides))


def quoted(values: Sequence[object]) -> str:
    """Join names and numbers by commas. Names are in double quotes: they may contain commas."""
    texts = ['"{}"'.format(v.replace('"', '""')) if isinstance(v, str) else str(v) for v in values]
    return ",".join(texts)
