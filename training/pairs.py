"""Pairs of noise and samples that `sample.py --pairs` has written, as the data of --tune reflow."""

import hashlib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataset.items import item_shape, noise_shape, to_unit
from dataset.types import Data
from utils import DataError, NoisePerImage


class Pairs(NamedTuple):
    """Samples of a network, and the seed of the noise that they came from."""

    data: Data
    seed: int
    digest: str  # of the file


def load_pairs(path: str, config: dict) -> Pairs:
    """The pairs of a file. Raises DataError if it has none, or if they do not fit the network.

    Args:
        path: of the file.
        config: the configuration of the network.
    """
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        with zipfile.ZipFile(path):  # np.load also reads other files, and then returns an array
            pass
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("arr_0", "seed", "labels") if name in file}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"--pairs {path} cannot be read: {error}") from None
    if not {"arr_0", "seed"} <= found.keys() or found["seed"].shape != ():
        raise DataError(f"--pairs {path} has no samples with a seed: sample.py --pairs writes them")
    data, classes = samples_of(path, found["arr_0"], config), config["data"]["classes"]
    if not config["model"].get("num_classes"):
        return Pairs(Data(data, None, classes), int(found["seed"]), digest)
    if "labels" not in found:
        raise DataError(f"--pairs {path} has no classes, and the network is conditioned on them")
    labels = torch.from_numpy(found["labels"]).long()
    fits = labels.shape == (len(data),) and bool(((labels >= -1) & (labels < len(classes))).all())
    if not fits:
        raise DataError(f"--pairs {path} has other classes than the network")
    return Pairs(Data(data, labels, classes), int(found["seed"]), digest)


def samples_of(path: str, array: np.ndarray, config: dict) -> Tensor:
    """The samples (N, ...) of an array. Raises DataError if their shape or type does not fit."""
    shape = item_shape(config["data"])
    wanted = np.dtype(np.uint8 if len(shape) == 3 else np.float32)
    found = array.shape[1:] if array.ndim != 4 else (array.shape[3], *array.shape[1:3])
    if found != shape or array.dtype != wanted or not len(array):
        of, here = (" x ".join(map(str, each)) for each in (found, shape))
        raise DataError(
            f"--pairs {path} has {len(array):,} samples of {of} in {array.dtype}, and the network "
            f"draws {here} in {wanted}"
        )
    samples = torch.from_numpy(array)
    return samples.permute(0, 3, 1, 2).contiguous() if samples.ndim == 4 else samples


def with_noise(items: Tensor, seed: int, config: dict) -> Tensor:
    """Samples (N, C, ...) followed by the noise they came from, float16 (N, 2 C, ...)."""
    shape, parts = noise_shape(config), []
    for indices in torch.arange(len(items)).split(1000):
        noise = NoisePerImage(seed, indices.tolist()).draw(shape)
        parts.append(torch.cat([to_unit(items[indices]), noise], dim=1).half())
    return torch.cat(parts)
