"""The doctor: each fault is found, healthy runs have no finding, and damaged folders no traceback."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import train
from cli import process
from cli.training import TRAIN
from conftest import TINY
from evaluation.doctor.checks import CHECKS, examine
from evaluation.doctor.run import Run, read_run
from images import save_image
from runs import SMALL, ctrl_c_in, killed_in
from training.fit import fit
from utils import has_native_bf16

# Runs of half a second whose samples are not noise.
QUICK = [*SMALL, "--batch-size", "32", "--lr", "0.02", "--max-steps", "50"]
POINTS = [word for word in QUICK if word not in (*SMALL[-6:], "--dataset", "digits")]
POINTS += ["--batch-size", "128", "--max-steps", "30"]
OTHER = [*TINY[:-1], "--batch-size", "32"]  # of networks that draw nothing


def run_train(folder: Path, *words) -> int:
    arguments = [*map(str, words), "--output-dir", str(folder)]
    return process.run(train.main, TRAIN.parse(arguments))


def findings(folder: Path) -> list[str]:
    """The names of the findings of a run's folder."""
    return list(examine(read_run(folder)))


# --- healthy runs ---------------------------------------------------------------------------------


def trained(*words):
    return lambda folder, made: run_train(folder, *words)


def tuned(way: str, *words):
    def make(folder: Path, made: dict[str, Path]) -> None:
        common = [*QUICK[QUICK.index("--sample-interval") :], "--tune", way, "--teacher"]
        common = [word for word in common if word not in SMALL[-6:]]
        teacher = healthy_run(made, "dit") / "model_final.pt"
        run_train(folder, *common, teacher, "--device", "cpu", *words)

    return make


def stopped(*words):
    def make(folder: Path, made: dict[str, Path]) -> None:
        with ctrl_c_in(25):
            run_train(folder, *QUICK, *words)

    return make


def killed(folder: Path, made: dict[str, Path]) -> None:
    with killed_in(25):
        run_train(folder, *QUICK, "--save-every-steps", 10)


def resumed(folder: Path, made: dict[str, Path]) -> None:
    stopped()(folder, made)
    run_train(folder, "--resume", "--device", "cpu")


def of_latents(folder: Path, made: dict[str, Path]) -> None:
    stopped("--latents", healthy_run(made, "autoencoder"), "--patch-size", 1)(folder, made)


def of_captioned_folder(folder: Path, made: dict[str, Path]) -> None:
    images = folder.parent / "captioned images"
    for i in range(560):
        pixels = np.full((8, 8), 60, np.uint8)
        pixels[i % 6 : i % 6 + 3, i % 5 : i % 5 + 3] = 255 - i // 10
        save_image(images / f"{'light' if i % 2 else 'dark'} square" / f"{i}.png", pixels)
    words = ["--dataset", "folder", "--data-dir", images, "--caption-from-path", "--image-size", 8]
    stopped(*words, "--grey", "--text-conditional")(folder, made)


def of_own_network(folder: Path, made: dict[str, Path]) -> None:
    images = torch.rand(600, 1, 1, 1).expand(-1, -1, 6, 6) * torch.linspace(0, 1, 6)
    network = Filter()
    options = {"max_steps": 60, "batch_size": 32, "device": "cpu", "precision": "fp32"}
    fit(network, images, folder=folder, value_range=(0, 1), **options, lr=1e-2, warmup_steps=5)


class Filter(nn.Module):
    """A small network of one's own."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(2, 16, 5, padding=2), nn.SiLU(), nn.Conv2d(16, 1, 5, padding=2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x, t):
        level = (t / 1000).view(-1, 1, 1, 1).expand_as(x)
        return self.layers(torch.cat([x, level], dim=1))


HEALTHY = {
    "dit": trained(*QUICK),
    "unet": trained(*TINY, "--batch-size", 16, "--lr", 0.02, "--max-steps", 20),
    "naive_unet": trained(
        *TINY, "--model", "naive_unet", "--batch-size", 16, "--lr", 0.01, "--max-steps", 20
    ),
    "adamw": trained(*QUICK, "--optimizer", "adamw", "--long-skips"),
    "linear": trained(*QUICK, "--schedule", "linear"),
    "x_0, quadratic": stopped("--schedule", "quadratic", "--prediction", "x_0"),
    "eps": stopped("--prediction", "eps"),
    "v, zero terminal SNR": trained(*QUICK, "--prediction", "v", "--zero-terminal-snr"),
    "edm": trained(*QUICK, "--schedule", "edm"),
    "flow, logit-normal": trained(
        *QUICK, "--schedule", "flow", "--timestep-sampling", "logit-normal"
    ),
    "min-snr": trained(*QUICK, "--loss-weight", "min-snr"),
    "vlb, learned variance": trained(*QUICK, "--loss-weight", "vlb", "--learn-sigma"),
    "class-conditional": trained(*QUICK, "--class-conditional", "--sample-interval", 1),
    "post-hoc EMA": trained(*QUICK, "--post-hoc-ema", "--snapshots", 3, "--grad-accum", 2),
    "moons": trained(*POINTS, "--dataset", "moons"),
    "gaussians": trained(*POINTS, "--dataset", "gaussians", "--lr-decay", "none"),
    "classifier": trained(*OTHER, "--model", "classifier", "--max-steps", 30),
    "autoencoder": trained(*OTHER, "--model", "autoencoder", "--max-steps", 30, "--lr", 0.01),
    "latents": of_latents,
    "super-resolution": trained(*QUICK, "--super-resolution", 4),
    "consistency": tuned("consistency", "--max-steps", 40, "--stage-steps", 10),
    "distill": tuned("distill", "--teacher-steps", 4, "--stage-steps", 20),
    "captions": of_captioned_folder,
    "own network": of_own_network,
    "killed": killed,
    "resumed": resumed,
}
if has_native_bf16(torch.device("cpu")):
    HEALTHY["bf16"] = trained(*QUICK, "--precision", "bf16")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """The folders of healthy runs that were made so far, by name."""
    return {"": tmp_path_factory.mktemp("doctor")}


def healthy_run(made: dict[str, Path], name: str) -> Path:
    """The folder of a healthy run, which is made if it is missing."""
    if name not in made:
        made[name] = made[""] / name
        HEALTHY[name](made[name], made)
    return made[name]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_no_finding(made, name):
    run = read_run(healthy_run(made, name))
    assert run.step > 0
    assert [f"{f.title}: {f.evidence}" for f in examine(run).values()] == []
