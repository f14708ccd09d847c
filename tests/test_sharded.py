"""Networks and checkpoints in shards, on two processes and on one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch.testing import assert_close

import train
from checkpoints.checkpoint import CheckpointError, load_checkpoint
from checkpoints.shards import read_shard_record, verify_shards
from cli import parser as flags
from conftest import ROOT, TINY
from test_train import assert_same_training
from training import run
from training.folder import RunFolder

FLAGS = [*TINY, "--optimizer", "adamw", "--save-every-steps", 4]

# The runs of two processes, one after the other, to spare the seconds that a start takes.
TWO = """
import sys
from contextlib import nullcontext
import torch, flags, train
import training.run
from training.distributed import process_group

training.run.GRID_STEPS = 3

def run(*arguments):
    assert flags.run(train.main, train.parse_args([*FLAGS, *arguments])) == 0

FLAGS = sys.argv[1:]
half = ["--batch-size", "32", "--max-steps", "12"]
muon = [*half, "--optimizer", "muon", "--fsdp", "--grad-accum", "2", "--grad-checkpoint"]
mlp = ["--dataset", "moons", "--precision", "bf16", "--max-steps", "2", "--sample-interval", "0"]
train.process_group = lambda device: nullcontext()  # one for all of the runs
with process_group(torch.device("cpu")):
    run(*half, "--fsdp", "--output-dir", "sharded")
    run("--resume", "sharded/checkpoints/model_step_00000008.shards", "--output-dir", "resumed")
    run("--resume", "whole/checkpoints/model_step_00000008.pt", "--fsdp", "--output-dir", "mixed")
    run(*muon, "--dropout", "0.1", "--output-dir", "muon")
    shards = "muon/checkpoints/model_step_00000008.shards"
    run("--resume", shards, "--optimizer", "muon", "--output-dir", "muon_resumed")
    for model in ("naive_unet", "cnn", "dit"):
        run(*half, "--max-steps", "2", "--fsdp", "--model", model, "--output-dir", model)
    run(*mlp, "--device", "cpu", "--fsdp", "--output-dir", "mlp")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of one process, `whole`, and those of two that `TWO` makes."""
    folder = tmp_path_factory.mktemp("sharded")
    arguments = [*FLAGS, "--batch-size", 64, "--max-steps", 12, "--output-dir", folder / "whole"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "GRID_STEPS", 3)
        assert flags.run(train.main, train.parse_args([*map(str, arguments)])) == 0
    (folder / "two.py").write_text(TWO)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    python(folder, *torchrun, "two.py", *FLAGS)
    return folder


def test_two_processes_make_the_run_of_one(runs):
    whole, sharded = (
        load_checkpoint(runs / name / "model_final.pt") for name in ("whole", "sharded")
    )
    for part in ("model", "ema"):
        assert_close(sharded[part], whole[part], rtol=0, atol=2e-5)
    moments = [run["optimizer"]["adamw"]["state"] for run in (whole, sharded)]
    assert moments[0].keys() == moments[1].keys()
    assert sharded["step"] == 12


def test_checkpoints_between_epochs_are_sharded(runs):
    saved = sorted(path.name for path in (runs / "sharded" / "checkpoints").iterdir())
    assert saved == [f"model_step_000000{step}.shards" for step in ("04", "08")]
    path = runs / "sharded" / "checkpoints" / saved[1]
    record = read_shard_record(path)
    assert record["step"] == 8
    assert len(record["files"]) == 2  # each process wrote one
    sizes = [(path / name).stat().st_size for name in record["files"]]
    assert max(sizes) < 1.6 * min(sizes)


@pytest.mark.parametrize(("whole", "resumed"), [("sharded", "resumed"), ("muon", "muon_resumed")])
def test_a_resumed_sharded_run_has_the_same_bits(runs, whole, resumed):
    runs = [load_checkpoint(runs / name / "model_final.pt") for name in (whole, resumed)]
    assert_same_training(*runs)


def test_whole_checkpoints_can_be_resumed_in_shards(runs):
    whole, mixed = (load_checkpoint(runs / name / "model_final.pt") for name in ("whole", "mixed"))
    for part in ("model", "ema"):
        assert_close(mixed[part], whole[part], rtol=0, atol=2e-5)


@pytest.mark.parametrize("model", ["muon", "naive_unet", "cnn", "dit", "mlp"])
def test_every_network_can_be_sharded(runs, model):
    checkpoint = load_checkpoint(runs / model / "model_final.pt")
    assert all(tensor.isfinite().all() for tensor in checkpoint["ema"].values())
    assert not any(hasattr(tensor, "full_tensor") for tensor in checkpoint["model"].values())


def test_shards_can_be_resumed_by_one_process(runs, script):
    shards = runs / "sharded" / "checkpoints" / "model_step_00000008.shards"
    result = script("train", "--resume", shards, "--no-fsdp", "--output-dir", "one")
    assert result.code == 0, result.err
    assert "processes: 1, and 2 before" in result.out
    one, sharded = (
        load_checkpoint(path / "model_final.pt") for path in (Path("one"), runs / "sharded")
    )
    for part in ("model", "ema"):
        assert_close(one[part], sharded[part], rtol=0, atol=2e-5)
    result = script("train", "--resume", shards, "--output-dir", "two")
    assert result.code == 2
    assert "torchrun --standalone --nproc-per-node=2 train.py --fsdp" in result.err


# --- one process that has a group of its own ------------------------------------------------------


@pytest.fixture
def group(monkeypatch):
    """This process as torchrun would start it, alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": port}
    for name, value in {**environment, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))


def damage(path: Path, how: str) -> None:
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


def test_damaged_shards_are_passed_over(script, group):
    result = script("train", *FLAGS, "--fsdp", "--max-steps", 22)
    assert result.code == 0, result.err
    os.remove("outputs/model_final.pt")
    steps = (12, 16, 20)
    paths = [Path(f"outputs/checkpoints/model_step_000000{step}.shards") for step in steps]
    assert all(path.is_dir() for path in paths)  # the last three
    assert not Path("outputs/checkpoints/model_step_00000008.shards").exists()
    damage(paths[2], "bit")
    damage(paths[1], "missing")
    result = script("train", "--resume")
    assert result.code == 0, result.err
    assert result.out.count("left out: ") == 2
    assert "resuming from outputs/checkpoints/model_step_00000012.shards, step 12" in result.out
    assert load_checkpoint("outputs/model_final.pt")["step"] == 22


@pytest.mark.parametrize("how", ["bit", "truncated", "missing", "record", "format"])
def test_damage_is_noticed(runs, tmp_path, how):
    source = runs / "sharded" / "checkpoints" / "model_step_00000004.shards"
    path = tmp_path / "checkpoints" / source.name
    shutil.copytree(source, path)
    verify_shards(path)
    damage(path, how)
    with pytest.raises(CheckpointError, match="damaged"):
        verify_shards(path)
    assert RunFolder(tmp_path).newest_checkpoint()[0] is None


def test_shards_that_cannot_be_written(script, group, monkeypatch):
    from checkpoints import shards as sharded

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharded, "file_sha256", refuse)
    result = script("train", *FLAGS, "--fsdp", "--max-steps", 10)
    assert result.code == 0, result.err
    assert result.err.count("a checkpoint could not be written") == 1
    assert not list(Path("outputs/checkpoints").glob("model_step*"))


def test_fsdp_needs_several_processes(script):
    for extra in ([], ["--compile"]):
        result = script("train", *TINY, "--fsdp", *extra)
        assert result.code == 2
        assert "torchrun --standalone --nproc-per-node=2 train.py --fsdp" in result.err


def python(folder: Path, *arguments) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-3000:]
