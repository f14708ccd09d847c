"""A U-Net with its process as one HTML file that draws in a browser, from the sources in web/."""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
from jinja2 import StrictUndefined, Template  # torch depends on it
from torch import nn

from exports.network import TrainedNetwork, require_plain_unet
from utils import MARK, save_whole, size_text

SOURCES = Path(__file__).resolve().parent.parent / "web"
SAMPLERS = ("dpmpp_2m_sde", "dpmpp_2m", "ddim", "ddpm")  # of web/samplers.js, for denoisers
STEPS, GUIDANCE = 20, 1.3  # that the page begins with


def require_page(config: dict) -> None:
    """Raise ValueError for a network that the page does not have."""
    require_plain_unet(config, "web", "the page")


def save_page(path: Path, network: TrainedNetwork) -> int:
    """Write the page of a U-Net. Returns its size in bytes."""
    config, step, _, model, diffusion = network
    data = config["data"]
    tuned = config["train"].get("tune")
    halves, index = half_weights(model)
    content = halves.tobytes()
    levels = diffusion.levels()[-2::-1]  # t = 0 ... T-1
    height, width = size_of_images(model)
    classes = data["classes"] if config["model"].get("num_classes") else []
    network = {name: config["model"].get(name) for name in ("multipliers", "blocks", "efficient")}
    network |= {"num_classes": len(classes), "patch_size": model.patch_size}
    described = {
        "model": network,
        "process": {
            "alpha": [level.alpha for level in levels],
            "sigma": [level.sigma for level in levels],
            "prediction": config["diffusion"].get("prediction", "eps"),
            "clip": diffusion.clip,
            "clip_loss": diffusion.clip_loss,
            "sigma_data": diffusion.sigma_data,
        },
        "shape": {"channels": model.image_channels, "height": height, "width": width},
        "classes": classes,
        "samplers": samplers_of(tuned),
        "steps": config["train"].get("student_steps") or (2 if tuned == "consistency" else STEPS),
        "fixed_steps": tuned == "distill",  # it draws in no other number
        "guided": bool(classes) and tuned not in ("consistency", "distill"),
        "guidance": 1.0 if tuned or not classes else GUIDANCE,
        "index": index,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    parameters = sum(p.numel() for p in model.parameters())
    name = data["dataset"]
    text = rendered(
        title=f"Tiny Diffusion: {name}",
        summary=f"A network of {parameters:,} parameters that has learned {name} "
        f"({size_text(data['image_size'])} pixels) in {step:,} training steps.",
        model=embedded(json.dumps(described)),
        weights=base64.b64encode(content).decode(),
        timesteps=len(levels),
    )
    written = text.encode(errors="replace")  # names of classes may not be UTF-8
    save_whole(path, lambda partial: partial.write_bytes(written))
    return len(written)


def samplers_of(tuned: str | None) -> list[str]:
    """The samplers that a network can be drawn with."""
    return {"consistency": ["consistency"], "distill": ["ddim"]}.get(tuned, list(SAMPLERS))


def size_of_images(model: nn.Module) -> tuple[int, int]:
    """Height and width of the images of a network."""
    size = model.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def half_weights(model: nn.Module) -> tuple[np.ndarray, dict[str, list[int]]]:
    """The weights as 16-bit floats in one array, and where each begins, with its length."""
    parts, index, first = [], {}, 0
    for name, weight in model.state_dict().items():
        values = weight.float().flatten().numpy().astype("<f2")
        index[name] = [first, len(values)]
        parts.append(values)
        first += len(values)
    return np.concatenate(parts), index


def source(name: str) -> str:
    """A file of web/."""
    return (SOURCES / name).read_text(encoding="utf-8")


def embedded(text: str) -> str:
    """JSON that cannot end the element of the page that holds it."""
    return text.replace("<", "\\u003c")


def rendered(**content: object) -> str:
    """The page with its sources and its content filled in."""
    engine = "\n".join(map(source, ("random.js", "network.js", "samplers.js", "worker.js")))
    page = {"style": source("style.css"), "random": source("random.js"), "page": source("page.js")}
    template = Template(source("page.html"), undefined=StrictUndefined)
    return template.render(generator=MARK, engine=engine, **page, **content)
