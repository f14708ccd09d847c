"""A network and its process as a program of torch.export, a .pt2 file.

`torch.export.load(path).module()` runs the network without the sources of this project. The file
also holds the configuration, with which `sample.py` reads the weights and ignores the program.
"""

import copy
import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from checkpoints.programs import DESCRIPTION, NETWORK
from checkpoints.weights import metadata_of
from conditions import NULL_LABEL, PADDING, Condition
from dataset.items import item_shape
from exports.network import TrainedNetwork, process_tables, require_parts
from models import MODELS
from utils import save_whole


class PositionalNetwork(nn.Module):
    """A network as a function of tensors only: x_t, t, and the fields of its condition.

    Args:
        network: maps (x_t, t, condition) to a prediction.
        conditions: names of the fields of its condition, in the order of the arguments.
    """

    def __init__(self, network: nn.Module, conditions: list[str]):
        super().__init__()
        setattr(self, NETWORK, network)
        self.conditions = conditions

    def forward(self, x_t: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        condition = Condition(**dict(zip(self.conditions, conditions, strict=True)))
        return getattr(self, NETWORK)(x_t, t, condition)


def require_program(config: dict, form: str = "pt2", reader: str = "the program") -> None:
    """Raise ValueError for a network with other inputs than x_t, t, classes and tokens."""
    require_parts(config, form, reader, MODELS, captions=True)


def condition_names(config: dict) -> list[str]:
    """The names of the condition's fields that a network uses."""
    model = config["model"]
    known = {"label": model.get("num_classes"), "tokens": model.get("caption_length")}
    return [name for name, value in known.items() if value]


def example_inputs(network: TrainedNetwork, count: int) -> tuple[Tensor, ...]:
    """Inputs of a batch, with different timesteps and conditions, including null conditions."""
    config, generator = network.config, torch.Generator().manual_seed(0)
    x_t = torch.randn(count, *item_shape(config["model"]), generator=generator)
    t = torch.arange(count) * (network.diffusion.timesteps - 1) // max(1, count - 1)
    model, found = config["model"], []
    if classes := model.get("num_classes"):
        found.append(torch.arange(count) % (classes + 1) + NULL_LABEL)
    if length := model.get("caption_length"):
        tokens = torch.randint(1, model["vocabulary_size"], (count, length), generator=generator)
        tokens[:, length // 2 :] = PADDING
        tokens[0] = PADDING
        found.append(tokens)
    return x_t, t, *found


def exported_program(network: TrainedNetwork) -> torch.export.ExportedProgram:
    """The network as a program for batches of any size."""
    own = copy.deepcopy(network.model).to(memory_format=torch.contiguous_format).eval()
    positional = PositionalNetwork(own, condition_names(network.config))
    inputs, batch = example_inputs(network, 2), {0: torch.export.Dim("batch", min=1)}
    shapes = (batch, batch, *([(batch,) * len(inputs[2:])] if inputs[2:] else []))
    with torch.no_grad():
        return torch.export.export(positional, inputs, dynamic_shapes=shapes)


def description(network: TrainedNetwork) -> dict:
    """The description that a client needs to sample with the network, as values of JSON."""
    config, step, _, _, diffusion = network
    conditions = condition_names(config)
    return {
        "format": 1,
        "dataset": config["data"]["dataset"],
        "step": step,
        "shape": list(item_shape(config["model"])),
        "inputs": ["x_t", "t", *conditions],
        **process_tables(network),
        "learn_sigma": diffusion.learn_sigma,
        "classes": config["data"]["classes"] if "label" in conditions else [],
        "null_label": NULL_LABEL,
        "caption_length": config["model"].get("caption_length"),
        "words": config["data"].get("words") if "tokens" in conditions else None,
        "tune": config["train"].get("tune"),
        "steps": config["train"].get("student_steps"),
    }


def save_program(path: Path, network: TrainedNetwork) -> None:
    """Write a network as a program, with its configuration and description."""
    config, step, which, model, _ = network
    program, file = exported_program(network), io.BytesIO()
    metadata = metadata_of(config, step, which, model.state_dict())
    text = json.dumps(metadata | {"sampling": description(network)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of views; the weights are no views
        torch.export.save(program, file, extra_files={DESCRIPTION: text})
    save_whole(path, lambda partial: partial.write_bytes(file.getbuffer()))
