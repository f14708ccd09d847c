"""Tuning: consistency models and progressive distillation."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import train
from checkpoints.checkpoint import load_checkpoint, restore, save_checkpoint
from cli import process
from cli.training import TRAIN
from conditions import Condition, label_condition
from conftest import ROOT
from dataset import registry
from dataset.registry import load_dataset
from dataset.types import Data
from diffusion import GaussianDiffusion
from objectives import (
    PREDICTIONS,
    earlier_ratio,
    has_boundary,
    pseudo_huber,
    starts_from_noise,
)
from runs import assert_same_training
from samplers import SAMPLERS, generate
from sampling.plan import default_sampler
from training import tuning
from training.config import make_config, with_defaults
from training.objective import NoisyBatch
from training.pairs import load_pairs, with_noise
from training.trainer import Trainer
from training.tuning import ConsistencyObjective, DistillationObjective, MeanFlowObjective
from utils import NoisePerImage

T = 64
FEW = ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--save-interval", "0"]
FEW += ["--sample-interval", "0", "--snapshots", "0"]


def config_of(tune: str, **train) -> dict:
    common = {"seed": 0, "timestep_sampling": "uniform", "noise_assignment": "independent"}
    common |= {"label_dropout": 0.1, "teacher_guidance": 1.0, "teacher_steps": 8}
    common |= {"teacher": None}
    common |= {"stage_steps": 10, "tune": tune}
    model = {"name": "mlp", "dim": 2, "channels": 8}
    return {"train": {**common, **train}, "data": {"flip": False}, "model": model}


def process_of(prediction: str = "flow", **more) -> GaussianDiffusion:
    return GaussianDiffusion("cosine", T, prediction, clip=False, **more)


def gaussian_step(x: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor, std: float) -> Tensor:
    """Where the probability-flow ODE leads from x, if the data are N(mean, std^2)."""
    return mean + std * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2).sqrt()


class Solution(nn.Module):
    """A network that implies a given x_0 as a function of (x, alpha, sigma)."""

    def __init__(self, diffusion: GaussianDiffusion, x_0):
        super().__init__()
        self.diffusion, self.x_0 = diffusion, x_0

    def forward(self, x: Tensor, t: Tensor, condition=None) -> Tensor:
        d = self.diffusion
        alpha, sigma = d.alpha[t][:, None].double(), d.sigma[t][:, None].double()
        x = x.double() / d.scale_in[t][:, None].double()
        x_0 = self.x_0(x, alpha, sigma)
        return d.prediction.target(x_0, (x - alpha * x_0) / sigma, alpha, sigma)


# --- consistency tuning --------------------------------------------------------------------------


def test_which_predictions_can_be_tuned():
    assert {name for name in PREDICTIONS if has_boundary(name)} == {"eps", "flow", "v", "edm"}
    assert {name for name in PREDICTIONS if not starts_from_noise(name)} == {"eps"}


def test_stages_compare_with_clean_data_first_and_with_the_neighbour_at_last():
    diffusion = process_of()
    objective = ConsistencyObjective(diffusion, config_of("consistency"), torch.device("cpu"))
    t = torch.arange(T)
    stages = [objective.earlier(t, stage) for stage in range(12)]
    low = diffusion.ratio < 1
    assert (stages[0][low] == -1).all()
    for before, after in pairwise(stages):
        assert (after >= before).all()
    assert torch.equal(stages[-1], t - 1)
    assert torch.equal(objective.earlier(t, 5000), t - 1)
    ratio = torch.tensor([0.5, 2.0, 40.0])
    n = 1 + 8 / (1 + ratio.exp())
    assert_close(earlier_ratio(ratio, 3), ratio * (1 - n / 16))


@pytest.mark.parametrize("prediction", ["flow", "v", "edm"])
@pytest.mark.parametrize("stage", [0, 3, 11])
def test_the_loss_is_zero_at_the_exact_function_for_every_pair(prediction, stage):
    """All data are one point, so the way from x_t to it is that of the ODE."""
    diffusion, mean = process_of(prediction).double(), torch.tensor([0.3, -0.7]).double()
    objective = ConsistencyObjective(
        diffusion, config_of("consistency", stage_steps=1), torch.device("cpu")
    )
    t = torch.arange(T)
    x_0, noise = mean.expand(T, 2), torch.randn(T, 2, dtype=torch.float64)
    batch = objective.completed(NoisyBatch(x_0, None, t, noise), stage)
    exact = Solution(diffusion, lambda x, alpha, sigma: mean.expand_as(x))
    assert objective(exact, batch) < 1e-5
    wrong = Solution(diffusion, lambda x, alpha, sigma: mean + 0.1 * x)
    assert objective(wrong, batch) > 1e-3


def test_the_loss_of_gaussian_data_is_zero_at_the_exact_function_and_teacher():
    """Between neighbours of a fine schedule, a step of DDIM is that of the ODE."""
    torch.manual_seed(0)
    diffusion = GaussianDiffusion("cosine", 1000, "flow", clip=False).double()
    mean, std = torch.tensor([0.5, -0.5]).double(), 0.4
    config = config_of("consistency", teacher="of the test", stage_steps=1)
    objective = ConsistencyObjective(diffusion, config, torch.device("cpu"))
    objective.teacher = Solution(
        diffusion,
        lambda x, a, s: mean + std**2 * a * (x - a * mean) / (a**2 * std**2 + s**2),
    )
    t = torch.arange(1000)
    x_0, noise = mean + std * torch.randn(1000, 2).double(), torch.randn(1000, 2).double()
    batch = objective.completed(NoisyBatch(x_0, None, t, noise), 15)
    exact = Solution(diffusion, lambda x, a, s: gaussian_step(x, a, s, mean, std))
    assert objective(exact, batch) < 5e-3
    assert objective(objective.teacher, batch) > 0.1  # a denoiser is no such function


def test_both_predictions_have_the_same_dropout():
    diffusion = process_of().double()
    objective = ConsistencyObjective(
        diffusion, config_of("consistency", stage_steps=1), torch.device("cpu")
    )
    x_0 = torch.tensor([0.3, -0.7]).double().expand(T, 2)
    noisy = NoisyBatch(x_0, None, torch.arange(T), torch.randn(T, 2, dtype=torch.float64))
    batch = objective.completed(noisy, 11)
    later = batch.r >= 0
    batch = batch.rows(later)
    random = Solution(diffusion, lambda x, a, s: torch.rand(len(x), 2, dtype=torch.float64))
    assert objective(random, batch) < 1e-5


class Affine(nn.Module):
    """out = a_t x + b_t: what the consistency function of Gaussian data takes, for flow."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(T, 1)), nn.Parameter(torch.zeros(T, 2))

    def forward(self, x: Tensor, t: Tensor, condition=None) -> Tensor:
        return self.a[t] * x + self.b[t]


def test_tuning_converges_to_the_consistency_function_of_gaussian_data():
    torch.manual_seed(0)
    diffusion, mean, std = process_of(), torch.tensor([0.5, -0.5]), 0.4
    objective = ConsistencyObjective(
        diffusion, config_of("consistency", stage_steps=150), torch.device("cpu")
    )
    model, steps = Affine(), 1200
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.9, 0.99))
    for step in range(steps):
        x_0 = mean + std * torch.randn(256, 2)
        batch = NoisyBatch(x_0, None, torch.randint(T, (256,)), torch.randn(256, 2))
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        objective(model, objective.completed(batch, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    alpha, sigma = diffusion.alpha[-1], diffusion.sigma[-1]
    x = alpha * mean + (alpha**2 * std**2 + sigma**2).sqrt() * torch.randn(1000, 2)
    level = diffusion.levels()[0]
    x_0, _ = diffusion.denoiser(model)(x, level)
    expected = gaussian_step(x, alpha, sigma, mean, std)
    assert (x_0 - expected).square().mean().sqrt() < 0.15 * std
    assert abs(x_0.std(dim=0).mean() - std) < 0.06  # a denoiser's single step gives 0


# --- mean flows ----------------------------------------------------------------------------------

MEAN, STD = torch.tensor([0.5, -0.5]).double(), 0.4  # of Gaussian data


def line(diffusion: GaussianDiffusion, t: Tensor) -> Tensor:
    """The time of flow matching (B, 1) at real timesteps t (B,), between the rows of the table."""
    table = (diffusion.sigma / (diffusion.alpha + diffusion.sigma)).double()
    low = t.long().clamp(0, len(table) - 2)
    return torch.lerp(table[low], table[low + 1], t.double() - low)[:, None]


def spread(time: Tensor) -> Tensor:
    """The standard deviation of (1 - time) x_0 + time noise."""
    return ((1 - time) ** 2 * STD**2 + time**2).sqrt()


class AverageVelocity(nn.Module):
    """The average velocity of Gaussian data in closed form: their flow is affine."""

    average_velocity = True

    def __init__(self, diffusion: GaussianDiffusion):
        super().__init__()
        self.diffusion = diffusion

    def forward(self, x: Tensor, t: Tensor, condition) -> Tensor:
        now = line(self.diffusion, t)
        z = x * (now**2 + (1 - now) ** 2).sqrt()  # the schedule preserves variance
        span = condition.span[:, None]
        then = now - span
        centred = z - (1 - now) * MEAN
        arrived = (1 - then) * MEAN + spread(then) / spread(now) * centred
        velocity = (now - (1 - now) * STD**2) / spread(now) ** 2 * centred - MEAN
        return torch.where(span > 0, (z - arrived) / torch.where(span > 0, span, 1), velocity)


def mean_flow(teacher: bool = True) -> MeanFlowObjective:
    diffusion = GaussianDiffusion("cosine", 1000, "flow", clip=False).double()
    config = config_of("meanflow", teacher="of the test" if teacher else None)
    config["model"]["average_velocity"] = True
    objective = MeanFlowObjective(diffusion, config, torch.device("cpu"))
    objective.teacher = Solution(
        diffusion,
        lambda x, a, s: MEAN + STD**2 * a * (x - a * MEAN) / (a**2 * STD**2 + s**2),
    )
    return objective


def test_the_derivative_along_the_trajectory_is_that_of_the_closed_form():
    """Against finite differences of the average velocity, with r fixed."""
    objective = mean_flow()
    diffusion, exact = objective.diffusion, AverageVelocity(objective.diffusion)
    t = torch.arange(20, 980)
    x_t = torch.randn(len(t), 2, dtype=torch.float64)
    span = 0.7 * line(diffusion, t)[:, 0]
    velocity = exact(x_t, t, Condition(span=torch.zeros_like(span)))
    found = objective.derivative(exact, x_t, Condition(span=span), t, velocity)

    def average(step: float) -> Tensor:
        """The average to the same r, from a timestep later, where the trajectory is then."""
        later = t + step
        passed = line(diffusion, later) - line(diffusion, t)
        length = (line(diffusion, t) ** 2 + (1 - line(diffusion, t)) ** 2).sqrt()
        z = x_t * length + passed * velocity
        length = (line(diffusion, later) ** 2 + (1 - line(diffusion, later)) ** 2).sqrt()
        return exact(z / length, later, Condition(span=span + passed[:, 0]))

    expected = (average(1e-3) - average(0)) / (line(diffusion, t + 1e-3) - line(diffusion, t))
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_the_loss_of_gaussian_data_is_zero_at_the_exact_average_velocity():
    torch.manual_seed(0)
    objective = mean_flow()
    t = torch.arange(5, 1000)
    x_0 = MEAN + STD * torch.randn(len(t), 2, dtype=torch.float64)
    noisy = NoisyBatch(x_0, None, t, torch.randn(len(t), 2, dtype=torch.float64))
    batch = objective.completed(noisy, 0)
    assert (batch.r <= t).all()
    assert 0.15 < (batch.r == t).double().mean() < 0.35
    exact = AverageVelocity(objective.diffusion)
    assert objective(exact, batch) < 0.01

    def instantaneous(x, t, condition):
        return exact(x, t, Condition(span=torch.zeros_like(condition.span)))

    assert objective(instantaneous, batch) > 0.1


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_sampler_of_mean_flows_is_exact_in_any_number_of_steps(steps):
    diffusion = GaussianDiffusion("cosine", 1000, "flow", clip=False).double()
    denoise = diffusion.denoiser(AverageVelocity(diffusion))
    levels = diffusion.levels(steps)
    x = torch.randn(50, 2, dtype=torch.float64)
    *_, x_0 = SAMPLERS["meanflow"](denoise, x, levels, torch.randn_like)
    alpha, sigma = torch.tensor([levels[0].alpha]), torch.tensor([levels[0].sigma])
    assert_close(
        x_0, gaussian_step(x, alpha.double(), sigma.double(), MEAN, STD), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("level", [0, 300, 999])
def test_a_mean_flow_leads_to_the_end_of_the_trajectory_from_every_level(level):
    diffusion = GaussianDiffusion("cosine", 1000, "flow", clip=False).double()
    denoise, level = diffusion.denoiser(AverageVelocity(diffusion)), diffusion._levels[level]
    x = torch.randn(50, 2, dtype=torch.float64)
    alpha, sigma = (torch.tensor([value]).double() for value in (level.alpha, level.sigma))
    x_0, eps = denoise(x, level)
    assert_close(x_0, gaussian_step(x, alpha, sigma, MEAN, STD), atol=1e-5, rtol=0)
    assert_close(level.alpha * x_0 + level.sigma * eps, x)


def test_mean_flows_draw_images_with_fresh_noise_and_points_without():
    images, points = {"image_size": 8, "image_channels": 1}, {"dim": 2}
    for data, expected in [(images, "consistency"), (points, "meanflow")]:
        for tune, sampler in [("meanflow", expected), ("consistency", "consistency")]:
            assert default_sampler({"data": data, "train": {"tune": tune}}) == sampler


def test_guidance_by_a_teacher_shifts_where_the_way_leads():
    """With one class, whose data are a point, and another for no class, all is known."""
    diffusion = process_of().double()
    cond, uncond = torch.tensor([0.4, 0.2]).double(), torch.tensor([0.1, 0.0]).double()

    def point(condition):
        return torch.where((condition.label < 0)[:, None], uncond, cond)

    class Teacher(nn.Module):
        def forward(self, x, t, condition):
            exact = Solution(diffusion, lambda x, alpha, sigma: point(condition))
            return exact(x, t)

    config = config_of("consistency", teacher_guidance=3.0, teacher="of the test")
    objective = ConsistencyObjective(diffusion, config, torch.device("cpu"))
    assert objective.label_dropout == 0
    objective.teacher = Teacher()
    count = 50
    condition = label_condition(torch.zeros(count, dtype=torch.int64))
    t, noise = torch.randint(T, (count,)), torch.randn(count, 2, dtype=torch.float64)
    guided = uncond + 3 * (cond - uncond)
    exact = Solution(diffusion, lambda x, alpha, sigma: guided.expand_as(x))
    for stage in (0, 10):
        batch = objective.completed(NoisyBatch(cond.expand(count, 2), condition, t, noise), stage)
        assert objective(exact, batch) < 1e-5


def test_pseudo_huber_is_the_size_of_large_errors_and_smooth_at_zero():
    error = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    loss = pseudo_huber(error)
    assert_close(loss, torch.tensor([12.5**0.5, 0.0]), atol=1e-3, rtol=0)
    loss.sum().backward()
    assert error.grad.isfinite().all()


def test_the_sampler_adds_fresh_noise_of_each_level():
    """Of a network that knows its point, samples are that point after any number of steps."""
    diffusion, mean = process_of(), torch.tensor([0.3, -0.7])
    exact = Solution(diffusion, lambda x, alpha, sigma: mean.double().expand_as(x))
    denoise = diffusion.denoiser(exact)
    for steps in (1, 2, 5):
        levels, seen = diffusion.levels(steps), []
        noise = torch.randn(2000, 2)
        for x in generate(denoise, noise, levels, torch.randn_like, SAMPLERS["consistency"]):
            seen.append(x)
        assert denoise.calls == steps
        denoise.calls = 0
        assert_close(seen[-1], mean.expand(2000, 2), atol=1e-4, rtol=0)
        for level, x in zip(levels[:-1], seen[:-1], strict=True):
            assert abs(x.std(dim=0).mean() - level.sigma) < 0.05
            assert (
                steps == 1
                or not torch.equal(x, level.alpha * mean + level.sigma * noise)
                or (level is levels[0])
            )


# --- progressive distillation --------------------------------------------------------------------


def test_the_target_is_two_steps_of_ddim_by_the_teacher():
    torch.manual_seed(0)
    diffusion = process_of("v").double()
    objective = DistillationObjective(diffusion, config_of("distill"), torch.device("cpu"))
    mean = torch.tensor([0.3, -0.2]).double()
    teacher = Solution(
        diffusion, lambda x, a, s: mean + 0.09 * a * (x - a * mean) / (0.09 * a**2 + s**2)
    )
    objective.teacher = teacher
    levels = diffusion.levels(8)
    denoise = diffusion.denoiser(teacher)
    for first in (0, 2, 4, 6):
        t = torch.full((5,), levels[first].t)
        x_t = torch.randn(5, 2, dtype=torch.float64)
        *_, x = SAMPLERS["ddim"](denoise, x_t, levels[first : first + 3], None)
        x_0, eps = objective.implied(x_t, None, t)
        end = levels[first + 2]
        assert_close(end.alpha * x_0 + end.sigma * eps, x, atol=1e-6, rtol=0)
        student = Solution(diffusion, lambda x, a, s, goal=x_0: goal)
        batch = NoisyBatch(x_0, None, t, eps)
        assert objective(student, batch) < 1e-10


def test_training_visits_the_steps_of_the_student_and_halves_them():
    objective = DistillationObjective(process_of(), config_of("distill"), torch.device("cpu"))
    assert [objective.steps_of(step) for step in (0, 9, 10, 20, 30, 99)] == [4, 4, 2, 1, 1, 1]
    assert [s for s in range(1, 60) if objective.has_new_teacher(s)] == [10, 20]
    for done, count in [(0, 4), (10, 4), (11, 2), (20, 2), (99, 1)]:
        objective.begin(done)
        assert objective.train["student_steps"] == count
    t = torch.arange(T)
    noisy = NoisyBatch(torch.zeros(T, 2), None, t, torch.zeros(T, 2))
    for step, count in [(0, 4), (10, 2), (20, 1)]:
        batch = objective.batch(torch.zeros(T, 2), None, step)
        visited = [level.t for level in process_of().levels(count)[:-1]]
        assert set(batch.t.tolist()) <= set(visited)
        assert objective.train["student_steps"] == count
        moved = objective.completed(noisy, step).t
        assert sorted(moved.unique().tolist()) == sorted(visited)
        assert (moved.bincount()[visited] == T // count).all()


def test_a_teacher_of_two_steps_is_guided_to_the_end(monkeypatch):
    config = config_of("distill", teacher_steps=2, teacher_guidance=3.0)
    objective = DistillationObjective(process_of(), config, torch.device("cpu"))
    used = []

    def recorded(diffusion, model, x, condition, t, scale, guide):
        used.append(scale)
        return torch.zeros_like(x)

    monkeypatch.setattr(tuning, "with_guidance", recorded)
    for step in (0, 9, 10, 30):
        objective.batch(torch.zeros(4, 2), None, step)
        objective.implied(torch.randn(4, 2), None, torch.full((4,), T - 1))
    assert used == [3.0] * 8


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A class-conditional run on digits."""
    folder = tmp_path_factory.mktemp("teacher")
    words = ["--dataset", "digits", "--channels", "8", "--image-size", "8", "--max-steps", "12"]
    words += ["--model", "dit", "--blocks", "1", "--patch-size", "4"]
    words += [*FEW, "--batch-size", "16", "--output-dir", str(folder)]
    assert process.run(train.main, TRAIN.parse(words)) == 0
    return folder / "model_final.pt"


TUNINGS = {
    "consistency": ["--stage-steps", "3", "--teacher-guidance", "1.5"],
    "distill": ["--stage-steps", "3", "--teacher-steps", "8", "--teacher-guidance", "1.5"],
    "meanflow": ["--teacher-guidance", "1.5"],
}


@pytest.mark.parametrize("tune", TUNINGS)
def test_a_tuned_run_starts_from_its_teacher_resumes_to_the_bit_and_draws(script, teacher, tune):
    words = ["--tune", tune, "--teacher", teacher, *TUNINGS[tune], *FEW]
    words += ["--max-steps", 8, "--save-every-steps", 4]
    straight = script("train", *words, "--output-dir", "straight")
    assert straight.code == 0, straight.err
    shutil.copytree("straight", "parts")
    (Path("parts") / "model_final.pt").unlink()
    saved = load_checkpoint("parts/checkpoints/model_step_00000004.pt")
    assert saved["config"]["train"]["momentum_warmup"] == 300  # not the teacher's
    average = {"average_velocity": tune == "meanflow"}
    assert saved["config"]["model"] == load_checkpoint(teacher)["config"]["model"] | average
    assert saved["teacher"].keys() == saved["model"].keys()
    resumed = script("train", "--resume", "parts/checkpoints/model_step_00000004.pt", *FEW)
    assert resumed.code == 0, resumed.err
    a, b = load_checkpoint("straight/model_final.pt"), load_checkpoint("parts/model_final.pt")
    assert_same_training(a, b)
    for name, weight in a["teacher"].items():
        assert torch.equal(weight, b["teacher"][name])
    drawn = script("sample", "--checkpoint", "straight/model_final.pt", "--num-images", "4")
    assert drawn.code == 0, drawn.err
    expected = {"consistency": "consistency, 2 steps", "distill": "ddim, 1 step"}
    expected |= {"meanflow": "consistency, 2 steps"}
    assert expected[tune] in drawn.out
    if tune == "meanflow":
        for flags in (["--sampler", "meanflow"], ["--interpolate"]):  # without fresh noise
            named = ["--class-id", 3] if "--interpolate" in flags else []
            drawn = script("sample", "--checkpoint", "straight/model_final.pt", *flags, *named)
            assert "meanflow, 2 steps" in drawn.out, drawn.err
        refused = script("sample", "--checkpoint", "straight", "--interpolate")
        assert "give the --class-id" in refused.err  # it has not learned to draw any class
    if tune == "distill":
        new = load_checkpoint(teacher)["ema"]
        assert not all(torch.equal(new[name], w) for name, w in a["teacher"].items())
        refused = script("sample", "--checkpoint", "straight/model_final.pt", "--steps", "4")
        assert refused.code == 2
        assert "--steps 1" in refused.err
        stages = {p.name: load_checkpoint(p) for p in Path("straight/snapshots").iterdir()}
        assert stages.keys() == {"draws_in_4.safetensors", "draws_in_2.safetensors"}
        for name, stage in stages.items():
            assert f"draws_in_{stage['config']['train']['student_steps']}." in name
        Path("straight/samples/epoch_001.png").unlink()  # killed while it wrote its last files
        assert script("train", "--resume", "--output-dir", "straight", *FEW).code == 0
        repeated = load_checkpoint("straight/model_final.pt")
        assert repeated["config"]["train"]["student_steps"] == 1


@pytest.mark.parametrize("tune", ["consistency", "meanflow"])
def test_a_teacher_is_guided_by_a_weaker_network_which_the_checkpoint_keeps(script, teacher, tune):
    assert script("export", "--checkpoint", teacher, "--raw", "guide.safetensors").code == 0
    guide = load_checkpoint("guide.safetensors")["model"]
    words = ["--tune", tune, "--teacher", teacher, "--teacher-guide", "guide.safetensors"]
    words += ["--teacher-guidance", 2, "--max-steps", 4, "--save-every-steps", 2, *FEW]
    straight = script("train", *words, "--output-dir", "straight")
    assert straight.code == 0, straight.err
    shutil.copytree("straight", "parts")
    (Path("parts") / "model_final.pt").unlink()
    Path("guide.safetensors").unlink()
    middle = "parts/checkpoints/model_step_00000002.pt"
    assert all(torch.equal(load_checkpoint(middle)["guide"][name], guide[name]) for name in guide)
    resumed = script("train", "--resume", middle, *FEW)
    assert resumed.code == 0, resumed.err
    assert_same_training(*(load_checkpoint(f"{f}/model_final.pt") for f in ("straight", "parts")))


def test_a_guide_with_another_network_is_refused(script, teacher):
    words = ["--dataset", "digits", "--image-size", 8, "--model", "dit", "--blocks", 1, *FEW]
    words += ["--channels", 16, "--patch-size", 4, "--max-steps", 1]
    assert script("train", *words, "--output-dir", "wide").code == 0
    words = ["--tune", "consistency", "--teacher", teacher, "--teacher-guidance", 2, *FEW]
    result = script("train", *words, "--teacher-guide", "wide", "--output-dir", "tuned")
    assert result.code == 2
    assert "another network than the teacher: model.channels" in result.err


def test_a_teacher_predicts_with_a_guide_as_in_sampling(teacher):
    checkpoint = load_checkpoint(teacher)
    network, diffusion = restore(checkpoint)[:2]
    weaker = restore(checkpoint, raw=True)[0]
    config = checkpoint["config"]
    config["train"] |= {"teacher": "t", "teacher_guide": "g", "teacher_guidance": 3.0}
    objective = ConsistencyObjective(diffusion, config, torch.device("cpu"))
    objective.teacher.load_state_dict(network.state_dict())
    objective.guide.load_state_dict(weaker.state_dict())
    x, condition = torch.randn(6, 1, 8, 8), label_condition(torch.arange(6))
    denoise = diffusion.denoiser(network, condition, guide=weaker, guidance_scale=3.0)
    unguided = diffusion.denoiser(network, condition)
    for level in diffusion.levels(4)[:-1]:
        found = objective.taught(x, condition, torch.full((6,), level.t))
        assert_close(found, denoise(x, level)[0])
        assert (found - unguided(x, level)[0]).abs().max() > 1e-3


def test_a_network_of_photographs_is_tuned_in_each_way(script, monkeypatch):
    cifar10 = registry.DATASETS["cifar10"]
    photographs = torch.randint(0, 256, (64, 3, 32, 32)).byte()
    data = Data(photographs, torch.arange(64) % 10, list(cifar10.classes))
    few = cifar10._replace(load=lambda request: data)
    monkeypatch.setitem(registry.DATASETS, "cifar10", few)
    words = ["--dataset", "cifar10", "--batch-size", "8", *FEW]
    network = ["--channels", "8", "--multipliers", "1", "1", "--class-conditional"]
    assert script("train", *words, *network, "--max-steps", 2, "--output-dir", "t").code == 0
    pairs = ["--checkpoint", "t/model_final.pt", "--num-images", 16, "--steps", 2, "--pairs"]
    assert script("sample", *pairs, "--output", "p.npz").code == 0
    for tune, flags in {**TUNINGS, "reflow": ["--pairs", "p.npz"]}.items():
        flags = ["--tune", tune, "--teacher", "t/model_final.pt", *flags, "--output-dir", tune]
        result = script("train", *words[2:], *flags, "--max-steps", 2)
        assert result.code == 0, result.err
        drawn = ["--checkpoint", f"{tune}/model_final.pt", "--num-images", 2]
        assert script("sample", *drawn, "--output", f"{tune}.npz").code == 0
        images = np.load(f"{tune}.npz")["arr_0"]
        assert images.shape == (2, 32, 32, 3)
        assert images.std() > 10


def test_reflow_learns_from_the_noise_that_samples_came_from(script, teacher):
    drawn = ["--checkpoint", teacher, "--num-images", 40, "--steps", 3, "--pairs"]
    assert script("sample", *drawn, "--seed", 5, "--output", "p.npz").code == 0
    whole = np.load("p.npz")
    assert whole["seed"] == 5
    assert script("sample", *drawn, "--seed", 5, "--batch-size", 16, "--output", "q.npz").code == 0
    parts = np.load("q.npz")
    assert np.abs(parts["arr_0"].astype(int) - whole["arr_0"]).max() <= 1
    assert (parts["labels"] == whole["labels"]).all()

    config = load_checkpoint(teacher)["config"]
    data, seed, _ = load_pairs("p.npz", config)
    items = with_noise(data.items, seed, config)
    expected = NoisePerImage(5, range(40)).draw((1, 8, 8))
    assert_close(items[:, 1:].float(), expected, atol=2e-3, rtol=0)
    x_0 = torch.from_numpy(whole["arr_0"]).movedim(-1, 1) / 127.5 - 1
    assert_close(items[:, :1].float(), x_0.float(), atol=1e-3, rtol=0)

    words = ["--tune", "reflow", "--teacher", teacher, "--pairs", "p.npz", *FEW]
    words += ["--max-steps", 6, "--batch-size", 8]
    words += ["--save-every-steps", 3]
    assert script("train", *words, "--output-dir", "straight").code == 0
    shutil.copytree("straight", "parts")
    (Path("parts") / "model_final.pt").unlink()
    resumed = ["--resume", "parts/checkpoints/model_step_00000003.pt", *FEW]
    assert script("train", *resumed).code == 0
    a, b = load_checkpoint("straight/model_final.pt"), load_checkpoint("parts/model_final.pt")
    assert_same_training(a, b)
    assert a["config"]["train"]["pairs_seed"] == 5
    Path("p.npz").rename("moved.npz")
    longer = ["--resume", "--output-dir", "parts", "--max-steps", 7, *FEW, "--pairs"]
    assert script("train", *longer, "moved.npz").code == 0
    other = ["--checkpoint", teacher, "--num-images", 40, "--steps", 2, "--pairs", "--output"]
    assert script("sample", *other, "other.npz").code == 0
    longer[4] = 8
    assert "another file" in script("train", *longer, "other.npz").err
    result = script("sample", "--checkpoint", "straight", "--num-images", 4)
    assert "euler, 4 steps" in result.out
    more = script("sample", "--checkpoint", "straight", "--sampler", "heun", "--steps", 3)
    assert more.code == 0


def test_refused_pairs(script, teacher):
    words = ["sample", "--checkpoint", teacher, "--pairs"]
    assert ".npz" in script(*words).err
    noisy = script(*words, "--output", "p.npz", "--sampler", "ddpm")
    assert "without fresh noise" in noisy.err
    assert script("sample", "--checkpoint", teacher, "--output", "s.npz", "--steps", 2).code == 0
    tune = ["--tune", "reflow", "--teacher", teacher, "--pairs"]
    assert "with a seed" in script("train", *tune, "s.npz", *FEW).err
    Path("damaged.npz").write_bytes(Path("s.npz").read_bytes()[:300])
    np.save("array.npy", np.zeros(3))
    for name in ("damaged.npz", "array.npy"):
        assert "cannot be read" in script("train", *tune, name, *FEW).err
    both = ["--pairs", "--interpolate", "--output", "p.npz"]
    assert script("sample", "--checkpoint", teacher, *both).code == 2
    assert "cannot be read" in script("train", *tune, "missing.npz", *FEW).err
    np.savez("shape.npz", arr_0=np.zeros((9, 4, 4, 1), np.uint8), seed=np.array(0))
    assert "4 x 4" in script("train", *tune, "shape.npz", *FEW).err
    np.savez("labels.npz", arr_0=np.zeros((9, 8, 8, 1), np.uint8), seed=np.array(0))
    assert "no classes" in script("train", *tune, "labels.npz", *FEW).err
    labels = {"labels": np.full(9, 10)}
    np.savez("other.npz", arr_0=np.zeros((9, 8, 8, 1), np.uint8), seed=np.array(0), **labels)
    assert "other classes" in script("train", *tune, "other.npz", *FEW).err


def test_without_steps_a_tuned_run_has_the_weights_of_its_teacher(script, teacher):
    words = ["--tune", "consistency", "--teacher", teacher, "--lr", "0", *FEW]
    assert script("train", *words, "--max-steps", 1, "--output-dir", "out").code == 0
    own, taught = load_checkpoint("out/model_final.pt")["model"], load_checkpoint(teacher)["ema"]
    for name, weight in taught.items():
        assert_close(own[name], weight)


def test_weights_of_export_can_be_a_teacher_and_be_tuned_and_exported(script, teacher):
    assert script("export", "--checkpoint", teacher, "t.safetensors").code == 0
    words = ["--tune", "consistency", "--teacher", "t.safetensors", *FEW]
    assert script("train", *words, "--max-steps", 2, "--output-dir", "out").code == 0
    exported = ["--checkpoint", "out/model_final.pt", "s.safetensors"]
    assert script("export", *exported).code == 0
    drawn = script("sample", "--checkpoint", "s.safetensors", "--num-images", "4")
    assert "consistency, 2 steps" in drawn.out


REFUSED = {
    "teacher without tune": (["--teacher", "{t}"], "--tune"),
    "nothing to distill": (["--tune", "distill", "--dataset", "digits"], "--teacher FILE"),
    "other data": (["--tune", "distill", "--teacher", "{t}", "--dataset", "mnist"], "has learned"),
    "other network": (
        ["--tune", "distill", "--teacher", "{t}", "--channels", "16"],
        "another network: model.channels",
    ),
    "other process": (
        ["--tune", "distill", "--teacher", "{t}", "--schedule", "linear"],
        "another network: diffusion.schedule",
    ),
    "steps": (["--tune", "distill", "--teacher", "{t}", "--teacher-steps", "6"], "power of 2"),
    "prediction": (
        ["--tune", "consistency", "--dataset", "digits", "--prediction", "eps"],
        "division by zero",
    ),
    "boundary": (
        ["--tune", "consistency", "--dataset", "digits", "--prediction", "x_0"],
        "not the input",
    ),
    "guidance of nothing": (
        ["--tune", "consistency", "--dataset", "digits", "--teacher-guidance", "2"],
        "--teacher",
    ),
    "latents": (["--tune", "consistency", "--teacher", "{t}", "--latents", "{t}"], "--latents"),
    "dropped labels": (
        ["--tune", "consistency", "--teacher", "{t}", "--label-dropout", "0.3"],
        "no effect",
    ),
    "too many steps": (
        ["--tune", "distill", "--teacher", "{t}", "--teacher-steps", "1024"],
        "only 1000 timesteps",
    ),
    "guide without guidance": (
        ["--tune", "distill", "--teacher", "{t}", "--teacher-guide", "{t}"],
        "--teacher-guidance",
    ),
    "guide without effect": (
        ["--tune", "distill", "--teacher", "{t}", "--teacher-guide", "{t}"]
        + ["--teacher-guidance", "1"],
        "no effect",
    ),
    "guide of other data": (
        ["--tune", "distill", "--teacher", "{t}", "--teacher-guidance", "2"]
        + ["--teacher-guide", str(ROOT / "weights/mnist.safetensors")],
        "does not fit the checkpoint: data.dataset",
    ),
    "no pairs": (["--tune", "reflow", "--teacher", "{t}"], "--pairs FILE"),
    "pairs of consistency": (
        ["--tune", "consistency", "--teacher", "{t}", "--pairs", "p.npz"],
        "no effect",
    ),
    "classifier": (
        ["--tune", "consistency", "--dataset", "digits", "--model", "classifier"],
        "draw from noise",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_tunings(script, teacher, name):
    words, message = REFUSED[name]
    result = script("train", *[word.format(t=teacher) for word in words], *FEW)
    assert result.code == 2
    assert message in result.err


def test_refused_teachers_and_samplers(script, teacher):
    words = ["--tune", "consistency", "--teacher", teacher, *FEW, "--max-steps", 1]
    assert script("train", *words, "--output-dir", "tuned").code == 0
    again = ["--tune", "consistency", "--teacher", "tuned/model_final.pt", *FEW]
    assert "tuned already" in script("train", *again, "--output-dir", "again").err
    for checkpoint, flags, message in [
        (teacher, ["--sampler", "consistency"], "blurred"),
        ("tuned/model_final.pt", ["--sampler", "heun"], "tuned to draw in few steps"),
        ("tuned/model_final.pt", ["--guidance-scale", "2"], "not guided"),
        ("tuned/model_final.pt", ["--invert", "x.png"], "not tuned"),
        ("tuned/model_final.pt", ["--interpolate"], "add --steps 1"),
        (
            teacher,
            ["--guide", "tuned/model_final.pt", "--guidance-scale", "2"],
            "needs a denoiser",
        ),
    ]:
        result = script("sample", "--checkpoint", checkpoint, *flags)
        assert result.code == 2
        assert message in result.err
    bits = script("evaluate", "--checkpoint", "tuned/model_final.pt", "--metrics", "bpd")
    assert bits.code == 2
    assert "tuned" in bits.err
    exported = script("export", "--checkpoint", "tuned/model_final.pt", "--to", "numpy")
    assert "needs a denoiser" in exported.err


def test_a_checkpoint_without_its_teacher_is_refused(script, teacher):
    words = ["--tune", "distill", "--teacher", teacher, *FEW, "--max-steps", 2]
    assert script("train", *words, "--output-dir", "out").code == 0
    saved = load_checkpoint("out/model_final.pt")
    saved["teacher"].popitem()
    del saved["format"]
    save_checkpoint(Path("out/model_final.pt"), saved)
    result = script("train", "--resume", "--output-dir", "out", "--max-steps", 4, *FEW)
    assert result.code == 1
    assert "is missing" in result.err


def test_a_run_learns_from_its_teacher_in_the_folder_of_a_run_without_steps(script, teacher):
    words = ["--dataset", "moons", *FEW, "--max-steps", 1, "--output-dir", "out"]
    assert script("train", *words).code == 0
    for path in Path("out").rglob("*"):
        if path.is_file() and path.name != "config.json":
            path.unlink()
    words = ["--tune", "consistency", "--teacher", teacher, *FEW, "--max-steps", 1]
    assert script("train", *words, "--output-dir", "out").code == 0
    assert load_checkpoint("out/model_final.pt")["config"]["data"]["dataset"] == "digits"


def test_a_run_from_trained_weights_that_was_killed_keeps_its_own_flags(script, teacher):
    words = ["--init-from", teacher, *FEW, "--dataset", "digits", "--dropout", 0.125]
    assert script("train", *words, "--max-steps", 2, "--output-dir", "out").code == 0
    Path("out/model_final.pt").unlink()
    assert script("train", "--resume", "--output-dir", "out", *FEW).code == 0
    assert load_checkpoint("out/model_final.pt")["config"]["model"]["dropout"] == 0.125


def test_grids_have_the_noise_levels_of_sampling(script, teacher, monkeypatch):
    spacings, levels = [], GaussianDiffusion.levels

    def recorded(self, steps=None, spacing="trailing"):
        spacings.append((steps, spacing))
        return levels(self, steps, spacing)

    monkeypatch.setattr(GaussianDiffusion, "levels", recorded)
    words = ["--tune", "consistency", "--teacher", teacher, *FEW, "--max-steps", 1]
    assert script("train", *words, "--sample-interval", 1, "--output-dir", "out").code == 0
    assert spacings[-1] == (2, "upper")
    assert script("visualize_diffusion", "--run", "out").code == 0
    assert spacings[-1] == (2, "upper")


def test_a_run_that_was_killed_before_its_first_checkpoint_keeps_its_own_flags(script, teacher):
    words = ["--tune", "consistency", "--teacher", teacher, *FEW, "--batch-size", 24]
    assert script("train", *words, "--max-steps", 2, "--output-dir", "out").code == 0
    Path("out/model_final.pt").unlink()
    assert script("train", "--resume", "--output-dir", "out", *FEW).code == 0
    assert load_checkpoint("out/model_final.pt")["config"]["train"]["batch_size"] == 24


@pytest.mark.parametrize("tune", TUNINGS)
def test_every_weight_learns_in_bf16(tune):
    """The target's pass without gradients leaves no cast weights to the other."""
    data = load_dataset("digits")
    flags = TRAIN.parse(["--channels", "8", "--multipliers", "1", *FEW])
    config = make_config(with_defaults(flags, data), data)
    train = config_of(tune, teacher="of the test")["train"]
    config["train"] |= {**train, "batch_size": 8}
    trainer = Trainer(config, torch.device("cpu"), "bf16")
    for _ in range(3):  # those that start at zero hold back the rest
        before = {name: p.clone() for name, p in trainer.model.named_parameters()}
        labels = label_condition(torch.arange(8) % 10)
        trainer.train_step(torch.randint(0, 256, (8, 1, 8, 8)).byte(), labels, 1e-2)
    for name, p in trainer.model.named_parameters():
        assert not torch.equal(p, before[name]), name


def test_without_a_teacher_a_run_says_that_tuning_is_better(script):
    words = ["--tune", "consistency", "--dataset", "digits", "--channels", "8", "--max-steps", 1]
    result = script("train", *words, *FEW, "--output-dir", "out")
    assert result.code == 0
    assert "without --teacher" in result.out
