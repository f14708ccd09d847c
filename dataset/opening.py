"""Recognise the type of a file by its first bytes, not its name. Imports nothing slow."""

import re
import zipfile
from pathlib import Path

HEAD = 4096  # bytes that are looked at

LFS_POINTER = "a git-LFS pointer, not the file itself; 'git lfs pull' fetches that"
ANNEX_POINTER = "a git-annex pointer, not the file itself; 'git annex get' fetches that"
WEB_PAGE = "a web page (HTML), as a failed download or a login leaves it"
NPY, NPZ = "a NumPy array (.npy)", "a file of NumPy arrays (.npz)"
PICKLED_ARRAY = "a NumPy array of pickled Python objects, which are never loaded"

# (offset, bytes, what the file is)
SIGNATURES = (
    (0, b"version https://git-lfs.github.com/", LFS_POINTER),
    (0, b"/annex/objects/", ANNEX_POINTER),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (8, b"AVI ", "an AVI video"),
    (8, b"WAVE", "a WAV sound"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"II+\0", "a BigTIFF image"),
    (0, b"MM\0+", "a BigTIFF image"),
    (0, b"8BPS", "a Photoshop image (PSD)"),
    (0, b"gimp xcf", "a GIMP image (XCF)"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"qoif", "a QOI image"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"DDS ", "a DDS image"),
    (0, b"\0\0\x01\0", "an icon (ICO)"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"SQLite format 3", "an SQLite database"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (0, b"\x7fELF", "a program"),
    (0, b"\0\0\x08\x01", "an IDX file of labels"),
    (0, b"\0\0\x08\x03", "an IDX file of images"),
    (8, b'{"', "a safetensors file"),
    (0, b"PK\x05\x06", "an empty zip archive"),
)
BRANDS = {b"avif": "an AVIF image", b"avis": "an AVIF image", b"crx ": "a Canon raw image (CR3)"}
BRANDS |= {b"hei": "a HEIC image", b"hev": "a HEIC image", b"mif": "a HEIF image"}
BRANDS |= {b"qt": "a QuickTime video"}


def what_is(path: Path) -> str:
    """The type of a file, to follow "it is": "an AVIF image". "" if it is not recognized."""
    try:
        if path.is_dir():
            return "a folder"
        if not path.exists():
            return "missing"
        if not path.is_file():
            return "not a regular file"  # reading from a pipe would never end
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        return f"not readable ({error.strerror or error})"
    if head.startswith(b"PK\x03\x04"):
        return zip_kind(head) if is_whole_zip(path) else f"a damaged copy of {zip_kind(head)}"
    return kind_of_bytes(head)


def is_whole_zip(path: Path) -> bool:
    """Does a zip archive have its directory, which is at the end?"""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def kind_of_bytes(head: bytes) -> str:
    """The type of a file with these first bytes, in the words of `what_is`."""
    if not head:
        return "empty"
    if not head.strip(b"\0"):
        return "filled with zeros, as an interrupted download or copy leaves it"
    if head[4:8] == b"ftyp":
        return next(
            (kind for brand, kind in BRANDS.items() if brand == head[8 : 8 + len(brand)]),
            "a video (MP4)",
        )
    if head.startswith(b"PK\x03\x04"):
        return zip_kind(head)
    if head.startswith(b"\x93NUMPY"):
        objects = b"|O'" in head.partition(b"'fortran_order'")[0]
        return PICKLED_ARRAY if objects else NPY
    for offset, signature, kind in SIGNATURES:
        if head[offset:].startswith(signature):
            return kind
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "a BMP image"
    if re.match(rb"P[1-7fF]\s+[#\dW-]", head):
        return "a PPM image"
    if head[0] == 0x80 and head[1] in range(2, 6) and len(head) > 2:
        return "a Python pickle"
    return kind_of_text(head)


def zip_kind(head: bytes) -> str:
    """The type of a zip archive, by the name of its first file."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if name.endswith(b".npy"):
        return NPZ
    if name.endswith((b"/data.pkl", b"/.format_version", b"/.data/serialization_id")):
        return "a PyTorch file"
    return "a zip archive"


def kind_of_text(head: bytes) -> str:
    """The type of a text file; "" if the bytes are not text."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else a character is cut at the end of the head
            return ""
        text = head[: error.start].decode("utf-8-sig")
    if any(c < " " and c not in "\t\r\n\f" for c in text):
        return ""
    start = text.lstrip().lower()
    if "<svg" in start:
        return "an SVG drawing"
    if start.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in start:
        return WEB_PAGE
    if start.startswith("<?xml") or start.startswith("<error"):
        return "an XML document, as a failed download leaves it"
    return "a text file"
