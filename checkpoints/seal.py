"""The seal: a checkpoint file ends with "sha256:" and the SHA-256 of all bytes before, as text.

PyTorch loads a file with a flipped bit without an error; the seal reveals it. Common tools can
check it too: `head -c -71 model_final.pt | sha256sum` must print what
`tail -c 64 model_final.pt` prints.
"""

import hashlib
import re
from pathlib import Path
from typing import BinaryIO

from checkpoints.inspection import Refused

MARK = b"sha256:"
SEAL_LENGTH = len(MARK) + 64
SEAL = MARK + rb"[0-9a-f]{64}"


class SealingFile:
    """A binary file to write to; `seal` appends the SHA-256 of all that was written."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def seal(self) -> None:
        self.file.write(MARK + self.sha256.hexdigest().encode())


def require_seal(path: Path) -> None:
    """Read a whole file and raise Refused unless its content matches its seal."""
    with open(path, "rb") as file:
        found = stream_sha256(file, path.stat().st_size - SEAL_LENGTH)
        seal = file.read(SEAL_LENGTH)
    if not re.fullmatch(SEAL, seal):
        raise Refused(
            "is damaged or is not a checkpoint (it does not end with its SHA-256; checkpoints of "
            "the oldest versions have none)"
        )
    if seal != MARK + found.encode():
        raise Refused("is damaged: its content does not match its SHA-256")


def is_sealed(path: Path) -> bool:
    """Does a file end with a seal, matching or not? Only a checkpoint of this project does."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - SEAL_LENGTH))
        return re.fullmatch(SEAL, file.read(SEAL_LENGTH)) is not None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return stream_sha256(file, path.stat().st_size)


def stream_sha256(file: BinaryIO, size: int) -> str:
    """SHA-256 of the next `size` bytes of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, 2**20))):
        sha256.update(block)
        size -= len(block)
    return sha256.hexdigest()
