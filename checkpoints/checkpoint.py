"""Checkpoints, format 3: one file with the full state of a training run.

The file is a zip archive of torch.save, followed by the SHA-256 of all its bytes (`seal.py`). The
archive holds one dict of plain containers and tensors:

format            3
step              training steps so far
skipped           how many of them left the weights unchanged: loss or gradient was not finite
seconds           training time so far
unlogged_loss     sum of the losses since the last row of metrics.jsonl
unlogged_updates  number of these losses
config            how to rebuild the network and the process, by section:
    data            the data set, the shape of an item, the names and counts of classes
    model           "name", a key of `NETWORKS`, and the arguments of that network
    diffusion       the arguments of `GaussianDiffusion`
    train           the options of the training
model             weights as trained
ema               moving average of the weights; samples are drawn with it
optimizer         state of each optimizer, by name
scaler            state of the gradient scaler of fp16, or None
averages          post-hoc averages of the weights (`averages`), by their length, if kept
teacher           weights of the network that is tuned (`training.tuning`), if there is one
guide             weights of the network that guides the teacher, if there is one

best.pt also has "validation_loss". A network of the user's own (`training.fit`), which
`restore` takes as an argument, has the model {"name": "custom", "class": its class, "num_classes"}.
Its data has "shape", [C, H, W] or [D], and "range", [low, high] or None.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from checkpoints.averages import LENGTHS
from checkpoints.consistency import (
    CHECKPOINT_TYPES,
    CUSTOM,
    require_config,
    require_optimizer,
    require_tensors,
    require_types,
    require_weights,
)
from checkpoints.reading import CHECKPOINT_FORMAT, CheckpointError, first_line, read_content
from checkpoints.runs import find_checkpoint
from checkpoints.seal import SealingFile
from diffusion import GaussianDiffusion
from models import build_model
from utils import UnknownName, memory_format, save_whole, size_text, unwrapped

FROZEN = ("teacher", "guide")  # networks of a checkpoint that are not trained


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint file whole or not at all."""

    def write_sealed(partial: Path) -> None:
        with open(partial, "wb") as file:
            sealing = SealingFile(file)
            try:
                torch.save({"format": CHECKPOINT_FORMAT, **checkpoint}, sealing)
            except RuntimeError as error:  # torch's writer hides the OSError of the file
                raise error.__context__ or error from None
            sealing.seal()

    save_whole(path, write_sealed)


def load_checkpoint(path: str | Path, *, mapped: bool = False) -> dict:
    """Load a checkpoint to the CPU, of a file or of a run's folder. Code in it is never run.

    A file of only weights (`checkpoints.weights`), recognised by its content, becomes a checkpoint
    with either "ema" or "model", and without optimizer states. With `mapped`, each tensor is read
    when it is first used, and the SHA-256 is not checked. Raises FileNotFoundError, or
    CheckpointError if the file is damaged or is not a checkpoint of this project.
    """
    path = find_checkpoint(path)
    checkpoint = read_content(path, mapped=mapped)
    with checkpoint_errors(f"{path} contradicts itself"):
        if checkpoint["format"] == CHECKPOINT_FORMAT:
            require_types(checkpoint, CHECKPOINT_TYPES)
            require_tensors(checkpoint["model"])
            require_tensors(checkpoint["ema"])
            for name in ("averages", *FROZEN):
                require_types({name: checkpoint.get(name, {})}, {name: dict})
            for name in FROZEN:
                require_tensors(checkpoint.get(name, {}))
        require_config(checkpoint["config"])
    return checkpoint


def load_resumable(path: str | Path) -> dict:
    """Load a checkpoint to resume training from. Raises CheckpointError for a weights file, too."""
    checkpoint = load_checkpoint(path)
    if "optimizer" not in checkpoint:
        raise CheckpointError(
            f"{path} holds weights alone; training resumes only from a checkpoint of train.py"
        )
    return checkpoint


def restore(
    checkpoint: dict,
    device: torch.device | str = "cpu",
    *,
    raw: bool = False,
    model: nn.Module | None = None,
) -> tuple[nn.Module, GaussianDiffusion]:
    """Rebuild the network and the process of a checkpoint, ready for sampling.

    `raw` takes the weights as trained instead of their moving average. A network of your own is
    passed as `model`, which receives the weights. Raises ValueError if the checkpoint lacks the
    chosen weights or needs `model`, and CheckpointError if the weights do not fit.
    """
    config, which = checkpoint["config"], "model" if raw else "ema"
    if which not in checkpoint:
        if raw:
            raise ValueError("the file holds only the moving average of the weights: omit --raw")
        raise ValueError("the file holds only the weights as trained: add --raw")
    if model is None and config["model"]["name"] == CUSTOM:
        name = config["model"]["class"]
        raise ValueError(
            f"the checkpoint holds a network of your own (class {name}): pass it, "
            f"restore(checkpoint, model={name}(...)). No command can; in Python, "
            f"sample(checkpoint, model={name}(...)) does what sample.py does"
        )
    with checkpoint_errors("the checkpoint contradicts itself"):
        diffusion = GaussianDiffusion(**config["diffusion"])
        if model is None:
            with torch.device("meta"):  # no memory is allocated before the weights are checked
                require_weights(checkpoint[which], build_model(config["model"]))
            model = build_model(config["model"])
    if checkpoint[which].keys() != model.state_dict().keys():
        model = unwrapped(model)
    with checkpoint_errors("the checkpoint does not fit this network"):
        require_weights(checkpoint[which], model)
    model.load_state_dict(checkpoint[which])
    device = torch.device(device)
    model = model.eval().requires_grad_(False).to(device, memory_format=memory_format(device))
    return model, diffusion.to(device)


def require_state(
    checkpoint: dict,
    model: nn.Module,
    optimizers: dict[str, torch.optim.Optimizer],
    frozen: dict[str, nn.Module] | None = None,
) -> None:
    """Raise CheckpointError if training of this network and its optimizers cannot resume."""
    with checkpoint_errors("the checkpoint contradicts itself"):
        require_weights(checkpoint["model"], model)
        require_weights(checkpoint["ema"], model)
        for name, network in (frozen or {}).items():
            require_weights(checkpoint.get(name, {}), network)
        if checkpoint["config"]["train"].get("post_hoc_ema"):
            for length in LENGTHS:
                found = checkpoint.get("averages", {}).get(f"{length:.2f}")
                require_types({"averages": found}, {"averages": dict})
                require_weights(found, model)
        require_types(checkpoint["optimizer"], dict.fromkeys(optimizers, dict), "optimizer.")
        for name, optimizer in optimizers.items():
            require_optimizer(checkpoint["optimizer"][name], optimizer)
        if checkpoint["scaler"] is not None:
            types = {"scale": float, "growth_factor": float, "backoff_factor": float}
            types |= {"growth_interval": int, "_growth_tracker": int}
            require_types(checkpoint["scaler"], types, "scaler.")


@contextmanager
def checkpoint_errors(problem: str) -> Iterator[None]:
    """Turn a ValueError into a CheckpointError that begins with the problem."""
    try:
        yield
    except UnknownName as error:
        name = problem.removesuffix(" contradicts itself")
        raise CheckpointError(
            f"{name} may be of a newer version of this project: {first_line(error)}"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{problem}: {first_line(error)}") from None


LONGEST = 60  # characters of a value in a message


def config_differences(saved: dict, wanted: dict) -> list[str]:
    """Differences in the fields of `wanted`: "model.channels: 64 in the checkpoint, 32 now"."""

    def shown(key: str, value: object) -> str:
        if key == "image_size" and value:
            return size_text(value)
        text = str(value)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."

    return [
        f"{section}.{key}: {shown(key, saved.get(section, {}).get(key))} in the checkpoint, "
        f"{shown(key, value)} now"
        for section, fields in wanted.items()
        for key, value in fields.items()
        if saved.get(section, {}).get(key) != value
    ]
