"""Files that this project wrote: pictures that carry its mark, and the folders of its runs.

They are never data, whatever their folder is called, and only they are replaced or deleted.
"""

import json
import os
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
    """Does a folder hold a training run of this project, by its config.json?"""
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
    with open(path, "rb") as file:
        head = file.read(SEARCHED)
    return MARK.encode() in head or PAGE_POLICY in head
