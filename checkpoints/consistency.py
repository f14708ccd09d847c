"""What a checkpoint must be, whoever wrote it: values of their kinds that do not contradict each
other.

Each function raises a ValueError that says what is wrong.
"""

import inspect
import json
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dataset.items import kind_of
from dataset.registry import DATASETS
from diffusion import GaussianDiffusion
from models import MODELS
from utils import fits, pick

RECORD = {"step": int, "skipped": int, "seconds": float, "config": dict}


RECORD |= {"unlogged_loss": float, "unlogged_updates": int}


CHECKPOINT = {**RECORD, "model": dict, "ema": dict, "optimizer": dict, "scaler": dict | None}


# What the scripts read of a configuration, beside the arguments of the network and the process.
CONFIG = {
    "data": {"dataset": str, "data_dir": str, "count": int, "classes": list[str]},
    "model": {"name": str},
    "diffusion": {},
    "train": {
        "label_dropout": float,
        "total_steps": int | None,
        "batch_size": int,
        "update_size": int,
        "processes": int,
    },
}


SHAPE = ("dim", "image_size", "image_channels")  # of an item, in "data" and in "model"


def require_kinds(values: dict, kinds: dict, where: str = "") -> None:
    """Raise a ValueError for a value that is not of its kind, or that is missing."""
    for name, kind in kinds.items():
        if not fits(values.get(name), kind):
            raise ValueError(f"{where}{name} cannot be {values.get(name)!r}")


def require_config(config: dict) -> None:
    """Raise a ValueError for a configuration that no run has.

    What is too large is not found here, but where the network and the process are made.
    """
    require_kinds({"config": config}, {"config": dict})
    try:
        json.dumps(config, allow_nan=False)
    except TypeError as error:  # of a tensor, say
        raise ValueError(f"config is not plain: {error}") from None
    require_kinds(config, dict.fromkeys(CONFIG.keys() | config.keys(), dict), "config.")
    for section, kinds in CONFIG.items():
        require_kinds(config[section], kinds, f"{section}.")
    data, process = config["data"], config["diffusion"]
    model = {key: value for key, value in config["model"].items() if key != "name"}
    network = pick(MODELS, config["model"]["name"], "model")
    require_arguments(network, model, "model.")
    require_arguments(GaussianDiffusion, process, "diffusion.")

    shape = {key: data[key] for key in SHAPE if key in data}
    require_kinds(shape, dict.fromkeys(shape, int), "data.")
    if shape != {key: model[key] for key in SHAPE if key in model}:
        raise ValueError("the network is for items of another shape than the data's")
    is_image = shape.keys() == {"image_size", "image_channels"}
    if not (shape["image_channels"] in (1, 3) if is_image else shape == {"dim": 2}):
        raise ValueError(f"no data has the shape {shape}")
    source = DATASETS.get(data["dataset"])  # None: of a version that has others
    if source and kind_of(source.shape) != network.kind:
        raise ValueError(f"{data['dataset']} is not for a network of {network.kind}")
    if model.get("num_classes") not in (None, len(data["classes"])):
        raise ValueError("the network has another number of classes than the data")
    if model.get("learn_sigma", False) != process.get("learn_sigma", False):
        raise ValueError("the network and the process do not agree on learn_sigma")


def require_arguments(function: Callable, arguments: dict, where: str) -> None:
    """Raise a ValueError for an argument that a function does not take, or of another kind."""
    parameters = inspect.signature(function).parameters
    if unknown := arguments.keys() - parameters.keys():
        raise ValueError(f"there is no {where}{min(unknown, key=str)}")
    require_kinds(arguments, {name: parameters[name].annotation for name in arguments}, where)


def require_weights(weights: dict, model: nn.Module) -> None:
    """Raise a ValueError for weights that are not such a network's."""
    expected = model.state_dict()
    if unfit := weights.keys() ^ expected.keys():
        whose = "is missing" if min(unfit, key=str) in expected else "is not the network's"
        raise ValueError(f"the weight {min(unfit, key=str)} {whose}")
    for name, weight in weights.items():
        wanted = expected[name]
        if not isinstance(weight, Tensor) or weight.dtype != wanted.dtype:
            raise ValueError(f"the weight {name} is not {wanted.dtype}")
        if weight.shape != wanted.shape:
            has, wants = tuple(weight.shape), tuple(wanted.shape)
            raise ValueError(f"the weight {name} is of shape {has}, and the network's of {wants}")


def require_optimizer(saved: dict, optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError for a state that is not one of such an optimizer.

    Its groups must be as the optimizer's are now, but for the learning rate; what an older PyTorch
    did not have in them is filled in.
    """
    require_kinds(saved, {"param_groups": list, "state": dict}, "an optimizer's ")
    groups = optimizer.state_dict()["param_groups"]
    if len(saved["param_groups"]) != len(groups):
        raise ValueError("an optimizer has another number of groups")
    for old, group in zip(saved["param_groups"], groups, strict=True):
        if not isinstance(old, dict) or not fits(old.get("lr"), float):
            raise ValueError("an optimizer has no learning rate")
        for key, value in group.items():
            same = fits(old.setdefault(key, value), type(value)) and old[key] == value
            if not same and key != "lr":
                raise ValueError(f"an optimizer's {key} is {old[key]}, now {value}")
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    names = state_of(type(optimizer))
    for number, weight in enumerate(weights):
        state = saved["state"].get(number, {})  # none, where no update was usable yet
        if not isinstance(state, dict) or state.keys() not in (names.keys(), set()):
            raise ValueError("an optimizer has another state of some weights")
        for name, value in state.items():
            shape = weight.shape if names[name] else ()
            if not isinstance(value, Tensor) or value.shape != shape:
                raise ValueError(f"an optimizer's {name} is not of its weight's shape")
            if value.dtype != weight.dtype:
                raise ValueError(f"an optimizer's {name} is not {weight.dtype}")


def state_of(kind: type[torch.optim.Optimizer]) -> dict[str, int]:
    """What an optimizer keeps of a weight, and of how many dimensions for one of two: all of the
    weight's, or 0 for a single number."""
    weight = nn.Parameter(torch.zeros(1, 1))
    weight.grad = torch.zeros(1, 1)
    optimizer = kind([weight], lr=0.0)
    optimizer.step()
    return {name: value.ndim for name, value in optimizer.state[weight].items()}
