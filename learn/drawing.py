"""The reward of the last exercise: the student's functions train a network and draw with it."""

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from pieces import Network, draw, linear_schedule, train
from torch import Tensor

TIMESTEPS, STEPS, DRAWING_STEPS = 1000, 4000, 50
MAX_SECONDS = 240  # of training; a slow computer trains for fewer steps
SEED, COUNT, COLUMNS = 0, 64, 16
EVERY = 10  # seconds between signs of life


def train_and_draw(picture: Path, say: Callable[[str], None]) -> str:
    """Train on digits, save a picture of 64 drawn ones, and return a line on it.

    Everything that computes is the student's. Raises what their code raises.
    """
    torch.manual_seed(SEED)
    torch.set_num_threads(threads())
    images, name = digits()
    say(f"{len(images):,} images of {name}, {images.shape[2]} x {images.shape[3]} pixels")
    network = Network()
    average = copy.deepcopy(network)
    _, alphas_cumprod = linear_schedule(TIMESTEPS)
    start, reported, losses = time.monotonic(), 0.0, []
    for step, loss in enumerate(train(network, average, images, alphas_cumprod, STEPS), 1):
        losses.append(loss)
        seconds = time.monotonic() - start
        if seconds > reported + EVERY or step == STEPS:
            mean = sum(losses) / len(losses)
            say(f"step {step} of {STEPS}, mean loss {mean:.4f}, {seconds:.0f} s")
            reported, losses = seconds, []
        if seconds > MAX_SECONDS:
            break
    drawn = draw(average, alphas_cumprod, COUNT, tuple(images.shape[1:]), DRAWING_STEPS)
    save(drawn, picture)
    return f"Your network has learned for {step} steps, and has drawn {COUNT} digits."


def threads() -> int:
    """How many threads to compute with: OMP_NUM_THREADS, or the cores of this process."""
    if (wanted := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        return max(1, int(wanted))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def digits() -> tuple[Tensor, str]:
    """Images of digits (N, 1, H, W) in [-1, 1], and the name of the data set.

    MNIST in half its size if it is in data/ or in the folder of TINY_DIFFUSION_DATA, else the
    digits of scikit-learn.
    """
    from dataset.items import to_unit
    from dataset.registry import load_dataset

    root = Path(__file__).resolve().parent.parent
    folder = os.environ.get("TINY_DIFFUSION_DATA") or root / "data"
    try:
        images = to_unit(load_dataset("mnist", folder, download=False).items)
        return F.avg_pool2d(images, 2), "MNIST"
    except Exception:  # missing or damaged: the digits of scikit-learn need no files
        return to_unit(load_dataset("digits").items), "scikit-learn's digits (MNIST was not found)"


def save(images: Tensor, picture: Path) -> None:
    """Save images in [-1, 1] as one picture."""
    from visuals.pictures import ImagePictures, save_picture

    pictures = ImagePictures()
    save_picture(picture, pictures.grid(pictures.to_items(images), COLUMNS))
