"""Checkpoints: saving, loading and restoring. A file that is damaged or malicious is refused with a
reason, within seconds, before code is run or memory is allocated for it."""

import copy
import hashlib
import io
import os
import pickle
import random
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from checkpoints import inspection
from checkpoints.checkpoint import (
    CheckpointError,
    load_checkpoint,
    require_state,
    restore,
    save_checkpoint,
)
from checkpoints.consistency import require_config
from checkpoints.reading import step_of, verify_checkpoint
from checkpoints.weights import save_weights
from conftest import ROOT
from evaluation.report import config_of
from models import build_model
from processes import Processes
from training.folder import RunFolder
from training.log import Metrics, read_metrics
from training.trainer import Trainer
from visuals.curves import column

TRAPPED = ROOT / "tests" / "trapped"


class Trap:
    """Unpickling it would create a file."""

    def __reduce__(self):
        return os.system, (f"touch {TRAPPED}",)


def sealed(content: bytes) -> bytes:
    return content + b"sha256:" + hashlib.sha256(content).hexdigest().encode()


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    """A zip archive as torch.save writes it, with the given pickle and tensor records."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as entries:
        entries.writestr("archive/data.pkl", pickled)
        entries.writestr("archive/byteorder", "little")
        entries.writestr("archive/version", "3\n")
        for name, record in records.items():
            entries.writestr(f"archive/data/{name}", record)
    return file.getvalue()


@pytest.fixture(scope="module")
def whole(trained) -> Path:
    return trained / "model_final.pt"


@pytest.fixture(scope="module")
def checkpoint(whole) -> dict:
    return load_checkpoint(whole)


@pytest.fixture(scope="module")
def light(checkpoint) -> dict:
    """The checkpoint without what only training needs: a quarter of the bytes."""
    return {**checkpoint, "model": {}, "optimizer": {}}


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_sha256sum_confirms_the_seal(whole):
    digest = subprocess.run(f"head -c -71 {whole} | sha256sum", shell=True, capture_output=True)
    seal = subprocess.run(["tail", "-c", "71", whole], capture_output=True).stdout
    assert seal == b"sha256:" + digest.stdout.split()[0]


@pytest.mark.parametrize("mapped", [False, True])
def test_pytorch_reads_a_sealed_file(whole, checkpoint, mapped):
    content = torch.load(whole, weights_only=True, mmap=mapped)
    assert content["step"] == checkpoint["step"] == step_of(whole)
    assert content["ema"].keys() == checkpoint["ema"].keys()
    assert all(torch.equal(content["ema"][name], w) for name, w in checkpoint["ema"].items())


def test_saving_and_loading_changes_nothing(whole, checkpoint, tmp_path):
    save_checkpoint(tmp_path / "again.pt", checkpoint)
    for path, mapped in [(whole, True), (tmp_path / "again.pt", False)]:
        again = load_checkpoint(path, mapped=mapped)
        assert again["config"] == checkpoint["config"]
        for part in ("model", "ema", "optimizer"):
            torch.testing.assert_close(again[part], checkpoint[part], rtol=0, atol=0)


def test_every_flipped_bit_is_detected(light, tmp_path):
    path, rng = tmp_path / "flipped.pt", random.Random(0)
    save_checkpoint(path, light)
    content = path.read_bytes()
    verify_checkpoint(path)
    end = 8 * len(content)
    bits = [rng.randrange(end) for _ in range(20)]
    bits += [rng.randrange(end - 800, end) for _ in range(10)]
    for bit in bits:
        with open(path, "r+b") as file:
            file.seek(bit // 8)
            file.write(bytes([content[bit // 8] ^ 1 << bit % 8]))
        for read in (verify_checkpoint, load_checkpoint):
            with pytest.raises(CheckpointError, match=r"flipped\.pt is damaged"):
                read(path)
        with open(path, "r+b") as file:
            file.seek(bit // 8)
            file.write(content[bit // 8 : bit // 8 + 1])
    verify_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.99999])
def test_a_truncated_checkpoint_is_refused(whole, tmp_path, share):
    content = whole.read_bytes()
    (tmp_path / "part.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"part\.pt is damaged or is not a checkpoint"):
        load_checkpoint(tmp_path / "part.pt")


def test_another_format_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("checkpoints.checkpoint.CHECKPOINT_FORMAT", 99)
    content = {key: value for key, value in checkpoint.items() if key != "format"}
    save_checkpoint(tmp_path / "a.pt", content)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_block_of_zeros_is_detected(whole, tmp_path):
    content = bytearray(whole.read_bytes())
    content[4096:8192] = bytes(4096)
    (tmp_path / "hole.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged: its content does not match its SHA-256"):
        load_checkpoint(tmp_path / "hole.pt")
    (tmp_path / "hole.pt").write_bytes(bytes(len(content)))
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: it is filled with zeros"):
        load_checkpoint(tmp_path / "hole.pt")


@pytest.mark.parametrize("read", [load_checkpoint, verify_checkpoint, step_of])
def test_folders_pipes_and_missing_files_are_refused(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.pt")  # reading it would block
    with pytest.raises(CheckpointError, match=r"is not a file|holds no run"):
        read(tmp_path)
    for path in (tmp_path / "pipe.pt", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is not a file"):
            read(path)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        read(tmp_path / "none.pt")


# --- malicious files -----------------------------------------------------------------------------


def refused(tmp_path, content: bytes, ways: tuple = (False, True)) -> str:
    """Reason why a sealed file is refused, mapped and not: within seconds, without running code."""
    path = tmp_path / "bad.pt"
    path.write_bytes(sealed(content))
    start = time.process_time()  # other processes do not count
    for mapped in ways:
        with pytest.raises(CheckpointError, match=r"bad\.pt is") as caught:
            load_checkpoint(path, mapped=mapped)
    assert time.process_time() - start < 5
    assert not TRAPPED.exists()
    return str(caught.value)


def test_code_is_not_run(tmp_path):
    pickled = {protocol: pickle.dumps({"step": Trap()}, protocol=protocol) for protocol in (2, 4)}
    assert "imports posix system" in refused(tmp_path, archive(pickled[2]))
    assert "pickle protocol 4" in refused(tmp_path, archive(pickled[4]))
    refused(tmp_path, pickled[2])  # without an archive, as very old versions of PyTorch wrote
    file = io.BytesIO()
    torch.save({"step": 1, "format": 3, "config": Trap()}, file)
    assert "imports posix system" in refused(tmp_path, file.getvalue())


def test_a_huge_bytearray_is_refused(tmp_path):
    """10^11 zeros in a pickle of forty bytes; weights_only=True would allow it."""
    bomb = b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + (10**11).to_bytes(6, "little") + b"\x85R."
    assert "imports __builtin__ bytearray" in refused(tmp_path, archive(bomb))


def test_compressed_entries_are_refused(tmp_path):
    pickled = pickle.dumps({"step": 1}, protocol=2)
    assert "compressed" in refused(tmp_path, archive(pickled, zipfile.ZIP_DEFLATED))


def zip_bomb() -> bytes:
    """An archive of a gigabyte of zeros, compressed once and repeated."""
    deflate = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    zeros = deflate.compress(bytes(2**24)) + deflate.flush(zlib.Z_FULL_FLUSH)
    content = bytearray(archive(64 * zeros + deflate.flush()))
    entry = content.index(b"PK\x01\x02")  # in the directory; the entry itself begins the file
    for method, size in [(8, 22), (entry + 10, entry + 24)]:
        content[method] = zipfile.ZIP_DEFLATED
        content[size : size + 4] = (2**30).to_bytes(4, "little")
    return bytes(content)


def test_overlapping_entries_are_refused(tmp_path):
    """All entries of the directory point to the same megabyte."""
    content = bytearray(archive(pickle.dumps({"step": 1}, protocol=2), a=bytes(2**20)))
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    last = content.rindex(b"PK\x01\x02")
    entry = content[last:end]
    directory = content[start:end] + b"".join(entry[:-1] + bytes([ord("b") + i]) for i in range(20))
    tail = content[end:]
    tail[8:10] = tail[10:12] = (4 + 20).to_bytes(2, "little")
    tail[12:16] = len(directory).to_bytes(4, "little")
    assert "larger than the file" in refused(tmp_path, bytes(content[:start] + directory + tail))


def tensor(claimed: int, size: tuple, stride: tuple) -> bytes:
    """Pickle of a tensor in record 0, with a storage that claims so many bytes."""

    def number(n: int) -> bytes:
        return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    storage += b"X\x03\x00\x00\x00cpu" + number(claimed) + b"tQ"
    sizes, strides = (b"(" + b"".join(map(number, part)) + b"t" for part in (size, stride))
    rest = b"\x89ccollections\nOrderedDict\n)R"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + sizes + strides
    return b"\x80\x02}X\x04\x00\x00\x00step" + call + rest + b"tRs."


@pytest.mark.parametrize(
    ("claimed", "size", "stride"),
    [
        (4, (10**9, 10**9), (0, 0)),
        (4, (1000, 1000), (0, 0)),
        (10**15, (10**15,), (1,)),
        (4, (10**15,), (1,)),
        (-4, (4,), (1,)),
        (4, (4,), (-1,)),
    ],
)
def test_tensors_larger_than_the_file_are_refused(tmp_path, claimed, size, stride):
    refused(tmp_path, archive(tensor(claimed, size, stride), **{"0": bytes(16)}))


def test_tensors_that_share_a_storage_are_counted_each(tmp_path):
    """Each tensor is a megabyte, as the file is; together they are a gigabyte."""
    one = torch.zeros(2**18)
    file = io.BytesIO()
    torch.save({"step": 1, "format": 3, "model": [one.view(-1) for _ in range(1000)]}, file)
    assert "larger than the file" in refused(tmp_path, file.getvalue())


def test_endless_containers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "MAX_VALUES", 10**5)  # a tenth, which takes a tenth of the time
    endless: list = []
    endless.append(endless)
    laughs: list = [0] * 100
    for _ in range(8):
        laughs = [laughs] * 100
    for value in (endless, laughs):
        file = io.BytesIO()
        torch.save({"step": 1, "format": 3, "config": value}, file)
        assert "nested too deeply" in refused(tmp_path, file.getvalue(), (True,))
    refused(tmp_path, archive(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."))
    long = archive(b"\x80\x02" + b"]" * 2 * 10**5 + b".")
    assert "too many values" in refused(tmp_path, long, (True,))
    assert "data.pkl is not usable" in refused(tmp_path, archive(b"\x80\x02" + b"]" * 10**7))


@pytest.mark.parametrize("step", [None, "3", 3.5, True, -1, 2**63, [3], float("nan")])
def test_invalid_steps_are_refused(light, tmp_path, step):
    path = tmp_path / "bad.pt"
    save_checkpoint(path, {**light, "step": step})
    for read in (load_checkpoint, step_of):
        with pytest.raises(CheckpointError, match=r"bad\.pt is not a checkpoint"):
            read(path)


# --- invalid configurations ----------------------------------------------------------------------

HUGE = [10**6, 10**9, 2**62]
INVALID = {
    "model": {
        "channels": [0, -8, 20_000, *HUGE],
        "blocks": [0, 101, *HUGE],
        "multipliers": [[], [0], [10**9], [1] * 11, [1] * 10**5, "12", 3],
        "image_size": [0, 7, -8, *HUGE],
        "patch_size": [-1, 3, *HUGE],
        "image_channels": [0, 3, *HUGE],
        "attention_resolutions": [[5], [10**9], [8] * 11, [None], {}],
        "num_classes": [0, -1, 5, *HUGE],
        "dropout": [1, -0.1, float("nan"), "0.1", None],
        "name": ["magic", None, 5, ["unet"], "mlp", "dit", "cnn", "naive_unet"],
        "width": [8],
        "learn_sigma": [True],
    },
    "diffusion": {
        "timesteps": [0, 1, -5, True, 10.0, 10_001, *HUGE],
        "schedule": ["round", None, 5, ["cosine"], {}],
        "prediction": ["noise", None, ["v"]],
        "sigma_data": [0, -1, float("nan"), float("inf"), "1", 10**30],
        "clip": [1, None, "yes"],
        "learn_sigma": [True],
        "betas": [[1, 2]],
    },
    "data": {
        "image_size": [16, None, "8", *HUGE],
        "dim": [2, 10**9],
        "dataset": [None, 5, ["digits"], "moons"],
        "classes": [None, "0123456789", [1, 2], {}],
        "count": [None, "many", 1.5],
    },
    "train": {
        "label_dropout": [None, "0.1", float("nan")],
        "total_steps": ["9", 1.5, [9]],
        "decay_from": [9, [9], [9, 1.5]],
        "extra": [torch.zeros(0), torch.zeros(3), [{"a": float("nan")}]],
    },
}
FIELDS = [(section, key) for section, fields in INVALID.items() for key in fields]


def altered(checkpoint: dict, section: str, key: str | None, value: object) -> dict:
    """The checkpoint with one changed field of its configuration."""
    config = copy.deepcopy(checkpoint["config"])
    if key is None:
        config[section] = value
    else:
        config[section][key] = value
    return {**checkpoint, "config": config}


def assert_refused(path: Path, checkpoint: dict) -> None:
    """Assert that a checkpoint is refused in a line, at once, and before memory is allocated."""
    save_checkpoint(path, checkpoint)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        restore(load_checkpoint(path))
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB
    message = str(caught.value)
    reasons = ("contradicts itself", "is not a checkpoint", "may be of a newer version")
    assert any(reason in message for reason in reasons)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("section", "key"), FIELDS)
def test_invalid_configurations_are_refused(light, tmp_path, section, key):
    for value in INVALID[section][key]:
        assert_refused(tmp_path / "bad.pt", altered(light, section, key, value))


@pytest.mark.parametrize("section", [*INVALID, "extra"])
def test_invalid_sections_of_a_configuration_are_refused(light, tmp_path, section):
    for value in (None, []):
        assert_refused(tmp_path / "bad.pt", altered(light, section, None, value))


def restore_limited(*paths: str) -> None:
    """Restore checkpoints, with 300 MB beyond the imports and ten seconds; print why it fails."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
    seconds = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    for i, path in enumerate(paths):
        try:
            restore(load_checkpoint(path, mapped=i % 2 == 0))
        except CheckpointError as error:
            print(error)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are set as on Linux")
def test_restoring_does_not_fill_the_memory(light, tmp_path):
    config = copy.deepcopy(light["config"])
    sizes = {  # each number is within its limit
        "large": {"channels": 16_384, "blocks": 50, "multipliers": [64]},
        "wide": {"channels": 2048, "multipliers": [1]},
    }
    for name, size in sizes.items():
        config["model"] |= {"blocks": 1, **size}
        save_checkpoint(tmp_path / f"{name}.pt", {**light, "config": config})
    (tmp_path / "bomb.pt").write_bytes(sealed(zip_bomb()))
    job = Processes(tmp_path, 1, restore_limited, "bomb.pt", "bomb.pt", "large.pt", "wide.pt")
    assert job.wait() == [0], job.text("err")
    messages = job.text("out").splitlines()
    reasons = ["it is compressed", "it is compressed", "parameters in", "the weight"]
    for message, reason in zip(messages, reasons, strict=True):
        assert reason in message


def test_weights_that_do_not_fit_are_refused(checkpoint):
    def message(**weights) -> str:
        with pytest.raises(CheckpointError) as caught:
            restore({**checkpoint, "ema": {**checkpoint["ema"], **weights}})
        return str(caught.value)

    assert "the weight extra is not one of the network's" in message(extra=torch.zeros(1))
    assert "the weight head.bias has the shape (3,)" in message(**{"head.bias": torch.zeros(3)})
    assert "the weight head.bias is not torch.float32" in message(**{"head.bias": [0.0]})
    less = {name: w for name, w in checkpoint["ema"].items() if name != "head.bias"}
    with pytest.raises(CheckpointError, match=r"the weight head\.bias is missing"):
        restore({**checkpoint, "ema": less})


def test_a_different_number_of_classes_is_refused(light, tmp_path):
    save_checkpoint(tmp_path / "bad.pt", altered(light, "model", "num_classes", 5))
    with pytest.raises(CheckpointError, match="differ in the number of classes"):
        load_checkpoint(tmp_path / "bad.pt")


# --- networks of the user's own ------------------------------------------------------------------


class MyNet(nn.Module):
    """A network with a boolean buffer, and with a layer under two names."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.first = self.again = nn.Linear(3, width)
        self.last = nn.Linear(width, 3)
        self.register_buffer("mask", torch.tensor([True, False, True]))


@pytest.fixture
def custom(checkpoint) -> dict:
    """A checkpoint of a `MyNet` that was trained on items of three numbers in two classes."""
    data = {"dataset": "custom", "data_dir": "", "shape": [3], "range": [-2.0, 5], "count": 9}
    data |= {"classes": ["a", "b"], "digest": None, "flip": False, "skip_bad_images": False}
    model = {"name": "custom", "class": "MyNet", "num_classes": 2}
    config = copy.deepcopy({**checkpoint["config"], "data": data, "model": model})
    weights = {}
    for which in ("model", "ema"):
        weights[which] = {name: w.clone() for name, w in MyNet().state_dict().items()}
        weights[which]["again.weight"] = weights[which]["first.weight"]
    return {**checkpoint, "config": config, **weights, "optimizer": {}}


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("name", ["custom.pt", "custom.safetensors"])
def test_a_network_of_your_own_is_restored(custom, tmp_path, raw, name):
    which, path = "model" if raw else "ema", tmp_path / name
    if path.suffix == ".pt":
        save_checkpoint(path, custom)
    else:
        save_weights(path, custom["config"], 26, which, custom[which])
    for mapped in (False, True):
        network = MyNet()
        model, diffusion = restore(load_checkpoint(path, mapped=mapped), raw=raw, model=network)
        assert model is network
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        torch.testing.assert_close(dict(model.state_dict()), custom[which], rtol=0, atol=0)
        assert diffusion.timesteps == 1000


@pytest.mark.parametrize("shape", [[1], [2, 5, 7], [16, 1024, 1024]])
@pytest.mark.parametrize("limits", [None, [0, 1], [-0.5, 1e6]])
def test_your_own_data_has_any_shape_and_range(custom, tmp_path, shape, limits):
    custom["config"]["data"] |= {"shape": shape, "range": limits, "classes": []}
    custom["config"]["model"]["num_classes"] = None
    save_checkpoint(tmp_path / "custom.pt", custom)
    loaded = load_checkpoint(tmp_path / "custom.pt")
    assert loaded["config"] == custom["config"]


def test_a_network_of_your_own_must_be_given(script, custom, tmp_path):
    message = "holds a network of your own (class MyNet): pass it, restore(checkpoint, model=MyNet"
    with pytest.raises(ValueError, match=re.escape(message)):
        restore(custom)
    save_checkpoint(tmp_path / "custom.pt", custom)
    result = script("export", "--checkpoint", "custom.pt", "out.safetensors")
    assert result.code == 2
    assert message in result.err
    assert os.listdir(tmp_path) == ["custom.pt"]


def test_a_given_network_must_fit_the_weights(checkpoint, custom):
    with pytest.raises(CheckpointError, match=r"not fit this network: the weight \w+\.weight has"):
        restore(custom, model=MyNet(width=5))
    with pytest.raises(CheckpointError, match="does not fit this network: the weight"):
        restore(checkpoint, model=MyNet())
    network = build_model(checkpoint["config"]["model"])
    model, _ = restore(checkpoint, raw=True, model=network)
    assert model is network
    torch.testing.assert_close(dict(model.state_dict()), checkpoint["model"], rtol=0, atol=0)


def test_a_network_in_double_precision_can_resume(custom):
    network = MyNet().double()
    optimizer = torch.optim.AdamW(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()
    optimizer.step()
    saved = {**custom, **dict.fromkeys(("model", "ema"), network.state_dict())}
    saved["optimizer"] = {"adamw": optimizer.state_dict()}
    require_state(saved, network, {"adamw": optimizer})


INVALID_CUSTOM = {
    "data.shape": [None, 3, "3", [], [0], [-1], [True], [1.5], ["3"], [3, 3], [1, 2, 3, 4]]
    + [[3, 0, 3], [2**24 + 1], [2**9] * 3, [2**62]],
    "data.range": [1.0, "01", [], [1], [0, 1, 2], [1, 0], [0, 0], [0, "1"], [0, float("inf")]],
    "data.dataset": ["digits", None],
    "data.classes": [["a"], "ab", [1, 2]],
    "data.count": [None, 1.5],
    "model.class": [None, 5, "", "My Net", "MyNet\n", "MyNet()"],
    "model.num_classes": [0, -2, 3, "2", True, 2**62],
    "model.name": ["mlp", "unet", "Custom"],
    "model.channels": [8],
    "diffusion.gammas": [[1, 2]],
    "train.label_dropout": [None],
}


@pytest.mark.parametrize("field", INVALID_CUSTOM)
def test_invalid_configurations_of_your_own_network_are_refused(custom, field):
    require_config(custom["config"])
    reasons = rf"{field.partition('.')[0]}\.\w+|num_classes|number of classes|unknown model|JSON"
    for value in INVALID_CUSTOM[field]:
        with pytest.raises(ValueError, match=reasons):
            require_config(altered(custom, *field.split("."), value)["config"])


def test_zero_classes_are_not_the_same_as_no_classes(custom):
    custom["config"]["data"]["classes"] = []
    custom["config"]["model"]["num_classes"] = 0
    with pytest.raises(ValueError, match="num_classes must lie between 1 and"):
        require_config(custom["config"])


# --- the commands --------------------------------------------------------------------------------

READERS = {
    "sample": ["--checkpoint", "bad.pt"],
    "evaluate": ["--checkpoint", "bad.pt"],
    "export": ["--checkpoint", "bad.pt"],
    "train": ["--resume", "bad.pt"],
    "visualize_diffusion": ["--checkpoint", "bad.pt", "--field"],
}


@pytest.mark.parametrize("name", READERS)
def test_the_commands_refuse_an_invalid_checkpoint_in_one_line(script, light, tmp_path, name):
    for change in [
        ("model", "channels", 10**9),
        ("diffusion", "schedule", ["x"]),
        ("data", "count", "many"),
    ]:
        save_checkpoint(tmp_path / "bad.pt", altered(light, *change))
        result = script(name, *READERS[name])
        assert result.code in (1, 2)
        assert "error: " in result.err
        assert "--debug" not in result.err
        assert len(result.err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["bad.pt"]


def test_large_images_are_sampled_in_small_batches(script, checkpoint, tmp_path):
    """The size in a file may have been changed: the weights of convolutions fit any size."""
    large = copy.deepcopy(checkpoint)
    large["config"]["data"]["image_size"] = large["config"]["model"]["image_size"] = 128
    large["config"]["model"]["patch_size"] = 1
    save_checkpoint(tmp_path / "large.pt", large)
    flags = ["--num-images", 17, "--steps", 1, "--output", "s.npz"]
    result = script("sample", "--checkpoint", "large.pt", *flags)
    assert result.code == 0, result.err
    assert "2 network calls" in result.out  # 16 images, and one


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "lr", "fast", "argument --lr: 'fast' is not a number"),
        ("train", "lr", -1.0, "must be at least 0, not -1.0"),
        ("train", "lr", [0.1], "argument --lr: [0.1] is not a valid value"),
        ("train", "batch_size", 0, "argument --batch-size: must be at least 1, not 0"),
        ("train", "grad_accum", True, "argument --grad-accum: 'True' is not a whole number"),
        ("train", "update_size", True, "train.update_size cannot be True"),
        ("train", "optimizer", "sgd", "invalid choice: 'sgd'"),
        ("train", "class_conditional", "no", "--class-conditional: no is not a valid value"),
        ("train", "max_steps", 10**40, "is not a checkpoint of Tiny Diffusion"),
        ("data", "data_dir", 5, "data.data_dir cannot be 5"),
        ("data", "fit", ["crop"], "argument --fit"),
        ("model", "multipliers", [1, 3], "model.multipliers: [1, 3] in the checkpoint"),
    ],
)
def test_a_run_does_not_resume_with_invalid_flags(
    script, light, tmp_path, section, key, value, message
):
    save_checkpoint(tmp_path / "bad.pt", altered(light, section, key, value))
    given = ["--multipliers", 1, 2] if key == "multipliers" else []
    result = script("train", "--resume", "bad.pt", "--max-steps", 30, *given)
    assert result.code == 1
    assert message in result.err
    assert "--debug" not in result.err
    assert os.listdir(tmp_path) == ["bad.pt"]


def test_a_checkpoint_cannot_choose_the_output_folder_or_delete_files(script, checkpoint, tmp_path):
    mine = tmp_path / "elsewhere" / "metrics.jsonl"
    mine.parent.mkdir()
    mine.write_text("mine")
    (tmp_path / "run").mkdir()
    change = {"output_dir": str(mine.parent), "overwrite": True, "keep": 1, "debug": True}
    config = {**checkpoint["config"], "train": {**checkpoint["config"]["train"], **change}}
    config["train"]["given"] = ["seed"]
    save_checkpoint(tmp_path / "run" / "bad.pt", {**checkpoint, "config": config})
    result = script("train", "--resume", "run/bad.pt", "--max-steps", 27, "--sample-interval", 0)
    assert result.code == 0, result.err
    assert mine.read_text() == "mine"
    assert os.listdir(mine.parent) == ["metrics.jsonl"]
    assert load_checkpoint(tmp_path / "run" / "model_final.pt")["step"] == 27


def optimizer_changes(checkpoint: dict) -> dict[str, dict]:
    """Optimizer states that do not fit the run, by what was changed."""
    changes = {}

    def change(name: str) -> dict:
        changes[name] = copy.deepcopy(checkpoint["optimizer"])
        return changes[name]["adamw"]

    change("a list")["state"][0] = []
    change("without average")["state"][0].pop("exp_avg")
    change("another shape")["state"][0]["exp_avg"] = torch.zeros(1)
    change("no tensor")["state"][0]["exp_avg"] = 0.5
    change("integers")["state"][0]["step"] = torch.tensor(3)
    change("no groups")["param_groups"].clear()
    change("betas")["param_groups"][0]["betas"] = "fast"
    change("tensor")["param_groups"][0]["eps"] = torch.zeros(3)
    change("amsgrad")["param_groups"][0]["amsgrad"] = True
    change("capturable")["param_groups"][0]["capturable"] = True
    change("rate")["param_groups"][0]["lr"] = "fast"
    change("another weight")["state"]["any"] = None
    change("others")["param_groups"][0]["params"] = [10**6]
    changes["none"] = {}
    changes["lists"] = {"adamw": [], "muon": []}
    return changes


def test_a_run_does_not_resume_with_another_optimizer_state(script, checkpoint, tmp_path):
    trainer = Trainer(checkpoint["config"], torch.device("cpu"), "fp32", compiled=None)
    require_state(copy.deepcopy(checkpoint), trainer.model, trainer.optimizers)
    fresh = copy.deepcopy(checkpoint)
    fresh["optimizer"]["adamw"]["state"].clear()  # as before the first update
    require_state(fresh, trainer.model, trainer.optimizers)
    for name, optimizer in optimizer_changes(checkpoint).items():
        changed = {**checkpoint, "optimizer": optimizer}
        with pytest.raises(CheckpointError, match="contradicts itself: ") as caught:
            require_state(changed, trainer.model, trainer.optimizers)
        assert "optimizer" in str(caught.value), name
    save_checkpoint(tmp_path / "bad.pt", changed)
    result = script("train", "--resume", "bad.pt", "--max-steps", 30)
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert os.listdir(tmp_path) == ["bad.pt"]


def test_options_that_an_older_pytorch_did_not_save_are_filled_in(script, checkpoint, tmp_path):
    older = copy.deepcopy(checkpoint)
    del older["optimizer"]["adamw"]["param_groups"][0]["decoupled_weight_decay"]
    save_checkpoint(tmp_path / "old.pt", older)
    flags = ["--max-steps", 27, "--sample-interval", 0]
    result = script("train", "--resume", "old.pt", *flags)
    assert result.code == 0, result.err


# --- run folders with invalid files --------------------------------------------------------------

METRICS = [
    "[1, 2, 3]",
    '"text"',
    "null",
    "NaN",
    "{}",
    '{"step": "one", "loss": 1}',
    '{"step": null, "loss": 1}',
    '{"step": 1, "loss": "low"}',
    '{"step": 2, "loss": NaN, "epoch": Infinity}',
    '{"step": 3, "loss": [1], "images_per_second": {}}',
    '{"step": 4, "loss": 1' + "0" * 5000 + "}",
    '{"step": 1' + "0" * 400 + ', "loss": 1}',
    '{"step": 5, "loss": 1e999, "seconds": -1e308, "validation_loss": true}',
    "[" * 100_000,
    '{"step": 6, "loss": 0.5, "epoch": 1, "seconds": 2}',
]


@pytest.mark.parametrize("line", METRICS)
def test_invalid_rows_of_metrics_are_ignored(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(line + '\n{"step": 7, "loss": 0.5}\n')
    rows = read_metrics(tmp_path / "metrics.jsonl")
    steps, losses = column(rows, "loss")
    assert (steps[-1], losses[-1]) == (7, 0.5)
    assert all(isinstance(value, (int, float)) for value in steps + losses)
    with Metrics(tmp_path / "metrics.jsonl", step=7):
        assert column(read_metrics(tmp_path / "metrics.jsonl"), "loss") == (steps, losses)


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_report_is_written_despite_invalid_metrics(script, whole, run):
    shutil.copy(whole, run)
    (run / "metrics.jsonl").write_bytes("\n".join(METRICS).encode() + b"\xff\xfe{}\n")
    result = script("visualize_diffusion", "--run", run, "--steps", 2)
    assert result.code == 0, result.err
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    assert script("visualize_diffusion", "--run", run, "--steps", 2).code == 0


@pytest.mark.parametrize(
    "text", ["[]", "5", "{}", '{"data": 5}', '{"data": {"dataset": 1}}', "[" * 10**5, "NaN", "{"]
)
def test_an_invalid_config_json_is_noted(run, text):
    (run / "config.json").write_text(text)
    notes: list[str] = []
    assert config_of(RunFolder(run), notes) == {}
    assert notes[0].startswith("The configuration cannot be read: ")


def test_a_report_is_written_without_a_configuration(script, trained, run):
    shutil.copy(trained / "metrics.jsonl", run)
    shutil.copy(trained / "config.json", run)
    assert config_of(RunFolder(run), notes := [])["data"]["dataset"] == "digits"
    assert not notes
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    result = script("visualize_diffusion", "--run", run)
    assert result.code == 0, result.err
    assert "The configuration cannot be read" in (run / "report.html").read_text()
