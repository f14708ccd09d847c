"""Classes by name: how a user may spell them, which one is drawn, and how they are shown."""

import re
import unicodedata

import numpy as np
import pytest
import torch

from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from checkpoints.consistency import require_config
from cli.sampling import SAMPLE
from dataset import folders
from dataset.registry import load_dataset
from images import save_image
from runs import SMALL
from sample import sample
from sampling.classes import SHOWN, ClassNames

PETS = ["Ankle boot", "cat", "cat, big", "dog", "T-shirt/top", "É", 'so-called "fox"']
NUMBERS = ["1", "2", "10"]
DRAW = ["--steps", 2, "--num-images", 2, "--output", "s.png"]


@pytest.fixture(scope="module")
def named(conditional, tmp_path_factory):
    """Writes the conditional checkpoint with other names of its ten classes."""
    folder, content = tmp_path_factory.mktemp("named"), load_checkpoint(conditional)

    def write(names: list[str]):
        path = folder / f"{len(list(folder.iterdir()))}.pt"
        data = content["config"]["data"] | {"classes": names}
        save_checkpoint(path, content | {"config": content["config"] | {"data": data}})
        return path

    return write


# --- spelling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "text", "indices"),
    [
        (PETS, "cat,dog", [1, 3]),
        (PETS, "dog, cat", [3, 1]),
        (PETS, "T-shirt/top", [4]),
        (PETS, "Ankle boot", [0]),
        (PETS, "ankle BOOT", [0]),
        (PETS, "cat, big", [2]),
        (PETS, "dog,cat, big,cat", [3, 2, 1]),
        (PETS, "Cat, Big, 3", [2, 3]),
        (PETS, '"cat","dog"', [1, 3]),
        (PETS, '"cat, big",5', [2, 5]),
        (PETS, 'so-called "fox"', [6]),
        (PETS, unicodedata.normalize("NFD", "é"), [5]),  # as macOS spells it in names of folders
        (PETS, "3", [3]),
        (PETS, "0,3", [0, 3]),
        (PETS, "all", [0, 1, 2, 3, 4, 5, 6]),
        (NUMBERS, "1", [0]),
        (NUMBERS, "2,10", [1, 2]),
        (NUMBERS, "0", [0]),  # an index, as there is no such name
        (["001", "002", "010"], "1", [0]),
        (["001", "002", "010"], "10,2", [2, 1]),
        (["1", "01", "2"], "1", [0]),
        (["Cat", "cat"], "cat", [1]),
        (["all", "cat"], "all", [0]),
        (["a", "b", "a,b"], "a,b", [2]),
        (["a", "b", "a,b"], '"a","b"', [0, 1]),
        ([str(i) for i in range(10)], "03", [3]),
        ([",", "a,,b"], "a,,b", [1]),
    ],
)
def test_names_of_classes(names, text, indices):
    assert ClassNames(names).indices(text) == indices


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (PETS, "caat", "there is no class 'caat'; did you mean 'cat'? The classes are 0 Ankle"),
        (PETS, "dog,xyz", "there is no class 'xyz'; the classes are 0 Ankle boot, 1 cat,"),
        (PETS, "7", "there is no class '7'; the classes are"),
        (PETS, "-1", "there is no class '-1'"),
        (PETS, "cat,", "there is no class ''"),
        (PETS, "9" * 5000, "there is no class '999"),
        (["Cat", "cat"], "CAT", "'CAT' could be 0 Cat, 1 cat"),
        (["1", "01"], "001", "'001' could be 0 1, 1 01"),
        (["a\x1b[2J", "b\udcff"], "c", "the classes are 0 a?[2J, 1 b?"),
        ([f"n{i:03d}" for i in range(500)], "x", f"9 n019 and {500 - SHOWN} more (--list-classes)"),
    ],
)
def test_names_of_no_class(names, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ClassNames(names).indices(text)


def test_many_classes_are_found_quickly():
    names = [f"class {i}, of many" for i in range(2000)]
    assert ClassNames(names).indices(",".join(names)) == list(range(2000))
    assert ClassNames(names).indices(",".join(map(str, range(2000)))) == list(range(2000))


# --- sampling -------------------------------------------------------------------------------------


def test_a_name_draws_its_class_and_is_printed(script, named):
    pets = named([*PETS, "1", "8", "x\ny"])
    for text, line in [
        ("cat, big", "class 2: cat, big"),
        ("7", "class 7: 1"),  # an index
        ("8", "class 8"),  # name and index
        ("1", "class 7: 1"),  # a name, though it could be an index
        ("9", "class 9: x?y"),
        ("cat,dog", "classes: 1 cat, 3 dog"),
    ]:
        result = script("sample", "--checkpoint", pets, "--class-id", text, *DRAW)
        assert result.code == 0, result.err
        assert line in result.out.splitlines()
    assert "class" not in script("sample", "--checkpoint", pets, *DRAW).out.replace(str(pets), "")
    result = script("sample", "--checkpoint", pets, "--class-id", "bat", *DRAW)
    assert result.code == 2
    assert "did you mean 'cat'?" in result.err


def test_classes_from_a_notebook(named):
    pets = named([*PETS, "a", "b", "a,b"])

    def of(class_id):
        return sample(pets, class_id=class_id, num_images=2, steps=1)

    cat, both = of("cat"), of("cat,dog")
    assert (cat != of(3)).any()
    for same in (1, "1", np.int64(1), torch.tensor(1), [1], ["cat"], ("CAT",)):
        assert (of(same) == cat).all()
    for same in ([1, 3], ["cat", 3], np.array([1, 3]), torch.tensor([1, 3]), ("cat", "dog")):
        assert (of(same) == both).all()
    assert (of(["a", "b"]) == of("7,8")).all()
    assert (of("a,b") == of(9)).all()
    with pytest.raises(ValueError, match="there is no class 'cow'"):
        of(["cat", "cow"])
    with pytest.raises(ValueError, match="--class-id: names no class"):
        of([])


def test_a_spelling_does_not_change_what_is_drawn(script, named):
    """Parts of an interrupted .npz are continued, however the class is spelled."""
    from sampling.draw import SamplingJob

    pets = str(named([*PETS, "a", "b", "c"]))
    made_by = [
        SamplingJob(SAMPLE.keywords(checkpoint=pets, class_id=text, steps=1)).decisive()
        for text in ("cat", "1", "CAT", [1])
    ]
    assert made_by[0]["--class-id"] == [1]
    assert all(other == made_by[0] for other in made_by)


# --- the order of numbers -------------------------------------------------------------------------


def test_numbers_are_sorted_by_their_value(tmp_path, script, monkeypatch):
    for number, name in enumerate(["10", "2", "1", "cat", "02"]):
        save_image(tmp_path / "images" / name / "a.png", np.full((8, 8, 3), number, np.uint8))
    data = load_dataset("folder", tmp_path / "images")
    assert data.classes == ["1", "02", "2", "10", "cat"]
    of = dict(zip(data.files, data.labels.tolist(), strict=True))
    assert of == {"1/a.png": 0, "02/a.png": 1, "2/a.png": 2, "10/a.png": 3, "cat/a.png": 4}

    # A run from before keeps the order that it has learned.
    flags = [*SMALL[2:], "--dataset", "folder", "--data-dir", "images", "--image-size", 8]
    flags += ["--class-conditional", "--batch-size", 5]
    with monkeypatch.context() as patch:
        patch.setattr(folders, "class_order", str)
        assert script("train", *flags, "--max-steps", 1).code == 0
    result = script("train", *flags, "--resume", "--max-steps", 2)
    assert result.code == 0, result.err
    saved = load_checkpoint("outputs/model_final.pt")
    assert saved["config"]["data"]["classes"] == ["02", "1", "10", "2", "cat"]
    old = data.as_learned(saved["config"]["data"])
    assert dict(zip(old.files, old.labels.tolist(), strict=True))["10/a.png"] == 2
    assert data.as_learned({"classes": ["1", "2"]}) is data


# --- listing --------------------------------------------------------------------------------------


def test_the_classes_are_listed_with_their_counts(script, conditional, named, trained, tmp_path):
    names = [*PETS[:6], "x\x1b[2J", "\udcff", "<b>", "last"]
    shown = [*PETS[:6], "x?[2J", "?", "<b>", "last"]
    counts = load_dataset("digits").labels.bincount().tolist()
    pets = named(names)
    result = script("sample", "--checkpoint", pets, "--list-classes")
    assert result.code == 0
    lines = [f"{i}  {shown[i]}  ({counts[i]} images)" for i in range(10)]
    assert result.out.splitlines() == lines

    content = load_checkpoint(pets)
    del content["config"]["data"]["class_counts"]  # earlier versions did not save them
    save_checkpoint(tmp_path / "old.pt", content)
    result = script("sample", "--checkpoint", tmp_path / "old.pt", "--list-classes")
    assert result.out.splitlines() == [f"{i}  {shown[i]}" for i in range(10)]
    for wrong in ([1], ["one"] * 10):
        content["config"]["data"]["class_counts"] = wrong
        with pytest.raises(ValueError, match="count"):
            require_config(content["config"])

    result = script("sample", "--checkpoint", trained / "model_final.pt", "--list-classes")
    assert result.code == 0
    assert "is not conditioned on classes" in result.out
    with pytest.raises(ValueError, match="list_classes is for the command line"):
        sample(pets, list_classes=True)
