"""Shared by the benchmarks: command line, runs of train.py, sampling, distances, speeds."""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from checkpoints.checkpoint import load_checkpoint
from cli.sampling import SAMPLE
from cli.training import RunConfig
from conditions import Condition, label_condition
from dataset.items import indices_like, item_shape
from dataset.registry import load_dataset
from dataset.types import Data
from diffusion import GaussianDiffusion
from evaluation.features import classifier_for
from evaluation.measures import Reference, random_indices
from evaluation.real import RealData, real_data
from models import build_model
from sampling.draw import Samples, SamplingJob, draw
from training.config import make_config, with_defaults
from training.log import read_metrics
from training.trainer import Trainer
from utils import DTYPES, choose_precision, describe

ROOT = Path(__file__).resolve().parent.parent
FLOORS = 3  # sets of training images over which the floor is averaged
SAMPLING: dict = {"steps": 20, "precision": "auto"}  # flags of sample.py


def command_line(description: str, *, folders: bool = False) -> argparse.ArgumentParser:
    """A parser with a benchmark's docstring as its help, and with flags for its folders."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if folders:
        parser.add_argument("--data-dir", default=str(ROOT / "data"))
        parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "benchmarks")
    return parser


def machine(device: torch.device) -> str:
    """What computes, without the precision: "cpu, 2 threads"."""
    return describe(device, "fp32").removesuffix(", fp32")


def in_new_process(function: Callable, *arguments):
    """The result of a function that is called in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def read_rows(path: Path) -> list[dict]:
    """The rows of a file with one JSON object per line; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def slug_of(name: str) -> str:
    """A name for use in file names: "mnist, 2 minutes" becomes "mnist_2_minutes"."""
    return re.sub(r"\W+", "_", name)


def append_row(path: Path, row: dict) -> None:
    """Add a row to a file with one JSON object per line."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


# --- training and sampling -----------------------------------------------------------------------


def train(flags: list[str], folder: str | Path) -> tuple[dict, list[dict]]:
    """Run train.py in a folder; returns its final checkpoint and its metrics."""
    command = [sys.executable, str(ROOT / "train.py"), *flags, "--output-dir", str(folder)]
    command += ["--sample-interval", "0", "--save-interval", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    path = Path(folder)
    return load_checkpoint(path / "model_final.pt"), read_metrics(path / "metrics.jsonl")


def sampled(
    checkpoint: Path, *, labels: Tensor | None = None, **flags
) -> tuple[Samples, SamplingJob, float]:
    """Sample as sample.py does with these flags, with the class frequencies of `labels` (N,).

    Returns the samples, the job, and the seconds that sampling took.
    """
    job = SamplingJob(SAMPLE.keywords(checkpoint=checkpoint, **flags))
    if labels is not None:
        indices = indices_like(len(labels), job.plan.count)
        job.plan.wanted.of_data(Condition(labels[indices]))
    start = now(job.device)
    samples = draw(job)
    return samples, job, now(job.device) - start


def trainer_for(flags: RunConfig, images: Tensor, device: torch.device) -> Trainer:
    """The trainer that train.py makes for these flags and these images, without labels."""
    data = Data(images, None, [])
    config = make_config(with_defaults(flags, data), data)
    return Trainer(config, device, choose_precision(flags.precision, device), flags.compile)


# --- distances -----------------------------------------------------------------------------------


def real_images(
    dataset: str, data_dir: str | Path, seed: int = 0, image_size: int | None = None
) -> RealData:
    """A data set, and its test split or else the images that a run with this seed holds out."""
    load = partial(load_dataset, dataset, data_dir, image_size=image_size, download=False)
    return real_data(dataset, load(), partial(load, split="test"), data_dir, None, seed)


def reference_for(real: RealData, folder: Path, device: torch.device) -> Reference:
    """The held-out images in the features of their classifier, which is trained if not found."""
    bar = partial(tqdm, disable=None)
    classifier = classifier_for(real, folder, device, progress=bar, say=print)
    return Reference(classifier, real)


def floor_of(reference: Reference, count: int) -> float:
    """The mean distance of `count` training images to the held-out images."""
    items = reference.train.items
    sets = [items[random_indices(len(items), count, "floor", i)] for i in range(FLOORS)]
    return mean(map(reference.distance, sets))


# --- speeds --------------------------------------------------------------------------------------


def now(device: torch.device) -> float:
    """A clock in seconds, read once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def step_seconds(trainer: Trainer, images: Tensor, steps: int) -> list[float]:
    """The time of each of `steps` training steps, all on the same images."""
    seconds = []
    for _ in range(steps):
        start = now(trainer.device)
        trainer.train_step(images, None, 1e-4)
        seconds.append(now(trainer.device) - start)
    return seconds


def matmul_rate(precision: str, device: torch.device, n: int | None = None) -> float:
    """FLOP/s of a product of square matrices with side n, the best of three measurements.

    In fp32 a GPU's convolutions use TF32 by default and this product does not, so a network's share
    of this rate may exceed 1 there.
    """
    n = n or (2048 if device.type == "cpu" else 8192)
    a, b = torch.randn(2, n, n, device=device, dtype=DTYPES[precision] or torch.float32)
    seconds = []
    for _ in range(4):  # the first is a warm-up
        start = now(device)
        for _ in range(4):
            a @ b
        seconds.append((now(device) - start) / 4)
    return 2 * n**3 / min(seconds[1:])


def flops_per_image(config: dict) -> float:
    """FLOPs of the convolutions and matrix products of a training step, per image."""
    model, diffusion = build_model(config["model"]), GaussianDiffusion(**config["diffusion"])
    labels = torch.zeros(2, dtype=torch.int64) if config["model"].get("num_classes") else None
    x_0 = torch.zeros(2, *item_shape(config["model"]))
    with FlopCounterMode(display=False) as counter:
        diffusion.loss(model, x_0, label_condition(labels)).backward()
    return counter.get_total_flops() / 2
