"""What benchmarks do with train.py: let it train, draw with what it trained, and measure that."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import sample
from benchmarks.rates import now
from checkpoints.checkpoint import load_checkpoint
from cli.parser import parse_keywords
from evaluation.classifier import judge_for
from evaluation.measures import Reference, chosen
from evaluation.real import Real
from sampling.drawing import Drawn, Job, draw
from training.log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
FLOORS = 3  # sets of training images whose mean distance is the floor
SAMPLING: dict = {"steps": 20, "precision": "auto"}  # flags of sample.py


def train(flags: list[str], folder: str | Path) -> tuple[dict, list[dict]]:
    """The final checkpoint and the metrics of a run of train.py in a folder of its own."""
    command = [sys.executable, str(ROOT / "train.py"), *flags, "--output-dir", str(folder)]
    command += ["--sample-interval", "0", "--save-interval", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    path = Path(folder)
    return load_checkpoint(path / "model_final.pt"), read_metrics(path / "metrics.jsonl")


def drawn_by_sample(
    checkpoint: Path, count: int, *, seed: int, sampling: dict, labels: Tensor
) -> tuple[Drawn, Job, float]:
    """`count` images as sample.py draws them, with the shares that classes have in labels (N,);
    what drew them, and in how many seconds."""
    flags = {"checkpoint": checkpoint, "num_images": count, "seed": seed, **sampling}
    job = Job(parse_keywords(sample.make_parser(), sample.parse_args, flags))
    job.walk.ask_like(labels)
    start = now(job.device)
    drawn = draw(job)
    return drawn, job, now(job.device) - start


class Measured(NamedTuple):
    """What images are compared with, in the features of evaluate.py's classifier."""

    reference: Reference
    judge: str  # SHA-256 of the classifier
    accuracy: float

    def floor(self, count: int) -> float:
        """The distance of as many training images, as evaluate.py has it."""
        train = self.reference.train.items
        some = [train[chosen(len(train), count, "floor", i)] for i in range(FLOORS)]
        return mean(self.reference.distance(images) for images in some)


def measured_by(real: Real, folder: Path, device: torch.device) -> Measured:
    """Trains the classifier of the data, if it is not kept beside them or in the folder."""
    judge = judge_for(real, folder, device, progress=partial(tqdm, disable=None))
    return Measured(Reference(judge, real), judge.sha256, judge.accuracy)
