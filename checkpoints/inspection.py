"""Refuse files that would run code or fill the memory; a checkpoint may come from a stranger."""

import pickletools
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from utils import MAX_INT

MAX_PICKLE = 2**22  # bytes of the pickled containers; a network needs about 400 for each weight
MAX_DEPTH = 10  # nesting of containers; an optimizer's state is 7 deep
MAX_VALUES = 10**6

# All names that torch.save writes for our checkpoints. torch.load(weights_only=True) allows more,
# for example a bytearray of any length.
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
FLOATS = ("Float", "Half", "BFloat16", "Double")
INTEGERS = ("Long", "Int", "Short", "Char", "Byte", "Bool")  # buffers of a network
GLOBALS |= {f"torch {number}Storage" for number in FLOATS + INTEGERS}


class Refused(ValueError):
    """A file must not be used. The message is the reason, to be read after the file's name."""


def require_plain_archive(path: Path) -> None:
    """Check a file of torch.save before PyTorch opens it; raises Refused, or what zipfile does."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise Refused("is not a checkpoint of Tiny Diffusion: it is compressed")
        if sum(max(e.file_size, e.compress_size) for e in entries) > path.stat().st_size:
            raise Refused("is damaged: its parts are larger than the file")
        pickled = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickled) != 1 or pickled[0].file_size > MAX_PICKLE:
            raise Refused("is not a checkpoint of Tiny Diffusion: its data.pkl is not usable")
        for count, (opcode, value, _) in enumerate(pickletools.genops(archive.read(pickled[0]))):
            if opcode.name == "PROTO" and value != 2:
                raise Refused(f"is not a checkpoint of Tiny Diffusion: pickle protocol {value}")
            if opcode.name == "GLOBAL" and value not in GLOBALS:
                raise Refused(f"is not a checkpoint of Tiny Diffusion: it imports {value[:80]}")
            if count > MAX_VALUES:
                raise Refused("is not a checkpoint of Tiny Diffusion: it has too many values")


class PlainCopy:
    """Copies what was read: plain containers, numbers, text and tensors. Refuses anything else.

    All tensors together may take `room` bytes, the size of the file: a tensor of stride 0 can claim
    any number of elements, and tensors can share a storage. `mapped` leaves them in the file.
    """

    def __init__(self, room: int, *, mapped: bool = False):
        self.room, self.mapped = room, mapped
        self.values = MAX_VALUES  # counted, because one container can occur in others many times

    def copy(self, value: object, depth: int = 0) -> object:
        self.values -= 1
        if depth > MAX_DEPTH or self.values < 0:
            raise Refused("is not a checkpoint of Tiny Diffusion: it is nested too deeply")
        if isinstance(value, Tensor):
            return self.copy_tensor(value)
        if isinstance(value, dict):
            return {self.copy_key(k): self.copy(part, depth + 1) for k, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)([self.copy(part, depth + 1) for part in value])
        if isinstance(value, int) and not -MAX_INT <= value <= MAX_INT:
            raise Refused("is not a checkpoint of Tiny Diffusion: an integer exceeds 64 bits")
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise Refused(f"is not a checkpoint of Tiny Diffusion: it holds a {type(value).__name__}")

    def copy_key(self, key: object) -> str | int:
        if not isinstance(key, (str, int)):
            raise Refused("is not a checkpoint of Tiny Diffusion: a key is not text or an integer")
        return key

    def copy_tensor(self, tensor: Tensor) -> Tensor:
        self.room -= tensor.numel() * tensor.element_size()
        if tensor.layout != torch.strided or self.room < 0:
            raise Refused("is damaged: its tensors are larger than the file")
        return tensor.detach() if self.mapped else tensor.detach().clone()
