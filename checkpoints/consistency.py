"""Checks of a checkpoint's types, shapes, and parts that must agree; they raise ValueError."""

import inspect
import json
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from dataset.items import item_shape, kind_of, shape_config
from dataset.registry import DATASETS
from diffusion import GaussianDiffusion
from models import AUTOENCODERS, NETWORKS, require_within_limit
from models.autoencoder import latent_shape
from models.tokenizer import FIRST_WORD
from utils import UnknownName, matches_type, pick

# Types of the fields of a checkpoint: RECORD_TYPES are also those of a sharded one's record.
RECORD_TYPES = {"step": int, "skipped": int, "seconds": float, "config": dict}
RECORD_TYPES |= {"unlogged_loss": float, "unlogged_updates": int}
CHECKPOINT_TYPES = RECORD_TYPES | {"model": dict, "ema": dict}
CHECKPOINT_TYPES |= {"optimizer": dict, "scaler": dict | None}
# Fields of every configuration; arguments of network and process are checked by their signatures.
CONFIG_TYPES = {
    "data": {"dataset": str, "data_dir": str, "count": int, "classes": list[str]},
    "model": {"name": str},
    "diffusion": {},
    "train": {"label_dropout": float, "total_steps": int | None}
    | {"batch_size": int, "update_size": int, "processes": int},
}
# The shape of an item, in "data" and in "model"; the size of an image is N or [height, width].
SHAPE_TYPES = {"dim": int, "image_size": int | list[int], "image_channels": int}

UNKNOWN = "unknown"  # data set of a network that another program has trained
CUSTOM = "custom"  # name of the user's own network, and of the user's own data
CUSTOM_TYPES = {
    "data": {"shape": list[int], "range": list[float] | None},
    "model": {"name": str, "class": str, "num_classes": int | None},
}
SET_IN_EACH_STEP = ("lr", "momentum")  # of optimizers: the values in a checkpoint are ignored
MAX_ITEM = 2**24  # numbers in an item of the user's own data


def require_types(values: dict, types: dict, where: str = "") -> None:
    """Raise ValueError for a value that is missing or of another type."""
    for name, wanted in types.items():
        if not matches_type(values.get(name), wanted):
            raise ValueError(f"{where}{name} cannot be {values.get(name)!r}")


def require_config(config: dict) -> None:
    """Raise ValueError for a configuration that no training run has. Sizes are not checked."""
    require_types({"config": config}, {"config": dict})
    try:
        json.dumps(config, allow_nan=False)
    except TypeError as error:  # a tensor, for example
        raise ValueError(f"config must contain plain values only: {error}") from None
    require_types(config, dict.fromkeys(CONFIG_TYPES.keys() | config.keys(), dict), "config.")
    for section, types in CONFIG_TYPES.items():
        require_types(config[section], types, f"{section}.")
    data, model, process = config["data"], config["model"], config["diffusion"]
    require_arguments(GaussianDiffusion, process, "diffusion.")
    if model["name"] == CUSTOM:
        require_custom(data, model)
    else:
        require_known(data, model, process)
    if model.get("num_classes") not in (None, len(data["classes"])):
        raise ValueError("the network and the data differ in the number of classes")
    require_captions(data, model)
    counts = data.get("class_counts", [])  # earlier versions did not save them
    require_types({"class_counts": counts}, {"class_counts": list[int]}, "data.")
    if counts and len(counts) != len(data["classes"]):
        raise ValueError("the data differ in the number of classes and of their counts")
    decay_from = config["train"].get("decay_from")
    require_types({"decay_from": decay_from}, {"decay_from": list[float] | None}, "train.")
    if decay_from is not None and (len(decay_from) != 2 or not 0 <= decay_from[1] <= 1):
        raise ValueError(f"train.decay_from cannot be {decay_from!r}")


def require_captions(data: dict, model: dict) -> None:
    """Raise ValueError unless network and data agree in their captions."""
    size, width = (model.get(name) for name in ("vocabulary_size", "text_width"))
    if model.get("caption_length") is None:
        if size is not None or width is not None:
            raise ValueError("the network knows captions without a caption_length")
        return
    if (size is None) == (width is None):
        raise ValueError("the network needs either a vocabulary_size or a text_width")
    require_types(data, {"prompts": list[str]}, "data.")
    if width is not None:
        require_types(data, {"text_encoder": str, "text_encoder_sha256": str}, "data.")
    else:
        require_types(data, {"words": list[str]}, "data.")
    different = width is None and size != FIRST_WORD + len(set(data["words"]))
    if different or not data["prompts"]:
        raise ValueError("the network and the data differ in the vocabulary of the captions")


def require_known(data: dict, model: dict, process: dict) -> None:
    """Raise ValueError unless a network of `NETWORKS` fits its data and its process."""
    network = pick(NETWORKS, model["name"], "model")
    arguments = {k: value for k, value in model.items() if k not in ("name", "autoencoder")}
    require_arguments(network, arguments, "model.")
    shape = {key: data[key] for key in SHAPE_TYPES if key in data}
    require_types(shape, {key: SHAPE_TYPES[key] for key in shape}, "data.")
    expected = shape
    if (encoder := model.get("autoencoder")) is not None:
        require_autoencoder(encoder, data)
        expected = shape_config(latent_shape(encoder))
    if expected != {key: model[key] for key in SHAPE_TYPES if key in model}:
        raise ValueError("the network and the data differ in the shape of an item")
    is_image = shape.keys() == {"image_size", "image_channels"}
    if not (shape["image_channels"] in (1, 3) if is_image else shape == {"dim": 2}):
        raise ValueError(f"no data has items of the shape {shape}")
    item_shape(data)  # raises ValueError for a size of other than one or two sides
    source = DATASETS.get(data["dataset"])  # None: a data set of another version
    if source and kind_of(source.shape) != network.kind:
        raise ValueError(f"{data['dataset']} is not a data set of {network.kind}")
    if model.get("learn_sigma", False) != process.get("learn_sigma", False):
        raise ValueError("the network and the process differ in learn_sigma")


def require_autoencoder(model: dict, data: dict) -> None:
    """Raise ValueError unless this is the configuration of an autoencoder of such data."""
    require_types({"autoencoder": model}, {"autoencoder": dict}, "model.")
    arguments = {key: value for key, value in model.items() if key != "name"}
    network = pick(AUTOENCODERS, model.get("name"), "autoencoder")
    require_arguments(network, arguments, "model.autoencoder.")
    for key in ("image_size", "image_channels"):
        if key not in model or model[key] != data.get(key):
            raise ValueError("the autoencoder and the data differ in the shape of an item")
    for key in ("downsample", "latent_channels"):
        require_within_limit(key, model.get(key))


def require_custom(data: dict, model: dict) -> None:
    """Raise ValueError unless data and network are described as `training.fit` describes them."""
    require_types(data, CUSTOM_TYPES["data"], "data.")
    require_types(model, CUSTOM_TYPES["model"], "model.")
    if unknown := model.keys() - CUSTOM_TYPES["model"].keys():
        raise ValueError(f"there is no argument model.{min(unknown, key=str)}")
    require_within_limit("num_classes", model["num_classes"])
    shape, limits = data["shape"], data["range"]
    for name, value, valid in [
        ("data.dataset", data["dataset"], data["dataset"] == CUSTOM),
        ("data.shape", shape, len(shape) in (1, 3) and min(shape) > 0 and prod(shape) <= MAX_ITEM),
        ("data.range", limits, limits is None or (len(limits) == 2 and limits[0] < limits[1])),
        ("model.class", model["class"], model["class"].isidentifier()),
    ]:
        if not valid:
            raise ValueError(f"{name} cannot be {value!r}")


def require_arguments(function: Callable, arguments: dict, where: str) -> None:
    """Raise ValueError for an argument that the function does not take, or of another type."""
    parameters = inspect.signature(function).parameters
    if unknown := arguments.keys() - parameters.keys():
        name = min(unknown, key=str)
        of_others = any(name in inspect.signature(other).parameters for other in NETWORKS.values())
        kind = ValueError if of_others else UnknownName  # another version may know it
        raise kind(f"there is no argument {where}{name}")
    require_types(arguments, {name: parameters[name].annotation for name in arguments}, where)


def require_tensors(weights: dict) -> None:
    """Raise ValueError for a weight that is no tensor."""
    for name, weight in weights.items():
        if not isinstance(weight, Tensor):
            raise ValueError(f"the weight {name} is not a tensor")


def require_weights(weights: dict, model: nn.Module) -> None:
    """Raise ValueError unless the weights have the names, types and shapes of the network's."""
    expected = model.state_dict()
    if unmatched := weights.keys() ^ expected.keys():
        name = min(unmatched, key=str)
        problem = "is missing" if name in expected else "is not one of the network's"
        raise ValueError(f"the weight {name} {problem}")
    for name, weight in weights.items():
        wanted = expected[name]
        if not isinstance(weight, Tensor) or weight.dtype != wanted.dtype:
            raise ValueError(f"the weight {name} is not {wanted.dtype}")
        if weight.shape != wanted.shape:
            shapes = f"{tuple(weight.shape)}; the network's has {tuple(wanted.shape)}"
            raise ValueError(f"the weight {name} has the shape {shapes}")


def require_optimizer(saved: dict, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless a saved state fits the optimizer.

    Learning rate and momentum may differ.
    """
    require_types(saved, {"param_groups": list, "state": dict}, "optimizer.")
    groups = optimizer.state_dict()["param_groups"]
    if len(saved["param_groups"]) != len(groups):
        raise ValueError("the number of the optimizer's parameter groups has changed")
    for old, group in zip(saved["param_groups"], groups, strict=True):
        if not isinstance(old, dict) or not matches_type(old.get("lr"), float):
            raise ValueError("a parameter group of the optimizer has no learning rate")
        for key, value in group.items():  # an older PyTorch saved fewer
            same = matches_type(old.setdefault(key, value), type(value)) and old[key] == value
            if not same and key not in SET_IN_EACH_STEP:
                raise ValueError(f"the optimizer's {key} is {old[key]}; it must be {value}")
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    if unknown := saved["state"].keys() - set(range(len(weights))):
        raise ValueError(f"the optimizer has no weight {min(unknown, key=str)!r}")
    example = example_state(type(optimizer))
    for number, weight in enumerate(weights):
        state = saved["state"].get(number, {})  # empty before the first update
        if not isinstance(state, dict) or state.keys() not in (example.keys(), set()):
            raise ValueError(f"the optimizer's state of weight {number} has other fields")
        for name, value in state.items():
            wanted = weight if example[name].ndim else example[name]  # a number has no dimensions
            if not isinstance(value, Tensor) or value.shape != wanted.shape:
                raise ValueError(f"the optimizer's {name} is not of shape {tuple(wanted.shape)}")
            if value.dtype != wanted.dtype:
                raise ValueError(f"the optimizer's {name} is not {wanted.dtype}")


def example_state(optimizer_class: type[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """State that an optimizer of this class keeps for a 2-D weight."""
    weight = nn.Parameter(torch.zeros(1, 1))
    weight.grad = torch.zeros(1, 1)
    optimizer = optimizer_class([weight], lr=0.0)
    optimizer.step()
    return dict(optimizer.state[weight])
