"""What a data set is asked for, and what it gives."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor


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
