"""Networks of the library diffusers, from their folders: `export.py --from diffusers DIR`.

A folder holds a U-Net (`UNet2DModel`) as `unet/config.json` and its weights as safetensors, and a
process as `scheduler/scheduler_config.json`, or these files themselves. The JSON is read as data
and the weights as tensors: no code of the folder is run, and the library is not needed.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from checkpoints.consistency import UNKNOWN, require_config, require_weights
from checkpoints.weights import MAX_HEADER, WEIGHTS_FORMAT
from cli.training import RunConfig
from dataset.items import kind_of
from dataset.registry import DATASETS
from diffusion import GaussianDiffusion
from models import build_model, model_config
from schedules import MAX_TIMESTEPS, beta_ends
from training.config import train_config
from utils import matches_type, sides, size_of, size_text

MAX_CONFIG = 2**20  # bytes of a file of JSON
WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
NETWORK = "UNet2DModel"
DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}  # with attention?
UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}

# Fields of config.json that the U-Net here has an argument for: their defaults and types.
FIELDS: dict[str, tuple[object, object]] = {
    "sample_size": (None, int | list[int] | None),
    "in_channels": (3, int),
    "out_channels": (3, int),
    "center_input_sample": (False, bool),
    "time_embedding_dim": (None, int | None),
    "freq_shift": (0, float),
    "flip_sin_to_cos": (True, bool),
    "down_block_types": (["DownBlock2D", *["AttnDownBlock2D"] * 3], list[str]),
    "up_block_types": ([*["AttnUpBlock2D"] * 3, "UpBlock2D"], list[str]),
    "block_out_channels": ([224, 448, 672, 896], list[int]),
    "layers_per_block": (2, int),
    "downsample_padding": (1, int),
    "dropout": (0.0, float),
    "act_fn": ("silu", str),
    "attention_head_dim": (8, int | None),
    "norm_num_groups": (32, int),
    "norm_eps": (1e-5, float),
    "resnet_time_scale_shift": ("default", str),
    "add_attention": (True, bool),
    "num_class_embeds": (None, int | None),
}
# Fields of config.json with few supported values; the first is the default.
SUPPORTED: dict[str, tuple] = {
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "attn_norm_num_groups": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}
UNUSED = {"num_train_timesteps"}  # used only by learned time embeddings
SCHEDULER_FIELDS: dict[str, tuple[object, object]] = {
    "num_train_timesteps": (1000, int),
    "beta_start": (1e-4, float),
    "beta_end": (0.02, float),
    "beta_schedule": ("linear", str),
    "trained_betas": (None, list[float] | None),
    "prediction_type": ("epsilon", str),
    "clip_sample": (True, bool),
    "variance_type": ("fixed_small", str),
    "rescale_betas_zero_snr": (False, bool),
}
SCHEDULER_SUPPORTED: dict[str, tuple] = {"clip_sample_range": (1.0,), "thresholding": (False,)}


def read_pipeline(folder: Path, dataset: str | None) -> tuple[dict, str]:
    """The checkpoint of a folder, and notes for the user.

    Args:
        folder: of a pipeline, or of only a network.
        dataset: a key of `DATASETS`: what the network has learned, or None if that is unknown.

    Raises ValueError for a folder that lacks a file, holds another network, or has an option that
    is not supported.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of diffusers")
    notes = []
    require_pipeline_of_unet(folder)
    place = folder / "unet" if (folder / "unet").is_dir() else folder
    described = read_json(place / "config.json")
    require_class(place / "config.json", described, (NETWORK,))
    options = fields_of(place / "config.json", described, FIELDS, SUPPORTED, strict=True)
    scheduler = find_scheduler(folder, place)
    process_options = {name: default for name, (default, _) in SCHEDULER_FIELDS.items()}
    if scheduler is None:
        notes.append("no scheduler_config.json: the process is DDPM's (linear, 1000 timesteps)")
    else:
        content = read_json(scheduler)
        require_class(scheduler, content, SCHEDULERS)
        process_options = fields_of(scheduler, content, SCHEDULER_FIELDS, SCHEDULER_SUPPORTED)
    learn_sigma = learns_variance(place / "config.json", options, process_options)
    process = process_of(scheduler or folder, process_options) | {"learn_sigma": learn_sigma}
    model = network_config(place / "config.json", options, learn_sigma)
    weights = read_weights(place, model)
    classes = class_names(model["num_classes"] or 0, dataset)
    if classes:
        notes.append("the network has no row for 'any class': it is the mean of those of all")
    notes += notes_on_items(model, dataset)
    data = {"dataset": dataset or UNKNOWN, "data_dir": "data", "count": 0, "classes": classes}
    data |= {key: model[key] for key in ("image_size", "image_channels")}
    train = train_config(replace(RunConfig(), batch_size=128, validation=0, **conditional(classes)))
    config = {"data": data, "model": model, "diffusion": process, "train": train}
    require_config(config)
    content = {"format": WEIGHTS_FORMAT, "step": 0, "seconds": 0.0, "config": config}
    return {**content, "ema": weights}, "\n".join(notes)


def class_names(count: int, dataset: str | None) -> list[str]:
    """The names of a network's classes: those of its data set, or else their numbers.

    Raises ValueError for a data set with another number of classes.
    """
    known = DATASETS[dataset].classes if dataset and count else None
    if known is None:
        return [str(number) for number in range(count)]
    if len(known) != count:
        raise ValueError(f"--dataset {dataset}: it has {len(known)} classes, the network {count}")
    return list(known)


def notes_on_items(model: dict, dataset: str | None) -> list[str]:
    """Notes on a data set with images of another size than the network draws.

    Raises ValueError for a data set of points, or with another number of channels.
    """
    if dataset in (None, "folder"):
        return []
    shape, channels, size = DATASETS[dataset].shape, model["image_channels"], model["image_size"]
    if kind_of(shape) != "images" or shape[0] != channels:
        raise ValueError(f"--dataset {dataset}: its items do not have the {channels} channels here")
    if shape[1:] == sides(size):
        return []
    own = size_text(size_of(*shape[1:]))
    return [
        f"the network draws images of {size_text(size)} pixels, {dataset} has {own}: evaluate.py "
        "resizes those of the data set"
    ]


def conditional(classes: list[str]) -> dict[str, bool]:
    """The flags that say what the network is conditioned on."""
    return {"class_conditional": bool(classes), "text_conditional": False}


def require_pipeline_of_unet(folder: Path) -> None:
    """Raise ValueError if a folder's model_index.json, where it has one, is of another pipeline."""
    path = folder / "model_index.json"
    if not path.exists():
        return
    index = read_json(path)
    require_class(path, index, PIPELINES)
    for name, allowed in (("unet", (NETWORK,)), ("scheduler", SCHEDULERS)):
        if (found := index.get(name)) not in [["diffusers", each] for each in allowed]:
            raise ValueError(
                f"{path}: its {name} is {found!r}; {' or '.join(allowed)} is supported"
            )


def find_scheduler(folder: Path, place: Path) -> Path | None:
    """The file of the process, in the folder or next to the network's; None if there is none."""
    places = [folder / "scheduler", folder, place.parent / "scheduler"]
    files = [each / "scheduler_config.json" for each in places]
    return next((file for file in files if file.is_file()), None)


def read_json(path: Path) -> dict:
    """The dict in a file of JSON. Raises ValueError for any other file."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError(
                f"{path} is larger than a configuration: {path.stat().st_size:,} bytes"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: this is not a folder of {NETWORK}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a configuration of diffusers")
    return content


def require_class(path: Path, content: dict, allowed: tuple[str, ...]) -> None:
    """Raise ValueError for the configuration of another class."""
    found = content.get("_class_name")
    if found not in allowed:
        raise ValueError(f"{path} is of {str(found)[:80]}; {' or '.join(allowed)} is supported")


def fields_of(
    path: Path,
    content: dict,
    fields: dict[str, tuple[object, object]],
    supported: dict[str, tuple],
    *,
    strict: bool = False,
) -> dict:
    """The fields of a configuration, with defaults. Raises ValueError for unsupported values.

    With `strict`, unknown fields are refused too.
    """
    for name, values in supported.items():
        if content.get(name, values[0]) not in values:
            known = " or ".join(map(str, values))
            raise ValueError(
                f"{path}: {name} {str(content[name])[:80]} is not supported; {known} is"
            )
    unknown = content.keys() - fields.keys() - supported.keys() - UNUSED
    if strict and (unknown := sorted(name for name in unknown if not name.startswith("_"))):
        raise ValueError(f"{path}: the field {unknown[0][:80]} is not known")
    found = {name: content.get(name, default) for name, (default, _) in fields.items()}
    for name, value in found.items():
        if not matches_type(value, fields[name][1]):
            raise ValueError(f"{path}: {name} cannot be {str(value)[:80]}")
    return found


def learns_variance(path: Path, options: dict, process: dict) -> bool:
    """Does the network have a second half of channels? Raises ValueError for other numbers."""
    learned = process["variance_type"] in ("learned", "learned_range")
    if process["variance_type"] == "learned":
        raise ValueError(f"{path}: variance_type learned is not supported; learned_range is")
    if options["out_channels"] != options["in_channels"] * (2 if learned else 1):
        raise ValueError(
            f"{path}: {options['in_channels']} in_channels and {options['out_channels']} "
            f"out_channels are not supported with variance_type {process['variance_type']}"
        )
    return learned


def network_config(path: Path, options: dict, learn_sigma: bool) -> dict:
    """The configuration of a network of models/unet2d.py. Raises ValueError if there is none."""
    down, up, widths = (
        options[name] for name in ("down_block_types", "up_block_types", "block_out_channels")
    )
    for blocks, known in ((down, DOWN), (up, UP)):
        if unknown := [each for each in blocks if each not in known]:
            raise ValueError(
                f"{path}: the block {unknown[0][:80]} is not supported; {' and '.join(known)} are"
            )
    if not 1 <= len(widths) == len(down) == len(up) or min(widths) < 1:
        raise ValueError(f"{path}: the lists of blocks and of their channels do not fit together")
    size = options["sample_size"]
    if size is None or (isinstance(size, list) and len(size) != 2):
        raise ValueError(f"{path}: sample_size is {size}; write the images' side in pixels there")
    size = size if isinstance(size, int) else size_of(*size)
    largest = size if isinstance(size, int) else max(size)
    smallest = 2 ** (len(widths) - 1)
    if any(side < 1 or side % smallest for side in ([size] if isinstance(size, int) else size)):
        raise ValueError(f"{path}: sample_size {size} is not a multiple of {smallest}")
    sizes = [largest // 2**level for level in range(len(widths))]
    of_down = [s for s, name in zip(sizes, down, strict=True) if DOWN[name]]
    of_up = [s for s, name in zip(reversed(sizes), up, strict=True) if UP[name]]
    channels = math.gcd(*widths)
    shape = {"image_size": size, "image_channels": options["in_channels"]}
    return model_config(
        "unet2d",
        shape,
        0,
        {
            "channels": channels,
            "multipliers": [width // channels for width in widths],
            "blocks": options["layers_per_block"],
            "attention_resolutions": of_down,
            "up_attention_resolutions": None if sorted(of_up) == sorted(of_down) else of_up,
            "dropout": options["dropout"],
            "num_classes": options["num_class_embeds"],
            "learn_sigma": learn_sigma,
            "middle_attention": options["add_attention"],
            "head_dim": options["attention_head_dim"],
            "norm_groups": options["norm_num_groups"],
            "norm_eps": options["norm_eps"],
            "activation": options["act_fn"],
            "scale_shift": options["resnet_time_scale_shift"] == "scale_shift",
            "time_width": options["time_embedding_dim"],
            "flip_sin_to_cos": options["flip_sin_to_cos"],
            "freq_shift": options["freq_shift"],
            "downsample_padding": options["downsample_padding"],
            "center_input": options["center_input_sample"],
        },
    )


# --- the process ----------------------------------------------------------------------------------

# Betas by their name in diffusers: (start, end, T) -> (T,), float64.
BETAS: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": lambda start, end, count: torch.linspace(start, end, count, dtype=torch.float64),
    "scaled_linear": lambda start, end, count: (
        torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    ),
    "sigmoid": lambda start, end, count: (
        start + (end - start) * torch.linspace(-6, 6, count, dtype=torch.float64).sigmoid()
    ),
}
OWN = {"linear": "linear", "scaled_linear": "quadratic"}  # diffusers' name: key of SCHEDULES


def process_of(path: Path, options: dict) -> dict:
    """The arguments of `GaussianDiffusion` for a scheduler. Raises ValueError if none fit."""
    name, count = options["beta_schedule"], options["num_train_timesteps"]
    betas = options["trained_betas"]
    if options["prediction_type"] not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        raise ValueError(
            f"{path}: prediction_type {options['prediction_type'][:80]} is not supported; "
            f"{known} are"
        )
    schedule = "linear"
    if betas is None and name == "squaredcos_cap_v2":
        schedule = "cosine"
    elif betas is None and name not in BETAS:
        known = ", ".join([*BETAS, "squaredcos_cap_v2"])
        raise ValueError(f"{path}: beta_schedule {name[:80]} is not supported; {known} are")
    elif betas is None:
        ends = options["beta_start"], options["beta_end"]
        if not 0 < ends[0] <= ends[1] < 1 or not 2 <= count <= MAX_TIMESTEPS:
            raise ValueError(f"{path}: betas from {ends[0]} to {ends[1]} in {count} steps")
        if name in OWN and count > 20 and ends == beta_ends(count):
            schedule = OWN[name]
        else:
            betas = BETAS[name](*ends, count).tolist()
    process = {
        "schedule": schedule,
        "timesteps": count,
        "prediction": PREDICTION_TYPES[options["prediction_type"]],
        "clip": options["clip_sample"],
        "zero_terminal_snr": options["rescale_betas_zero_snr"],
        "sigma_data": 1.0,
        "loss_weight": "uniform",
        "clip_loss": False,
        "betas": betas,
    }
    try:
        GaussianDiffusion(**process)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return process


# --- the weights ----------------------------------------------------------------------------------

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_weights(place: Path, model: dict) -> dict[str, Tensor]:
    """The weights of a network, in float32. Raises ValueError if they do not fit `model`."""
    path = place / WEIGHTS
    if not path.is_file():
        raise ValueError(missing_weights(place))
    with torch.device("meta"):
        network = build_model(model)
    with open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") > MAX_HEADER:
            raise ValueError(f"{path} is damaged: its header is too long")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            require_sizes(path, shapes, network)
            tensors = {current_name(name): file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged or is not a safetensors file: {error}") from None
    if wrong := [name for name, tensor in tensors.items() if tensor.dtype not in NUMBERS]:
        raise ValueError(f"{path}: the weight {wrong[0]} is {tensors[wrong[0]].dtype}")
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    if (table := weights.get("class_embedding.weight")) is not None:
        weights["class_embedding.weight"] = torch.cat([table, table.mean(dim=0, keepdim=True)])
    try:
        require_weights(weights, network)
    except ValueError as error:
        raise ValueError(f"{path} does not fit config.json: {error}") from None
    return weights


def require_sizes(path: Path, shapes: dict[str, list[int]], network: torch.nn.Module) -> None:
    """Raise ValueError for weights that together are larger than those of the network."""
    total = sum(math.prod(shape) for shape in shapes.values())
    if total > sum(p.numel() for p in network.parameters()):
        raise ValueError(f"{path} does not fit config.json: it has {total:,} numbers")


def current_name(name: str) -> str:
    """The current name of a weight; files from before 2023 have other names for attention."""
    place, _, rest = name.rpartition(".")
    parent, _, layer = place.rpartition(".")
    return f"{parent}.{OLD_NAMES[layer]}.{rest}" if layer in OLD_NAMES else name


def missing_weights(place: Path) -> str:
    """A message: why a folder has no weights that can be read, and what to do."""
    if (place / f"{WEIGHTS}.index.json").exists():
        return f"{place}: its weights are in several files; save them in one (max_shard_size)"
    variants = sorted(place.glob("diffusion_pytorch_model.*.safetensors"))
    if variants:
        return f"{place}: rename {variants[0].name} to {WEIGHTS}"
    if sorted(place.glob("*.bin")):
        return (
            f"{place}: its weights are pickled (.bin), which could run code. In a safe place, "
            f'{NETWORK}.from_pretrained("{place}").save_pretrained("NEW") saves {WEIGHTS}'
        )
    return f"there is no {place / WEIGHTS}"
