"""Features of images, by a classifier that is trained once for a data set and stored next to it.

Figures can be compared only if they are from the same classifier, so every report contains its
SHA-256. The distance in its features is called classifier-FID, because the FID uses the features of
one particular Inception network (`evaluation.inception`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.items import epoch_order, to_unit
from dataset.types import Data
from evaluation.classifier import RECIPE, Classifier, new_classifier, train_classifier
from evaluation.real import RealData
from evaluation.stored import read_stored, store
from utils import memory_format, size_of, size_text

BATCH_SIZE = 500
IMAGES_FOR_STD = 10_000  # images over which the features' standard deviations are measured


class Predictions(NamedTuple):
    """The features and the class probabilities of images."""

    features: Tensor  # (N, F), each divided by its standard deviation over real images
    probabilities: Tensor  # (N, classes)

    @property
    def classes(self) -> Tensor:
        """The most probable class (N,) of each image."""
        return self.probabilities.argmax(dim=1)


class TrainedClassifier:
    """A trained classifier, which computes in fp32.

    Args:
        model: the network.
        accuracy: on the held-out items.
        sha256: of its weights.
        path: its file, or None if it could not be stored.
    """

    def __init__(self, model: Classifier, accuracy: float, sha256: str, path: Path | None):
        self.model, self.accuracy, self.sha256, self.path = model.eval(), accuracy, sha256, path

    @torch.no_grad()
    def predict(self, images: Tensor) -> Predictions:
        """The predictions, on the CPU, for uint8 images (N, C, H, W)."""
        device, features, probabilities = self.model.std.device, [], []
        for batch in images.split(BATCH_SIZE):
            x = to_unit(batch.to(device, memory_format=memory_format(device)))
            hidden = self.model.features(x)
            features.append((hidden / self.model.std).cpu())
            probabilities.append(self.model.head(hidden).softmax(dim=1).cpu())
        return Predictions(torch.cat(features), torch.cat(probabilities))


def classifier_for(
    real: RealData,
    folder: Path,
    device: torch.device,
    *,
    progress: Callable[..., Iterable] = lambda items, **_: items,
    say: Callable[[str], object] = lambda line: None,
) -> TrainedClassifier:
    """Read the classifier of a data set; if there is none, train and store it.

    Args:
        real: the data set. The classifier's accuracy is measured on the held-out items.
        folder: where the classifier is stored if it cannot be stored next to the data.
        device: the device to compute on.
        progress: wraps the iteration over training steps, as tqdm does.
        say: called with lines for the user, if the classifier is trained.

    Raises ValueError for points, and for images without classes.
    """
    require_classes(real)
    data, held_out = real.train, real.held_out
    size = size_text(size_of(*real.shape[1:]))
    name = f"classifier_{real.name}_{size}_{classifier_key(data, real.flip)[:12]}.safetensors"
    paths = [real.cache / name, folder / name]
    if (stored := read_stored(paths, partial(new_classifier, real), device)) is not None:
        accuracy = float(stored.metadata["accuracy"])
        return TrainedClassifier(stored.model, accuracy, stored.sha256, stored.path)
    say(f"training the classifier of {real.name}, once; on a CPU this takes minutes")
    model = train_classifier(real, device, progress)
    trained = TrainedClassifier(model, 0.0, "", None)
    some = data.items[epoch_order(len(data.items), 0, 0)[:IMAGES_FOR_STD]]  # folders are sorted
    model.std.copy_(trained.predict(some).features.std(dim=0).clamp(min=1e-6))
    correct = trained.predict(held_out.items).classes == held_out.labels
    trained.accuracy = correct.double().mean().item()
    metadata = {"recipe": str(RECIPE), "dataset": real.name, "accuracy": str(trained.accuracy)}
    stored = store(paths, model, metadata)
    trained.sha256, trained.path = stored.sha256, stored.path
    where = f"; stored in {trained.path}" if trained.path else ""
    say(f"accuracy: {100 * trained.accuracy:.2f} % of {len(correct):,} images{where}")
    return trained


class FeatureDistance:
    """Distance of images in the features of a classifier, differentiable for use as a loss.

    The mean over the layers of the squared distance of features that are scaled to unit length in
    each pixel (Zhang et al. 2018, arXiv:1801.03924, eq. 1, without learned weights).

    Args:
        classifier: the classifier of the data set; its weights are frozen.
    """

    def __init__(self, classifier: TrainedClassifier):
        self.model, self.sha256 = classifier.model.requires_grad_(False), classifier.sha256

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean distance, a scalar, of the pairs of images (B, C, H, W) in [-1, 1]."""
        with torch.autocast(x.device.type, enabled=False):  # as everywhere, it computes in fp32
            pairs = zip(self.model.maps(x), self.model.maps(y), strict=True)
        found = [(F.normalize(a) - F.normalize(b)).square().sum(dim=1).mean() for a, b in pairs]
        return torch.stack(found).mean()


def require_classes(real: RealData) -> None:
    """Raise ValueError for points, and for images without classes."""
    if real.train.items.ndim != 4:
        raise ValueError(f"a classifier needs images, and {real.name} is points")
    if real.train.labels is None or len(real.train.classes) < 2:
        raise ValueError(f"{real.name} has no classes, which a classifier needs to be trained")


def classifier_key(data: Data, flip: bool) -> str:
    """A digest of the recipe and of the data set that a classifier is trained on."""
    sha256 = hashlib.sha256(json.dumps([RECIPE, flip, data.classes, data.items.shape]).encode())
    for part in data.items.split(10_000):
        sha256.update(part.contiguous().numpy())
    sha256.update(data.labels.numpy())
    return sha256.hexdigest()
