"""Weights files: the weights of one network in a safetensors file, for other programs too.

The file's metadata, all text:

format   tiny-diffusion-1
step     training steps of the network
config   the configuration of the checkpoint, as JSON
weights  "moving average" or "as trained"
stored   "float16" or "int8" if the float32 weights are rounded in the file; else missing
sha256   SHA-256 of the other metadata and the tensors (`weights_sha256`)
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from checkpoints.inspection import PlainCopy, Refused
from checkpoints.other_programs import of_family
from checkpoints.quantized import dequantized, quantized
from utils import save_whole

WEIGHTS_FORMAT = "tiny-diffusion-1"
WEIGHT_KINDS = {"ema": "moving average", "model": "as trained"}  # name in a checkpoint: in words
# float16 changes samples by 0.04 of 255 grey levels on average, bfloat16 by 0.2 (MNIST) to 0.6.
HALF = "float16"
INT8 = "int8"  # matrices and kernels; the effect is in docs/other_programs.md
MAX_HEADER = 2**22  # bytes of metadata, names and shapes


def save_weights(
    path: Path,
    config: dict,
    step: int,
    which: str,
    weights: dict,
    *,
    half: bool = False,
    int8: bool = False,
    kept: Collection[str] = (),
) -> None:
    """Write weights to a file, whole or not at all. `which` is a key of `WEIGHT_KINDS`.

    `half` stores float32 weights as 16-bit floats, and `int8` as 8-bit integers with a scale for
    each output channel (`checkpoints.quantized`), except those named `kept`; loading makes them
    float32 again.
    """
    weights = quantized(weights, kept) if int8 else weights
    half = half and not int8 and all(weight.dtype != torch.float16 for weight in weights.values())
    tensors = {  # clones, because safetensors refuses tensors that share memory
        name: halved(weight.cpu(), half).clone(memory_format=torch.contiguous_format)
        for name, weight in weights.items()
    }
    stored = INT8 if int8 else HALF if half else None
    metadata = metadata_of(config, step, which, tensors, stored)
    content = save(tensors, metadata)  # save_file would make the file readable by its owner only
    save_whole(path, lambda partial: partial.write_bytes(content))


def metadata_of(
    config: dict, step: int, which: str, tensors: dict[str, Tensor], stored: str | None = None
) -> dict[str, str]:
    """The metadata of a file with these tensors."""
    metadata = {"format": WEIGHTS_FORMAT, "step": str(step), "config": json.dumps(config)}
    metadata["weights"] = WEIGHT_KINDS[which]
    if stored is not None:
        metadata["stored"] = stored
    return metadata | {"sha256": weights_sha256(metadata, tensors)}


def halved(weight: Tensor, half: bool) -> Tensor:
    """A float32 weight as float16, if `half` is set and its values are in range; else unchanged."""
    if not half or weight.dtype != torch.float32:
        return weight
    rounded = weight.to(torch.float16)
    return rounded if torch.equal(rounded.isfinite(), weight.isfinite()) else weight


def is_own_weights(path: Path) -> bool:
    """Was a file written by `save_weights`, of this or of another version?"""
    try:
        if not holds_weights(path):
            return False
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("format", "")
    except (OSError, SafetensorError):
        return False
    return found.startswith(WEIGHTS_FORMAT.rstrip("1"))


def holds_weights(path: Path) -> bool:
    """Is this a safetensors file? It begins with the length of a JSON object, then the object."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def load_weights(path: Path, *, verified: bool = True) -> dict:
    """Load a file of `save_weights` as a checkpoint. Raises Refused for other or changed files."""
    with open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") > MAX_HEADER:
            raise Refused("is damaged or is not a checkpoint: its header is too long")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        found = metadata.get("format", "")
        if found.startswith(WEIGHTS_FORMAT.rstrip("1")) and found != WEIGHTS_FORMAT:
            raise Refused(
                "holds weights, but export.py of another version wrote it "
                f"({found[:40]}; this version reads {WEIGHTS_FORMAT})"
            )
        if found != WEIGHTS_FORMAT:
            raise Refused(
                f"holds weights, but export.py did not write it: weights{of_family(file.keys())} "
                "lack the configuration that sampling needs"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return as_checkpoint(path, metadata, tensors, verified=verified)


def as_checkpoint(
    path: Path, metadata: dict[str, str], tensors: dict[str, Tensor], *, verified: bool
) -> dict:
    """A checkpoint of the weights and metadata that were read from a file.

    With `verified`, raises Refused if they do not match their SHA-256.
    """
    sha256 = metadata.pop("sha256", "")
    if verified and sha256 != weights_sha256(metadata, tensors):
        raise Refused("is damaged: its content does not match its SHA-256")
    which = {words: name for name, words in WEIGHT_KINDS.items()}[metadata["weights"]]
    step, config = int(metadata["step"]), json.loads(metadata["config"])
    content = PlainCopy(path.stat().st_size, mapped=True).copy(
        {"format": WEIGHTS_FORMAT, "step": step, "seconds": 0.0, "config": config, which: tensors}
    )
    if metadata.get("stored") == HALF:
        of_half = {k: w.float() for k, w in tensors.items() if w.dtype == torch.float16}
        content[which] |= of_half
    if metadata.get("stored") == INT8:
        content[which] = dequantized(content[which])
    return content


def weights_sha256(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the metadata (sorted JSON) and of each tensor's name, type, shape and bytes."""
    sha256 = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()
