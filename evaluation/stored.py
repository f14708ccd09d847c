"""Networks that are trained once for a data set and stored next to it, with a SHA-256."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from checkpoints.weights import weights_sha256
from utils import memory_format, save_whole


class Stored(NamedTuple):
    """A stored network."""

    model: nn.Module
    metadata: dict[str, str]
    sha256: str  # of weights and metadata
    path: Path | None  # None if it could not be written


def read_stored(
    paths: Sequence[Path], make: Callable[[], nn.Module], device: torch.device
) -> Stored | None:
    """Read the first of these files that holds the network; None if none does.

    Args:
        paths: files that may be missing, damaged, or of another network.
        make: makes the network, without its weights.
        device: the device to compute on.
    """
    for path in filter(Path.is_file, paths):
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sha256 = metadata.pop("sha256")
            if sha256 != weights_sha256(metadata, tensors):
                continue
            model = make()
            model.load_state_dict(tensors)
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError):
            continue
        return Stored(model.to(device, memory_format=memory_format(device)), metadata, sha256, path)
    return None


def store(paths: Sequence[Path], model: nn.Module, metadata: dict[str, str]) -> Stored:
    """Write a network to the first of these files that can be written."""
    tensors = {key: tensor.cpu().contiguous() for key, tensor in model.state_dict().items()}
    sha256 = weights_sha256(metadata, tensors)
    content = save(tensors, {**metadata, "sha256": sha256})
    for path in paths:
        with suppress(OSError):
            save_whole(path, lambda partial: partial.write_bytes(content))
            return Stored(model, metadata, sha256, path)
    return Stored(model, metadata, sha256, None)
