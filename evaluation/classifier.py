"""The classifier that gives images their features: the network and its training.

It is trained from its own seed, so that it does not depend on the model that is measured.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from dataset.items import flipped, to_unit
from dataset.types import Data
from distributed import as_single_process
from evaluation.real import RealData
from training.loop import Batches, training_steps
from training.trainer import Trainer
from utils import choose_precision, derive_seed, memory_format

RECIPE = 2  # raise it with each change below: stored classifiers of another recipe are not used
FOLD = 2  # side of the patches that images are folded into, for a quarter of the work
CHANNELS = (64, 128, 128)  # of each level; the last are the features
LARGER_CHANNELS = (64, 128, 256, 256)  # of larger classifiers
LARGER = ("cifar10",)  # data sets that need a larger classifier
STEPS = 1400
HARDER = {"fashion_mnist": 4, "cifar10": 4}  # factor by which data sets need more steps
BATCH_SIZE = 128
LR = 3e-3
WARM_UP = 0.1  # fraction of the steps in which the learning rate rises
MAX_SHIFT = 1 / 14  # random shifts, as a fraction of the size: 2 pixels of 28
LABEL_SMOOTHING = 0.1


# --- the network ---------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Maps images (B, C, H, W) in [-1, 1] to scores (B, classes).

    Args:
        image_channels, num_classes: of the data set.
        larger: use `LARGER_CHANNELS` with max pooling, and not `CHANNELS` with strides.
        channels: widths of the levels, instead of these.
    """

    def __init__(
        self,
        image_channels: int,
        num_classes: int,
        larger: bool = False,
        channels: Sequence[int] | None = None,
    ):
        super().__init__()
        channels = channels or (LARGER_CHANNELS if larger else CHANNELS)
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
        """The first and the last layer."""
        return [self.stem, self.head]

    def features(self, x: Tensor) -> Tensor:
        """The activations (B, F) of the last level."""
        return self.trunk(self.first(x))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The activations (B, F_i, H_i, W_i) of all layers before the mean over the pixels."""
        found = [self.first(x)]
        for layer in self.trunk[:-2]:
            found.append(layer(found[-1]))
        return found

    def first(self, x: Tensor) -> Tensor:
        """The activations of the first layer."""
        missing = [-size % FOLD for size in x.shape[2:]]
        if any(missing):
            x = F.pad(x, (0, missing[1], 0, missing[0]), mode="replicate")
        return self.stem(F.pixel_unshuffle(x, FOLD))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Residual(nn.Module):
    """A convolution with a skip connection: x + convolution(x)."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def new_classifier(real: RealData) -> Classifier:
    """An untrained classifier for a data set."""
    channels, classes = real.train.items.shape[1], len(real.train.classes)
    return Classifier(channels, classes, larger=real.name in LARGER)


# --- its training --------------------------------------------------------------------------------


class LabelledBatch(NamedTuple):
    """Images with their class labels."""

    x: Tensor  # (B, C, H, W) in [-1, 1]
    labels: Tensor  # (B,)

    def rows(self, chosen: slice) -> "LabelledBatch":
        """Some items of the batch."""
        return LabelledBatch(self.x[chosen], self.labels[chosen])


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss of scores (B, classes) for labels (B,), a scalar."""
    return F.cross_entropy(scores, labels, label_smoothing=LABEL_SMOOTHING)


class ClassifierObjective:
    """Cross-entropy of randomly shifted and mirrored images, with label smoothing.

    Args:
        generator: draws shifts and mirrorings; its state is that of step 0.
        flip: mirror images at random.
        device: the device to compute on.
        loss: of scores (B, ...) and labels (B, ...).
        max_shift: largest shift, as a fraction of the size.
    """

    def __init__(
        self,
        generator: torch.Generator,
        flip: bool,
        device: torch.device,
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        max_shift: float = MAX_SHIFT,
    ):
        self.generator, self.flip, self.device, self.loss = generator, flip, device, loss
        self.max_shift = max_shift
        self.first_state, self.steps_drawn = generator.get_state(), 0

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        return self.loss(model(batch.x).float(), batch.labels)

    def batch(self, items: Tensor, condition: Condition, step: int) -> LabelledBatch:
        """The batch of a step; the random numbers of earlier steps are drawn first if need be."""
        if step < self.steps_drawn:
            self.generator.set_state(self.first_state)
            self.steps_drawn = 0
        while self.steps_drawn <= step:
            shifts, mirror = self.draw(items)
            self.steps_drawn += 1
        x = shifted(items.to(self.device), *shifts.to(self.device))
        x = flipped(x, mirror.to(self.device)) if self.flip else x
        x = to_unit(x).contiguous(memory_format=memory_format(self.device))
        return LabelledBatch(x, condition.label.to(self.device))

    def draw(self, items: Tensor) -> tuple[Tensor, Tensor | None]:
        """Shifts (2, B) in pixels, up and to the left, and which images to mirror (B,)."""
        count, limit = len(items), round(self.max_shift * max(items.shape[2:]))
        shifts = torch.randint(0, 2 * limit + 1, (2, count), generator=self.generator) - limit
        mirror = torch.rand(count, generator=self.generator) < 0.5 if self.flip else None
        return shifts, mirror


def train_classifier(
    real: RealData,
    device: torch.device,
    progress: Callable[..., Iterable] = lambda items, **_: items,
) -> Classifier:
    """Train a classifier on the training split. The same data set gives the same classifier.

    Args:
        real: the data set, with class labels.
        device: the device to compute on.
        progress: wraps the iteration over training steps, as tqdm does.
    """
    total, seed = HARDER.get(real.name, 1) * STEPS, derive_seed("classifier", 0)
    make = partial(new_classifier, real)
    return learn(make, real.train, total, seed, real.flip, device, progress)


def learn(
    make: Callable[[], nn.Module],
    data: Data,
    total: int,
    seed: int,
    flip: bool,
    device: torch.device,
    progress: Callable[..., Iterable] = lambda items, **_: items,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    max_shift: float = MAX_SHIFT,
) -> nn.Module:
    """Train a new classifier on labelled images; a pure function of its arguments.

    Args:
        make: makes the network, with weights from the global random numbers.
        data: images with labels.
        total: training steps.
        seed: of the network, of shifts and mirrorings.
        flip: mirror images at random.
        device: the device to compute on.
        progress: wraps the iteration over training steps, as tqdm does.
        loss: of the network's output and the labels.
        max_shift: largest random shift, as a fraction of the size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = make()
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
    batch_size = min(BATCH_SIZE, len(data.items))
    train = {"seed": 0, "batch_size": batch_size, "grad_accum": 1, "grad_clip": 0, "lr": LR}
    train |= {"optimizer": "muon", "ema_decay": 0.0, "grad_checkpoint": False, "fsdp": False}
    with as_single_process():  # of several processes, only the main one trains a classifier
        trainer = Trainer(
            {"train": train},
            device,
            choose_precision("auto", device),
            model=model,
            objective=ClassifierObjective(generator, flip, device, loss, max_shift),
        )
        indices = torch.arange(len(data.items))
        batches = Batches(data.items, Condition(data.labels), indices, batch_size, trainer.seed)
        steps = training_steps(
            trainer, batches, lambda step: LR * rise_and_fall(step / total), lambda: total
        )
        for _ in progress(steps, desc="classifier", total=total):
            pass
    return trainer.model.eval()


def rise_and_fall(progress: float) -> float:
    """Fraction of the learning rate at a progress of 0 to 1: linear up to 1, then down to 0."""
    return min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def shifted(x: Tensor, up: Tensor, left: Tensor) -> Tensor:
    """Images (B, C, H, W), each shifted by its own numbers of pixels (B,); edges are repeated."""
    count, _, height, width = x.shape
    rows = (torch.arange(height, device=x.device) + up[:, None]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=x.device) + left[:, None]).clamp(0, width - 1)  # (B, W)
    image = torch.arange(count, device=x.device)[:, None, None]
    return x.movedim(1, -1)[image, rows[:, :, None], columns[:, None]].movedim(-1, 1)
