"""The modules of training/: moving average, learning rate and time, metrics, files of a run."""

import json
import os
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import checkpoints.checkpoint
from checkpoints.checkpoint import (
    CheckpointError,
    config_differences,
    load_checkpoint,
    restore,
    save_checkpoint,
)
from checkpoints.reading import step_of
from runs import TrainingProcess
from training import plan
from training.ema import EMA, ema_decay
from training.folder import RunFolder
from training.log import Metrics, read_metrics
from training.plan import LR_DECAYS, RunLength, TimePlan, learning_rate
from utils import save_whole
from visuals.curves import column, draw_loss, plot_loss, running_average

# --- moving average of the weights ----------------------------------------------------------------


def test_the_moving_average_is_the_recurrence():
    model = nn.Linear(3, 2)
    ema = EMA(model, decay=0.9)
    expected = None
    for step in range(100):
        with torch.no_grad():
            model.weight.normal_()
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        weight = model.weight.detach()
        expected = weight.clone() if step == 0 else decay * expected + (1 - decay) * weight
    assert_close(ema.module.weight, expected, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in ema.module.parameters())


def test_the_statistics_of_batch_norm_are_averaged_like_weights():
    model = nn.BatchNorm1d(3)
    ema = EMA(model, decay=0.5)
    expected = model.running_mean.clone()
    for step in range(1, 6):
        model(torch.randn(64, 3) + step)
        ema.update(model, step - 1)
        decay = ema_decay(step - 1, 0.5) if step > 1 else 0.0  # the first is copied
        expected = decay * expected + (1 - decay) * model.running_mean
    assert_close(ema.module.running_mean, expected)
    assert not torch.allclose(ema.module.running_mean, model.running_mean)


def test_the_decay_warms_up_to_its_limit():
    assert ema_decay(1, 0.999) < 0.2
    assert ema_decay(10**6, 0.999) == 0.999
    assert all(a <= b for a, b in pairwise(ema_decay(s, 0.999) for s in range(20_000)))


# --- learning rate and time -----------------------------------------------------------------------


@pytest.mark.parametrize("decay", LR_DECAYS)
def test_the_learning_rate_warms_up_and_decays(decay):
    train = {"lr": 2.0, "warmup_steps": 10, "lr_decay": decay}
    rates = [learning_rate(step, 100, train) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert learning_rate(100, 100, train) == pytest.approx(2.0 if decay == "none" else 0.0)
    assert learning_rate(50, None, train) == 2.0  # the length is not known yet
    assert learning_rate(0, 100, {**train, "warmup_steps": 0}) == 2.0


@pytest.mark.parametrize(("minutes", "per_step"), [(0.5, 0.1), (10, 0.1), (100, 1.0)])
@pytest.mark.parametrize(("grid", "evaluation"), [(0.5, 0.0), (0.5, 1.5), (8.0, 0.0), (8.0, 1.5)])
@pytest.mark.parametrize("drift", [1.0, 0.8, 1.25])
def test_a_time_plan_ends_within_five_percent(
    monkeypatch, minutes, per_step, grid, evaluation, drift
):
    """A simulated run, slow in its first steps, whose speed changes in its middle."""
    now = 100.0
    monkeypatch.setattr(plan.time, "monotonic", lambda: now)
    start = now - 4  # imports and data took four seconds
    timer = TimePlan(minutes, start, first_step=0, grid_steps=500)
    timer.grid_seconds = grid
    timer.evaluation_steps, timer.evaluation_seconds = 700, evaluation
    step, total = 0, None
    while total is None or step < total:
        elapsed = (now - start) / (60 * minutes)
        now += per_step * (1 if step >= 3 else 4) * (drift if elapsed > 0.5 else 1.0)
        step += 1
        total = timer.update(step, total)
        if step % 500 == 0:
            now += grid
            timer.pause(grid)
        if step % 700 == 0:
            now += evaluation
            timer.pause(evaluation)
    now += grid + evaluation
    assert abs((now - start) / (60 * minutes) - 1) < 0.05


TIMED = {"lr": 1.0, "warmup_steps": 100, "lr_decay": "cosine", "epochs": None, "max_steps": None}
TIMED |= {"max_minutes": 10, "sample_interval": 0, "eval_interval": 0, "total_steps": None}


@pytest.mark.parametrize(
    "paces",
    [[0.1], [0.1, 0.04], [0.1, 0.25], [0.1, 0.25, 0.05], [0.05, 0.25, 0.05], [0.3, 0.3, 4.0]],
    ids=str,
)
def test_the_learning_rate_of_a_timed_run_never_rises_again(monkeypatch, paces):
    """A simulated run whose speed changes, and what it is like if it is resumed on the way."""
    now, rates, plans = 0.0, [], []
    monkeypatch.setattr(plan.time, "monotonic", lambda: now)
    length = RunLength(dict(TIMED), 500, first_step=0, start=0.0)
    while len(rates) != length.end:
        rates.append(length.learning_rate(len(rates)))
        now += paces[min(len(paces) - 1, int(now / 600 * len(paces)))]
        if (total := length.proposed(len(rates))) not in (0, length.total):
            length.correct(total, len(rates))
            plans.append((len(rates), dict(length.train)))  # as a checkpoint keeps it
    assert 590 < now < 610
    assert rates[:101] == pytest.approx([min(1.0, (i + 1) / 100) for i in range(101)])
    falls = [a - b for a, b in pairwise(rates[100:])]
    assert min(falls) >= 0
    assert max(falls) < (0.06 if 4.0 in paces else 0.004)
    assert rates[-1] < 0.01
    assert len(plans) > 1
    for (step, train), (until, _) in pairwise([*plans, (len(rates), None)]):
        resumed = RunLength(json.loads(json.dumps(train)), 500, first_step=step, start=now)
        assert [resumed.learning_rate(s) for s in range(step, until)] == rates[step:until]


def test_a_time_plan_that_is_updated_now_and_then(monkeypatch):
    now = 0.0
    monkeypatch.setattr(plan.time, "monotonic", lambda: now)
    timer, total, step = TimePlan(10, 0.0, first_step=7, grid_steps=500), None, 7
    while total is None or step < total:
        now, step = now + (0.1 if now < 300 else 0.14), step + 1
        if step % 10 == 0:
            total = timer.update(step, total)
    assert 0.97 < now / 600 < 1.01


def test_a_time_plan_ends_a_run_whose_first_steps_take_all_the_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr(plan.time, "monotonic", lambda: now)
    timer, total, step = TimePlan(1, 0.0, first_step=0, grid_steps=100), None, 0
    while total is None or step < total:
        now, step = now + 8, step + 1
        total = timer.update(step, total)
    assert now <= 72


def test_a_time_plan_ends_a_run_that_becomes_very_slow(monkeypatch):
    now = 0.0
    monkeypatch.setattr(plan.time, "monotonic", lambda: now)
    timer, total, step = TimePlan(10, 0.0, first_step=0, grid_steps=500), None, 0
    while total is None or step < total:
        now, step = now + (0.3 if now < 330 else 11), step + 1  # like next to another program
        total = timer.update(step, total)
    assert 580 <= now <= 620


# --- files ----------------------------------------------------------------------------------------


def test_save_whole_leaves_the_old_file_if_writing_fails(tmp_path):
    path = tmp_path / "file"
    save_whole(path, lambda partial: partial.write_text("old"))

    def fail(partial):
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_whole(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def die_while_saving(path: Path) -> None:
    """Save a checkpoint, and end this process once half of another one is on the disk."""
    save_checkpoint(path, {"step": 1})
    save = torch.save

    def save_half(value, file):
        save(value, file)
        os.truncate(file.file.name, os.path.getsize(file.file.name) // 2)
        os.kill(os.getpid(), 9)

    checkpoints.checkpoint.torch.save = save_half
    save_checkpoint(path, {"step": 2})


def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "a.pt"
    job = TrainingProcess(tmp_path / "log", prepare=partial(die_while_saving, path))
    assert job.wait() == -9, job.text()
    assert torch.load(path, weights_only=True)["step"] == 1
    assert len(list(tmp_path.glob(".a.pt.*.partial"))) == 1


def test_metrics_after_the_step_of_a_resumed_run_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "loss": 1 / s} for s in (10, 20, 30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 40, "lo')
    with Metrics(path, step=20) as metrics:
        metrics.write({"step": 25, "loss": 0.5})
        assert [row["step"] for row in read_metrics(path)] == [10, 20, 25]  # before it is closed
    with Metrics(path, step=0):
        pass
    assert read_metrics(path) == []


def test_the_running_average_follows_the_values():
    average = 0.0
    for count in range(5):
        average = running_average(average, 3.0, count)
        assert average == pytest.approx(3.0)  # not pulled towards its start
    for count in range(5, 100):
        average = running_average(average, 1.0, count)
    assert average == pytest.approx(1.0, abs=0.01)


def test_the_plot_of_the_loss(tmp_path):
    from PIL import Image

    rows = [{"step": s, "loss": 1 / s} for s in range(1, 50)]
    plot_loss(rows, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    plot_loss([*rows, {"step": 40, "validation_loss": 0.01}], tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "loss.png").read_bytes()
    plot_loss([], tmp_path / "empty.png")  # a run without metrics yet
    assert (tmp_path / "empty.png").exists()


def test_the_loss_is_drawn_from_rows_of_several_metrics():
    from matplotlib.figure import Figure

    rows = [{"step": s, "loss": 1 / s, "gradient_norm": None} for s in range(1, 50)]
    rows[20:20] = [{"step": 20, "epoch": 1, "validation_loss": 0.06}]
    rows += [{"step": 49, "epoch": 2, "validation_loss": 0.03}]
    assert column(rows, "gradient_norm") == ([], [])
    axes = Figure().subplots()
    draw_loss(axes, rows)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert list(drawn) == ["mean since the last point", "running average", "held-out items"]
    assert drawn["mean since the last point"] == [[s, 1 / s] for s in range(1, 50)]
    assert drawn["held-out items"] == [[20, 0.06], [49, 0.03]]


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_explains_itself(trained):
    checkpoint = load_checkpoint(trained / "model_final.pt")
    assert checkpoint["step"] == 26
    assert checkpoint["config"]["data"]["dataset"] == "digits"
    assert checkpoint["config"] == json.loads((trained / "config.json").read_text())
    model, diffusion = restore(checkpoint)
    assert diffusion.timesteps == 1000
    assert_close(dict(model.state_dict()), dict(checkpoint["ema"]))
    raw, _ = restore(checkpoint, raw=True)
    assert_close(dict(raw.state_dict()), dict(checkpoint["model"]))
    assert not torch.equal(model.head.weight, raw.head.weight)
    checkpoint["config"]["model"]["channels"] = 16
    with pytest.raises(CheckpointError, match="contradicts itself"):
        restore(checkpoint)


def test_files_that_are_not_checkpoints_are_refused(trained, tmp_path):
    path = tmp_path / "bad.pt"
    valid = load_checkpoint(trained / "model_final.pt")
    for content in ({"weights": torch.zeros(3)}, {**valid, "format": 99}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"bad\.pt"):
            load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        load_checkpoint(path)


def test_the_newest_checkpoint_has_the_most_steps(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.newest_checkpoint() == (None, [])
    assert not folder.holds_run()
    for path, step in [(folder.final, 30), (folder.checkpoint(7), 70), (folder.interrupted, 50)]:
        save_checkpoint(path, {"step": step})
        assert step_of(path) == step
    assert folder.newest_checkpoint() == (folder.checkpoint(7), [])
    folder.checkpoint(8).write_bytes(b"damaged")
    newest, damaged = folder.newest_checkpoint()
    assert newest == folder.checkpoint(7)
    assert "model_epoch_008.pt is damaged" in str(damaged[0])
    assert folder.holds_run()
    sections = {key: {} for key in ("data", "model", "diffusion", "train")}
    folder.config.write_text(json.dumps(sections))
    (tmp_path / "mine.txt").write_text("not of the run")
    folder.clear()
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_differences_name_the_fields():
    saved = {"model": {"channels": 64, "blocks": 1}, "data": {"count": 5}}
    assert config_differences(saved, {"model": {"channels": 64}}) == []
    assert config_differences(saved, {"model": {"channels": 32, "heads": 2}}) == [
        "model.channels: 64 in the checkpoint, 32 now",
        "model.heads: None in the checkpoint, 2 now",
    ]
