"""A network that reads the attributes of images, trained once for a data set, stored next to it.

`evaluation.prompts` uses it to decide whether a picture shows what its prompt says.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.items import to_unit
from dataset.types import Attributes, Data
from evaluation.classifier import (
    CHANNELS,
    STEPS,
    Residual,
    convolution,
    learn,
)
from evaluation.real import RealData
from evaluation.stored import read_stored, store
from utils import derive_seed, memory_format, size_of, size_text

RECIPE = 1  # raise it with each change below: stored readers of another recipe are not used
HARDER = 2  # times as many training steps as the classifier of MNIST
HARDER_PAIRS = 4  # the same, for data sets with a split of all combinations of attributes
GRID = 16  # patches in a row that larger images are folded into, so that they cost no more
BATCH_SIZE = 500


class AttributeNetwork(nn.Module):
    """Maps images (B, C, H, W) in [-1, 1] to scores of all values of all attributes (B, V).

    The last feature map is not pooled, because some attributes are places.

    Args:
        image_channels: of the data set.
        size: height and width of the images.
        counts: number of possible values of each attribute.
    """

    def __init__(self, image_channels: int, size: tuple[int, int], counts: list[int]):
        super().__init__()
        self.fold = max(2, max(size) // GRID)
        self.stem = convolution(image_channels * self.fold**2, CHANNELS[0])
        levels: list[nn.Module] = []
        for here, below in pairwise(CHANNELS):
            levels += [Residual(here), convolution(here, below, stride=2)]
        self.trunk = nn.Sequential(*levels)
        area = 1
        for side in size:
            side = -(-side // self.fold)
            for _ in CHANNELS[1:]:
                side = -(-side // 2)
            area *= side
        self.head = nn.Linear(CHANNELS[-1] * area, sum(counts))
        self.counts = counts

    def ends(self) -> list[nn.Module]:
        """The first and the last layer."""
        return [self.stem, self.head]

    def feature_map(self, x: Tensor) -> Tensor:
        """The activations (B, C, h, w) of the last level."""
        missing = [-side % self.fold for side in x.shape[2:]]
        x = F.pad(x, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else x
        return self.trunk(self.stem(F.pixel_unshuffle(x, self.fold)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.feature_map(x).flatten(1))


class AttributeReader:
    """A trained network that reads attributes, in fp32.

    Args:
        model: the network.
        values: the possible values of each attribute, by its name.
        sha256: of the weights.
        accuracy: of each attribute on the held-out images, by its name.
    """

    def __init__(
        self,
        model: AttributeNetwork,
        values: Mapping[str, tuple[str, ...]],
        sha256: str,
        accuracy: dict[str, float],
    ):
        self.model, self.values = model.eval(), values
        self.sha256, self.accuracy = sha256, accuracy

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Attributes, Tensor]:
        """The attributes of uint8 images (N, C, H, W), and features (N, F)."""
        device, codes, features = next(self.model.parameters()).device, [], []
        for batch in images.split(BATCH_SIZE):
            x = to_unit(batch.to(device, memory_format=memory_format(device)))
            hidden = self.model.feature_map(x)
            scores = self.model.head(hidden.flatten(1)).split(self.model.counts, dim=1)
            codes.append(torch.stack([each.argmax(dim=1) for each in scores], dim=1).byte().cpu())
            features.append(hidden.mean(dim=(2, 3)).cpu())
        return Attributes(self.values, torch.cat(codes)), torch.cat(features)


def attribute_reader(
    real: RealData,
    folder: Path,
    device: torch.device,
    *,
    progress: Callable[..., Iterable] = lambda items, **_: items,
    say: Callable[[str], object] = lambda line: None,
) -> AttributeReader:
    """Load the reader of a data set; if there is none, train and store it.

    Args: as those of `features.classifier_for`.
    """
    data, counts = real.train, counts_of(real.train)
    size = size_text(size_of(*real.shape[1:]))
    name = f"attributes_{real.name}_{size}_{attribute_key(real)[:12]}.safetensors"
    paths = [real.cache / name, folder / name]
    make = partial(new_network, real)
    if (stored := read_stored(paths, make, device)) is not None:
        accuracy = json.loads(stored.metadata["accuracy"])
        return AttributeReader(stored.model, data.attributes.values, stored.sha256, accuracy)
    say(f"training a network that reads the attributes of {real.name}, once")

    def loss(scores: Tensor, codes: Tensor) -> Tensor:
        parts = zip(scores.split(counts, dim=1), codes.T, strict=True)
        return sum(F.cross_entropy(s, c) for s, c in parts)

    learned = real.pairs() if real.pairs else data
    labelled = learned._replace(labels=learned.attributes.codes.long())
    seed, steps = derive_seed("attributes", 0), harder(real) * STEPS
    options = {"loss": loss, "max_shift": 0.0}  # places are attributes, too
    model = learn(make, labelled, steps, seed, False, device, progress, **options)
    reader = AttributeReader(model, data.attributes.values, "", {})
    reader.accuracy = accuracy_of(reader, real.held_out)
    reader.sha256 = store(paths, model, {"accuracy": json.dumps(reader.accuracy)}).sha256
    return reader


def harder(real: RealData) -> int:
    """How many times as many training steps as the classifier of MNIST are needed."""
    return HARDER_PAIRS if real.pairs else HARDER


def new_network(real: RealData) -> AttributeNetwork:
    """An untrained network for a data set."""
    return AttributeNetwork(real.shape[0], real.shape[1:], counts_of(real.train))


def counts_of(data: Data) -> list[int]:
    """The number of possible values of each attribute."""
    return [len(values) for values in data.attributes.values.values()]


def accuracy_of(reader: AttributeReader, data: Data) -> dict[str, float]:
    """The share of images for which an attribute is read correctly, by the attribute's name."""
    right = reader.read(data.items)[0].codes == data.attributes.codes
    return dict(zip(reader.values, right.double().mean(dim=0).tolist(), strict=True))


def attribute_key(real: RealData) -> str:
    """A digest of the recipe and of the data set that a reader is trained on."""
    data = real.train
    values = {name: list(each) for name, each in data.attributes.values.items()}
    recipe = [RECIPE, GRID, CHANNELS, harder(real), STEPS, values, data.items.shape]
    sha256 = hashlib.sha256(json.dumps(recipe).encode())
    for part in data.items.split(10_000):
        sha256.update(part.contiguous().numpy())
    sha256.update(data.attributes.codes.numpy())
    return sha256.hexdigest()
