"""Agreement of images with their prompts, by attributes that a network reads from the images."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import permutations
from statistics import mean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from dataset import avatar_captions, digit_captions
from dataset.captioned_mnist import facts_of
from dataset.items import to_unit
from dataset.types import Attributes, Data
from diffusion import GaussianDiffusion
from evaluation.attributes import BATCH_SIZE, AttributeReader
from evaluation.distances import PRDC, frechet_distance, gaussian_of, prdc
from evaluation.measures import NEIGHBOURS, Measure
from evaluation.real import subset
from utils import DataError

READABLE = 0.98  # accuracy of the reader from which a statement counts

Checked = list[tuple[str, bool]]  # for each statement of a caption: attribute, and if it is right
Check = Callable[[str, Attributes, int], Checked]  # of a caption, attributes, index of the image


class Score(NamedTuple):
    """Agreement of images with their captions."""

    attributes: float  # share of all statements that are right
    exact: float  # share of images for which every statement is right
    by_name: dict[str, float]  # share of statements that are right, by attribute
    by_group: dict[str, float]  # exact match of each kind of caption


def check_avatar(caption: str, attributes: Attributes, index: int, style: str) -> Checked:
    """The statements of a caption of avatars, and whether an image agrees."""
    codes = dict(zip(attributes.values, attributes.codes[index].tolist(), strict=True))
    return [
        (name, attributes.values[name][codes[name]] == value)
        for name, value in avatar_captions.mentioned(caption, style).items()
    ]


def check_digits(caption: str, attributes: Attributes, index: int) -> Checked:
    """The statements of a caption of captioned_mnist, and whether an image agrees.

    These are the number of digits, their places, and each digit and colour. Thickness and slant are
    left out: they cannot be read reliably from digits this small.
    """
    said, seen = digit_captions.mentioned(caption), facts_of(attributes, index)
    checked = [("count", len(said.digits) == len(seen.digits))]
    if said.layout is not None:
        checked.append(("layout", said.layout == seen.layout))
    if not checked[0][1]:
        return checked + [("digit", False) for _ in said.digits]
    orders = [seen.digits] if said.ordered else permutations(seen.digits)

    def compared(order: Sequence[digit_captions.Digit]) -> Checked:
        found = []
        for wanted, shown in zip(said.digits, order, strict=True):
            found.append(("digit", wanted.digit == shown.digit))
            if wanted.colour is not None:
                found.append(("colour", wanted.colour == shown.colour))
        return found

    return checked + max(map(compared, orders), key=lambda found: sum(right for _, right in found))


def check_of(name: str, config: Mapping) -> Check | None:
    """The function that compares images of a data set with captions; None if there is none."""
    if name == "avatars":
        return partial(check_avatar, style=config["avatar_style"])
    return {"captioned_mnist": check_digits}.get(name)


def number_of_digits(caption: str) -> str:
    """The kind of a caption of captioned_mnist: its number of digits."""
    count = len(digit_captions.mentioned(caption).digits)
    return "1 digit" if count == 1 else f"{count} digits"


# Data sets for which the exact match is also given for each kind of caption: caption -> kind.
GROUPS: dict[str, Callable[[str], str]] = {"captioned_mnist": number_of_digits}


def confusion(
    captions: Sequence[str], attributes: Attributes, style: str
) -> dict[str, dict[str, dict[str, int]]]:
    """Confusion matrix of each attribute of avatars: {attribute: {said: {shown: count}}}.

    Args:
        captions: of the images (N).
        attributes: of the images (N), as they were read.
        style: of the avatars, a key of `avatar_styles.STYLES`.
    """
    found: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    for i, caption in enumerate(captions):
        codes = dict(zip(attributes.values, attributes.codes[i].tolist(), strict=True))
        for name, said in avatar_captions.mentioned(caption, style).items():
            found[name][said][attributes.values[name][codes[name]]] += 1
    return {name: {k: dict(v) for k, v in rows.items()} for name, rows in found.items()}


def common_errors(
    confused: dict[str, dict[str, dict[str, int]]], count: int
) -> list[tuple[str, str, str, int, int]]:
    """The most frequent errors: (attribute, said, shown, how often, of how many)."""
    errors = [
        (name, said, shown, number, sum(row.values()))
        for name, rows in confused.items()
        for said, row in rows.items()
        for shown, number in row.items()
        if shown != said
    ]
    return sorted(errors, key=lambda error: -error[3])[:count]


def score(
    check: Check,
    captions: Sequence[str],
    attributes: Attributes,
    left_out: Collection[str] = (),
    group: Callable[[str], str] | None = None,
) -> Score:
    """Compare attributes, as they were read from images, with the captions of these images.

    Statements about the attributes in `left_out` do not count. `group` maps a caption to its kind.
    """
    by_name: dict[str, list[bool]] = defaultdict(list)
    by_group: dict[str, list[bool]] = defaultdict(list)
    exact = []
    for i, caption in enumerate(captions):
        checked = [each for each in check(caption, attributes, i) if each[0] not in left_out]
        exact.append(all(right for _, right in checked))
        if group:
            by_group[group(caption)].append(exact[-1])
        for name, right in checked:
            by_name[name].append(right)
    every = [right for values in by_name.values() for right in values]
    shares = ({name: mean(found) for name, found in each.items()} for each in (by_name, by_group))
    return Score(mean(every), mean(exact), *shares)


def unreadable(check: Check, reader: AttributeReader, data: Data) -> dict[str, float]:
    """Statements that the reader cannot read reliably, with its accuracy on held-out images.

    Raises DataError if no statement can be read reliably.
    """
    found = score(check, data.captions, reader.read(data.items)[0]).by_name
    uncertain = {name: accuracy for name, accuracy in found.items() if accuracy < READABLE}
    if len(uncertain) == len(found):
        raise DataError("nothing of what the captions say can be read reliably from real images")
    return uncertain


def prompt_measures(
    check: Check,
    reader: AttributeReader,
    data: Data,
    indices: Tensor,
    sets: Sequence[Tensor],
    left_out: Collection[str],
    group: Callable[[str], str] | None = None,
) -> tuple[dict[str, Measure], dict[str, tuple[float, float]]]:
    """Measures of sets of images that were drawn for the captions of some items.

    Args:
        check: compares an image with a caption.
        reader: reads attributes.
        data: the items; the images of the chosen ones give the floor.
        indices: of the items (N,) that gave the captions.
        sets: uint8 images (N, C, H, W).
        left_out: attributes of which statements do not count.
        group: maps a caption to its kind.

    Returns the measures by name, and by attribute the accuracy of samples and of real images. The
    second dict also has the exact match for each kind of caption.
    """
    chosen = subset(data, indices)
    real, real_features = reader.read(chosen.items)
    std = real_features.std(dim=0).clamp(min=1e-6)
    real_gaussian = gaussian_of(real_features / std)

    def measured(images: Tensor, captions: Sequence[str]) -> tuple[Score, PRDC, float]:
        attributes, features = reader.read(images)
        return (
            score(check, captions, attributes, left_out, group),
            prdc(real_features, features, NEIGHBOURS),
            frechet_distance(gaussian_of(features / std), real_gaussian),
        )

    found = [measured(images, chosen.captions) for images in sets]
    scores, close, distances = zip(*found, strict=True)
    floor = score(check, chosen.captions, real, left_out, group)
    rest = torch.ones(len(data.items), dtype=torch.bool).index_fill(0, indices, False).nonzero()
    others = subset(data, rest[: len(indices), 0])  # other real images, for precision and recall
    _, close_floor, floor_distance = measured(others.items, others.captions)
    measures = {
        "attribute_accuracy": Measure([each.attributes for each in scores], [floor.attributes]),
        "exact_match": Measure([each.exact for each in scores], [floor.exact]),
        "precision": Measure([each.precision for each in close], [close_floor.precision]),
        "recall": Measure([each.recall for each in close], [close_floor.recall]),
        "reader_fid": Measure(list(distances), [floor_distance]),
    }
    by_name = {
        name: (mean(each.by_name.get(name, 0.0) for each in scores), value)
        for name, value in sorted(floor.by_name.items())
    }
    by_name |= {
        f"exact match, {kind}": (mean(each.by_group[kind] for each in scores), value)
        for kind, value in sorted(floor.by_group.items())
    }
    return measures, by_name


@torch.no_grad()
def clip_score(
    clip: nn.Module,
    diffusion: GaussianDiffusion,
    condition: Condition,
    sets: Sequence[Tensor],
    real: Tensor,
) -> Measure:
    """The mean cosine similarity of images and their captions, by a CLIP model of this data set.

    Hessel et al. 2021, arXiv:2104.08718, without their factor of 2.5.

    Args:
        clip: maps (x, t, condition) to embeddings (B, 2, D) of images and captions.
        diffusion: the process of `clip`; images are treated as those at its lowest noise level.
        condition: the captions (N).
        sets: uint8 images (N, C, H, W) with these captions.
        real: the real images (N, C, H, W) with these captions, for the floor.
    """
    device = diffusion.alpha.device

    def similarity(images: Tensor) -> float:
        found = []
        for rows in torch.arange(len(images)).split(BATCH_SIZE):
            x = to_unit(images[rows].to(device))
            t = torch.zeros(len(x), dtype=torch.int64, device=device)
            image, caption = clip(diffusion.scaled(x, t), t, condition[rows].to(device)).unbind(1)
            found.append(F.cosine_similarity(image, caption).cpu())
        return torch.cat(found).mean().item()

    return Measure([similarity(images) for images in sets], [similarity(real)])
