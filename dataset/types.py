"""Types of data sets: the request, the loaded data, and the source."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor


class Attributes(NamedTuple):
    """Known properties of each item in addition to its class, such as the hair colour of a face."""

    values: Mapping[str, Sequence[str]]  # the possible values of each attribute, by its name
    codes: Tensor  # uint8 (N, number of attributes): the index of each item's value


class Data(NamedTuple):
    """A loaded data set. Its items may be a read-only mapped file, so never write to them."""

    items: Tensor  # images, uint8 (N, C, H, W), or points, float32 (N, 2)
    labels: Tensor | None  # int64 (N,), indices into classes; None for data without classes
    classes: list[str]
    note: str = ""  # lines for the user: which files are left out, where the pixels are stored
    files: Mapping[str, str] = MappingProxyType({})  # of a folder: {file name: digest of pixels}
    captions: Sequence[str] = ()  # one for each item, or none at all
    attributes: Attributes | None = None

    @property
    def class_counts(self) -> list[int]:
        """The number of items of each class; none for data without classes."""
        if self.labels is None:
            return []
        return self.labels.bincount(minlength=len(self.classes)).tolist()

    def as_learned(self, saved: Mapping) -> "Data":
        """The data in the form in which the run with this `config["data"]` has learned them.

        Other versions sorted the classes of a folder differently, and read grey images with a
        palette in colour. Data of other classes are returned unchanged.
        """
        data, classes = self, saved["classes"]
        if (data.items.shape[1], saved.get("image_channels")) == (1, 3):
            data = data._replace(items=data.items.expand(-1, 3, -1, -1))
        if data.classes == classes or sorted(data.classes) != sorted(classes):
            return data
        new = torch.tensor([classes.index(name) for name in data.classes])
        return data._replace(classes=classes, labels=new[data.labels])


class Request(NamedTuple):
    """The arguments of `load_dataset`, as a loader receives them."""

    data_dir: Path
    image_size: tuple[int, int] | None  # height and width in pixels; None for the data set's own
    download: bool
    skip_bad_images: bool
    fit: str  # a key of image_files.FITS
    grey: bool
    colour: bool
    background: str  # colour behind transparent pixels
    follow_links: bool
    cache_dir: str | Path | None
    cache_limit: float  # gigabytes
    avatar_style: str  # a key of avatar_styles.STYLES
    split: str  # "train" or, if the data set has them, "test" or "pairs"
    progress: Callable[..., Iterable]  # wraps an iterable, as tqdm does
    captions: bool = False  # read the captions of "folder"
    caption_from_path: bool = False  # make captions from the paths of the files


class Source(NamedTuple):
    """The loader of a data set, and the properties that are known before it is loaded."""

    load: Callable[[Request], Data]
    shape: tuple[int, ...]  # of one item: (2,) or (C, H, W); a folder's may differ once loaded
    flip: bool = False  # does a mirrored image look natural?
    has_test: bool = False  # is there a test split?
    has_pairs: bool = False  # is there a split "pairs", with every combination of attributes?
    classes: Sequence[str] | None = None  # their names; None if they depend on what is loaded
