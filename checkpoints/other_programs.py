"""Recognise files that are no checkpoints of this project, for messages."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.inspection import PlainCopy, require_plain_archive
from dataset.opening import NPZ, what_is

POSSIBLE = ("a PyTorch file", "a safetensors file")  # may be damaged checkpoints
LIGHTNING = "pytorch-lightning_version"
STATES = ("state_dict", "model_state_dict", "model", "net", "params", "ema")

# The beginning of a weight's name, and the network that has it.
FAMILIES = {
    "model.diffusion_model.": "Stable Diffusion",
    "down_blocks.": "a U-Net of diffusers",
    "conv_in.": "a network of diffusers",
    "text_model.": "a text encoder of transformers",
    "transformer_blocks.": "a transformer of diffusers",
    "x_embedder.": "a DiT",
}


def what_else(path: Path) -> str:
    """A description of a file, to follow "it is"; "" if it may be a damaged checkpoint of ours."""
    kind = what_is(path)
    if kind == NPZ and is_model_of_mini_diffusion(path):
        return f"a model for NumPy; python -m mini_diffusion.sample {path} samples from it"
    if kind == "a PyTorch file":
        return foreign_archive(path)
    if kind == "a zip archive" and holds_program(path):
        return ""  # the reader says what is wrong with it
    if not kind and path.suffix.lower() == ".onnx":
        return "an ONNX model"
    return "" if kind in POSSIBLE or kind.startswith("a damaged copy of a PyTorch") else kind


def is_model_of_mini_diffusion(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return {"config.npy", "alpha.npy", "sigma.npy"} <= set(archive.namelist())


def holds_program(path: Path) -> bool:
    """Is this a file of `torch.export.save`?"""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/models/model.json") for name in archive.namelist())


def foreign_archive(path: Path) -> str:
    """A description of a file of torch.save by another program; "" if it is ours or not plain."""
    try:
        require_plain_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content = PlainCopy(path.stat().st_size, mapped=True).copy(content)
    except Exception:  # the reason is reported by the reader
        return ""
    if not isinstance(content, dict):
        return f"a PyTorch file of {'a tensor' if isinstance(content, Tensor) else 'other content'}"
    if "format" in content or {"config", "step"} <= content.keys():
        return ""
    if LIGHTNING in content:
        return "a checkpoint of PyTorch Lightning"
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return f"weights without their configuration (a state_dict){of_family(content)}"
    if any(isinstance(content.get(key), dict) for key in STATES):
        return "a checkpoint of another program"
    return "a PyTorch file of another program"


def of_family(names) -> str:
    """The network that has weights of these names, in words: " of ..."."""
    for start, family in FAMILIES.items():
        if any(str(name).startswith(start) for name in names):
            return f" of {family}"
    return " of another program"
