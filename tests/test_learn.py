"""The exercises of learn/: solutions, the diagnosis of mistakes, processes, reports."""

import ast
import csv
import inspect
import math
import os
import shutil
import sys
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from cli.learn import LEARN
from diffusion import GaussianDiffusion, at
from learn import check, class_report, texts
from learn.catalogue import EXERCISES
from learn.client import Checker
from learn.exercise import diagnose, outcomes
from learn.solved import EXERCISES as EXERCISES_FOLDER
from learn.solved import SOLUTIONS, all_solutions, solution, use_pieces
from learn.student import expected, found_task, help_with
from models.layers import attend, time_embedding
from models.unet2d import Residual
from objectives import PREDICTIONS
from samplers import SAMPLERS
from schedules import CLEAN, SCHEDULES, Level
from training.ema import EMA, ema_decay
from training.tuning import ConsistencyObjective, PairedBatch

TASKS = [task for exercise in EXERCISES for task in exercise.tasks]
TASK = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


# --- the catalogue --------------------------------------------------------------------------------


@TASK
def test_each_mistake_is_diagnosed_as_itself(task):
    right = expected(task.name)
    assert not any(each.error or each.changed for each in right)
    found = {m.name: list(outcomes(m.function, task)) for m in task.mistakes}
    assert len(found) == len(task.mistakes)  # names are unique
    for name, behaviour in found.items():
        assert not all(a.equals(b) for a, b in zip(behaviour, right, strict=True)), name
    for one, other in combinations(found, 2):
        pairs = zip(found[one], found[other], strict=True)
        assert not all(a.equals(b) for a, b in pairs), f"{one} behaves as {other}"


def test_a_mistake_is_found_among_all():
    _, task = found_task("posterior")
    last = task.mistakes[-1]  # all others are tried before it
    assert diagnose(list(outcomes(last.function, task)), task) is last
    assert diagnose(expected(task.name), task) is None


def test_there_are_many_mistakes_and_each_is_explained_in_sentences():
    assert sum(len(task.mistakes) for task in TASKS) >= 200
    assert all(len(task.mistakes) >= 5 for task in TASKS)
    for task in TASKS:
        for mistake in task.mistakes:
            assert mistake.explanation.endswith("."), mistake.name
            assert 30 < len(mistake.explanation) < 240, mistake.name
            assert mistake.name[-1] != ".", mistake.name


def test_exercises_solutions_and_catalogue_have_the_same_functions():
    names = {f"{exercise.file}.py" for exercise in EXERCISES}
    assert {p.name for p in SOLUTIONS.glob("*.py")} == names
    assert {p.name for p in EXERCISES_FOLDER.glob("*.py")} == names | {"pieces.py"}
    where = {task.name: exercise.file for exercise in EXERCISES for task in exercise.tasks}
    assert {**where, "Network": "16_train_and_draw"} == all_solutions().WHERE
    assert [exercise.number for exercise in EXERCISES] == list(range(1, len(EXERCISES) + 1))


def test_training_needs_the_exercises_that_it_imports_and_those_that_these_use():
    def used(path: Path) -> set[str]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        pieces = (n for n in ast.walk(tree) if getattr(n, "module", "") == "pieces")
        return {where[alias.name] for node in pieces for alias in node.names}

    where = all_solutions().WHERE
    files = used(SOLUTIONS.parent / "drawing.py")
    while more := {each for file in files for each in used(SOLUTIONS / f"{file}.py")} - files:
        files |= more
    (training,) = (exercise for exercise in EXERCISES if exercise.trains_with)
    needed = {e.number for e in EXERCISES if e.file in files} - {training.number}
    assert set(training.trains_with) == needed


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.file)
def test_an_exercise_is_a_docstring_a_hint_and_no_code(exercise):
    text = (EXERCISES_FOLDER / f"{exercise.file}.py").read_text(encoding="utf-8")
    assert f"Chapter: docs/guide/{exercise.chapter}\n" in text
    assert f"python learn/check.py {exercise.number}" in text
    assert text.count("    raise NotImplementedError\n") == len(exercise.tasks)
    assert text.count("    Hint: ") == len(exercise.tasks)
    for task in exercise.tasks:
        signature = str(inspect.signature(solution(task.name)))
        parameters = list(inspect.signature(solution(task.name)).parameters)
        at_def = text.index(f"def {task.name}(")
        head = text[at_def : text.index('"""', at_def)]
        assert all(name in head for name in parameters), signature


# --- other right ways -----------------------------------------------------------------------------


def sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def betas_by_hand(timesteps):
    betas = torch.tensor(
        [1e-4 + (0.02 - 1e-4) * i / (timesteps - 1) for i in range(timesteps)], dtype=torch.float64
    )
    return [betas.float(), (1 - betas).log().cumsum(0).exp().float()]


def posterior_by_bayes(x_0, x_t, t, betas, alphas_cumprod):
    """The product of the two Gaussians q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    means, variances = [], []
    for i, step in enumerate(t.tolist()):
        before = 1.0 if step == 0 else float(alphas_cumprod[step - 1])
        beta = float(betas[step])
        if before == 1:
            means.append(x_0[i])
            variances.append(0.0)
            continue
        precision = (1 - beta) / beta + 1 / (1 - before)
        mean = math.sqrt(1 - beta) / beta * x_t[i] + math.sqrt(before) / (1 - before) * x_0[i]
        means.append(mean / precision)
        variances.append(1 / precision)
    return torch.stack(means), torch.tensor(variances)[:, None, None, None]


def embedding_by_powers(t, dim):
    powers = 10_000.0 ** -(torch.arange(0, dim, 2).to(t.device) / dim)
    angles = torch.outer(t.float(), powers)
    return torch.hstack([torch.cos(angles), torch.sin(angles)])


def ema_by_state(average, network, decay):
    old, new = average.state_dict(), network.state_dict()
    average.load_state_dict({name: old[name] * decay + new[name] * (1 - decay) for name in old})


def ema_by_lerp(average, network, decay):
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


def ddpm_by_posterior(eps, x_t, t, noise, betas, alphas_cumprod):
    """The mean of the posterior for the x_0 that eps implies, which is the same."""
    when = torch.full((len(x_t),), t)
    x_0 = solution("x_0_from_eps")(eps, x_t, when, alphas_cumprod)
    mean, _ = posterior_by_bayes(x_0, x_t, when, betas, alphas_cumprod)
    return mean + (betas[t].sqrt() * noise if t > 0 else 0)


def training_by_epochs(network, average, images, alphas_cumprod, steps, batch_size=64, lr=2e-3):
    """A permutation of the images an epoch, weights by AdamW, and set_to_none=False."""
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0)
    order = torch.randperm(len(images))
    for step in range(steps):
        optimizer.zero_grad(set_to_none=False)
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(images))])
        index, order = order[:batch_size], order[batch_size:]
        noise = torch.randn(images[index].shape)
        t = (torch.rand(batch_size) * len(alphas_cumprod)).long()
        value = solution("loss")(network, images[index], t, noise, alphas_cumprod)
        value.backward()
        optimizer.step()
        solution("ema_update")(average, network, solution("ema_decay")(step, 0.999))
        yield value.item()


def layers_of_the_same_padding(channels_in, channels_out, dim):
    layers = solution("make_layers")(channels_in, channels_out, dim)
    layers["conv_1"] = nn.Conv2d(channels_in, channels_out, 3, padding="same")
    if channels_in != channels_out:
        layers["skip"] = nn.Conv2d(channels_in, channels_out, 1, padding="same")
    return layers


def consistency_by_one_call(model, x_0, t, r, noise):
    """The model sees both points in one batch."""
    points = [(1 - s.view(-1, 1, 1, 1)) * x_0 + s.view(-1, 1, 1, 1) * noise for s in (t, r)]
    found, target = model(torch.cat(points), torch.cat([t, r])).chunk(2)
    target = torch.where((r == 0).view(-1, 1, 1, 1), x_0, target).detach()
    square = (found - target).square().flatten(1).mean(dim=1)
    return (((square + 0.00054**2).sqrt() - 0.00054) / (t - r)).mean()


ALTERNATIVES = {
    "make_layers": layers_of_the_same_padding,
    "consistency_loss": consistency_by_one_call,
    "attention": sdpa,
    "linear_schedule": betas_by_hand,
    "posterior": posterior_by_bayes,
    "time_embedding": embedding_by_powers,
    "loss": lambda model, x_0, t, noise, table: F.mse_loss(
        model(
            torch.sqrt(table)[t][..., None, None, None] * x_0
            + torch.sqrt(1 - table)[t][..., None, None, None] * noise,
            t,
        ),
        noise,
    ),
    "ema_update": ema_by_lerp,
    "ddpm_step": ddpm_by_posterior,
    "guided": lambda cond, uncond, scale: torch.lerp(uncond, cond, scale),
    "drop_labels": lambda labels, dropped, null: labels.masked_fill(dropped, null),
    "train": training_by_epochs,
}


@pytest.mark.parametrize("name", [*ALTERNATIVES])
def test_another_right_function_passes(name):
    _, task = found_task(name)
    found = outcomes(ALTERNATIVES[name], task)
    assert all(a.equals(b) for a, b in zip(found, expected(name), strict=True))


def test_an_average_by_state_dict_passes():
    _, task = found_task("ema_update")
    found = list(outcomes(ema_by_state, task))
    assert all(a.equals(b) for a, b in zip(found, expected("ema_update"), strict=True))


# --- the solutions against the library ------------------------------------------------------------


CONFIG = {
    "data": {"flip": False},
    "train": {
        "seed": 0,
        "timestep_sampling": "uniform",
        "noise_assignment": "independent",
        "label_dropout": 0.0,
        "stage_steps": 1,
        "teacher_guidance": 1.0,
        "teacher": None,
    },
}


@pytest.fixture(scope="module")
def linear() -> GaussianDiffusion:
    return GaussianDiffusion("linear", 1000, "eps", clip=False)


@pytest.fixture(scope="module")
def batch() -> dict:
    generator = torch.Generator().manual_seed(3)
    images = {name: torch.randn(5, 2, 4, 3, generator=generator) for name in ("x_0", "noise", "x")}
    return images | {"t": torch.tensor([999, 0, 1, 500, 20])}


def test_the_schedule_and_the_forward_process(linear, batch):
    betas, table = solution("linear_schedule")(1000)
    close = {"rtol": 1e-3, "atol": 1e-6}
    torch.testing.assert_close(betas, linear.betas, **close)
    torch.testing.assert_close(table, linear.alphas_cumprod, **close)
    x_0, t, noise = batch["x_0"], batch["t"], batch["noise"]
    x_t = linear.q_sample(x_0, t, noise)
    torch.testing.assert_close(solution("q_sample")(x_0, t, noise, linear.alphas_cumprod), x_t)
    found = solution("posterior")(x_0, x_t, t, linear.betas, linear.alphas_cumprod)
    torch.testing.assert_close(found, linear.q_posterior(x_0, x_t, t), rtol=1e-3, atol=1e-4)
    alpha, sigma = at(linear.alpha, t, x_0), at(linear.sigma, t, x_0)
    for name in ("eps", "v"):
        implied = solution(f"x_0_from_{name}")(batch["x"], x_t, t, linear.alphas_cumprod)
        wanted = PREDICTIONS[name].x_0(batch["x"], x_t, alpha, sigma)
        torch.testing.assert_close(implied, wanted, rtol=1e-3, atol=1e-4)


def timestep(time):
    """The library's timestep, from 0, of a time in (0, 1], T = 1000."""
    return ((time * 1000).round().long() - 1).clamp(min=0)


def test_the_losses(linear, batch):
    x_0, noise = batch["x_0"], batch["noise"]

    def model(x_t, t):
        return 0.3 * x_t.flip(1) + 0.1

    found = solution("loss")(model, x_0, batch["t"], noise, linear.alphas_cumprod)
    torch.testing.assert_close(found, linear.loss(model, x_0, t=batch["t"], noise=noise))
    flow = GaussianDiffusion("flow", 1000, "flow", clip=False)

    def scaled(x_t, time):  # networks of the library see inputs of one size
        return model(flow.scaled(x_t, timestep(time)), time)

    found = solution("flow_matching_loss")(scaled, x_0, (batch["t"] + 1) / 1000, noise)
    torch.testing.assert_close(found, flow.loss(model, x_0, t=batch["t"], noise=noise))


def test_the_loss_of_a_consistency_model(batch):
    flow = GaussianDiffusion("flow", 1000, "x_0", clip=False)

    class Model(nn.Module):
        def forward(self, x_t, t):
            return 0.3 * x_t.flip(1) + 1e-4 * t.view(-1, 1, 1, 1)

    objective = ConsistencyObjective(flow, CONFIG, torch.device("cpu"))
    t, r = batch["t"].clamp(min=1), torch.tensor([900, -1, 0, 400, 19])
    wanted = objective(Model(), PairedBatch(batch["x_0"], None, t, batch["noise"], r))

    def model(x_t, time):
        t = timestep(time)
        return Model()(flow.scaled(x_t, t), t)

    times = [(each + 1) / 1000 for each in (t, r)]
    found = solution("consistency_loss")(model, batch["x_0"], *times, batch["noise"])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_layers():
    embedding, t = time_embedding(16)[0], torch.tensor([0, 3, 999])
    torch.testing.assert_close(solution("time_embedding")(t, 16), embedding(t))
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()
    torch.testing.assert_close(solution("attention")(q, k, v), attend(q, k, v))
    for channels in (8, 16):
        layers = solution("make_layers")(8, channels, 4)
        theirs = Residual(8, channels, 4, 0.0, False, "silu", groups=8, eps=1e-5)
        x, emb = torch.randn(2, 8, 5, 5), torch.randn(2, 4)
        block = solution("residual_block")
        torch.testing.assert_close(block(layers, x, emb), layers["skip"](x))  # as it begins
        for parameter in layers.parameters():
            nn.init.normal_(parameter, std=0.5)
        names = {"norm_1": "norm1", "conv_1": "conv1", "time": "time_emb_proj", "norm_2": "norm2"}
        names |= {"conv_2": "conv2", "skip": "conv_shortcut"}
        for ours, name in names.items():
            getattr(theirs, name).load_state_dict(layers[ours].state_dict())
        torch.testing.assert_close(block(layers, x, F.silu(emb)), theirs(x, emb))


def test_the_average_of_the_weights():
    torch.manual_seed(0)
    network = nn.Linear(3, 3)
    ours, theirs = nn.Linear(3, 3), EMA(network, 0.999)
    ours.load_state_dict(network.state_dict())
    for step in range(4):
        nn.init.normal_(network.weight)
        # The library's first update, of step 0, copies the weights.
        theirs.update(network, step + 1)
        decay = solution("ema_decay")(step + 1, 0.999)
        assert decay == ema_decay(step + 1, 0.999)
        solution("ema_update")(ours, network, decay)
        torch.testing.assert_close(ours.weight, theirs.module.weight)


def denoiser(x, level):
    """The best denoiser of data N(0.5, 0.2^2): (x_0, eps)."""
    variance = (level.alpha * 0.2) ** 2 + level.sigma**2
    x_0 = 0.5 + level.alpha * 0.04 / variance * (x - level.alpha * 0.5)
    return x_0, (x - level.alpha * x_0) / level.sigma


def walk(name: str, levels: list[Level], x, **options):
    """All x of a sampler of the library, with noise of 1 everywhere."""
    return [x, *SAMPLERS[name](denoiser, x, levels, torch.ones_like, **options)]


def test_the_steps_of_samplers(linear):
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).view(1, 1, 2, 3)
    table = torch.as_tensor([level.alpha**2 for level in linear._levels], dtype=torch.float64)
    betas = 1 - table / torch.cat([torch.ones(1), table[:-1]])
    levels = linear.levels(8)
    for (cur, nxt), (before, after) in zip(
        pairwise(levels), pairwise(walk("ddim", levels, x)), strict=True
    ):
        _, eps = denoiser(before, cur)
        found = solution("ddim_step")(eps, before, cur.t, nxt.t, table)
        torch.testing.assert_close(found, after, rtol=1e-6, atol=1e-6)
    levels = [*linear._levels[3::-1], CLEAN]
    for cur, (before, after) in zip(
        levels, pairwise(walk("ddpm", levels, x, variance="large")), strict=False
    ):
        _, eps = denoiser(before, cur)
        found = solution("ddpm_step")(eps, before, cur.t, torch.ones_like(x), betas, table)
        torch.testing.assert_close(found, after, rtol=1e-6, atol=1e-6)


def test_the_steps_of_solvers_of_order_two(linear):
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).view(1, 1, 2, 3)
    levels = linear.levels(6)
    trajectory, last, x_0_last = walk("dpmpp_2m", levels, x), None, None
    for (cur, nxt), (before, after) in zip(pairwise(levels), pairwise(trajectory), strict=True):
        x_0, _ = denoiser(before, cur)
        pair = [(level.alpha, level.sigma) for level in (cur, nxt)]
        found = solution("dpmpp_2m_step")(before, x_0, x_0_last, last, *pair)
        torch.testing.assert_close(found, after)
        last, x_0_last = pair[0], x_0
    levels = [Level(i, 1.0, sigma) for i, sigma in enumerate((80.0, 5.0, 0.7, 0.0))]
    trajectory = walk("heun", levels, 80 * x)
    for (cur, nxt), (before, after) in zip(pairwise(levels), pairwise(trajectory), strict=True):
        found = solution("heun_step")(
            lambda x, sigma: denoiser(x, Level(0, 1.0, sigma))[0], before, cur.sigma, nxt.sigma
        )
        torch.testing.assert_close(found, after)


def test_steps_of_flow_matching_and_guidance():
    alpha, sigma = SCHEDULES["flow"](10)
    levels = [Level(t, float(alpha[t]), float(sigma[t])) for t in (9, 6, 2)] + [CLEAN]
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    for (cur, nxt), (before, after) in zip(
        pairwise(levels), pairwise(walk("euler", levels, x)), strict=True
    ):
        x_0, eps = denoiser(before, cur)
        found = solution("flow_step")(eps - x_0, before, cur.sigma, nxt.sigma)
        torch.testing.assert_close(found, after)
    cond, uncond = torch.randn(2, 3, 1, 2, 2).unbind()
    torch.testing.assert_close(solution("guided")(cond, uncond, 1.0), cond)
    torch.testing.assert_close(solution("guided")(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(solution("guided")(cond, uncond, 3.0), uncond + 3 * (cond - uncond))


def test_the_solutions_train_a_network_and_draw():
    torch.manual_seed(0)
    pieces = all_solutions()
    network, average = pieces.Network(), pieces.Network()
    _, table = pieces.linear_schedule(1000)
    images = torch.ones(8, 1, 8, 8)
    losses = list(pieces.train(network, average, images, table, 30, 16, 5e-3))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    drawn = pieces.draw(average, table, 3, (1, 8, 8), 4)
    assert drawn.shape == (3, 1, 8, 8)
    assert drawn.abs().max() <= 1


# --- what a student sees --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checker():
    with Checker(seconds=1.0, memory=512, grace=1.5) as checker:
        yield checker


@pytest.fixture
def learn(checker, monkeypatch, capsys, tmp_path):
    """Runs learn/check.py in this process, with one checker: learn("4", ...) -> code, output."""

    class Shared:
        def __enter__(self):
            return checker

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(check, "Checker", lambda *_: Shared())
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = check.main(LEARN.parse([str(word) for word in words]))
        return code, capsys.readouterr().out

    return call


def edited(folder: Path, file: str, old: str, new: str) -> None:
    """Copy a solution to a folder, with one change."""
    folder.mkdir(exist_ok=True)
    text = (SOLUTIONS / f"{file}.py").read_text(encoding="utf-8")
    assert text.count(old) >= 1
    (folder / f"{file}.py").write_text(text.replace(old, new), encoding="utf-8")


def test_a_newcomer_sees_where_to_begin(learn):
    code, out = learn()
    assert code == 1
    assert out.count("not begun") == len(EXERCISES)
    assert "Begin with exercise 1" in out
    assert "01_noise_and_schedules.md" in out
    assert "learn/check.py 1" in out
    assert "Traceback" not in out


def test_the_solutions_pass_and_what_comes_next_is_named(learn, monkeypatch):
    code, out = learn("--folder", SOLUTIONS)
    assert (code, out.count(" done\n")) == (0, len(EXERCISES))
    code, out = learn("--folder", SOLUTIONS, "4")
    assert code == 0
    assert "Exercise 4 is done." in out
    assert "05_time_embedding.py" in out
    assert "05_network.md" in out


def test_a_mistake_is_named_and_explained(learn, tmp_path):
    edited(tmp_path / "mine", "06_attention", " / q.shape[-1] ** 0.5", "")
    code, out = learn("--folder", "mine", "6")
    assert code == 1
    assert "attention: no scaling by 1 / sqrt(d)" in out
    assert "You do not divide the scores by sqrt(d)." in out


def test_an_unknown_mistake_shows_the_smallest_input_and_what_is_right(learn, tmp_path):
    edited(tmp_path / "mine", "01_forward_process", "(1 - alpha_bar).sqrt() *", "0.5 *")
    _, out = learn("--folder", "mine", "1")
    assert "linear_schedule: right" in out
    assert "q_sample: not right yet" in out
    assert "Input: one image of one pixel" in out
    assert "expected 0.098759" in out
    assert "weight of x_0: 0.75476, right" in out
    assert "weight of noise: expected 0.656, got 0.5" in out


@pytest.mark.parametrize(
    ("file", "old", "new", "shown"),
    [
        ("09_ddpm_step", "return mean +", "return (mean +", ["line ", "SyntaxError"]),
        ("09_ddpm_step", "betas[t], ", "betas[t], undefined + ", ["line ", "undefined + alphas"]),
        ("09_ddpm_step", "    if t == 0", "    while True: pass\n    if t == 0", ["while True"]),
        ("09_ddpm_step", "    if t == 0", "    exit()\n    if t == 0", ["exit()"]),
        ("09_ddpm_step", "    return mean +", "    mean +", ["is a `return` missing?"]),
        ("09_ddpm_step", "    beta, ", "    torch.ones(2**32)\n    beta, ", ["memory"]),
    ],
)
def test_an_error_is_shown_at_the_students_line(learn, tmp_path, file, old, new, shown):
    edited(tmp_path / "mine", file, old, new.replace("torch.", "__import__('torch')."))
    code, out = learn("--folder", "mine", "9")
    assert code == 1
    assert all(text in out for text in shown), out
    assert "Traceback" not in out
    assert f"learn{os.sep}student.py" not in out


def test_an_exercise_waits_for_a_wrong_function_that_it_uses(learn, tmp_path):
    edited(tmp_path / "mine", "01_forward_process", "(1 - alpha_bar)", "(1 + alpha_bar)")
    edited(tmp_path / "mine", "04_loss", "", "")
    _, out = learn("--folder", "mine", "4")
    assert "loss: uses your q_sample, and it is not right yet" in out
    shutil.copy(EXERCISES_FOLDER / "01_forward_process.py", tmp_path / "mine")
    edited(tmp_path / "mine", "04_loss", "q_sample", "pieces.q_sample")
    edited_again = (tmp_path / "mine" / "04_loss.py").read_text(encoding="utf-8")
    edited_again = edited_again.replace("from pieces import pieces.q_sample", "import pieces")
    (tmp_path / "mine" / "04_loss.py").write_text(edited_again, encoding="utf-8")
    _, out = learn("--folder", "mine", "4")
    assert "loss: uses your q_sample, and it is not right yet" in out
    (tmp_path / "mine" / "04_loss.py").write_text(edited_again.replace(".mean()", ".sum()"))
    _, out = learn("--folder", "mine", "4")
    assert "loss: a sum instead of a mean" in out
    assert "uses your" not in out


def test_training_waits_for_all_that_it_uses(learn, checker, tmp_path, monkeypatch):
    shutil.copytree(SOLUTIONS, tmp_path / "mine")
    shutil.copy(EXERCISES_FOLDER / "06_attention.py", tmp_path / "mine")
    real = checker.check
    right = {"functions": [{"name": "f", "status": "right"}]}
    monkeypatch.setattr(checker, "check", lambda *a: real(*a) if a[1] in (6, 16) else right)
    monkeypatch.setattr(checker, "draw", None)  # is not called
    code, out = learn("--folder", "mine", "16")
    assert code == 1
    assert "train and draw are right; finish exercise 6 (attention) before training." in out
    assert "is done" not in out


def test_hints_and_solutions_are_shown(learn):
    _, out = learn("9", "--hint")
    assert "Then add sqrt(beta) * noise, except at t = 0." in " ".join(out.split())
    _, out = learn("9", "--solution")
    assert (SOLUTIONS / "09_ddpm_step.py").read_text(encoding="utf-8") in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["17"], "there is no exercise 17: they are 1 to 16"),
        (["--folder", "nowhere"], "nowhere is not a folder"),
        (["--hint"], "--hint needs the number of an exercise"),
        (["--class-report", ".", "4"], "leave out their numbers"),
        (["--class-report", "nowhere"], "nowhere is not a folder"),
        (["--class-report", ".", "--output", "table.txt"], "must end in .html"),
        (["4", "--output", "x.png"], "--output is for exercise 16, and for --class-report"),
        (["--output", "x.png"], "--output is for exercise 16, and for --class-report"),
    ],
)
def test_what_cannot_be_done_is_an_error(learn, words, message):
    with pytest.raises(ValueError, match=message):
        learn(*words)


def test_a_missing_file_is_restored_from_where_there_is_one(tmp_path, monkeypatch):
    for folder, words in ((EXERCISES_FOLDER, "git checkout"), (tmp_path, "copy it from")):
        missing = {"missing": True, "path": str(folder / "04_loss.py"), "functions": []}
        assert words in texts.details(missing)[0]
    assert help_with("ValueError: math domain error") == help_with(
        "ValueError: expected a positive input"
    )


def test_watch_checks_a_file_that_is_saved(learn, tmp_path, monkeypatch, capsys):
    edited(tmp_path / "mine", "06_attention", "", "")

    def save(_):
        if "saved" in done:
            raise KeyboardInterrupt
        done.append("saved")
        edited(tmp_path / "mine", "06_attention", "dim=-1", "dim=-2")
        os.utime(tmp_path / "mine" / "06_attention.py", (1, 1))

    done = []
    monkeypatch.setattr(check.time, "sleep", save)
    with pytest.raises(KeyboardInterrupt):
        learn("--folder", "mine", "--watch")
    out = capsys.readouterr().out
    assert out.count("Exercise 6, attention") == 1
    assert "softmax over the wrong axis" in out


def test_the_last_exercise_draws_a_picture(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TINY_DIFFUSION_DATA", str(tmp_path))  # without MNIST
    use_pieces(SOLUTIONS)
    from learn import drawing

    for name in {"pieces", *all_solutions().WHERE.values()}:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(drawing, "STEPS", 3)
    monkeypatch.setattr(drawing, "DRAWING_STEPS", 2)
    monkeypatch.setattr(drawing, "threads", torch.get_num_threads)
    said = []
    line = drawing.train_and_draw(tmp_path / "digits.png", said.append)
    assert line == "Your network has learned for 3 steps, and has drawn 64 digits."
    assert said[0].startswith("1,797 images of scikit-learn's digits")
    assert said[-1].startswith("step 3 of 3")
    with Image.open(tmp_path / "digits.png") as picture:
        assert picture.width > 2 * picture.height  # 4 rows of 16


# --- a class --------------------------------------------------------------------------------------

WHOLE_FILE = {
    "exits": "raise SystemExit",
    "ends_the_process": "import os\nos._exit(0)",
    "loops": "while True:\n    pass",
    "loops_for_good": "while True:\n    try:\n        while True: pass\n"
    "    except BaseException: pass",
    "takes_memory": "x = []\nwhile True:\n    x.append(bytearray(2**30))",
    "prints": "for _ in range(300):\n    print('x' * 100_000)",
    "is_broken": "def (:",
    "is_binary": "\0\1",
    "kills": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "closes": "import os\nos.closerange(0, 100)",
    "starts": "import subprocess\nsubprocess.Popen(['sleep', '600'])",
}


def test_the_report_of_a_class_survives_all_students(learn, tmp_path, monkeypatch):
    folder = tmp_path / "class"
    for name, text in WHOLE_FILE.items():
        (folder / name / "exercises").mkdir(parents=True)
        (folder / name / "exercises" / "06_attention.py").write_text(text)
    (folder / "=empty").mkdir()
    (folder / "zoe" / "learn").mkdir(parents=True)
    shutil.copytree(SOLUTIONS, folder / "zoe" / "learn" / "exercises")
    edited(folder / "zed", "06_attention", "dim=-1", "dim=-2")
    attention = {"number": 6, "file": "06_attention", "title": "attention"}
    attention["trains_with"] = []
    monkeypatch.setattr(Checker, "contents", lambda *_: [attention])  # this exercise alone
    code, out = learn("--class-report", "class", "--output", "out/report.html")
    assert code == 0
    rows = list(csv.DictReader((tmp_path / "out" / "report.csv").open(encoding="utf-8")))
    found = {row["student"]: row["06_attention"] for row in rows}
    assert found.pop("zoe") == "done"
    assert found.pop("zed") == "mistake: attention: softmax over the wrong axis"
    assert found.pop("'=empty") == "missing"
    assert found.keys() == WHOLE_FILE.keys()
    assert "ends Python" in found["exits"]
    assert "exit code 0" in found["ends_the_process"]
    assert "still running" in found["loops"]
    assert "still running" in found["loops_for_good"]
    assert "MemoryError" in found["takes_memory"]
    assert "has no function attention" in found["prints"]
    assert "SyntaxError" in found["is_broken"]
    assert "SIGKILL" in found["kills"]
    assert "exit code" in found["closes"]
    assert "has no function attention" in found["starts"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "softmax over the wrong axis" in page
    assert "<script" not in page
    assert "http:" not in page.replace("http-equiv", "")
    assert out.splitlines()[-2:] == ["out/report.html", "out/report.csv"]


def test_a_report_counts_each_mistake_and_shows_the_first_line_of_an_error():
    place = {"file": "01_forward_process.py", "line": 7, "source": "x"}
    error = {"name": "linear_schedule", "status": "error", "lines": ["NameError: x", "Input: ..."]}
    mistake = {"name": "q_sample", "status": "mistake", "mistake": "a; b"}
    functions = [error | {"place": place}, mistake, {"name": "other", "status": "wrong"}]
    found = class_report.cell({"number": 1, "functions": functions})
    assert found["detail"] == (
        "linear_schedule (line 7): NameError: x; q_sample: a; b; other: not right"
    )
    rows = [{"name": name, "done": 0, "cells": [found]} for name in ("amy", "zoe")]
    exercise = {"number": 1, "file": "01_forward_process", "title": "one"}
    page = class_report.as_page(rows, [exercise], "2030-01-01")
    table = page.partition("Most frequent mistakes")[2].partition("</table>")[0]
    assert "<tr><td>1</td><td>2</td><td>q_sample: a; b</td></tr>" in table
    assert "not right" not in table


def test_files_of_others_are_not_replaced(learn, tmp_path):
    (tmp_path / "class" / "amy").mkdir(parents=True)
    for name in ("class_report.html", "class_report.csv"):
        other = tmp_path / "outputs" / "learn" / name
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("of another program")
        with pytest.raises(ValueError, match="cannot write to"):
            learn("--class-report", "class")
        assert other.read_text() == "of another program"
        other.unlink()


def test_a_class_without_students_is_an_error(learn, tmp_path):
    (tmp_path / "class").mkdir()
    with pytest.raises(ValueError, match="no subfolders"):
        learn("--class-report", "class")
