"""The network that is exported, and what a form may require of it."""

from typing import NamedTuple

from torch import nn

from diffusion import GaussianDiffusion


class TrainedNetwork(NamedTuple):
    """A network of a checkpoint, with its process.

    Attributes:
        config: the configuration of the checkpoint.
        step: training steps.
        which: kind of the weights, a key of `WEIGHT_KINDS` (`checkpoints/weights.py`).
    """

    config: dict
    step: int
    which: str
    model: nn.Module
    diffusion: GaussianDiffusion


def require_plain_unet(config: dict, form: str, reader: str, known: str = "unet") -> None:
    """Raise ValueError unless a network is a U-Net of pixels with at most classes as condition."""
    model = config["model"]
    if model.get("caption_length"):
        raise ValueError(f"it is conditioned on captions, which {reader} cannot read")
    if model.get("super_resolution"):
        raise ValueError(f"it enlarges images, which {reader} cannot")
    if model.get("autoencoder"):
        raise ValueError(f"it is of latents, which {reader} cannot decode")
    if model["name"] != "unet":
        raise ValueError(
            f"it contains the network {model['name']}; only {known} can be exported to {form}"
        )
