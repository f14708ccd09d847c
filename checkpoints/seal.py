"""A file that ends with the SHA-256 of all that comes before, in readable text.

Common tools check it too: `head -c -71 model_final.pt | sha256sum` and `tail -c 64 model_final.pt`.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from checkpoints.inspection import Refused

MARK = b"sha256:"


LENGTH = len(MARK) + 64


CHUNK = 2**20


class SealingFile:
    """A file to write to, that hashes what it is given; `seal` ends it."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def seal(self) -> None:
        self.file.write(MARK + self.digest.hexdigest().encode())


def require_seal(path: Path) -> None:
    """Read a file whole, and raise Refused if it is not as it was when it was sealed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size - LENGTH
        while left > 0 and (chunk := file.read(min(left, CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
        seal = file.read(LENGTH)
    if not re.fullmatch(MARK + rb"[0-9a-f]{64}", seal):
        raise Refused(
            "is damaged or is not a checkpoint (it does not end with its SHA-256; those of earlier "
            "versions have none)"
        )
    if seal != MARK + digest.hexdigest().encode():
        raise Refused("is damaged: its SHA-256 is not the one it was written with")
