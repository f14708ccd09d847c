"""Downloads and checksums of published data sets."""

import hashlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataset.opening import what_is
from dataset.types import Request
from utils import DataError

DOWNLOAD_TIMEOUT = 10  # seconds without an answer after which a download fails
PUBLISHED = ("a gzip", "an IDX", "a Python pickle")  # what the files of these data sets are


class MissingData(DataError):
    """A data set that is not on this machine and was not downloaded."""


def fetch(
    name: str, kind: type, target: Path, request: Request, searched: str, remedies: list[str]
) -> None:
    """Download a data set by torchvision's class `kind` to the folder `target`, all or nothing.

    Raises MissingData if the download failed or `request.download` is false. The message contains
    `searched`, the places that were searched, and `remedies`.
    """
    reason = "--no-download is set"
    if request.download:
        try:
            request.data_dir.mkdir(parents=True, exist_ok=True)
            with (
                tempfile.TemporaryDirectory(dir=request.data_dir, prefix=".download-") as temporary,
                socket_timeout(DOWNLOAD_TIMEOUT),
            ):
                kind(temporary, train=True, download=True)
                target.mkdir(parents=True, exist_ok=True)
                for file in (Path(temporary) / target.relative_to(request.data_dir)).iterdir():
                    if file.suffix != ".gz":
                        shutil.move(file, target / file.name)
            return
        except (OSError, RuntimeError) as error:  # RuntimeError: torchvision's last mirror failed
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    first = "Connect to the network and run again" if request.download else "Drop --no-download"
    ways = "; ".join([first, *remedies, "or use --dataset digits (no download needed)"])
    failed = "could not be downloaded" if request.download else "was not downloaded"
    raise MissingData(
        f"{name} not found in {request.data_dir} and {failed} ({reason}).\n{searched}\n{ways}."
    )


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Set a time-out for downloads: torchvision sets none and would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def check_md5(path: Path, content: bytes, md5: str) -> None:
    """Raise a DataError if the content of a file does not have the published checksum."""
    if hashlib.md5(content).hexdigest() != md5:
        raise damaged_file(path, "its MD5 is not the published one")


def damaged_file(path: Path, reason: str) -> DataError:
    """The error to raise for a damaged file or a file of another type."""
    kind = what_is(path)
    wrong = kind and not kind.startswith(PUBLISHED)
    found = kind if wrong and kind != "empty" else f"damaged: {kind if wrong else reason}"
    return DataError(f"{path} is {found}. Delete it and run again, or copy it again.")
