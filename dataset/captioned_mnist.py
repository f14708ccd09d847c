"""Canvases with one to three coloured MNIST digits, and captions that describe them exactly.

Each canvas is a pure function of its split and index. Its pixels are computed with numbers that
float32 represents exactly, so that they are the same on every machine.
"""

from typing import NamedTuple

import numpy as np
import torch

from dataset.digit_captions import (
    ARRANGEMENTS,
    COLOURS,
    DRAWS,
    PLACES,
    Digit,
    Facts,
    describe,
)
from dataset.idx import MNIST, load_idx
from dataset.types import Attributes, Data, Request

SIDE = 32  # of a canvas, in pixels
COUNTS = {"train": 60_000, "test": 10_000, "pairs": 120_000}
SEEDS = {"train": 0, "test": 1, "pairs": 2}
MAX_DIGITS = 3
# {colour: digit} of the pairs that do not occur in the training split: one pair in ten.
HELD_OUT = {
    "white": 2,
    "red": 8,
    "orange": 4,
    "yellow": 9,
    "green": 1,
    "cyan": 6,
    "blue": 7,
    "pink": 3,
}
SAME_DIGIT, SAME_COLOUR = 0.25, 0.25  # probability that a cell repeats the one before it


class Layout(NamedTuple):
    """A way to arrange digits on a canvas."""

    name: str  # a key of PLACES or ARRANGEMENTS
    weight: float  # relative frequency
    sizes: tuple[float, float]  # smallest and largest size of a digit in pixels
    cells: tuple[tuple[float, float, float, float], ...]  # left, top, right and bottom of each


# A digit lies anywhere within its cell, so that the words for its place are true.
LAYOUTS = (
    Layout("centre", 6, (15, 22), ((5, 5, 27, 27),)),
    Layout("left", 4, (12, 18), ((0, 6, 16, 26),)),
    Layout("right", 4, (12, 18), ((16, 6, 32, 26),)),
    Layout("top", 4, (12, 16), ((6, 0, 26, 16),)),
    Layout("bottom", 4, (12, 16), ((6, 16, 26, 32),)),
    Layout("top left", 3, (11, 14), ((0, 0, 15, 15),)),
    Layout("top right", 3, (11, 14), ((17, 0, 32, 15),)),
    Layout("bottom left", 3, (11, 14), ((0, 17, 15, 32),)),
    Layout("bottom right", 3, (11, 14), ((17, 17, 32, 32),)),
    Layout("row", 25, (13, 18), ((0, 6, 16, 26), (16, 6, 32, 26))),
    Layout("column", 25, (12, 15), ((6, 0, 26, 16), (6, 16, 26, 32))),
    Layout("row", 8, (12, 15), ((0, 8, 11, 24), (10.5, 8, 21.5, 24), (21, 8, 32, 24))),
    Layout("column", 8, (10, 11), ((9, 0, 23, 11), (9, 10.5, 23, 21.5), (9, 21, 23, 32))),
)
MARGIN = 0.5  # around a digit within its cell, in pixels
INK = 32  # pixels above this value count as ink

# Properties that are measured from the pixels of a digit. Only the extremes have words.
THICKNESSES, SLANTS = ("thin", "medium", "thick"), ("left", "little", "right")
THICKNESS_BOUNDS = (1.8, 3.2)  # width of the stroke in pixels of MNIST; the median is 2.4
SLANT_BOUNDS = (-0.3, 0.5)  # tangent of the angle to the vertical; the median is 0.2
SHEARS = (-0.6, 0.8)  # of the second test for a slant: about twice the bounds
# Slant of an upright digit of each class by its moments: that of 0, 1 and 8 is 0 by symmetry.
UPRIGHT = np.array([0, 0, -0.1, -0.15, -0.15, 0, -0.17, -0.17, 0, -0.19])

# The attributes of a canvas. A cell without a digit has the values "none".
PROPERTIES = {
    "digit": ("none", *MNIST.classes),
    "colour": ("none", *COLOURS),
    "thickness": ("none", *THICKNESSES),
    "slant": ("none", *SLANTS),
}
VALUES = {
    "count": tuple(str(count) for count in range(1, MAX_DIGITS + 1)),
    "layout": (*PLACES, *ARRANGEMENTS),
}
VALUES |= {
    f"{name}_{cell}": values
    for cell in range(1, MAX_DIGITS + 1)
    for name, values in PROPERTIES.items()
}


def load_captioned_mnist(request: Request) -> Data:
    """60,000 canvases with captions, 32 x 32, colour; in the test split, 10,000.

    The training split has none of the HELD_OUT pairs of digit and colour, and each canvas of the
    test split has at least one. The split "pairs" has 120,000 canvases with all pairs, to train a
    network that reads digits: from data without a red 8, it would learn that nothing red is an 8.
    The digits are MNIST's test images in the test split, else its training images.
    """
    part = "test" if request.split == "test" else "train"
    mnist = load_idx(MNIST, request._replace(split=part))
    images, labels = mnist.items[:, 0].numpy(), mnist.labels.numpy()
    return make_canvases(images, labels, request.split, COUNTS[request.split])


def make_canvases(images: np.ndarray, labels: np.ndarray, split: str, count: int) -> Data:
    """The first `count` canvases of a split, made of images of digits, uint8 (M, 28, 28)."""
    random = np.random.RandomState(SEEDS[split])
    draws = random.random_sample((count, LAYOUT_DRAWS + DRAWS))
    plan = make_plan(draws[:, :LAYOUT_DRAWS], labels, split)
    attributes = Attributes(VALUES, torch.from_numpy(codes_of(plan, images, labels)))
    captions = [
        describe(facts_of(attributes, i), iter(row))
        for i, row in enumerate(draws[:, LAYOUT_DRAWS:].tolist())
    ]
    items = torch.from_numpy(draw_canvases(plan, images))
    return Data(items, None, [], captions=captions, attributes=attributes)


def facts_of(attributes: Attributes, index: int) -> Facts:
    """The facts about a canvas, from its attributes."""
    codes = attributes.codes[index].tolist()
    count, layout, *cells = (
        values[code] for values, code in zip(attributes.values.values(), codes, strict=True)
    )
    each = len(PROPERTIES)
    digits = [Digit(*cells[i * each : (i + 1) * each]) for i in range(int(count))]
    return Facts(tuple(digits), layout)


# --- which digits, and where ----------------------------------------------------------------------

CELL_DRAWS = 9  # random numbers for each digit
LAYOUT_DRAWS = 3 + MAX_DIGITS * CELL_DRAWS  # and for a whole canvas


class Plan(NamedTuple):
    """The contents of N canvases of up to K = MAX_DIGITS digits. Absent digits have values too."""

    layout: np.ndarray  # (N,), indices into LAYOUTS
    present: np.ndarray  # bool (N, K)
    image: np.ndarray  # (N, K), indices into the images of digits
    colour: np.ndarray  # (N, K), indices into COLOURS
    place: np.ndarray  # (N, K, 3), in [0, 1): size, and position across and down the cell
    brightness: np.ndarray  # (N, K), of the colour


def make_plan(draws: np.ndarray, labels: np.ndarray, split: str) -> Plan:
    """The plan of canvases with these random numbers, (N, LAYOUT_DRAWS) in [0, 1)."""
    weights = np.cumsum([layout.weight for layout in LAYOUTS])
    layout = np.searchsorted(weights, draws[:, 0] * weights[-1], side="right")
    counts = np.array([len(each.cells) for each in LAYOUTS])[layout]
    present = np.arange(MAX_DIGITS) < counts[:, None]

    cells = draws[:, 3:].reshape(-1, MAX_DIGITS, CELL_DRAWS)  # (N, K, CELL_DRAWS)
    digit, colour = choose_pairs(cells[..., :4], held_out=split == "train")
    if split == "test":  # one of the digits is a held-out pair
        cell, pair = below(draws[:, 1], counts), below(draws[:, 2], len(HELD_OUT))
        rows = np.arange(len(draws))
        digit[rows, cell] = held_out_digits()[pair]
        colour[rows, cell] = pair

    by_class = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels, minlength=10)
    image = by_class[(np.cumsum(sizes) - sizes)[digit] + below(cells[..., 4], sizes[digit])]
    brightness = 0.85 + 0.15 * cells[..., 8]
    return Plan(layout, present, image, colour, cells[..., 5:8], brightness)


def choose_pairs(draws: np.ndarray, *, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Digits and colours (N, K) for random numbers (N, K, 4); `held_out` avoids the HELD_OUT pairs.

    A cell sometimes repeats the digit or the colour of the cell before it.
    """
    barred = np.full(10, len(COLOURS))  # the colour that each digit must not have
    if held_out:
        barred[held_out_digits()] = np.arange(len(COLOURS))
    digit = below(draws[..., 0], 10)
    for k in range(1, MAX_DIGITS):
        digit[:, k] = np.where(draws[:, k, 1] < SAME_DIGIT, digit[:, k - 1], digit[:, k])
    bar = barred[digit]
    colour = below(draws[..., 2], len(COLOURS) - (bar < len(COLOURS)))
    colour += colour >= bar
    for k in range(1, MAX_DIGITS):
        repeat = (draws[:, k, 3] < SAME_COLOUR) & (colour[:, k - 1] != bar[:, k])
        colour[:, k] = np.where(repeat, colour[:, k - 1], colour[:, k])
    return digit, colour


def held_out_digits() -> np.ndarray:
    """The digit of each colour's held-out pair, in the order of COLOURS."""
    return np.array([HELD_OUT[colour] for colour in COLOURS])


def below(draws: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to `count` - 1 for random numbers in [0, 1)."""
    return (draws * count).astype(np.int64)


# --- attributes -----------------------------------------------------------------------------------


def codes_of(plan: Plan, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The attributes of the canvases: uint8 (N, len(VALUES)), indices into VALUES."""
    parts = [slice(i, i + 2000) for i in range(0, len(images), 2000)]
    thickness = np.concatenate([thickness_of(images[part]) for part in parts])
    thickness = np.searchsorted(THICKNESS_BOUNDS, thickness)
    slant = np.concatenate([slant_index(images[part], labels[part]) for part in parts])
    names = VALUES["layout"]
    layouts = np.array([names.index(layout.name) for layout in LAYOUTS])[plan.layout]
    digits = np.stack(
        [labels[plan.image], plan.colour, thickness[plan.image], slant[plan.image]], axis=-1
    )  # (N, K, 4)
    digits = np.where(plan.present[..., None], 1 + digits, 0)  # 0 is "none"
    whole = np.stack([plan.present.sum(axis=1) - 1, layouts], axis=1)
    return np.concatenate([whole, digits.reshape(len(whole), -1)], axis=1).astype(np.uint8)


def thickness_of(images: np.ndarray) -> np.ndarray:
    """Stroke width of each image: twice the ink's area / its outline, the total variation."""
    ink = np.pad(images, [(0, 0), (1, 1), (1, 1)]).astype(np.float32)
    across = ink[:, 1:, 1:] - ink[:, 1:, :-1]
    down = ink[:, 1:, 1:] - ink[:, :-1, 1:]
    outline = np.rint(np.sqrt(across**2 + down**2)).sum(axis=(1, 2), dtype=np.float64)
    return 2 * images.sum(axis=(1, 2), dtype=np.float64) / outline


def slant_index(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Index into SLANTS of each image, uint8 (M, 28, 28).

    A digit counts as slanted if both its moments and its strokes are: a long base or bar changes
    only the moments. Slanted strokes are more upright, in fewer columns, after a shear.
    """
    slant = slant_of(images) - UPRIGHT[labels]
    index = np.ones(len(images), np.int64)
    for value, extreme, shear in zip((0, 2), SLANT_BOUNDS, SHEARS, strict=True):
        rows = np.flatnonzero(slant < extreme if extreme < 0 else slant > extreme)
        sharper = sharpness(images[rows], shear) > sharpness(images[rows], 0)
        index[rows[sharper]] = value
    return index


def sharpness(images: np.ndarray, shear: float) -> np.ndarray:
    """Sum of the squared ink of the columns after a shear to the left; large if upright."""
    count, height, width = images.shape
    columns = np.zeros((count, 3 * width), np.int64)
    for row in range(height):
        start = width + round(shear * (row - height / 2))
        columns[:, start : start + width] += images[:, row]
    return (columns**2).sum(axis=1)


def slant_of(images: np.ndarray) -> np.ndarray:
    """The shear that makes a digit upright: -mu_11 / mu_02 of its central moments."""
    grid = np.arange(images.shape[1], dtype=np.float32)
    ink = images.astype(np.float32)
    rows = ink.sum(axis=2).astype(np.float64)  # (M, 28): ink of each row
    across = (ink @ grid).astype(np.float64)  # (M, 28): the same, times x
    total = rows.sum(axis=1)
    x, y = across.sum(axis=1) / total, rows @ grid / total
    mu_11 = across @ grid / total - x * y
    mu_02 = rows @ grid**2 / total - y**2
    return -mu_11 / mu_02


# --- pixels ---------------------------------------------------------------------------------------

STEPS = 128  # a weight of the resampling is a multiple of 1 / STEPS, so that its sums are exact


def draw_canvases(plan: Plan, images: np.ndarray, chunk: int = 1000) -> np.ndarray:
    """Canvases, uint8 (N, 3, SIDE, SIDE)."""
    scale, offset = placement(plan, images)
    canvases = np.zeros((len(plan.layout), 3, SIDE, SIDE), np.uint8)
    palette = np.array(list(COLOURS.values()))  # (number of colours, 3)
    for k in range(MAX_DIGITS):
        rows = np.flatnonzero(plan.present[:, k])
        for part in np.split(rows, range(chunk, len(rows), chunk)):
            ink = images[plan.image[part, k]].astype(np.float32)  # (n, 28, 28)
            across, down = (resampling(scale[part, k], offset[part, k, i]) for i in range(2))
            ink = down @ ink @ across.transpose(0, 2, 1)  # (n, SIDE, SIDE)
            ink = np.minimum(ink / STEPS**2, 255)
            colour = np.rint(palette[plan.colour[part, k]] * plan.brightness[part, k, None])
            colour = colour.astype(np.float32)[..., None, None]
            drawn = np.rint(ink[:, None] * colour / 255).astype(np.uint8)
            canvases[part] = np.maximum(canvases[part], drawn)
    return canvases


def placement(plan: Plan, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale (N, K) of each digit's image, and position (N, K, 2), x and y, of its corner."""
    cells = np.zeros((len(LAYOUTS), MAX_DIGITS, 4))
    for i, layout in enumerate(LAYOUTS):
        cells[i, : len(layout.cells)] = layout.cells
    cells = cells[plan.layout]  # (N, K, 4)
    low, high = np.array([layout.sizes for layout in LAYOUTS])[plan.layout].T[..., None]
    start, end = (bounds[plan.image] for bounds in ink_box(images))  # (N, K, 2)

    room = cells[..., 2:] - cells[..., :2] - 2 * MARGIN
    size = low + plan.place[..., 0] * (high - low)
    scale = np.minimum(size / 20, (room / (end - start)).min(axis=-1))  # MNIST fits in 20 x 20
    free = room - scale[..., None] * (end - start)
    corner = cells[..., :2] + MARGIN + plan.place[..., 1:] * free  # of the ink
    return scale, corner - scale[..., None] * start


def ink_box(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of the ink of each image: two (M, 2), x and y, in pixels."""
    starts, ends = [], []
    for axis in (1, 2):
        inked = (images > INK).any(axis=axis)  # (M, 28)
        starts.append(inked.argmax(axis=1))
        ends.append(inked.shape[1] - inked[:, ::-1].argmax(axis=1))
    return np.stack(starts, axis=1), np.stack(ends, axis=1)


def resampling(scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Weights (n, SIDE, 28) that scale a row of 28 pixels and move it by an offset, antialiased."""
    centres = (np.arange(SIDE) + 0.5 - offset[:, None]) / scale[:, None]  # in source pixels
    reach = np.maximum(1, 1 / scale)[:, None, None]
    distance = np.abs(centres[..., None] - (np.arange(28) + 0.5)) / reach
    weights = np.maximum(0, 1 - distance) / reach
    return np.rint(STEPS * weights).astype(np.float32)
