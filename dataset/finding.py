"""Find the image files in a folder, and say what is left out."""

import os
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from dataset.image_files import has_image_name, printable, readable
from dataset.opening import what_is
from dataset.own_files import is_run_folder
from utils import DataError

# Endings of files that accompany images (captions, lists, programs, arrays): not worth a note.
COMPANIONS = {".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml"}
COMPANIONS |= {".toml", ".ini", ".cfg", ".md", ".rst", ".html", ".htm", ".log", ".url", ".db"}
COMPANIONS |= {".py", ".ipynb", ".sh", ".bat", ".npy", ".npz", ".pt", ".pth", ".ckpt", ".pkl"}
COMPANIONS |= {".safetensors", ".parquet", ".mat", ".h5", ".lock", ".md5", ".sha256"}
COMPANIONS |= {".partial", ".aside"}
# Pictures that earlier versions of this project wrote to the folder of a run, without a mark.
RUN_PICTURES = ("training_loss.png", "learning.png", "generated_samples.*", "mini_samples.png")
RUN_PICTURES += ("forward_process*.png", "score_field.png", "metrics_nearest.png")
RUN_PICTURES += ("samples/epoch_*.png", "intermediate/step_*.png", "intermediate/x_0_*.png")
RUN_PICTURES += ("intermediate/filmstrip*.png",)
# Folders that operating systems create (thumbnails, deleted files, copies), in lower case.
OF_SYSTEMS = {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "__macosx"}
OF_SYSTEMS |= {"$recycle.bin", "recycler", "system volume information", "lost+found"}
SHOWN = 6  # endings in a message


class Found(NamedTuple):
    """The images in a folder, and what else was found."""

    files: list[Path]  # images, sorted
    others: list[Path]  # files of types that are not read, but may be images
    own: int  # pictures that a training run wrote to its folder
    notes: list[str]  # lines for the user, on what is left out


def find_images(root: Path, *, follow_links: bool = False, data: bool = True) -> Found:
    """Find the image files in a folder and its subfolders.

    Ignored are hidden files and folders, folders of operating systems (`OF_SYSTEMS`), links to
    subfolders (their images would count twice), and links out of the folder. A broken link counts
    as a file: decoding reports it.

    Args:
        follow_links: follow links out of the folder.
        data: leave out the pictures that a training run has written to its folder.

    Raises DataError if the folder does not exist or holds no images.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; --data-dir must name a folder of images")
    files, others, own, outside, closed, runs = [], [], 0, 0, [], set()
    real_root = root.resolve()
    for parent, folders, names in os.walk(root, onerror=closed.append, followlinks=follow_links):
        folders[:] = [f for f in folders if f[0] != "." and f.lower() not in OF_SYSTEMS]
        found = [Path(parent, n) for n in names if not n.startswith(".")]
        out = links_out([*found, *(Path(parent, f) for f in folders)], real_root)
        if follow_links:
            folders[:] = folders_to_enter(Path(parent), folders, out, root)
        else:
            found = [p for p in found if p not in out]
            outside += len(out)
        if data and "config.json" in names and is_run_folder(Path(parent)):
            runs.add(Path(parent))
        images = [p for p in found if has_image_name(p)]
        kept = [p for p in images if not is_run_picture(p, runs)]
        files += kept
        own += len(images) - len(kept)
        others += [p for p in found if not has_image_name(p) and may_be_image(p)]
    notes = [f"{e.filename} cannot be opened ({e.strerror}) and is left out" for e in closed]
    if outside:
        links, lead, are = ("links", "lead", "are") if outside > 1 else ("link", "leads", "is")
        notes.append(
            f"{outside} symbolic {links} {lead} out of {root} and {are} left out; "
            "--follow-links reads them"
        )
    if others:
        notes.append(left_out_by_ending(others))
    if not files:
        searched = f"no images in {root} and its subfolders; looked for {', '.join(readable())}"
        own_note = own_pictures_note(own) if own else ""
        raise DataError("; ".join(filter(None, [searched, own_note, *notes])))
    return Found(sorted(files), sorted(others), own, notes)


def own_pictures_note(count: int) -> str:
    """The line for the user on pictures that this project wrote."""
    pictures, are = ("pictures", "are") if count > 1 else ("picture", "is")
    return f"{count} {pictures} that this project wrote {are} left out"


def left_out_by_ending(files: list[Path]) -> str:
    """Files of types that are not read, by ending: "3 files are left out: 2 .svg, 1 .heic"."""
    counts = Counter(printable(file.suffix.lower()) or "without an ending" for file in files)
    shown = counts.most_common(SHOWN)
    parts = [f"{count} {ending}" for ending, count in shown]
    if more := len(files) - sum(count for _, count in shown):
        parts.append(f"{more} more")
    what = "files are left out" if len(files) > 1 else "file is left out"
    return f"{len(files):,} {what}, of types that are not read: {', '.join(parts)}"


def may_be_image(file: Path) -> bool:
    """Can a file be an image, although its ending is not one of those that are read?"""
    ending = file.suffix.lower()
    if ending in COMPANIONS or not file.is_file():
        return False
    return bool(ending) or what_is(file).endswith("image")


def is_run_picture(file: Path, runs: set[Path]) -> bool:
    """Is a picture in the folder of a run named like a picture that training writes there?"""
    for run in runs & set(file.parents[:2]):
        name = file.relative_to(run).as_posix()
        return any(fnmatch(name, pattern) for pattern in RUN_PICTURES)
    return False


def links_out(paths: Iterable[Path], root: Path) -> set[Path]:
    """The symbolic links that lead out of a folder: to an image, to a folder, or to nothing."""
    links = [p for p in paths if p.is_symlink()]
    links = [p for p in links if has_image_name(p) or p.is_dir() or not p.exists()]
    return {link for link in links if not Path(os.path.realpath(link)).is_relative_to(root)}


def folders_to_enter(parent: Path, names: list[str], out: set[Path], root: Path) -> list[str]:
    """The subfolders of `parent` to search, if links out of `root` (those in `out`) are followed.

    A link to a folder that contains `parent` is not followed: the search would never end.
    """
    depth = len(parent.parts) - len(root.parts)
    above = {Path(os.path.realpath(p)) for p in [parent, *parent.parents[:depth]]}

    def contains_us(link: Path) -> bool:
        return any(p.is_relative_to(os.path.realpath(link)) for p in above)

    links = {n for n in names if (parent / n).is_symlink()}
    return [
        n for n in names if n not in links or (parent / n in out and not contains_us(parent / n))
    ]
