"""Programs of torch.export that export.py wrote (.pt2), read as weights and a configuration.

`torch.export.load` may run code that the author of a file put into it: it unpickles what the file
calls pickled, and evaluates expressions of sizes. Nothing here calls it. The weights lie in the
file as plain bytes, which are described in JSON; the program itself is ignored.
"""

import json
import zipfile
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.inspection import MAX_VALUES, Refused
from checkpoints.weights import WEIGHTS_FORMAT, as_checkpoint

DESCRIPTION = "tiny_diffusion.json"  # the configuration, an extra file of the archive
NETWORK = "network"  # the network's name in the program; the names of its weights begin with it
WEIGHTS = "data/weights/"
# Number types of torch._export.serde.schema.ScalarType.
TYPES = {5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64, 13: torch.bfloat16}
MAX_JSON = 2**22  # bytes
MAX_DIMENSIONS, MAX_SIZE = 8, 2**31  # of a weight


def load_program(path: Path, *, verified: bool = True) -> dict:
    """Load a program of export.py as a checkpoint. Raises Refused for other or changed files."""
    with zipfile.ZipFile(path) as archive:
        entries = {e.filename.partition("/")[2]: e for e in archive.infolist()}
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
            raise Refused("is not a program of export.py: it is compressed")
        if sum(max(e.file_size, e.compress_size) for e in entries.values()) > path.stat().st_size:
            raise Refused("is damaged: its parts are larger than the file")

        def content(name: str, limit: int | None = MAX_JSON) -> bytes:
            if name not in entries or (limit is not None and entries[name].file_size > limit):
                raise Refused(f"is damaged or not a program of export.py: {name[:80]}")
            return archive.read(entries[name])

        if f"extra/{DESCRIPTION}" not in entries:
            raise Refused(
                "is a program of torch.export, but export.py did not write it: it lacks the "
                "configuration that sampling needs"
            )
        metadata = json.loads(content(f"extra/{DESCRIPTION}"))
        if metadata.get("format") != WEIGHTS_FORMAT:
            raise Refused(f"is a program of another version; this version reads {WEIGHTS_FORMAT}")
        metadata.pop("sampling", None)  # for other programs
        described = json.loads(content(f"{WEIGHTS}model_weights_config.json"))["config"]
        if len(described) > MAX_VALUES:
            raise Refused("is not a program of export.py: it has too many weights")
        names = [str(each["path_name"]) for each in described.values()]
        if len(set(names)) < len(names):  # each would be read into memory of its own
            raise Refused("is not a program of export.py: two weights share a part of the file")
        tensors = {
            name.removeprefix(f"{NETWORK}."): plain_tensor(
                name, each, content(WEIGHTS + str(each["path_name"]), None)
            )
            for name, each in described.items()
        }
    return as_checkpoint(path, metadata, tensors, verified=verified)


def plain_tensor(name: str, described: dict, content: bytes) -> Tensor:
    """The weight that lies in a file as plain bytes. Raises Refused for any other kind."""
    if described.get("use_pickle") is not False:
        raise Refused(f"is not a program of export.py: the weight {name[:80]} is pickled")
    meta = described["tensor_meta"]
    if meta["dtype"] not in TYPES:
        raise Refused(f"is not a program of export.py: the type of the weight {name[:80]}")
    dtype, shape = TYPES[meta["dtype"]], [int(size["as_int"]) for size in meta["sizes"]]
    strides, offset = [int(each["as_int"]) for each in meta["strides"]], meta["storage_offset"]
    layout = f"is not a program of export.py: the layout of the weight {name[:80]}"
    if not len(shape) == len(strides) <= MAX_DIMENSIONS or any(
        not 1 <= number <= MAX_SIZE for number in shape
    ):
        raise Refused(layout)  # before products of the sizes, which could be huge
    contiguous = list(accumulate(reversed([*shape[1:], 1]), mul))[::-1] if shape else []
    ordered = all(a == b or n == 1 for a, b, n in zip(strides, contiguous, shape, strict=True))
    if not ordered or offset["as_int"] != 0:
        raise Refused(layout)
    count = prod(shape)
    if count * dtype.itemsize != len(content):
        raise Refused(f"is damaged: the weight {name[:80]} has {len(content):,} bytes")
    return torch.frombuffer(bytearray(content), dtype=dtype, count=count).view(shape)
