"""A network with its process as one HTML file that draws in a browser, from the sources in web/.

There are two pages: one of images for the U-Net, and one of points in the plane for the MLP.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined  # torch depends on it
from torch import nn

from exports.network import TrainedNetwork, process_tables, require_parts
from sampling.plan import default_sampler, default_steps, is_few_step
from utils import MARK, save_whole, sides, size_text

SOURCES = Path(__file__).resolve().parent.parent / "web"
SAMPLERS = ("dpmpp_2m_sde", "dpmpp_2m", "ddim", "ddpm")  # of web/samplers.js, for denoisers
STEPS = 20  # sampling steps that the page starts with
PLANE = 2  # coordinates of a point that the page can show


class Page(NamedTuple):
    """The page of one kind of network.

    Attributes:
        template: the HTML, in web/.
        scripts: what the page does with its controls, in web/, in this order.
        engine: what runs in the worker, in web/, in this order.
        weights: the type of the weights in the page.
        describe: (model, configuration of it) -> "model" and "shape" of web/worker.js.
        items: configuration of the data -> what its items are, in words.
        guidance: scale that the page begins with, for networks with classes.
    """

    template: str
    scripts: tuple[str, ...]
    engine: tuple[str, ...]
    weights: str
    describe: Callable[[nn.Module, dict], tuple[dict, dict]]
    items: Callable[[dict], str]
    guidance: float


def describe_unet(model: nn.Module, config: dict) -> tuple[dict, dict]:
    """The U-Net's configuration, and the shape of its images."""
    height, width = sides(model.image_size)
    network = {name: config.get(name) for name in ("multipliers", "blocks", "efficient")}
    shape = {"channels": model.image_channels, "height": height, "width": width}
    return network | {"patch_size": model.patch_size}, shape


def describe_mlp(model: nn.Module, config: dict) -> tuple[dict, dict]:
    """The MLP's configuration, and the shape of its points."""
    network = {"channels": model.norm.normalized_shape[0], "blocks": len(model.blocks)}
    return network, {"dim": config["dim"]}


PAGES = {
    "unet": Page(
        "page.html",
        ("text.js", "page.js"),
        ("random.js", "arithmetic.js", "network.js", "text.js", "samplers.js", "worker.js"),
        "<f2",
        describe_unet,
        lambda data: f"{size_text(data['image_size'])} pixels",
        1.3,
    ),
    # 32 bits: points have no grey levels that would hide the rounding of the weights.
    "mlp": Page(
        "points.html",
        ("points.js",),
        ("random.js", "arithmetic.js", "mlp.js", "samplers.js", "worker.js")
        + ("training.js", "points_worker.js"),
        "<f4",
        describe_mlp,
        lambda data: "points in the plane",
        1.0,
    ),
}


def require_page(config: dict) -> None:
    """Raise ValueError for a network that the page does not have."""
    require_parts(config, "web", "the page", PAGES, captions=True)
    if config["model"].get("dim", PLANE) != PLANE:
        raise ValueError(
            f"its points have {config['model']['dim']} coordinates, and the page shows a plane"
        )


def save_page(path: Path, network: TrainedNetwork) -> None:
    """Write the page of a network."""
    config, step, _, model, diffusion = network
    page = PAGES[config["model"]["name"]]
    weights, index = packed_weights(model, page.weights)
    content = weights.tobytes()
    described = described_network(page, network)
    described |= {"index": index, "sha256": hashlib.sha256(content).hexdigest()}
    parameters, data = sum(p.numel() for p in model.parameters()), config["data"]
    text = rendered(
        page,
        title=f"Tiny Diffusion: {data['dataset']}",
        summary=f"A network of {parameters:,} parameters that has learned {data['dataset']} "
        f"({page.items(data)}) in {step:,} training steps.",
        model=embedded(json.dumps(described)),
        weights=base64.b64encode(content).decode(),
        timesteps=diffusion.timesteps,
    )
    written = text.encode(errors="replace")  # names of classes may not be UTF-8
    save_whole(path, lambda partial: partial.write_bytes(written))


def described_network(page: Page, network: TrainedNetwork) -> dict:
    """The network, its process and the choices that the page offers, as plain values."""
    config, _, _, model, diffusion = network
    tuned, few_steps = config["train"].get("tune"), is_few_step(config)
    classes = config["data"]["classes"] if config["model"].get("num_classes") else []
    captioned = bool(config["model"].get("caption_length"))
    has_condition = bool(classes) or captioned
    arguments, shape = page.describe(model, config["model"])
    return {
        "model": arguments | {"num_classes": len(classes)},
        "process": process_tables(network),
        "shape": shape,
        "classes": classes,
        "captions": captions_of(config) if captioned else None,
        "samplers": samplers_of(config),
        "denoisers": list(SAMPLERS),  # of a network that is trained in the page
        "steps": min(default_steps(config, STEPS), diffusion.timesteps),
        "fixed_steps": bool(config["train"].get("student_steps")),  # it draws in no other number
        "guided": has_condition and not few_steps,
        "has_score": not few_steps,
        "guidance": 1.0 if tuned or not has_condition else page.guidance,
    }


def captions_of(config: dict) -> dict:
    """The vocabulary, the maximum number of tokens of a caption, and prompts to start with."""
    data = config["data"]
    length = config["model"]["caption_length"]
    return {"words": data["words"], "length": length, "prompts": data["prompts"]}


def samplers_of(config: dict) -> list[str]:
    """The samplers that the page offers for a network, the default first.

    The page has no euler, the default after --tune reflow; ddim is the same method.
    """
    usual = default_sampler(config)
    if is_few_step(config):
        return [usual]
    usual = usual if usual in SAMPLERS else "ddim"
    return sorted(SAMPLERS, key=lambda name: name != usual)


def packed_weights(model: nn.Module, kind: str) -> tuple[np.ndarray, dict[str, list[int]]]:
    """The weights as one array of floats of a type, and the start and length of each by name."""
    parts, index, first = [], {}, 0
    for name, weight in model.state_dict().items():
        values = weight.float().flatten().numpy().astype(kind)
        index[name] = [first, len(values)]
        parts.append(values)
        first += len(values)
    return np.concatenate(parts), index


def source(name: str) -> str:
    """A file of web/."""
    return (SOURCES / name).read_text(encoding="utf-8")


def embedded(text: str) -> str:
    """JSON without "<", so that it cannot end the element of the page that holds it."""
    return text.replace("<", "\\u003c")


def rendered(page: Page, **content: object) -> str:
    """The page with its sources and its content filled in."""
    content |= {
        "style": source("style.css"),
        "engine": "\n".join(map(source, page.engine)),
        "scripts": "\n".join(map(source, ("random.js", "common.js", *page.scripts))),
    }
    templates = Environment(loader=FunctionLoader(source), undefined=StrictUndefined)
    return templates.get_template(page.template).render(generator=MARK, **content)
