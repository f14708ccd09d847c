"""A trained model in one .npz of plain arrays, which NumPy reads without running any code.

config          what it is, as JSON: format, dataset, classes, image_size, image_channels, model
                (the arguments of UNet), prediction, clip, sigma_data
alpha, sigma    the noise schedule, float64 (T,)
weights.NAME    the network's, float32, by the names of PyTorch's state_dict

The project's export.py writes it.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

FORMAT = 1
WEIGHTS = "weights."
KEYS = {"format", "dataset", "classes", "image_size", "image_channels", "model"}
KEYS |= {"prediction", "clip", "sigma_data"}


class ModelFileError(OSError):
    """A file that is no model, is damaged, or contradicts itself; the message says which."""


class ModelFile(NamedTuple):
    config: dict
    alpha: np.ndarray
    sigma: np.ndarray
    weights: dict[str, np.ndarray]


def read_model(path: str | Path) -> ModelFile:
    """What a file of export.py holds.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFileError: it is damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model {path}; export.py writes one")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        config = json.loads(str(arrays["config"]))
        alpha, sigma = arrays["alpha"], arrays["sigma"]
    except Exception:  # zip, zlib, NumPy and JSON raise nearly anything
        raise ModelFileError(f"{path} is damaged, or is not a model of export.py") from None
    if not isinstance(config, dict) or not config.keys() >= KEYS:
        raise ModelFileError(f"{path} is not a model of export.py")
    if config["format"] != FORMAT:
        raise ModelFileError(f"{path} has format {config['format']}; this version reads {FORMAT}")
    weights = {
        name.removeprefix(WEIGHTS): array
        for name, array in arrays.items()
        if name.startswith(WEIGHTS)
    }
    return ModelFile(config, alpha, sigma, weights)
