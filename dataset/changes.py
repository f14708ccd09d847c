"""How a folder of images differs from what a run began with."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from utils import save_whole

if TYPE_CHECKING:
    pass
from dataset.image_files import printable

SHOWN = 3  # names of changed files in a message


def digest_of(files: Mapping[str, str]) -> str | None:
    """One digest of the images of a folder, {name: digest}; None of none."""
    if not files:
        return None
    text = json.dumps(sorted(files.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def save_files(path: Path, files: Mapping[str, str]) -> None:
    text = json.dumps(dict(files), indent=0) + "\n"
    save_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_files(path: Path) -> dict[str, str]:
    """What `save_files` wrote; nothing if it is missing, or something else."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return files if isinstance(files, dict) else {}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How a folder's images differ: "3 images were added (a.png, b.png, c.png), 1 removed (d.png)"

    A renamed image was removed and added.
    """
    kinds = {
        "added": now.keys() - before.keys(),
        "removed": before.keys() - now.keys(),
        "changed": {name for name in before.keys() & now.keys() if before[name] != now[name]},
    }
    parts = []
    for verb, names in kinds.items():
        if names:
            subject = "" if parts else " image was" if len(names) == 1 else " images were"
            parts.append(f"{len(names):,}{subject} {verb} ({some(sorted(names))})")
    return ", ".join(parts)


def some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more
