"""Real data that samples are compared with: the training split, and held-out items."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from checkpoints.consistency import CUSTOM, UNKNOWN
from cli.evaluation import EvaluationRequest
from dataset.changes import digest_of
from dataset.items import held_out_count, item_shape, split
from dataset.registry import DATASETS, READING, explained_folder, load_dataset
from dataset.types import Data
from utils import DataError, pick


class RealData(NamedTuple):
    """A data set in two parts: the items that a model is trained on, and held-out items."""

    name: str  # a key of `DATASETS`
    train: Data
    held_out: Data
    origin: str  # of the held-out items, in words: "test split", "held out of training"
    flip: bool  # does a mirrored image look natural?
    cache: Path  # folder next to the data in which its classifier is stored
    pairs: Callable[[], Data] | None = None  # loads data with every combination of attributes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an item."""
        return tuple(self.train.items.shape[1:])


def load_real_data(
    request: EvaluationRequest,
    checkpoint: dict | None,
    *,
    progress: Callable[..., Iterable] = lambda items, **_: items,
    say: Callable[[str], object] = lambda line: None,
) -> RealData:
    """Load the data set that a checkpoint was trained on, or the one that --dataset names.

    Args:
        request: what to measure.
        checkpoint: the loaded checkpoint, or None for given images.
        progress: wraps the iteration over files, as tqdm does.
        say: called with the data set's notes for the user.

    Raises:
        ValueError: the data do not fit the checkpoint or are unknown, or the run held nothing out.
        DataError: the data cannot be read.
    """
    validation, seed = None, request.seed
    config = {"dataset": request.dataset, "data_dir": "data", "image_size": request.image_size}
    config |= request.chosen(("avatar_style",))
    if request.dataset == "folder":
        config |= request.chosen(("skip_bad_images", "follow_links"))
    if checkpoint:
        config, train = checkpoint["config"]["data"], checkpoint["config"]["train"]
        validation, seed = train["validation"], train["seed"]
    if config["dataset"] == CUSTOM:
        raise ValueError(
            f"{request.checkpoint} was trained by fit() on a tensor, which cannot be loaded; save "
            "samples of it, and give --samples and --dataset"
        )
    if config["dataset"] == UNKNOWN:
        raise ValueError(
            f"{request.checkpoint} does not name its data set: read it again by export.py --from "
            "with --dataset NAME, or save samples of it, and give --samples and --dataset"
        )
    name, data_dir = config["dataset"], request.data_dir or config["data_dir"]
    options = {option: config[option] for option in READING if option in config}
    options |= {"data_dir": data_dir, "progress": progress}
    with explained_folder(None if request.data_dir else data_dir):
        data = load_dataset(name, **options)
    if data.note:
        say(data.note)
    if checkpoint:
        data = data.as_learned(config)
        require_data_of_network(checkpoint["config"], data)
    if request.split == "validation" and validation == 0:
        raise ValueError("--split validation: this run held nothing out of training")
    test = partial(load_dataset, name, split="test", **options)
    if request.split == "validation":
        test = None
    real = real_data(name, data, test, data_dir, validation, seed)
    if DATASETS[name].has_pairs:
        real = real._replace(pairs=partial(load_dataset, name, split="pairs", **options))
    if checkpoint and not DATASETS[name].has_test:
        before, now = config.get("digest"), digest_of(data.files)
        if (config["count"], before) != (len(data.items), now):
            origin = "images of a folder that has changed; some may have been trained on"
            return real._replace(origin=origin)
    return real


def require_data_of_network(config: dict, data: Data) -> None:
    """Raise ValueError if data do not fit the network of a checkpoint's configuration."""
    trained_on = config["data"]
    shapes = data.items.shape[1:], item_shape(trained_on)
    if shapes[0] != shapes[1]:
        has, needs = (" x ".join(map(str, shape)) for shape in shapes)
        raise ValueError(f"the data's shape is {has}, but the checkpoint's network needs {needs}")
    if config["model"].get("num_classes") and data.classes != trained_on["classes"]:
        raise ValueError("the data have other classes than the checkpoint was trained with")


def real_data(
    name: str,
    train: Data,
    test: Callable[[], Data] | None,
    data_dir: str | Path,
    validation: int | None,
    seed: int,
) -> RealData:
    """A data set with its test split, or with the items that a run held out.

    Args:
        name: a key of `DATASETS`.
        train: its training split.
        test: loads its test split, if it has one; None for what was held out of training.
        data_dir: folder of the data.
        validation, seed: number of items that the run held out (None: a twentieth), and its seed.

    Raises DataError for fewer than four items.
    """
    source = pick(DATASETS, name, "dataset")
    origin = "test split"
    if source.has_test and test is not None:
        held_out = test()
    else:
        if len(train.items) < 4:
            raise DataError(f"{len(train.items)} items are too few to compare with")
        count = validation or max(2, held_out_count(None, len(train.items)))
        first, second = split(len(train.items), count, seed)
        train, held_out = subset(train, first), subset(train, second)
        origin = "training split, seen in training" if validation == 0 else "held out of training"
    return RealData(name, train, held_out, origin, source.flip, Path(data_dir) / ".tiny-diffusion")


def subset(data: Data, indices: Tensor) -> Data:
    """The items at some indices, with their labels, captions and attributes."""
    labels = None if data.labels is None else data.labels[indices]
    captions = [data.captions[i] for i in indices.tolist()] if data.captions else ()
    facts = data.attributes and data.attributes._replace(codes=data.attributes.codes[indices])
    return data._replace(
        items=data.items[indices], labels=labels, captions=captions, attributes=facts
    )
