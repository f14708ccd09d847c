"""The network that is exported, and what a form may require of it."""

from collections.abc import Iterable
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


# Parts that a form may lack: the field of the configuration, and why it is refused.
PARTS = {
    "average_velocity": "it predicts average velocities (--tune meanflow), unknown to {}",
    "caption_length": "it is conditioned on captions, which {} cannot read",
    "text_width": "it has a pretrained text encoder, which {} cannot hold",
    "super_resolution": "it enlarges images, which {} cannot",
    "autoencoder": "it is of latents, which {} cannot decode",
}


def require_parts(
    config: dict, form: str, reader: str, networks: Iterable[str], captions: bool = False
) -> None:
    """Raise ValueError for a network that a form cannot hold.

    Args:
        config: the configuration of the checkpoint.
        form: its name, a key of `FORMS`.
        reader: what reads the form, in words.
        networks: names of the networks that it can hold.
        captions: whether it can hold a network with a text encoder of its own. It never holds a
            pretrained one.
    """
    model, networks = config["model"], list(networks)
    for part, reason in PARTS.items():
        if model.get(part) and not (part == "caption_length" and captions):
            raise ValueError(reason.format(reader))
    if model["name"] not in networks:
        known = " and ".join(filter(None, [", ".join(networks[:-1]), networks[-1]]))
        raise ValueError(
            f"it contains the network {model['name']}; only {known} can be exported to {form}"
        )


def process_tables(network: TrainedNetwork) -> dict:
    """The process of a network as values of JSON.

    `alpha` and `sigma` are lists of T numbers, for t = 0 ... T-1.
    """
    diffusion = network.diffusion
    levels = diffusion.levels()[-2::-1]  # the last one is clean data
    return {
        "alpha": [level.alpha for level in levels],
        "sigma": [level.sigma for level in levels],
        "prediction": network.config["diffusion"].get("prediction", "eps"),
        "clip": diffusion.clip,
        "clip_loss": diffusion.clip_loss,
        "sigma_data": diffusion.sigma_data,
    }
