"""What a run does when something goes wrong: each fault is injected."""

import errno
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import checkpoints.checkpoint
import training.loop
import training.run_log
from checkpoints.checkpoint import load_checkpoint
from dataset.registry import load_dataset
from diffusion import GaussianDiffusion
from runs import SMALL, TrainingProcess, assert_same_training, in_step, trainer_of, wait_for
from training import folder
from training.environment import append_environment
from training.folder import RunFolder
from training.log import Metrics, read_metrics
from training.saver import Saver, on_host
from training.trainer import Trainer

OFTEN = [*SMALL, "--save-every-steps", 5]


# --- files that cannot be written -----------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that holds the first `full_disk["left"]` checkpoints and no more."""
    disk, save = {"left": 0}, folder.save_checkpoint

    def refuse(path, checkpoint):
        if disk["left"] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        disk["left"] -= 1
        save(path, checkpoint)

    monkeypatch.setattr(folder, "save_checkpoint", refuse)
    return disk


def test_a_full_disk_does_not_end_a_run(script, full_disk):
    full_disk["left"] = 1
    result = script("train", *OFTEN, "--max-steps", 23)
    assert (
        result.err.count("a checkpoint could not be written") == 1
    )  # reported once, not each time
    assert "No space left on device" in result.err
    assert "training continues" in result.err
    assert result.code == 1  # as the last one could not be written either
    assert "model_final.pt" in result.err.splitlines()[-1]
    assert [row["step"] for row in read_metrics(Path("outputs/metrics.jsonl"))][-1] == 23
    newest, damaged = RunFolder("outputs").newest_checkpoint()
    assert (newest.name, damaged) == ("model_step_00000005.pt", [])


def test_a_disk_that_has_room_again(script, full_disk, monkeypatch):
    def room(*_):
        full_disk["left"] += 3
        return 1.0

    monkeypatch.setattr(Trainer, "held_out_loss", room)  # at step 13
    result = script("train", *OFTEN, "--epochs", 1)
    assert result.code == 0, result.err
    assert "a checkpoint could not be written" in result.err


def limit_files(size: int) -> None:
    """Let the kernel refuse to write files of more bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_limit_on_the_size_of_files(tmp_path):
    """The kernel itself refuses to write, in the middle of a file, as on a full disk."""
    flags = [*OFTEN, "--max-steps", 12, "--output-dir", tmp_path / "run"]
    job = TrainingProcess(tmp_path / "log", *flags, prepare=partial(limit_files, 30_000))
    assert job.wait() == 1
    assert "a checkpoint could not be written" in job.text()
    assert "File too large" in job.text()
    assert "Traceback" not in job.text()
    files = [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.json", "metrics.jsonl"} <= set(files)
    assert not [name for name in files if name.endswith((".pt", ".partial"))]


def test_a_folder_that_becomes_unwritable(script):
    """A file in the place of the folder of checkpoints, from the eighth step on."""

    def block():
        for path in Path("outputs/checkpoints").iterdir():
            path.unlink()
        Path("outputs/checkpoints").rmdir()
        Path("outputs/checkpoints").write_text("")

    with in_step(8, block):
        result = script("train", *OFTEN, "--max-steps", 12)
    assert result.code == 0, result.err  # the final one lies elsewhere
    assert "a checkpoint could not be written" in result.err
    assert load_checkpoint("outputs/model_final.pt")["step"] == 12


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that is read-only")
def test_a_read_only_output_folder(script):
    result = script("train", *SMALL, "--output-dir", "/proc/self/outputs")
    assert result.code in (1, 2)
    assert "/proc/self" in result.err
    assert len(result.err.splitlines()) == 1


def test_metrics_and_pictures_that_cannot_be_written(script, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Metrics, "write", refuse)
    monkeypatch.setattr(training.loop, "save_picture", refuse)
    monkeypatch.setattr(training.run_log, "plot_loss", refuse)
    result = script("train", *SMALL, "--max-steps", 25)
    assert result.code == 0, result.err
    for what in ("the metrics", "the grid", "the plot of the loss"):
        assert result.err.count(f"{what} could not be written (") == 1
    assert load_checkpoint("outputs/model_final.pt")["step"] == 25


# --- saving while training continues --------------------------------------------------------------


def test_three_checkpoints_of_steps_are_kept_and_all_of_epochs(script):
    flags = [*SMALL, "--save-every-steps", 4, "--save-interval", 1]
    assert script("train", *flags, "--epochs", 3).code == 0  # 39 steps
    names = sorted(path.name for path in Path("outputs/checkpoints").glob("model_*"))
    assert names == [
        *(f"model_epoch_00{epoch}.pt" for epoch in (1, 2, 3)),
        *(f"model_step_000000{step}.pt" for step in (28, 32, 36)),
    ]
    assert load_checkpoint("outputs/checkpoints/model_step_00000032.pt")["step"] == 32


def test_a_run_resumed_from_between_epochs_has_the_same_bits(script):
    flags = [*SMALL, "--save-every-steps", 4, "--dropout", 0.1, "--max-steps", 20]
    assert script("train", *flags).code == 0
    whole = load_checkpoint("outputs/model_final.pt")
    result = script("train", "--resume", "outputs/checkpoints/model_step_00000016.pt")
    assert result.code == 0, result.err
    assert_same_training(whole, load_checkpoint("outputs/model_final.pt"))


def test_minutes_between_checkpoints(script):
    flags = [*SMALL, "--max-steps", 12]
    assert script("train", *flags).code == 0
    assert not list(Path("outputs/checkpoints").glob("model_step_*"))  # ten minutes have not passed
    assert script("train", *flags, "--save-every-minutes", 1e-6, "--overwrite").code == 0
    steps = [load_checkpoint(p)["step"] for p in Path("outputs/checkpoints").glob("model_step_*")]
    assert 1 <= len(steps) <= 3
    assert script("train", *flags, "--save-every-minutes", 0, "--overwrite").code == 0
    assert not list(Path("outputs/checkpoints").glob("model_step_*"))


def test_older_checkpoints_stay_until_the_new_one_is_valid(script, monkeypatch):
    """A disk that damages what is written: nothing is deleted in exchange for such a file."""
    save = folder.save_checkpoint

    def damage(path, checkpoint):
        save(path, checkpoint)
        if checkpoint["step"] > 15:
            path.write_bytes(b"\0" * path.stat().st_size)

    monkeypatch.setattr(folder, "save_checkpoint", damage)
    result = script("train", *OFTEN, "--max-steps", 33)
    assert "is damaged" in result.err
    whole = [
        path.name
        for path in sorted(Path("outputs/checkpoints").glob("model_step_*"))
        if path.read_bytes().strip(b"\0")
    ]
    assert whole == [f"model_step_000000{step}.pt" for step in ("05", "10", "15")]
    newest, damaged = RunFolder("outputs").newest_checkpoint()
    assert newest.name == "model_step_00000015.pt"
    assert damaged


def test_a_copy_of_the_state_does_not_change_with_the_weights():
    weights = torch.ones(3)
    copy = on_host({"a": [weights, {"b": weights.to(torch.bfloat16)}], "step": 4, "none": None})
    weights.zero_()
    assert copy["a"][0].tolist() == [1, 1, 1]
    assert copy["a"][1]["b"].dtype == torch.bfloat16
    assert (copy["step"], copy["none"]) == (4, None)


def test_the_saver_does_one_job_at_a_time():
    reports, running, most = [], [0], [0]
    jobs = Saver(reports.append)

    def job():
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1

    def fail():
        raise OSError("full")

    for _ in range(5):
        jobs.start(job)
        assert jobs.busy()
    jobs.start(fail)
    while jobs.busy():
        time.sleep(0.001)
    assert most == [1]
    assert [str(error) for error in reports] == ["full"]
    with pytest.raises(OSError, match="full"):
        jobs.run(fail)
    jobs.start(lambda: 1 / 0)  # other exceptions are raised
    with pytest.raises(ZeroDivisionError):
        jobs.wait()


# --- numbers that are not finite ------------------------------------------------------------------


class Poison(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, loss, value):
        ctx.value = value
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.value, None


def spoil(monkeypatch, steps, value=torch.nan, only_gradient=False) -> None:
    """Make the losses of some steps (from 0) not finite: all of them, or their gradients alone."""
    loss, train_step, now = GaussianDiffusion.loss, Trainer.train_step, [0]

    def watch(trainer, *arguments):
        now[0] = trainer.step
        return train_step(trainer, *arguments)

    def spoilt(diffusion, *arguments, **options):
        right = loss(diffusion, *arguments, **options)
        if now[0] not in steps:
            return right
        return Poison.apply(right, value) if only_gradient else right * value

    monkeypatch.setattr(Trainer, "train_step", watch)
    monkeypatch.setattr(GaussianDiffusion, "loss", spoilt)


def is_finite(checkpoint: dict) -> bool:
    """Are the weights and their average finite?"""
    tensors = [t for key in ("model", "ema") for t in checkpoint[key].values()]
    return all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("only_gradient", [False, True])
def test_a_step_that_is_not_finite_is_skipped(monkeypatch, value, only_gradient):
    spoil(monkeypatch, {2}, value, only_gradient)
    images = load_dataset("digits").items[:16]
    trainer = trainer_of()
    for _ in range(2):
        trainer.train_step(images, None, 1e-3)
    before = on_host(trainer.state())
    trainer.train_step(images, None, 1e-3)
    after = trainer.state()
    assert (after.pop("step"), before.pop("step")) == (3, 2)
    assert (after.pop("skipped"), before.pop("skipped")) == (1, 0)
    assert_same_training({**after, "step": 0}, {**before, "step": 0})
    trainer.train_step(images, None, 1e-3)
    assert (trainer.skipped, trainer.skipped_in_a_row) == (1, 0)
    assert not torch.equal(trainer.model.stem.weight, before["model"]["stem.weight"])


def test_skipped_steps_are_counted_and_reported_and_resume_to_the_same_bits(script, monkeypatch):
    spoil(monkeypatch, {3, 4, 14})
    result = script("train", *OFTEN, "--max-steps", 20)
    assert result.code == 0, result.err
    assert result.err.count("the step is skipped") == 2  # once for steps in a row
    rows = [row for row in read_metrics(Path("outputs/metrics.jsonl")) if "loss" in row]
    assert [row["skipped"] for row in rows] == [2, 2, 3]
    assert all(row["loss"] > 0 for row in rows)
    whole = load_checkpoint("outputs/model_final.pt")
    result = script("train", "--resume", "outputs/checkpoints/model_step_00000010.pt")
    assert result.code == 0, result.err
    again = load_checkpoint("outputs/model_final.pt")
    assert_same_training(whole, again)
    assert whole["skipped"] == again["skipped"] == 3


def test_many_skipped_steps_in_a_row_end_the_run_with_the_last_good_state_saved(
    script, monkeypatch
):
    monkeypatch.setattr(training.loop, "MAX_SKIPPED", 5)
    spoil(monkeypatch, set(range(8, 100)))
    result = script("train", *SMALL, "--max-steps", 50)
    assert result.code == 1
    assert "loss or gradient was not finite in 5 steps in a row, up to step 13" in result.err
    assert "saved in outputs/checkpoints/interrupted.pt; resume with a lower --lr" in result.err
    saved = load_checkpoint("outputs/checkpoints/interrupted.pt")
    assert (saved["step"], saved["skipped"]) == (13, 5)
    assert is_finite(saved)


def test_weights_that_become_infinite_are_never_saved(script):
    assert script("train", *OFTEN, "--optimizer", "adamw", "--max-steps", 7).code == 0
    result = script("train", "--resume", "--lr", 1e30, "--max-steps", 30)
    assert result.code == 1
    assert "the weights are not finite after step" in result.err
    assert "Resume from the last checkpoint (--resume) with a lower --lr" in result.err
    assert all(is_finite(load_checkpoint(path)) for path in Path("outputs").rglob("*.pt"))


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_do(script, error):
    def fail():
        raise error

    with in_step(1, fail):
        result = script("train", *SMALL, "--batch-size", 64)
    assert result.code == 1
    message = result.err.splitlines()[-1]
    for part in ("out of memory on cpu", "64 x 1 x 8 x 8", "fp32", "--batch-size 32"):
        assert part in message
    assert "--grad-accum 2" in message
    assert "--grad-checkpoint" in message


def limit_memory(more: int) -> None:
    """Let the kernel refuse memory beyond what this process has, and `more` bytes."""
    import resource

    torch.ones(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_memory_that_really_runs_out(tmp_path):
    flags = [*SMALL, "--image-size", 32, "--channels", 64, "--batch-size", 1700, "--patch-size", 1]
    flags += ["--max-steps", 1, "--output-dir", tmp_path / "run"]
    job = TrainingProcess(tmp_path / "log", *flags, prepare=partial(limit_memory, 500_000_000))
    assert job.wait() == 1
    assert "out of memory on cpu" in job.text()
    assert "Traceback" not in job.text()


# --- signals, clocks, other runs ------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_saving(script, monkeypatch, number):
    save = folder.save_checkpoint

    def save_slowly(path, checkpoint):
        if path.name.startswith("model_step"):
            os.kill(os.getpid(), number)
            time.sleep(0.3)
        save(path, checkpoint)

    monkeypatch.setattr(folder, "save_checkpoint", save_slowly)
    result = script("train", *OFTEN, "--max-steps", 500)
    assert result.code == 128 + number
    assert "stopped after step" in result.out
    saved = {path.name for path in Path("outputs/checkpoints").iterdir()}
    assert saved == {"model_step_00000005.pt", "interrupted.pt"}
    for name in saved:
        load_checkpoint(f"outputs/checkpoints/{name}")


def save_slowly() -> None:
    """Let each checkpoint take a second, and say when it begins."""
    save = torch.save

    def slow(*arguments, **options):
        print("saving", flush=True)
        time.sleep(1)
        save(*arguments, **options)

    checkpoints.checkpoint.torch.save = slow


def test_a_second_ctrl_c_while_saving_ends_the_process(tmp_path):
    run = RunFolder(tmp_path / "run")
    flags = [*SMALL, "--max-steps", 100_000, "--output-dir", run.path]
    job = TrainingProcess(tmp_path / "log", *flags, prepare=save_slowly)
    wait_for(lambda: read_metrics(run.metrics))
    job.send(signal.SIGINT)
    wait_for(lambda: "saving" in job.text())
    job.send(signal.SIGINT)
    assert job.wait() == 130
    assert "Traceback" not in job.text()
    assert not list(run.path.rglob(".*.partial"))
    if run.interrupted.exists():  # the thread may have finished nevertheless
        load_checkpoint(run.interrupted)


def test_a_killed_process_leaves_no_lock_and_its_partial_files_are_deleted(script, tmp_path):
    run = RunFolder(tmp_path / "run")
    flags = [*OFTEN, "--max-steps", 100_000, "--output-dir", run.path]
    job = TrainingProcess(tmp_path / "log", *flags)
    wait_for(lambda: len(list(run.checkpoints.glob("*.pt"))) > 1)
    job.send(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    for name in (".best.pt.99.partial", "../.model_final.pt.99.partial"):
        (run.checkpoints / name).write_bytes(b"half")
    step = load_checkpoint(run.newest_checkpoint()[0])["step"]
    result = script("train", "--resume", "--output-dir", run.path, "--max-steps", step + 1)
    assert result.code == 0, result.err
    assert not list(run.path.rglob("*.partial"))
    assert load_checkpoint(run.final)["step"] == step + 1


def test_a_clock_that_goes_backwards(script, monkeypatch):
    """Only the monotonic clock counts: saving and the length of the run do not depend on time()."""
    now, monotonic = [2e9], time.monotonic

    def backwards():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(time, "monotonic", lambda: 4 * monotonic())  # the shortest run: 3 seconds
    start = time.monotonic()
    result = script("train", *OFTEN, "--save-every-minutes", 1e-6, "--max-minutes", 0.05)
    assert result.code == 0, result.err
    assert 1 < time.monotonic() - start < 30  # of 3 seconds
    seconds = [row["seconds"] for row in read_metrics(Path("outputs/metrics.jsonl")) if "lr" in row]
    assert seconds == sorted(seconds)
    newest, damaged = RunFolder("outputs").newest_checkpoint()
    assert (newest.name, damaged) == ("model_final.pt", [])


# --- what a session leaves behind -----------------------------------------------------------------


def test_each_session_records_its_environment(script):
    script("train", *SMALL, "--max-steps", 1, "--seed", 7)
    script("train", "--resume", "--max-steps", 2)
    first, second = json.loads(Path("outputs/env.json").read_text())
    assert first["command"][0] == "train.py"
    assert first["command"][-2:] == ["--seed", "7"]
    assert second["command"][1:] == ["--resume", "--max-steps", "2"]
    assert first["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert first["seed"] == second["seed"] == 7
    assert first["device"] == {"type": "cpu"}
    assert first["git"] is None or len(first["git"]["commit"]) == 40
    script("train", *SMALL, "--max-steps", 1, "--overwrite")
    assert len(json.loads(Path("outputs/env.json").read_text())) == 1


def test_a_damaged_record_of_environments_is_replaced(tmp_path):
    path = tmp_path / "env.json"
    for content in ("", "{", "{}", "[1]"):
        path.write_text(content)
        append_environment(path, {"seed": 1})
        assert json.loads(path.read_text()) == [{"seed": 1}]


def test_torchrun_resumes_only_runs_of_its_own_job(script, monkeypatch):
    """Its second attempt must not resume what its first one was refused for."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    assert script("train", *SMALL, "--max-steps", 1).code == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    for count in (0, 1):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        result = script("train", *SMALL, "--max-steps", 2)
        assert result.code == 2
        assert "outputs already holds a run" in result.err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    result = script("train", *SMALL, "--max-steps", 2)
    assert result.code == 0, result.err
    assert "resuming from outputs/model_final.pt, step 1" in result.out


def test_deterministic_algorithms_are_kept_over_a_resume(script):
    found = []

    def look():
        found.append(torch.are_deterministic_algorithms_enabled())

    with in_step(1, look):
        assert script("train", *SMALL, "--max-steps", 1, "--deterministic").code == 0
    with in_step(2, look):
        assert script("train", "--resume", "--max-steps", 2).code == 0
    with in_step(1, look):
        assert script("train", *SMALL, "--max-steps", 1, "--overwrite").code == 0
    assert found == [True, True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_tensorboard(script):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = [*SMALL, "--save-every-steps", 13, "--tensorboard"]
    assert script("train", *flags, "--epochs", 2).code == 0
    resume = ["--resume", "outputs/checkpoints/model_step_00000013.pt", "--tensorboard"]
    assert script("train", *resume, "--epochs", 2).code == 0
    board = events.EventAccumulator("outputs/tensorboard")
    board.Reload()
    assert {"loss", "validation_loss", "lr", "gradient_norm"} <= set(board.Tags()["scalars"])
    rows = [row for row in read_metrics(Path("outputs/metrics.jsonl")) if "loss" in row]
    shown = board.Scalars("loss")
    assert [event.step for event in shown] == [row["step"] for row in rows]  # none twice
    assert shown[-1].value == pytest.approx(rows[-1]["loss"])
    assert script("train", *SMALL, "--max-steps", 1, "--overwrite").code == 0
    assert not Path("outputs/tensorboard").exists()


def test_tensorboard_that_is_not_installed(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = script("train", *SMALL, "--max-steps", 1, "--tensorboard")
    assert result.code == 2
    assert "pip install tensorboard" in result.err
