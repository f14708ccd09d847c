"""MNIST and Fashion-MNIST, in LeCun's IDX format."""

import gzip
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataset.downloads import check_md5, damaged, fetch
from dataset.types import Data, Request


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
