"""Image files: find them in a folder, check them, decode one."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataset.opening import what_is
from dataset.own_files import is_run_folder
from utils import DataError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 50_000_000  # per image file; a larger one is a mistake or an attack

# {ending: Pillow's name of the format}. No format whose reader runs another program, as EPS does.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FORMATS |= {".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".apng": "PNG"}
FORMATS |= {".jpe": "JPEG", ".jfif": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000", ".qoi": "QOI"}
FORMATS |= {".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".tga": "TGA"}
FORMATS |= {".heic": "HEIF", ".heif": "HEIF"}  # where pillow-heif is installed

# Endings of files that accompany images: captions, lists, programs, arrays. None is missed.
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
# Folders that systems make among a user's files, in lower case: thumbnails, deleted files, copies.
OF_SYSTEMS = {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "__macosx"}
OF_SYSTEMS |= {"$recycle.bin", "recycler", "system volume information", "lost+found"}
SHOWN = 6  # endings in a message


class Found(NamedTuple):
    """What a folder contains."""

    files: list[Path]  # images, sorted
    others: list[Path]  # files of types that are not read, but may be images
    own: int  # pictures that a training run wrote to its folder
    notes: list[str]  # lines for the user, on what is left out


def find_images(root: Path, *, follow_links: bool = False, data: bool = True) -> Found:
    """Find the image files in a folder and its subfolders.

    Hidden files and folders are ignored, and so are folders that systems make (`OF_SYSTEMS`), links
    to subfolders, whose images would count twice, and links that lead out of the folder. A broken
    link counts as a file: decoding reports it.

    Args:
        follow_links: read what links that lead out of the folder lead to.
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
    """Would somebody miss a file whose name has no ending of an image that is read?"""
    ending = file.suffix.lower()
    if ending in COMPANIONS or not file.is_file():
        return False
    return bool(ending) or what_is(file).endswith("image")


def is_run_picture(file: Path, runs: set[Path]) -> bool:
    """Did a training run write a picture to its folder, by its name?"""
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
    """The subfolders of a folder below `root` to search, where links out of the root are followed.

    A link to a folder that contains this one is not followed: the search would never end.
    """
    depth = len(parent.parts) - len(root.parts)
    above = {Path(os.path.realpath(p)) for p in [parent, *parent.parents[:depth]]}

    def contains_us(link: Path) -> bool:
        return any(p.is_relative_to(os.path.realpath(link)) for p in above)

    links = {n for n in names if (parent / n).is_symlink()}
    return [
        n for n in names if n not in links or (parent / n in out and not contains_us(parent / n))
    ]


@cache
def readable() -> dict[str, str]:
    """The part of `FORMATS` that the installed Pillow can read."""
    from PIL import Image, features

    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    missing = {"AVIF", "WEBP"} - {name for name in ("AVIF", "WEBP") if features.check(name.lower())}
    known = Image.OPEN.keys() - missing
    return {ending: name for ending, name in FORMATS.items() if name in known}


def has_image_name(path: Path) -> bool:
    return path.suffix.lower() in readable()


def printable(path: str | Path) -> str:
    """A file name without control characters, which a terminal would execute or cannot print."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Make Pillow raise for an enormous image, and keep its other warnings, which name no file.

    Not within threads: warning filters are global.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@strict_pillow()
def read_image(
    file: Path, size: tuple[int, int] | None, channels: int, background: str = "white"
) -> Tensor:
    """Central part of an image file, uint8 (C, *size), in grey or in colour.

    Without a size, it is the whole image. Transparent pixels get the colour of the background.
    """
    if not file.is_file():
        raise DataError(f"there is no image {file}")
    try:
        image = torch.from_numpy(decode_image(file, size, background=background))  # (3, H, W)
    except Exception as error:  # Pillow's decoders raise almost any exception
        raise unreadable(file, error) from None
    if channels == 1:
        image = image.float().mean(dim=0, keepdim=True).round().to(torch.uint8)
    return image


@strict_pillow()
def require_same_size(image: Path, mask: Path) -> None:
    """Raise a ValueError if two images differ in width or height, as they are seen."""
    sizes = []
    for file in (image, mask):
        try:
            sizes.append(open_upright(file).size)
        except Exception as error:  # Pillow's decoders raise almost any exception
            raise unreadable(file, error) from None
    if sizes[0] != sizes[1]:
        (w, h), (mask_w, mask_h) = sizes
        raise ValueError(f"{mask} is {mask_w} x {mask_h} pixels, and {image} {w} x {h}")


def unreadable(file: Path, error: Exception) -> DataError:
    """The error for an image that cannot be read, to be raised."""
    return DataError(f"{file} cannot be read as an image ({why_unreadable(file, error)})")


def why_unreadable(file: Path, error: Exception) -> str:
    """Why an image cannot be read, in words: the decoder's, or what the file really is."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it claims more than {MAX_PIXELS:,} pixels"
    if not isinstance(error, UnidentifiedImageError):
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    kind = what_is(file)
    if not kind:
        return "it is not an image of a known type"
    if not kind.endswith("image"):
        return f"it is {kind}"
    name = kind.partition(" ")[2]
    if name.split()[0].upper() in readable().values():
        return f"it is a damaged {name}"
    return f"it is {kind}, a type that is not read: convert it to PNG or JPEG"


def has_colours(file: Path, background: str = "white") -> bool:
    """Is an image in colour, by its header? False if it cannot be read: decoding reports that."""
    try:
        with open_image(file) as image:
            if image.has_transparency_data and not is_grey(*rgb(background)):
                return True
            if image.mode in ("P", "PA"):
                return not is_grey(*palette_channels(image))
            return image.mode not in ("1", "L", "LA", "I", "F") and image.mode[:4] != "I;16"
    except Exception:
        return False


def palette_channels(image: "Image.Image") -> np.ndarray:
    """Red, green and blue, in any order, of all colours in an image's palette: uint8 (3, N)."""
    layout = image.palette.rawmode or image.palette.mode  # such as RGB, BGRX, or RGB;L for planes
    values = np.frombuffer(bytes(image.palette.palette), np.uint8)
    if layout.endswith(";L"):
        return values.reshape(3, -1)
    return values.reshape(-1, len(layout)).T[:3]


def is_grey(red: object, green: object, blue: object) -> bool:
    """Is a colour a shade of grey, or are all colours in three arrays?"""
    return bool(np.all(red == green) and np.all(green == blue))


def decode_image(
    file: Path, size: tuple[int, int] | None, fit: str = "crop", background: str = "white"
) -> np.ndarray:
    """Decode an image file as RGB, uint8 (3, *size).

    Args:
        size: height and width in pixels; None for those of the image.
        fit: a key of `FITS`.
        background: the colour behind transparent pixels, as Pillow's ImageColor reads it.
    """
    from PIL import Image

    image = open_upright(file)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image, np.float32) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    image = image.convert("RGB")
    if size is not None:
        box = FITS[fit](*image.size, size)
        image = image.resize(size[::-1], Image.Resampling.LANCZOS, box=box)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def open_upright(file: Path) -> "Image.Image":
    """Decode an image file, turned as its EXIF orientation says: as any viewer shows it.

    Every size of an image in this project is that of the upright image.
    """
    from PIL import Image

    with open_image(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} is over {MAX_PIXELS:,} pixels")
        image.filename = ""  # or Pillow maps an uncompressed TIFF into memory, and turns it wrongly
        image.load()  # some formats store the orientation behind the pixels
        turn = None
        with suppress(Exception):  # of damaged metadata; the pixels are what counts
            value = image.getexif().get(0x0112)
            turn = TURNS.get(value[0] if isinstance(value, bytes) else int(value))
        return image if turn is None else image.transpose(Image.Transpose[turn])


# {EXIF orientation: name of what turns the stored image upright}
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}


def open_image(file: Path) -> "Image.Image":
    """Open an image file; only its header is read."""
    from PIL import Image

    if not file.is_file():  # reading from a pipe would never end
        raise FileNotFoundError("it is missing, or not a regular file")
    formats = set(readable().values())
    if readable().get(file.suffix.lower()) != "TGA":
        formats -= {"TGA"}  # it has no signature: any bytes may look like one
    return Image.open(file, formats=sorted(formats))


def rgb(name: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour's name or #rrggbb. Raises ValueError for any other text."""
    from PIL import ImageColor

    try:
        (red, green, blue) = ImageColor.getrgb(name)
    except ValueError:
        raise ValueError(
            f"--background {name}: not an opaque colour; use a name, such as black, or #rrggbb"
        ) from None
    return red, green, blue


Box = tuple[int, int, int, int]  # left, top, right, bottom


def central_box(width: int, height: int, size: tuple[int, int]) -> Box:
    """The largest centred box with the aspect ratio of a size (height, width)."""
    rows, columns = size
    box_width = min(width, max(1, height * columns // rows))
    box_height = min(height, max(1, width * rows // columns))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return (left, top, left + box_width, top + box_height)


# (width, height, size) -> the box of an image that is resized to the size (height, width)
FITS: dict[str, Callable[[int, int, tuple[int, int]], Box]] = {
    "crop": central_box,
    "stretch": lambda width, height, size: (0, 0, width, height),
}
