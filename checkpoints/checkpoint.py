"""Checkpoints: plain containers and tensors in one file that explains itself.

format      3
step        updates made so far
skipped     those of them that were not made, for a loss or gradient that was not finite
seconds     of training so far
unlogged_*  the sum of the losses since the last row of metrics, and the number of their updates
config      {"data", "model", "diffusion", "train"}: all that rebuilds the network and the process
model, ema  the network's weights, and their moving average
optimizer   the optimizers' states, by name
scaler      the state of the fp16 gradient scaler, or None

The file is a zip archive of torch.save, and ends with the SHA-256 of the rest. It is checked before
anything of it is read, because PyTorch loads a flipped bit without a word.

What export.py writes for other programs, weights alone, is in `training.weights`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from checkpoints.consistency import (
    CHECKPOINT,
    require_config,
    require_kinds,
    require_optimizer,
    require_weights,
)
from checkpoints.inspection import PlainCopy, Refused, require_plain_archive
from checkpoints.seal import SealingFile, require_seal
from checkpoints.weights import holds_weights, load_weights
from diffusion import GaussianDiffusion
from models import build_model
from utils import fits, memory_format, save_whole

FORMAT = 3


class CheckpointError(OSError):
    """A file that is no checkpoint of this project, or does not fit; the message says why."""


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint whole or not at all; raises OSError if it cannot be written."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            sealing = SealingFile(file)
            try:
                torch.save({"format": FORMAT, **checkpoint}, sealing)
            except RuntimeError as error:  # of torch's writer, when the file has refused it
                raise error.__context__ or error from None
            sealing.seal()

    save_whole(path, write)


def load_checkpoint(path: str | Path, *, mapped: bool = False) -> dict:
    """Read a checkpoint to the CPU; no code in the file is ever run.

    A file of weights alone (`training.weights`) is known by its content, and becomes a checkpoint
    with only "ema" or only "model". With `mapped`, tensors are read from the file when they are
    touched, and its SHA-256 is not checked, which would read all of it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or not one of this project's checkpoints.
    """
    checkpoint = read(Path(path), mapped=mapped)
    try:
        if checkpoint["format"] == FORMAT:
            require_kinds(checkpoint, CHECKPOINT)
        require_config(checkpoint["config"])
    except ValueError as error:
        raise CheckpointError(f"{path} contradicts itself: {brief(error)}") from None
    return checkpoint


def load_run(path: str | Path) -> dict:
    """A checkpoint from which a run can go on. Raises CheckpointError too for weights alone."""
    checkpoint = load_checkpoint(path)
    if "optimizer" not in checkpoint:
        raise CheckpointError(f"{path} holds weights alone, from which no run can go on")
    return checkpoint


def verify(path: str | Path) -> None:
    """Read a file whole, and raise what `load_checkpoint` raises if its SHA-256 is wrong."""
    with explained(Path(path)):
        load_weights(Path(path)) if holds_weights(Path(path)) else require_seal(Path(path))


def step_of(path: str | Path) -> int:
    """The step of a checkpoint, without reading its weights; its SHA-256 is not checked."""
    return read(Path(path), mapped=True)["step"]


def read(path: Path, *, mapped: bool) -> dict:
    """What a file of either kind holds: its format, a step, and what else there is."""
    with explained(path):
        if holds_weights(path):
            content = load_weights(path, verified=not mapped)
        else:
            content = read_archive(path, mapped=mapped)
        if not fits(step := content.get("step"), int) or step < 0:
            raise Refused(f"is not a checkpoint of Tiny Diffusion: its step is {str(step)[:20]}")
    return content


def read_archive(path: Path, *, mapped: bool) -> dict:
    """What a file of `save_checkpoint` holds, if it is plain and of this version's format."""
    if not mapped:
        require_seal(path)
    if path.suffix == ".safetensors":  # PyTorch goes by the name, and would not read it
        raise Refused("is not a safetensors file; if it is a checkpoint, name it .pt")
    require_plain_archive(path)
    # Mapped in any case: a tensor can then claim no more than the file holds.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    content = PlainCopy(path.stat().st_size, mapped=mapped).of(content)
    if not isinstance(content, dict) or "format" not in content:
        raise Refused("is not a checkpoint of Tiny Diffusion")
    if content["format"] != FORMAT:
        version = str(content["format"])[:20]
        raise Refused(f"has checkpoint format {version}; this version reads {FORMAT}")
    return content


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever is raised while a file is read into an error that says what is wrong."""
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}; train.py writes one")
    if not path.is_file():  # nobody may ever write to a pipe
        raise CheckpointError(f"{path} is not a file")
    try:
        yield
    except Refused as error:
        raise CheckpointError(f"{path} {error}") from None
    except Exception as error:  # the readers raise nearly anything
        reason = brief(error).partition(". ")[0]
        raise CheckpointError(f"{path} is damaged or is not a checkpoint ({reason})") from None


def restore(
    checkpoint: dict, device: torch.device | str = "cpu", *, raw: bool = False
) -> tuple[nn.Module, GaussianDiffusion]:
    """The network, ready to sample, and the process of a checkpoint, both on a device.

    With `raw` the network has the weights as trained, otherwise their moving average.

    Raises:
        ValueError: it has the others alone.
        CheckpointError: weights and configuration do not fit each other.
    """
    config, which = checkpoint["config"], "model" if raw else "ema"
    if which not in checkpoint:
        if raw:
            raise ValueError("the file holds the moving average of the weights alone: no --raw")
        raise ValueError("the file holds the weights as trained alone: give --raw")
    weights = checkpoint[which]
    try:
        diffusion = GaussianDiffusion(**config["diffusion"])
        with torch.device("meta"):  # nothing is allocated for a network that does not fit
            require_weights(weights, build_model(config["model"]))
    except ValueError as error:
        raise CheckpointError(f"the checkpoint contradicts itself: {brief(error)}") from None
    model = build_model(config["model"])
    model.load_state_dict(weights)
    device = torch.device(device)
    model = model.eval().requires_grad_(False).to(device, memory_format=memory_format(device))
    return model, diffusion.to(device)


def require_state(
    checkpoint: dict, model: nn.Module, optimizers: dict[str, torch.optim.Optimizer]
) -> None:
    """Raise a CheckpointError if a run of that network and optimizers cannot go on from it."""
    try:
        require_weights(checkpoint["model"], model)
        require_weights(checkpoint["ema"], model)
        require_kinds(checkpoint["optimizer"], dict.fromkeys(optimizers, dict), "optimizer.")
        for name, optimizer in optimizers.items():
            require_optimizer(checkpoint["optimizer"][name], optimizer)
        if checkpoint["scaler"] is not None:
            kinds = {"scale": float, "growth_factor": float, "backoff_factor": float}
            kinds |= {"growth_interval": int, "_growth_tracker": int}
            require_kinds(checkpoint["scaler"], kinds, "scaler.")
    except ValueError as error:
        raise CheckpointError(f"the checkpoint contradicts itself: {brief(error)}") from None


def brief(error: Exception) -> str:
    """The first line of a message, or of its 300 first characters."""
    return str(error).strip().partition("\n")[0][:300]


def differences(saved: dict, wanted: dict) -> list[str]:
    """Where two nested configurations differ: "model.channels: 64 in the checkpoint, 32 now".

    Only the fields of `wanted` are compared.
    """
    return [
        f"{section}.{key}: {saved.get(section, {}).get(key)} in the checkpoint, {value} now"
        for section, fields in wanted.items()
        for key, value in fields.items()
        if saved.get(section, {}).get(key) != value
    ]
