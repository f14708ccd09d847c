"""Data where people have it: other folders, other names, among files that systems make."""

import hashlib
import shutil
from pathlib import Path

import pytest

from conftest import TINY
from dataset.downloads import MissingData
from dataset.idx import MNIST, load_idx
from dataset.registry import load_dataset
from dataset.types import Data, Request
from images import noise_pixels, save_image

# Small files of MNIST, whose MD5 counts as the published one.
CONTENTS = {
    "train-images-idx3-ubyte": bytes(16) + bytes(28 * 28),
    "train-labels-idx1-ubyte": bytes(8) + b"\7",
}
SMALL_MNIST = MNIST._replace(md5s={n: hashlib.md5(c).hexdigest() for n, c in CONTENTS.items()})


def load_small_mnist(folder: Path) -> Data:
    request = Request(folder, *[None] * (len(Request._fields) - 1))
    return load_idx(SMALL_MNIST, request._replace(download=False, split="train"))


@pytest.mark.parametrize(
    "place",
    [
        "MNIST/raw/{name}",
        "{name}",
        "raw/{name}",
        "MNIST/{name}",
        "{dotted}",  # as Kaggle names them
        "{name}/{dotted}",
        "{dotted}/{name}",
    ],
)
def test_files_of_mnist_are_found_in_the_usual_places(tmp_path, place):
    for name, content in CONTENTS.items():
        path = tmp_path / place.format(name=name, dotted=name.replace("-idx", ".idx"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert load_small_mnist(tmp_path).labels.tolist() == [7]


def test_files_of_another_data_set_are_not_taken_for_mnist(tmp_path):
    for name, content in CONTENTS.items():  # Fashion-MNIST has these names
        (tmp_path / name).write_bytes(content + b"fashion")
    with pytest.raises(MissingData, match="not found"):
        load_small_mnist(tmp_path)


def test_the_folder_of_cifar10_itself_may_be_named(real_data, monkeypatch):
    folder = real_data / "cifar-10-batches-py"
    if not folder.is_dir():
        pytest.skip("no CIFAR-10")
    assert len(load_dataset("cifar10", folder, download=False, split="test").items) == 10_000
    monkeypatch.chdir(folder)
    assert len(load_dataset("cifar10", ".", download=False, split="test").items) == 10_000


@pytest.mark.parametrize(
    "folder", ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", "cats/@eaDir"]
)
def test_folders_of_systems_are_no_data(tmp_path, folder):
    for name in ("cats/1.png", "dogs/2.png", f"{folder}/1.png/thumb.png"):
        save_image(tmp_path / name, noise_pixels(8, 8, 3))
    data = load_dataset("folder", tmp_path)
    assert list(data.files) == ["cats/1.png", "dogs/2.png"]
    assert data.classes == ["cats", "dogs"]


@pytest.mark.parametrize("name", ["photo.jpg", "cats/photo.png"])
@pytest.mark.parametrize("command", ["train", "visualize_diffusion"])
def test_a_folder_of_images_is_not_taken_for_one_of_downloads(script, tmp_path, command, name):
    save_image(tmp_path / "data" / name, noise_pixels(8, 8, 3))
    result = script(command, "--data-dir", "data", "--no-download")
    assert result.code == 2
    assert "--dataset folder" in result.err
    assert not (tmp_path / "data" / "MNIST").exists()
    result = script("train", "--data-dir", "data", "--no-download", "--dataset", "mnist")
    assert "mnist not found" in result.err  # as asked for


def test_a_run_of_a_folder_resumes_with_data_that_have_moved(script, tmp_path):
    save_image(tmp_path / "a" / "1.png", noise_pixels(8, 8, 3))
    words = ["--dataset", "folder", "--image-size", "8", *TINY[2:]]
    assert script("train", *words, "--data-dir", "a", "--max-steps", "1").code == 0
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert script("train", "--resume", "--data-dir", "b", "--max-steps", "2").code == 0


# --- the folder of a run --------------------------------------------------------------------------


def test_a_link_to_a_missing_folder_is_named(script, tmp_path):
    (tmp_path / "run").symlink_to("/not/mounted")
    for output in ("run", "run/below"):
        result = script("train", *TINY, "--output-dir", output)
        assert result.code == 2
        assert "run is a link to /not/mounted, which does not exist" in result.err


def test_another_size_of_training_steps_is_explained_by_its_flags(script):
    assert script("train", *TINY, "--max-steps", "1").code == 0
    result = script("train", "--resume", "--max-steps", "2", "--batch-size", "7")
    assert result.code == 1
    assert "--batch-size" in result.err
    assert "128 in the checkpoint, 7 now" in result.err


def test_a_configuration_that_an_editor_has_saved_with_a_mark(script, tmp_path):
    assert script("train", *TINY, "--max-steps", "1").code == 0
    config = tmp_path / "outputs" / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "outputs" / "model_final.pt").unlink()
    assert script("train", "--resume").code == 0
