import numpy as np
import pytest
from PIL import Image

import folders
from data import FOLDER_SIZE, DataError, load_dataset
from test_data import check, noise_pixels


def save_image(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def test_folder_with_classes(image_folder):
    dataset = load_dataset("folder", image_folder, image_size=16)
    check(dataset, 12, (3, 16, 16), 2)
    assert dataset.classes == ["cats", "dogs"]
    assert dataset.labels.tolist() == [0] * 6 + [1] * 6


def test_folder_without_classes_and_of_another_shape(tmp_path):
    pixels = np.zeros((218, 178, 3), np.uint8)  # as in CelebA
    pixels[16:202] = [255, 0, 0]  # the central square, and what a JPEG smears
    for i in range(3):
        save_image(tmp_path / f"{i:06d}.jpg", pixels, quality=95)
    dataset = load_dataset("folder", tmp_path, image_size=32)
    assert dataset.items.shape == (3, 3, 32, 32)
    assert dataset.labels is None
    assert dataset.classes == []
    assert dataset.items[:, 0].min() > 240
    assert dataset.items[:, 1:].max() < 16


def test_folder_with_one_class(tmp_path):
    save_image(tmp_path / "only" / "a.png", noise_pixels(9, 9, 3))
    dataset = load_dataset("folder", tmp_path)
    assert dataset.items.shape == (1, 3, FOLDER_SIZE, FOLDER_SIZE)
    assert dataset.classes == ["only"]
    assert dataset.labels.tolist() == [0]


def test_folder_keeps_the_pixels_of_images_that_fit(tmp_path):
    pixels = noise_pixels(16, 16, 3)
    save_image(tmp_path / "a.png", pixels)
    dataset = load_dataset("folder", tmp_path, image_size=16)
    assert (dataset.items[0].permute(1, 2, 0).numpy() == pixels).all()


def test_folder_of_grey_images_is_grey(tmp_path):
    save_image(tmp_path / "a.png", noise_pixels(16, 16))
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)  # 16 bits a pixel
    Image.fromarray(deep).save(tmp_path / "b.png")
    images = load_dataset("folder", tmp_path, image_size=16).items
    assert images.shape == (2, 1, 16, 16)
    assert images[1].flatten().tolist() == list(range(256))
    save_image(tmp_path / "c.png", noise_pixels(16, 16, 3))
    assert load_dataset("folder", tmp_path, image_size=16).items.shape == (3, 3, 16, 16)


def test_pixels_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="mode F have no known range"):
        load_dataset("folder", tmp_path)


def test_transparent_pixels_become_white(tmp_path):
    save_image(tmp_path / "a.png", np.zeros((8, 8, 4)))
    assert load_dataset("folder", tmp_path, image_size=8).items.min() == 255


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(DataError, match=r"no images in .*; looked for \.png"):
        load_dataset("folder", tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset("folder", tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(DataError, match="no images"):
        load_dataset("folder", tmp_path)


@pytest.fixture
def bad_folder(image_folder):
    (image_folder / "cats" / "empty.png").write_bytes(b"")
    (image_folder / "cats" / "text.jpg").write_text("hello")
    whole = (image_folder / "dogs" / "0.png").read_bytes()
    (image_folder / "dogs" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (image_folder / "dogs" / ".hidden.png").write_text("left out without a word")
    return image_folder


def test_bad_images_are_named(bad_folder):
    with pytest.raises(DataError) as error:
        load_dataset("folder", bad_folder, image_size=16)
    message = str(error.value)
    assert "3 of 15 images" in message
    for name in ("cats/empty.png", "cats/text.jpg", "dogs/cut.png", "--skip-bad-images"):
        assert name in message
    assert "hidden" not in message


def test_bad_images_can_be_left_out(bad_folder):
    dataset = load_dataset("folder", bad_folder, image_size=16, skip_bad_images=True)
    check(dataset, 12, (3, 16, 16), 2)
    assert dataset.note == "3 of 15 images cannot be read and are left out"


def test_a_folder_of_bad_images_alone_is_refused_all_the_same(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images"):
        load_dataset("folder", tmp_path, skip_bad_images=True)


def test_images_over_the_cap_are_refused_undecoded(image_folder, monkeypatch):
    monkeypatch.setattr(folders, "MAX_PIXELS", 900)
    with pytest.raises(DataError, match=r"30 x 31 is over 900 pixels"):
        load_dataset("folder", image_folder)


def test_a_file_is_what_its_content_says_and_only_in_known_formats(tmp_path):
    Image.fromarray(noise_pixels(8, 8, 3)).save(tmp_path / "a.png", format="PPM")
    with pytest.raises(DataError, match="1 of 1 images"):
        load_dataset("folder", tmp_path)
