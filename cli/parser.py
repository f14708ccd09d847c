"""Command lines: spelling, help and errors of the flags that a dataclass declares."""

import argparse
import importlib.util
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import Field
from functools import partial

from cli.declare import Declaration, Flags, option, path
from cli.process import prepare

WIDTH, HELP_COLUMN = 120, 41  # of --help, in characters
FIRST, LAST = ("options", "checkpoint", "data"), ("machine", "output")  # groups of flags
PACKAGES = ("torch", "numpy", "matplotlib", "PIL", "tqdm", "safetensors")  # needed by all commands
SHORT = 26  # characters; longer lists of choices are not shown next to the flag


class UsageError(ValueError):
    """A command line that cannot be used; the message says why."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError, and holds only the flags that were given."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **options)

    def error(self, message: str):
        raise UsageError(message)


class Command:
    """One command: its flags, its description, and commands that work as examples.

    A flag may be spelled with hyphens or underscores.
    """

    def __init__(self, flags: type[Flags], description: str, examples: Sequence[str]):
        self.flags, self.description, self.examples = flags, description, examples
        self.declared = {field.name: (field, found) for field, found in flags.declarations()}

    def parse(self, argv: Sequence[str] | None = None) -> Flags:
        """Parse a command line (default: this process's). A usage error exits with code 2."""
        if argv is None:
            prepare()  # before --help is printed
        parser = self.parser()
        try:
            flags = self.parsed(parser, sys.argv[1:] if argv is None else argv)
        except ValueError as error:
            message = f"{parser.prog}: error: {error}\n{parser.prog} --help lists the flags.\n"
            parser.exit(2, message)
        if argv is None and (missing := [name for name in PACKAGES if not is_installed(name)]):
            message = f"not installed: {', '.join(missing)}: pip install -r requirements.txt"
            parser.exit(1, f"{parser.prog}: error: {message}\n")
        return flags

    def keywords(self, **values: object) -> Flags:
        """Parse keyword arguments as a command line with these flags would be parsed.

        Raises ValueError for a flag or a value that the command line would reject.
        """
        return self.parsed(self.parser(), self.words(values))

    def require_valid(self, name: str, value: object) -> None:
        """Raise ValueError for a value, from a file, that the command line would reject."""
        field, declared = self.declared[name]
        if (value is None and field.default is None) or (
            declared.switch and isinstance(value, bool)
        ):
            return
        if declared.nargs in ("+", "*") and not isinstance(value, list):
            raise UsageError(f"argument {option(name)}: {str(value)[:80]} is not a list")
        if declared.parse is path and isinstance(value, str):
            return  # in a saved path, ~ is not expanded but the name of a folder
        parser = Parser(prog="", add_help=False)
        add_argument(parser, field, declared._replace(required=False))
        found = getattr(parser.parse_args(self.words({name: value})), name, field.default)
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise UsageError(f"argument {option(name)}: {str(value)[:80]} is not a valid value")

    def parser(self) -> Parser:
        """The argparse parser of the command."""
        epilog = "examples:\n" + "\n".join(f"  {example}" for example in self.examples)
        parser = Parser(
            usage="%(prog)s [flags]",
            description=self.description,
            formatter_class=partial(
                argparse.RawDescriptionHelpFormatter, max_help_position=HELP_COLUMN, width=WIDTH
            ),
        )
        groups: dict[str, object] = {"options": parser}
        for field, declared in sorted(self.declared.values(), key=position):
            if declared.group not in groups:
                groups[declared.group] = parser.add_argument_group(declared.group)
            add_argument(groups[declared.group], field, declared)
        parser.epilog = "\n".join([*self.long_choices(), epilog])
        return parser

    def long_choices(self) -> list[str]:
        """Lines for --help: the values of flags that have many."""
        long = {name: d.choices for name, (_, d) in self.declared.items() if is_long(d.choices)}
        lines = [
            textwrap.fill(
                f"  {option(name):<24}{', '.join(choices)}", WIDTH, subsequent_indent=" " * 26
            )
            for name, choices in long.items()
        ]
        return ["values:", *lines, ""] if lines else []

    def parsed(self, parser: Parser, argv: Sequence[str]) -> Flags:
        """The flags of a command line. Raises UsageError, or ValueError where flags contradict."""
        given = vars(parser.parse_args([hyphenated(word) for word in argv]))
        for name, value in given.items():  # argparse accepts --flag=-- without a value
            if value == [] and self.declared[name][1].nargs in (None, "+"):
                raise UsageError(f"argument {option(name)}: '--' is not a value")
        flags = self.flags(**given, given=frozenset(given))
        flags.check()
        return flags

    def words(self, values: dict[str, object]) -> list[str]:
        """The command line of flags with these values; None leaves a flag out.

        Raises UsageError for an unknown flag, or several values for a flag that takes one.
        """
        words = []
        for name, value in values.items():
            if name not in self.declared:
                raise UsageError(f"unknown flag {name}; the flags are {', '.join(self.declared)}")
            declared, value = self.declared[name][1], plain(value)
            if value is None:
                continue
            if isinstance(value, list) and declared.join:
                value = declared.join(value)
            elif isinstance(value, list) and declared.nargs is None:
                if len(value) != 1:
                    raise UsageError(f"argument {option(name)}: takes one value, not {value}")
                (value,) = value
            if declared.switch == "on-off":
                words.append(option(name) if value else f"--no-{option(name)[2:]}")
            elif declared.switch or (declared.nargs == "?" and isinstance(value, bool)):
                words += [option(name)] if value else []
            elif isinstance(value, list):
                words += [option(name), *map(str, value)]
            else:  # with "=", because the value may begin with a hyphen
                words.append(str(value) if declared.positional else f"{option(name)}={value}")
        return words


def is_installed(package: str) -> bool:
    """Can a package be imported? It is only looked up, because importing may take seconds."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # something has put a module without a specification in its place
        return package in sys.modules


def plain(value: object) -> object:
    """A keyword argument in plain types: an array, a tuple or a range as a list, a path as text."""
    if hasattr(value, "tolist"):  # of NumPy or PyTorch, which are not imported here
        value = value.tolist()
    if isinstance(value, (tuple, range)):
        return list(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def position(entry: tuple[Field, Declaration]) -> int:
    """Sort key of a flag in --help: checkpoint and data first, machine and output last."""
    group = entry[1].group
    return FIRST.index(group) if group in FIRST else 9 + LAST.index(group) if group in LAST else 8


def is_long(choices: Sequence[str] | None) -> bool:
    """Are these too many values to be shown next to their flag?"""
    return choices is not None and len(",".join(choices)) > SHORT


def add_argument(parser, field: Field, declared: Declaration) -> None:
    """Add a declared flag to an argparse parser or group."""
    options: dict[str, object] = {"help": help_text(field, declared)}
    if declared.switch == "on":
        options["action"] = "store_true"
    elif declared.switch == "on-off":
        options["action"] = "store_true"
        off = f"--no-{option(field.name)[2:]}"
        options["help"] += f"; {off}: off"
        parser.add_argument(off, dest=field.name, action="store_false", help=argparse.SUPPRESS)
    else:
        options |= {"type": declared.parse, "choices": declared.choices}
        options["metavar"] = metavar_of(declared)
        if declared.nargs is not None:
            options |= {"nargs": declared.nargs, "const": declared.const}
    if declared.positional:
        parser.add_argument(field.name, **options)
        return
    if declared.required:
        options["required"] = True
    names = [option(field.name), *declared.names]
    parser.add_argument(*names, dest=field.name, **options)


def metavar_of(declared: Declaration) -> str | tuple[str, ...] | None:
    """The placeholder in --help for the value of a flag; None to show its choices."""
    if declared.metavar or (declared.choices and not is_long(declared.choices)):
        return declared.metavar
    return "NAME" if declared.choices else getattr(declared.parse, "metavar", None)


def help_text(field: Field, declared: Declaration) -> str:
    """A flag's help with its default."""
    text, default = declared.help.replace("%", "%%"), default_of(field)
    if default is None or default is False or "(default" in text:
        return text
    return f"{text} (default: {default})"


def default_of(field: Field) -> object:
    """The default of a flag in its spelling on the command line; None for none."""
    if callable(field.default_factory):
        return " ".join(map(str, field.default_factory())) or None
    return field.default


def hyphenated(word: str) -> str:
    """`--batch_size=8` as `--batch-size=8`; anything but a long flag unchanged."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value
