"""Tests of the benchmarks."""

import json
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import (
    ablations,
    common,
    contenders,
    contention,
    contest,
    few_steps,
    guidance,
    large_images,
    profile_step,
    samplers,
    throughput,
    time_to_quality,
)
from benchmarks.contenders import Task
from cli.training import TRAIN
from conftest import TINY
from dataset.types import Data
from evaluation import classifier
from pages import write_weights
from training.config import PRESETS

CPU = torch.device("cpu")
GREY = 200  # all pixels of the data, so that the perfect denoiser is known
X_0 = GREY / 127.5 - 1


def diffusers(**options):
    pytest.importorskip("diffusers")
    shape = (1, 8, 8)
    contender = contenders.Diffusers(shape, CPU, channels=(32, 32, 32), **options)
    alphas_cumprod, calls = contender.schedule.alphas_cumprod, []

    def eps(x, t):
        calls.append(t)
        a = alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=(x - a.sqrt() * X_0) / (1 - a).sqrt() + zero(contender))

    contender.network.forward = eps
    return contender, shape, calls


def denoising_diffusion(kind):
    pytest.importorskip("denoising_diffusion_pytorch")
    contender, shape = (
        kind((1, 12, 12), CPU, dim=8),
        (1, 12, 12),
    )  # one network pads it
    contender.precision = "fp32"
    alphas_cumprod, calls = contender.diffusion.alphas_cumprod, []

    def velocity(x, t, _):
        calls.append(t)
        a = alphas_cumprod[t].reshape(-1, 1, 1, 1)
        noise = (x - a.sqrt() * X_0) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * X_0 + zero(contender)

    contender.network.forward = contender.ema.ema_model.model.forward = velocity
    return contender, shape, calls


def small_diffusion():
    pytest.importorskip("smalldiffusion")
    shape, calls = (1, 8, 8), []
    contender = contenders.SmallDiffusion(shape, CPU, batch=64, channels=32)

    def eps(x, sigma, cond=None):
        calls.append(sigma)
        return (x - X_0) / sigma + zero(contender)

    contender.network.forward = contender.ema.module.forward = eps
    return contender, shape, calls


def zero(contender):
    """0, but with a gradient for a weight of the network."""
    return 0 * next(contender.network.parameters()).sum()


FOREIGN = {
    "diffusers": diffusers,
    "diffusers, bf16": partial(diffusers, precision="bf16"),
    "denoising-diffusion-pytorch": partial(denoising_diffusion, contenders.DenoisingDiffusion),
    "README": partial(denoising_diffusion, contenders.DenoisingDiffusionReadme),
    "smalldiffusion": small_diffusion,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_perfect_network_has_no_loss_and_samples_the_data(name):
    contender, shape, calls = FOREIGN[name]()
    images = torch.full((contender.batch, *shape), GREY, dtype=torch.uint8)
    assert contender.update(images) < 1e-6
    calls.clear()
    drawn = contenders.drawn(contender, 3, seed=0)
    assert len(calls) == contender.steps
    assert drawn.shape == (3, *shape)
    assert (drawn.int() - GREY).abs().max() <= 6  # smalldiffusion's last sigma is 0.01


@pytest.mark.parametrize("name", FOREIGN)
def test_an_update_changes_the_weights(name):
    contender, shape, _ = FOREIGN[name]()
    del contender.network.forward  # the perfect denoiser
    before = [p.clone() for p in contender.network.parameters()]
    images = torch.randint(0, 256, (contender.batch, *shape), dtype=torch.uint8)
    assert contender.update(images) > 0
    after = contender.network.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Fake:
    """A contender with a clock of its own: each training step and each batch takes a known time."""

    batch, precision, sampler, steps = 100, "fp32", "none", 1
    time = 0.0

    def __init__(self, shape, device, grey=0):
        self.shape, self.grey, self.updates = shape, grey, 0
        self.network = nn.Linear(1, 1)

    def update(self, images):
        assert images.shape == (self.batch, *self.shape)
        assert images.dtype == torch.uint8
        Fake.time += 0.03
        self.updates += 1
        torch.zeros(100, 4) @ torch.zeros(4, 5)  # 40 FLOPs an image

    def draw(self, count):
        Fake.time += 5
        return torch.full((count, *self.shape), self.updates, dtype=torch.uint8)


def task_of(tmp_path, **changes):
    task = Task("digits", str(tmp_path), 0.4 / 60, 0, 10, CPU, tmp_path)
    return task._replace(**changes)


@pytest.fixture
def clock(monkeypatch):
    """contenders.py reads the clock of Fake."""
    monkeypatch.setattr(contenders, "now", lambda device: Fake.time)


def test_sampling_does_not_count_as_training_time(tmp_path, clock):
    result = contenders.foreign(Fake, task_of(tmp_path))
    assert [moment.updates for moment in result.moments] == [2, 4, 7, 14]
    seconds = [moment.seconds for moment in result.moments]
    assert seconds == pytest.approx([0.06, 0.12, 0.21, 0.42])  # the first after 0.05, 0.1, 0.2, 0.4
    for moment in result.moments:
        assert moment.images.shape == (10, 1, 8, 8)
        assert moment.images.unique().tolist() == [moment.updates + contenders.WARM_UP]
    assert result.images_per_second == pytest.approx(100 / 0.03)
    assert result.seconds_of_64 == pytest.approx(5)
    assert result.flops == 40


def test_sampling_leaves_the_random_numbers_of_training_alone():
    fake = Fake((1, 2, 2), CPU)
    fake.draw = lambda count: torch.randint(0, 256, (count, 1, 2, 2), dtype=torch.uint8)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = contenders.drawn(fake, 70, seed=5)
    torch.testing.assert_close(torch.rand(3), expected)
    assert torch.equal(contenders.drawn(fake, 70, seed=5), first)
    assert not torch.equal(contenders.drawn(fake, 70, seed=6), first)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder in which the classifier of digits is stored, once it is trained."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def compare(tmp_path, data_dir, monkeypatch, capsys, clock):
    """Runs time_to_quality.py on digits, with its contenders in this process."""
    monkeypatch.setattr(classifier, "STEPS", 30)
    monkeypatch.setitem(
        time_to_quality.CONTENDERS, "ours", partial(contenders.ours, flags=TINY[2:])
    )
    for name in ("diffusers", "smalldiffusion"):
        fake = partial(contenders.foreign, Fake, grey=1)
        monkeypatch.setitem(time_to_quality.CONTENDERS, name, fake)

    def sooner(flags, start):  # below the least --max-minutes
        shorter = {
            name: 0.4 * getattr(flags, name) for name in ("max_minutes", "save_every_minutes")
        }
        vars(flags).update(shorter)
        return train_run(flags, start)

    train_run = contenders.train_run
    monkeypatch.setattr(contenders, "train_run", sooner)
    monkeypatch.setattr(contest, "in_new_process", lambda function, task: function(task))
    monkeypatch.setattr(contest, "matmul_rate", lambda precision, device: 1e11)

    def call(*arguments):
        command = ["time_to_quality.py", "--dataset", "digits", "--samples", "40"]
        command += ["--data-dir", str(data_dir), "--output-dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [*command, *map(str, arguments)])
        capsys.readouterr()
        code = time_to_quality.main()
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return call


def test_contenders_are_trained_measured_and_reported(compare, tmp_path):
    assert compare("--minutes", 0.05, "--only", "ours", "diffusers").code == 0
    folder = tmp_path / "out"
    rows = common.read_rows(folder / "time_to_quality.jsonl")
    assert [row["contender"] for row in rows] == ["ours", "diffusers"]
    for row in rows:
        with np.load(folder / row["file"]) as file:
            assert file["arr_0"].shape == (40, 8, 8, 1)
            assert file["arr_0"].dtype == np.uint8
        assert row["fid"] > row["floor"] > 0
        assert row["curve"][-1]["fid"] == pytest.approx(row["fid"])
        seconds = [moment["seconds"] for moment in row["curve"]]
        assert seconds == sorted(seconds)
        assert len(seconds) >= 2
    assert rows[0]["nfe"] == contenders.SAMPLING["steps"]
    assert rows[0]["sampler"] == "dpmpp_2m_sde"
    text = (folder / "time_to_quality.md").read_text()
    assert f"| ours | {rows[0]['parameters']:,} | fp32 | 128 | {rows[0]['updates']:,} |" in text
    assert "## Protocol" in text
    assert "--dataset digits --minutes 0.05 --samples 40 --only ours diffusers`" in text
    assert (folder / "time_to_quality.png").stat().st_size > 10_000


@pytest.fixture
def no_picture(monkeypatch):
    """No picture is drawn at the end of a comparison, which would take most of the time."""
    monkeypatch.setattr(time_to_quality, "save_figure", lambda path, figure: None)
    monkeypatch.setattr(time_to_quality, "picture", lambda rows, folder: None)


@pytest.mark.usefixtures("no_picture")
def test_the_same_command_continues(compare, tmp_path, monkeypatch):
    log = tmp_path / "out" / "time_to_quality.jsonl"
    arguments = ["--minutes", 0.002, "--only"]
    assert compare(*arguments, "diffusers").code == 0
    again = compare(*arguments, "diffusers", "smalldiffusion", "--seeds", 2)
    assert again.code == 0
    done = [(row["contender"], row["seed"]) for row in common.read_rows(log)]
    assert done == [
        ("diffusers", 0),
        ("smalldiffusion", 0),
        ("diffusers", 1),
        ("smalldiffusion", 1),
    ]
    whole = compare(*arguments, "diffusers")  # trains nothing, and reports all rows
    assert len(common.read_rows(log)) == 4
    assert "| smalldiffusion | 2 |" in whole.out
    monkeypatch.setitem(PRESETS, "fast", {"channels": 8})  # makes these rows outdated
    assert compare(*arguments, "diffusers").code == 0
    assert len(common.read_rows(log)) == 5


@pytest.mark.usefixtures("no_picture")
def test_a_missing_package_is_named_and_the_other_contenders_run(compare, monkeypatch):
    missing = partial(contenders.foreign, contenders.Diffusers)
    monkeypatch.setitem(time_to_quality.CONTENDERS, "diffusers", missing)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result = compare("--minutes", 0.002, "--only", "diffusers", "smalldiffusion")
    assert result.code == 1
    assert "diffusers needs a package: pip install diffusers" in result.err
    assert "skipped: diffusers, seed 0" in result.err
    assert "| smalldiffusion | 2 |" in result.out


def test_speeds_of_contenders_are_compared(compare, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(contest, "matmul_rate", cache(partial(common.matmul_rate, n=512)))
    throughput.compare(["ours", "diffusers"], task_of(tmp_path, minutes=0.05, samples=1))
    _, head, _, ours, other = capsys.readouterr().out.strip().rsplit("\n", 4)
    assert [head.split(" | ").index(name) for name in ("images/s", "NFE")] == [4, 8]
    cells = ours.split(" | ")
    assert cells[0] == "| ours"
    assert float(cells[4].replace(",", "")) > 5  # images/s; about 500 on an idle machine
    assert 0 < float(cells[6]) < 1
    assert other.startswith("| diffusers | 2 | fp32 | 100 | 3,333 | 0.000 | 0.00 | none | 1 | 5")


def test_the_speed_excludes_the_first_row_which_may_include_compiling():
    rows = [{"step": 10, "seconds": 60.0}, {"step": 15, "validation_loss": 1.0}]
    assert contenders.updates_per_second(rows) == pytest.approx(1 / 6)
    assert contenders.updates_per_second([*rows, {"step": 30, "seconds": 64.0}]) == 5


def test_contenders_for_gpus_are_compared_only_there():
    on_cpus, on_gpus = (
        set(contenders.default_contenders(torch.device(name))) for name in ("cpu", "cuda")
    )
    assert on_gpus == set(contenders.CONTENDERS)
    assert on_gpus - on_cpus == set(contenders.FOR_GPUS)
    assert len(contenders.FOR_GPUS) == 3


def test_throughput_compares_contenders_on_the_requested_data(monkeypatch, tmp_path):
    requested = []
    monkeypatch.setattr(throughput, "compare", lambda names, task: requested.append((names, task)))
    command = ["throughput.py", "--dataset", "cifar10", "--minutes", "3", "--data-dir", "here"]
    monkeypatch.setattr(sys, "argv", [*command, "--contenders", "ours", "diffusers"])
    throughput.main()
    ((names, task),) = requested
    assert names == ["ours", "diffusers"]
    assert (task.dataset, task.minutes, task.data_dir) == ("cifar10", 3, "here")
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        throughput.main()


def test_the_parts_of_a_step_add_up_to_its_time(capsys):
    flags = [*TINY, "--max-steps", "9", "--validation", "0"]
    watch = profile_step.profile(flags, CPU)
    assert len(watch.steps) == 8  # all but the first, which has no step before it
    for times, total in zip(watch.steps, watch.totals, strict=True):
        assert sum(times.values()) == pytest.approx(total)
        assert min(times.values()) >= 0
    text = profile_step.table(watch)
    for part in ("forward", "backward", "optimizer: Muon", "data: indexing", "training step"):
        assert f"| {part} |" in text


def test_a_part_that_is_never_called_is_an_error(monkeypatch):
    monkeypatch.setattr(profile_step, "train_run", lambda *_: None)
    with pytest.raises(RuntimeError, match="never called: backward, "):
        profile_step.profile(TINY, CPU)


@pytest.fixture
def ablate(tmp_path, monkeypatch):
    """Runs ablations.py without training, and returns (training steps, seed) of each run."""
    trained = []
    items, labels = torch.zeros(100, 1, 16, 16, dtype=torch.uint8), torch.arange(100) % 10
    data = Data(items, labels, [*"0123456789"])
    reference = SimpleNamespace(train=data, classifier=SimpleNamespace(sha256="0"))
    reference.distance = lambda seed: 10.0 + 2 * seed

    def train(command, folder):
        parsed = TRAIN.parse(command)
        trained.append((parsed.max_steps, parsed.seed))
        return {"seconds": 5.0}, []

    def sampled(checkpoint, *, labels, seed, **_):
        return SimpleNamespace(items=seed), None, 0.0

    monkeypatch.setattr(ablations, "load_dataset", lambda *_, **__: data)
    monkeypatch.setattr(ablations, "reference_for", lambda *_: reference)
    monkeypatch.setattr(ablations, "floor_of", lambda *_: 2.0)
    monkeypatch.setattr(ablations, "train", train)
    monkeypatch.setattr(ablations, "sampled", sampled)

    def call(*arguments):
        command = ["ablations.py", "--output-dir", str(tmp_path), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        trained.clear()
        ablations.main()
        return list(trained)

    return call


def test_ablations_continue_where_they_stopped(ablate, tmp_path, monkeypatch):
    first = ["--images", 12800, "--only", "default", "batch 64", "--seeds"]
    assert ablate(*first, 1) == [(100, 0), (200, 0)]
    assert ablate(*first, 2) == [(100, 1), (200, 1)]
    assert ablate(*first, 2) == []
    text = (tmp_path / "ablations.md").read_text()
    assert "| batch 64 | 11.00 | 10.00, 12.00 | 5.5 | 5 |" in text
    assert "| default | 11.00 |" in text
    monkeypatch.setitem(ablations.VARIANTS, "batch 64", ["--batch-size", "50"])
    assert ablate(*first, 1) == [(256, 0)]
    assert ablate(*first, 1, "--images", 6400) == [(50, 0), (128, 0)]
    assert ablate(*first, 1, "--guidance-scale", 1.3) == [(100, 0), (256, 0)]
    assert " in 20 steps with guidance 1.3 to the " in (tmp_path / "ablations.md").read_text()
    assert ablate(*first, 1, "--flags", "--preset laptop") == [(200, 0), (256, 0)]
    monkeypatch.setattr(ablations, "RECIPE", 0)  # distances by another classifier do not compare
    assert len(ablate(*first, 1)) == 2


def test_samplers_are_compared_with_all_steps(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 30)
    words = [*TINY, "--class-conditional", "--timesteps", 12]
    path = write_weights(tmp_path / "m.safetensors", *words)
    command = ["samplers.py", "--checkpoint", path, "--num-images", 6, "--batch-size", 4]
    command += ["--samplers", "ddim", "heun", "--nfe", 4, 9, "--precision", "fp32"]
    command += ["--data-dir", data_dir, "--output-dir", tmp_path]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    samplers.main()
    head, *rows = (tmp_path / "samplers.md").read_text().strip().split("\n\n")[1].split("\n")
    assert head == "| sampler | 4 | 9 | 12 |"
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| `ddim`", "| `heun`", "| seconds"]
    assert all(np.isfinite(float(cell)) for row in rows[1:3] for cell in row.split("|")[2:4])
    assert (tmp_path / "samplers.png").stat().st_size > 5000


# --- contention.py -------------------------------------------------------------------------------


def test_busy_neighbours_end_whatever_happens():
    started = []

    def fail():
        with contention.neighbours(2) as processes:
            started.extend(processes)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [process.returncode for process in started] == [-9, -9]


@pytest.mark.parametrize(
    ("text", "speed"),
    [
        ("a, 20 steps, b\nthreads: 1 (...)\n256 images in 8.0 s, 160 network calls: x", "32 (1)"),
        ("threads: 2\nsample.py: interrupted; 64 of 256 images are in x", "16 (2)"),
        ("threads: 2\nsample.py: interrupted; 0 of 256 images are in x", "under 8 (2)"),
        ("sample.py: error", "-"),
    ],
)
def test_sampling_next_to_neighbours_is_read_from_its_output(monkeypatch, text, speed):
    monkeypatch.setattr(contention, "run_for", lambda *arguments: text)
    assert contention.sampling_speed("auto", 4) == speed


def test_guidance_is_tabulated_and_drawn_over_its_scale(monkeypatch, tmp_path):
    def evaluate(command, **_):  # exact match grows with the scale
        scale = float(command[command.index("--guidance-scale") + 1])
        figures = {"mean": scale / 10, "floor": 0.9}
        report = {"prompt": {"held_out": dict.fromkeys(guidance.NAMES, figures)}}
        Path(command[command.index("--output") + 1]).write_text(json.dumps(report))

    monkeypatch.setattr(guidance.subprocess, "run", evaluate)
    command = ["guidance.py", "--checkpoint", "model.pt", "--output-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--scales", "1", "2.5"])
    guidance.main()
    rows = (tmp_path / "guidance.md").read_text().splitlines()
    assert [row.split(" | ")[:2] for row in rows[2:]] == [
        ["| 1", "0.100"], ["| 2.5", "0.250"], ["| real images", "0.900"]
    ]  # fmt: skip
    assert (tmp_path / "guidance.png").stat().st_size > 5000


# --- few steps, large images ---------------------------------------------------------------------


def test_a_distilled_network_is_looked_up_by_the_steps_that_it_learned(monkeypatch, tmp_path):
    (tmp_path / "snapshots").mkdir()
    for steps in (8, 4):
        (tmp_path / "snapshots" / f"draws_in_{steps}.safetensors").touch()
    final = {"config": {"train": {"student_steps": 2}}}
    monkeypatch.setattr(few_steps, "load_checkpoint", lambda path: final)
    found = {calls: few_steps.of_tuned("distill", tmp_path, calls) for calls in (1, 2, 4, 8)}
    assert found[1] is None
    names = [found[n].checkpoint.stem for n in (2, 4, 8)]
    assert names == ["model_final", "draws_in_4", "draws_in_8"]
    cell = few_steps.of_tuned("consistency", tmp_path, 2)
    assert cell.flags == ["--steps", "2"]


def test_only_measures_that_a_report_lacks_are_made():
    images = SimpleNamespace(dataset=None, two_sample=[2])
    assert few_steps.missing(images, 2, {}) == ["classifier", "two_sample"]
    assert few_steps.missing(images, 2, {"classifier": {}}) == ["two_sample"]
    assert few_steps.missing(images, 1, {"classifier": {}}) == []
    points = SimpleNamespace(dataset="moons", two_sample=[2])
    assert few_steps.missing(points, 2, {}) == ["energy_distance"]


def test_flags_that_guide_the_teacher_of_few_steps():
    args = SimpleNamespace(guidance=1.5, guide=None)
    assert few_steps.guidance(args) == ["--guidance-scale", "1.5"]
    args.guide = Path("/weak.pt")
    found = few_steps.guidance(args, "--teacher-guidance", "--teacher-guide")
    assert found == ["--teacher-guidance", "1.5", "--teacher-guide", "/weak.pt"]


def test_tables_of_few_steps_and_large_images():
    fid = {"mean": 2.0, "ratio": 4.0, "values": [1.5, 2.5], "floor_values": [0.5], "floor": 0.5}
    close = {"precision": {"mean": 0.9}, "recall": {"mean": 0.8}}
    report = {"classifier": {"classifier_fid": fid, **close}, "two_sample": {"auc": {"mean": 0.7}}}
    row = {"way": "teacher", "calls": 2, "flags": ["--sampler", "ddim"], "seconds": 0.1234}
    other = {**row, "way": "distill", "calls": 1, "report": {"classifier": report["classifier"]}}
    lines = few_steps.table([{**row, "report": report}, other]).splitlines()
    assert lines[2] == "| 1 | distill | 2 (1.5 to 2.5) | 4.00 |  | 0.90, 0.80 | 0.123 |"
    assert lines[3].startswith("| 2 | teacher (sampler ddim) | 2 (1.5 to 2.5) | 4.00 | 0.7")
    points = few_steps.table([{**row, "report": {"energy_distance": fid}}]).splitlines()
    assert points[2] == "| 2 | teacher (sampler ddim) | 2 (1.5 to 2.5) | 4.00 |  |  | 0.123 |"
    assert {line.count("|") for line in lines + points} == {8}

    share = {"mean": 0.5, "floor": 1.0, "values": [0.5], "floor_values": [1.0]}
    keys = ("attribute_accuracy", "exact_match", "precision", "recall")
    row = {"way": "pixels", "reader_fid": fid, **dict.fromkeys(keys, share)}
    stages = {"model": {"images_per_second": 30.2, "steps": 1000, "seconds": 9}}
    drawn = {"stages": stages, "parameters": 1234, "flops": 5e9, "seconds": 0.5, "memory": 900}
    lines = large_images.table([row | drawn, {**row, "way": "bicubic"}]).splitlines()
    assert lines[2].startswith("| pixels | 1,234 | 5.00 | 30 | 1,000 | 2.00 (1.50 to 2.50) | 0.50")
    assert {line.count("|") for line in lines} == {13}


def test_each_way_to_draw_large_images_has_flags_that_train_py_takes():
    for stages in large_images.WAYS.values():
        assert sum(stage.share for stage in stages.values()) == pytest.approx(1)
        for flags, _ in stages.values():
            TRAIN.parse(flags.format(size=128, autoencoder="ae", small="s").split())
    for flags in few_steps.WAYS.values():
        TRAIN.parse([*flags.split(), "--teacher", "model.pt"])
