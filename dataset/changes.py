"""How an image folder has changed since a training run last read it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from dataset.image_files import printable
from utils import save_whole

SHOWN = 3  # names of files in a message


def digest_of(files: Mapping[str, str]) -> str | None:
    """One digest of a folder's images, {file name: digest of pixels}; None if there are none."""
    if not files:
        return None
    text = json.dumps(sorted(files.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def save_files(path: Path, files: Mapping[str, str]) -> None:
    """Save {file name: digest of pixels} as JSON."""
    text = json.dumps(dict(files), indent=0) + "\n"
    save_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_files(path: Path) -> dict[str, str]:
    """Read a file of `save_files`; empty if it is missing or damaged."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return files if isinstance(files, dict) else {}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Difference of two folders: "3 images were added (a.png, b.png, c.png), 1 removed (d.png)"."""
    kinds = {
        "added": now.keys() - before.keys(),
        "removed": before.keys() - now.keys(),
        "changed": {name for name in before.keys() & now.keys() if before[name] != now[name]},
    }
    parts = []
    for verb, names in kinds.items():
        if names:
            subject = "" if parts else " image was" if len(names) == 1 else " images were"
            parts.append(f"{len(names):,}{subject} {verb} ({first_names(sorted(names))})")
    return ", ".join(parts)


def first_names(names: list[str]) -> str:
    """The first few names, and the number of the rest: "a.png, b.png, c.png and 2 more"."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more
