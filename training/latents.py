"""Latent diffusion: the autoencoder of a new run, and the data encoded by it."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from checkpoints.checkpoint import load_checkpoint, restore
from checkpoints.weights import weights_sha256
from dataset.items import item_shape, to_unit
from dataset.pixel_cache import CACHE_DIR
from dataset.types import Data
from distributed import main_first
from models import AUTOENCODERS
from models.latents import BATCH_SIZE
from training.trainer import Trainer
from utils import autocast, memory_format, save_whole

PREFIX = "latent_space.autoencoder."  # of its weights' names in a network of latents


def load_autoencoder(path: str, data: Data) -> dict:
    """The checkpoint of --latents. Raises ValueError unless it is an autoencoder of such data."""
    checkpoint = load_checkpoint(path)
    config = checkpoint["config"]
    if (name := config["model"]["name"]) not in AUTOENCODERS:
        raise ValueError(
            f"--latents {path} is a {name}; train.py --model autoencoder trains what is needed"
        )
    shapes = item_shape(config["data"]), tuple(data.items.shape[1:])
    if shapes[0] != shapes[1]:
        of, here = (" x ".join(map(str, shape)) for shape in shapes)
        raise ValueError(f"--latents {path} is for images of {of}, and these are of {here}")
    config["model"]["discriminator"] = False  # not needed to encode and decode
    for which in {"model", "ema"} & checkpoint.keys():
        checkpoint[which] = {
            name: weight
            for name, weight in checkpoint[which].items()
            if not name.startswith("discriminator.")
        }
    return checkpoint


def autoencoder_of(path: str | None, data: Data, resumed: dict | None) -> dict | None:
    """The checkpoint of --latents for a new run; None for a run on pixels, or a resumed run.

    A resumed run has its autoencoder in its own checkpoint, `resumed`. Raises ValueError if this is
    not the autoencoder of --latents.
    """
    if path is None:
        return None
    checkpoint = load_autoencoder(path, data)
    if resumed is None:
        return checkpoint
    if resumed["config"]["model"].get("autoencoder") is None:
        raise ValueError("--latents: the run that is resumed learns pixels")
    own = resumed["ema"]
    weights = {f"{PREFIX}{name}": w for name, w in restore(checkpoint)[0].state_dict().items()}
    same = (name in own and torch.equal(own[name], weight) for name, weight in weights.items())
    if not all(same):
        raise ValueError(f"--latents {path} is another autoencoder than that of the run")
    return None


def use_autoencoder(trainer: Trainer, checkpoint: dict) -> None:
    """Give the networks of a new run the averaged weights of an autoencoder."""
    weights = restore(checkpoint)[0].state_dict()
    for network in (trainer.model, trainer.ema.module):
        network.latent_space.autoencoder.load_state_dict(weights)


def encoded(
    trainer: Trainer,
    items: Tensor,
    data: dict,
    progress: Callable[..., Iterable],
    *,
    measure: bool,
) -> Tensor:
    """The scaled latents, float16 (N, c, h, w), of uint8 images (N, C, H, W), on the CPU.

    The unscaled latents are stored in a file next to the data, for the next session or run.

    Args:
        trainer: of a network of latents.
        items: the images.
        data: their `config["data"]`.
        progress: maps an iterable to one that shows its progress.
        measure: set the scale of latents by these images; otherwise that of the checkpoint is used.
    """
    space = trainer.model.latent_space
    if measure:
        space.mean.zero_()
        space.std.fill_(1)
    with main_first():  # the others read the file
        latents = stored_latents(trainer, items, data, progress)
    parts = latents.split(BATCH_SIZE)
    if measure:
        space.measure(parts)
        averaged = trainer.ema.module.latent_space
        averaged.mean.copy_(space.mean)
        averaged.std.copy_(space.std)
    mean, std = space.mean.cpu(), space.std.cpu()
    return torch.cat([((part.float() - mean) / std).half() for part in parts])


def stored_latents(
    trainer: Trainer, items: Tensor, data: dict, progress: Callable[..., Iterable]
) -> Tensor:
    """The unscaled latents of images, float16 (N, c, h, w), read from a file or computed."""
    autoencoder = trainer.model.latent_space.autoencoder
    weights = {name: weight.cpu() for name, weight in autoencoder.state_dict().items()}
    made_by = {} if trainer.precision == "fp32" else {"precision": trainer.precision}
    key = hashlib.blake2b(weights_sha256(made_by, weights).encode(), digest_size=8)
    for part in items.split(4096):
        key.update(part.contiguous().numpy())
    folder = Path(data.get("cache_dir") or Path(data["data_dir"]) / CACHE_DIR)
    path = folder / f"latents_{key.hexdigest()}.safetensors"
    with suppress(OSError, SafetensorError, KeyError):
        found = load_file(path)["latents"]
        if len(found) == len(items):
            return found
    latents = encode_all(trainer, items, progress)
    with suppress(OSError):  # a folder that cannot be written: they are computed each time
        path.parent.mkdir(parents=True, exist_ok=True)
        save_whole(path, lambda partial: partial.write_bytes(save({"latents": latents})))
    return latents


@torch.no_grad()
def encode_all(trainer: Trainer, items: Tensor, progress: Callable[..., Iterable]) -> Tensor:
    """The unscaled latents of images, float16 (N, c, h, w)."""
    autoencoder, device, parts = trainer.model.latent_space.autoencoder, trainer.device, []
    batches = items.split(BATCH_SIZE)
    for batch in progress(batches, desc="encoding the images", total=len(batches)):
        x_0 = to_unit(batch.to(device, memory_format=memory_format(device)))
        with autocast(device, trainer.precision):
            parts.append(autoencoder.encode(x_0).half().cpu().contiguous())
    return torch.cat(parts)
