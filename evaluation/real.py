"""The real images that generated ones are compared with."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dataset.items import held_out_count, split
from dataset.registry import DATASETS
from dataset.types import Data
from utils import DataError, pick


class Real(NamedTuple):
    """A data set, and what of it a model has not seen."""

    name: str
    train: Data
    held_out: Data
    what: str  # the held-out items are, for reports
    flip: bool  # does an image stay plausible when mirrored?
    cache: Path  # the folder beside the data that belongs to this project

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an item."""
        return tuple(self.train.items.shape[1:])


def real_data(
    name: str,
    train: Data,
    test: Callable[[], Data] | None,
    data_dir: str | Path,
    validation: int | None,
    seed: int,
) -> Real:
    """A data set with its test split, or with what a run held out.

    Args:
        name: a key of `DATASETS`.
        train: its training split.
        test: loads its test split, where it has one; None for what was held out of training.
        data_dir: where it is.
        validation, seed: how many items the run held out, and its seed; None for a twentieth.

    Raises DataError for fewer than four items.
    """
    source = pick(DATASETS, name, "dataset")
    what = "test split"
    if source.has_test and test is not None:
        held_out = test()
    else:
        if len(train.items) < 4:
            raise DataError(f"{len(train.items)} items are too few to compare with")
        count = validation or max(2, held_out_count(None, len(train.items)))
        first, second = split(len(train.items), count, seed)
        train, held_out = part(train, first), part(train, second)
        what = "training split, seen in training" if validation == 0 else "held out of training"
    return Real(name, train, held_out, what, source.flip, Path(data_dir) / ".tiny-diffusion")


def part(data: Data, indices: Tensor) -> Data:
    """The items of those numbers."""
    labels = None if data.labels is None else data.labels[indices]
    return data._replace(items=data.items[indices], labels=labels)
