"""A U-Net or an MLP, and its process, as one .npz of plain arrays, which mini_diffusion reads."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from checkpoints.weights import WEIGHT_KINDS
from exports.network import TrainedNetwork, process_tables, require_parts
from models.unet import feature_sizes
from sampling.plan import require_untuned_network
from utils import save_whole


def require_arrays(config: dict) -> None:
    """Raise ValueError for a network that mini_diffusion does not have."""
    require_untuned_network(config, "--to numpy")
    require_parts(config, "numpy", "mini_diffusion", ("unet", "mlp"))


def save_arrays(path: Path, network: TrainedNetwork) -> None:
    """Write a network and its process for mini_diffusion."""
    config, step, which, model, _ = network
    process = process_tables(network)
    alpha, sigma = process.pop("alpha"), process.pop("sigma")
    description = {
        "format": 1,
        "dataset": config["data"]["dataset"],
        "classes": config["data"]["classes"],
        **described(config["model"], model),
        **process,
        "step": step,
        "weights": WEIGHT_KINDS[which],
    }
    arrays = {
        "config": np.array(json.dumps(description)),
        "alpha": np.array(alpha),
        "sigma": np.array(sigma),
        **{f"weights.{name}": w.float().numpy() for name, w in model.state_dict().items()},
    }

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:  # NumPy would append .npz to a file name
            np.savez(file, **arrays)

    save_whole(path, write)


def described(arguments: dict, model: nn.Module) -> dict:
    """The network and the shape of its data, as fields of a model file."""
    if arguments["name"] == "mlp":
        dim = arguments["dim"]
        return {"network": "mlp", "dim": dim, "model": mini_mlp_arguments(**arguments)}
    return {
        "network": "unet",
        "image_size": model.image_size,
        "image_channels": model.image_channels,
        "model": mini_unet_arguments(**arguments | {"patch_size": model.patch_size}),
    }


def mini_mlp_arguments(
    *,
    name: str,
    dim: int,
    channels: int = 128,
    blocks: int = 4,
    dropout: float = 0.0,
    num_classes: int | None = None,
    learn_sigma: bool = False,
) -> dict:
    """Arguments of mini_diffusion's MLP, from those of the MLP in models/mlp.py."""
    return {
        "dim": dim,
        "out": dim * (2 if learn_sigma else 1),
        "channels": channels,
        "blocks": blocks,
        "num_classes": num_classes or None,
    }


def mini_unet_arguments(
    *,
    name: str,
    image_size: int | Sequence[int],
    image_channels: int,
    patch_size: int,
    channels: int = 64,
    multipliers: Sequence[int] = (1, 1, 2),
    blocks: int = 1,
    attention_resolutions: Sequence[int] = (),
    dropout: float = 0.0,
    num_classes: int | None = None,
    learn_sigma: bool = False,
    efficient: bool = False,
    vocabulary_size: None = None,
    caption_length: None = None,
    text_width: None = None,
    super_resolution: None = None,
    average_velocity: bool = False,
    cross_attention_resolutions: Sequence[int] = (),
) -> dict:
    """Arguments of mini_diffusion's UNet, from those of models/unet.py's UNet without captions."""
    sizes = feature_sizes(image_size, patch_size, len(multipliers))
    return {
        "in_channels": image_channels,
        "out_channels": image_channels * (2 if learn_sigma else 1),
        "model_channels": channels,
        "multipliers": list(multipliers),
        "blocks": blocks,
        "attention_levels": [i for i, size in enumerate(sizes) if size in attention_resolutions],
        "patch_size": patch_size,
        "num_classes": num_classes or None,
        "efficient": efficient,
    }
