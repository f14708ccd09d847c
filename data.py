"""Data sets. Each becomes one tensor, so that training never decodes an image.

To add one: write a function `Request -> Data` and add a line to `DATASETS`.
"""

import gzip
import hashlib
import math
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion import pick
from folders import FITS, Folder, decode_folder, image_files
from points import draw_points
from utils import DataError, derive_seed

DOWNLOAD_TIMEOUT = 10  # seconds of silence after which a server is given up
FOLDER_SIZE = 64  # pixels that `folder` resizes to where no size is asked for
NUM_POINTS = 40_960
DEVICE_BYTES = 2 * 2**30  # bytes of data that a GPU holds throughout


class MissingData(DataError):
    """Data that is not there and was not downloaded."""


class Data(NamedTuple):
    """A data set. Its items may be a mapped file: nobody writes to them."""

    items: Tensor  # images, uint8 (N, C, H, W), or points, float32 (N, 2)
    labels: Tensor | None  # int64 (N,)
    classes: list[str]  # names of the labels
    note: str = ""  # what its user should know: files that were left out, where the pixels are
    # Of a folder: each image's name, and the digest of its pixels.
    files: Mapping[str, str] = MappingProxyType({})


class Request(NamedTuple):
    """What is asked of a data set."""

    data_dir: Path
    image_size: int | None
    download: bool
    skip_bad_images: bool
    fit: str  # a key of FITS
    cache_dir: Path | None
    cache_limit: float
    split: str  # "train", or "test" of those sets that have one
    progress: Callable[..., Iterable]  # wraps an iterable; tqdm, say


class Source(NamedTuple):
    load: Callable[[Request], Data]
    shape: tuple[int, ...]  # of one item: (C, H, W), as far as that is known without loading
    flip: bool = False  # does an image stay plausible when mirrored?
    has_test: bool = False  # is there a test split?


def load_dataset(
    name: str,
    data_dir: str | Path = "data",
    *,
    image_size: int | None = None,
    download: bool = True,
    skip_bad_images: bool = False,
    fit: str = "crop",
    cache_dir: str | Path | None = None,
    cache_limit: float = 2,
    split: str = "train",
    progress: Callable[..., Iterable] = lambda items, **_: items,
) -> Data:
    """The images of a data set, resized where a size is given.

    Args:
        name: a key of `DATASETS`.
        data_dir: where its files are or are downloaded to; for "folder", the folder of images.
        image_size: side of the images in pixels; by default their own.
        download: fetch from the network what is not there.
        skip_bad_images: "folder" leaves out files that cannot be decoded.
        fit: how "folder" makes squares, a key of `folders.FITS`.
        cache_dir, cache_limit: as in `folders.decode_folder`.
        split: "train", or "test" for a set that has one (`Source.has_test`).
        progress: wraps the iteration over files, to show a bar.

    Raises:
        DataError: the data is missing, damaged or unusable.
        ValueError: an unknown name, or a choice that the data set does not offer.
    """
    source = pick(DATASETS, name, "dataset")
    pick(FITS, fit, "fit")
    if fit != "crop" and name != "folder":
        raise ValueError(f"--fit {fit} is for folders of images; those of {name} are squares")
    request = Request(
        Path(data_dir),
        image_size,
        download,
        skip_bad_images,
        fit,
        cache_dir,
        cache_limit,
        split,
        progress,
    )
    if image_size and kind_of(source.shape) == "points":
        raise ValueError(f"{name} has no image size: it is points")
    data = source.load(request)
    if image_size and data.items.shape[-1] != image_size:
        data = data._replace(items=resized(data.items, image_size))
    return data


def mnist(request: Request) -> Data:
    """MNIST: 60,000 handwritten digits, 28 x 28, grey (LeCun et al. 1998)."""
    return idx_images(MNIST, request)


def fashion_mnist(request: Request) -> Data:
    """Fashion-MNIST: 60,000 pieces of clothing, 28 x 28, grey (Xiao et al. 2017)."""
    return idx_images(FASHION_MNIST, request)


def cifar10(request: Request) -> Data:
    """CIFAR-10: 50,000 photographs, 32 x 32, colour (Krizhevsky 2009)."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import extract_archive

    folder = request.data_dir / CIFAR10.base_folder
    lists = [*CIFAR10.train_list, *CIFAR10.test_list]  # torchvision opens none without all
    files = dict([*lists, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]])
    archive = request.data_dir / CIFAR10.filename

    def missing() -> list[str]:
        return [name for name in files if not (folder / name).exists()]

    if missing() and archive.exists():
        check_md5(archive, archive.read_bytes(), CIFAR10.tgz_md5)
        extract_archive(str(archive), str(request.data_dir))
    if missing():
        looked = f"Looked for {', '.join(missing())} in {folder}, and for {archive}."
        copy = f"copy {archive.name} to {request.data_dir}{os.sep}"
        fetch("cifar10", CIFAR10, folder, request, looked, [copy])
    for name, md5 in files.items():  # before any of them is unpickled
        check_md5(folder / name, (folder / name).read_bytes(), md5)

    data = CIFAR10(str(request.data_dir), train=request.split == "train", download=False)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Data(images, torch.tensor(data.targets), data.classes)


def digits(request: Request) -> Data:
    """1,797 scanned digits, 8 x 8, grey, that come with scikit-learn: no network is needed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)
    return Data(
        torch.from_numpy(images)[:, None],
        torch.from_numpy(bunch.target).long(),
        [str(name) for name in bunch.target_names],
    )


def folder(request: Request) -> Data:
    """Any folder of images, each made square. Grey if every image is.

    Subfolders are classes, unless images lie beside them.
    """
    root, size = request.data_dir, request.image_size or FOLDER_SIZE
    files, links = image_files(root)
    wanted = Folder(root, files, size, request.fit, request.skip_bad_images)
    pixels, left_out, digests, note = decode_folder(
        wanted, request.cache_dir, request.cache_limit, request.progress
    )
    bad = set(left_out)
    kept = [file.relative_to(root) for i, file in enumerate(files) if i not in bad]
    parts = [file.parts for file in kept]
    flat = any(len(p) == 1 for p in parts)
    classes = [] if flat else sorted({p[0] for p in parts})
    number = {name: i for i, name in enumerate(classes)}
    labels = None if flat else torch.tensor([number[p[0]] for p in parts])
    gone = f"{len(bad)} of {len(files)} images cannot be read and are left out" if bad else ""
    said = "\n".join(filter(None, [note, links, gone]))
    names = [file.as_posix() for file in kept]
    return Data(pixels, labels, classes, said, dict(zip(names, digests, strict=True)))


def points(name: str, request: Request) -> Data:
    """40,960 points of a set of `points.py`; as many others for the test split."""
    items, labels = draw_points(name, NUM_POINTS, {"train": 0, "test": 1}[request.split])
    count = 0 if labels is None else labels.max() + 1
    return Data(
        torch.from_numpy(items),
        None if labels is None else torch.from_numpy(labels),
        [str(label) for label in range(count)],
    )


DATASETS: dict[str, Source] = {
    "mnist": Source(mnist, (1, 28, 28), has_test=True),
    # In Fashion-MNIST every shoe points to the left.
    "fashion_mnist": Source(fashion_mnist, (1, 28, 28), has_test=True),
    "cifar10": Source(cifar10, (3, 32, 32), flip=True, has_test=True),
    "digits": Source(digits, (1, 8, 8)),
    "folder": Source(folder, (3, FOLDER_SIZE, FOLDER_SIZE), flip=True),
    "moons": Source(partial(points, "moons"), (2,), has_test=True),
    "swissroll": Source(partial(points, "swissroll"), (2,), has_test=True),
    "circles": Source(partial(points, "circles"), (2,), has_test=True),
    "spiral": Source(partial(points, "spiral"), (2,), has_test=True),
    "checkerboard": Source(partial(points, "checkerboard"), (2,), has_test=True),
    "gaussians": Source(partial(points, "gaussians"), (2,), has_test=True),
}


# --- the two sets in LeCun's IDX format ----------------------------------------------------------


class IdxSet(NamedTuple):
    name: str
    torchvision: str  # its class there, and its folder
    classes: list[str]
    md5: dict[str, str]  # of the uncompressed files
    also: tuple[Path, str] | None = None  # another folder to look in, and what puts files there


MNIST = IdxSet(
    "mnist",
    "MNIST",
    [str(d) for d in range(10)],
    {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
)
FASHION_MNIST = IdxSet(
    "fashion_mnist",
    "FashionMNIST",
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
    + ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
    {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    (
        Path("/usr/share/datasets/fashion-mnist"),
        "apt install dataset-fashion-mnist (Debian, Ubuntu)",
    ),
)


def idx_images(spec: IdxSet, request: Request) -> Data:
    raw = request.data_dir / spec.torchvision / "raw"
    folders = [raw, *([spec.also[0]] if spec.also else [])]

    def find(stem: str) -> Path | None:
        # Either form does; Debian compresses anew, so that only the content has a known checksum.
        candidates = [folder / name for folder in folders for name in (stem, f"{stem}.gz")]
        return next((path for path in candidates if path.exists()), None)

    start = {"train": "train", "test": "t10k"}[request.split]
    needed = {stem: md5 for stem, md5 in spec.md5.items() if stem.startswith(start)}
    if missing := [stem for stem in needed if find(stem) is None]:
        looked = f"Looked for {' and '.join(f'{stem}[.gz]' for stem in missing)} in "
        looked += " and ".join(map(str, folders)) + "."
        copy = f"copy {' and '.join(f'{stem}.gz' for stem in missing)} to {raw}{os.sep}"
        import torchvision

        kind = getattr(torchvision.datasets, spec.torchvision)
        fetch(spec.name, kind, raw, request, looked, [copy, *([spec.also[1]] if spec.also else [])])

    contents = []
    for stem, md5 in needed.items():
        path = find(stem)
        content = read(path)
        check_md5(path, content, md5)
        contents.append(content)
    images = np.frombuffer(contents[0], np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer(contents[1], np.uint8, offset=8).astype(np.int64)
    return Data(torch.from_numpy(images.copy()), torch.from_numpy(labels), spec.classes)


def read(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, str(error)) from None


def check_md5(path: Path, content: bytes, md5: str) -> None:
    if hashlib.md5(content).hexdigest() != md5:
        raise damaged(
            path, "empty" if not content else "its checksum (md5) is not the published one"
        )


def damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}. Delete it and run this again, or copy it anew.")


# --- downloads -----------------------------------------------------------------------------------


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


# --- batches -------------------------------------------------------------------------------------


def resized(images: Tensor, size: int, chunk: int = 512) -> Tensor:
    """uint8 images (N, C, size, size), by antialiased bicubic interpolation."""
    parts = [
        F.interpolate(part.float(), (size, size), mode="bicubic", antialias=True)
        .round()
        .clamp(0, 255)
        .byte()
        for part in images.split(chunk)
    ]
    return torch.cat(parts)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The permutation (count,) of an epoch: a pure function of (count, seed, epoch)."""
    generator = torch.Generator().manual_seed(derive_seed("epoch", seed, epoch))
    return torch.randperm(count, generator=generator)


def on_device(items: Tensor, device: torch.device) -> Tensor:
    """Items, or their labels, on a device; what is larger than DEVICE_BYTES stays where it is."""
    return items.to(device) if items.nbytes <= DEVICE_BYTES else items


def classes_like(labels: Tensor, count: int) -> Tensor:
    """Classes (count,) to ask a network for: with the shares that labels (N,) have, in an order
    that is always the same."""
    order = epoch_order(len(labels), 0, 0)
    return labels[order[torch.arange(count) % len(labels)]]


def flipped(images: Tensor, mirror: Tensor) -> Tensor:
    """Images (B, C, H, W), those mirrored left to right for which `mirror` (B,) is true."""
    return torch.where(mirror[:, None, None, None], images.flip(-1), images)


def to_unit(items: Tensor) -> Tensor:
    """uint8 images in 0 ... 255 as floats in [-1, 1]; points as they are."""
    return items.float() / 127.5 - 1 if items.dtype == torch.uint8 else items


def kind_of(shape: Sequence[int]) -> str:
    """What items of a shape are: "images", (C, H, W), or "points", (2,)."""
    return "points" if len(shape) == 1 else "images"


def shape_config(shape: Sequence[int]) -> dict:
    """The shape of an item, (C, H, W) or (2,), as networks and checkpoints are told it."""
    if kind_of(shape) == "points":
        return {"dim": shape[0]}
    return {"image_size": shape[-1], "image_channels": shape[0]}


def item_shape(config: dict) -> tuple[int, ...]:
    """The shape of an item of a checkpoint's `config["data"]`: the inverse of `shape_config`."""
    if "dim" in config:
        return (config["dim"],)
    return (config["image_channels"], config["image_size"], config["image_size"])


def standard_deviation(images: Tensor) -> float:
    """That of uint8 images (N, C, H, W) in [-1, 1], over all their pixels, or of points.

    Pixels are counted in whole numbers: a resumed run must find the very same, on whatever machine.
    """
    if images.dtype != torch.uint8:
        return round(images.double().std().item(), 6)
    chunk = max(1, 2**22 // images[0].numel())  # counting takes 8 bytes a pixel
    counts = sum(torch.bincount(part.flatten(), minlength=256) for part in images.split(chunk))
    count, values = images.numel(), range(256)
    first = sum(v * n for v, n in zip(values, counts.tolist(), strict=True))
    second = sum(v * v * n for v, n in zip(values, counts.tolist(), strict=True))
    return math.sqrt(count * second - first**2) / count / 127.5


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1], clipped, as uint8 in 0 ... 255: the inverse of `to_unit`."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte()
