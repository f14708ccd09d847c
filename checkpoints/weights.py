"""A network's weights alone, in a safetensors file that other programs read too.

Its metadata, all text:

format   tiny-diffusion-1
step     updates made for these weights
config   as in a checkpoint, as JSON
weights  "moving average" or "as trained"
sha256   of these and of the tensors: see `digest`
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from checkpoints.inspection import PlainCopy, Refused
from utils import save_whole

FORMAT = "tiny-diffusion-1"


WEIGHTS = {"ema": "moving average", "model": "as trained"}  # as checkpoints and people name them


MAX_HEADER = 2**22  # bytes, of the names and shapes and the metadata


def save_weights(path: Path, config: dict, step: int, which: str, weights: dict) -> None:
    """Write the weights of a network (`which` is a key of `WEIGHTS`) whole or not at all."""
    tensors = {name: weight.cpu().contiguous() for name, weight in weights.items()}
    metadata = {"format": FORMAT, "step": str(step), "config": json.dumps(config)}
    metadata["weights"] = WEIGHTS[which]
    metadata["sha256"] = digest(metadata, tensors)
    content = save(tensors, metadata)  # save_file's files are for their owner alone
    save_whole(path, lambda partial: partial.write_bytes(content))


def holds_weights(path: Path) -> bool:
    """Is this a safetensors file? It begins with the length of a JSON object, and the object."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def load_weights(path: Path, *, verified: bool = True) -> dict:
    """What a checkpoint would hold of them: step, config, and "ema" or "model".

    Raises Refused, or what the readers raise, for a file that `save_weights` has not written.
    """
    with open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") > MAX_HEADER:
            raise Refused("is damaged or is not a checkpoint: its header is too long")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise Refused(f"holds weights, but not those of an export of this project ({FORMAT})")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    seal = metadata.pop("sha256", "")
    if verified and seal != digest(metadata, tensors):
        raise Refused("is damaged: its SHA-256 is not the one it was written with")
    which = {text: key for key, text in WEIGHTS.items()}[metadata["weights"]]
    step, config = int(metadata["step"]), json.loads(metadata["config"])
    return PlainCopy(path.stat().st_size, mapped=True).of(
        {"format": FORMAT, "step": step, "seconds": 0.0, "config": config, which: tensors}
    )


def digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """SHA-256 in hexadecimal of the metadata (without it) as JSON with sorted keys, and of each
    tensor in the order of the names: name, type and shape as text, and then its bytes."""
    whole = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()
