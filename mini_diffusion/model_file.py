"""Model files: a trained network and its noise schedule as plain arrays in one .npz file.

config          JSON text: format, dataset, classes, network ("unet" or "mlp"; "unet" where it is
                missing), model (the network's arguments), prediction, clip, clip_loss (false where
                it is missing), sigma_data; of images image_size (N or [height, width]) and
                image_channels, of points dim
alpha, sigma    noise schedule, float64 (T,)
weights.NAME    weights of the network, float32, with the names of PyTorch's state_dict

The project's export.py writes these files. Reading one executes no code (`allow_pickle=False`).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from mini_diffusion.layers import Layer
from mini_diffusion.tensor import Tensor

FORMAT = 1
WEIGHTS = "weights."
KEYS = {"format", "dataset", "classes", "model", "prediction", "clip", "sigma_data"}
SHAPES = {"unet": {"image_size", "image_channels"}, "mlp": {"dim"}}  # keys of the data's shape
REMEDY = "create one with export.py --to numpy"

Network = TypeVar("Network", bound=Layer)


class ModelFileError(OSError):
    """A model file is damaged, inconsistent or of another format; the message says which."""


class ModelFile(NamedTuple):
    """Contents of a model file."""

    path: Path
    config: dict
    alpha: np.ndarray  # (T,)
    sigma: np.ndarray  # (T,)
    weights: dict[str, np.ndarray]


def read_model(path: str | Path | ModelFile) -> ModelFile:
    """Read a model file; its contents, if they are given, are returned.

    Raises FileNotFoundError, or ModelFileError if the file is not valid.
    """
    if isinstance(path, ModelFile):
        return path
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise FileNotFoundError(f"model file {path} not found; {REMEDY}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        config = json.loads(str(arrays["config"]))
        alpha, sigma = arrays["alpha"], arrays["sigma"]
    except Exception:  # a damaged file raises exceptions of zipfile, zlib, NumPy or json
        raise ModelFileError(f"{path} is damaged or not a model file; {REMEDY}") from None
    if not isinstance(config, dict) or not config.keys() >= KEYS:
        raise ModelFileError(f"{path} is not a model file; {REMEDY}")
    if config["format"] != FORMAT:
        raise ModelFileError(
            f"{path} has format {config['format']}; this version of mini_diffusion reads {FORMAT}"
        )
    network = network_of(config)
    if network not in SHAPES:
        known = " and ".join(SHAPES)
        raise ModelFileError(f"{path} contains the network {network!r}; known are {known}")
    if not config.keys() >= SHAPES[network]:
        raise ModelFileError(
            f"{path} contains the network {network!r}, but not the shape of its data; {REMEDY}"
        )
    weights = {k.removeprefix(WEIGHTS): v for k, v in arrays.items() if k.startswith(WEIGHTS)}
    return ModelFile(path, config, alpha, sigma, weights)


def network_of(config: dict) -> str:
    """Name of the network in the configuration of a model file."""
    return config.get("network", "unet")


def with_weights(file: ModelFile, name: str, build: Callable[..., Network]) -> Network:
    """Network of a model file.

    Args:
        file: its contents.
        name: of the network, "unet" or "mlp".
        build: makes the network from its arguments.

    Raises ModelFileError for another network, and for weights that do not fit.
    """
    if (found := network_of(file.config)) != name:
        raise ModelFileError(
            f"{file.path} contains the network {found}, not {name}; use load_network"
        )
    try:
        model = build(**file.config["model"])
        parameters = dict(model.parameters())
        if names := parameters.keys() ^ file.weights.keys():
            raise ValueError(f"weights missing or unexpected: {', '.join(sorted(names)[:3])}")
        for parameter, weights in parameters.items():
            new = Tensor(file.weights[parameter])
            if new.shape != weights.shape:
                raise ValueError(f"{parameter} has shape {new.shape}, expected {weights.shape}")
            weights.data = new.data
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{file.path} is inconsistent: {error}; export it again") from None
    return model
