"""The networks. Each maps (x_t, t, condition) to a prediction of x_t's shape.

To add one, write a class and add a line to `MODELS`:
  - `kind` is the kind of data that the network is for, "images" or "points".
  - The constructor takes the data's shape, `image_size` and `image_channels` or `dim`, and keyword
    arguments with defaults and annotations. They are the flags of train.py with the same names.
    Arguments that set a size have a limit in `LIMITS`.
  - `ends()` lists the first and the last layers, which Muon leaves to AdamW.
  - `recomputable()` lists the blocks that gradient checkpointing may compute twice.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import nn

from models.autoencoder import Autoencoder
from models.classifier import NoisyClassifier
from models.clip import CLIP
from models.cnn import CNN
from models.dit import DiT
from models.latents import LatentSpace
from models.mlp import MLP
from models.naive_unet import NaiveUNet
from models.tokenizer import FIRST_WORD, MAX_LENGTH, MAX_WORDS
from models.unet import UNet
from models.unet2d import UNet2D
from schedules import MAX_TIMESTEPS
from utils import pick

MODELS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "naive_unet": NaiveUNet,
    "cnn": CNN,
    "dit": DiT,
    "unet2d": UNet2D,
    "mlp": MLP,
}
# Networks that judge noisy images instead of denoising them, to guide sampling. Each maps
# (x_t, t) to what its objective in `training.objective` learns.
GUIDES: dict[str, type[nn.Module]] = {
    "classifier": NoisyClassifier,
    "clip": CLIP,
}
# Networks that images are encoded with, for diffusion in their latents.
AUTOENCODERS: dict[str, type[nn.Module]] = {
    "autoencoder": Autoencoder,
}
NOT_DENOISERS = GUIDES | AUTOENCODERS
NETWORKS = MODELS | NOT_DENOISERS
DEFAULT = {"images": "unet", "points": "mlp"}  # by the kind of data

LATER = {"unet": {"efficient": False}}  # what older configurations mean, where not the default

# The largest values in a configuration from a command line or a file. They exceed every use, and
# keep the construction of a network without its weights under two seconds.
LIMITS = {
    "image_size": 1024,
    "image_channels": 16,
    "dim": 16,
    "channels": 16_384,
    "multipliers": 64,
    "blocks": 100,
    "attention_resolutions": 1024,
    "patch_size": 64,
    "num_classes": 100_000,
    "vocabulary_size": FIRST_WORD + MAX_WORDS,
    "caption_length": MAX_LENGTH,
    "text_width": 16_384,
    "downsample": 8,
    "latent_channels": 1024,
    "cross_attention_resolutions": 1024,
    "up_attention_resolutions": 1024,
    "head_dim": 16_384,
    "norm_groups": 16_384,
    "time_width": 65_536,
    "super_resolution": 1024,
    "timesteps": MAX_TIMESTEPS,
}
MAX_LEVELS = 10
MAX_WEIGHTS = 4096  # tensors; a block of a U-Net has ten
MAX_PARAMETERS = 2**30  # numbers in them


def model_config(name: str, shape: dict, timesteps: int, options: dict) -> dict:
    """The complete configuration of a network: its options, and its own defaults for the rest.

    Args:
        name: a key of `NETWORKS`.
        shape: the data's, {"image_size", "image_channels"} or {"dim"}; the size of an image is N
            or [height, width].
        timesteps: T of the process, for a network that asks for it.
        options: arguments of the network that differ from its defaults.

    Raises:
        ValueError: an unknown name, a network for other data, or an unknown option.
    """
    network = pick(NETWORKS, name, "model")
    kind = "points" if "dim" in shape else "images"
    if network.kind != kind:
        fitting = ", ".join(n for n, other in MODELS.items() if other.kind == kind)
        raise ValueError(f"the model {name} is for {network.kind}; for {kind} there are {fitting}")
    defaults = {key: value for key, value in arguments_of(name).items() if key not in shape}
    if unknown := options.keys() - defaults.keys():
        raise ValueError(
            f"the model {name} has no {', '.join(sorted(unknown))}; it has {', '.join(defaults)}"
        )
    if "timesteps" in defaults:
        options = {**options, "timesteps": timesteps}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in {**defaults, **options}.items()}
    return {"name": name, **shape, **plain}


def arguments_of(name: str) -> dict[str, object]:
    """The arguments of a network's constructor, with their defaults.

    The default of a required argument is `inspect.Parameter.empty`.
    """
    parameters = inspect.signature(pick(NETWORKS, name, "model")).parameters
    return {key: parameter.default for key, parameter in parameters.items()}


def with_later_arguments(config: dict) -> dict:
    """A network's configuration with the arguments that were added since it was saved."""
    name = config.get("name")
    if name not in NETWORKS:
        return config
    known = {key: v for key, v in arguments_of(name).items() if v is not inspect.Parameter.empty}
    lists = {key: list(v) if isinstance(v, tuple) else v for key, v in known.items()}
    return {**lists, **LATER.get(name, {}), **config}


def build_model(config: dict) -> nn.Module:
    """The network of a checkpoint's `config["model"]`: its name in `NETWORKS` and its arguments.

    With the configuration of an "autoencoder" in `config`, the network has a `latent_space`.

    Raises ValueError for an unknown name, arguments that the network does not take, and sizes
    beyond `LIMITS`, before anything is allocated for them.
    """
    arguments = with_later_arguments(config)
    encoder = arguments.pop("autoencoder", None)
    if encoder is not None:
        network = build_model(arguments)
        network.latent_space = LatentSpace(build_model(encoder))
        return network
    name = arguments.pop("name", None)
    network = pick(NETWORKS, name, "model")
    for argument in LIMITS.keys() & arguments.keys():
        require_within_limit(argument, arguments[argument])
    try:
        with torch.device("meta"):
            without_content = network(**arguments)
            sizes = [p.numel() for p in without_content.parameters()]
    except TypeError as error:
        raise ValueError(f"these are not the arguments of a {name}: {error}") from None
    if len(sizes) > MAX_WEIGHTS or sum(sizes) > MAX_PARAMETERS:
        raise ValueError(
            f"a {name} with these arguments has {sum(sizes):,} parameters in {len(sizes):,} "
            f"weights; there can be at most {MAX_PARAMETERS:,} in {MAX_WEIGHTS:,}"
        )
    wanted = torch.get_default_device()
    return without_content if wanted.type == "meta" else network(**arguments)


def require_within_limit(name: str, value: int | Sequence[int] | None) -> None:
    """Raise a ValueError for a number below 1 or above its limit, or too many of them."""
    numbers = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if len(numbers) > MAX_LEVELS:
        raise ValueError(f"{name} can have at most {MAX_LEVELS} entries, not {len(numbers)}")
    for number in numbers:
        if not 1 <= number <= LIMITS[name]:
            raise ValueError(f"{name} must lie between 1 and {LIMITS[name]}, not {number}")


def cost(config: dict, shape: Sequence[int]) -> tuple[int, int]:
    """Parameters of a configuration's network, and FLOPs of its forward pass for one item.

    A multiplication and an addition are two. Nothing is computed: the tensors have no content.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = build_model(config).eval()
        x_t, t = torch.empty(1, *shape), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x_t, t)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()
