from itertools import product

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cli.evaluation import EVALUATE
from conftest import TINY
from dataset import avatars
from dataset.avatar_captions import ANY, GRAMMARS, MAX_WORDS, all_phrases, mentioned, write_caption
from dataset.avatar_renderer import render
from dataset.avatar_styles import (
    NONE,
    STYLES,
    draw_avatar,
    held_out_pairs,
    options,
)
from dataset.registry import load_dataset
from evaluation.real import load_real_data
from utils import DataError

pytest.importorskip("dicebear")
pytest.importorskip("resvg_py")

run_renderer = avatars.run_renderer
COUNTS = {"train": 10, "test": 4}
every_style = pytest.mark.parametrize("name", STYLES)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Ten avatars instead of 50,000, in three parts."""
    monkeypatch.setattr(avatars, "COUNTS", COUNTS)
    monkeypatch.setattr(avatars, "PART", 4)
    monkeypatch.setattr(avatars, "run_renderer", render_here)


def render_here(definition, side, every):
    """Render in this process, which takes less time; one test compares both."""
    return np.stack(list(render(definition, side, every)))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A data folder that holds the avatars of 16 x 16 pixels once a test has loaded them."""
    return tmp_path_factory.mktemp("data")


def load(folder, split="train", **arguments):
    return load_dataset("avatars", folder, image_size=16, split=split, **arguments)


def draw(name, split, count, first=0):
    """The attributes of some avatars."""
    style = STYLES[name]
    held_out = held_out_pairs(style)
    return [draw_avatar(style, held_out, split, i) for i in range(first, first + count)]


def captions(name, split, every):
    style, grammar = STYLES[name], GRAMMARS[name]
    return [write_caption(style, grammar, drawn, split, i) for i, drawn in enumerate(every)]


# --- attributes ----------------------------------------------------------------------------------


@every_style
def test_attributes_captions_and_pictures_are_pure_functions_of_split_and_index(name):
    style, every = STYLES[name], draw(name, "train", 20)
    assert draw(name, "train", 5, first=15) == every[15:]
    assert draw(name, "test", 20) != every
    assert captions(name, "train", every) == captions(name, "train", every)
    for drawn in every[:2]:
        twice = [options(style, drawn), options(style, drawn) | {"seed": "another"}]
        first, second = render(style.definition, 32, twice)
        assert first.shape == (3, 32, 32)
        assert first.tobytes() == second.tobytes()  # the generator of DiceBear decides nothing


@every_style
def test_held_out_pairs_are_in_the_test_split_alone(name):
    held_out = held_out_pairs(STYLES[name])
    for (first, second), pairs in held_out.items():
        values = STYLES[name].values()
        every = product(*(set(values[one]) - {NONE} for one in (first, second)))
        assert len(pairs) == len(list(every)) // 10
    for split, count in [("train", 2000), ("test", 500)]:
        for drawn in draw(name, split, count):
            found = [(drawn[a], drawn[b]) in pairs for (a, b), pairs in held_out.items()]
            assert any(found) == (split == "test")


@every_style
def test_every_value_occurs_in_the_training_split_and_no_other(name):
    every, values = draw(name, "train", 4000), STYLES[name].values()
    assert list(every[0]) == list(values)
    for attribute, possible in values.items():
        assert {drawn[attribute] for drawn in every} == set(possible), attribute
        assert len(set(possible)) == len(possible)


def plain(style):
    """The first look of each part that is always there, without the others."""
    drawn = {}
    for name, part in style.parts.items():
        drawn |= with_value(style, name, NONE if part.absent else next(iter(part.variants)))
    return drawn | {name: style.names(palette)[0] for name, palette in style.colours.items()}


def with_value(style, name, value):
    """An attribute that is a part, and the attributes of its colours, which are not the first."""
    part = style.parts[name]
    palettes = () if value == NONE else part.variants[value].colours
    colours = [style.names(palette)[i - 4 :][0] for i, palette in enumerate(palettes)]
    padding = [NONE] * (len(part.colours) - len(colours))
    return {name: value} | dict(zip(part.colours, colours + padding, strict=True))


@every_style
def test_every_attribute_is_visible(name):
    """Avatars that differ in the value of one attribute have different pictures."""
    style = STYLES[name]
    base, values = plain(style), style.values()
    for attribute, part in style.parts.items():
        possible = list(part.variants) if not part.absent else [NONE, *part.variants]
        looks = [base | with_value(style, attribute, value) for value in possible]
        require_different(style, attribute, looks)
        for i, colour in enumerate(part.colours):  # on the first look that has this colour
            look = next(k for k, one in part.variants.items() if len(one.colours) > i)
            dressed = base | with_value(style, attribute, look)
            names = style.names(part.variants[look].colours[i])
            require_different(style, colour, [dressed | {colour: one} for one in names])
    for colour in style.colours:
        require_different(style, colour, [base | {colour: one} for one in values[colour]])


def require_different(style, attribute, looks):
    pictures = list(render(style.definition, 64, [options(style, drawn) for drawn in looks]))
    for i, picture in enumerate(pictures):
        for other in pictures[:i]:
            assert (abs(picture.astype(int) - other) > 24).sum() >= 6, (attribute, looks[i])


@every_style
def test_hidden_attributes_have_no_value(name):
    style = STYLES[name]
    for drawn in draw(name, "train", 500):
        for attribute, part in style.parts.items():
            if any(drawn[other] in values for other, values in part.hidden_by.items()):
                assert drawn[attribute] == NONE


# --- captions ------------------------------------------------------------------------------------


@every_style
@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_say_what_is_true_and_what_matters(name, split):
    style, every = STYLES[name], draw(name, split, 1500)
    written = captions(name, split, every)
    seen = set()
    for drawn, caption in zip(every, written, strict=True):
        said = mentioned(caption, name)
        assert said == {attribute: drawn[attribute] for attribute in said}, caption
        wanted = {"top", "top colour", "glasses"} | {"outfit", "outfit colour", "shirt"}
        wanted &= {attribute for attribute, value in drawn.items() if value != NONE}
        assert wanted <= said.keys(), caption
        assert 3 <= len(caption.split()) <= MAX_WORDS
        assert "{" not in caption
        assert not {"none", "man", "woman"} & set(caption.split())
        seen |= said.keys()
    assert seen == style.values().keys()
    assert len(set(written)) > 0.95 * len(written)


@every_style
def test_no_phrase_has_two_meanings(name):
    written = [
        (phrase, attribute, value)
        for attribute, values in GRAMMARS[name].phrases().items()
        for value, phrases in values.items()
        for phrase in phrases
    ]
    assert len({phrase for phrase, *_ in written}) == len(written)
    values = STYLES[name].values()
    for _, attribute, value in written:
        assert value == ANY or value in values[attribute]
    for said in all_phrases(name).values():
        assert all(value in values[attribute] for attribute, value in said.items())


def test_the_longest_phrase_counts():
    assert mentioned("An orange hat with bunny ears, in a red jacket over a blue shirt.") == {
        "top": "bunny hat",
        "top colour": "orange",
        "outfit": "jacket",
        "outfit colour": "red",
        "second outfit colour": "blue",
    }
    assert mentioned("a dog") == {}


# --- the file ------------------------------------------------------------------------------------


def test_avatars_are_rendered_once(rendered, monkeypatch):
    data = load(rendered)
    assert data.items.shape == (10, 3, 16, 16)
    assert (data.labels, data.classes) == (None, [])
    assert len(data.captions) == 10
    values, codes = data.attributes
    assert codes.shape == (10, len(values))
    for row, caption in zip(codes.tolist(), data.captions, strict=True):
        drawn = {name: values[name][code] for name, code in zip(values, row, strict=True)}
        assert mentioned(caption).items() <= drawn.items()
    path = rendered / "avatars" / "voxel-art_16_train.pixels"
    assert "22 pairs of top and outfit and 11 pairs of glasses and top occur only" in data.note
    assert [p.name for p in path.parent.iterdir()] == [path.name]

    monkeypatch.setattr(avatars, "render_missing", None)
    again = load(rendered)
    assert f"pixels are read from {path}" in again.note
    assert_close(again.items, data.items)
    first = next(
        render("voxel-art", 16, [options(STYLES["voxel-art"], draw("voxel-art", "train", 1)[0])])
    )
    assert first.tobytes() == data.items[0].numpy().tobytes()


def test_a_rendering_that_was_killed_continues(rendered, tmp_path, monkeypatch):
    def killed(items, **_):
        yield next(items)
        raise KeyboardInterrupt

    monkeypatch.setattr(avatars, "usable_cores", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, progress=killed)
    kept = sorted((tmp_path / "avatars").iterdir())
    assert 1 <= len(kept) <= 2
    assert {path.suffix for path in kept} == {".part"}
    kept[0].write_bytes(kept[0].read_bytes()[:-1])  # and the disk was full

    made = []
    write = avatars.write_pixels
    monkeypatch.setattr(avatars, "write_pixels", lambda *a: made.append(a[0]) or write(*a))
    data = load(tmp_path)
    assert len(made) == 3 - len(kept) + 1 + 1  # missing parts, the damaged one, and the file
    assert_close(data.items, load(rendered).items)
    assert len(list((tmp_path / "avatars").iterdir())) == 1


def test_a_damaged_file_is_rendered_again(tmp_path):
    whole = load(tmp_path, "test")
    pixels = whole.items.clone()
    (path,) = (tmp_path / "avatars").iterdir()
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.unlink()  # the old file stays mapped
    path.write_bytes(content)
    again = load(tmp_path, "test")
    assert "damaged or out of date" in again.note
    assert_close(again.items, pixels)


def test_the_file_that_another_process_has_finished_is_read(rendered, tmp_path, monkeypatch):
    finished = load(rendered)
    name = "voxel-art_16_train.pixels"

    def join_too_late(*_):
        (tmp_path / "avatars" / name).write_bytes((rendered / "avatars" / name).read_bytes())
        return {}

    (tmp_path / "avatars").mkdir()
    monkeypatch.setattr(avatars, "render_missing", lambda *_: None)
    assert_close(finished.items, load_after(tmp_path, monkeypatch, join_too_late).items)


def load_after(folder, monkeypatch, join):
    with monkeypatch.context() as patch:
        patch.setattr(avatars, "join_parts", join)
        return load(folder)


def test_a_part_that_is_missing_is_noticed(tmp_path):
    style = STYLES["voxel-art"]
    drawn = draw("voxel-art", "train", 10)
    wanted = avatars.Avatars(style, drawn, 16, tmp_path / "x.pixels")
    assert avatars.join_parts(wanted, wanted.fingerprint()) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_depends_on_what_is_drawn():
    style, drawn = STYLES["voxel-art"], draw("voxel-art", "train", 4)
    wanted = avatars.Avatars(style, drawn, 16, None)
    others = [
        wanted._replace(side=32),
        wanted._replace(drawn=drawn[::-1]),
        wanted._replace(style=style._replace(fixed={})),
    ]
    assert len({one.fingerprint() for one in [wanted, *others]}) == 4


def test_rectangles_are_cut_out_of_squares(rendered):
    square = load(rendered).items
    wide = load_dataset("avatars", rendered, image_size=(12, 16)).items
    assert_close(wide, square[:, :, 2:14])


def test_both_styles_have_files_of_their_own(rendered, tmp_path):
    peeps = load(rendered, "test", avatar_style="open-peeps", cache_dir=tmp_path)
    assert peeps.items.shape == (4, 3, 16, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["open-peeps_16_test.pixels"]


def test_samples_are_compared_with_the_style_that_was_asked_for(rendered):
    words = ["--samples", "a.npz", "--dataset", "avatars", "--image-size", "16"]
    words += ["--avatar-style", "open-peeps", "--data-dir", str(rendered)]
    real = load_real_data(EVALUATE.parse(words), None, progress=lambda items, **_: items)
    peeps = load(rendered, "test", avatar_style="open-peeps")
    assert torch.equal(real.held_out.items, peeps.items)


# --- messages ------------------------------------------------------------------------------------


def test_a_missing_package_is_named_where_pictures_are_rendered(rendered, tmp_path, monkeypatch):
    load(rendered)
    monkeypatch.setitem(avatars.sys.modules, "dicebear", None)
    monkeypatch.setattr(avatars, "installed", dict)
    with pytest.raises(DataError) as error:
        load(tmp_path)
    message = str(error.value)
    assert "dicebear is not installed" in message
    assert "pip install -r requirements-avatars.txt" in message
    assert message.count("\n") == 2
    assert list(tmp_path.iterdir()) == []
    assert len(load(rendered).items) == 10  # what is rendered needs no package


def test_a_renderer_that_fails_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(avatars, "run_renderer", run_renderer)
    monkeypatch.setattr(avatars, "options", lambda *_: {"flip": "sideways"})
    with pytest.raises(DataError, match=r"cannot be rendered \(.*flip"):
        load(tmp_path, "test", avatar_style="open-peeps")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written to .*--cache-dir"):
        load(tmp_path, cache_dir=tmp_path / "file")


def test_the_style_is_an_option_of_avatars_alone(tmp_path):
    with pytest.raises(ValueError, match=r"unknown avatar style 'lego'; choose from voxel-art, "):
        load(tmp_path, avatar_style="lego")
    with pytest.raises(ValueError, match="--avatar-style applies only to --dataset avatars"):
        load_dataset("digits", avatar_style="open-peeps")


# --- commands ------------------------------------------------------------------------------------


def test_the_commands_read_the_style_from_the_run(script, rendered, tmp_path):
    arguments = ["--dataset", "avatars", "--avatar-style", "open-peeps", "--data-dir", rendered]
    arguments += ["--image-size", 16, "--max-steps", 2, "--batch-size", 4, "--output-dir", "run"]
    result = script("train", *TINY, *arguments, "--validation", 2)
    assert result.code == 0, result.err
    assert "data: avatars, 10 images of 3 x 16 x 16" in result.out
    assert (rendered / "avatars" / "open-peeps_16_train.pixels").exists()
    assert script("sample", "--checkpoint", "run", "--num-images", 1, "--steps", 2).code == 0
    result = script("train", "--resume", "--output-dir", "run", "--avatar-style", "voxel-art")
    assert result.code == 1
    assert "data.avatar_style: open-peeps in the checkpoint, voxel-art now" in result.err


def test_other_data_sets_refuse_the_flag(script):
    result = script("train", *TINY, "--avatar-style", "open-peeps", "--output-dir", "run")
    assert result.code == 2
    assert "--avatar-style applies only to --dataset avatars, not to digits" in result.err
