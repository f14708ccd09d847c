import gzip
import hashlib
import os
import socket
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dataset import downloads, idx
from dataset.items import (
    epoch_order,
    flipped,
    held_out_count,
    indices_like,
    item_shape,
    on_device,
    resized,
    shape_config,
    split,
    to_uint8,
    to_unit,
)
from dataset.registry import DATASETS, load_dataset
from images import assert_images, noise_pixels
from utils import DataError


def no_network(*arguments, **options):
    raise AssertionError("the network was used")


# --- each data set -------------------------------------------------------------------------------


def test_digits():
    dataset = load_dataset("digits")
    assert_images(dataset, 1797, (1, 8, 8), 10)
    assert dataset.items.min() == 0
    assert dataset.items.max() == 255
    # The first scans are of 0, 1, 2, ...; a zero is dark in its middle.
    assert dataset.labels[:10].tolist() == list(range(10))
    assert dataset.items[0, 0, 3:5, 3:5].float().mean() < 30


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("mnist", "MNIST", (1, 28, 28)),
        ("fashion_mnist", "FashionMNIST", (1, 28, 28)),
        ("cifar10", "CIFAR10", (3, 32, 32)),
    ],
)
def test_images_and_labels_equal_those_of_torchvision(name, kind, shape, part, real_data):
    import torchvision

    dataset = load_dataset(name, real_data, download=False, split=part)
    theirs = getattr(torchvision.datasets, kind)(real_data, train=part == "train")
    assert_images(dataset, len(theirs), shape, 10)
    for i in (0, 777, len(theirs) - 1):
        image, label = theirs[i]
        ours = dataset.items[i].permute(1, 2, 0).squeeze(-1).numpy()
        assert (np.asarray(image) == ours).all()
        assert dataset.labels[i] == label
    assert dataset.classes[3] in theirs.classes[3]


def test_image_size_resizes_images():
    dataset = load_dataset("digits", image_size=28)
    assert dataset.items.shape == (1797, 1, 28, 28)
    small = load_dataset("digits").items
    assert abs(dataset.items.float().mean() - small.float().mean()) < 3


def test_resizing_in_chunks_changes_nothing():
    images = torch.from_numpy(noise_pixels(10, 3, 16, 16))
    assert_close(resized(images, 12, chunk=3), resized(images, 12, chunk=100))


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"unknown dataset 'x'; choose from mnist, .*, folder"):
        load_dataset("x")


# --- files: where they are found, damage, downloads ----------------------------------------------


@pytest.fixture
def small_mnist(monkeypatch):
    """Five images in place of the published files: {name: content}. Their checksums are patched."""
    rng = np.random.default_rng(0)
    contents = {
        "train-images-idx3-ubyte": bytes(16) + rng.integers(0, 256, 5 * 784, np.uint8).tobytes(),
        "train-labels-idx1-ubyte": bytes(8) + bytes([3, 1, 4, 1, 5]),
    }
    md5s = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    for name in ("mnist", "fashion_mnist"):
        change_spec(monkeypatch, name, md5s=md5s)
    return contents


def change_spec(monkeypatch, name, **changes):
    source = DATASETS[name]
    spec = source.load.args[0]._replace(**changes)
    monkeypatch.setitem(DATASETS, name, source._replace(load=partial(idx.load_idx, spec)))


def write_files(folder, contents, compressed=False):
    folder.mkdir(parents=True)
    for name, content in contents.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_is_found_in_the_data_folder(small_mnist, tmp_path, compressed, monkeypatch):
    monkeypatch.setattr(idx, "fetch", no_network)
    write_files(tmp_path / "MNIST" / "raw", small_mnist, compressed)
    dataset = load_dataset("mnist", tmp_path)
    assert dataset.items.shape == (5, 1, 28, 28)
    assert dataset.labels.tolist() == [3, 1, 4, 1, 5]
    assert dataset.items.numpy().tobytes() == small_mnist["train-images-idx3-ubyte"][16:]


def test_fashion_mnist_is_found_in_the_debian_package(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "fetch", no_network)
    write_files(tmp_path / "debian", small_mnist, compressed=True)
    change_spec(monkeypatch, "fashion_mnist", package=(tmp_path / "debian", "apt install"))
    assert load_dataset("fashion_mnist", tmp_path).labels.tolist() == [3, 1, 4, 1, 5]


def test_the_debian_package_has_the_published_files(tmp_path, monkeypatch):
    folder = idx.FASHION_MNIST.package[0]
    if not folder.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    monkeypatch.setattr(idx, "fetch", no_network)
    assert_images(load_dataset("fashion_mnist", tmp_path), 60_000, (1, 28, 28), 10)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "altered"])
def test_a_damaged_file_is_named(small_mnist, tmp_path, compressed, name, damage):
    raw = tmp_path / "MNIST" / "raw"
    write_files(raw, small_mnist, compressed)
    path = raw / (f"{name}.gz" if compressed else name)
    content = bytearray(path.read_bytes())
    if damage == "empty":
        content = b""
    elif damage == "truncated":
        content = content[:-3]
    else:
        content[-9 if compressed else -1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} is damaged: .*Delete it"):
        load_dataset("mnist", tmp_path, download=False)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a git-LFS pointer"),
        (b"<!DOCTYPE html><html><title>Not found</title></html>", "a web page"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_file_of_another_kind_is_named_as_such(small_mnist, tmp_path, content, kind, ending):
    raw = tmp_path / "MNIST" / "raw"
    write_files(raw, small_mnist, bool(ending))
    path = raw / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} is {kind}.*Delete it"):
        load_dataset("mnist", tmp_path, download=False)


def test_idx_files_that_were_decompressed_or_not_whatever_their_names_say(small_mnist, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    write_files(raw, small_mnist, compressed=False)
    (raw / "train-images-idx3-ubyte").rename(raw / "train-images-idx3-ubyte.gz")  # by a browser
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(gzip.compress(labels.read_bytes()))
    assert load_dataset("mnist", tmp_path, download=False).labels.tolist() == [3, 1, 4, 1, 5]


def test_an_altered_cifar10_file_is_rejected_before_it_is_unpickled(tmp_path, real_data):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (real_data / folder.name).iterdir():
        os.symlink(file.resolve(), folder / file.name)
    (folder / "data_batch_3").unlink()
    (folder / "data_batch_3").write_bytes(b"not a pickle")
    with pytest.raises(DataError, match=r"data_batch_3 is a text file\. Delete it"):
        load_dataset("cifar10", tmp_path)


def test_cifar10_without_its_test_batch_is_incomplete(tmp_path, real_data):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (real_data / folder.name).glob("*a*_*"):  # data_batch_1 to 5
        os.symlink(file.resolve(), folder / file.name)
    with pytest.raises(DataError, match=r"Looked for .*test_batch"):
        load_dataset("cifar10", tmp_path, download=False)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_the_message_for_missing_data_lists_every_remedy(name, tmp_path, monkeypatch):
    package = (tmp_path / "debian", "apt install dataset-fashion-mnist")
    change_spec(monkeypatch, "fashion_mnist", package=package)
    monkeypatch.setattr(socket, "create_connection", no_network)
    with pytest.raises(DataError) as error:
        load_dataset(name, tmp_path / "data", download=False)
    message = str(error.value)
    assert f"{name} not found in {tmp_path / 'data'} and was not downloaded" in message
    assert "Drop --no-download" in message
    assert "copy " in message
    assert "--dataset digits" in message
    assert ("apt install dataset-fashion-mnist" in message) == (name == "fashion_mnist")
    assert not (tmp_path / "data").exists()


@pytest.fixture
def silent_server():
    """An address that accepts connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def accept():
        try:
            while True:
                held.append(server.accept())
        except OSError:  # closed
            pass

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/"
    server.close()


def test_a_download_from_a_silent_server_times_out(silent_server, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [silent_server])
    monkeypatch.setattr(downloads, "DOWNLOAD_TIMEOUT", 0.5)
    start = time.monotonic()
    with pytest.raises(
        DataError, match=r"(?s)mnist not found .* could not be downloaded .*Connect"
    ):
        load_dataset("mnist", tmp_path)
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []  # the attempt leaves no files
    assert socket.getdefaulttimeout() is None


def test_downloaded_files_are_used(small_mnist, tmp_path, monkeypatch):
    """A function that writes the files replaces torchvision's class."""
    import torchvision

    def download(root, train, download):
        assert train
        assert download
        write_files(Path(root) / "MNIST" / "raw", small_mnist)

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    assert len(load_dataset("mnist", tmp_path).items) == 5
    monkeypatch.setattr(torchvision.datasets, "MNIST", no_network)
    assert len(load_dataset("mnist", tmp_path).items) == 5  # from the folder now
    assert [p.name for p in tmp_path.iterdir()] == ["MNIST"]


# --- items ---------------------------------------------------------------------------------------


def test_the_order_of_an_epoch_is_a_pure_function_of_seed_and_epoch():
    torch.manual_seed(1)
    order = epoch_order(1000, seed=3, epoch=5)
    torch.manual_seed(2)
    assert_close(epoch_order(1000, seed=3, epoch=5), order)
    assert sorted(order.tolist()) == list(range(1000))
    for other in [(1000, 4, 5), (1000, 3, 6), (1000, 5, 3)]:
        assert not torch.equal(epoch_order(*other), order)


def test_the_split_is_a_pure_function_of_its_arguments():
    train, held_out = split(1000, 100, seed=3)
    torch.manual_seed(2)
    again = split(1000, 100, seed=3)
    assert torch.equal(again[0], train)
    assert torch.equal(again[1], held_out)
    assert len(held_out) == 100
    assert torch.equal(train, train.sort().values)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(1000))
    assert not torch.equal(split(1000, 100, seed=4)[1], held_out)
    with pytest.raises(ValueError, match="cannot hold out 10 items of 10"):
        split(10, 10, seed=0)


def test_a_twentieth_is_held_out_by_default_and_1024_at_most():
    assert [held_out_count(None, count) for count in (10, 1797, 60_000)] == [0, 89, 1024]
    assert held_out_count(7, 60_000) == 7


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (2,)])
def test_the_configuration_gives_the_shape_of_an_item(shape):
    assert item_shape(shape_config(shape)) == shape


@pytest.mark.parametrize("shape", [[3, 32, 48], [5]])
def test_a_shape_in_the_configuration_is_the_shape_of_an_item(shape):
    assert item_shape({"shape": shape}) == tuple(shape)
    assert item_shape({"shape": shape, **shape_config(shape)}) == tuple(shape)


def test_scaling_to_unit_and_to_uint8_are_inverse():
    images = torch.arange(256, dtype=torch.uint8)
    x = to_unit(images)
    assert (x[0], x[-1]) == (-1, 1)
    assert_close(to_uint8(x), images)
    assert to_uint8(torch.tensor([-3.0, 7.0])).tolist() == [0, 255]


def test_only_the_chosen_images_are_flipped():
    images = torch.arange(4, dtype=torch.uint8).expand(3, 3, 4, 4)
    mirrored, same, also = flipped(images, torch.tensor([True, False, True]))
    assert mirrored[0, 0].tolist() == also[2, 1].tolist() == [3, 2, 1, 0]
    assert same[0, 0].tolist() == [0, 1, 2, 3]


def test_only_photographs_are_flipped_by_default():
    assert [name for name, source in DATASETS.items() if source.flip] == ["cifar10", "folder"]


def test_sampled_classes_have_the_proportions_of_the_data():
    labels = torch.tensor([0] * 90 + [1] * 10)
    chosen = labels[indices_like(100, 250)]
    assert (chosen[:100] == 1).sum() == 10
    assert (chosen == 1).sum() == pytest.approx(25, abs=6)
    assert torch.equal(labels[indices_like(100, 40)], chosen[:40])


def test_data_moves_to_the_device_only_if_it_fits(monkeypatch):
    device, items = torch.device("meta"), torch.zeros(10, 1, 2, 2, dtype=torch.uint8)
    assert on_device(items, torch.device("cpu")) is items
    monkeypatch.setattr("dataset.items.DEVICE_BYTES", 40)
    assert on_device(items, device).device == device
    monkeypatch.setattr("dataset.items.DEVICE_BYTES", 39)
    assert on_device(items, device) is items
