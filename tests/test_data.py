import gzip
import hashlib
import os
import socket
import threading
import time

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dataset import registry as data
from dataset.items import classes_like, epoch_order, flipped, on_device, resized, to_uint8, to_unit
from dataset.registry import DATASETS, load_dataset
from utils import DataError


def no_network(*arguments, **options):
    raise AssertionError("the network was used")


def noise_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# --- what every set is ---------------------------------------------------------------------------


def check(dataset, count, shape, classes):
    assert dataset.items.shape == (count, *shape)
    assert dataset.items.dtype == torch.uint8
    assert dataset.items.is_contiguous()
    assert dataset.labels.shape == (count,)
    assert dataset.labels.dtype == torch.int64
    assert set(dataset.labels.tolist()) == set(range(classes))
    assert len(dataset.classes) == classes


def test_digits():
    dataset = load_dataset("digits")
    check(dataset, 1797, (1, 8, 8), 10)
    assert dataset.items.min() == 0
    assert dataset.items.max() == 255
    # The first scans are of 0, 1, 2, ...; a zero is dark in its middle.
    assert dataset.labels[:10].tolist() == list(range(10))
    assert dataset.items[0, 0, 3:5, 3:5].float().mean() < 30


@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("mnist", 60_000, (1, 28, 28)),
        ("fashion_mnist", 60_000, (1, 28, 28)),
        ("cifar10", 50_000, (3, 32, 32)),
    ],
)
def test_real_data_equals_torchvisions(name, count, shape, real_data):
    import torchvision

    dataset = load_dataset(name, real_data, download=False)
    check(dataset, count, shape, 10)
    kind = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}[name]
    theirs = getattr(torchvision.datasets, kind)(str(real_data), download=False)
    for i in (0, 777, count - 1):
        image, label = theirs[i]
        ours = dataset.items[i].permute(1, 2, 0).squeeze(-1).numpy()
        assert (np.asarray(image) == ours).all()
        assert dataset.labels[i] == label
    assert dataset.classes[3] in theirs.classes[3]


def test_image_size_resizes_any_set():
    dataset = load_dataset("digits", image_size=28)
    assert dataset.items.shape == (1797, 1, 28, 28)
    small = load_dataset("digits").items
    assert abs(dataset.items.float().mean() - small.float().mean()) < 3


def test_resizing_in_parts_is_resizing_at_once():
    images = torch.from_numpy(noise_pixels(10, 3, 16, 16))
    assert_close(resized(images, 12, chunk=3), resized(images, 12, chunk=100))


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown dataset 'x'; choose from mnist, .*, folder"):
        load_dataset("x")


# --- MNIST and its like: where files are found ---------------------------------------------------


@pytest.fixture
def small_mnist(monkeypatch):
    """A stand-in for the published files: {stem: content}, whose checksums data.MNIST expects."""
    rng = np.random.default_rng(0)
    contents = {
        "train-images-idx3-ubyte": bytes(16) + rng.integers(0, 256, 5 * 784, np.uint8).tobytes(),
        "train-labels-idx1-ubyte": bytes(8) + bytes([3, 1, 4, 1, 5]),
    }
    md5 = {stem: hashlib.md5(content).hexdigest() for stem, content in contents.items()}
    monkeypatch.setattr(data, "MNIST", data.MNIST._replace(md5=md5))
    monkeypatch.setattr(data, "FASHION_MNIST", data.FASHION_MNIST._replace(md5=md5))
    return contents


def put(folder, contents, compressed=False):
    folder.mkdir(parents=True)
    for stem, content in contents.items():
        if compressed:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / stem).write_bytes(content)


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_is_found_in_the_data_folder(small_mnist, tmp_path, compressed, monkeypatch):
    monkeypatch.setattr(data, "fetch", no_network)
    put(tmp_path / "MNIST" / "raw", small_mnist, compressed)
    dataset = load_dataset("mnist", tmp_path)
    assert dataset.items.shape == (5, 1, 28, 28)
    assert dataset.labels.tolist() == [3, 1, 4, 1, 5]
    assert dataset.items.numpy().tobytes() == small_mnist["train-images-idx3-ubyte"][16:]


def test_fashion_mnist_is_found_where_debian_puts_it(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "fetch", no_network)
    put(tmp_path / "debian", small_mnist, compressed=True)
    also = (tmp_path / "debian", "apt install")
    monkeypatch.setattr(data, "FASHION_MNIST", data.FASHION_MNIST._replace(also=also))
    assert load_dataset("fashion_mnist", tmp_path).labels.tolist() == [3, 1, 4, 1, 5]


def test_fashion_mnist_of_debian_has_the_published_content(tmp_path, monkeypatch):
    folder = data.FASHION_MNIST.also[0]
    if not folder.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    monkeypatch.setattr(data, "fetch", no_network)
    check(load_dataset("fashion_mnist", tmp_path), 60_000, (1, 28, 28), 10)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("stem", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "altered"])
def test_damaged_files_are_refused_by_name(small_mnist, tmp_path, compressed, stem, damage):
    raw = tmp_path / "MNIST" / "raw"
    put(raw, small_mnist, compressed)
    path = raw / (f"{stem}.gz" if compressed else stem)
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


def test_altered_cifar10_is_refused_before_it_is_unpickled(tmp_path, real_data):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (real_data / folder.name).iterdir():
        os.symlink(file.resolve(), folder / file.name)
    (folder / "data_batch_3").unlink()
    (folder / "data_batch_3").write_bytes(b"not a pickle")
    with pytest.raises(DataError, match=r"data_batch_3 is damaged"):
        load_dataset("cifar10", tmp_path)


def test_cifar10_without_its_test_batch_is_incomplete(tmp_path, real_data):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (real_data / folder.name).glob("*a*_*"):  # data_batch_1 to 5
        os.symlink(file.resolve(), folder / file.name)
    with pytest.raises(DataError, match=r"Looked for .*test_batch"):
        load_dataset("cifar10", tmp_path, download=False)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_without_download_the_message_has_each_way_out(name, tmp_path, monkeypatch):
    also = (tmp_path / "debian", "apt install dataset-fashion-mnist")
    monkeypatch.setattr(data, "FASHION_MNIST", data.FASHION_MNIST._replace(also=also))
    monkeypatch.setattr(socket, "create_connection", no_network)
    with pytest.raises(DataError) as error:
        load_dataset(name, tmp_path / "data", download=False)
    message = str(error.value)
    assert f"{name} is not here" in message
    assert str(tmp_path / "data") in message
    assert "--no-download" in message
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


def test_a_silent_server_is_given_up(silent_server, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [silent_server])
    monkeypatch.setattr(data, "DOWNLOAD_TIMEOUT", 0.5)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"(?s)mnist is not here and was not downloaded .*connect"):
        load_dataset("mnist", tmp_path)
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []  # not a trace of the attempt
    assert socket.getdefaulttimeout() is None


def test_a_download_that_works_is_used(small_mnist, tmp_path, monkeypatch):
    """torchvision's class is replaced by one that writes the files as torchvision does."""
    import torchvision

    def download(root, train, download):
        assert train
        assert download
        put(data.Path(root) / "MNIST" / "raw", small_mnist)

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    assert len(load_dataset("mnist", tmp_path).items) == 5
    monkeypatch.setattr(torchvision.datasets, "MNIST", no_network)
    assert len(load_dataset("mnist", tmp_path).items) == 5  # now it is there
    assert [p.name for p in tmp_path.iterdir()] == ["MNIST"]


# --- batches -------------------------------------------------------------------------------------


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    torch.manual_seed(1)
    order = epoch_order(1000, seed=3, epoch=5)
    torch.manual_seed(2)
    assert_close(epoch_order(1000, seed=3, epoch=5), order)
    assert sorted(order.tolist()) == list(range(1000))
    for other in [(1000, 4, 5), (1000, 3, 6), (1000, 5, 3)]:
        assert not torch.equal(epoch_order(*other), order)


def test_unit_and_uint8_are_inverse():
    images = torch.arange(256, dtype=torch.uint8)
    x = to_unit(images)
    assert (x[0], x[-1]) == (-1, 1)
    assert_close(to_uint8(x), images)
    assert to_uint8(torch.tensor([-3.0, 7.0])).tolist() == [0, 255]


def test_flips_mirror_the_chosen_images():
    images = torch.arange(4, dtype=torch.uint8).expand(3, 3, 4, 4)
    mirrored, same, also = flipped(images, torch.tensor([True, False, True]))
    assert mirrored[0, 0].tolist() == also[2, 1].tolist() == [3, 2, 1, 0]
    assert same[0, 0].tolist() == [0, 1, 2, 3]


def test_digits_are_never_flipped():
    assert [name for name, source in DATASETS.items() if source.flip] == ["cifar10", "folder"]


def test_classes_are_asked_for_as_the_data_has_them():
    labels = torch.tensor([0] * 90 + [1] * 10)
    asked = classes_like(labels, 250)
    assert (asked[:100] == 1).sum() == 10
    assert (asked == 1).sum() == pytest.approx(25, abs=6)
    assert torch.equal(classes_like(labels, 40), asked[:40])


def test_data_stays_on_the_device_if_it_fits(monkeypatch):
    device, items = torch.device("meta"), torch.zeros(10, 1, 2, 2, dtype=torch.uint8)
    assert on_device(items, torch.device("cpu")) is items
    monkeypatch.setattr(data, "DEVICE_BYTES", 40)
    assert on_device(items, device).device == device
    monkeypatch.setattr(data, "DEVICE_BYTES", 39)
    assert on_device(items, device) is items
