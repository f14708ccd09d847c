"""Networks and checkpoints in shards, on two processes and on one."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from torch.testing import assert_close

import train
import two_processes
from checkpoints import shards
from checkpoints.checkpoint import CheckpointError, load_checkpoint
from checkpoints.shards import read_shard_record, verify_shards
from cli import process
from cli.training import TRAIN
from conftest import TINY
from processes import Processes
from runs import assert_same_training
from training.folder import RunFolder

FLAGS = [*TINY, "--optimizer", "adamw", "--save-every-steps", "2", "--validation", "64"]
ALONE = [*FLAGS, "--multipliers", "1", "--fsdp"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of one process, `whole`, and those of two (`train_sharded`)."""
    folder = tmp_path_factory.mktemp("sharded")
    whole = [*FLAGS, "--batch-size", "64", "--max-steps", "9", "--multipliers", "1"]
    whole += ["--output-dir", f"{folder}/whole"]
    assert process.run(train.main, TRAIN.parse(whole)) == 0
    processes = Processes(folder, 2, two_processes.train_sharded, *FLAGS)
    assert processes.wait() == [0, 0], processes.text("err")
    return folder


def final(run: Path) -> dict:
    """The last checkpoint of a run."""
    return load_checkpoint(run / "model_final.pt")


def assert_close_weights(one: dict, other: dict) -> None:
    for part in ("model", "ema"):
        assert_close(one[part], other[part], rtol=0, atol=2e-5)


def test_two_processes_make_the_run_of_one(runs):
    whole, sharded = final(runs / "whole"), final(runs / "sharded")
    assert_close_weights(sharded, whole)
    moments = [checkpoint["optimizer"]["adamw"]["state"] for checkpoint in (whole, sharded)]
    assert moments[0].keys() == moments[1].keys()
    assert sharded["step"] == 9


def test_checkpoints_between_epochs_are_sharded(runs):
    saved = sorted(path.name for path in (runs / "sharded" / "checkpoints").iterdir())
    assert saved == [f"model_step_0000000{step}.shards" for step in (4, 6, 8)]  # the last three
    path = runs / "sharded" / "checkpoints" / saved[-1]
    record = read_shard_record(path)
    assert record["step"] == 8
    assert len(record["files"]) == 2  # each process wrote one
    sizes = [(path / name).stat().st_size for name in record["files"]]
    assert max(sizes) < 1.6 * min(sizes)


def test_snapshots_are_whole(runs):
    snapshot = load_checkpoint(runs / "sharded" / "snapshots" / "step_000008.safetensors")
    whole = load_checkpoint(runs / "whole" / "checkpoints" / "model_step_00000008.pt")
    assert_close(snapshot["ema"], whole["ema"], rtol=1e-3, atol=1e-4)


def test_a_resumed_sharded_run_has_the_same_bits(runs):
    """By Muon, with AdamW for what is no matrix, and with dropout and gradient accumulation."""
    assert_same_training(final(runs / "muon"), final(runs / "muon_resumed"))


def test_whole_checkpoints_can_be_resumed_in_shards(runs):
    assert_close_weights(final(runs / "mixed"), final(runs / "whole"))


@pytest.mark.parametrize("model", ["muon", "naive_unet", "cnn", "dit", "mlp"])
def test_every_network_can_be_sharded(runs, model):
    checkpoint = final(runs / model)
    assert all(tensor.isfinite().all() for tensor in checkpoint["ema"].values())
    assert not any(hasattr(tensor, "full_tensor") for tensor in checkpoint["model"].values())


def damage(path: Path, how: str) -> None:
    """Damage a sharded checkpoint."""
    file = next(path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    if how == "bit":
        content[-1000] ^= 1
        file.write_bytes(content)
    elif how == "truncated":
        file.write_bytes(content[:-1])
    elif how == "missing":
        file.unlink()
    elif how == "record":
        (path / "record.json").write_text("{")
    elif how == "format":
        record = json.loads((path / "record.json").read_text())
        (path / "record.json").write_text(json.dumps({**record, "format": 1}))


@pytest.mark.parametrize("how", ["bit", "truncated", "missing", "record", "format"])
def test_damage_is_recognised(runs, tmp_path, how):
    source = runs / "sharded" / "checkpoints" / "model_step_00000004.shards"
    path = tmp_path / "checkpoints" / source.name
    shutil.copytree(source, path)
    verify_shards(path)
    damage(path, how)
    with pytest.raises(CheckpointError, match="damaged"):
        verify_shards(path)
    assert RunFolder(tmp_path).newest_checkpoint()[0] is None


def test_one_process_resumes_from_the_newest_valid_shards(runs, script, tmp_path):
    shutil.copytree(runs / "sharded", tmp_path / "outputs")
    os.remove("outputs/model_final.pt")
    paths = sorted(Path("outputs/checkpoints").glob("*.shards"))
    damage(paths[2], "bit")
    damage(paths[1], "missing")
    result = script("train", "--resume", "--no-fsdp")
    assert result.code == 0, result.err
    assert result.out.count("skipped: ") == 2
    assert f"resuming from {paths[0]}, step 4" in result.out
    assert "processes: 1 instead of 2" in result.out
    one = final(Path("outputs"))
    assert_close_weights(one, final(runs / "sharded"))
    assert one["step"] == 9


# --- one process with a process group of its own --------------------------------------------------


@pytest.fixture
def group(monkeypatch):
    """This process as torchrun would start it, alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": port}
    for name, value in {**environment, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))


def test_training_continues_if_shards_cannot_be_written(script, group, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "file_sha256", refuse)
    result = script("train", *ALONE, "--max-steps", 3)
    assert result.code == 0, result.err
    assert result.err.count("a checkpoint could not be written") == 1
    assert not list(Path("outputs/checkpoints").glob("model_step*"))


def test_a_sharded_run_of_one_process_resumes(script, group):
    result = script("train", *ALONE, "--max-steps", 2)
    assert result.code == 0, result.err
    result = script("train", "--resume", "--max-steps", 3)
    assert result.code == 0, result.err
    assert final(Path("outputs"))["step"] == 3


def test_fsdp_needs_several_processes(script, runs):
    newest = runs / "sharded" / "checkpoints" / "model_step_00000008.shards"
    resumed = ["--resume", newest, "--output-dir", "two"]
    for arguments in ([*TINY, "--fsdp"], [*TINY, "--fsdp", "--compile"], resumed):
        result = script("train", *arguments)
        assert result.code == 2
        assert "torchrun --standalone --nproc-per-node=2 train.py --fsdp" in result.err
