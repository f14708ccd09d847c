"""What a run does when something goes wrong: each fault is injected."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from checkpoints.checkpoint import load_checkpoint
from conftest import ROOT, TINY
from dataset.registry import load_dataset
from test_train import assert_same_training, wait_for
from test_trainer import trainer_of
from training import folder, run, trainer
from training.environment import append_environment
from training.folder import RunFolder
from training.log import read_metrics
from training.saver import Saver, on_host

EVERY = [*TINY, "--save-every-steps", 5]


# --- files that cannot be written ----------------------------------------------------------------


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
    result = script("train", *EVERY, "--max-steps", 23)
    assert result.err.count("a checkpoint could not be written") == 1  # said once, not each time
    assert "No space left on device" in result.err
    assert "the run goes on" in result.err
    assert result.code == 1  # as the last one could not be written either
    assert "model_final.pt" in result.err.splitlines()[-1]
    assert [row["step"] for row in read_metrics(Path("outputs/metrics.jsonl"))][-1] == 23
    newest, damaged = RunFolder("outputs").newest_checkpoint()
    assert (newest.name, damaged) == ("model_step_00000005.pt", [])


def test_a_disk_that_has_room_again(script, full_disk, monkeypatch):
    def room(*_):
        full_disk["left"] += 3
        return 1.0

    monkeypatch.setattr(run, "validation_loss", room)  # at step 13
    result = script("train", *EVERY, "--epochs", 1)
    assert result.code == 0, result.err
    assert "a checkpoint could not be written" in result.err


def test_a_limit_on_the_size_of_files(tmp_path):
    """The kernel's own refusal in the middle of a file, as on a full disk."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000));"
        "import train; sys.exit(train.run(train.main, train.parse_args(sys.argv[1:])))"
    )
    arguments = [*EVERY, "--max-steps", 12, "--output-dir", tmp_path / "run"]
    result = run_python("-c", code, *arguments)
    assert result.returncode == 1
    assert "a checkpoint could not be written" in result.stderr
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    files = [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.json", "metrics.jsonl"} <= set(files)
    assert not [name for name in files if name.endswith((".pt", ".partial"))]


def test_a_folder_that_becomes_unwritable(script, monkeypatch):
    """A file in the place of the checkpoints' folder, from the seventh step on."""
    update = train.Trainer.update

    def watch(self, *arguments):
        if self.step == 7:
            for path in Path("outputs/checkpoints").iterdir():
                path.unlink()
            Path("outputs/checkpoints").rmdir()
            Path("outputs/checkpoints").write_text("")
        return update(self, *arguments)

    monkeypatch.setattr(train.Trainer, "update", watch)
    result = script("train", *EVERY, "--max-steps", 12)
    assert result.code == 0, result.err  # the final one lies elsewhere
    assert "a checkpoint could not be written" in result.err
    assert load_checkpoint("outputs/model_final.pt")["step"] == 12


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_a_read_only_output_folder(script):
    result = script("train", *TINY, "--output-dir", "/proc/self/outputs")
    assert result.code in (1, 2)
    assert "/proc/self" in result.err
    assert len(result.err.splitlines()) == 1


def test_metrics_and_pictures_that_cannot_be_written(script, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run.Metrics, "write", refuse)
    monkeypatch.setattr(run, "save_picture", refuse)
    monkeypatch.setattr(run, "plot_loss", refuse)
    result = script("train", *TINY, "--max-steps", 25)
    assert result.code == 0, result.err
    for what in ("the metrics", "the grid", "the plot of the loss"):
        assert result.err.count(f"{what} could not be written (") == 1
    assert load_checkpoint("outputs/model_final.pt")["step"] == 25


# --- saving beside the training ------------------------------------------------------------------


def test_steps_keep_three_and_epochs_all(script):
    flags = [*TINY, "--save-every-steps", 4, "--save-interval", 1]
    assert script("train", *flags, "--epochs", 3).code == 0  # 39 updates
    names = sorted(path.name for path in Path("outputs/checkpoints").glob("model_*"))
    assert names == [
        *(f"model_epoch_00{epoch}.pt" for epoch in (1, 2, 3)),
        *(f"model_step_000000{step}.pt" for step in (28, 32, 36)),
    ]
    assert load_checkpoint("outputs/checkpoints/model_step_00000032.pt")["step"] == 32


def test_a_run_goes_on_from_between_epochs_to_the_same_bits(script):
    flags = [*TINY, "--save-every-steps", 4, "--dropout", 0.1, "--max-steps", 20]
    assert script("train", *flags).code == 0
    whole = load_checkpoint("outputs/model_final.pt")
    result = script("train", "--resume", "outputs/checkpoints/model_step_00000016.pt")
    assert result.code == 0, result.err
    assert_same_training(whole, load_checkpoint("outputs/model_final.pt"))


def test_minutes_between_checkpoints(script, monkeypatch):
    flags = [*TINY, "--max-steps", 12]
    assert script("train", *flags).code == 0
    assert not list(Path("outputs/checkpoints").glob("model_step_*"))  # ten minutes have not passed
    assert script("train", *flags, "--save-every-minutes", 1e-6, "--overwrite").code == 0
    steps = [load_checkpoint(p)["step"] for p in Path("outputs/checkpoints").glob("model_step_*")]
    assert 1 <= len(steps) <= 3
    assert script("train", *flags, "--save-every-minutes", 0, "--overwrite").code == 0
    assert not list(Path("outputs/checkpoints").glob("model_step_*"))


def test_older_checkpoints_stay_until_the_new_one_is_whole(script, monkeypatch):
    """A disk that garbles what it is given: nothing is deleted for the sake of such a file."""
    save = folder.save_checkpoint

    def garble(path, checkpoint):
        save(path, checkpoint)
        if checkpoint["step"] > 15:
            path.write_bytes(b"\0" * path.stat().st_size)

    monkeypatch.setattr(folder, "save_checkpoint", garble)
    result = script("train", *EVERY, "--max-steps", 33)
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


def test_the_copy_does_not_change_with_the_weights():
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
    jobs.start(lambda: 1 / 0)  # a fault of ours is not passed over
    with pytest.raises(ZeroDivisionError):
        jobs.wait()


# --- numbers that are not finite -----------------------------------------------------------------


class Spoilt:
    """Makes the losses of some steps not finite: all of them, or their gradients alone."""

    def __init__(self, monkeypatch, steps, value=torch.nan, gradient_alone=False):
        loss = trainer.GaussianDiffusion.loss
        update = train.Trainer.update
        now = [0]

        def watch(self, *arguments):
            now[0] = self.step
            return update(self, *arguments)

        def spoil(self, *arguments, **options):
            right = loss(self, *arguments, **options)
            if now[0] not in steps:
                return right
            return Poison.apply(right, value) if gradient_alone else right * value

        monkeypatch.setattr(train.Trainer, "update", watch)
        monkeypatch.setattr(trainer.GaussianDiffusion, "loss", spoil)


class Poison(torch.autograd.Function):
    """The loss as it is, with a gradient that is not."""

    @staticmethod
    def forward(ctx, loss, value):
        ctx.value = value
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.value, None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("gradient_alone", [False, True])
def test_an_update_that_is_not_finite_is_left_out(monkeypatch, value, gradient_alone):
    Spoilt(monkeypatch, {2}, value, gradient_alone)
    images = load_dataset("digits").items[:16]
    tr = trainer_of()
    for _ in range(2):
        tr.update(images, None, 1e-3)
    before = on_host(tr.state())
    tr.update(images, None, 1e-3)
    after = tr.state()
    assert (after.pop("step"), before.pop("step")) == (3, 2)
    assert (after.pop("skipped"), before.pop("skipped")) == (1, 0)
    assert_same_training({**after, "step": 0}, {**before, "step": 0})
    tr.update(images, None, 1e-3)
    assert (tr.skipped, tr.skipped_now) == (1, 0)
    assert not torch.equal(tr.model.stem.weight, before["model"]["stem.weight"])


def test_left_out_updates_are_counted_and_said(script, monkeypatch):
    Spoilt(monkeypatch, {3, 4, 14})
    result = script("train", *TINY, "--max-steps", 20, "--save-every-steps", 5)
    assert result.code == 0, result.err
    assert result.err.count("the update is left out") == 2  # once for each row of them
    rows = [row for row in read_metrics(Path("outputs/metrics.jsonl")) if "loss" in row]
    assert [row["skipped"] for row in rows] == [2, 2, 3]
    assert all(row["loss"] > 0 for row in rows)
    assert load_checkpoint("outputs/model_final.pt")["skipped"] == 3


def test_a_resumed_run_leaves_out_the_same_updates(script, monkeypatch):
    Spoilt(monkeypatch, {3, 7})
    assert script("train", *TINY, "--max-steps", 10, "--save-every-steps", 5).code == 0
    whole = load_checkpoint("outputs/model_final.pt")
    result = script("train", "--resume", "outputs/checkpoints/model_step_00000005.pt")
    assert result.code == 0, result.err
    again = load_checkpoint("outputs/model_final.pt")
    assert_same_training(whole, again)
    assert whole["skipped"] == again["skipped"] == 2


def test_many_in_a_row_end_the_run_with_the_last_good_state_saved(script, monkeypatch):
    monkeypatch.setattr(run, "BAD_IN_A_ROW", 5)
    Spoilt(monkeypatch, set(range(8, 100)))
    result = script("train", *TINY, "--max-steps", 50)
    assert result.code == 1
    assert "5 updates in a row had a loss or gradient that is not finite, up to step 13" in (
        result.err
    )
    assert "--lr" in result.err
    saved = load_checkpoint("outputs/checkpoints/interrupted.pt")
    assert (saved["step"], saved["skipped"]) == (13, 5)
    for key in ("model", "ema"):
        assert all(tensor.isfinite().all() for tensor in saved[key].values())


def test_weights_that_become_infinite_are_never_saved(script):
    flags = [*EVERY, "--optimizer", "adamw", "--max-steps", 30]
    assert script("train", *flags, "--max-steps", 7).code == 0
    result = script("train", "--resume", "--lr", 1e30, "--max-steps", 30)
    assert result.code == 1
    assert "the weights are not finite after step" in result.err
    assert "go on from the last checkpoint (--resume) with a lower --lr" in result.err
    for path in Path("outputs").rglob("*.pt"):
        saved = load_checkpoint(path)
        for key in ("model", "ema"):
            assert all(tensor.isfinite().all() for tensor in saved[key].values())


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_do(script, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(train.Trainer, "update", fail)
    result = script("train", *TINY, "--batch-size", 64)
    assert result.code == 1
    message = result.err.splitlines()[-1]
    for part in ("out of memory on cpu", "64", "8 x 8", "fp32", "--batch-size 32"):
        assert part in message
    assert "--grad-accum 2" in message
    assert "--grad-checkpoint" in message


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_memory_that_really_runs_out(tmp_path):
    code = (
        "import resource, sys, train, torch; torch.ones(1);"
        "pages = int(open('/proc/self/statm').read().split()[0]);"
        "limit = pages * resource.getpagesize() + 800_000_000;"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit));"
        "sys.exit(train.run(train.main, train.parse_args(sys.argv[1:])))"
    )
    flags = [*TINY, "--image-size", 32, "--channels", 64, "--batch-size", 1700]
    result = run_python("-c", code, *flags, "--max-steps", 1, "--output-dir", tmp_path / "run")
    assert result.returncode == 1
    assert "out of memory on cpu" in result.stderr
    assert "Traceback" not in result.stderr


# --- signals, clocks, other runs -----------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_saving(script, monkeypatch, number):
    save = folder.save_checkpoint

    def save_slowly(path, checkpoint):
        if path.name.startswith("model_step"):
            os.kill(os.getpid(), number)
            time.sleep(0.3)
        save(path, checkpoint)

    monkeypatch.setattr(folder, "save_checkpoint", save_slowly)
    result = script("train", *EVERY, "--max-steps", 500)
    assert result.code == 128 + number
    assert "stopped after step" in result.out
    saved = {path.name for path in Path("outputs/checkpoints").iterdir()}
    assert saved == {"model_step_00000005.pt", "interrupted.pt"}
    for name in saved:
        load_checkpoint(f"outputs/checkpoints/{name}")


def test_a_second_ctrl_c_while_saving(tmp_path):
    """A person without patience: the process ends at once, and what was there stays whole."""
    code = (
        "import sys, time; from training import checkpoint; save = checkpoint.torch.save\n"
        "def slow(*arguments, **options):\n"
        "    print('saving', flush=True); time.sleep(1); save(*arguments, **options)\n"
        "checkpoint.torch.save = slow\n"
        "import train; sys.exit(train.run(train.main, train.parse_args(sys.argv[1:])))"
    )
    arguments = [*TINY, "--max-steps", 100_000, "--output-dir", tmp_path / "run"]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: read_metrics(tmp_path / "run" / "metrics.jsonl"))
    process.send_signal(signal.SIGINT)
    while "saving" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    files = [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith(".partial")]
    if "interrupted.pt" in files:  # the thread may have come to its end all the same
        load_checkpoint(tmp_path / "run" / "checkpoints" / "interrupted.pt")


def test_a_clock_that_goes_backwards(script, monkeypatch):
    now = [2e9]

    def backwards():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    flags = [*EVERY, "--save-every-minutes", 1e-6, "--max-minutes", 0.05]
    result = script("train", *flags)
    assert result.code == 0, result.err
    seconds = [row["seconds"] for row in read_metrics(Path("outputs/metrics.jsonl")) if "lr" in row]
    assert seconds == sorted(seconds)
    newest, damaged = RunFolder("outputs").newest_checkpoint()
    assert (newest.name, damaged) == ("model_final.pt", [])


def test_a_second_run_in_the_same_folder_is_refused(script, tmp_path):
    flags = [*TINY, "--output-dir", tmp_path / "run"]
    command = [sys.executable, ROOT / "train.py", *flags, "--max-steps", 100_000]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: read_metrics(tmp_path / "run" / "metrics.jsonl"))
    for second in (["--overwrite"], ["--resume"]):
        result = script("train", *flags, "--max-steps", 5, *second)
        assert result.code == 2
        assert "a run is writing to" in result.err
        assert f"process {process.pid} on " in result.err
    assert process.poll() is None
    process.kill()  # the lock goes with it
    process.wait()
    result = script("train", *flags, "--max-steps", 5, "--overwrite")
    assert result.code == 0, result.err


def test_what_a_kill_left_half_written_is_deleted(script):
    script("train", *TINY, "--max-steps", 3)
    for name in ("checkpoints/.best.pt.99.partial", ".model_final.pt.99.partial"):
        Path("outputs", name).parent.mkdir(exist_ok=True)
        Path("outputs", name).write_bytes(b"half")
    assert script("train", "--resume", "--max-steps", 5).code == 0
    assert not list(Path("outputs").rglob("*.partial"))


# --- logs ----------------------------------------------------------------------------------------


def test_what_a_run_was_made_with(script):
    script("train", *TINY, "--max-steps", 3, "--seed", 7)
    script("train", "--resume", "--max-steps", 5)
    first, second = json.loads(Path("outputs/env.json").read_text())
    assert first["command"][0] == "train.py"
    assert first["command"][-2:] == ["--seed", "7"]
    assert second["command"][1:] == ["--resume", "--max-steps", "5"]
    assert first["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert first["seed"] == second["seed"] == 7
    assert first["device"] == {"type": "cpu"}
    assert len(first["git"]["commit"]) == 40 or first["git"] is None
    script("train", *TINY, "--max-steps", 3, "--overwrite")
    assert len(json.loads(Path("outputs/env.json").read_text())) == 1


def test_an_environment_that_is_damaged_begins_anew(tmp_path):
    path = tmp_path / "env.json"
    for content in ("", "{", "{}", "[1]"):
        path.write_text(content)
        append_environment(path, {"seed": 1})
        assert json.loads(path.read_text()) == [{"seed": 1}]


def test_torchrun_goes_on_with_its_own_runs_alone(script, monkeypatch):
    """Its second attempt must not resume what its first one was refused for."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    assert script("train", *TINY, "--max-steps", 3).code == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    for count in (0, 1):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        result = script("train", *TINY, "--max-steps", 5)
        assert result.code == 2
        assert "outputs holds a run already" in result.err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    result = script("train", *TINY, "--max-steps", 5)
    assert result.code == 0, result.err
    assert "resuming from outputs/model_final.pt, step 3" in result.out


def test_deterministic_is_kept_over_a_resume(script, monkeypatch):
    assert script("train", *TINY, "--max-steps", 3, "--deterministic").code == 0
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert script("train", "--resume", "--max-steps", 4).code == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert script("train", *TINY, "--max-steps", 3, "--overwrite").code == 0
    assert not torch.are_deterministic_algorithms_enabled()


def test_tensorboard(script):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = [*TINY, "--save-every-steps", 13, "--tensorboard"]
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
    assert script("train", *TINY, "--max-steps", 3, "--overwrite").code == 0
    assert not Path("outputs/tensorboard").exists()


def test_tensorboard_that_is_not_installed(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = script("train", *TINY, "--max-steps", 3, "--tensorboard")
    assert result.code == 2
    assert "pip install tensorboard" in result.err


def run_python(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
