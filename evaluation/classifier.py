"""The classifier in whose features images are compared.

It is trained once on a data set, and kept beside it. Figures compare only within one classifier, so
that its SHA-256 goes into every report. What they are is called classifier-FID and so on: the FID
has the features of one particular Inception network (`evaluation.inception`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from checkpoints.weights import weights_sha256
from dataset.items import epoch_order, flipped, to_unit
from dataset.types import Data
from evaluation.real import Real
from training.optimizers import muon
from utils import autocast, choose_precision, derive_seed, memory_format, save_whole

RECIPE = 2  # to be raised with each change of what is below: older classifiers are then made anew
FOLD = 2  # side of the patches that images are folded into: a quarter of the work
CHANNELS = (64, 128, 128)  # at each level; the last are the features
PHOTOGRAPHS = (64, 128, 256, 256)  # of larger classifiers, whose levels end in max pooling
UPDATES = 1400
HARDER = {"fashion_mnist": 4, "cifar10": 4}  # that need so many times as many updates
LARGER = ("cifar10",)  # that need a larger classifier
BATCH = 128
LR = 3e-3
WARM_UP = 0.1  # share of the updates in which the learning rate rises
SHIFT = 1 / 14  # of the size, by which images are moved at random: 2 pixels of 28
SMOOTHING = 0.1  # of the labels
CHUNK = 500  # images that are looked at once


class Classifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to scores (B, classes), by way of its last level's features.

    Args:
        image_channels, num_classes: of the data.
        larger: with the levels of `PHOTOGRAPHS`; the levels of `CHANNELS` end in a stride.
    """

    def __init__(self, image_channels: int, num_classes: int, larger: bool = False):
        super().__init__()
        channels = PHOTOGRAPHS if larger else CHANNELS
        self.stem = convolution(image_channels * FOLD**2, channels[0])
        levels: list[nn.Module] = []
        for here, below in pairwise(channels):
            levels.append(Residual(here))
            levels.append(convolution(here, below, stride=1 if larger else 2))
            levels += [nn.MaxPool2d(2, ceil_mode=True)] if larger else []
        self.trunk = nn.Sequential(*levels, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels[-1], num_classes)
        self.register_buffer("std", torch.ones(channels[-1]))  # of each feature, over real images

    def ends(self) -> list[nn.Module]:
        """The layers that read the image and write the scores."""
        return [self.stem, self.head]

    def features(self, x: Tensor) -> Tensor:
        rest = [-size % FOLD for size in x.shape[2:]]
        x = F.pad(x, (0, rest[1], 0, rest[0]), mode="replicate") if any(rest) else x
        return self.trunk(self.stem(F.pixel_unshuffle(x, FOLD)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Residual(nn.Module):
    """A convolution whose output is added to its input."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class Seen(NamedTuple):
    """What a classifier sees in images."""

    features: Tensor  # (N, F), each in units of its standard deviation over real images
    probabilities: Tensor  # (N, classes)

    @property
    def classes(self) -> Tensor:
        """The most probable class (N,) of each."""
        return self.probabilities.argmax(dim=1)


class Judge:
    """A trained classifier, in fp32, and where it came from.

    Args:
        model: the classifier.
        accuracy: share of the reference images that it names rightly.
        sha256: of its weights.
        path: where it is kept, if anywhere.
    """

    def __init__(self, model: Classifier, accuracy: float, sha256: str, path: Path | None):
        self.model, self.accuracy, self.sha256, self.path = model.eval(), accuracy, sha256, path

    @torch.no_grad()
    def see(self, images: Tensor) -> Seen:
        """What it sees in uint8 images (N, C, H, W); on the CPU."""
        device, features, scores = self.model.std.device, [], []
        for part in images.split(CHUNK):
            x = to_unit(part.to(device, memory_format=memory_format(device)))
            hidden = self.model.features(x)
            features.append((hidden / self.model.std).cpu())
            scores.append(self.model.head(hidden).softmax(dim=1).cpu())
        return Seen(torch.cat(features), torch.cat(scores))


def judge_for(
    real: Real,
    folder: Path,
    device: torch.device,
    *,
    progress: Callable[..., Iterable] = lambda items, **_: items,
    say: Callable[[str], object] = print,
) -> Judge:
    """The judge of a data set: read where it is kept, else trained and kept.

    Args:
        real: the data set. The classifier is trained on what models are trained on, and its
            accuracy is that on the held-out items.
        folder: where it is kept if it cannot be kept beside the data (`real.cache`).
        device: what computes.
        progress: wraps the iteration over the updates, to show a bar.
        say: is told what takes time, and what came of it.

    Raises ValueError for points, and for images that have no classes.
    """
    data, held_out = real.train, real.held_out
    require_classes(real)
    size = data.items.shape[-1]
    file = f"classifier_{real.name}_{size}_{key_of(data, real.flip)[:12]}.safetensors"
    larger = real.name in LARGER
    for path in (real.cache / file, folder / file):
        if (judge := read(path, data, larger, device)) is not None:
            return judge
    say(f"training the classifier of {real.name}, once; on a CPU it takes minutes")
    updates = HARDER.get(real.name, 1) * UPDATES
    model = train_classifier(
        data, updates, device, larger=larger, flip=real.flip, progress=progress
    )
    judge = Judge(model, 0.0, "", None)
    some = data.items[epoch_order(len(data.items), 0, 0)[:10_000]]  # folders are sorted by class
    model.std.copy_(judge.see(some).features.std(dim=0).clamp(min=1e-6))
    right = judge.see(held_out.items).classes == held_out.labels
    judge.accuracy = right.double().mean().item()
    tensors = {name: t.cpu().contiguous() for name, t in model.state_dict().items()}
    metadata = {"recipe": str(RECIPE), "dataset": real.name, "accuracy": str(judge.accuracy)}
    judge.sha256 = metadata["sha256"] = weights_sha256(metadata, tensors)
    for path in (real.cache / file, folder / file):
        with suppress(OSError):
            save_whole(path, lambda partial: partial.write_bytes(save(tensors, metadata)))
            judge.path = path
            break
    kept = f"; kept in {judge.path}" if judge.path else ""
    say(f"it is right on {100 * judge.accuracy:.2f} % of {len(right):,} images{kept}")
    return judge


def require_classes(real: Real) -> None:
    """Raise a ValueError for points, and for images that have no classes."""
    if real.train.items.ndim != 4:
        raise ValueError(f"a classifier compares images; {real.name} is points")
    if real.train.labels is None or len(real.train.classes) < 2:
        raise ValueError(
            f"{real.name} has no classes, and without them there is no classifier to compare "
            "images by"
        )


def train_classifier(
    data: Data,
    updates: int,
    device: torch.device,
    *,
    larger: bool = False,
    flip: bool = False,
    progress: Callable[..., Iterable] = lambda items, **_: items,
) -> Classifier:
    """A classifier of labelled images, from a seed of its own: what is judged does not matter."""
    precision = choose_precision("auto", device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed("classifier", 0))
        model = Classifier(data.items.shape[1], len(data.classes), larger).to(
            device, memory_format=memory_format(device)
        )
        optimizers = muon(model, LR).values()
        batch = min(BATCH, len(data.items))
        per_epoch = len(data.items) // batch
        for update in progress(range(updates), desc="classifier"):
            epoch, i = divmod(update, per_epoch)
            if i == 0:
                order = epoch_order(len(data.items), 0, epoch)
            chosen = order[i * batch : (i + 1) * batch]
            x, y = data.items[chosen].to(device), data.labels[chosen].to(device)
            x = shifted(x, round(SHIFT * x.shape[-1]))
            x = flipped(x, torch.rand(batch, device=device) < 0.5) if flip else x
            x = to_unit(x).contiguous(memory_format=memory_format(device))
            with autocast(device, precision):
                loss = F.cross_entropy(model(x).float(), y, label_smoothing=SMOOTHING)
            loss.backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = LR * rise_and_fall(update / updates)
                optimizer.step()
                optimizer.zero_grad()
    return model.eval()


def rise_and_fall(progress: float) -> float:
    """The share of the learning rate: up to 1 in a line, and down to 0 in another."""
    return min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def shifted(x: Tensor, most: int) -> Tensor:
    """Images (B, C, H, W), each moved by up to so many pixels; the edge is repeated."""
    count, _, height, width = x.shape
    down, right = torch.randint(0, 2 * most + 1, (2, count, 1), device=x.device)
    rows = (torch.arange(height, device=x.device) + down - most).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=x.device) + right - most).clamp(0, width - 1)
    image = torch.arange(count, device=x.device)[:, None, None]
    return x.movedim(1, -1)[image, rows[:, :, None], columns[:, None]].movedim(-1, 1)


def read(path: Path, data: Data, larger: bool, device: torch.device) -> Judge | None:
    """The judge of that size that is kept in a file; None if there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sha256 = metadata.pop("sha256")
        if sha256 != weights_sha256(metadata, tensors):
            return None
        model = Classifier(data.items.shape[1], len(data.classes), larger)
        model.load_state_dict(tensors)
        accuracy = float(metadata["accuracy"])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError):
        return None
    return Judge(model.to(device, memory_format=memory_format(device)), accuracy, sha256, path)


def key_of(data: Data, flip: bool) -> str:
    """What tells a classifier's recipe and data from any other."""
    whole = hashlib.sha256(json.dumps([RECIPE, flip, data.classes, data.items.shape]).encode())
    for part in data.items.split(10_000):
        whole.update(part.contiguous().numpy())
    whole.update(data.labels.numpy())
    return whole.hexdigest()
