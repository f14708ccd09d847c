"""A network with its process as a folder that diffusers loads as a pipeline.

    DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)

The folder has two files of code, copied from this project's sources (`exports.source`). They
import torch and diffusers and nothing of this project.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from checkpoints.card import model_card
from exports.hub import hub_card
from exports.network import TrainedNetwork, process_tables, require_parts
from exports.source import bundled
from models import MODELS, with_later_arguments
from samplers import AUTO
from sampling.plan import default_sampler, default_steps, require_untuned_network
from utils import check_writable, partial_of, sync_folder, write_errors

VERSION = "0.42.0"  # of diffusers, which defines the format of the folder
MODULE = "tiny_diffusion_pipeline"
PIPELINE, NETWORK = "TinyDiffusionPipeline", "TinyDiffusionNetwork"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CARD = "README.md"
OF_PROCESS = ("schedule", "timesteps", "prediction", "zero_terminal_snr", "sigma_data")
OF_PROCESS += ("clip", "clip_loss", "learn_sigma", "betas")


def require_pipeline(config: dict) -> None:
    """Raise ValueError for a network that the pipeline does not have."""
    require_untuned_network(config, "--to diffusers")
    images = [name for name, each in MODELS.items() if each.kind == "images"]
    require_parts(config, "diffusers", "the pipeline", images)


def save_pipeline(
    path: Path, network: TrainedNetwork, seconds: float = 0.0, report: dict | None = None
) -> None:
    """Write the folder of a network. Files in it that have other names stay.

    `seconds` of training and `report`, a metrics.json of evaluate.py, are for the model card.
    Raises ValueError for a report of other weights, and as `save_folder` does.
    """
    card = readme(network, seconds, report)
    save_folder(path, {CARD: card.encode(errors="replace"), **pipeline_files(network)})


def pipeline_files(network: TrainedNetwork) -> dict[str, bytes]:
    """The content of the files that diffusers reads, by their names."""
    config, model = network.config, network.model
    classes = config["data"]["classes"] if config["model"].get("num_classes") else []
    module = f"tiny_diffusion_{config['model']['name']}"  # diffusers keeps modules by their names
    index = {
        "_class_name": [MODULE, PIPELINE],
        "_diffusers_version": VERSION,
        "classes": classes,
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "unet": [module, NETWORK],
    }
    arguments = with_later_arguments(config["model"])
    del arguments["name"]
    process = {key: config["diffusion"][key] for key in OF_PROCESS if key in config["diffusion"]}
    defaults = {"schedule": "cosine", "timesteps": 1000, "prediction": "eps", "clip": True}
    described = {"_class_name": NETWORK, "_diffusers_version": VERSION, "arguments": arguments}
    tensors = {f"network.{name}": w.contiguous() for name, w in model.state_dict().items()}
    return {
        "scheduler/scheduler_config.json": as_json(scheduler_config(network)),
        f"unet/{module}.py": network_source(type(model)).encode(),
        "unet/config.json": as_json({**described, **defaults, **process}),
        WEIGHTS: save(tensors, {"format": "pt"}),
        f"{MODULE}.py": bundled("exports.diffusers_pipeline").encode(),
        "model_index.json": as_json(index),
    }


def as_json(content: dict) -> bytes:
    """A file of JSON."""
    return (json.dumps(content, indent=2) + "\n").encode()


def network_source(network: type) -> str:
    """The code of a network, as a model of diffusers."""
    own = (network.__module__, network.__name__)
    return bundled("exports.diffusers_network", {("models.unet", "UNet"): own})


def scheduler_config(network: TrainedNetwork) -> dict:
    """The configuration of a process and its sampler, SDE-DPM-Solver++(2M).

    This sampler is the default of sample.py. Other schedulers of diffusers take the same
    configuration. The solver of order 1, which is DDIM, is used in two cases: for a process that
    ends in pure noise, because the solvers of order 2 in diffusers use the slope of the first step,
    which is infinite there; and for a tuned network, which samples in few steps and adds no noise.
    """
    betas = variance_preserving_betas(network)
    config = {
        "_class_name": "DPMSolverMultistepScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "prediction_type": "v_prediction",
        "algorithm_type": "sde-dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
        "timestep_spacing": "trailing",
        "clip_sample": False,  # the pipeline clips
        "set_alpha_to_one": True,
    }
    if betas[-1] == 1 or default_sampler(network.config) != AUTO:
        config |= {"algorithm_type": "dpmsolver++", "solver_order": 1}
    if betas[-1] == 1:
        # the betas stay; the solver divides by 2^-12, not 0
        config["rescale_betas_zero_snr"] = True
    return config


def variance_preserving_betas(network: TrainedNetwork) -> Tensor:
    """Betas (T,), float64, of x_t / sqrt(alpha^2 + sigma^2), which has unit variance."""
    tables = process_tables(network)
    alpha, sigma = (torch.tensor(tables[name], dtype=torch.float64) for name in ("alpha", "sigma"))
    alphas_cumprod = alpha**2 / (alpha**2 + sigma**2)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return 1 - alphas_cumprod / before


def readme(network: TrainedNetwork, seconds: float, report: dict | None) -> str:
    """The model card of the folder, with the figures of a report of evaluate.py if there is one."""
    config, step, which, model, _ = network
    name = config["data"]["dataset"]
    weights = (which, model.state_dict())
    text = model_card(name, usage(config), config, step, seconds, weights, report)
    return hub_card(text, config)


def usage(config: dict) -> str:
    """Python code that draws images with the folder."""
    labels = "class_labels=0, guidance_scale=1.3, " if config["model"].get("num_classes") else ""
    steps = min(default_steps(config, 50), config["diffusion"].get("timesteps", 1000))
    return f"""from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)
image = pipeline({labels}num_inference_steps={steps}, seed=0).images[0]"""


# --- folders that are written whole ---------------------------------------------------------------


def check_folder(path: Path, *read: str | Path | None) -> None:
    """Raise ValueError if a folder cannot be written, or has one of the files that are `read`."""
    check_writable(path)
    for each in filter(None, read):
        if path.exists() and path.resolve() in [
            Path(each).resolve(),
            *Path(each).resolve().parents,
        ]:
            raise ValueError(f"cannot write to {path}: {each} in it is also read")


def require_no_obstacle(path: Path, names: list[str]) -> None:
    """Raise ValueError if a folder contains files or folders in the places of these files."""
    for name in [".", *names]:
        target = path / name
        folders = {path / parent for parent in Path(name).parents} | {path}
        if target not in folders and target.is_dir():
            raise ValueError(f"cannot write {target}: it is a folder")
        for folder in sorted(folders):
            if os.path.lexists(folder) and not folder.is_dir():
                raise ValueError(f"cannot write to {folder}: it is a file, not a folder")


def save_folder(path: Path, files: dict[str, bytes]) -> None:
    """Write a folder of files, by their names, whole or not at all.

    It is written under another name and renamed. Files of other names that the old folder has are
    moved to the new one. A process that is killed between the two renames, or while files are
    moved, leaves the rest of the old folder under the name .NAME.PID.old.

    Raises WriteError if the folder cannot be written, and ValueError if something is in its way.
    """
    require_no_obstacle(path, list(files))
    real = Path(os.path.realpath(path))
    real.parent.mkdir(parents=True, exist_ok=True)
    partial, old = partial_of(real), real.with_name(f".{real.name}.{os.getpid()}.old")
    with write_errors(path):
        try:
            for name, content in files.items():
                write_synced(partial / name, content)
            if real.exists():
                os.rename(real, old)
            os.rename(partial, real)
        except BaseException:  # Ctrl-C too
            if old.exists():
                if real.exists():
                    os.rename(real, partial)
                os.rename(old, real)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(real.parent)
        if old.exists():
            move_others(old, real, files)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file, and wait until it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def move_others(old: Path, new: Path, files: dict[str, bytes]) -> None:
    """Move everything except some files from a folder to another, and delete the old folder."""
    for place, folders, names in os.walk(old):
        inside = Path(place).relative_to(old)
        for name in [*names, *(f for f in folders if (Path(place) / f).is_symlink())]:
            if (inside / name).as_posix() not in files:
                (new / inside).mkdir(parents=True, exist_ok=True)
                os.rename(Path(place) / name, new / inside / name)
        for name in folders:
            if not (Path(place) / name).is_symlink():
                (new / inside / name).mkdir(exist_ok=True)  # an empty one stays, too
    shutil.rmtree(old)
