"""Captions of image folders: where they are found, and what is wrong with them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.folder_captions import caption_from_path
from dataset.registry import load_dataset
from images import assert_same_data, noise_pixels, save_image
from utils import DataError
from visuals.pictures import save_picture

NAMES = ["a.png", "b.png", "birds/c.png", "birds/d.png"]
CAPTIONS = {name: f"picture {name[-5]}" for name in NAMES}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four images without captions."""
    for i, name in enumerate(NAMES):
        save_image(tmp_path / "images" / name, noise_pixels(8 + i, 8, 3))
    return tmp_path / "images"


def load(folder, **options):
    return load_dataset("folder", folder, image_size=8, captions=True, **options)


def error_of(folder, **options) -> str:
    with pytest.raises(DataError) as error:
        load(folder, **options)
    assert len(str(error.value).splitlines()) <= 3
    return str(error.value)


def captions_of(data) -> dict[str, str]:
    """The captions by file name; the order of both is that of the items."""
    return dict(zip(data.files, data.captions, strict=True))


def write_jsonl(path: Path, captions: dict[str, object]) -> None:
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in captions.items()]
    path.write_text("\n".join(lines) + "\n")


def write_csv(path: Path, captions: dict[str, str]) -> None:
    rows = [f'{name},"{text}",3' for name, text in captions.items()]
    path.write_text("\r\n".join(["file_name,text,more", *rows]) + "\r\n")


def write_texts(folder: Path, captions: dict[str, str]) -> None:
    for name, text in captions.items():
        (folder / name).with_suffix(".txt").write_text(f"\ufeff{text}\n", encoding="utf-8")


# --- where captions are found --------------------------------------------------------------------


def test_captions_of_a_metadata_file_are_in_the_order_of_the_items(folder):
    write_jsonl(folder / "metadata.jsonl", dict(reversed(CAPTIONS.items())))
    data = load(folder)
    assert captions_of(data) == CAPTIONS
    assert len(data.items) == len(data.captions) == 4
    assert data.note == f"captions are read from {folder}/metadata.jsonl"


def test_a_metadata_file_of_a_subfolder_names_files_relative_to_itself(folder):
    write_csv(folder / "metadata.csv", {name: CAPTIONS[name] for name in NAMES[:2]})
    write_csv(folder / "birds" / "metadata.csv", {"c.png": "picture c", "../birds/d.png": "two"})
    data = load(f"{folder}/birds/..")
    assert captions_of(data) == {**CAPTIONS, "birds/d.png": "two"}
    assert data.note == "captions are read from 2 metadata files"


def test_text_files_next_to_the_images(folder):
    write_texts(folder, CAPTIONS)
    data = load(folder)
    assert captions_of(data) == CAPTIONS
    assert data.note == "captions are read from .txt files"


def test_captions_from_paths(folder):
    write_jsonl(folder / "metadata.jsonl", CAPTIONS)
    data = load(folder, caption_from_path=True)
    assert data.captions == ["a", "b", "birds c", "birds d"]
    assert "metadata.jsonl not read, because of --caption-from-path" in data.note
    with pytest.raises(ValueError, match="--caption-from-path applies only to --dataset folder"):
        load_dataset("digits", caption_from_path=True)


@pytest.mark.parametrize(
    ("path", "caption"),
    [
        ("sea_birds/gull_012.png", "sea birds gull"),
        ("7/003.png", "7"),
        ("Red Car (2).jpg", "Red Car"),
        ("t-shirt-12_3.webp", "t-shirt"),
        ("route 66 sign.png", "route 66 sign"),
        ("0001.png", ""),
    ],
)
def test_the_caption_of_a_path(path, caption):
    assert caption_from_path(Path(path)) == caption


def test_a_caption_is_one_line(folder):
    write_texts(folder, {**CAPTIONS, "a.png": "a\r\n  long\n\n caption "})
    assert load(folder).captions[0] == "a long caption"
    write_csv(folder / "metadata.csv", {**CAPTIONS, "a.png": "another\ncaption"})
    assert load(folder).captions[0] == "another caption"


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_texts(folder, CAPTIONS),
        lambda folder: (folder / "metadata.jsonl").write_text("not JSON"),
        lambda folder: (folder / "birds" / "metadata.csv").write_bytes(b"\xff"),
    ],
)
def test_without_a_request_captions_change_nothing(folder, write):
    for name in NAMES[:2]:
        (folder / name).unlink()
    before = load_dataset("folder", folder, image_size=8)
    write(folder)
    found = load_dataset("folder", folder, image_size=8)
    assert found.captions == ()
    assert found.note == ""
    assert_same_data(found, before)


def test_captions_do_not_change_the_images(folder):
    for name in NAMES[:2]:
        (folder / name).unlink()
    save_image(folder / "cats" / "e.png", noise_pixels(9, 8, 3))
    before = load_dataset("folder", folder, image_size=8)
    data = load(folder, caption_from_path=True)
    assert_same_data(data._replace(files=before.files), before)
    assert data.classes == ["birds", "cats"]


def test_another_caption_is_a_change_of_the_data(folder):
    write_texts(folder, CAPTIONS)
    before = load(folder).files
    write_texts(folder, CAPTIONS | {"b.png": "another"})
    after = load(folder).files
    assert [name for name in before if after[name] != before[name]] == ["b.png"]


@pytest.mark.parametrize("limit", [2, 0])
def test_pictures_of_this_project_need_no_captions(folder, limit):
    write_texts(folder, CAPTIONS)
    save_picture(folder / "own.png", np.zeros((9, 9, 3), np.uint8))
    for _ in range(2):
        data = load(folder, cache_limit=limit)
        assert captions_of(data) == CAPTIONS
        assert "1 picture that this project wrote is left out" in data.note


# --- what is missing -----------------------------------------------------------------------------


def test_a_folder_without_captions_names_the_conventions(folder):
    message = error_of(folder)
    for text in ("metadata.jsonl, metadata.csv", ".txt file next to each", "--caption-from-path"):
        assert text in message


@pytest.mark.parametrize(
    ("write", "source"), [(write_jsonl, "metadata.jsonl:"), (write_texts, ".txt files:")]
)
def test_images_without_a_caption_are_named_or_left_out(folder, write, source):
    for name in ("e.png", "f.png"):
        save_image(folder / name, noise_pixels(8, 8, 3))
    some = {"a.png": "one", "b.png": " \n"}  # an empty caption is none
    write(folder / "metadata.jsonl" if write is write_jsonl else folder, some)
    message = error_of(folder)
    assert f"5 of 6 images in {folder} have no caption in " in message
    assert source in message
    assert "b.png, birds/c.png, birds/d.png and 2 more" in message
    assert "--skip-bad-images" in message
    data = load(folder, skip_bad_images=True)
    assert captions_of(data) == {"a.png": "one"}
    assert "5 of 6 images have no caption and are left out: b.png, birds/c.png" in data.note


def test_an_image_that_is_left_out_leaves_out_its_caption(folder):
    write_texts(folder, CAPTIONS)
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 4 images in .* cannot be read"):
        load(folder)
    data = load(folder, skip_bad_images=True)
    assert captions_of(data) == {name: CAPTIONS[name] for name in NAMES if name != "b.png"}
    assert data.captions[1] == "picture c"


def test_no_caption_at_all_cannot_be_left_out(folder):
    write_jsonl(folder / "metadata.jsonl", dict.fromkeys(NAMES, None))
    message = error_of(folder, skip_bad_images=True)
    assert "4 of 4 images" in message
    assert "--skip-bad-images" not in message


def test_metadata_of_images_that_are_missing_is_reported(folder):
    write_jsonl(folder / "metadata.jsonl", {**CAPTIONS, "x/y.png": "gone", "../z.png": "outside"})
    note = load(folder).note
    assert "2 images named in" in note
    assert "metadata.jsonl are missing or left out: x/y.png, ../z.png" in note
    write_jsonl(folder / "metadata.jsonl", {f"images/{name}": "text" for name in NAMES})
    message = error_of(folder)
    assert "no image of" in message
    assert "names images/a.png, images/b.png, images/birds/c.png and 1 more" in message
    assert "relative to the folder of its metadata file" in message


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"file_name": "b.png"', "line 2: not valid JSON"),
        (b'["b.png", "text"]', "line 2: not a JSON object with file_name and text"),
        (b'{"file_name": "b.png"}', "line 2: not a JSON object with file_name and text"),
        (b'{"file_name": 3, "text": "b"}', "line 2: file_name must be the path of an image"),
        (b'{"file_name": "b.png", "text": [1]}', r"line 2: text must be a caption, not \[1\]"),
        (b'{"file_name": "b.png", "text": "\xff"}', "line 2: not UTF-8"),
        (rb'{"file_name": "b.png", "text": "\ud800"}', "line 2: the text is not valid Unicode"),
        (b'{"file_name": "a.png", "text": "b"}', "line 2: another caption for .*a.png than in .*1"),
        (b'{"file_name": "birds/../a.png", "text": "a "}', "3 of 4 images .* have no caption"),
    ],
)
def test_lines_of_a_metadata_jsonl(folder, line, message):
    first = b'{"file_name": "a.png", "text": "a"}'
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + first + b"\r\n" + line + b"\n\n")
    with pytest.raises(DataError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,text\na.png,a\n", "line 1: no columns file_name and text"),
        ("file_name,text\na.png,a\n\nb.png,b,c\n", "line 4: 3 values for 2 columns"),
        ('file_name,text\na.png,"a\nb"c\n', "line 3: not valid CSV"),
        ("file_name,text\na.png,a\nb.png,\xe9\n", "line 3: not UTF-8. Save the file as UTF-8"),
    ],
)
def test_lines_of_a_metadata_csv(folder, content, message):
    (folder / "metadata.csv").write_bytes(content.encode("latin-1"))
    assert f"metadata.csv, {message}" in error_of(folder)


def test_both_kinds_of_metadata_are_an_error(folder):
    write_jsonl(folder / "metadata.jsonl", CAPTIONS)
    write_csv(folder / "birds" / "metadata.csv", {})
    message = error_of(folder)
    assert "birds/metadata.csv and " in message
    assert "metadata.jsonl. Remove one of them" in message
    assert "2 metadata files not read" in load(folder, caption_from_path=True).note


def test_a_text_file_that_is_not_utf8_is_named_with_its_line(folder):
    write_texts(folder, CAPTIONS)
    (folder / "birds" / "c.txt").write_bytes(b"one\ntwo \xff\n")
    assert f"{folder}/birds/c.txt, line 2: not UTF-8" in error_of(folder)


def test_a_long_caption_is_refused(folder):
    write_texts(folder, CAPTIONS | {"a.png": "x" * 1000, "b.png": "y" * 1001})
    assert "1 image" in error_of(folder)
    assert "has a caption of more than 1,000 characters: b.png" in error_of(folder)


def test_long_captions_can_be_left_out(folder):
    write_jsonl(folder / "metadata.jsonl", {**CAPTIONS, "b.png": "long " * 300})
    data = load(folder, skip_bad_images=True)
    assert captions_of(data) == {n: t for n, t in CAPTIONS.items() if n != "b.png"}
    assert "too long a caption and are left out: b.png" in data.note


def test_captions_that_are_used_twice_or_not_at_all_are_named(folder):
    write_texts(folder, CAPTIONS)
    (folder / "birds" / "e.txt").write_text("of no image")
    assert ".txt files of no image, which are ignored: birds/e.txt" in load(folder).note
    write_jsonl(folder / "metadata.jsonl", CAPTIONS)
    with open(folder / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": "a.png", "text": CAPTIONS["a.png"]}))
    note = load(folder).note
    assert "named more than once in" in note
    assert note.endswith(
        f"with the same caption: a.png\ncaptions are read from {folder}/metadata.jsonl"
    )


def test_a_text_file_that_is_a_pipe_or_a_link_out_of_the_folder_is_named(folder, tmp_path):
    write_texts(folder, CAPTIONS)
    (folder / "a.txt").rename(tmp_path / "outside.txt")
    (folder / "a.txt").symlink_to(tmp_path / "outside.txt")
    assert "a.txt is a symbolic link that leads out of" in error_of(folder)
    assert captions_of(load(folder, follow_links=True)) == CAPTIONS
    (folder / "b.txt").unlink()
    os.mkfifo(folder / "b.txt")
    assert "b.txt is missing, or not a regular file" in error_of(folder, follow_links=True)


def test_a_name_that_is_not_utf8_makes_no_caption(folder):
    os.rename(folder / "a.png", os.fsencode(folder) + b"/\xff.png")
    assert "?.png: the name is not UTF-8" in error_of(folder, caption_from_path=True)


# --- a real folder -------------------------------------------------------------------------------


def test_the_emoji_have_captions(real_data, tmp_path):
    if not (real_data / "emoji" / "metadata.jsonl").is_file():
        pytest.skip("no emoji in the data folder")
    lines = (real_data / "emoji" / "metadata.jsonl").read_text().splitlines()[:40]
    (tmp_path / "images").mkdir()
    for line in lines:
        name = json.loads(line)["file_name"]
        (tmp_path / name).write_bytes((real_data / "emoji" / name).read_bytes())
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    data = load_dataset("folder", tmp_path, captions=True, background="black")
    assert "grinning face" in data.captions
    name, caption = list(captions_of(data).items())[3]
    assert {"file_name": name, "text": caption}.items() <= json.loads(
        next(line for line in lines if name in line)
    ).items()
    with Image.open(tmp_path / name) as image:
        assert image.getpixel((0, 0))[3] == 0
    assert data.items[3, :, 0, 0].tolist() == [0, 0, 0]
