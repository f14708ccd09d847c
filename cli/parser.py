"""Command lines: how flags are spelled, checked and shown, and how scripts report errors.

Imports nothing slow, so that `--help` answers at once: scripts import torch after they have parsed.
"""

import argparse
import ast
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent


MAX_SEED = 2**63 - 1


MOST = {int: 10**9, float: 1e30}  # that a flag takes where nothing else limits it


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose flags may be spelled with hyphens or underscores.

    The parsed namespace also holds `given`, the set of names whose flags stood on the command line.
    """

    raises = False  # a ValueError where a flag cannot be used, instead of ending the process

    def __init__(self, description: str, examples: Sequence[str]):
        super().__init__(
            description=description,
            epilog="examples:\n" + "\n".join(f"  {e}" for e in examples),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse_known_args(self, args=None, namespace=None):
        args = [hyphenated(arg) for arg in (sys.argv[1:] if args is None else args)]
        unset = object()  # argparse fills in defaults only where the namespace has nothing yet
        dests = {action.dest: action.default for action in self._actions}
        parsed, unknown = super().parse_known_args(
            args, argparse.Namespace(**dict.fromkeys(dests, unset))
        )
        parsed.given = {dest for dest in dests if getattr(parsed, dest) is not unset}
        for dest in dests.keys() - parsed.given:
            setattr(parsed, dest, dests[dest])
        for action in self._actions:  # argparse makes nothing of --flag=--, and does not mind
            if action.nargs in (None, "+") and getattr(parsed, action.dest) == []:
                self.error(f"argument {'/'.join(action.option_strings)}: '--' is no value")
        return parsed, unknown

    def error(self, message: str):
        if self.raises:
            raise ValueError(message)
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help lists the flags.\n")


def parse_keywords(script_parser: Parser, parse_args: Callable, flags: dict) -> argparse.Namespace:
    """Flags given as keyword arguments, parsed by a script's parse_args as a command line would be.

    Raises ValueError for a flag or a value that the command line would refuse.
    """
    actions = {a.dest: a for a in script_parser._actions if a.dest != "help"}
    words = []
    for name, value in flags.items():
        if name not in actions:
            raise ValueError(f"there is no {name}; there are {', '.join(actions)}")
        flag = actions[name].option_strings[0]
        if value is None:
            continue
        if isinstance(actions[name], argparse.BooleanOptionalAction):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif actions[name].nargs == 0 or (actions[name].nargs == "?" and isinstance(value, bool)):
            words += [flag] if value else []
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [flag, *map(str, values)]
    Parser.raises = True
    try:
        return parse_args(words)
    finally:
        Parser.raises = False


def parse_saved(script_parser: Parser, name: str, value: object) -> object:
    """The value that a file has for a flag.

    Raises ValueError where the command line would refuse it.
    """
    action = next(a for a in script_parser._actions if a.dest == name)
    if value is None and action.default is None:
        return None

    def parse(text: str):
        try:
            parsed = script_parser._get_value(action, text)
            script_parser._check_value(action, parsed)
        except argparse.ArgumentError as error:
            raise ValueError(str(error)) from None
        return parsed

    if action.nargs == 0:
        parsed = value is True
    elif action.nargs in ("+", "*"):
        parsed = [parse(str(item)) for item in value] if isinstance(value, list) else None
    else:
        parsed = parse(str(value))
    if parsed != value or isinstance(parsed, bool) != isinstance(value, bool):
        raise ValueError(f"argument {action.option_strings[0]}: {str(value)[:80]} is of no use")
    return value  # as it stands: 2 is not written as 2.0


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, where there are any, and keeps the line breaks of the examples."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=100)

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == []:
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def hyphenated(arg: str) -> str:
    """`--batch_size=8` as `--batch-size=8`; anything but a long flag as it is."""
    if not arg.startswith("--"):
        return arg
    flag, equals, value = arg.partition("=")
    return flag.replace("_", "-") + equals + value


@cache
def names(file: str, table: str) -> tuple[str, ...]:
    """The keys of a dict literal in one of our modules, read without importing it (or torch)."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if table in [getattr(target, "id", None) for target in targets]:
            return tuple(ast.literal_eval(key) for key in node.value.keys)
    raise LookupError(f"{file} has no dict {table}")


def number(kind: type, low: float | None = None, high: float | None = None) -> Callable:
    """An argparse type: an int or float within [low, high]."""

    def parse(text: str):
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
        if high is None and value > MOST[kind]:
            raise argparse.ArgumentTypeError(f"must be at most {MOST[kind]}, not {text}")
        return value

    return parse


def device_name(text: str) -> str:
    """An argparse type: auto, cpu, cuda, cuda:N or mps."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of auto, cpu, cuda, cuda:N, mps")
    return text


def add_runtime_flags(parser: Parser, precision: str | None, precision_help: str):
    """The flags of every script that runs a network. Returns their group."""
    group = parser.add_argument_group("machine")
    add_device_flag(group)
    group.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default=precision,
        help=precision_help,
    )
    return group


def add_device_flag(group) -> None:
    group.add_argument(
        "--device",
        type=device_name,
        default="auto",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:N or mps; auto takes cuda, else mps, else cpu",
    )


def add_seed_flag(group) -> None:
    group.add_argument(
        "--seed",
        type=number(int, 0, MAX_SEED),
        default=0,
        metavar="N",
        help="fixes every random number",
    )


def add_checkpoint_flags(parser: Parser, required: bool = True):
    """The flags of every script that opens a checkpoint. Returns their group."""
    group = parser.add_argument_group("what")
    group.add_argument(
        "--checkpoint",
        required=required,
        metavar="FILE",
        help="written by train.py, or by export.py as safetensors",
    )
    group.add_argument(
        "--raw",
        action="store_true",
        help="use the weights as trained, not their moving average",
    )
    add_seed_flag(group)
    return group


def class_ids(text: str) -> str | list[int]:
    """An argparse type: `all`, or class numbers with commas between them."""
    return text if text == "all" else [number(int, 0)(part) for part in text.split(",")]


# fmt: off
def add_walk_flags(parser: Parser) -> None:
    """The flags of every script that walks from noise to data."""
    classes = parser.add_argument_group("classes (of a checkpoint of train.py --class-conditional)")
    classes.add_argument("--class-id", type=class_ids, metavar="ID",
                         help="a class, several (0,1,2) or all: one row each "
                         "(default: image i is of class i, counted round)")
    classes.add_argument("--guidance-scale", type=number(float, 0), default=1.0, metavar="W",
                         help="classifier-free guidance: uncond + W (cond - uncond)")
    classes.add_argument("--guidance-interval", type=number(float, 0), nargs=2,
                         metavar=("LOW", "HIGH"),
                         help="guide only at these noise levels, sigma / alpha (default: at all)")
    classes.add_argument("--guidance-rescale", type=number(float, 0, 1), default=0.0, metavar="X",
                         help="bring the guided output back to its size without guidance, 0 to 1")

    how = parser.add_argument_group("how")
    how.add_argument("--sampler", choices=["auto", *names("samplers.py", "SAMPLERS")],
                     default="auto",
                     help="the walk back from noise; auto is the best known")
    how.add_argument("--steps", type=number(int, 1), metavar="N",
                     help="steps of the walk, up to T (default: the sampler's)")
    how.add_argument("--spacing", choices=names("schedules.py", "SPACINGS"),
                     help="which timesteps the steps visit (default: the sampler's)")
    how.add_argument("--timesteps", type=number(int, 2), metavar="T",
                     help="steps of the forward process; checked against the checkpoint's")
    how.add_argument("--batch-size", type=number(int, 1), metavar="N",
                     help="how many are computed at once; does not change them (default: 64, "
                     "fewer of more than 64 x 64 pixels; 2000 points)")

    options = parser.add_argument_group("options of single samplers")
    options.add_argument("--eta", type=number(float, 0, 1), metavar="X",
                         help="ddim: fresh noise in each step, from 0, none, to 1, as much as "
                         "ddpm's (default: 0)")
    options.add_argument("--variance", choices=["small", "large", "learned"],
                         help="ddpm: of each step (default: learned where the network has learned "
                         "it, else small)")
    options.add_argument("--churn", type=number(float, 0), metavar="X",
                         help="euler, heun: S_churn, fresh noise added before each step "
                         "(default: 0)")
    options.add_argument("--churn-min", type=number(float, 0), metavar="X",
                         help="euler, heun: S_min, the least sigma / alpha with churn (default: 0)")
    options.add_argument("--churn-max", type=number(float, 0), metavar="X",
                         help="euler, heun: S_max, the largest (default: none)")
    options.add_argument("--churn-noise", type=number(float, 0), metavar="X",
                         help="euler, heun: S_noise, standard deviation of that noise (default: 1)")
    options.add_argument("--order", type=number(int, 1, 4), metavar="N",
                         help="unipc: order of the predictor and the corrector (default: 3)")
    options.add_argument("--gamma", type=number(float, 0), metavar="X",
                         help="gamma: how far to go beyond each step; 1 is ddim (default: 2)")
    options.add_argument("--mu", type=number(float, 0, 0.99), metavar="X",
                         help="gamma: fresh noise, from 0, none, to 0.5, as ddpm's, and beyond "
                         "(default: 0)")


def check_walk_flags(parser: Parser, args: argparse.Namespace) -> None:
    """End with a message if one of these flags is given without the one that it is for."""
    for flag in ("churn_min", "churn_max", "churn_noise"):
        if flag in args.given and not args.churn:
            parser.error(f"--{flag.replace('_', '-')} is for --churn")
    for flag in ("guidance_interval", "guidance_rescale"):
        if flag in args.given and args.guidance_scale == 1:
            parser.error(f"--{flag.replace('_', '-')} is for a --guidance-scale other than 1")


def add_data_flags(parser: Parser, default: str | None, default_help: str = ""):
    """The flags of every script that opens a data set. Returns their group."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        choices=names("dataset/registry.py", "DATASETS"),
        default=default,
        help="digits comes with scikit-learn; folder is any folder of images" + default_help,
    )
    group.add_argument(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="where the data set is, or is to be downloaded to; for folder, the folder of images",
    )
    group.add_argument(
        "--image-size",
        type=number(int, 1, 4096),
        metavar="N",
        help="resize to N x N pixels (default: the data set's own size, and 64 for folder)",
    )
    group.add_argument("--no-download", action="store_true", help="fail at once if data is missing")
    group.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="folder: leave out files that cannot be read, instead of stopping",
    )
    group.add_argument(
        "--fit",
        choices=names("dataset/image_files.py", "FITS"),
        default="crop",
        help="folder: take an image's central square, or press all of it into one",
    )
    group.add_argument(
        "--cache-limit",
        type=number(float, 0),
        default=2,
        metavar="GB",
        help="folder: pixels that are held in memory; more are decoded once, into a file in "
        "--cache-dir that is mapped",
    )
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where such files are kept (default: .tiny-diffusion in the folder of images)",
    )
    return group


def run(main: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Call `main(args)` and turn an exception into one message on stderr and an exit code.

    2 for a value that cannot be used (ValueError), 130 for Ctrl-C, 1 for all else; the traceback
    is shown only with --debug.
    """
    script = Path(sys.argv[0]).name
    try:
        return main(args) or 0
    except KeyboardInterrupt:
        print(f"\n{script}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output (head, say) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        else:
            process = int(os.environ.get("RANK", 0))
            if not (process and isinstance(error, ValueError)):  # the first has said it for all
                which = f" (process {process})" if process else ""
                print(f"{script}: error{which}: {explain(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def leave(code: int) -> NoReturn:
    """End the process with an exit code.

    One of several ends without Python's teardown: what PyTorch's threads still have to give back
    then ends it with SIGABRT now and then, and torchrun calls the whole job failed.
    """
    if "RANK" in os.environ:
        for thread in threading.enumerate():  # a checkpoint that is being written, say
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def explain(error: Exception) -> str:
    """The message of an error that we raised, or kind and first line of one not foreseen."""
    if isinstance(error, (ValueError, OSError, FloatingPointError)) or (
        isinstance(error, MemoryError) and str(error)
    ):
        return str(error)
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}\n(--debug shows where)"
