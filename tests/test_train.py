"""train.py: runs from their flags to their files, resumed and interrupted."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
import utils
from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from cli.training import TRAIN
from conftest import TINY
from dataset.items import to_unit
from dataset.registry import load_dataset
from models import MODELS, arguments_of
from runs import SMALL, TrainingProcess, assert_same_training, ctrl_c_in, killed_in, wait_for
from training import loop, preview, resume
from training.config import PRESETS, make_config, with_defaults
from training.folder import RunFolder
from training.log import read_metrics
from training.plan import step_limit
from training.trainer import Trainer


def saved_config(folder: str = "outputs") -> dict:
    return json.loads(Path(folder, "config.json").read_text())


def rows_of(folder: str = "outputs") -> list[dict]:
    return read_metrics(Path(folder, "metrics.jsonl"))


# --- a run and its files --------------------------------------------------------------------------


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
    every = rows_of(trained)
    rows = [row for row in every if "loss" in row]
    assert [row["step"] for row in rows] == [10, 13, 20, 26]  # every ten steps and each epoch's end
    for row in rows:
        assert row.keys() >= {"epoch", "loss", "lr", "images_per_second", "gradient_norm"}
    assert [row["epoch"] for row in rows] == [1, 1, 2, 2]
    assert [(r["step"], r["epoch"]) for r in every if "validation_loss" in r] == [(13, 1), (26, 2)]
    with Image.open(trained / "samples" / "epoch_002.png") as image:
        assert image.width == 8 * 58 + 2
        assert image.height == image.width + 2 + 60  # and a line and a row of real images
    with Image.open(trained / "training_loss.png") as image:
        assert image.size == (770, 440)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10  # curves


def test_the_loss_falls(trained):
    for name in ("loss", "validation_loss"):
        losses = [row[name] for row in rows_of(trained) if name in row]
        assert losses[-1] < 0.95 * losses[0]


def test_held_out_items_are_not_trained_on(script, monkeypatch):
    trained_on, held_out, train_step = [], [], Trainer.train_step

    def watch(trainer, items, *rest):
        trained_on.append(items)
        return train_step(trainer, items, *rest)

    monkeypatch.setattr(Trainer, "train_step", watch)
    monkeypatch.setattr(Trainer, "held_out_loss", lambda _, items, y: held_out.append(items) or 1.0)
    flags = [*SMALL, "--epochs", 1, "--validation", 200, "--batch-size", 1597]
    assert script("train", *flags).code == 0

    def images(batches: list[torch.Tensor]) -> set:
        return {item.numpy().tobytes() for item in torch.cat(batches)}

    assert len(held_out[0]) == 200
    assert len(torch.cat(trained_on)) == 1597
    assert not images(held_out) & images(trained_on)


def test_without_validation_there_is_no_best_checkpoint(script):
    flags = [*SMALL, "--validation", 0, "--save-interval", 1, "--batch-size", 512]
    assert script("train", *flags, "--epochs", 1).code == 0
    assert not Path("outputs/checkpoints/best.pt").exists()
    assert Path("outputs/checkpoints/model_epoch_001.pt").exists()


def test_the_best_checkpoint_has_the_lowest_validation_loss(script, monkeypatch):
    """Also when the run is resumed, and when it is resumed from before its best checkpoint."""
    losses = iter([0.5, 0.3, 0.4, 0.2, 0.6, 0.4])
    monkeypatch.setattr(Trainer, "held_out_loss", lambda *_: next(losses))

    def best() -> tuple[int, float]:
        checkpoint = load_checkpoint("outputs/checkpoints/best.pt")
        return checkpoint["step"], checkpoint["validation_loss"]

    flags = [*SMALL, "--save-interval", 1, "--batch-size", 512]  # 3 steps an epoch
    assert script("train", *flags, "--epochs", 3).code == 0
    assert best() == (6, 0.3)
    assert script("train", "--resume", "--epochs", 5).code == 0
    assert best() == (12, 0.2)
    result = script("sample", "--checkpoint", "outputs/checkpoints/best.pt", "--steps", 2)
    assert "step 12" in result.out
    back = ["--resume", "outputs/checkpoints/model_epoch_001.pt", "--epochs", 2]
    assert script("train", *back).code == 0
    assert Path("outputs/checkpoints/best.pt.aside").exists()
    assert best() == (6, 0.4)


def test_keep(script):
    flags = [*SMALL, "--save-interval", 1, "--keep", 2, "--batch-size", 512]
    assert script("train", *flags, "--epochs", 4).code == 0

    def names() -> list[str]:
        return sorted(path.name for path in Path("outputs/checkpoints").iterdir())

    assert names() == ["best.pt", "model_epoch_003.pt", "model_epoch_004.pt"]
    assert script("train", "--resume", "--epochs", 5).code == 0
    assert names() == ["best.pt", "model_epoch_004.pt", "model_epoch_005.pt"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda(script, precision):
    flags = [*TINY, "--device", "cuda", "--precision", precision, "--max-steps", 20]
    assert script("train", *flags).code == 0
    result = script("sample", "--checkpoint", "outputs/model_final.pt", "--steps", 5)
    assert result.code == 0


# --- the length -----------------------------------------------------------------------------------


def test_the_limits_of_the_length():
    def limit(*arguments):
        return step_limit(vars(TRAIN.parse([str(a) for a in arguments])), 100)

    assert limit() == 2000
    assert limit("--epochs", 3) == 300
    assert limit("--max-steps", 50) == 50
    assert limit("--epochs", 3, "--max-steps", 1000) == 300
    assert limit("--max-minutes", 1) is None
    assert limit("--max-minutes", 1, "--epochs", 2) == 200


def test_a_limit_of_steps_holds_before_the_time_is_planned(script):
    result = script("train", *SMALL, "--max-minutes", 1, "--max-steps", 7)
    assert result.code == 0, result.err
    assert load_checkpoint("outputs/model_final.pt")["step"] == 7


def test_a_timed_run_ends_with_its_time(script, monkeypatch):
    """By a clock that only training steps, samples and validation advance."""
    now = [train.time.monotonic()]

    def takes(owner, name: str, seconds: float):
        function = getattr(owner, name)

        def call(*arguments):
            now[0] += seconds
            return function(*arguments)

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    takes(Trainer, "train_step", 0.5)
    takes(Trainer, "held_out_loss", 1)
    takes(preview.Preview, "sample", 2)
    start = now[0]
    result = script("train", *SMALL, "--max-minutes", 1, "--sample-interval", 2)
    assert result.code == 0, result.err
    assert 0.95 < (now[0] - start) / 60 < 1.05
    checkpoint = load_checkpoint("outputs/model_final.pt")
    assert checkpoint["config"]["train"]["total_steps"] == checkpoint["step"]
    assert result.err.count("the time allows ") == 1


def test_a_timed_run_says_what_preparation_took(script, monkeypatch):
    monkeypatch.setattr(loop, "LONG_PREPARATION", 0)
    result = script("train", *SMALL, "--max-minutes", 1, "--max-steps", 2)
    assert "of the 1 minutes have passed before the first training step" in result.out


@pytest.mark.parametrize(
    "network",
    [{"name": "autoencoder"}, {"name": "clip"}, {"name": "unet", "autoencoder": {"name": "a"}}],
)
def test_networks_that_are_not_sharded(network):
    flags = TRAIN.parse(["--dataset", "mnist", "--fsdp"])
    with pytest.raises(ValueError, match="--fsdp does not support"):
        train.require_shardable(flags, {"model": network})


def test_a_timed_run_keeps_its_plan_over_two_interruptions(script):
    plans = []
    for step, flags in [(30, [*SMALL, "--max-minutes", 5]), (33, ["--resume"])]:
        with ctrl_c_in(step):
            assert script("train", *flags).code == 130
        plans.append(load_checkpoint("outputs/checkpoints/interrupted.pt")["config"]["train"])
    assert plans[0]["total_steps"] > 30
    assert plans[1] == plans[0]


def test_grids_that_would_take_most_of_the_time_are_pointed_out(script):
    result = script("train", *SMALL, "--sample-interval", 1, "--max-steps", 1)
    assert "an epoch is 13 steps" in result.out
    assert "--sample-interval 20 writes fewer" in result.out
    result = script("train", *SMALL, "--sample-interval", 4, "--max-steps", 1, "--overwrite")
    assert "writes fewer" not in result.out


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags", [[*TINY, "--multipliers", "1"], [*SMALL, "--precision", "bf16"]], ids=["unet", "dit"]
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(script, flags):
    flags = [*flags, "--dropout", "0.1", "--flip", "--batch-size", "64", "--grad-accum", "2"]
    flags += ["--max-steps", "16"]
    assert script("train", *flags, "--output-dir", "whole").code == 0

    with ctrl_c_in(9):  # of 13 steps of the first epoch
        result = script("train", *flags, "--output-dir", "parts")
    assert result.code == 130
    assert "stopped after step 9 and saved parts/checkpoints/interrupted.pt" in result.out
    assert "python train.py --resume --output-dir parts" in result.out
    assert not Path("parts/model_final.pt").exists()
    result = script("train", "--resume", "--device", "cpu", "--output-dir", "parts")
    assert result.code == 0, result.err
    assert "resuming from parts/checkpoints/interrupted.pt, step 9" in result.out
    assert not Path("parts/checkpoints/interrupted.pt").exists()

    whole, parts = (load_checkpoint(f"{name}/model_final.pt") for name in ("whole", "parts"))
    assert_same_training(whole, parts)
    pictures = [Path(name, "samples", "epoch_002.png").read_bytes() for name in ("whole", "parts")]
    assert pictures[0] == pictures[1]
    steps = [row["step"] for row in rows_of("parts") if "loss" in row]
    assert steps == sorted(set(steps))
    validations = [
        [row for row in rows_of(name) if "validation_loss" in row] for name in ("whole", "parts")
    ]
    assert validations[0] == validations[1]
    assert len(validations[0]) == 2


def test_a_killed_run_logs_the_losses_from_before_the_kill_too(script):
    flags = [*SMALL, "--max-steps", 24, "--save-every-steps", 7]
    assert script("train", *flags, "--output-dir", "whole").code == 0
    with killed_in(18):
        assert script("train", *flags, "--output-dir", "parts").code == 1
    result = script("train", "--resume", "--output-dir", "parts")
    assert "resuming from parts/checkpoints/model_step_00000014.pt, step 14" in result.out
    losses = [[(r["step"], r.get("loss")) for r in rows_of(name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_a_run_that_was_killed_while_it_wrote_its_last_files_writes_them(script):
    flags = [*SMALL, "--epochs", 1, "--save-interval", 1, "--keep", 1]
    assert script("train", *flags).code == 0
    final, grid = Path("outputs/model_final.pt"), Path("outputs/samples/epoch_001.png")
    weights, pixels = load_checkpoint(final), grid.read_bytes()
    old = Path("outputs/checkpoints/model_epoch_000.pt")
    for lost in ([grid], [grid, final]):
        for path in lost:
            path.unlink()
        shutil.copy("outputs/checkpoints/best.pt", old)
        assert script("train", "--resume").code == 0
        assert not old.exists()
        assert grid.read_bytes() == pixels
        assert_same_training(load_checkpoint(final), weights)
    assert "this run has finished" in script("train", "--resume").out  # nothing is left to do


def test_a_run_that_was_killed_between_two_checkpoints_of_a_step_ends_with_both(script):
    flags = [*SMALL, "--epochs", 3, "--save-interval", 1, "--save-every-steps", 13]
    with killed_in(30):
        assert script("train", *flags).code == 1
    folder = Path("outputs/checkpoints")
    epoch, step = folder / "model_epoch_002.pt", folder / "model_step_00000026.pt"
    assert load_checkpoint(folder / "best.pt")["step"] == 26
    for path in (epoch, step):
        path.unlink()
    with killed_in(30):
        assert script("train", "--resume").code == 1
    assert load_checkpoint(epoch)["step"] == load_checkpoint(step)["step"] == 26


def test_a_ctrl_c_in_the_last_step_does_not_keep_the_run_from_finishing(script):
    with ctrl_c_in(5):
        result = script("train", *SMALL, "--max-steps", 5)
    assert result.code == 0
    assert load_checkpoint("outputs/model_final.pt")["step"] == 5


def test_one_command_starts_a_run_and_resumes_it_until_it_is_finished(script):
    command = [*SMALL, "--resume", "--seed", 3]
    result = script("train", *command, "--max-steps", 5)
    assert result.code == 0, result.err
    assert "there is no checkpoint in outputs yet: the run starts at step 0" in result.out
    result = script("train", *command, "--max-steps", 5)
    assert result.code == 0, result.err  # a scheduler may run the command again
    assert "this run has finished its 5 steps; to train longer, raise --epochs" in result.out
    assert "next: python sample.py --checkpoint outputs/model_final.pt" in result.out
    result = script("train", *command, "--max-steps", 8)
    assert result.code == 0, result.err
    assert "resuming from outputs/model_final.pt, step 5" in result.out
    assert load_checkpoint("outputs/model_final.pt")["step"] == 8

    os.remove("outputs/model_final.pt")  # as if it had been killed before its first checkpoint
    result = script("train", "--resume")
    assert result.code == 0, result.err
    assert "the run starts at step 0" in result.out
    train_config = load_checkpoint("outputs/model_final.pt")["config"]["train"]
    assert (train_config["seed"], train_config["max_steps"]) == (3, 8)
    Path("outputs/model_final.pt").write_bytes(b"")
    result = script("train", "--resume")
    assert result.code == 2
    assert "there is no valid checkpoint in outputs\n" in result.err


def test_nothing_to_resume(script, tmp_path):
    result = script("train", "--resume", "--output-dir", "empty")
    assert result.code == 2
    assert "no valid checkpoint in empty; with --dataset, a new run is started" in result.err
    result = script("train", "--resume", "none.pt")
    assert result.code == 1
    assert "there is no checkpoint none.pt" in result.err
    assert os.listdir(tmp_path) == []


def test_a_given_checkpoint_is_resumed_in_its_own_folder(script, tmp_path):
    script("train", *SMALL, "--epochs", 3, "--save-interval", 1, "--output-dir", "run")
    result = script("train", "--resume", "run/checkpoints/model_epoch_001.pt", "--max-steps", 16)
    assert result.code == 0, result.err
    assert "resuming from run/checkpoints/model_epoch_001.pt, step 13" in result.out
    assert "are set aside: " in result.out  # or the abandoned branch would be resumed next
    assert "model_epoch_003.pt.aside" in result.out
    assert load_checkpoint("run/model_final.pt")["step"] == 16
    assert not (tmp_path / "outputs").exists()
    assert RunFolder("run").newest_checkpoint()[0].name == "model_final.pt"


def test_a_checkpoint_is_not_resumed_into_another_run(script, trained):
    script("train", *SMALL, "--max-steps", 1, "--output-dir", "other")
    path = trained / "model_final.pt"
    result = script("train", "--resume", path, "--output-dir", "other", "--epochs", 4)
    assert result.code == 2
    assert f"belongs to the run in {trained}, but other holds another run" in result.err


def test_a_checkpoint_that_does_not_fit_is_refused(script, trained, image_folder):
    before = (trained / "metrics.jsonl").read_bytes()
    for arguments, found in [
        (
            ["--channels", 16, "--schedule", "linear", "--timesteps", 500, "--image-size", 16]
            + ["--batch-size", 32, "--seed", 5],
            [
                "model.channels: 8 in the checkpoint, 16 now",
                "diffusion.schedule: cosine in the checkpoint, linear now",
                "diffusion.timesteps: 1000 in the checkpoint, 500 now",
                "data.image_size: 8 in the checkpoint, 16 now",
                "items of a training step (--batch-size x --grad-accum x processes): 128 in the",
                "train.seed: 0 in the checkpoint, 5 now",
            ],
        ),
        (
            ["--dataset", "folder", "--data-dir", image_folder],
            ["data.dataset: digits in the checkpoint, folder now"],
        ),
    ]:
        result = script("train", "--resume", "--epochs", 3, "--output-dir", trained, *arguments)
        assert result.code == 1
        assert "this checkpoint is of another run:\n" in result.err
        assert not [line for line in found if line not in result.err], result.err
        assert "Traceback" not in result.err
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_a_resumed_run_keeps_the_number_format_that_was_measured(script, monkeypatch):
    flags = [flag for flag in SMALL if flag not in ("--precision", "fp32")]
    monkeypatch.setattr(utils, "has_native_bf16", lambda device: True)
    monkeypatch.setattr(resume, "has_native_bf16", lambda device: True)
    for slow, name in ((False, "bf16"), (True, "fp32")):
        monkeypatch.setattr(utils, "bf16_is_slow", lambda slow=slow: slow)
        result = script("train", *flags, "--max-steps", 2, "--output-dir", name)
        assert f"device: cpu, {name}\n" in result.out
        config = json.loads(Path(name, "config.json").read_text())
        assert config["train"]["number_format"] == name
        monkeypatch.setattr(utils, "bf16_is_slow", lambda slow=slow: not slow)
        result = script("train", "--resume", "--output-dir", name, "--max-steps", 3)
        assert f"device: cpu, {name}\n" in result.out
        assert json.loads(Path(name, "config.json").read_text())["train"]["number_format"] == name


@pytest.mark.parametrize(
    ("wanted", "saved", "native", "expected"),
    [
        ("auto", {"number_format": "fp32"}, True, ("fp32", "")),
        ("auto", {"number_format": "bf16"}, True, ("bf16", "")),
        ("auto", {"number_format": "bf16"}, False, ("fp32", "bf16 before: results may differ")),
        ("auto", {}, True, ("bf16", "")),  # from before it was saved
        ("fp32", {"number_format": "bf16"}, True, ("fp32", "")),
    ],
)
def test_the_number_format_of_a_resumed_run(wanted, saved, native, expected, monkeypatch):
    monkeypatch.setattr(resume, "has_native_bf16", lambda device: native)
    checkpoint = {"config": {"train": saved}}
    found, note = resume.number_format(wanted, checkpoint, torch.device("cpu"))
    assert found == expected[0]
    assert note.startswith(expected[1])


def test_a_resumed_run_keeps_its_objective(script):
    flags = ["--schedule", "flow", "--class-conditional", "--noise-assignment", "nearest"]
    assert script("train", *SMALL, "--max-steps", 1, *flags).code == 0
    assert script("train", "--resume", "--max-steps", 2).code == 0
    config = load_checkpoint("outputs/model_final.pt")["config"]
    assert config["diffusion"]["prediction"] == "flow"
    assert config["model"]["num_classes"] == 10
    assert config["train"]["noise_assignment"] == "nearest"
    result = script("train", "--resume", "--max-steps", 3, "--loss-weight", "snr")
    assert result.code == 1
    assert "diffusion.loss_weight: uniform in the checkpoint, snr now" in result.err
    old = load_checkpoint("outputs/model_final.pt")
    assert old["config"]["diffusion"].pop("clip_loss")  # as in runs from before there was a choice
    save_checkpoint(Path("outputs/model_final.pt"), old)
    result = script("train", "--resume", "--max-steps", 3, "--clip-loss")
    assert "diffusion.clip_loss: False in the checkpoint, True now" in result.err
    assert script("train", "--resume", "--max-steps", 3).code == 0
    assert not load_checkpoint("outputs/model_final.pt")["config"]["diffusion"]["clip_loss"]


def test_a_run_from_before_the_efficient_unet_continues_with_its_network(script):
    assert script("train", *TINY, "--multipliers", 1, "--no-efficient", "--max-steps", 1).code == 0
    old = load_checkpoint("outputs/model_final.pt")
    assert old["config"]["model"].pop("efficient") is False
    save_checkpoint(Path("outputs/model_final.pt"), old)
    assert script("sample", "--checkpoint", "outputs/model_final.pt", "--steps", 2).code == 0
    result = script("train", "--resume", "--max-steps", 2, "--efficient")
    assert "model.efficient: False in the checkpoint, True now" in result.err
    assert script("train", "--resume", "--max-steps", 2).code == 0
    assert load_checkpoint("outputs/model_final.pt")["config"]["model"]["efficient"] is False


def test_a_damaged_newest_checkpoint_is_skipped(script):
    script("train", *SMALL, "--epochs", 2, "--save-interval", 1)
    for name in ("model_final.pt", "checkpoints/best.pt", "checkpoints/model_epoch_002.pt"):
        path = Path("outputs", name)
        path.write_bytes(path.read_bytes()[:5000])
    result = script("train", "--resume")
    assert result.code == 0, result.err
    assert "skipped: outputs/model_final.pt is damaged" in result.out
    assert "resuming from outputs/checkpoints/model_epoch_001.pt, step 13" in result.out
    assert load_checkpoint("outputs/model_final.pt")["step"] == 26


def test_a_folder_that_holds_a_run_is_refused(script, trained):
    result = script("train", *TINY, "--output-dir", trained)
    assert result.code == 2
    assert f"{trained} already holds a run: resume it (--resume)" in result.err
    assert "--overwrite" in result.err


def test_overwrite_replaces_the_run_and_nothing_else(script):
    script("train", *SMALL, "--epochs", 1, "--save-interval", 1)
    mine = [Path("outputs/mine.txt"), Path("outputs/samples/mine.png")]
    for file in mine:
        file.write_text("keep me")
    for wrong in (["--dataset", "mnist", "--no-download"], ["--patch-size", "5"]):
        assert script("train", *SMALL, *wrong, "--overwrite").code > 0
        assert Path("outputs/model_final.pt").exists()
    assert script("train", *SMALL, "--max-steps", 3, "--overwrite").code == 0
    assert not list(Path("outputs/checkpoints").glob("*"))
    assert {row["step"] for row in rows_of()} == {3}
    assert all(file.exists() for file in mine)


# --- flags that do not fit the data or the machine ------------------------------------------------


def test_missing_data_is_one_message(script, tmp_path):
    result = script("train", "--dataset", "mnist", "--no-download")
    assert result.code == 1
    assert "mnist not found in" in result.err
    assert "Traceback" not in result.err
    assert os.listdir(tmp_path) == []


def test_a_small_folder_trains_as_one_batch(script, image_folder):
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    (image_folder / "cats" / "bad.png").write_bytes(b"")
    result = script("train", *SMALL, *flags, "--max-steps", 3)
    assert result.code == 1
    assert "cats/bad.png" in result.err
    result = script("train", *SMALL, *flags, "--max-steps", 3, "--skip-bad-images")
    assert result.code == 0, result.err
    assert "1 of 13 images" in result.out
    assert "batch size reduced to 12: the data set has no more images" in result.out
    assert "reading images" not in result.err  # no bar off a terminal
    assert Path("outputs/samples/epoch_003.png").exists()
    assert saved_config()["data"]["flip"] is True
    result = script("train", *SMALL, *flags, "--skip-bad-images", "--grad-accum", 13, "--overwrite")
    assert result.code == 2
    assert "a training step needs 13 batches, but there are only 12 items" in result.err


def test_a_single_image(script, image_folder):
    for file in list(image_folder.rglob("*.png"))[1:]:
        file.unlink()
    flags = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 8, "--max-steps", 2]
    assert script("train", *SMALL, *flags).code == 0
    assert Path("outputs/samples/epoch_002.png").exists()


def test_an_output_folder_that_is_a_file(script):
    Path("file").write_text("")
    result = script("train", *TINY, "--output-dir", "file")
    assert result.code == 2
    assert "cannot write to file: file is a file" in result.err


@pytest.mark.parametrize(
    ("flags", "reasons"),
    [
        (["--schedule", "flow", "--prediction", "eps"], ["ends in pure noise"]),
        (["--zero-terminal-snr", "--prediction", "eps"], ["zero_terminal_snr"]),
        (["--schedule", "edm", "--zero-terminal-snr"], ["never loses the signal"]),
        (["--class-conditional", "--dataset", "folder"], ["folder has no classes here"]),
        (["--compile", "reduce-overhead"], ["--compile reduce-overhead needs a GPU"]),
        (["--image-size", 29], ["multiples of its patches of 2", "28 and 30"]),
        (["--validation", 1797], ["cannot hold out 1797 items of 1797"]),
    ],
)
def test_flags_that_do_not_go_together(script, image_folder, flags, reasons):
    for path in [*image_folder.rglob("*.png")]:  # images without subfolders have no classes
        path.rename(image_folder / path.name)
    for name in ("cats", "dogs"):
        (image_folder / name).rmdir()
    size = [] if "--image-size" in flags else ["--image-size", 8]
    result = script("train", *TINY, "--data-dir", image_folder, *size, *flags)
    assert result.code == 2
    assert not [reason for reason in reasons if reason not in result.err], result.err
    assert len(result.err.strip().splitlines()) == 1


# --- defaults and presets -------------------------------------------------------------------------


def test_the_defaults_that_depend_on_the_schedule():
    digits = load_dataset("digits")

    def choices(*words: str) -> tuple[str, str]:
        flags = with_defaults(TRAIN.parse(["--dataset", "digits", *words]), digits)
        return flags.prediction, flags.timestep_sampling

    assert choices() == ("flow", "uniform")
    assert choices("--schedule", "flow") == ("flow", "uniform")
    assert choices("--schedule", "edm") == ("edm", "log-normal")
    assert choices("--schedule", "edm", "--prediction", "v") == ("v", "log-normal")


@pytest.mark.parametrize("name", MODELS)
def test_images_with_classes_are_class_conditional_by_default(name):
    kind = MODELS[name].kind
    dataset = "digits" if kind == "images" else "moons"
    data = load_dataset(dataset)

    def conditional(*words: str) -> int | None:
        flags = TRAIN.parse(["--dataset", dataset, "--model", name, *words])
        return make_config(with_defaults(flags, data), data)["model"].get("num_classes")

    able = "num_classes" in arguments_of(name)
    assert conditional() == (10 if able and kind == "images" else None)
    assert conditional("--no-class-conditional") is None
    if able:
        assert conditional("--class-conditional") == len(data.classes)


def test_the_default_length():
    digits, moons = load_dataset("digits"), load_dataset("moons")

    def epochs(data, *words: str, **options) -> int | None:
        return with_defaults(TRAIN.parse(list(words)), data, **options).epochs

    assert epochs(digits) == 15
    assert epochs(moons) == 20
    assert epochs(digits, "--max-minutes", "1") is None
    assert epochs(digits, "--preset", "quality") is None  # which has a limit of its own
    assert epochs(digits, resumed=True) is None


def test_edm_measures_the_data(script):
    script("train", *SMALL, "--max-steps", 1, "--schedule", "edm")
    config = load_checkpoint("outputs/model_final.pt")["config"]["diffusion"]
    measured = to_unit(load_dataset("digits").items).std(correction=0).item()
    assert config["sigma_data"] == pytest.approx(measured, rel=1e-5)
    assert config["prediction"] == "edm"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_flags(script, monkeypatch, name):
    monkeypatch.setattr(preview, "GRID_STEPS", 1)
    monkeypatch.setitem(PRESETS[name], "channels", 16)  # a smaller network
    flags = ["--dataset", "digits", "--preset", name, "--batch-size", 4, "--validation", 0]
    result = script("train", *flags, "--max-steps", 1, "--device", "cpu", "--precision", "fp32")
    assert result.code == 0, result.err
    assert f"preset {name}: --channels " in result.out

    def chosen() -> dict:
        config = saved_config()
        assert config["model"]["num_classes"] == 10
        return {**config["model"], **config["train"]}

    values = PRESETS[name] | {"batch_size": 4}
    assert {flag: chosen()[flag] for flag in values} == values
    values["max_minutes"] = None  # the limits of the resumed run are the new one
    for flags in ([], ["--preset", "quality"]) if name == "fast" else ([],):
        steps = saved_config()["train"]["max_steps"] + 1
        result = script("train", "--resume", "--max-steps", steps, *flags)
        assert result.code == 0, result.err
        assert ("--preset is for a new run: the resumed run" in result.out) == bool(flags)
        assert {flag: chosen()[flag] for flag in values} == values


def test_explicit_flags_override_a_preset(script, image_folder):
    flags = ["--preset", "fast", "--max-steps", 1, "--batch-size", 4, "--device", "cpu"]
    given = ["--channels", 8, "--no-class-conditional"]
    result = script("train", "--dataset", "digits", *flags, *given)
    assert result.code == 0, result.err
    assert "preset fast: --channels 8 " in result.out
    assert not saved_config()["model"].get("num_classes")

    for path in list(image_folder.rglob("*.png")):
        path.rename(image_folder / path.name)
    where = ["--dataset", "folder", "--data-dir", image_folder, "--image-size", 16]
    result = script("train", *where, *flags, "--channels", 8, "--output-dir", "without")
    assert result.code == 0, result.err
    assert "class-conditional" not in result.out
    assert not saved_config("without")["model"].get("num_classes")  # the folder has no classes

    result = script("train", *where, *flags, "--label-dropout", 0.2, "--output-dir", "dropped")
    assert result.code == 2
    assert "--label-dropout has no effect on an unconditional network" in result.err

    result = script("train", "--dataset", "moons", "--preset", "fast", "--output-dir", "points")
    assert result.code == 2
    assert "--preset is for images, and this data set is points" in result.err


# --- from Python, and in a process of its own -----------------------------------------------------


def test_training_as_a_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"dataset": "digits", "channels": 8, "model": "dit", "blocks": 1, "device": "cpu"}
    trained = train.train(**flags, max_steps=3, sample_interval=0, flip=False, resume=False)
    assert trained.checkpoint == Path("outputs/model_final.pt")
    assert load_checkpoint(trained.checkpoint)["step"] == 3
    assert [row["step"] for row in trained.metrics] == [3, 3]
    assert trained.exit_code == 0

    with ctrl_c_in(5), pytest.raises(KeyboardInterrupt, match=r"saved .*interrupted\.pt"):
        train.train(resume=True, max_steps=7, device="cpu")
    assert train.train(resume=True, device="cpu").metrics[-1]["step"] == 7

    for wrong, message in [
        ({"epoch": 3}, "unknown flag epoch"),
        ({"list_models": True}, "list_models is for the command line"),
        ({}, "already holds a run"),
    ]:
        with pytest.raises(ValueError, match=message):
            train.train(**wrong)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The folder and the process of a run that trains."""
    folder = tmp_path_factory.mktemp("running")
    flags = [*SMALL, "--output-dir", folder / "run", "--epochs", 100_000]
    job = TrainingProcess(folder / "log", *flags)
    wait_for(lambda: read_metrics(folder / "run" / "metrics.jsonl"))
    yield folder / "run", job
    job.process.kill()


def test_a_second_run_in_the_same_folder_is_refused(script, running):
    folder, job = running
    for second in (["--overwrite"], ["--resume"]):
        result = script("train", *SMALL, "--output-dir", folder, "--max-steps", 5, *second)
        assert result.code == 2
        assert f"a run is writing to {folder} (process {job.process.pid} on " in result.err
        assert "choose another --output-dir" in result.err
    assert job.process.is_alive()


def test_sigterm_ends_the_step_and_saves(running):
    folder, job = running
    job.send(signal.SIGTERM)
    assert job.wait() == 128 + signal.SIGTERM
    assert f"resume with\n  python train.py --resume --output-dir {folder}" in job.text()
    assert "Traceback" not in job.text()
    assert load_checkpoint(folder / "checkpoints" / "interrupted.pt")["step"] > 0
