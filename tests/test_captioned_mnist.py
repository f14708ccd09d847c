"""Canvases of digits with captions: every word of a caption is true of its canvas."""

import hashlib
import re
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.testing import assert_close

from dataset import captioned_mnist
from dataset.captioned_mnist import (
    HELD_OUT,
    LAYOUTS,
    SIDE,
    VALUES,
    facts_of,
    make_canvases,
    slant_index,
    slant_of,
    thickness_of,
)
from dataset.digit_captions import COLOURS, Digit, Facts, describe, holds, mentioned
from dataset.idx import MNIST
from dataset.items import resized
from dataset.registry import load_dataset
from utils import DataError


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """400 scans of digits in the place of MNIST: images, uint8 (400, 28, 28), and labels."""
    bunch = load_digits()
    scans = torch.from_numpy((bunch.images[:400, None] * 15.9).astype(np.uint8))
    images = np.pad(resized(scans, (20, 20))[:, 0].numpy(), [(0, 0), (4, 4), (4, 4)])
    return images, bunch.target[:400]


@pytest.fixture(scope="module", params=["train", "test"])
def split(request, digits):
    """A split, and 3,000 of its canvases."""
    return request.param, make_canvases(*digits, request.param, 3000)


def each_canvas(data) -> list[Facts]:
    return [facts_of(data.attributes, i) for i in range(len(data.items))]


# --- the data set --------------------------------------------------------------------------------


def test_the_digits_are_read_from_the_files_of_mnist(digits, tmp_path, monkeypatch):
    raw, contents = tmp_path / "MNIST" / "raw", {}
    for start in ("train", "t10k"):
        contents[f"{start}-images-idx3-ubyte"] = bytes(16) + digits[0].tobytes()
        contents[f"{start}-labels-idx1-ubyte"] = bytes(8) + digits[1].astype(np.uint8).tobytes()
    md5s = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(captioned_mnist, "MNIST", MNIST._replace(md5s=md5s))
    monkeypatch.setattr(captioned_mnist, "COUNTS", {"train": 50, "test": 40, "pairs": 60})
    load = partial(load_dataset, "captioned_mnist", tmp_path, download=False)
    with pytest.raises(DataError, match=r"mnist not found in .* and was not downloaded"):
        load()
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / name).write_bytes(content)
    for part, count in (("train", 50), ("test", 40), ("pairs", 60)):
        data = load(split=part)
        assert data.items.shape == (count, 3, SIDE, SIDE)
        assert data.items.dtype == torch.uint8
        assert (data.labels, data.classes) == (None, [])
        assert len(data.captions) == count
        assert data.attributes.codes.shape == (count, len(data.attributes.values))
        assert data.attributes.codes.dtype == torch.uint8
    assert load(image_size=16).items.shape == (50, 3, 16, 16)


def test_a_canvas_is_a_pure_function_of_split_and_index(digits, split):
    name, data = split
    np.random.seed(3)
    torch.manual_seed(3)
    few = make_canvases(*digits, name, 90)
    assert_close(few.items, data.items[:90], rtol=0, atol=0)
    assert few.captions == data.captions[:90]
    assert_close(few.attributes.codes, data.attributes.codes[:90])
    assert len(set(data.captions)) > 2000


def test_the_splits_differ(digits):
    first = [make_canvases(*digits, name, 20).captions for name in ("train", "test")]
    assert first[0] != first[1]


def test_held_out_pairs_occur_only_in_the_test_split(split):
    name, data = split
    pairs = {(digit, colour) for colour, digit in HELD_OUT.items()}
    assert len(pairs) == len(COLOURS)  # one in ten
    seen = [{(int(d.digit), d.colour) for d in facts.digits} for facts in each_canvas(data)]
    if name == "train":
        assert set().union(*seen) == set(product(range(10), COLOURS)) - pairs
    else:
        assert all(pairs & canvas for canvas in seen)
        assert set().union(*seen) >= pairs


def test_the_canvases_of_all_pairs_have_the_held_out_ones_too(digits):
    canvases = make_canvases(*digits, "pairs", 2000)
    seen = {(int(d.digit), d.colour) for facts in each_canvas(canvases) for d in facts.digits}
    assert seen == set(product(range(10), COLOURS))


def test_every_single_value_occurs_in_both_splits(split):
    _, data = split
    for column, (name, values) in zip(data.attributes.codes.T, VALUES.items(), strict=True):
        assert column.max() < len(values)
        if not name.startswith(("thickness", "slant")):  # these depend on the digits
            expected = set(range(len(values))) - ({0} if name in ("digit_1", "colour_1") else set())
            assert set(column.tolist()) == expected, name


# --- truth of the captions -----------------------------------------------------------------------


def test_every_caption_is_true(split):
    _, data = split
    for caption, truth in zip(data.captions, each_canvas(data), strict=True):
        assert holds(mentioned(caption), truth), caption
        assert not re.search(r"\ba [8aeiou]|\ban [^8aeiou]", caption)


def test_the_words_for_a_canvas():
    """Each fact of a canvas is in some of its captions: they are not all true of another canvas."""
    truth = Facts((Digit("8", "red", "thick", "left"), Digit("8", "red", "thin", "left")), "column")
    draws = np.random.RandomState(0).random_sample((2000, 40)).tolist()
    captions = {describe(truth, iter(row)) for row in draws}
    assert {"two 8s", "two red 8s", "two red 8s in a column"} <= captions
    assert "a bold 8 above a slender 8" in captions
    assert any(" below " in caption for caption in captions)
    assert all(holds(mentioned(caption), truth) for caption in captions)
    others = [
        truth._replace(layout="row"),
        truth._replace(digits=truth.digits[:1], layout="top"),
        truth._replace(digits=truth.digits[::-1]),
        truth._replace(digits=tuple(d._replace(colour="blue") for d in truth.digits)),
        truth._replace(digits=tuple(d._replace(slant="right") for d in truth.digits)),
    ]
    for other in others:
        assert not all(holds(mentioned(caption), other) for caption in captions)


@pytest.mark.parametrize(
    ("captions", "facts"),
    [
        (
            ["a 3 above a 7", "a 7 below a 3", "a 3 at the top and a 7 at the bottom"],
            Facts((Digit("3"), Digit("7")), "column"),
        ),
        (
            ["a red 3 to the left of an 8", "an 8 to the right of a red 3"],
            Facts((Digit("3", "red"), Digit("8")), "row"),
        ),
        (
            ["two 5s and a red 1"],
            Facts((Digit("5"), Digit("5"), Digit("1", "red")), None, ordered=False),
        ),
        (
            ["a thick blue 4 on the left", "on the left side, a bold blue 4"],
            Facts((Digit("4", "blue", "thick"),), "left", ordered=False),
        ),
        (
            ["a 1, a 2 and a 3 from left to right", "a 3, a 2 and a 1 from right to left"]
            + ["a 2 between a 1 on the left and a 3 on the right"],
            Facts((Digit("1"), Digit("2"), Digit("3")), "row"),
        ),
        (
            ["three thin right-leaning 6s in a stack"],
            Facts((Digit("6", None, "thin", "right"),) * 3, "column", ordered=False),
        ),
    ],
)
def test_a_caption_is_read_back(captions, facts):
    assert [mentioned(caption) for caption in captions] == [facts] * len(captions)


@pytest.mark.parametrize("caption", ["", "a cat", "a purple 3", "a 3 above", "two 5", "a 3 a 5"])
def test_a_caption_that_is_not_of_the_grammar_is_an_error(caption):
    with pytest.raises(ValueError, match=r"not a (caption|word) of captioned_mnist"):
        mentioned(caption)


# --- truth of the pixels -------------------------------------------------------------------------


def test_ink_lies_in_the_cells_and_has_the_named_colours(split):
    _, data = split
    palette = np.array(list(COLOURS.values()), float)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    cells = {(layout.name, len(layout.cells)): layout.cells for layout in LAYOUTS}
    for canvas, facts in zip(data.items[:500].numpy(), each_canvas(data), strict=False):
        outside = canvas.max(axis=0).copy()
        for digit, cell in zip(facts.digits, cells[facts.layout, len(facts.digits)], strict=True):
            left, top, right, bottom = (int(edge) for edge in cell)
            inside = canvas[:, top + 1 : bottom - 1, left + 1 : right - 1]
            ink = inside.reshape(3, -1).sum(axis=1, dtype=float)
            nearest = (palette @ ink).argmax()
            assert list(COLOURS)[nearest] == digit.colour
            assert inside.max() > 120
            outside[top : int(np.ceil(cell[3])), left : int(np.ceil(cell[2]))] = 0
        assert outside.max() < 80


def test_the_first_of_two_digits_is_on_the_left_or_above(split):
    _, data = split
    centres, seen = np.arange(SIDE), set()
    for canvas, facts in zip(data.items[:500].double().numpy(), each_canvas(data), strict=False):
        colours = [digit.colour for digit in facts.digits]
        if sorted(colours) != ["blue", "yellow"]:  # blue ink has more blue than red
            continue
        ink = {"blue": (canvas[2] - canvas[0]).clip(0), "yellow": (canvas[0] - canvas[2]).clip(0)}
        axis = {"row": 0, "column": 1}[facts.layout]
        first, second = (
            (ink[colour].sum(axis=axis) * centres).sum() / ink[colour].sum() for colour in colours
        )
        assert second - first > 8
        seen.add(facts.layout)
    assert seen == {"row", "column"}


# --- thickness and slant -------------------------------------------------------------------------


def bar(width: float, shear: float) -> np.ndarray:
    """A bar, 20 pixels high, that leans to the right by a shear; antialiased."""
    y, x = np.mgrid[4:24:200j, 0:28:280j]
    inked = np.abs(x - 14 - shear * (14 - y)) < width / 2
    return np.pad(inked.reshape(20, 10, 28, 10).mean(axis=(1, 3)) * 255, [(4, 4), (0, 0)])


@pytest.mark.parametrize("shear", [-0.5, 0, 0.4, 0.8])
@pytest.mark.parametrize("width", [2, 4])
def test_slant_and_thickness_of_a_bar(width, shear):
    image = bar(width, shear)[None].astype(np.uint8)
    assert slant_of(image)[0] == pytest.approx(shear, abs=0.03)
    across = width / np.hypot(1, shear)
    assert thickness_of(image)[0] == pytest.approx(across * 20 / (across + 20), rel=0.12)
    label = np.array([1])
    assert slant_index(image, label)[0] == {-0.5: 0, 0: 1, 0.4: 1, 0.8: 2}[shear]


def test_an_upright_digit_with_a_long_base_is_not_slanted():
    image = bar(3, 0)
    image[21:24, 14:26] = 255
    image = image[None].astype(np.uint8)
    assert slant_of(image)[0] < captioned_mnist.SLANT_BOUNDS[0]  # its moments are
    assert slant_index(image, np.array([1]))[0] == 1


def test_real_digits_have_every_thickness_and_slant(real_data, monkeypatch):
    monkeypatch.setitem(captioned_mnist.COUNTS, "test", 1000)
    data = load_dataset("captioned_mnist", real_data, download=False, split="test")
    facts = each_canvas(data)
    assert all(holds(mentioned(c), f) for c, f in zip(data.captions, facts, strict=True))
    known = [digit for canvas in facts for digit in canvas.digits]
    for name, middle in (("thickness", "medium"), ("slant", "little")):
        values = [getattr(digit, name) for digit in known]
        assert set(values) == set(VALUES[f"{name}_1"]) - {"none"}
        assert 0.6 < np.mean([value == middle for value in values]) < 0.95
