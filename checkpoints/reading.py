"""Reading the file of a checkpoint or of weights, without running code in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from checkpoints.inspection import PlainCopy, Refused, require_plain_archive
from checkpoints.other_programs import holds_program, what_else
from checkpoints.programs import load_program
from checkpoints.seal import require_seal
from checkpoints.weights import holds_weights, load_weights
from utils import matches_type

CHECKPOINT_FORMAT = 3


class CheckpointError(OSError):
    """A file is damaged, is not a checkpoint, or does not fit. The message says why."""


def verify_checkpoint(path: str | Path) -> None:
    """Check the SHA-256 of a file. Raises the errors of `load_checkpoint`."""
    with explain_errors(Path(path)):
        path = Path(path)
        if holds_weights(path):
            load_weights(path)
        elif holds_program(path):
            load_program(path)
        else:
            require_seal(path)


def step_of(path: str | Path) -> int:
    """Step of a checkpoint, without reading its weights or checking its SHA-256."""
    return read_content(Path(path), mapped=True)["step"]


def read_content(path: Path, *, mapped: bool) -> dict:
    """Read a checkpoint or a file of weights; only "format" and "step" are checked."""
    with explain_errors(path):
        if holds_weights(path):
            content = load_weights(path, verified=not mapped)
        elif holds_program(path):
            content = load_program(path, verified=not mapped)
        else:
            content = read_archive(path, mapped=mapped)
        if not matches_type(step := content.get("step"), int) or step < 0:
            raise Refused(f"is not a checkpoint of Tiny Diffusion: its step is {str(step)[:20]}")
    return content


def read_archive(path: Path, *, mapped: bool) -> dict:
    """Read a file of `save_checkpoint`. Raises Refused unless it is plain and of a known format."""
    if not mapped:
        require_seal(path)
    if path.suffix == ".safetensors":  # PyTorch trusts the name and would not read the archive
        raise Refused("is not a safetensors file; if it is a checkpoint, name it .pt")
    require_plain_archive(path)
    # Always mapped: a tensor then cannot claim more bytes than the file has.
    with named_in_utf8(path) as name:
        content = torch.load(name, map_location="cpu", weights_only=True, mmap=True)
    content = PlainCopy(path.stat().st_size, mapped=mapped).copy(content)
    if not isinstance(content, dict) or "format" not in content:
        raise Refused("is not a checkpoint of Tiny Diffusion")
    if content["format"] != CHECKPOINT_FORMAT:
        version = str(content["format"])[:20]
        hint = ""
        if matches_type(content["format"], int) and content["format"] > CHECKPOINT_FORMAT:
            hint = "; a newer version of this project wrote it"
        raise Refused(
            f"has checkpoint format {version}; this version reads {CHECKPOINT_FORMAT}{hint}"
        )
    return content


@contextmanager
def named_in_utf8(path: Path) -> Iterator[str]:
    """A name of an existing file that torch can open: its own, or that of an open descriptor."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield str(path)


@contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turn any error of reading a file into a FileNotFoundError or CheckpointError."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no checkpoint {path}; train.py writes one")
    if not path.is_file():  # reading a pipe could wait for ever
        raise CheckpointError(f"{path} is not a file")
    try:
        yield
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged file makes zipfile, pickle and torch raise many types
        other = what_else(path)
        if isinstance(error, Refused) and not other:
            raise CheckpointError(f"{path} {error}") from None
        reason = f": it is {other}" if other else f" ({first_line(error).partition('. ')[0]})"
        raise CheckpointError(f"{path} is damaged or is not a checkpoint{reason}") from None


def first_line(error: Exception) -> str:
    """First line of an error message, cut to 300 characters."""
    return str(error).strip().partition("\n")[0][:300]
