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


def require_plain_unet(
    config: dict, form: str, reader: str, known: str = "unet", captions: bool = False
) -> None:
    """Raise ValueError unless a network is a U-Net of pixels with at most classes as condition.

    The message names `reader`, and `known`, the networks that the form can hold. With `captions`
    the form holds a network with a text encoder of its own, but not with a pretrained one.
    """
    model = config["model"]
    if model.get("caption_length") and not captions:
        raise ValueError(f"it is conditioned on captions, which {reader} cannot read")
    if model.get("text_width"):
        raise ValueError(f"it has a pretrained text encoder, which {reader} cannot hold")
    if model.get("super_resolution"):
        raise ValueError(f"it enlarges images, which {reader} cannot")
    if model.get("autoencoder"):
        raise ValueError(f"it is of latents, which {reader} cannot decode")
    require_velocity(config, reader)
    if model["name"] != "unet":
        raise ValueError(
            f"it contains the network {model['name']}; only {known} can be exported to {form}"
        )


def require_velocity(config: dict, reader: str) -> None:
    """Raise ValueError for a network of mean flows, which also takes a time span."""
    if config["model"].get("average_velocity"):
        raise ValueError(f"it predicts average velocities (--tune meanflow), unknown to {reader}")
