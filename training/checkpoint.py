"""Checkpoints: plain containers and tensors in one file that explains itself.

format      2
step        updates made so far
skipped     those of them that were not made, for a loss or gradient that was not finite
seconds     of training so far
config      {"data", "model", "diffusion", "train"}: all that rebuilds the network and the process
model, ema  the network's weights, and their moving average
optimizer   the optimizers' states, by name
scaler      the state of the fp16 gradient scaler, or None
"""

from pathlib import Path

import torch
from torch import nn

from diffusion import GaussianDiffusion
from models import build_model
from utils import memory_format, save_whole

FORMAT = 2
KEYS = {"format", "step", "skipped", "seconds", "config", "model", "ema", "optimizer", "scaler"}


class CheckpointError(OSError):
    """A file that is no checkpoint of this project, or does not fit; the message says why."""


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint whole or not at all; raises OSError if it cannot be written."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            try:
                torch.save({"format": FORMAT, **checkpoint}, file)
            except RuntimeError as error:  # of torch's writer, when the file has refused it
                raise error.__context__ or error from None

    save_whole(path, write)


def load_checkpoint(path: str | Path, *, mapped: bool = False) -> dict:
    """Read a checkpoint to the CPU; no code in the file is ever run.

    With `mapped`, tensors are read from the file when they are touched.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or not one of this project's checkpoints.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; train.py writes one")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # the readers under torch.load raise nearly anything
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise CheckpointError(f"{path} is damaged or is not a checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= KEYS:
        raise CheckpointError(f"{path} is not a checkpoint of Tiny Diffusion")
    if checkpoint["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {checkpoint['format']}; this version reads {FORMAT}"
        )
    return checkpoint


def restore(
    checkpoint: dict, device: torch.device | str = "cpu", *, raw: bool = False
) -> tuple[nn.Module, GaussianDiffusion]:
    """The network, ready to sample, and the process of a checkpoint, both on a device.

    With `raw` the network has the weights as trained, otherwise their moving average.
    Raises CheckpointError where weights and configuration do not fit each other.
    """
    config = checkpoint["config"]
    try:
        model = build_model(config["model"])
        model.load_state_dict(checkpoint["model" if raw else "ema"])
        diffusion = GaussianDiffusion(**config["diffusion"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint contradicts itself: {error}") from None
    device = torch.device(device)
    model = model.eval().requires_grad_(False).to(device, memory_format=memory_format(device))
    return model, diffusion.to(device)


def verify(path: Path) -> None:
    """Raise a CheckpointError if a checkpoint is not as it was written."""
    load_checkpoint(path)


def step_of(path: Path) -> int:
    """The step of a checkpoint, without reading its weights."""
    return load_checkpoint(path, mapped=True)["step"]


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
