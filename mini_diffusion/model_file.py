"""Model files: a trained network and its noise schedule as plain arrays in one .npz file.

config          JSON text: format, dataset, classes, image_size (N or [height, width]),
                image_channels, model (the arguments of UNet), prediction, clip, sigma_data
alpha, sigma    noise schedule, float64 (T,)
weights.NAME    weights of the network, float32, with the names of PyTorch's state_dict

The project's export.py writes these files. Reading one executes no code (`allow_pickle=False`).
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

FORMAT = 1
WEIGHTS = "weights."
KEYS = {"format", "dataset", "classes", "image_size", "image_channels", "model"}
KEYS |= {"prediction", "clip", "sigma_data"}
REMEDY = "create one with export.py --to numpy"


class ModelFileError(OSError):
    """A model file is damaged, inconsistent or of another format; the message says which."""


class ModelFile(NamedTuple):
    """Contents of a model file."""

    config: dict
    alpha: np.ndarray  # (T,)
    sigma: np.ndarray  # (T,)
    weights: dict[str, np.ndarray]


def read_model(path: str | Path) -> ModelFile:
    """Read a model file. Raises FileNotFoundError, or ModelFileError if the file is not valid."""
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
    weights = {k.removeprefix(WEIGHTS): v for k, v in arrays.items() if k.startswith(WEIGHTS)}
    return ModelFile(config, alpha, sigma, weights)
