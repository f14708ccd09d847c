"""Pairs of noise and samples that `sample.py --pairs` has written, as the data of --tune reflow."""

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


def load_pairs(path: str, config: dict) -> Pairs:
    """The pairs of a file. Raises DataError if it has none, or if they do not fit the network.

    Args:
        path: of the file.
        config: the configuration of the network.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("arr_0", "seed", "labels") if name in file}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"--pairs {path} cannot be read: {error}") from None
    if "seed" not in found:
        raise DataError(f"--pairs {path} has no seed: sample.py --pairs writes one")
    samples, shape = torch.from_numpy(found["arr_0"]), item_shape(config["data"])
    if samples.ndim == 4:
        samples = samples.permute(0, 3, 1, 2).contiguous()
    if tuple(samples.shape[1:]) != shape:
        of, here = (" x ".join(map(str, each)) for each in (samples.shape[1:], shape))
        raise DataError(f"--pairs {path} has samples of {of}, and the network draws {here}")
    classes = config["data"]["classes"]
    labels = None
    if "labels" in found:
        labels = torch.from_numpy(found["labels"]).long()
    if config["model"].get("num_classes") and labels is None:
        raise DataError(f"--pairs {path} has no classes, and the network is conditioned on them")
    return Pairs(Data(samples, labels, classes), int(found["seed"]))


def with_noise(items: Tensor, seed: int, config: dict) -> Tensor:
    """Samples (N, C, ...) followed by the noise they came from, float16 (N, 2 C, ...)."""
    shape, parts = noise_shape(config), []
    for indices in torch.arange(len(items)).split(1000):
        noise = NoisePerImage(seed, indices.tolist()).draw(shape)
        parts.append(torch.cat([to_unit(items[indices]), noise], dim=1).half())
    return torch.cat(parts)
