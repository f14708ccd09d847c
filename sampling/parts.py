"""Arrays in .npz files, written at once or in parts that are joined at the end."""

import glob
import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from utils import DataError, save_whole

DIGEST = 32  # bytes of a SHA-256


WHOLE, MISSING, DAMAGED = range(3)  # states of a part


def save_npz(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    blocks: Iterable[bytes],
    others: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Write an array as arr_0, where FID tools look for it, and others by their names.

    `blocks` are its bytes in order, so that it need not fit into memory. Equal arrays give equal
    files: no time is stored.
    """

    def add(file: zipfile.ZipFile, name: str, shape, dtype, blocks: Iterable[bytes]) -> None:
        descr = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
        with file.open(entry, "w", force_zip64=True) as array:
            np.lib.format.write_array_header_1_0(array, header)
            for block in blocks:
                array.write(block)

    def write(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w") as file:
            add(file, "arr_0", shape, dtype, blocks)
            for name, values in others.items():
                add(file, name, values.shape, values.dtype, [values.tobytes()])

    save_whole(path, write)


class Parts:
    """Parts of the array of an .npz, in a folder next to it: `samples.npz.parts` for samples.npz.

    `made_by` is everything that decides the bits of the array, by name, as plain values. Part i has
    the bytes of batch i after a SHA-256 of them, of i and of `made_by`. So damaged parts, and parts
    of other samples, are recognised.
    """

    def __init__(self, output: Path, made_by: dict[str, object]):
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self.record = self.folder / "made_by.json"
        self.made_by = json.dumps(made_by, indent=2) + "\n"

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.part"

    def check(self) -> None:
        """Raise a ValueError if the folder holds parts of another array."""
        if not self.record.exists():
            return
        try:
            text = self.record.read_text(encoding="utf-8")
            before = json.loads(text)
            if not isinstance(before, dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise ValueError(f"{self.record} is damaged; delete {self.folder}") from None
        now = json.loads(self.made_by)
        changes = [
            f"{name} was {shortened(before.get(name))} and is {shortened(now.get(name))} now"
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
        if changes:
            raise ValueError(
                f"{self.folder} holds parts of other samples: {', '.join(changes)}. To start anew, "
                "delete that folder or choose another --output"
            )
        self.made_by = text  # digests cover it; another version may list the names in another order

    def begin(self) -> None:
        """Create the folder if it does not exist."""
        if not self.record.exists():
            self.delete()  # parts are left if a finished job was killed while deleting them
            save_whole(self.record, lambda partial: partial.write_text(self.made_by, "utf-8"))

    def write(self, number: int, array: np.ndarray) -> None:
        content = array.tobytes()
        whole = self.digest(number, content) + content
        save_whole(self.path(number), lambda partial: partial.write_bytes(whole))

    def read(self, number: int) -> bytes | None:
        """The bytes of a part, or None if it is missing or damaged."""
        try:
            whole = self.path(number).read_bytes()
        except FileNotFoundError:
            return None
        content = whole[DIGEST:]
        return content if whole[:DIGEST] == self.digest(number, content) else None

    def state(self, number: int) -> int:
        """WHOLE, MISSING or DAMAGED."""
        if self.read(number) is not None:
            return WHOLE
        return DAMAGED if self.path(number).exists() else MISSING

    def join(
        self,
        count: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        others: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> None:
        """Write the .npz from all `count` parts, as an array of that shape and type, and others."""
        save_npz(self.output, shape, dtype, map(self.required, range(count)), others)

    def required(self, number: int) -> bytes:
        """The bytes of a part. Raises DataError if it is missing or damaged."""
        content = self.read(number)
        if content is None:
            raise DataError(
                f"{self.path(number)} is missing or damaged; run the same command again"
            )
        return content

    def delete(self) -> None:
        """Delete the parts, and the folder if it is empty then."""
        # The record first: parts without it are never continued.
        part = f"{'[0-9]' * 6}.part"
        files = [self.record, *self.folder.glob(part), *self.folder.glob(f".{part}.*.partial")]
        files += self.output.parent.glob(f".{glob.escape(self.output.name)}.*.partial")
        for file in files:
            file.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def digest(self, number: int, content: bytes) -> bytes:
        return hashlib.sha256(f"{number} {self.made_by}".encode() + content).digest()


def shortened(value: object) -> str:
    """A value, shortened for a message."""
    text = "not given" if value is None else str(value)
    return text if len(text) <= 20 else f"{text[:16]}..."
