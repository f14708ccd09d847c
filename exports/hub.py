"""What the Hugging Face hub needs: model cards with a header, and networks with its methods.

Only `with_hub` imports the package huggingface_hub (requirements-diffusers.txt).
"""

import json
import re

from torch import nn

from checkpoints.consistency import UNKNOWN
from models import build_model, with_later_arguments

LICENSE = "mit"  # of this project's code, which the folder contains; its owner may change it


def hub_card(text: str, config: dict) -> str:
    """A model card with the YAML header by which the hub finds models of a kind."""
    data, model = config["data"], config["model"]
    tags = ["tiny-diffusion", "diffusion", model["name"]]
    if data["dataset"] != UNKNOWN and re.fullmatch("[a-z0-9_-]{1,50}", data["dataset"]):
        tags.append(data["dataset"])
    header = {
        **({"license": LICENSE} if data["count"] else {}),  # that of others' weights is unknown
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": sorted(set(tags)),
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in header.items()]  # JSON is YAML
    return "\n".join(["---", *lines, "---", "", text])


def with_hub(network: type[nn.Module]) -> type[nn.Module]:
    """A network's class with `save_pretrained`, `from_pretrained` and `push_to_hub`.

        UNetOfHub = with_hub(UNet)
        UNetOfHub(image_size=28, image_channels=1).save_pretrained("folder")
        network = UNetOfHub.from_pretrained("folder")

    The methods are those of huggingface_hub's `PyTorchModelHubMixin`: the arguments of the network
    are saved with its weights. Networks of the class have the same layers and weights' names.

    Raises ValueError without the package huggingface_hub.
    """
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError:
        raise ValueError(
            "the methods of the hub need the package huggingface_hub: "
            "pip install -r requirements-diffusers.txt"
        ) from None
    name = f"{network.__name__}OfHub"
    options = {"library_name": "tiny-diffusion", "tags": ["diffusion"], "license": LICENSE}
    body = {"__doc__": network.__doc__, "__module__": __name__}
    return type(network)(name, (network, PyTorchModelHubMixin), body, **options)


def hub_network(config: dict, weights: dict) -> nn.Module:
    """The network of a checkpoint, with the methods of `with_hub`.

        checkpoint = load_checkpoint("weights/mnist.safetensors")
        network = hub_network(checkpoint["config"]["model"], checkpoint["ema"])
        network.push_to_hub("name/mnist")

    Args:
        config: `config["model"]` of the checkpoint.
        weights: of the network.

    Raises ValueError for a network of latents, which has an autoencoder, and as `with_hub` does.
    """
    if config.get("autoencoder"):
        raise ValueError("a network of latents cannot be saved for the hub")
    arguments = with_later_arguments(config)
    del arguments["name"]
    network = with_hub(type(build_model(config)))(**arguments)
    network.load_state_dict(weights)
    return network
