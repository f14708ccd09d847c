"""Captions of a folder of images: from metadata files, text files next to the images, or paths.

The first of these conventions that applies to the folder is used:

- `caption_from_path`: the caption is made from the path of the file
- `metadata.jsonl` or `metadata.csv`, as Hugging Face's ImageFolder reads them: `file_name`,
  relative to the folder of the metadata file, and `text`
- a `.txt` file with the name of the image
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from dataset.changes import first_names
from dataset.image_files import printable
from dataset.own_files import is_own_picture
from utils import DataError

METADATA = ("metadata.jsonl", "metadata.csv")
MAX_CAPTION = 1000  # characters
FROM_PATH = "--caption-from-path makes captions from the paths of the files"


class Captioned(NamedTuple):
    """The images of a folder that have captions, and those that are left out."""

    captions: dict[Path, str]  # in the order of the files; "" for a picture of this project
    without: list[Path]  # images without a caption
    notes: list[str]  # lines for the user


class Entry(NamedTuple):
    """One caption of a metadata file."""

    file: Path
    caption: str
    place: str  # the metadata file and the line


def read_captions(
    root: Path,
    files: list[Path],
    *,
    from_path: bool = False,
    skip_missing: bool = False,
    follow_links: bool = False,
) -> Captioned:
    """Read the captions of the images of a folder.

    Args:
        root: the folder.
        files: its images.
        from_path: make the captions from the paths of the files.
        skip_missing: leave out images without a caption.
        follow_links: read caption files that are links out of the folder.

    Raises DataError for a folder without captions, for images without one, and for captions that
    cannot be read.
    """
    found, source, remedy, notes = find_captions(root, files, from_path, follow_links)
    missing = [file for file in files if not found.get(file)]
    without = [file for file in missing if not is_own_picture(file)]  # decoding leaves those out
    captions = {file: found.get(file, "") for file in files}
    for file in without:
        del captions[file]
    captioned, count = any(captions.values()), len(files) - len(missing) + len(without)
    names = first_names([file.relative_to(root).as_posix() for file in without])
    have = "has" if len(without) == 1 else "have"
    if without and (not skip_missing or not captioned):
        skip = ", or leave them out with --skip-bad-images" if captioned else ""
        raise DataError(
            f"{len(without):,} of {count:,} images in {root} {have} no caption in {source}:\n"
            f"  {names}\n{remedy}{skip}."
        )
    long = [file for file, caption in captions.items() if len(caption) > MAX_CAPTION]
    if long and skip_missing:
        named_long = first_names([file.relative_to(root).as_posix() for file in long])
        notes.append(f"{len(long):,} images have too long a caption and are left out: {named_long}")
        for file in long:
            del captions[file]
    else:
        require_short(root, long)
    notes.append(f"captions are read from {source}")
    if without:
        are = "is" if len(without) == 1 else "are"
        notes.append(
            f"{len(without):,} of {count:,} images {have} no caption and {are} left out: {names}"
        )
    return Captioned(captions, without + (long if skip_missing else []), notes)


class Source(NamedTuple):
    """The captions by one of the conventions."""

    captions: dict[Path, str]  # by image; "" counts as none
    name: str  # where they are from, in words
    remedy: str  # what to do if some are missing
    notes: list[str]  # lines for the user


def find_captions(root: Path, files: list[Path], from_path: bool, follow_links: bool) -> Source:
    """Read captions by the first convention that applies; DataError if none does."""
    metadata = metadata_files(root, files)
    if from_path:
        unread = f"{named(metadata)} not read, because of --caption-from-path"
        return Source(
            {file: caption_from_path(file.relative_to(root)) for file in files},
            "the paths of the files",
            "Give the files or their folders names that describe them",
            [unread] if metadata else [],
        )
    if metadata:
        require_one_kind(root, metadata)
        captions, notes = captions_of_metadata(root, files, metadata, follow_links)
        return Source(captions, named(metadata), "Add lines with file_name and text", notes)
    texts = {file: file.with_suffix(".txt") for file in files}
    texts = {file: text for file, text in texts.items() if os.path.lexists(text)}
    if not texts:
        raise DataError(
            f"no captions in {root}: looked for {', '.join(METADATA)} and for a .txt file next to "
            f"each image; {FROM_PATH}"
        )
    captions = {file: read_text(path, root, follow_links) for file, path in texts.items()}
    used, folders, notes = set(texts.values()), {file.parent for file in files}, []
    others = [path for folder in sorted(folders) for path in sorted(folder.glob("*.txt"))]
    if strangers := [path for path in others if path not in used]:
        names = first_names([path.relative_to(root).as_posix() for path in strangers])
        notes.append(f".txt files of no image, which are ignored: {names}")
    return Source(captions, ".txt files", "Write a .txt file with the name of each image", notes)


def named(metadata: list[Path]) -> str:
    """The name of a metadata file, or the number of several."""
    return printable(metadata[0]) if len(metadata) == 1 else f"{len(metadata)} metadata files"


def require_short(root: Path, long: list[Path]) -> None:
    """Raise DataError if there are images with too long a caption."""
    if long:
        names = first_names([file.relative_to(root).as_posix() for file in long])
        images, have = ("image", "has") if len(long) == 1 else ("images", "have")
        raise DataError(
            f"{len(long):,} {images} in {root} {have} a caption of more than {MAX_CAPTION:,} "
            f"characters: {names}. Shorten it, or leave them out with --skip-bad-images."
        )


def one_line(text: str) -> str:
    """A caption without line breaks and repeated spaces."""
    return " ".join(text.split())


def caption_from_path(path: Path) -> str:
    """A caption from a relative path: "sea birds gull" from sea_birds/gull_012.png.

    Raises DataError if the path is not UTF-8.
    """
    stem = re.sub(r"(?:[\s_-]*\(?\d+\)?)+$", "", path.stem)
    caption = one_line(" ".join([*path.parts[:-1], stem]).replace("_", " "))
    if not is_unicode(caption):
        raise DataError(f"{printable(path)}: the name is not UTF-8, so it makes no caption")
    return caption


def is_unicode(text: str) -> bool:
    """Can a text be written as UTF-8? Half of a surrogate pair cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


# --- text files -----------------------------------------------------------------------------------


def read_text(path: Path, root: Path, follow_links: bool) -> str:
    """The caption in a text file."""
    return one_line("\n".join(line for _, line in decoded_lines(path, root, follow_links)))


def decoded_lines(path: Path, root: Path, follow_links: bool) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers. Raises DataError if it cannot be read."""
    if not follow_links and path.is_symlink():
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(os.path.realpath(root)):
            raise DataError(
                f"{printable(path)} is a symbolic link that leads out of {root}; --follow-links "
                "reads it"
            )
    if not path.is_file():  # reading from a pipe would never end
        raise DataError(f"{printable(path)} is missing, or not a regular file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror})") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(
                f"{printable(path)}, line {number}: not UTF-8. Save the file as UTF-8."
            ) from None


# --- metadata files -------------------------------------------------------------------------------


def metadata_files(root: Path, files: list[Path]) -> list[Path]:
    """The metadata files in the folders of the images and above them."""
    depth = len(root.parts)
    folders = {Path(*file.parts[:end]) for file in files for end in range(depth, len(file.parts))}
    paths = (folder / name for folder in folders for name in METADATA)
    return sorted(path for path in paths if os.path.lexists(path))


def require_one_kind(root: Path, metadata: list[Path]) -> None:
    """Raise DataError if there are metadata files of both kinds."""
    for path, other in pairwise(metadata):
        if path.suffix != other.suffix:
            raise DataError(
                f"{root} has both {printable(path)} and {printable(other)}. Remove one of them."
            )


def captions_of_metadata(
    root: Path, files: list[Path], metadata: list[Path], follow_links: bool
) -> tuple[dict[Path, str], list[str]]:
    """The captions in metadata files, and notes on entries that are repeated or name no image."""
    known = {Path(os.path.normpath(file)): file for file in files}
    found, strangers, again = {}, {}, {}
    for path in metadata:
        read = {".jsonl": entries_of_jsonl, ".csv": entries_of_csv}[path.suffix]
        for entry in read(path, root, follow_links):
            before = found.setdefault(entry.file, entry)
            if before is not entry:
                again[entry.file] = None
            if before.caption != entry.caption:
                raise DataError(
                    f"{entry.place}: another caption for {printable(entry.file)} than in "
                    f"{before.place}. Keep one of them."
                )
            if entry.file not in known:
                strangers[entry.file] = None
    names = first_names([os.path.relpath(file, os.path.normpath(root)) for file in strangers])
    source, count = named(metadata), len(strangers)
    if count == len(found):
        raise DataError(
            f"no image of {root} is named in {source}{f', which names {names}' if names else ''}.\n"
            "A file_name is relative to the folder of its metadata file."
        )
    notes = []
    if strangers:
        images, are = ("image", "is") if count == 1 else ("images", "are")
        notes.append(f"{count:,} {images} named in {source} {are} missing or left out: {names}")
    if again:
        names = first_names([os.path.relpath(file, os.path.normpath(root)) for file in again])
        notes.append(f"named more than once in {source}, with the same caption: {names}")
    captions = {known[file]: entry.caption for file, entry in found.items() if file in known}
    return captions, notes


def entry_of(path: Path, number: int, file_name: object, text: object) -> Entry:
    """The entry in a line of a metadata file. Raises DataError if its values are not valid."""
    place = f"{printable(path)}, line {number}"
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise DataError(f"{place}: file_name must be the path of an image")
    if not isinstance(text, str | None):
        raise DataError(f"{place}: text must be a caption, not {json.dumps(text)[:40]}")
    if not is_unicode(text or ""):
        raise DataError(f"{place}: the text is not valid Unicode")
    file = Path(os.path.normpath(path.parent / file_name))
    return Entry(file, one_line(text or ""), place)


def entries_of_jsonl(path: Path, root: Path, follow_links: bool) -> Iterator[Entry]:
    """The entries of a metadata.jsonl: a JSON object in each line."""
    for number, line in decoded_lines(path, root, follow_links):
        if not line.strip():
            continue
        place = f"{printable(path)}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not valid JSON ({error})") from None
        if not isinstance(values, dict) or not {"file_name", "text"} <= values.keys():
            raise DataError(f"{place}: not a JSON object with file_name and text")
        yield entry_of(path, number, values["file_name"], values["text"])


def entries_of_csv(path: Path, root: Path, follow_links: bool) -> Iterator[Entry]:
    """The entries of a metadata.csv; its first line names the columns."""
    content = "\n".join(line for _, line in decoded_lines(path, root, follow_links))
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        columns = next(rows, [])
        if not {"file_name", "text"} <= set(columns):
            raise DataError(f"{printable(path)}, line 1: no columns file_name and text")
        for row in rows:
            if not row:
                continue
            if len(row) != len(columns):
                raise DataError(
                    f"{printable(path)}, line {rows.line_num}: {len(row)} values for "
                    f"{len(columns)} columns"
                )
            values = dict(zip(columns, row, strict=True))
            yield entry_of(path, rows.line_num, values["file_name"], values["text"])
    except csv.Error as error:
        place = f"{printable(path)}, line {rows.line_num}"
        raise DataError(f"{place}: not valid CSV ({error})") from None
