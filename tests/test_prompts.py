"""Whether pictures show what their prompts say: statements, readers, and the whole measure."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from conditions import Condition
from conftest import TINY
from dataset import registry
from dataset.captioned_mnist import VALUES, facts_of, make_canvases
from dataset.items import resized
from dataset.types import Attributes, Data, Source
from diffusion import GaussianDiffusion
from evaluation import attributes, prompts
from evaluation.attributes import AttributeNetwork, AttributeReader, attribute_reader
from evaluation.prompts import (
    check_avatar,
    check_digits,
    check_of,
    clip_score,
    common_errors,
    confusion,
    number_of_digits,
    score,
    unreadable,
)
from evaluation.real import RealData


@pytest.fixture(scope="module")
def canvases() -> dict[str, Data]:
    """Canvases of digits, of scans in the place of MNIST, by split."""
    bunch = load_digits()
    scans = torch.from_numpy((bunch.images[:200, None] * 15.9).astype(np.uint8))
    images = np.pad(resized(scans, (20, 20))[:, 0].numpy(), [(0, 0), (4, 4), (4, 4)])
    return {
        split: make_canvases(images, bunch.target[:200], split, count)
        for split, count in (("train", 80), ("test", 40), ("pairs", 60))
    }


# --- statements -----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_statement_of_a_caption_is_true_of_its_own_canvas(canvases, split):
    data = canvases[split]
    found = score(check_digits, data.captions, data.attributes)
    assert (found.attributes, found.exact) == (1, 1)
    assert found.by_name.keys() >= {"count", "layout", "digit", "colour"}
    assert found.by_group == {}


def test_the_exact_match_of_each_number_of_digits():
    two = canvas_of([("3", "red"), ("4", "blue")], "row")
    attributes = Attributes(VALUES, two.codes.expand(3, -1))
    captions = ["a red 3 and a blue 4", "a red 3 and a red 4", "a 5"]
    found = score(check_digits, captions, attributes, group=number_of_digits)
    assert found.by_group == {"2 digits": 0.5, "1 digit": 0}


def test_wrong_canvases_are_found_out(canvases):
    data = canvases["train"]
    shifted = data.attributes._replace(codes=data.attributes.codes.roll(1, dims=0))
    found = score(check_digits, data.captions, shifted)
    assert found.exact < 0.1
    assert 0 < found.attributes < 0.7


def canvas_of(digits: list[tuple[str, str]], layout: str) -> Attributes:
    """The attributes of one canvas."""
    chosen = {name: values[0] for name, values in VALUES.items()}
    chosen |= {"count": str(len(digits)), "layout": layout}
    for cell, (digit, colour) in enumerate(digits, start=1):
        chosen |= {f"digit_{cell}": digit, f"colour_{cell}": colour}
        chosen |= {f"thickness_{cell}": "medium", f"slant_{cell}": "little"}
    codes = [VALUES[name].index(value) for name, value in chosen.items()]
    return Attributes(VALUES, torch.tensor([codes], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a red 3 above a blue 7", []),
        ("a red 7 above a blue 3", ["digit", "digit"]),
        ("a blue 7 below a red 3", []),
        ("a blue 7 to the left of a red 3", ["layout", "digit", "colour", "digit", "colour"]),
        ("a blue 7 and a red 3", []),
        ("a 7 and a green 3", ["colour"]),
        ("two 3s and a 7", ["count", "digit", "digit", "digit"]),
        ("a 3", ["count", "digit"]),
    ],
)
def test_statements_of_captions_of_digits(caption, wrong):
    canvas = canvas_of([("3", "red"), ("7", "blue")], "column")
    assert facts_of(canvas, 0).layout == "column"
    assert [name for name, right in check_digits(caption, canvas, 0) if not right] == wrong


def test_statements_of_captions_of_avatars():
    values = {"top": ("beanie", "cap"), "top colour": ("red", "blue"), "glasses": ("none", "visor")}
    seen = Attributes(values, torch.tensor([[0, 1, 1]], dtype=torch.uint8))
    found = check_avatar("a red beanie and a visor", seen, 0, "voxel-art")
    assert dict(found) == {"top": True, "top colour": False, "glasses": True}


def test_errors_are_counted_by_what_is_said_and_shown():
    values = {"top": ("beanie", "cap"), "top colour": ("red", "blue"), "glasses": ("none", "visor")}
    seen = Attributes(values, torch.tensor([[0, 1, 1], [1, 1, 1], [1, 0, 0]], dtype=torch.uint8))
    captions = ["a red beanie and a visor", "a red beanie and a visor", "a red cap"]
    found = confusion(captions, seen, "voxel-art")
    assert found["top"] == {"beanie": {"beanie": 1, "cap": 1}, "cap": {"cap": 1}}
    assert found["top colour"] == {"red": {"blue": 2, "red": 1}}
    errors = common_errors(found, 2)
    assert errors == [("top colour", "red", "blue", 2, 3), ("top", "beanie", "cap", 1, 2)]


def test_statements_can_be_left_out():
    canvas = canvas_of([("3", "red")], "left")
    caption = "a blue 3 on the left"
    assert score(check_digits, [caption], canvas).exact == 0
    assert score(check_digits, [caption], canvas, ["colour"]).exact == 1


def test_data_without_known_attributes_cannot_be_checked():
    assert check_of("folder", {}) is None


# --- the reader -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (17, 30)])
def test_the_reader_scores_all_values(size):
    network = AttributeNetwork(3, size, [2, 5]).eval()
    assert network(torch.randn(4, 3, *size)).shape == (4, 7)


def test_what_is_read_unreliably_is_named(canvases, monkeypatch):
    data = canvases["test"]
    wrong = data.attributes.codes.clone()
    column = list(VALUES).index("colour_1")
    wrong[:, column] = 1 + wrong[:, column] % (len(VALUES["colour_1"]) - 1)
    reader = AttributeReader(nn.Linear(1, 1), VALUES, "", {})
    monkeypatch.setattr(reader, "read", lambda images: (Attributes(VALUES, wrong), images))
    found = unreadable(check_digits, reader, data)
    assert found.keys() == {"colour"}
    assert found["colour"] < 0.9


def test_a_reader_learns_from_images_with_every_combination(canvases, monkeypatch, tmp_path):
    learned = []

    def learn(make, data, steps, *arguments, **options):
        learned.append((data.items, steps))
        return make()

    monkeypatch.setattr(attributes, "learn", learn)
    real = RealData("captioned_mnist", canvases["train"], canvases["test"], "", False, tmp_path)
    for each in (real, real._replace(pairs=lambda: canvases["pairs"])):
        attribute_reader(each, tmp_path, torch.device("cpu"))
    (of_train, steps), (of_pairs, more_steps) = learned
    assert torch.equal(of_train, canvases["train"].items)
    assert torch.equal(of_pairs, canvases["pairs"].items)
    assert more_steps > steps
    assert len(list(tmp_path.glob("attributes_*.safetensors"))) == 2  # neither replaces the other


def test_the_clip_score_is_the_mean_cosine():
    class Pair(nn.Module):
        def forward(self, x, t, condition):
            return torch.stack([x.mean(dim=(2, 3)), condition.tokens.float()], dim=1)

    bright = torch.zeros(2, 2, 4, 4, dtype=torch.uint8)
    bright[:, 0] = 255  # (1, -1) as means
    condition = Condition(tokens=torch.tensor([[3, 0], [0, 5]]))
    found = clip_score(Pair(), GaussianDiffusion("cosine", 100), condition, [bright], 255 - bright)
    assert found.values == pytest.approx([(0.5**0.5 - 0.5**0.5) / 2], abs=1e-6)
    first = Condition(tokens=torch.tensor([[3, 0], [3, 0]]))
    found = clip_score(Pair(), GaussianDiffusion("cosine", 100), first, [bright], 255 - bright)
    assert found.values == pytest.approx([0.5**0.5])
    assert found.floor == pytest.approx([-(0.5**0.5)])


# --- the whole measure ----------------------------------------------------------------------------


@pytest.fixture
def small(canvases, monkeypatch):
    """captioned_mnist with few canvases, and a reader that is trained in a second."""
    loads, have = lambda request: canvases[request.split], {"has_test": True, "has_pairs": True}
    source = Source(loads, (3, 32, 32), **have)
    monkeypatch.setitem(registry.DATASETS, "captioned_mnist", source)
    monkeypatch.setattr(attributes, "STEPS", 10)
    monkeypatch.setattr(prompts, "READABLE", 0.0)


def test_prompts_are_measured(small, script, tmp_path, monkeypatch):
    flags = [*TINY, "--dataset", "captioned_mnist", "--data-dir", tmp_path, "--image-size", 16]
    words = [*flags, "--model", "dit", "--blocks", 1, "--batch-size", 16, "--max-steps", 2]
    assert script("train", *words).code == 0
    clip = [word for word in flags if word != "--no-class-conditional"]
    clip += ["--model", "clip", "--batch-size", 16, "--max-steps", 2, "--output-dir", "clip"]
    assert script("train", *clip).code == 0
    measure = ["--checkpoint", "outputs", "--steps", 2, "--num-images", 20, "--repeats", 2]
    result = script("evaluate", *measure, "--clip-score", "clip")  # prompt is the default
    assert result.code == 0, result.err
    assert "training captions" in result.out
    assert "held-out captions (test split)" in result.out
    report = json.loads(Path("outputs/metrics.json").read_text())["prompt"]
    for part in ("training", "held_out"):
        for name in ("attribute_accuracy", "exact_match", "precision", "recall", "clip_score"):
            assert len(report[part][name]["values"]) == 2
        assert report[part]["by_attribute"].keys() >= {"count", "digit", "exact match, 2 digits"}

    monkeypatch.setattr(prompts, "READABLE", 2.0)
    result = script("evaluate", *measure, "--metrics", "prompt")
    assert result.code == 1
    assert "nothing of what the captions say can be read reliably" in result.err

    for more, message in [
        (["--prompt", "a 3"], "--prompt has no effect on --metrics prompt"),
        (["--metrics", "copies", "--clip-score", "clip"], "--clip-score has no effect without"),
    ]:
        result = script("evaluate", *measure, *more)
        assert result.code == 2
        assert message in result.err


def test_prompts_need_a_checkpoint_with_captions(trained, script):
    result = script("evaluate", "--checkpoint", trained, "--metrics", "prompt")
    assert result.code == 2
    assert "--metrics prompt needs a --checkpoint that is conditioned on captions" in result.err
