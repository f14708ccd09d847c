"""MNIST and Fashion-MNIST, in LeCun's IDX format: a short header, then one byte a value."""

import gzip
import hashlib
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataset.downloads import check_md5, damaged_file, fetch
from dataset.types import Data, Request


class IdxSet(NamedTuple):
    """A data set of four IDX files: images and labels of the training and the test split."""

    name: str
    torchvision_name: str  # of its class in torchvision, and of its folder
    classes: list[str]
    md5s: dict[str, str]  # {file name: MD5 of the uncompressed file}
    package: tuple = ()  # folder of a system package (Path), and how to install it (str)


# Handwritten digits, 28 x 28, grey: 60,000 for training, 10,000 for testing (LeCun et al. 1998).
MNIST = IdxSet(
    "mnist",
    "MNIST",
    [str(digit) for digit in range(10)],
    {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
)

# Pieces of clothing, 28 x 28, grey: 60,000 for training, 10,000 for testing (Xiao et al. 2017).
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
        "run 'apt install dataset-fashion-mnist' (Debian, Ubuntu)",
    ),
)


def load_idx(spec: IdxSet, request: Request) -> Data:
    """Load one split of a data set in IDX format; download it if it is missing."""
    raw = request.data_dir / spec.torchvision_name / "raw"
    folders = [raw, *spec.package[:1]]

    start = {"train": "train", "test": "t10k"}[request.split]
    md5s = {name: md5 for name, md5 in spec.md5s.items() if name.startswith(start)}

    def find(name: str) -> Path | None:
        candidates = [folder / n for folder in folders for n in (name, f"{name}.gz")]
        found = next((path for path in candidates if path.is_file()), None)
        return found or find_elsewhere(request.data_dir, spec.torchvision_name, name, md5s[name])

    if missing := [name for name in md5s if find(name) is None]:
        import torchvision

        searched = f"Looked for {' and '.join(f'{name}[.gz]' for name in missing)} in "
        searched += " and ".join(map(str, folders)) + "."
        copy = f"copy {' and '.join(f'{name}.gz' for name in missing)} to {raw}{os.sep}"
        kind = getattr(torchvision.datasets, spec.torchvision_name)
        fetch(spec.name, kind, raw, request, searched, [copy, *spec.package[1:]])

    contents = []
    for name, md5 in md5s.items():
        path = find(name)
        content = read_uncompressed(path)  # Debian compresses again, which changes the .gz file
        check_md5(path, content, md5)
        contents.append(content)
    images = np.frombuffer(contents[0], np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer(contents[1], np.uint8, offset=8).astype(np.int64)
    return Data(torch.from_numpy(images.copy()), torch.from_numpy(labels), spec.classes)


def find_elsewhere(data_dir: Path, folder: str, name: str, md5: str) -> Path | None:
    """Find a file at another place in `data_dir`, or under its name on Kaggle; None if missing.

    Other data sets have files of the same names, so the MD5 must match.
    """
    dotted = name.replace("-idx", ".idx")
    names = [
        form for n in (name, dotted) for form in (n, f"{n}.gz", f"{name}/{n}", f"{dotted}/{n}")
    ]
    for place in (data_dir / folder / "raw", data_dir / folder, data_dir / "raw", data_dir):
        for path in map(place.joinpath, names):
            with suppress(OSError):  # not there, or damaged
                if hashlib.md5(read_uncompressed(path)).hexdigest() == md5:
                    return path
    return None


def read_uncompressed(path: Path) -> bytes:
    """Content of a file, decompressed if its first bytes are those of gzip.

    Raises DataError if the file is damaged.
    """
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged_file(path, str(error)) from None
