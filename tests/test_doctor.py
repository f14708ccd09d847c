"""The doctor: it finds each fault, and nothing in healthy runs; damaged folders are no error."""

import ast
import dataclasses
import inspect
import json
import shlex
import shutil
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import train
from checkpoints.checkpoint import load_checkpoint
from checkpoints.shards import RECORD_FILE
from cli import docs, process
from cli.training import TRAIN
from conftest import TINY
from dataset.registry import load_dataset
from evaluation.doctor import report
from evaluation.doctor.checks import CHECKS, examine
from evaluation.doctor.commands import again, call, resume
from evaluation.doctor.length import GOOD, measured_runs, needed_images
from evaluation.doctor.report import report_of
from evaluation.doctor.run import read_run
from images import save_image
from runs import SMALL, ctrl_c_in, killed_in
from training import preview
from training.fit import fit
from training.fit import parse as parse_fit
from training.folder import RunFolder
from training.loop import Batches
from utils import has_native_bf16
from visuals.pictures import ImagePictures, save_picture

# Runs of half a second; their samples are not noise.
QUICK = [*SMALL, "--batch-size", "32", "--lr", "0.02", "--max-steps", "50"]
POINTS = [word for word in QUICK if word not in (*SMALL[-6:], "--dataset", "digits")]
POINTS += ["--batch-size", "128", "--max-steps", "30"]
OTHER = [*TINY[:-1], "--batch-size", "32"]  # of networks that draw nothing


def run_train(folder: Path, *words) -> int:
    arguments = [*map(str, words), "--output-dir", str(folder)]
    with mock.patch.object(preview, "NUM_POINTS", 100):
        return process.run(train.main, TRAIN.parse(arguments))


def findings(folder: Path) -> list[str]:
    """The names of the findings of a run's folder."""
    return list(examine(read_run(folder)))


# --- healthy runs ---------------------------------------------------------------------------------


def trained(*words):
    return lambda folder, made: run_train(folder, *words)


def tuned(way: str, *words):
    def make(folder: Path, made: dict[str, Path]) -> None:
        common = [*QUICK[QUICK.index("--sample-interval") :], "--tune", way, "--teacher"]
        common = [word for word in common if word not in SMALL[-6:]]
        teacher = healthy_run(made, "dit") / "model_final.pt"
        run_train(folder, *common, teacher, "--device", "cpu", *words)

    return make


def stopped(*words):
    def make(folder: Path, made: dict[str, Path]) -> None:
        with ctrl_c_in(25):
            run_train(folder, *QUICK, *words)

    return make


def killed(folder: Path, made: dict[str, Path]) -> None:
    with killed_in(25):
        run_train(folder, *QUICK, "--save-every-steps", 10)


def of_latents(folder: Path, made: dict[str, Path]) -> None:
    stopped("--latents", healthy_run(made, "autoencoder"), "--patch-size", 1)(folder, made)


def of_own_network(folder: Path, made: dict[str, Path]) -> None:
    images = torch.rand(600, 1, 1, 1).expand(-1, -1, 6, 6) * torch.linspace(0, 1, 6)
    network = Filter()
    options = {"max_steps": 60, "batch_size": 32, "device": "cpu", "precision": "fp32"}
    fit(network, images, folder=folder, value_range=(0, 1), **options, lr=1e-2, warmup_steps=5)


class Filter(nn.Module):
    """A small network of one's own."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(2, 16, 5, padding=2), nn.SiLU(), nn.Conv2d(16, 1, 5, padding=2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x, t):
        level = (t / 1000).view(-1, 1, 1, 1).expand_as(x)
        return self.layers(torch.cat([x, level], dim=1))


HEALTHY = {
    "dit": trained(*QUICK),
    "unet": trained(*TINY, "--batch-size", 16, "--lr", 0.02, "--max-steps", 20),
    "linear, adamw": trained(
        *QUICK, "--schedule", "linear", "--optimizer", "adamw", "--long-skips"
    ),
    "x_0, quadratic": stopped("--schedule", "quadratic", "--prediction", "x_0"),
    "eps": stopped("--prediction", "eps"),
    "v, zero terminal SNR": stopped("--prediction", "v", "--zero-terminal-snr"),
    "edm": trained(*QUICK, "--schedule", "edm"),
    "flow, logit-normal": stopped("--schedule", "flow", "--timestep-sampling", "logit-normal"),
    "vlb, learned variance": trained(*QUICK, "--loss-weight", "vlb", "--learn-sigma"),
    "class-conditional": stopped("--class-conditional", "--sample-interval", 1),
    "moons": trained(*POINTS, "--dataset", "moons", "--lr-decay", "none"),
    "classifier": trained(*OTHER, "--model", "classifier", "--max-steps", 15),
    "autoencoder": trained(*OTHER, "--model", "autoencoder", "--max-steps", 15, "--lr", 0.01),
    "latents": of_latents,
    "super-resolution": trained(*QUICK, "--super-resolution", 4),
    "consistency": tuned("consistency", "--max-steps", 20, "--stage-steps", 5),
    "distill": tuned("distill", "--teacher-steps", 4, "--stage-steps", 5),
    "own network": of_own_network,
    "killed": killed,
}
if has_native_bf16(torch.device("cpu")):
    HEALTHY["bf16"] = stopped("--precision", "bf16")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """The folders of healthy runs that were made so far, by name."""
    return {"": tmp_path_factory.mktemp("doctor")}


def healthy_run(made: dict[str, Path], name: str) -> Path:
    """The folder of a healthy run, which is made if it is missing."""
    if name not in made:
        made[name] = made[""] / name
        HEALTHY[name](made[name], made)
    return made[name]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_no_finding(made, name):
    run = read_run(healthy_run(made, name))
    assert run.step > 0
    assert [f"{f.title}: {f.evidence}" for f in examine(run).values()] == []


# --- faults ---------------------------------------------------------------------------------------


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_rows(folder: Path, rows: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def losses(folder: Path, *values: float, held_out: tuple[float, ...] = (), **more) -> None:
    """Replace the log by one with these losses, and validation losses evenly among them."""
    rows = [
        {"step": 10 * i, "epoch": 1, "loss": loss, "lr": 0.003, "images_per_second": 900.0}
        | {"gradient_norm": 0.3, "skipped": 0, "seconds": float(i)}
        | more
        for i, loss in enumerate(values, start=1)
    ]
    for i, loss in enumerate(held_out, start=1):
        step = 10 * (len(values) * i // len(held_out))
        rows.append({"step": step, "epoch": i, "validation_loss": loss})
    write_rows(folder, sorted(rows, key=lambda row: row["step"]))


def edited(change, base: str = "dit"):
    """A copy of a healthy run with a change of its files."""

    def make(folder: Path, made: dict[str, Path]) -> None:
        shutil.copytree(healthy_run(made, base), folder)
        change(folder)

    return make


def edit_json(folder: Path, name: str, change) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def draw_grid(folder: Path, samples: torch.Tensor, real: torch.Tensor | None = None) -> None:
    """Replace the newest sample grid of a run on digits."""
    path = sorted((folder / "samples").glob("*.png"))[-1]
    real = load_dataset("digits").items if real is None else real
    save_picture(path, ImagePictures().grid(samples, 8, real=real))


def digits(count: int = 64) -> torch.Tensor:
    return load_dataset("digits").items[torch.arange(count) * 20]


def grid_of(samples):
    return edited(lambda folder: draw_grid(folder, samples()))


def uniform_noise() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (64, 1, 8, 8), generator=generator, dtype=torch.uint8)


def one_digit() -> torch.Tensor:
    data = load_dataset("digits")
    return data.items[data.labels == 3][:64]


def finished_with_one_digit(folder: Path) -> None:
    losses(folder, *np.linspace(1.5, 0.5, 5))  # to its last step
    path = folder / "samples" / "epoch_001.png"
    real = load_dataset("digits").items
    save_picture(path, ImagePictures().grid(one_digit(), 8, real=real))


def long_with_copies(folder: Path) -> None:
    losses(folder, *np.linspace(1.5, 0.4, 200))  # 2,000 steps of 32 of 1,708 images: 37 epochs
    draw_grid(folder, digits())


def one_class_drawn_after(steps: int):
    """Change a run so that it has made so many steps of 32 images and draws one class."""

    def change(folder: Path) -> None:
        losses(folder, *np.linspace(1.5, 0.4, steps // 10))
        draw_grid(folder, one_digit())

    return change


def slow_down(folder: Path) -> None:
    edit_json(folder, "config.json", lambda c: c["train"].update(total_steps=1000))
    losses(folder, *np.linspace(1.5, 0.5, 60))
    rows = rows_of(folder)
    for i, row in enumerate(rows):
        row["images_per_second"] = 900.0 if i < 35 else 100.0
        row["seconds"] = 10.0 * i
    write_rows(folder, rows)


def wait(folder: Path) -> None:
    slow_down(folder)
    rows = [
        row | {"images_per_second": 900.0} for row in rows_of(folder)
    ]  # steps of 10 * 32 / 900 s
    write_rows(folder, [row | {"seconds_waiting_for_data": 0.2} for row in rows])


def wait_for_a_large_folder(folder: Path) -> None:
    def change(config: dict) -> None:
        config["data"] |= {"dataset": "folder", "count": 50_000_000, "cache_limit": 2.0}

    wait(folder)
    edit_json(folder, "config.json", change)


def on_old_processor(folder: Path) -> None:
    def change(sessions: list) -> None:
        sessions[-1]["precision"] = "bf16"
        sessions[-1]["cpu"] = {"name": "an old processor", "features": ["avx2"], "cores": 2}

    edit_json(folder, "env.json", change)


def on_gpu(precision: str):
    def change(sessions: list) -> None:
        sessions[-1]["precision"] = precision
        sessions[-1]["device"] = {"type": "cuda", "name": "a GPU", "capability": "8.9"}

    return lambda folder: edit_json(folder, "env.json", change)


def without_checkpoint(folder: Path, made: dict[str, Path]) -> None:
    with killed_in(25):
        run_train(folder, *QUICK)


def cut(folder: Path) -> None:
    path = folder / "model_final.pt"
    path.write_bytes(path.read_bytes()[:-5000])


def flip_bit(folder: Path) -> None:
    path = folder / "model_final.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def keep_only_metrics(folder: Path) -> None:
    for name in ("config.json", "model_final.pt"):
        (folder / name).unlink()


def of_captioned_images(folder: Path, made: dict[str, Path]) -> None:
    images = folder.parent / "captioned images"
    for i in range(40):
        pixels = np.full((8, 8), 60, np.uint8)
        pixels[i % 6 : i % 6 + 3, i % 5 : i % 5 + 3] = 255 - i
        save_image(images / f"{'light' if i % 2 else 'dark'} square" / f"{i}.png", pixels)
    words = ["--dataset", "folder", "--data-dir", images, "--caption-from-path", "--image-size", 8]
    run_train(folder, *QUICK, *words, "--grey", "--text-conditional", "--max-steps", 8)


def of_copied_images(folder: Path, made: dict[str, Path]) -> None:
    images = folder.parent / "copied images"
    for i in range(40):
        pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * (1 + i % 4)
        save_image(images / f"{i}.png", pixels)
    words = ["--dataset", "folder", "--data-dir", images, "--image-size", 8, "--grey"]
    run_train(folder, *QUICK, *words, "--max-steps", 8)


def of_wrong_range(folder: Path, made: dict[str, Path]) -> None:
    options = {"max_steps": 5, "batch_size": 32, "device": "cpu", "precision": "fp32"}
    fit(Filter(), torch.rand(600, 1, 6, 6), folder=folder, value_range=(0, 255), **options)


def of_large_points(folder: Path, made: dict[str, Path]) -> None:
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, t):
            return self.layer(x)

    options = {"max_steps": 20, "batch_size": 32, "device": "cpu", "precision": "fp32"}
    fit(Line(), 50 * torch.randn(600, 2), folder=folder, **options)


def of_one_class(folder: Path) -> None:
    def change(config: dict) -> None:
        counts = config["data"]["class_counts"]
        config["data"]["class_counts"] = [sum(counts) - 9, *[1] * 9]

    edit_json(folder, "config.json", change)


def exploded(folder: Path, made: dict[str, Path]) -> None:
    """Its weights are infinite after the first step."""
    run_train(folder, *QUICK, "--optimizer", "adamw", "--lr", "1e25", "--grad-clip", "0")


STOPPED = "class-conditional"  # a healthy run that can be resumed
FALLING = np.linspace(1.5, 0.5, 40)
# What makes each fault, and the checks that must find it, the first of all findings.
FAULTS = {
    "lr 1e-7": (trained(*QUICK, "--lr", "1e-7", "--max-steps", 70), "loss-does-not-fall"),
    "lr 1": (trained(*QUICK, "--lr", 3, "--max-steps", 60), "lr-too-high"),
    "lr 1e-4": (
        edited(
            lambda folder: (
                losses(folder, *np.linspace(1.5, 1.1, 30)),
                edit_json(folder, "config.json", lambda c: c["train"].update(lr=1e-4)),
            )
        ),
        "lr-too-low",
    ),
    "a plateau": (
        edited(
            lambda folder: (
                losses(folder, *FALLING[:10], *[1.2] * 30),
                edit_json(folder, "config.json", lambda c: c["train"].update(lr=0.1)),
            )
        ),
        "lr-too-high",
    ),
    "lr 1e25": (exploded, "no-checkpoint"),
    "nan": (edited(lambda folder: losses(folder, *FALLING, float("nan"))), "not-finite"),
    "skipped steps": (
        edited(lambda folder: losses(folder, *FALLING, skipped=60)),
        "not-finite",
    ),
    "diverged": (
        edited(lambda folder: losses(folder, *FALLING, *[0.5, 0.8, 1.1, 1.3, 1.3, 1.3])),
        "diverged",
    ),
    "overfitted": (
        edited(
            lambda folder: losses(
                folder, *np.linspace(1.5, 0.1, 60), held_out=(0.9, 0.6, 0.5, 0.55, 0.6, 0.7)
            )
        ),
        "overfitting",
    ),
    "an average that lags": (
        edited(lambda folder: losses(folder, *FALLING[:20], held_out=(1.9, 1.8))),
        "average-lags",
    ),
    "four steps": (trained(*QUICK, "--max-steps", 4), "noise"),
    "noise": (grid_of(uniform_noise), "noise"),
    "grey": (grid_of(lambda: 100 + digits() // 16), "grey"),
    "black and white": (
        edited(lambda folder: draw_grid(folder, 255 * (digits() > 100).byte(), 40 + digits() // 2)),
        "saturated",
    ),
    "one picture": (grid_of(lambda: digits(1).expand(64, -1, -1, -1)), "alike"),
    "one class drawn": (edited(one_class_drawn_after(28_000)), "one-class-drawn"),
    "wrong classes": (
        edited(finished_with_one_digit, "class-conditional"),
        "not-of-their-classes",
    ),
    "copies": (edited(long_with_copies), "near-copies"),
    "one class": (edited(of_one_class, "class-conditional"), "one-class"),
    "few captioned images": (of_captioned_images, "few-images"),
    "copied images": (of_copied_images, "duplicates", "few-images"),
    "wrong range": (of_wrong_range, "range"),
    "large points": (of_large_points, "scale"),
    "other programs": (edited(slow_down, STOPPED), "slow-steps"),
    "slow disk": (edited(wait, STOPPED), "waits-for-data"),
    "large folder": (edited(wait_for_a_large_folder, STOPPED), "waits-for-data"),
    "old processor": (edited(on_old_processor, STOPPED), "precision"),
    "fp32 on a GPU": (edited(on_gpu("fp32"), STOPPED), "precision"),
    "fp16 on a GPU": (edited(on_gpu("fp16"), STOPPED), "precision"),
    "killed before a checkpoint": (without_checkpoint, "no-checkpoint"),
    "cut checkpoint": (edited(cut), "damaged-checkpoint"),
    "flipped bit": (edited(flip_bit), "damaged-checkpoint"),
    "damaged config.json": (
        edited(lambda folder: (folder / "config.json").write_text("{")),
        "config",
    ),
    "lost configuration": (edited(keep_only_metrics), "config", "no-checkpoint"),
}


def faulty_run(made: dict[str, Path], fault: str) -> Path:
    """The folder of a run with a fault, which is made if it is missing."""
    if fault not in made:
        made[fault] = made[""] / fault
        FAULTS[fault][0](made[fault], made)
    return made[fault]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(made, fault):
    expected = FAULTS[fault][1:]
    found = examine(run := read_run(faulty_run(made, fault)))
    assert set(expected) <= found.keys()
    text = report_of(run, found.values())
    for name in expected:
        assert found[name].title in text
        assert found[name].evidence
        assert found[name].cause
        require_accepted(found[name].command)


def require_accepted(command: str) -> None:
    """A command must parse, and `fit` must have the arguments of a call."""
    if command.startswith("fit("):
        arguments = fit_arguments(command)
        inspect.signature(fit).bind("model", "data", **arguments)
        parse_fit({k: v for k, v in arguments.items() if k not in ("folder", "value_range")}, "")
        return
    python, *words = shlex.split(command)
    if python == "torchrun":
        assert words.pop(0) == "--standalone"
        assert words.pop(0).startswith("--nproc-per-node=")
    else:
        assert python == "python"
    script, *words = words
    docs.COMMANDS[script].parsed(docs.COMMANDS[script].parser(), words)


def fit_arguments(command: str) -> dict[str, object]:
    """The keyword arguments of a printed call of `fit`."""
    found = ast.parse(command, mode="eval").body
    return {each.arg: ast.literal_eval(each.value) for each in found.keywords}


def test_every_check_has_a_fault():
    assert {name for _, *names in FAULTS.values() for name in names} == set(CHECKS)


# --- commands -------------------------------------------------------------------------------------


def carry_out(command: str) -> None:
    """Run a command of train.py or sample.py in this process."""
    _, script, *words = shlex.split(command)
    assert script == "train.py"
    assert process.run(train.main, TRAIN.parse(words)) == 0


@pytest.mark.parametrize("fault", ["lr 1e-7", "cut checkpoint", "killed before a checkpoint"])
def test_the_command_mends_the_fault(made, tmp_path, fault):
    shutil.copytree(faulty_run(made, fault), tmp_path / "run")
    name = FAULTS[fault][1]
    command = examine(read_run(tmp_path / "run"))[name].command
    carry_out(command)
    mended = TRAIN.parse(shlex.split(command)[2:]).output_dir
    left = examine(read_run(Path(mended)))
    assert name not in left
    assert left == {} or fault == "lr 1e-7"  # its samples are still noise after 70 steps


def test_a_typed_command_is_repeated_with_the_mended_flag(made, tmp_path):
    words = [*map(str, QUICK), "--lr", "1e-7", "--max-steps", "70", "--output-dir", "my run"]
    shutil.copytree(faulty_run(made, "lr 1e-7"), tmp_path / "my run")
    typed = ["train.py", *words]
    edit_json(tmp_path / "my run", "env.json", lambda all: all[0].update(command=typed))
    command = examine(read_run(tmp_path / "my run"))["loss-does-not-fall"].command
    again = vars(TRAIN.parse(shlex.split(command)[2:]))
    expected = vars(TRAIN.parse(words)) | {"lr": None, "output_dir": str(tmp_path / "my run_2")}
    assert again.pop("given") == expected.pop("given") - {"lr"}
    assert again == expected


def test_the_configuration_makes_the_same_flags_as_the_command(made):
    """A run of a notebook has no command line."""
    folder = healthy_run(made, "class-conditional")
    flags = TRAIN.parse(shlex.split(again(read_run(folder)))[2:])
    carried = read_run(folder).config["train"]
    for name in ("batch_size", "lr", "max_steps", "warmup_steps", "class_conditional"):
        expected = carried[name]
        assert getattr(flags, name) in (expected, None), name
    assert (flags.model, flags.blocks, flags.patch_size) == ("dit", 1, 4)


def test_a_call_of_fit_repeats_the_arguments_of_the_run(made, tmp_path):
    shutil.copytree(healthy_run(made, "own network"), tmp_path / "run")
    run = read_run(tmp_path / "run")
    again_folder = str(tmp_path / "run_2")
    arguments = {"value_range": (0.0, 1.0), "max_steps": 60, "batch_size": 32}
    arguments |= {"lr": 1e-2, "warmup_steps": 5, "precision": "fp32"}
    command = call(run, lr=1e-3, class_conditional=False)
    assert command.startswith("fit(model, images, value_range=(0.0, 1.0), ")
    expected = arguments | {"lr": 1e-3, "folder": again_folder}
    assert fit_arguments(command) == expected
    require_accepted(command)
    assert fit_arguments(call(run)) == arguments | {"folder": again_folder}
    points = examine(read_run(faulty_run(made, "large points")))["scale"]
    assert points.command.startswith("fit(model, points / ")
    assert fit_arguments(points.command)["max_steps"] == 20
    assert "for data of unit size it is about 2" in points.evidence
    conditional = run.config["model"] | {"num_classes": 3}
    labelled = dataclasses.replace(run, config=run.config | {"model": conditional})
    assert call(labelled).startswith("fit(model, images, labels, ")
    assert call(labelled, class_conditional=False) == call(run)


def test_the_time_that_steps_wait_for_their_items_is_logged(made, monkeypatch, tmp_path):
    of_step = Batches.of_step

    def slow(batches: Batches, step: int):
        time.sleep(0.05)
        return of_step(batches, step)

    monkeypatch.setattr(Batches, "of_step", slow)
    with ctrl_c_in(20):
        run_train(tmp_path / "run", *QUICK)
    run = read_run(tmp_path / "run")
    assert len(run.waiting) == len(run.speeds[0]) == 2
    assert sum(row["seconds_waiting_for_data"] for row in run.rows if "loss" in row) >= 20 * 0.05
    assert all(0.3 < share < 1 for share in run.waiting)
    command = examine(read_run(faulty_run(made, "large folder")))["waits-for-data"].command
    assert " --cache-limit 5 " in command  # of 50,000,000 images of 8 x 8 pixels: 3.2 GB


def test_a_finished_run_is_not_slow_and_one_of_two_processes_is_resumed_by_torchrun(made, tmp_path):
    for change in (slow_down, wait, on_old_processor, on_gpu("fp32"), on_gpu("fp16")):
        edited(change)(tmp_path / change.__name__, made)
        assert not {"slow-steps", "waits-for-data", "precision"} & set(
            findings(tmp_path / change.__name__)
        )
        shutil.rmtree(tmp_path / change.__name__)

    def of_two(folder: Path) -> None:
        edit_json(folder, "config.json", lambda c: c["train"].update(processes=2))

    edited(of_two, STOPPED)(tmp_path / "run", made)
    run = read_run(tmp_path / "run")
    command = report_of(run, []).partition("next:")[2].splitlines()[0].strip()
    assert command == resume(run)
    assert command.startswith("torchrun --standalone --nproc-per-node=2 train.py --resume")
    require_accepted(command)


def test_one_class_is_explained_by_the_length_before_the_labels(made, tmp_path):
    need = needed_images(read_run(healthy_run(made, "dit")))
    for images, cause in ((need.low - 64, None), (need.low + 640, "the training was too short")):
        edited(one_class_drawn_after(int(images / 32)))(tmp_path / "run", made)
        found = examine(read_run(tmp_path / "run")).get("one-class-drawn")
        assert (found and found.cause[: len(cause)]) == cause
        shutil.rmtree(tmp_path / "run")
    found = examine(read_run(faulty_run(made, "one class drawn")))["one-class-drawn"]
    assert "one common shape" in found.cause
    assert "--class-conditional" in found.command


def test_a_lost_configuration_is_repeated_by_the_saved_command(made, tmp_path):
    words = ["train.py", "--dataset", "digits", "--max-steps", "50", "--output-dir", "run"]
    edited(keep_only_metrics)(tmp_path / "run", made)
    edit_json(tmp_path / "run", "env.json", lambda all: all[0].update(command=words))
    found = examine(read_run(tmp_path / "run"))["config"]
    assert (
        found.command
        == f"python train.py --dataset digits --max-steps 50 --output-dir {tmp_path / 'run_2'}"
    )
    edit_json(tmp_path / "run", "env.json", lambda all: all[0].update(command=None))
    assert "Add the flags" in examine(read_run(tmp_path / "run"))["config"].cause


# --- the command, folders that are damaged, and the length ----------------------------------------


def test_the_command_reports_and_draws(script, made, tmp_path):
    healthy = script("visualize_diffusion", "--doctor", healthy_run(made, "dit"))
    assert healthy.code == 0
    assert "looks healthy" in healthy.out or "but the run is short" in healthy.out
    assert (healthy_run(made, "dit") / "doctor.png").exists()
    (healthy_run(made, "dit") / "doctor.png").unlink()
    shutil.copytree(faulty_run(made, "four steps"), tmp_path / "run")
    ill = script(
        "visualize_diffusion", "--doctor", tmp_path / "run", "--save-path", tmp_path / "a.png"
    )
    assert ill.code == 1
    assert "1. fault: the pictures are noise" in ill.out
    assert "the training was too short: 4 steps of 32 are 128 images" in ill.out
    assert (tmp_path / "a.png").exists()
    assert not (tmp_path / "run" / "doctor.png").exists()


def test_a_folder_without_a_run_is_an_error(script, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        result = script("visualize_diffusion", "--doctor", tmp_path / name)
        assert result.code == 2
        assert "run" in result.err


def test_a_run_in_progress_has_no_finding(made, tmp_path):
    """Its grid may be noise, and its checkpoints are still to come."""
    edited(lambda folder: draw_grid(folder, uniform_noise()))(tmp_path / "run", made)
    (tmp_path / "run" / "model_final.pt").unlink()
    assert findings(tmp_path / "run") != []
    with RunFolder(tmp_path / "run").lock():
        run = read_run(tmp_path / "run")
        assert run.state.startswith("in progress, step 50")
        assert examine(run) == {}
        assert "visualize_diffusion.py --run" in report_of(run, [])


def test_incomplete_lines_of_the_log_are_left_out(made, tmp_path):
    def cut_lines(folder: Path) -> None:
        path = folder / "metrics.jsonl"
        text = path.read_text()
        path.write_text('{"step": 1, "loss"\n\x00\x00\n[]\n' + text + text[:30])

    edited(cut_lines)(tmp_path / "run", made)
    assert findings(tmp_path / "run") == []


def test_sharded_checkpoints_are_checkpoints(made, tmp_path, monkeypatch):
    def shard(folder: Path) -> None:
        checkpoint = load_checkpoint(folder / "model_final.pt")
        keep = ("format", "step", "skipped", "seconds", "config")
        keep += ("unlogged_loss", "unlogged_updates")
        place = folder / "checkpoints" / "model_step_00000050.shards"
        place.mkdir(parents=True)
        record = {name: checkpoint[name] for name in keep}
        (place / RECORD_FILE).write_text(json.dumps({**record, "files": {}}))
        (folder / "model_final.pt").unlink()

    edited(shard)(tmp_path / "run", made)
    run = read_run(tmp_path / "run")
    assert list(run.checkpoints.values()) == [50]
    found = examine(run)
    assert "no-checkpoint" not in found
    monkeypatch.setattr(report, "longer", lambda run: None)  # as if it were long enough
    text = report_of(run, [])
    assert "writes model_final.pt" in text
    assert f"next:   {resume(run)}" in text


@pytest.mark.parametrize("content", [b"", b'{"train": 3}', b"\xff\x00" * 40, None])
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "env.json", "model_final.pt"])
def test_damaged_files_are_no_traceback(made, tmp_path, name, content):
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        for picture in (folder / "samples").iterdir():
            picture.write_bytes(picture.read_bytes()[:300])

    edited(damage)(tmp_path / "run", made)
    run = read_run(tmp_path / "run")
    found = examine(run)
    report_of(run, found.values())
    expected = {"config.json": "config", "model_final.pt": "damaged-checkpoint"}
    if content is not None and name in expected:
        assert list(found) == [expected[name]]
    elif content is None and name == "model_final.pt":
        assert list(found) == ["no-checkpoint"]
    else:
        assert found == {}


def test_grids_can_be_taken_apart():
    generator = torch.Generator().manual_seed(0)
    for shape, count, captions in [
        ((1, 8, 8), 64, []),
        ((3, 32, 32), 64, []),
        ((3, 20, 12), 16, ["one caption that is long enough for two lines of the picture"]),
        ((1, 28, 28), 64, ["a 3", "a 7 above a 9 " * 5, "b"]),
    ]:
        images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
        columns = int(count**0.5)
        for real in (images[: 3 * columns], images[:3]):
            picture = ImagePictures().grid(images, columns, real=real, captions=captions)
            samples, below = ImagePictures().parts(picture, shape, captions)
            assert torch.equal(samples, images)
            assert torch.equal(below, real[:: max(1, len(real) // columns)][:columns])
    with pytest.raises(ValueError, match="no grid"):
        ImagePictures().parts(picture, (1, 9, 9))


def test_the_needed_length_is_that_of_measured_runs(made):
    run = read_run(healthy_run(made, "dit"))
    rows = [row for row in measured_runs() if row.ratio <= GOOD]
    assert len(rows) >= 5
    two_minutes = next(row for row in rows if row.recipe == "mnist, 2 minutes")
    assert two_minutes.images == 1146 * 64  # docs/results.md: updates, and --preset laptop
    need = needed_images(run)
    assert need.low == min(row.images for row in rows) <= need.middle <= need.high
    assert "other data" in need.text  # there is no measured run of digits
