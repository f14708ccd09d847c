"""Snapshots: weights files from during the training, for sampling and for the report of a run."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import train
from checkpoints.checkpoint import load_checkpoint, restore
from checkpoints.runs import find_checkpoint
from checkpoints.weights import save_weights
from cli import process
from cli.training import TRAIN
from evaluation import report
from evaluation.report import learning_rows, saved_steps
from runs import SMALL, killed_in
from training import saving
from training.folder import RunFolder
from training.plan import is_snapshot_step


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """A run of two epochs of 13 steps, with a checkpoint after each, and snapshots."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    arguments = [*SMALL, "--snapshots", "12", "--epochs", "2", "--save-interval", "1"]
    arguments += ["--output-dir", str(folder.path)]
    assert process.run(train.main, TRAIN.parse(arguments)) == 0
    return folder


def written() -> list[str]:
    """The names of the files in the snapshots folder of the run in outputs/."""
    return sorted(path.name for path in Path("outputs/snapshots").iterdir())


def named(*steps: int) -> list[str]:
    return [f"step_{step:06d}.safetensors" for step in steps]


def test_snapshots_are_due_at_the_powers_of_the_square_root_of_two():
    due = [step for step in range(5000) if is_snapshot_step(step)]
    assert due[:9] == [16, 23, 32, 45, 64, 91, 128, 181, 256]
    assert due == [round(2 ** (k / 2)) for k in range(8, 25)]


def test_a_run_keeps_the_newest_snapshots_and_resumes_to_the_same(script):
    flags = [*SMALL, "--snapshots", 2, "--save-every-steps", 20]
    assert script("train", *flags, "--max-steps", 32).code == 0
    assert written() == named(23, 32)
    snapshot = Path("outputs/snapshots") / named(32)[0]
    final, light = load_checkpoint("outputs/model_final.pt"), load_checkpoint(snapshot)
    assert (light["step"], light["config"]) == (32, final["config"])
    for name, weight in final["ema"].items():
        assert torch.equal(light["ema"][name], weight.half().float())
    assert len(snapshot.read_bytes()) < 2.2 * sum(w.numel() for w in final["ema"].values()) + 9000
    result = script("sample", "--checkpoint", snapshot, "--num-images", 2, "--steps", 2)
    assert (result.code, "step 32" in result.out) == (0, True)

    back = ["--resume", "outputs/checkpoints/model_step_00000020.pt"]
    assert script("train", *back, "--max-steps", 24).code == 0
    aside = [f"{name}.aside" for name in named(23, 32)]
    assert written() == sorted([*named(23), *aside])


def test_a_killed_run_writes_its_later_snapshots_again(script):
    flags = [*SMALL, "--snapshots", 12, "--save-every-steps", 20, "--max-steps", 33]
    with killed_in(33):
        assert script("train", *flags).code == 1
    folder = Path("outputs/snapshots")
    before = {name: load_checkpoint(folder / name) for name in written()}
    assert written() == named(16, 23, 32)
    assert script("train", "--resume").code == 0
    assert written() == sorted(before)
    for name, snapshot in before.items():  # the order of the metadata in a file is not fixed
        again = load_checkpoint(folder / name)
        assert again["config"] == snapshot["config"]
        assert all(torch.equal(again["ema"][key], w) for key, w in snapshot["ema"].items())
    assert script("train", *flags, "--overwrite", "--snapshots", 0).code == 0
    assert not Path("outputs/snapshots").exists()


def test_a_snapshot_that_cannot_be_written_is_reported(script, monkeypatch):
    def full(path, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "save_weights", full)
    result = script("train", *SMALL, "--snapshots", 12, "--max-steps", 24)
    assert result.code == 0
    assert result.err.count("a snapshot could not be written") == 1
    assert load_checkpoint("outputs/model_final.pt")["step"] == 24


def test_the_folder_of_a_run_stands_for_a_snapshot_only_if_there_is_nothing_else(run, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, folder.path)
    newest = folder.snapshot(23)
    assert newest.exists()
    assert find_checkpoint(folder.snapshots) == find_checkpoint(folder.path) == folder.final
    assert RunFolder.of(newest).path == folder.path
    for path in folder.all_checkpoints():
        path.unlink()
    assert find_checkpoint(folder.path) == newest
    newest.write_bytes(newest.read_bytes()[:-9])
    assert find_checkpoint(folder.path, str) == folder.snapshot(16)


def test_rows_of_the_report_are_those_of_snapshots_and_checkpoints(run, monkeypatch):
    saved, _ = saved_steps(run)
    assert [(each.step, each.label, each.ended_epoch) for each in saved] == [
        (13, "step 13, epoch 1", 1),
        (16, "step 16, epoch 2", None),
        (23, "step 23, epoch 2", None),
        (26, "step 26, epoch 2", 2),
    ]
    monkeypatch.setattr(report, "MAX_CHECKPOINTS", 3)
    learning = learning_rows(run.path, steps=1)
    assert list(learning.samples) == [saved[i].label for i in (0, 1, 3)]  # 19 would be the middle
    assert learning.notes == []
    assert learning.newest["step"] == 26
    assert list(learning_rows(run.path, steps=1, epochs=[1]).samples) == [saved[0].label]


@pytest.mark.parametrize("own_halves", [False, True])
def test_weights_in_16_bits_are_loaded_as_the_network_has_them(run, tmp_path, own_halves):
    checkpoint = load_checkpoint(run.final)
    weights, (first, second, *_) = checkpoint["ema"], checkpoint["ema"]
    weights[first][...] = 1e6  # beyond float16
    wanted = {name: w if name == first else w.half().float() for name, w in weights.items()}
    if own_halves:
        wanted = weights = {**weights, second: weights[second].half()}
    path = tmp_path / "half.safetensors"
    save_weights(path, checkpoint["config"], 26, "ema", weights, half=True)
    loaded = load_checkpoint(path)
    assert loaded["ema"].keys() == wanted.keys()
    for name, weight in wanted.items():
        assert_close(loaded["ema"][name], weight, rtol=0, atol=0)
    if not own_halves:
        restore(loaded)
