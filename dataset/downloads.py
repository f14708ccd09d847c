"""Downloads and checksums of published data sets."""

import hashlib
import shutil
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path

from dataset.types import Request
from utils import DataError

DOWNLOAD_TIMEOUT = 10  # seconds of silence after which a server is given up


class MissingData(DataError):
    """Data that is not there and was not downloaded."""


def check_md5(path: Path, content: bytes, md5: str) -> None:
    if hashlib.md5(content).hexdigest() != md5:
        raise damaged(
            path, "empty" if not content else "its checksum (md5) is not the published one"
        )


def damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}. Delete it and run this again, or copy it anew.")


def fetch(
    name: str, kind: type, target: Path, request: Request, looked: str, ways_out: list[str]
) -> None:
    """Download a data set by torchvision's class into `target`, or raise MissingData with the ways
    out.

    It is downloaded beside its place and moved there when whole: an interrupted download leaves no
    file that looks like data.
    """
    why = "--no-download was given"
    if request.download:
        try:
            request.data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                dir=request.data_dir, prefix=".download-"
            ) as temporary:
                with socket_timeout(DOWNLOAD_TIMEOUT):
                    kind(temporary, train=True, download=True)
                target.mkdir(parents=True, exist_ok=True)
                for file in (Path(temporary) / target.relative_to(request.data_dir)).iterdir():
                    if file.suffix != ".gz":
                        shutil.move(file, target / file.name)
            return
        except (
            OSError,
            RuntimeError,
        ) as error:  # torchvision raises RuntimeError after its last mirror
            why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    ways = [
        *(
            ["connect to the network and run this again"]
            if request.download
            else ["drop --no-download"]
        ),
        *ways_out,
        "use --dataset digits, which needs no network",
    ]
    raise MissingData(
        f"{name} is not here and was not downloaded ({why}).\n{looked}\nWays out:\n"
        + "\n".join(f"  - {way}" for way in ways)
    )


@contextmanager
def socket_timeout(seconds: float):
    """torchvision's downloads have no time-out: a silent server would hold them for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
