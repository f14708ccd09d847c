"""Data sets. Each becomes one tensor, so that training never decodes an image.

To add one: write a function `Request -> Data` and add a line to `DATASETS`.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dataset.cifar10 import cifar10
from dataset.folders import Folder
from dataset.idx import FASHION_MNIST, MNIST, idx_images
from dataset.image_files import FITS, image_files
from dataset.items import kind_of, resized
from dataset.pixel_cache import decode_folder
from dataset.points import draw_points
from dataset.types import Data, Request, Source
from utils import pick

FOLDER_SIZE = 64  # pixels that `folder` resizes to where no size is asked for


NUM_POINTS = 40_960


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
