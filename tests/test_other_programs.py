"""Files that are no checkpoint of this version: each is named for what it is."""

import io
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save

from checkpoints.checkpoint import CheckpointError, load_checkpoint, restore, save_checkpoint
from checkpoints.weights import save_weights
from dataset.opening import LFS_POINTER

WEIGHTS = {"down_blocks.0.weight": torch.zeros(2), "mid.bias": torch.zeros(3)}


def pt(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
LIGHTNING = {"epoch": 1, "state_dict": WEIGHTS, "pytorch-lightning_version": "2.1"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.pt", POINTER, f"it is {LFS_POINTER}"),
        ("m.safetensors", POINTER, f"it is {LFS_POINTER}"),
        ("m.pt", b"<!DOCTYPE html><title>Sign in</title>", "it is a web page (HTML)"),
        ("m.pt", b"", "it is empty"),
        ("m.pt", b"\x89PNG\r\n\x1a\n" + bytes(99), "it is a PNG image"),
        ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "it is an HDF5 file"),
        ("m.onnx", b"\x08\x07\x12\x07pytorch" + bytes(range(99)), "it is an ONNX model"),
        ("config.json", b'{"data": {}}', "it is a text file"),
        ("s.npz", npz(arr_0=np.zeros(3)), "it is a file of NumPy arrays (.npz)"),
        (
            "m.npz",
            npz(config=np.array("{}"), alpha=np.ones(2), sigma=np.ones(2)),
            "it is a model for NumPy; python -m mini_diffusion.sample",
        ),
        ("m.pt", pt(WEIGHTS), "without their configuration (a state_dict) of a U-Net of diffusers"),
        ("m.pt", pt({"w": torch.zeros(2)}), "(a state_dict) of another program"),
        ("m.ckpt", pt(LIGHTNING), "it is a checkpoint of PyTorch Lightning"),
        ("m.pt", pt({"model": WEIGHTS, "epoch": 3}), "it is a checkpoint of another program"),
        ("m.pt", pt(torch.zeros(3)), "it is a PyTorch file of a tensor"),
        ("m.safetensors", save(WEIGHTS), "export.py did not write it: weights of a U-Net of diff"),
        ("m.safetensors", save(WEIGHTS, {"format": "tiny-diffusion-2"}), "of another version"),
    ],
)
def test_other_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for mapped in (False, True):
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(tmp_path / name, mapped=mapped)
        assert message in str(error.value)
        assert len(str(error.value).replace(str(tmp_path), "")) < 250


@pytest.fixture(scope="module")
def content(conditional) -> dict:
    return load_checkpoint(conditional)


@pytest.mark.parametrize(
    ("section", "key", "value", "unknown"),
    [
        ("model", "rope", True, "there is no argument model.rope"),
        ("model", "name", "mamba", "unknown model 'mamba'"),
        ("diffusion", "schedule", "laplace", "unknown schedule 'laplace'"),
        ("diffusion", "prediction", "score", "unknown prediction 'score'"),
        ("diffusion", "shift", 2.0, "there is no argument diffusion.shift"),
    ],
)
def test_a_newer_version_does_not_contradict_itself(
    content, tmp_path, section, key, value, unknown
):
    config = json.loads(json.dumps(content["config"]))
    config[section][key] = value
    save_checkpoint(tmp_path / "m.pt", content | {"config": config})
    save_weights(tmp_path / "m.safetensors", config, 5, "ema", content["ema"])
    for name in ("m.pt", "m.safetensors"):
        with pytest.raises(CheckpointError, match=f"newer version of this project: {unknown}"):
            restore(load_checkpoint(tmp_path / name))


def test_real_contradictions_stay(content, tmp_path):
    config = content["config"] | {"model": content["config"]["model"] | {"long_skips": True}}
    save_checkpoint(tmp_path / "m.pt", content | {"config": config})  # an argument of another one
    with pytest.raises(CheckpointError, match=r"contradicts itself: there is no .*long_skips"):
        load_checkpoint(tmp_path / "m.pt")


def test_a_newer_format_is_named(content, tmp_path, monkeypatch):
    monkeypatch.setattr("checkpoints.checkpoint.CHECKPOINT_FORMAT", 4)
    save_checkpoint(tmp_path / "m.pt", {k: v for k, v in content.items() if k != "format"})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="reads 3; a newer version of this project wrote it"):
        load_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("part", ["ema", "model"])
def test_a_weight_that_is_no_tensor(script, content, tmp_path, part):
    name = next(iter(content[part]))
    save_checkpoint(tmp_path / "m.pt", content | {part: content[part] | {name: 3}})
    for command in (["evaluate", "--metrics", "bpd"], ["sample"], ["export"]):
        result = script(*command[:1], "--checkpoint", "m.pt", *command[1:])
        assert result.code == 1
        assert f"m.pt contradicts itself: the weight {name} is not a tensor" in result.err
