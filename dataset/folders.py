"""A folder of image files as a data set. Its subfolders are the classes."""

import hashlib
import math
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from dataset.changes import first_names
from dataset.decoding import Decoded, ImageFolder, decode_in_memory
from dataset.finding import find_images, own_pictures_note
from dataset.folder_captions import Captioned, read_captions
from dataset.image_files import strict_pillow
from dataset.pixel_cache import decode_through_cache
from dataset.types import Data, Request

MAX_DIGITS = 15  # of a class name that counts as a number
FOLDER_SIZE = 64  # default height and width of the images in pixels
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
SPLITS |= {"holdout"}


def load_folder(request: Request) -> Data:
    """A folder of images, resized to one size. Subfolders are classes if they hold all images."""
    root, size = request.data_dir, request.image_size or (FOLDER_SIZE, FOLDER_SIZE)
    found = find_images(root, follow_links=request.follow_links)
    captioned = Captioned(dict.fromkeys(found.files, ""), [], [])
    if request.captions:
        captioned = read_captions(
            root,
            found.files,
            from_path=request.caption_from_path,
            skip_missing=request.skip_bad_images,
            follow_links=request.follow_links,
        )
    files = list(captioned.captions)
    channels = 1 if request.grey else 3 if request.colour else None
    options = request.fit, request.skip_bad_images, channels, request.background
    folder = ImageFolder(root, files, size, *options)
    decoded = decode_folder(folder, request.cache_dir, request.cache_limit, request.progress)
    kept = [file.relative_to(root) for file in decoded.files]
    bad, count = decoded.unreadable, len(decoded.files) + len(decoded.unreadable)
    own = found.own + len(files) - count
    notes = [decoded.note, *found.notes, *captioned.notes]
    if own:
        notes.append(own_pictures_note(own))
    if bad:
        notes.append(f"{len(bad)} of {count} images cannot be read and are left out")

    labels, classes = None, []
    outside = [file.name for file in kept if len(file.parts) == 1]
    if not outside:
        classes = sorted({file.parts[0] for file in kept}, key=class_order)
        number = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([number[file.parts[0]] for file in kept])
        notes += class_notes(root, classes, [*found.others, *captioned.without, *bad])
    elif len(outside) < len(kept) / 2:
        lies, it = ("lies", "it") if len(outside) == 1 else ("lie", "them")
        notes.append(
            f"{first_names(outside)} {lies} outside the class folders of {root}, so that the "
            f"images have no classes; move {it} into a class folder, or elsewhere"
        )
    digests = {file.as_posix(): d for file, d in zip(kept, decoded.digests, strict=True)}
    captions = [captioned.captions[file] for file in decoded.files] if request.captions else ()
    for name, caption in zip(digests, captions, strict=False):  # a changed caption is a change, too
        digests[name] += f" {hashlib.blake2b(caption.encode(), digest_size=8).hexdigest()}"
    note = "\n".join(filter(None, notes))
    return Data(decoded.pixels, labels, classes, note, digests, captions)


def class_order(name: str) -> tuple:
    """Sort key of the classes: numbers by their value, before other names."""
    if name.isdecimal() and len(name) <= MAX_DIGITS:
        return 0, int(name), name
    return 1, 0, name


def class_notes(root: Path, classes: list[str], left_out: list[Path]) -> list[str]:
    """Lines for the user on subfolders without images, and on classes that look like splits."""
    notes = []
    paths = [file.relative_to(root).parts for file in left_out]
    if empty := sorted({parts[0] for parts in paths if len(parts) > 1} - set(classes)):
        without = "is no class: it has" if len(empty) == 1 else "are no classes: they have"
        notes.append(f"{first_names(empty)} {without} no images that are read")
    if {name.lower() for name in classes} <= SPLITS:
        one = min(classes, key=lambda name: not name.lower().startswith("train"))
        notes.append(
            f"the classes are called {', '.join(classes)}: if these are splits, give one of them, "
            f"such as --data-dir {shlex.quote(str(root / one))}"
        )
    return notes


@strict_pillow()
def decode_folder(
    folder: ImageFolder,
    cache_dir: str | Path | None = None,
    cache_limit: float = 2,
    progress: Callable[..., Iterable] = lambda items, **_: items,
) -> Decoded:
    """Decode a folder of images into memory or, if it is too large, into a mapped file.

    Args:
        folder: the folder and its settings.
        cache_dir: folder of the mapped file; None for a hidden folder within the folder of images.
        cache_limit: the most gigabytes to decode into memory, with all images counted in colour.
        progress: wraps the iteration over files, as tqdm does.
    """
    if len(folder.files) * 3 * math.prod(folder.size) <= cache_limit * 1e9:
        return decode_in_memory(folder.without_own_pictures(), progress)
    return decode_through_cache(folder, cache_dir, progress)
