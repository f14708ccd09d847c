"""The networks. Each maps (x_t, t) to a prediction of x_t's shape."""

from torch import nn

from diffusion import pick
from models.unet import UNet

MODELS: dict[str, type[nn.Module]] = {
    "unet": UNet,
}


def build_model(config: dict) -> nn.Module:
    """The network of a checkpoint's `config["model"]`: its name in `MODELS` and its arguments.

    Raises ValueError for an unknown name or arguments that the network does not take.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    network = pick(MODELS, name, "model")
    try:
        return network(**arguments)
    except TypeError as error:
        raise ValueError(f"these are not the arguments of a {name}: {error}") from None
