"""What benchmarks do with train.py: let it train, and draw with what it trained."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.features import train_classifier
from data import item_shape, load_dataset, to_unit
from metrics import energy_distance
from samplers import AUTO, SAMPLERS
from training.checkpoint import load_checkpoint, restore
from training.log import read_metrics
from utils import NoisePerImage, autocast, choose_device, choose_precision

ROOT = Path(__file__).resolve().parent.parent


def train(flags: list[str]) -> tuple[dict, list[dict]]:
    """The final checkpoint and the metrics of a run of train.py, whose progress is seen."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *flags, "--output-dir", folder]
        command += ["--sample-interval", "0", "--save-interval", "0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        path = Path(folder)
        return load_checkpoint(path / "model_final.pt"), read_metrics(path / "metrics.jsonl")


class Measure:
    """MNIST, and the distance of images to its test set in the features of a small classifier."""

    def __init__(self, data_dir: str, count: int, image_size: int | None = None):
        self.data, self.test = (
            load_dataset("mnist", data_dir, image_size=image_size, download=False, split=split)
            for split in ("train", "test")
        )
        self.device = choose_device("auto")
        self.precision = choose_precision("auto", self.device)
        self.classifier, self.accuracy = train_classifier(self.data, self.test, self.device)
        self.real = self.classifier.features(to_unit(self.test.items))
        self.count = count
        self.floor = self.distance(to_unit(self.data.items[:count]))

    def distance(self, x: Tensor) -> float:
        return energy_distance(self.classifier.features(x), self.real)

    def draw(self, checkpoint: dict, steps: int, seed: int, spacing: str = "trailing") -> Tensor:
        """`count` images (N, C, H, W) of a checkpoint, in [-1, 1]."""
        model, diffusion = restore(checkpoint, self.device)
        levels = diffusion.levels(steps, spacing)
        shape, parts = item_shape(checkpoint["config"]["data"]), []
        for first in range(0, self.count, 500):
            noise = NoisePerImage(seed, range(first, min(first + 500, self.count)))
            x = levels[0].scale * noise.draw(shape).to(self.device)
            with autocast(self.device, self.precision):
                *_, x = SAMPLERS[AUTO](diffusion.denoiser(model), x, levels, noise)
            parts.append(x.clamp(-1, 1).cpu())
        return torch.cat(parts)
