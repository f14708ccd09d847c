"""The benchmarks that compare, record and explain."""

import json
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import (
    ablations,
    contenders,
    contest,
    profile_step,
    rates,
    record,
    samplers,
    throughput,
    time_to_quality,
)
from benchmarks.contenders import Task
from conftest import TINY
from evaluation import classifier
from training.config import PRESETS

CPU = torch.device("cpu")
GREY = 200  # of all pixels of a data set whose perfect denoiser is known
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
    contender, shape = kind((1, 12, 12), CPU, dim=8), (1, 12, 12)  # one of the two pads
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
    """0, with a gradient for one of the network's weights."""
    return 0 * next(contender.network.parameters()).sum()


FOREIGN = {
    "diffusers": diffusers,
    "diffusers, bf16": partial(diffusers, precision="bf16"),
    "denoising-diffusion-pytorch": partial(denoising_diffusion, contenders.DenoisingDiffusion),
    "README": partial(denoising_diffusion, contenders.DenoisingDiffusionReadme),
    "smalldiffusion": small_diffusion,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_perfect_network_has_no_loss_and_draws_the_data(name):
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
    del contender.network.forward  # the oracle's
    before = [p.clone() for p in contender.network.parameters()]
    images = torch.randint(0, 256, (contender.batch, *shape), dtype=torch.uint8)
    assert contender.update(images) > 0
    after = contender.network.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Fake:
    """A contender whose updates and images take a known time, by a clock of its own."""

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
    """Lets contenders.py read Fake's clock."""
    monkeypatch.setattr(contenders, "now", lambda device: Fake.time)


def test_the_clock_stands_still_while_a_contender_draws(tmp_path, clock):
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


def test_what_is_drawn_changes_no_random_number_of_the_training():
    fake = Fake((1, 2, 2), CPU)
    fake.draw = lambda count: torch.randint(0, 256, (count, 1, 2, 2), dtype=torch.uint8)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = contenders.drawn(fake, 70, seed=5)
    torch.testing.assert_close(torch.rand(3), expected)
    assert torch.equal(contenders.drawn(fake, 70, seed=5), first)
    assert not torch.equal(contenders.drawn(fake, 70, seed=6), first)


def test_batches_visit_every_item_once_an_epoch():
    items = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    batches = contenders.shuffled(items, 4, seed=0, flip=False)
    seen = torch.cat([next(batches) for _ in range(5)]).flatten()
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert next(contenders.shuffled(items, 25, seed=0, flip=True)).shape == (25, 1, 1, 1)


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys, clock):
    """Runs time_to_quality.py on digits, with contenders in this very process."""
    monkeypatch.setattr(classifier, "UPDATES", 30)
    monkeypatch.setitem(
        time_to_quality.CONTENDERS, "ours", partial(contenders.ours, flags=TINY[2:])
    )
    for name in ("diffusers", "smalldiffusion"):
        fake = partial(contenders.foreign, Fake, grey=1)
        monkeypatch.setitem(time_to_quality.CONTENDERS, name, fake)

    def run(command):
        return SimpleNamespace(returncode=contest.work(*command[-2:]))

    monkeypatch.setattr(contest, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(contest, "matmul_rate", lambda precision, device: 1e11)

    def call(*arguments):
        command = ["time_to_quality.py", "--dataset", "digits", "--samples", "40"]
        command += ["--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [*command, *map(str, arguments)])
        capsys.readouterr()
        code = time_to_quality.main()
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return call


def test_ours_and_another_are_trained_measured_and_shown(compare, tmp_path):
    assert compare("--minutes", 0.05, "--only", "ours", "diffusers").code == 0
    folder = tmp_path / "out"
    rows = [
        json.loads(line) for line in (folder / "time_to_quality.jsonl").read_text().splitlines()
    ]
    assert [row["contender"] for row in rows] == ["ours", "diffusers"]
    for row in rows:
        with np.load(folder / row["file"]) as file:
            assert file["arr_0"].shape == (40, 8, 8, 1)
            assert file["arr_0"].dtype == np.uint8
        assert row["fid"] > row["floor"] > 0
        assert row["curve"][-1]["fid"] == pytest.approx(row["fid"])  # 40 images are fewer than 250
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


def test_it_goes_on_where_it_was(compare, tmp_path, monkeypatch):
    log = tmp_path / "out" / "time_to_quality.jsonl"
    arguments = ["--minutes", 0.002, "--only"]
    assert compare(*arguments, "diffusers").code == 0
    again = compare(*arguments, "diffusers", "smalldiffusion", "--seeds", 2)
    assert again.code == 0
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    done = [(row["contender"], row["seed"]) for row in rows]
    assert done == [
        ("diffusers", 0),
        ("smalldiffusion", 0),
        ("diffusers", 1),
        ("smalldiffusion", 1),
    ]
    whole = compare(*arguments, "diffusers")  # nothing to train, and the others are shown too
    assert len(log.read_text().splitlines()) == 4
    assert "| smalldiffusion | 2 |" in whole.out
    monkeypatch.setitem(PRESETS, "fast", {"channels": 8})  # rows of other presets do not count
    assert compare(*arguments, "diffusers").code == 0
    assert len(log.read_text().splitlines()) == 5


def test_a_package_that_is_missing_is_named_and_the_rest_goes_on(compare, monkeypatch):
    missing = partial(contenders.foreign, contenders.Diffusers)
    monkeypatch.setitem(time_to_quality.CONTENDERS, "diffusers", missing)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result = compare("--minutes", 0.002, "--only", "diffusers", "smalldiffusion")
    assert result.code == 1
    assert "diffusers needs a package: pip install diffusers" in result.err
    assert "left out: diffusers, seed 0" in result.err
    assert "| smalldiffusion | 2 |" in result.out


def test_speeds_of_contenders_are_compared(compare, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(contest, "matmul_rate", rates.matmul_rate)  # of this machine
    throughput.compare(["ours", "diffusers"], task_of(tmp_path, minutes=0.05, samples=1))
    _, head, _, ours, other = capsys.readouterr().out.strip().rsplit("\n", 4)
    assert [head.split(" | ").index(name) for name in ("images/s", "NFE")] == [4, 8]
    cells = ours.split(" | ")
    assert cells[0] == "| ours"
    assert float(cells[4].replace(",", "")) > 100  # images/s
    assert 0 < float(cells[6]) < 1
    assert other.startswith("| diffusers | 2 | fp32 | 100 | 3,333 | 0.000 | 0.00 | none | 1 | 5")


def test_speed_is_that_after_the_first_row():
    """Which has the compiling on its clock."""
    rows = [{"step": 10, "seconds": 60.0}, {"step": 15, "validation_loss": 1.0}]
    assert contenders.updates_per_second(rows) == pytest.approx(1 / 6)
    assert contenders.updates_per_second([*rows, {"step": 30, "seconds": 64.0}]) == 5


def test_those_for_gpus_are_left_out_elsewhere():
    everywhere, on_gpus = (contenders.usual(torch.device(name)) for name in ("cpu", "cuda"))
    assert set(on_gpus) == set(contenders.CONTENDERS)
    assert set(on_gpus) - set(everywhere) == set(contenders.FOR_GPUS)
    assert len(contenders.FOR_GPUS) == 3


def test_speeds_are_of_the_data_that_is_asked_for(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(throughput, "compare", lambda names, task: asked.append((names, task)))
    command = ["throughput.py", "--dataset", "cifar10", "--minutes", "3", "--data-dir", "here"]
    monkeypatch.setattr(sys, "argv", [*command, "--contenders", "ours", "diffusers"])
    throughput.main()
    ((names, task),) = asked
    assert names == ["ours", "diffusers"]
    assert (task.dataset, task.minutes, task.data_dir) == ("cifar10", 3, "here")
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        throughput.main()


def test_the_page_of_results_is_that_of_its_rows():
    rows = json.loads(record.ROWS.read_text())
    assert record.PAGE.read_text() == record.page(rows)
    for row in rows:
        recipe = record.RECIPES[row["recipe"]]
        assert row["train"] == record.train_command(recipe)
        assert recipe.draw in row["draw"]
        assert (record.PAGE.parent / row["grid"]).is_file()


def test_a_recipe_in_parts_is_resumed_until_it_is_done(tmp_path, capsys, monkeypatch):
    made = []

    class Process:
        """One that does not end by itself the first two times."""

        def __init__(self, command, **_):
            self.returncode, self.waits = None, []
            made.append((command, self.waits))

        def wait(self, timeout=None):
            self.waits.append(timeout)
            if timeout and len(made) < 3:
                raise subprocess.TimeoutExpired("train.py", timeout)
            self.returncode = 0

        def terminate(self):
            self.waits.append("terminated")

    monkeypatch.setattr(subprocess, "Popen", Process)
    record.train_in_parts(["--channels", "8"], tmp_path, minutes=10)
    words = ["--output-dir", str(tmp_path)]
    assert made == [
        (
            [sys.executable, "train.py", "--channels", "8", "--overwrite", *words],
            [600, "terminated", None],
        ),
        ([sys.executable, "train.py", "--resume", *words], [600, "terminated", None]),
        ([sys.executable, "train.py", "--resume", *words], [600]),
    ]


def test_a_recipe_that_fails_is_no_record(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        record.train_in_parts(["--channels", "0"], tmp_path, None)


def test_recipes_for_a_gpu_say_how_they_are_resumed():
    recipe = record.RECIPES["cifar10, 40 minutes on a GPU, in parts of 10"]
    first, second = record.train_command(recipe).splitlines()
    assert first.startswith("timeout 10m python train.py --dataset cifar10 --preset quality")
    assert second.startswith("timeout 10m python train.py --resume")


def test_the_parts_of_a_step_are_its_whole(capsys):
    flags = [*TINY, "--max-steps", "9", "--validation", "0"]
    watch = profile_step.profile(flags, CPU)
    assert len(watch.updates) == 8  # the first has none before it
    for times, whole in zip(watch.updates, watch.wholes, strict=True):
        assert sum(times.values()) == pytest.approx(whole)
        assert min(times.values()) >= 0
    text = profile_step.table(watch)
    for part in ("forward", "backward", "optimizer: Muon", "moving average", "an update"):
        assert f"| {part} |" in text


def test_a_part_that_is_no_longer_there_is_an_error(monkeypatch):
    unused = [(profile_step.trainer, "load_shards")]
    monkeypatch.setitem(profile_step.PARTS, "shards", unused)
    with pytest.raises(RuntimeError, match="never called: shards"):
        profile_step.profile([*TINY, "--max-steps", "2", "--validation", "0"], CPU)


@pytest.fixture
def ablate(tmp_path, monkeypatch):
    """Runs ablations.py with trainings that are not made, and returns which would have been."""
    trained = []

    def run(flags, args, measured, sampling):
        trained.append((flags.batch_size, flags.seed))
        assert flags.words[-2:] == ["--max-steps", str(args.images // flags.batch_size)]
        return {"fid": 10.0 + 2 * flags.seed, "seconds": 5.0}

    measured = SimpleNamespace(judge="0", floor=lambda count: 2.0)
    monkeypatch.setattr(ablations, "held_out_by", lambda flags: None)
    monkeypatch.setattr(ablations, "measured_by", lambda *_: measured)
    monkeypatch.setattr(ablations, "run", run)

    def call(*arguments):
        command = ["ablations.py", "--output-dir", str(tmp_path), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        trained.clear()
        ablations.main()
        return list(trained)

    return call


def test_ablations_go_on_where_they_were(ablate, tmp_path, monkeypatch):
    first = ["--only", "default", "batch 64", "--seeds"]
    assert ablate(*first, 1) == [(128, 0), (64, 0)]
    assert ablate(*first, 2) == [(128, 1), (64, 1)]
    assert ablate(*first, 2) == []
    text = (tmp_path / "ablations.md").read_text()
    assert "| batch 64 | 11.00 | 10.00, 12.00 | 5.5 | 5 |" in text
    assert "| default | 11.00 |" in text
    monkeypatch.setitem(ablations.VARIANTS, "batch 64", ["--batch-size", "96"])
    assert ablate(*first, 1) == [(96, 0)]
    assert ablate(*first, 1, "--images", 1000) == [(128, 0), (96, 0)]
    assert ablate(*first, 1, "--guidance-scale", 1.3) == [(128, 0), (96, 0)]
    assert " in 20 steps, guidance 1.3, to the " in (tmp_path / "ablations.md").read_text()
    assert ablate(*first, 1, "--flags", "--preset laptop") == [(64, 0), (96, 0)]
    monkeypatch.setattr(ablations, "RECIPE", 0)  # figures of another classifier do not compare
    assert len(ablate(*first, 1)) == 2


def test_samplers_are_compared_with_all_steps(conditional, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "UPDATES", 30)
    command = ["samplers.py", "--checkpoint", conditional, "--num-images", 12, "--batch-size", 8]
    command += ["--samplers", "ddim", "heun", "--nfe", 4, 9, "--precision", "fp32"]
    command += ["--data-dir", tmp_path / "data", "--output-dir", tmp_path]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    samplers.main()
    head, *rows = (tmp_path / "samplers.md").read_text().strip().split("\n\n")[1].split("\n")
    assert head == "| sampler | 4 | 9 | 100 |"
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| `ddim`", "| `heun`", "| seconds"]
    assert all(np.isfinite(float(cell)) for row in rows[1:3] for cell in row.split("|")[2:4])
    assert (tmp_path / "samplers.png").stat().st_size > 5000
