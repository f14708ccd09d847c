"""What may stand in a checkpoint that somebody else has written: nothing that runs, or that makes
a small file fill the memory.

"""

import pickletools
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from utils import MAX_INT

MAX_PICKLE = 2**22  # bytes of the containers; for each of a network's weights they have about 400


MAX_DEPTH = 10  # of containers in containers: an optimizer's are 7 deep


MAX_VALUES = 10**6


# All that torch.save names for our checkpoints. torch.load(weights_only=True) would let more pass,
# such as a bytearray of any length.
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}


GLOBALS |= {f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long")}


class Refused(ValueError):
    """What is wrong with a file: words that follow its name."""


def require_plain_archive(path: Path) -> None:
    """Look at a file of torch.save before PyTorch does.

    Raises Refused where its entries are compressed or claim more than there is, or name anything
    that our checkpoints have no use for; and whatever zipfile raises.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise Refused("is not a checkpoint of Tiny Diffusion: it is compressed")
        if sum(max(e.file_size, e.compress_size) for e in entries) > path.stat().st_size:
            raise Refused("is damaged: its parts are larger than the file")
        pickled = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickled) != 1 or pickled[0].file_size > MAX_PICKLE:
            raise Refused("is not a checkpoint of Tiny Diffusion: it has other parts")
        for count, (opcode, value, _) in enumerate(pickletools.genops(archive.read(pickled[0]))):
            if opcode.name == "PROTO" and value != 2:
                raise Refused("is not a checkpoint of Tiny Diffusion: it is pickled otherwise")
            if opcode.name == "GLOBAL" and value not in GLOBALS:
                raise Refused(f"is not a checkpoint of Tiny Diffusion: it asks for {value[:80]}")
            if count > MAX_VALUES:
                raise Refused("is not a checkpoint of Tiny Diffusion: it holds too much")


class PlainCopy:
    """A copy of what was read: plain containers, numbers, text and tensors. Refuses anything else.

    Args:
        room: bytes that the tensors may take together: those of the file. One of stride 0 can claim
            any number of elements, and many can share one storage.
        mapped: leave the tensors where they are, in the file.
    """

    def __init__(self, room: int, *, mapped: bool = False):
        self.room, self.mapped = room, mapped
        self.values = MAX_VALUES  # a container may stand in others many times, and they in others

    def of(self, value: object, depth: int = 0) -> object:
        self.values -= 1
        if depth > MAX_DEPTH or self.values < 0:
            raise Refused("is not a checkpoint of Tiny Diffusion: it is nested too deeply")
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, dict):
            return {self.key(key): self.of(part, depth + 1) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)([self.of(part, depth + 1) for part in value])
        if isinstance(value, int) and not -MAX_INT <= value <= MAX_INT:
            raise Refused("is not a checkpoint of Tiny Diffusion: it has numbers beyond 64 bits")
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise Refused(f"is not a checkpoint of Tiny Diffusion: it holds {type(value).__name__}")

    def key(self, key: object) -> str | int:
        if not isinstance(key, (str, int)):
            raise Refused("is not a checkpoint of Tiny Diffusion: its keys are not names")
        return key

    def tensor(self, tensor: Tensor) -> Tensor:
        self.room -= tensor.numel() * tensor.element_size()
        if tensor.layout != torch.strided or self.room < 0:
            raise Refused("is damaged: its tensors are larger than the file")
        return tensor.detach() if self.mapped else tensor.detach().clone()
