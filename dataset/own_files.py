"""Files that this project wrote: pictures that carry its mark, and the folders of its runs.

These files are never data, whatever their folder is called. Only these files, and files that a flag
names, are replaced or deleted.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from utils import MARK

SEARCHED = 4096  # bytes at each end of a picture that are searched for the mark
PAGE_POLICY = b"default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # of every report
SECTIONS = ("data", "model", "diffusion", "train")  # of the configuration of a run


def is_own_picture(path: Path) -> bool:
    """Does a picture carry the mark that `visuals.pictures` writes? False if it is unreadable."""
    try:
        if not path.is_file():  # reading from a pipe would never end
            return False
        with open(path, "rb") as file:
            head = file.read(SEARCHED)
            file.seek(max(len(head), os.fstat(file.fileno()).st_size - SEARCHED))
            return MARK.encode() in head or MARK.encode() in file.read(SEARCHED)
    except OSError:
        return False


def is_run_folder(path: Path) -> bool:
    """Does a folder hold a training run of this project? Its config.json decides."""
    file = path / "config.json"
    if not file.is_file():  # reading from a pipe would never end
        return False
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(config, dict):
        return False
    return all(isinstance(config.get(section), dict) for section in SECTIONS)


def is_own_page(path: Path) -> bool:
    """Is a file a report page of this project?"""
    head = head_of(path)
    return MARK.encode() in head or PAGE_POLICY in head


def head_of(path: Path) -> bytes:
    """The first bytes of a file."""
    with open(path, "rb") as file:
        return file.read(SEARCHED)


def is_own_figure(path: Path) -> bool:
    """Is a file a figure of this project? Figures of older versions have only Matplotlib's mark."""
    return is_own_picture(path) or (path.is_file() and b"Matplotlib" in head_of(path))


def require_own(path: Path, is_own: Callable[[Path], bool], instead: str) -> None:
    """Raise ValueError if a file exists that this project did not write.

    Call it before writing to a path that no flag names. `instead` is what the user may choose, such
    as "another --output".
    """
    if path.exists() and not (path.is_file() and is_own(path)):
        raise ValueError(
            f"cannot write to {path}: it exists, and this command did not write it. Move it, or "
            f"choose {instead}"
        )
