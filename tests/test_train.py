import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from checkpoints.checkpoint import load_checkpoint
from conftest import ROOT, TINY
from training import run
from training.config import PRESETS, natural_objective
from training.folder import RunFolder
from training.log import read_metrics


def assert_same_training(a, b):
    """Two checkpoints with the same bits in all that training changes."""
    for key in ("model", "ema"):
        for name, tensor in a[key].items():
            assert torch.equal(tensor, b[key][name]), (key, name)
    assert a["optimizer"].keys() == b["optimizer"].keys()
    for optimizer, saved in a["optimizer"].items():
        for i, state in saved["state"].items():
            for name, value in state.items():
                other = b["optimizer"][optimizer]["state"][i][name]
                assert torch.equal(value, other), (optimizer, i, name)
    assert a["step"] == b["step"]


def test_a_run_writes_its_files(trained):
    files = {str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()}
    assert files == {
        ".lock",
        "config.json",
        "env.json",
        "metrics.jsonl",
        "training_loss.png",
        "model_final.pt",
        "samples/epoch_001.png",
        "samples/epoch_002.png",
        "checkpoints/model_epoch_001.pt",
        "checkpoints/model_epoch_002.pt",
        "checkpoints/best.pt",
    }
    every = read_metrics(trained / "metrics.jsonl")
    rows = [row for row in every if "loss" in row]
    assert [row["step"] for row in rows] == [10, 13, 20, 26]  # every ten steps and each epoch's end
    for row in rows:
        assert row.keys() >= {"epoch", "loss", "lr", "images_per_second", "gradient_norm"}
    assert [row["epoch"] for row in rows] == [1, 1, 2, 2]
    assert [(r["step"], r["epoch"]) for r in every if "validation_loss" in r] == [(13, 1), (26, 2)]
    with Image.open(trained / "samples" / "epoch_002.png") as image:
        assert image.width == 8 * 58 + 2
        assert image.height == image.width + 2 + 60  # and a line and a row of real images


def test_the_loss_falls(trained):
    rows = read_metrics(trained / "metrics.jsonl")
    for name in ("loss", "validation_loss"):
        losses = [row[name] for row in rows if name in row]
        assert losses[-1] < 0.95 * losses[0]


def test_defaults_of_the_length():
    def limit(*arguments):
        return run.step_limit(vars(train.parse_args([str(a) for a in arguments])), 100)

    assert limit() == 2000
    assert limit("--epochs", 3) == 300
    assert limit("--max-steps", 50) == 50
    assert limit("--epochs", 3, "--max-steps", 1000) == 300
    assert limit("--max-minutes", 1) is None
    assert limit("--max-minutes", 1, "--epochs", 2) == 200


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(script, tmp_path, precision):
    flags = [*TINY, "--precision", precision, "--dropout", "0.1", "--flip", "--batch-size", "64"]
    flags += ["--grad-accum", "2", "--max-steps", "40"]
    assert script("train", *flags, "--output-dir", "whole").code == 0

    stopping = StopAfter(23)
    with stopping:
        result = script("train", *flags, "--output-dir", "parts")
    assert result.code == 130
    assert "stopped after step 23" in result.out
    assert "python train.py --resume --output-dir parts" in result.out
    assert not (tmp_path / "parts" / "model_final.pt").exists()
    result = script("train", "--resume", "--device", "cpu", "--output-dir", "parts")
    assert result.code == 0
    assert "resuming from parts/checkpoints/interrupted.pt, step 23" in result.out
    assert not (tmp_path / "parts" / "checkpoints" / "interrupted.pt").exists()

    whole, parts = (load_checkpoint(f"{name}/model_final.pt") for name in ("whole", "parts"))
    assert_same_training(whole, parts)
    pictures = [Path(name, "samples", "epoch_004.png").read_bytes() for name in ("whole", "parts")]
    assert pictures[0] == pictures[1]
    rows = {name: read_metrics(Path(name, "metrics.jsonl")) for name in ("whole", "parts")}
    steps = [row["step"] for row in rows["parts"] if "loss" in row]
    assert steps == sorted(set(steps))
    validations = [[row for row in rows[name] if "validation_loss" in row] for name in rows]
    assert validations[0] == validations[1]


def test_a_killed_run_logs_the_losses_from_before_the_kill_too(script):
    flags = [*TINY, "--max-steps", 24, "--save-every-steps", 7]
    assert script("train", *flags, "--output-dir", "whole").code == 0
    with FailIn(18):
        assert script("train", *flags, "--output-dir", "parts").code == 1
    result = script("train", "--resume", "--output-dir", "parts")
    assert "resuming from parts/checkpoints/model_step_00000014.pt, step 14" in result.out
    rows = {name: read_metrics(Path(name, "metrics.jsonl")) for name in ("whole", "parts")}
    losses = [[(r["step"], r.get("loss")) for r in rows[name]] for name in rows]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("lost", [[], ["model_final.pt"]])
def test_a_run_that_was_killed_while_it_wrote_its_last_files_writes_them(script, lost):
    flags = [*TINY, "--epochs", 1, "--save-interval", 1, "--keep", 1]
    assert script("train", *flags).code == 0
    grid = Path("outputs/samples/epoch_001.png")
    weights, pixels = load_checkpoint("outputs/model_final.pt"), grid.read_bytes()
    for path in (grid, *(Path("outputs", name) for name in lost)):
        path.unlink()
    old = Path(shutil.copy("outputs/checkpoints/best.pt", "outputs/checkpoints/model_epoch_000.pt"))
    assert script("train", "--resume").code == 0
    assert not old.exists()
    assert grid.read_bytes() == pixels
    assert_same_training(load_checkpoint("outputs/model_final.pt"), weights)
    assert script("train", "--resume").code == 2  # now there is nothing left to do


def test_a_run_that_was_killed_between_two_checkpoints_of_a_step_ends_with_both(script):
    flags = [*TINY, "--epochs", 3, "--save-interval", 1, "--save-every-steps", 13]
    with FailIn(30):
        assert script("train", *flags).code == 1
    folder = Path("outputs/checkpoints")
    epoch, step = folder / "model_epoch_002.pt", folder / "model_step_00000026.pt"
    assert load_checkpoint(folder / "best.pt")["step"] == 26
    for path in (epoch, step):
        path.unlink()
    with FailIn(30):
        assert script("train", "--resume").code == 1
    assert load_checkpoint(epoch)["step"] == load_checkpoint(step)["step"] == 26


def test_a_ctrl_c_in_the_last_step_finishes_the_run(script):
    with StopAfter(5):
        result = script("train", *TINY, "--max-steps", 5)
    assert result.code == 0
    assert load_checkpoint("outputs/model_final.pt")["step"] == 5


class StopAfter:
    """Sends this process a Ctrl-C in the middle of a training step."""

    def __init__(self, step: int):
        self.step, self.update = step, train.Trainer.update

    def __enter__(self):
        def update(trainer, *arguments):
            if trainer.step + 1 == self.step:
                self.act()
            return self.update(trainer, *arguments)

        train.Trainer.update = update

    def __exit__(self, *error):
        train.Trainer.update = self.update

    def act(self):
        os.kill(os.getpid(), signal.SIGINT)


class FailIn(StopAfter):
    """Ends the run in the middle of a training step, with nothing saved."""

    def act(self):
        raise RuntimeError("as good as killed")


def test_a_finished_run_can_go_on_longer(script, tmp_path):
    script("train", *TINY, "--max-steps", 5, "--output-dir", "run")
    result = script("train", "--resume", "--output-dir", "run")
    assert result.code == 2
    assert "this run has made its 5 updates" in result.err
    assert script("train", "--resume", "--max-steps", 9, "--output-dir", "run").code == 0
    assert load_checkpoint("run/model_final.pt")["step"] == 9


def test_a_given_checkpoint_is_resumed_in_its_folder(script, tmp_path):
    script("train", *TINY, "--epochs", 3, "--save-interval", 1, "--output-dir", "run")
    result = script("train", "--resume", "run/checkpoints/model_epoch_001.pt", "--max-steps", 16)
    assert result.code == 0, result.err
    assert "resuming from run/checkpoints/model_epoch_001.pt, step 13" in result.out
    assert "set aside: " in result.out  # or the abandoned branch would be resumed next
    assert "model_epoch_003.pt.aside" in result.out
    assert load_checkpoint("run/model_final.pt")["step"] == 16
    assert not (tmp_path / "outputs").exists()
    assert RunFolder("run").newest_checkpoint()[0].name == "model_final.pt"


def test_a_checkpoint_is_not_resumed_into_another_run(script, trained):
    script("train", *TINY, "--max-steps", 3, "--output-dir", "other")
    path = trained / "model_final.pt"
    result = script("train", "--resume", path, "--output-dir", "other", "--epochs", 4)
    assert result.code == 2
    assert "but other holds another" in result.err


def test_a_limit_of_steps_binds_before_the_time_is_planned(script):
    result = script("train", *TINY, "--max-minutes", 1, "--max-steps", 7)
    assert result.code == 0, result.err
    assert load_checkpoint("outputs/model_final.pt")["step"] == 7


def test_a_timed_run_keeps_its_plan_over_two_interruptions(script):
    script_flags = [*TINY, "--max-minutes", 5]
    with StopAfter(40):
        assert script("train", *script_flags).code == 130
    planned = load_checkpoint("outputs/checkpoints/interrupted.pt")["config"]["train"]
    assert planned["total_steps"] > 40
    with StopAfter(45):
        assert script("train", "--resume").code == 130
    again = load_checkpoint("outputs/checkpoints/interrupted.pt")["config"]["train"]
    assert again == planned


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--channels", 16], "model.channels: 8 in the checkpoint, 16 now"),
        (["--dataset", "folder"], "data.dataset: digits in the checkpoint, folder now"),
        (["--schedule", "linear"], "diffusion.schedule: cosine in the checkpoint, linear now"),
        (["--timesteps", 500], "diffusion.timesteps: 1000 in the checkpoint, 500 now"),
        (["--image-size", 16], "data.image_size: 8 in the checkpoint, 16 now"),
        (["--batch-size", 32], "train.update_size: 128 in the checkpoint, 32 now"),
        (["--seed", 5], "train.seed: 0 in the checkpoint, 5 now"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(script, trained, image_folder, arguments, field):
    if "folder" in arguments:
        arguments = [*arguments, "--data-dir", image_folder]
    before = (trained / "metrics.jsonl").read_bytes()
    result = script("train", "--resume", "--epochs", 3, "--output-dir", trained, *arguments)
    assert result.code == 1
    assert field in result.err
    assert "Traceback" not in result.err
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_holds_a_run_is_refused(script, trained):
    result = script("train", *TINY, "--output-dir", trained)
    assert result.code == 2
    assert "holds a run already" in result.err
    assert "--resume" in result.err
    assert "--overwrite" in result.err


def test_overwrite_replaces_the_run_and_nothing_else(script, tmp_path):
    script("train", *TINY, "--epochs", 1, "--save-interval", 1, "--output-dir", "run")
    mine = [tmp_path / "run" / "mine.txt", tmp_path / "run" / "samples" / "mine.png"]
    for file in mine:
        file.write_text("keep me")
    result = script("train", *TINY, "--max-steps", 3, "--overwrite", "--output-dir", "run")
    assert result.code == 0
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
    assert {row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")} == {3}
    assert all(file.exists() for file in mine)


def test_a_wrong_overwrite_deletes_nothing(script, tmp_path):
    script("train", *TINY, "--max-steps", 3, "--output-dir", "run")
    for wrong in (["--dataset", "mnist", "--no-download"], ["--attention-resolutions", "5"]):
        assert script("train", *TINY, *wrong, "--overwrite", "--output-dir", "run").code > 0
        assert (tmp_path / "run" / "model_final.pt").exists()


def test_nothing_to_resume(script, tmp_path):
    result = script("train", "--resume", "--output-dir", "empty")
    assert result.code == 2
    assert "there is no whole checkpoint in empty; with --dataset a run would be" in result.err
    result = script("train", "--resume", "none.pt")
    assert result.code == 1
    assert "there is no checkpoint none.pt" in result.err
    assert os.listdir(tmp_path) == []


def test_one_command_starts_a_run_and_resumes_it(script):
    command = [*TINY, "--max-steps", 5, "--resume"]
    result = script("train", *command)
    assert result.code == 0, result.err
    assert "there is no checkpoint in outputs yet: the run begins at step 0" in result.out
    result = script("train", *command, "--max-steps", 8)
    assert result.code == 0, result.err
    assert "resuming from outputs/model_final.pt, step 5" in result.out


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(script):
    script("train", *TINY, "--max-steps", 5, "--seed", 3)
    os.remove("outputs/model_final.pt")
    result = script("train", "--resume")
    assert result.code == 0, result.err
    assert "the run begins at step 0" in result.out
    assert load_checkpoint("outputs/model_final.pt")["config"]["train"]["seed"] == 3
    Path("outputs/model_final.pt").write_bytes(b"")
    result = script("train", "--resume")
    assert result.code == 2
    assert "there is no whole checkpoint in outputs" in result.err


def test_missing_data_is_one_message(script, tmp_path):
    result = script("train", "--dataset", "mnist", "--no-download")
    assert result.code == 1
    assert "mnist not found in" in result.err
    assert "Traceback" not in result.err
    assert os.listdir(tmp_path) == []


def test_a_small_folder_trains_as_one_batch(script, image_folder, tmp_path):
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    (image_folder / "cats" / "bad.png").write_bytes(b"")
    result = script("train", *TINY, *flags, "--max-steps", 3)
    assert result.code == 1
    assert "cats/bad.png" in result.err
    result = script("train", *TINY, *flags, "--max-steps", 3, "--skip-bad-images")
    assert result.code == 0, result.err
    assert "1 of 13 images cannot be read and are left out" in result.out
    assert "an update takes 12 images: there are no more" in result.out
    assert "reading images" not in result.err  # no bar off a terminal
    assert (tmp_path / "outputs" / "samples" / "epoch_003.png").exists()
    config = json.loads((tmp_path / "outputs" / "config.json").read_text())
    assert config["data"]["flip"] is True
    result = script("train", *TINY, *flags, "--skip-bad-images", "--grad-accum", 13, "--overwrite")
    assert result.code == 2
    assert "there are only 12 images" in result.err


def test_an_image_size_that_does_not_fit_the_network(script):
    result = script("train", *TINY, "--image-size", 30)
    assert result.code == 2
    assert "multiples of 4" in result.err
    assert "28 and 32" in result.err


def test_a_single_image(script, image_folder, tmp_path):
    for file in list(image_folder.rglob("*.png"))[1:]:
        file.unlink()
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 8, "--max-steps", 2]
    assert script("train", *TINY, *flags).code == 0
    assert (tmp_path / "outputs" / "samples" / "epoch_002.png").exists()


def test_an_output_folder_that_is_a_file(script, tmp_path):
    (tmp_path / "file").write_text("")
    result = script("train", *TINY, "--output-dir", "file")
    assert result.code == 2
    assert "cannot write to file: file is a file" in result.err


def test_grids_that_would_take_most_of_the_time_are_pointed_out(script):
    result = script("train", *TINY, "--sample-interval", 1, "--max-steps", 2)
    assert "--sample-interval 20 draws fewer" in result.out
    result = script("train", *TINY, "--sample-interval", 4, "--max-steps", 2, "--overwrite")
    assert "draws fewer" not in result.out


def test_minutes_are_kept(script):
    start = time.monotonic()
    result = script("train", *TINY, "--max-minutes", 0.2)
    assert result.code == 0
    assert 0.85 < (time.monotonic() - start) / 12 < 1.15  # 5 % is for runs of minutes; see TimePlan
    config = load_checkpoint("outputs/model_final.pt")["config"]
    assert config["train"]["total_steps"] == load_checkpoint("outputs/model_final.pt")["step"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_step_and_save(number, tmp_path):
    """As a person would: another process, and a signal while it trains."""
    command = [sys.executable, ROOT / "train.py", *TINY, "--output-dir", tmp_path / "run"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*map(str, command), "--epochs", "100000"], stdout=log, stderr=subprocess.STDOUT
        )
    wait_for(lambda: read_metrics(tmp_path / "run" / "metrics.jsonl"))
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    text = (tmp_path / "log").read_text()
    assert "go on with" in text
    assert "Traceback" not in text
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "interrupted.pt")["step"] > 0


def wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda(script, precision):
    flags = [*TINY, "--device", "cuda", "--precision", precision, "--max-steps", 20]
    assert script("train", *flags).code == 0
    result = script("sample", "--checkpoint", "outputs/model_final.pt", "--steps", 5)
    assert result.code == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--schedule", "flow", "--prediction", "eps"], "ends in pure noise, where the noise says"),
        (["--zero-terminal-snr", "--prediction", "eps"], "cannot be used with zero_terminal_snr"),
        (["--schedule", "edm", "--zero-terminal-snr"], "never loses the signal"),
        (["--class-conditional", "--dataset", "folder"], "folder has no classes here"),
    ],
)
def test_objectives_that_contradict_themselves(script, image_folder, flags, reason):
    for file in list(image_folder.rglob("*.png")):  # a flat folder: no classes
        file.rename(image_folder / file.name)
    for folder in [p for p in image_folder.iterdir() if p.is_dir()]:
        folder.rmdir()
    result = script("train", *TINY, "--data-dir", image_folder, "--image-size", 8, *flags)
    assert result.code == 2
    assert reason in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_the_best_checkpoint_has_the_lowest_validation_loss(script, tmp_path, monkeypatch):
    losses = iter([0.5, 0.3, 0.4, 0.2, 0.6])
    monkeypatch.setattr(run, "validation_loss", lambda *_: next(losses))
    flags = [*TINY, "--save-interval", 1, "--output-dir", "run"]
    assert script("train", *flags, "--epochs", 3).code == 0
    best = load_checkpoint("run/checkpoints/best.pt")
    assert (best["step"], best["validation_loss"]) == (26, 0.3)
    assert script("train", "--resume", "--output-dir", "run", "--epochs", 5).code == 0
    best = load_checkpoint("run/checkpoints/best.pt")
    assert (best["step"], best["validation_loss"]) == (52, 0.2)
    result = script("sample", "--checkpoint", "run/checkpoints/best.pt", "--steps", 2)
    assert "step 52" in result.out


def test_going_back_forgets_a_later_best(script, tmp_path, monkeypatch):
    losses = iter([0.5, 0.3, 0.1, 0.4])
    monkeypatch.setattr(run, "validation_loss", lambda *_: next(losses))
    flags = [*TINY, "--save-interval", 1, "--output-dir", "run"]
    assert script("train", *flags, "--epochs", 3).code == 0
    back = ["--resume", "run/checkpoints/model_epoch_001.pt", "--epochs", 2]
    assert script("train", *back).code == 0
    assert (tmp_path / "run" / "checkpoints" / "best.pt.aside").exists()
    assert load_checkpoint("run/checkpoints/best.pt")["validation_loss"] == 0.4


def test_held_out_items_are_not_trained_on(script, monkeypatch):
    seen = []
    update = train.Trainer.update

    def watch(trainer, items, *rest):
        seen.append(items)
        return update(trainer, items, *rest)

    held_out = []
    monkeypatch.setattr(train.Trainer, "update", watch)
    monkeypatch.setattr(run, "validation_loss", lambda t, items, y: held_out.append(items) or 1.0)
    flags = [*TINY, "--epochs", 1, "--validation", 200, "--batch-size", 1597]
    assert script("train", *flags).code == 0

    def rows(items: torch.Tensor) -> set:
        return {item.numpy().tobytes() for item in items}

    assert len(held_out[0]) == 200
    assert len(torch.cat(seen)) == 1597
    assert not rows(held_out[0]) & rows(torch.cat(seen))


def test_without_validation_there_is_no_best(script, tmp_path):
    flags = [*TINY, "--epochs", 1, "--validation", 0, "--save-interval", 1]
    assert script("train", *flags).code == 0
    assert not (tmp_path / "outputs" / "checkpoints" / "best.pt").exists()
    result = script("train", *TINY, "--validation", 1797, "--overwrite")
    assert result.code == 2
    assert "cannot hold out 1797 items of 1797" in result.err


def test_keep(script, tmp_path):
    flags = [*TINY, "--epochs", 4, "--save-interval", 1, "--keep", 2]
    assert script("train", *flags).code == 0

    def names():
        return sorted(p.name for p in (tmp_path / "outputs" / "checkpoints").iterdir())

    assert names() == ["best.pt", "model_epoch_003.pt", "model_epoch_004.pt"]
    assert script("train", "--resume", "--epochs", 5).code == 0
    assert names() == ["best.pt", "model_epoch_004.pt", "model_epoch_005.pt"]


def test_a_damaged_newest_checkpoint_is_left_out(script, tmp_path):
    script("train", *TINY, "--epochs", 2, "--save-interval", 1, "--output-dir", "run")
    for name in ("model_final.pt", "checkpoints/best.pt", "checkpoints/model_epoch_002.pt"):
        path = tmp_path / "run" / name
        path.write_bytes(path.read_bytes()[:5000])
    result = script("train", "--resume", "--output-dir", "run")
    assert result.code == 0, result.err
    assert "left out: run/model_final.pt is damaged" in result.out
    assert "resuming from run/checkpoints/model_epoch_001.pt, step 13" in result.out
    assert load_checkpoint("run/model_final.pt")["step"] == 26


def test_training_as_a_function(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = {"dataset": "digits", "channels": 8, "max_steps": 3, "device": "cpu"}
    trained = train.train(**flags, sample_interval=0, flip=False, resume=False, multipliers=[1, 2])
    assert trained.checkpoint == Path("outputs/model_final.pt")
    assert load_checkpoint(trained.checkpoint)["step"] == 3
    assert [row["step"] for row in trained.metrics] == [3, 3]
    assert trained.exit_code == 0
    assert train.train(resume=True, max_steps=5, device="cpu").metrics[-1]["step"] == 5

    with StopAfter(7), pytest.raises(KeyboardInterrupt, match=r"saved .*interrupted\.pt"):
        train.train(resume=True, max_steps=9, device="cpu")
    assert train.train(resume=True, device="cpu").metrics[-1]["step"] == 9

    for wrong, message in [
        ({"epoch": 3}, "there is no epoch; there are debug, dataset"),
        ({"epochs": 0}, "argument --epochs: must be at least 1, not 0"),
        ({"dataset": "digits", "label_dropout": 0.2}, "--label-dropout is for"),
        ({}, "holds a run already"),
    ]:
        with pytest.raises(ValueError, match=message):
            train.train(**wrong)


def test_the_natural_choices_of_schedules():
    def choices(*flags):
        return natural_objective(train.parse_args(list(flags)))

    assert choices() == ("flow", "uniform")
    assert choices("--schedule", "flow") == ("flow", "uniform")
    assert choices("--schedule", "edm") == ("edm", "log-normal")
    assert choices("--schedule", "edm", "--prediction", "v") == ("v", "log-normal")


def test_edm_measures_the_data(script):
    script("train", *TINY, "--max-steps", 2, "--schedule", "edm", "--output-dir", "run")
    config = load_checkpoint("run/model_final.pt")["config"]["diffusion"]
    from dataset.items import to_unit
    from dataset.registry import load_dataset

    measured = to_unit(load_dataset("digits").items).std(correction=0).item()
    assert config["sigma_data"] == pytest.approx(measured, rel=1e-5)
    assert config["prediction"] == "edm"


def test_a_resumed_run_keeps_its_objective(script):
    flags = ["--schedule", "flow", "--class-conditional", "--noise-assignment", "nearest"]
    assert script("train", *TINY, "--max-steps", 3, *flags).code == 0
    assert script("train", "--resume", "--max-steps", 5).code == 0
    config = load_checkpoint("outputs/model_final.pt")["config"]
    assert config["diffusion"]["prediction"] == "flow"
    assert config["model"]["num_classes"] == 10
    assert config["train"]["noise_assignment"] == "nearest"
    result = script("train", "--resume", "--max-steps", 7, "--loss-weight", "snr")
    assert result.code == 1
    assert "diffusion.loss_weight: uniform in the checkpoint, snr now" in result.err


def test_cuda_graphs_are_for_a_gpu(script):
    result = script("train", *TINY, "--compile", "reduce-overhead")
    assert result.code == 2
    assert "--compile reduce-overhead is for a GPU" in result.err


# --- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_flags(script, name):
    flags = ["--dataset", "digits", "--preset", name, "--max-steps", 2, "--batch-size", 16]
    result = script("train", *flags, "--device", "cpu", "--precision", "fp32")
    assert result.code == 0, result.err
    assert f"preset {name}: --class-conditional --channels " in result.out
    saved = json.loads(Path("outputs/config.json").read_text())
    run = {**saved["model"], **saved["train"]}
    for flag, value in PRESETS[name].items():
        assert run[flag] == (16 if flag == "batch_size" else value)
    assert saved["model"]["num_classes"] == 10
    result = script("train", "--resume", "--max-steps", 3)  # without it: the run knows its flags
    assert result.code == 0, result.err
    result = script("train", "--resume", "--max-steps", 4, "--preset", "quality")
    assert result.code == 0, result.err
    assert "--preset is for a new run" in result.out
    assert json.loads(Path("outputs/config.json").read_text())["train"]["max_minutes"] is None


def test_flags_beside_a_preset_count(script, image_folder):
    flags = ["--preset", "fast", "--max-steps", 1, "--batch-size", 4, "--device", "cpu"]
    given = ["--channels", 8, "--no-class-conditional"]
    result = script("train", "--dataset", "digits", *flags, *given)
    assert result.code == 0, result.err
    assert "preset fast: --no-class-conditional --channels 8 " in result.out
    assert not json.loads(Path("outputs/config.json").read_text())["model"].get("num_classes")

    for path in list(image_folder.rglob("*.png")):
        path.rename(image_folder / path.name)
    where = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    result = script("train", *where, *flags, "--output-dir", "without")
    assert result.code == 0, result.err
    assert "preset fast: --no-class-conditional" in result.out  # there are no classes

    result = script("train", "--dataset", "moons", "--preset", "fast", "--output-dir", "points")
    assert result.code == 2
    assert "--preset is for images" in result.err
