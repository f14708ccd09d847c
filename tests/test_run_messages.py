"""What a run says at its start and when it cannot go on: classes, mirroring, paths, full disks."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

import train as train_command
from checkpoints.checkpoint import load_checkpoint
from cli.training import TRAIN
from mini_diffusion.picture import write_whole
from runs import SMALL, assert_same_training
from train import train
from training import folder, loop, progress
from training.fit import fit
from training.folder import RunFolder
from training.foreign import foreign_files
from training.log import Metrics
from training.progress import Estimate
from utils import save_whole, write_errors

FOLDER = ["--dataset", "folder", "--image-size", "8", "--channels", "8", "--model", "dit"]
FOLDER += ["--blocks", "1", "--patch-size", "4", "--device", "cpu", "--save-interval", "0"]
FOLDER += ["--sample-interval", "0", "--max-steps", "2"]


def make_classes(path: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(path / name / f"{i}.png")


def test_classes_and_mirroring_are_printed(script):
    make_classes(Path("images"), {"cat": 3, "dog": 2})
    command = [*FOLDER, "--data-dir", "images"]
    result = script("train", *command)
    assert "classes: cat (3), dog (2)\n" in result.out
    assert "mirrored at random (default for folder); --no-flip turns it off" in result.out
    assert "splits" not in result.out
    result = script("train", *command, "--resume", "--max-steps", 3)
    assert "mirrored" not in result.out
    for choice in ("--flip", "--no-flip"):
        result = script("train", *command, "--overwrite", choice)
        assert "mirrored" not in result.out
    assert "mirrored" not in script("train", *SMALL, "--max-steps", 2, "--overwrite").out


@pytest.mark.parametrize(
    ("paces", "total", "expected"),
    [
        ([0.36], 9380, {25: "about 56 min: 9,355 steps at 2.8 steps/s. In less time: --hint"}),
        ([0.36], 9, {}),
        ([0.36], 1000, {25: "about 6 min: 975 steps at 2.8 steps/s"}),
        ([30], 9380, {2: "about 3.3 days: 9,378 steps at 30.0 s a step. In less time: --hint"}),
        ([0.01], 5000, {}),  # less than a minute
        ([0.1, 0.6], 2000, {25: "about 3 min: ", 1139: "about 9 min left, not as estimated"}),
        ([0.5, 0.05], 2000, {25: "about 16 min: "}),  # the end comes before a review
        ([0.02, 0.2], 2000, {1503: "about 2 min left, not as estimated"}),
    ],
)
def test_the_duration_is_estimated(monkeypatch, paces, total, expected):
    now, said = 0.0, {}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    estimate = Estimate(0, "--hint")
    for step in range(1, total + 1):
        now += paces[2 * step > total and len(paces) > 1]
        if text := estimate.update(step, total):
            said[step] = text
    assert said.keys() == expected.keys()
    assert all(said[step].startswith(text) for step, text in expected.items())


def test_a_run_says_how_long_it_takes(script, monkeypatch):
    monkeypatch.setattr(Estimate, "WORTH_SAYING", 0)
    monkeypatch.setattr(Estimate, "LONG", 0)
    monkeypatch.setattr(Estimate, "WRONG", 1e9)
    command = [*SMALL, "--max-steps", 26]
    result = script("train", *command)
    assert result.err.count("s: 1 steps at ") == 1
    assert result.err.count(". In less time: --preset laptop --max-minutes 10") == 1
    TRAIN.parse(train_command.SHORTER.split())
    result = script("train", "--resume", "--max-steps", 52)
    assert " steps at " in result.err
    assert "In less time" not in result.err


def test_a_first_grid_comes_before_a_long_epoch_ends(script, monkeypatch):
    command = [*SMALL, "--max-steps", 24, "--sample-interval", 2, "--output-dir"]
    monkeypatch.setattr(loop, "FIRST_GRID", 0)
    monkeypatch.setattr(loop, "FIRST_GRID_STEP", 8)
    assert script("train", *command, "late").code == 0
    assert os.listdir("late/samples") == ["epoch_002.png"]  # it comes soon
    monkeypatch.setattr(loop, "SOON", 0)
    result = script("train", *command, "early")
    assert result.err.count("early samples, after 10 steps: early/samples/first.png") == 1
    assert sorted(os.listdir("early/samples")) == ["epoch_002.png", "first.png"]
    one, other = (load_checkpoint(f"{name}/model_final.pt") for name in ("late", "early"))
    assert_same_training(one, other)
    Path("early/config.json").unlink()
    assert not foreign_files(Path("early"))
    RunFolder("early").clear()
    assert set(os.listdir("early")) <= {".lock"}


def test_only_the_first_of_many_classes_are_printed(script):
    make_classes(Path("images"), {f"class {i:02d}": 1 for i in range(13)})
    result = script("train", *FOLDER, "--data-dir", "images")
    assert "class 09 (1) and 3 more\n" in result.out


def test_a_finished_run_is_no_failure(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    again = train(output_dir=run, resume=True)
    assert again.exit_code == 0
    assert again.checkpoint == run / "model_final.pt"
    (run / "checkpoints" / "model_epoch_002.pt").unlink(missing_ok=True)
    (run / "model_final.pt").rename(run / "checkpoints" / "interrupted.pt")
    with pytest.raises(ValueError, match="has finished its 26 steps"):  # there is no final model
        train(output_dir=run, resume=True, max_steps=10)


def test_fit_says_the_same_of_a_shorter_run(tmp_path):
    import torch

    net = torch.nn.Module()
    net.layer = torch.nn.Linear(2, 2)
    net.forward = lambda x, t: net.layer(x)
    data = torch.randn(64, 2)
    result = fit(net, data, folder=tmp_path, max_steps=4, batch_size=16, validation=0)
    assert (
        fit(net, data, folder=tmp_path, max_steps=4, batch_size=16, validation=0)[:2]
        == (result[:2])
    )


def test_the_folder_of_a_run_is_resumed(script, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for path, steps in [(run, 28), (run / "checkpoints", 30)]:
        result = script("train", "--resume", path, "--max-steps", steps)
        assert result.code == 0, result.err
        assert f"resuming from {run / 'model_final.pt'}, step" in result.out
    assert load_checkpoint(run / "model_final.pt")["step"] == 30
    (tmp_path / "empty").mkdir()
    result = script("train", *SMALL, "--resume", tmp_path / "empty")
    assert result.code == 1
    assert f"{tmp_path / 'empty'} is a folder that holds no run of train.py" in result.err
    assert not os.listdir(tmp_path / "empty")


def test_a_relative_data_folder_from_elsewhere(script, tmp_path, monkeypatch):
    make_classes(Path("images"), {"cat": 3, "dog": 2})
    assert script("train", *FOLDER, "--data-dir", "images", "--output-dir", "run").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for command in (
        ["train", "--resume", "../run", "--max-steps", 3],
        ["evaluate", "--checkpoint", "../run/model_final.pt", "--metrics", "copies"],
    ):
        result = script(*command)
        assert result.code == 1
        assert "images is not a folder" in result.err
        assert "saved the relative path images" in result.err
        assert "give --data-dir" in result.err
    result = script("train", "--resume", "../run", "--max-steps", 3, "--data-dir", "../images")
    assert result.code == 0, result.err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_an_error_of_writing_names_the_file(tmp_path, number):
    def fail(partial: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match="cannot") as caught:
        save_whole(tmp_path / "a.json", fail)
    assert str(caught.value) == f"cannot write {tmp_path / 'a.json'}: {os.strerror(number)}"


def test_a_full_disk_at_the_end(script, monkeypatch):
    def full(path: Path, checkpoint: dict) -> None:
        with write_errors(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder, "save_checkpoint", full)
    result = script("train", *SMALL, "--max-steps", 2)
    assert result.code == 1
    assert "outputs/model_final.pt cannot be written (No space left on device)" in result.err
    assert "--resume continues" in result.err


def test_a_lock_that_cannot_be_written_names_its_file(tmp_path):
    (tmp_path / ".lock").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"^cannot write .*\.lock: "), RunFolder(tmp_path).lock():
        pass


def test_the_package_without_pytorch_names_the_file(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"^cannot write .*a\.png: No space left on device$"):
        write_whole(tmp_path / "a.png", b"")


def test_full_metrics_name_their_file(tmp_path):
    with Metrics(tmp_path / "metrics.jsonl", 0) as metrics:
        metrics._file.close()
        metrics._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
        with pytest.raises(OSError, match="/dev/full"):
            metrics.write({"step": 1})
