"""The guide: links lead to the code that they show, equations hold, figures have commands.

test_readme.py checks that the commands of the guide are valid and that its other links exist.
"""

import re
import shlex
from functools import cache
from itertools import count, pairwise
from math import log, sqrt

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import code_links
from conditions import label_condition
from conftest import ROOT
from diffusion import GaussianDiffusion
from evaluation.distances import energy_distance, frechet_distance, gaussian_of
from evaluation.likelihood import flow_likelihood
from latex import Unknown, value
from models.autoencoder import Autoencoder
from models.latents import LatentSpace
from models.layers import TimestepEmbedding
from objectives import LOSS_WEIGHTS, PREDICTIONS, discretized_gaussian_nll, gaussian_kl
from oracles import Perfect, exact
from samplers import consistency, ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, euler, heun
from schedules import CLEAN
from test_likelihood import DIMS, MEAN, STD, perfect_denoiser, spread_data
from test_readme import COMMAND, blocks
from training.ema import EMA, ema_decay
from training.plan import learning_rate

GUIDE = ROOT / "docs" / "guide"
CHAPTERS = sorted(GUIDE.glob("[0-9]*.md"))
PAGES = [GUIDE / "README.md", *CHAPTERS]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
EXERCISES = [
    "01_forward_process",
    "02_posterior",
    "03_predictions",
    "04_loss",
    "05_time_embedding",
    "06_attention",
    "07_residual_block",
    "08_ema",
    "09_ddpm_step",
    "10_ddim_step",
    "11_guidance",
    "12_heun_step",
    "13_dpmpp_2m_step",
    "14_flow_matching",
    "15_consistency",
    "16_train_and_draw",
]
LEARN = "../../learn/exercises"
FIGURE = re.compile(r"^!\[[^]]+\]\(([^)]+)\)$", re.MULTILINE)
MAX_BYTES = 100_000  # of a figure
OFFLINE = {"digits", "moons"}  # data sets that need no download

pages = pytest.mark.parametrize("name", TEXTS)
chapters = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


# --- links to code --------------------------------------------------------------------------------


@pages
def test_links_to_code_show_the_line_that_they_lead_to(name):
    links = list(code_links.links_of(GUIDE / name))
    assert [link.problem() for link in links if link.problem()] == []
    assert len(links) == len(code_links.ANY_LINK.findall(TEXTS[name])), "a link shows no code"


@chapters
def test_each_section_with_equations_links_to_code(chapter):
    for section in TEXTS[chapter.name].split("\n## ")[1:]:
        if "\\tag{" in section:
            assert code_links.LINK.search(section), section.splitlines()[0]


def test_a_moved_line_is_reported_and_corrected(tmp_path):
    (tmp_path / "source.py").write_text("a = 1\nb = a[0]\n\n\nb = a[0] + c\n")
    page = tmp_path / "page.md"
    page.write_text("See [`b = a[0]`](source.py#L4) and [`d = 3`](source.py#L1).")
    moved, lost = code_links.links_of(page)
    assert "but line 5" in moved.problem()
    assert "nor any other line" in lost.problem()
    page.write_text(code_links.renumbered(page))
    moved, lost = code_links.links_of(page)
    assert (moved.number, moved.problem()) == (5, None)
    assert (lost.number, bool(lost.problem())) == (1, True)


# --- chapters -------------------------------------------------------------------------------------


def test_the_index_lists_the_chapters_in_their_order():
    listed = re.findall(r"^\| \d+ \| \[[^]]+\]\((\d\d_\w+\.md)\)", TEXTS["README.md"], re.MULTILINE)
    assert listed == [chapter.name for chapter in CHAPTERS]
    assert len(listed) == 12


@chapters
def test_a_chapter_has_its_sections(chapter):
    text = TEXTS[chapter.name]
    title, summary = text.split("\n\n")[:2]
    assert title.startswith(f"# {int(chapter.name[:2])}. ")
    assert summary.startswith("After this chapter you know ")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[-2:] == ["Exercises", "Next"]
    exercises, following = text.split("\n## Exercises\n")[1].split("\n## Next\n")
    assert f"]({LEARN}/" in exercises
    after = [*CHAPTERS[CHAPTERS.index(chapter) + 1 :], GUIDE / "README.md"][0]
    assert f"]({after.name})" in following


@chapters
def test_a_chapter_takes_about_ten_minutes(chapter):
    assert 450 < len(TEXTS[chapter.name].split()) < 2000


def test_each_exercise_is_linked_from_a_chapter():
    linked = {
        found
        for chapter in CHAPTERS
        for found in re.findall(rf"\({re.escape(LEARN)}/(\w+)\.py\)", TEXTS[chapter.name])
    }
    assert linked == set(EXERCISES)
    if (ROOT / "learn").exists():
        files = sorted((ROOT / "learn" / "exercises").glob("[0-9]*.py"))
        assert [file.stem for file in files] == EXERCISES
        for file in files:
            chapter = re.search(r"docs/guide/(\w+\.md)", file.read_text(encoding="utf-8"))[1]
            assert f"({LEARN}/{file.name})" in TEXTS[chapter], f"{chapter} lacks {file.name}"


# --- figures and commands -------------------------------------------------------------------------


def figures(text: str) -> list[tuple[str, str, str]]:
    """For each figure: its file, the commands above it, and the text between them."""
    found = []
    for match in FIGURE.finditer(text):
        before, _, between = text[: match.start()].rpartition("\n```\n")
        found.append((match[1], before.rpartition("\n```\n")[2], FIGURE.sub("", between)))
    return found


@chapters
def test_the_command_of_a_figure_stands_right_above_it(chapter):
    for figure, commands, between in figures(TEXTS[chapter.name]):
        assert re.search(COMMAND, commands, re.MULTILINE), figure
        assert f"/{figure}" in commands or f"{figure}`" in between, f"what writes {figure}?"
        paragraphs = [part for part in between.split("\n\n") if part.strip()]
        assert len(paragraphs) <= 2, f"{figure} is far from its command"
        assert "#" not in between, f"{figure} and its command are in different sections"


def test_figures_are_small_and_all_are_shown():
    files = {path.name for path in GUIDE.glob("*.png")}
    shown = {figure for text in TEXTS.values() for figure in FIGURE.findall(text)}
    assert files == shown
    for name in files:
        assert (GUIDE / name).stat().st_size < MAX_BYTES, name


@chapters
def test_commands_need_no_network_and_no_other_run(chapter):
    """They use data that are generated or installed, included weights, and runs of this chapter."""
    made = set()
    for block in blocks(TEXTS[chapter.name], ""):
        for script, arguments in re.findall(COMMAND, block, re.MULTILINE):
            words = shlex.split(arguments, comments=True)
            paths = [word for word in words if word.startswith(("outputs/", "weights/"))]
            output = words[[*words, "--output-dir"].index("--output-dir") + 1 :][:1]
            output += words[[*words, "--output"].index("--output") + 1 :][:1]
            output += words[[*words, "--save-path"].index("--save-path") + 1 :][:1]
            for path in set(paths) - set(output):
                assert path in made or (ROOT / path).is_file(), f"{script}: nothing makes {path}"
            for name, data in pairwise(words):
                assert name != "--dataset" or data in OFFLINE, data
            assert all(path.startswith("outputs/guide/") for path in output)
            assert output or script == "evaluate.py", f"{script} needs a place for its output"
            made |= set(output)


# --- the mathematics as GitHub shows it -----------------------------------------------------------


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


@pages
def test_dollars_and_braces_are_balanced(name):
    for line in without_code(TEXTS[name]).splitlines():
        assert line.count("$") % 2 == 0, line
        for formula in re.findall(r"\$+([^$]+)\$+", line):
            assert formula.count("{") == formula.count("}"), line
            assert formula.count("(") == formula.count(")"), line
            assert formula == formula.strip(), line


@pages
def test_display_formulas_stand_alone(name):
    lines = without_code(TEXTS[name]).splitlines()
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if "$$" in line:
            assert re.fullmatch(r"\$\$[^$]+\$\$", line), line
            assert (before.strip(), after.strip()) == ("", ""), line


@pages
def test_markdown_leaves_formulas_as_they_are(name):
    """It would read these characters as emphasis, as an escape, as a table or as HTML."""
    for line in without_code(TEXTS[name]).splitlines():
        for formula in re.findall(r"\$+([^$]+)\$+", line):
            assert not re.search(r"(?<![A-Za-z0-9'])_", formula), line
            assert not re.search(r"\\[^a-zA-Z]|[*<>|`]", formula), line


# --- equations ------------------------------------------------------------------------------------

EQUATIONS = {
    tag: (name, formula)
    for name, text in TEXTS.items()
    for formula, tag in re.findall(r"^\$\$(.+) \\tag\{([\d.]+)\}\$\$$", text, re.MULTILINE)
}
SCHEDULES = ["linear", "cosine", "flow", "edm"]  # two that preserve the variance, two that do not
CHECKS = {}
RANDOM = np.random.default_rng(0)
X_0, X_0_HAT, NOISE, X_T = RANDOM.standard_normal((4, 5, 3))  # four arrays (5, 3)


def equation(tag: str, names: dict):
    """The value of an equation of the guide, as it is written there."""
    names = {name: each.numpy() if torch.is_tensor(each) else each for name, each in names.items()}
    return value(EQUATIONS[tag][1], names)


def checks(*tags: str):
    """Mark a function that checks equations."""

    def register(function):
        CHECKS.update(dict.fromkeys(tags, cache(function)))
        return function

    return register


def near(found, expected, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def tensor(array) -> torch.Tensor:
    return torch.as_tensor(array, dtype=torch.float64)


def process(schedule: str = "linear", **options) -> GaussianDiffusion:
    return GaussianDiffusion(schedule, 50, **{"prediction": "x_0", "clip": False, **options})


def level_names(diffusion: GaussianDiffusion, t: int) -> dict:
    """The names of the levels t and t - 1 in float64."""
    at, before = (diffusion._levels[i] if i >= 0 else CLEAN for i in (t, t - 1))
    return {
        r"\alpha_t": at.alpha,
        r"\sigma_t": at.sigma,
        r"\alpha_{t-1}": before.alpha,
        r"\sigma_{t-1}": before.sigma,
    }


def step_names(cur, nxt) -> dict:
    """The names of chapter 7 for a step between two levels."""
    return {
        r"\alpha": cur.alpha,
        r"\sigma": cur.sigma,
        "n": cur.ratio,
        r"\alpha'": nxt.alpha,
        r"\sigma'": nxt.sigma,
        "n'": nxt.ratio,
        "h": nxt.log_ratio - cur.log_ratio,
    }


def one_step(sampler, denoise, cur, nxt, noise=NOISE, **options) -> np.ndarray:
    """x at the next level, by a sampler of the project."""
    steps = sampler(denoise, tensor(X_T), [cur, nxt], lambda x: tensor(noise), **options)
    return next(iter(steps)).numpy()


@pytest.mark.parametrize("tag", sorted(EQUATIONS, key=lambda tag: tuple(map(int, tag.split(".")))))
def test_an_equation_holds_as_written(tag):
    CHECKS[tag]()


def test_each_numbered_equation_is_checked():
    assert set(EQUATIONS) == set(CHECKS)
    for name, text in TEXTS.items():
        tags = re.findall(r"\\tag\{([\d.]+)\}", text)
        chapter = int(name[:2]) if name[0].isdigit() else 0
        assert tags == [f"{chapter}.{number}" for number in range(1, len(tags) + 1)]
        for referred in re.findall(r"\((\d+\.\d+)\)", without_code(text)):
            assert referred in EQUATIONS, f"{name}: ({referred})"


def test_a_wrong_equation_is_found():
    names = {"x": 2.0, r"\hat x_0": 3.0, r"\sigma_{t-1}": 0.5}
    assert value(r"y = \frac{x^2}{\sigma_{t-1}} - \sqrt{x + 7} \hat x_0", names) == 8 - 9
    assert value(r"y = x \cos\left(\pi\right) + \log e^{-x}", names) == -4
    with pytest.raises(AssertionError):
        value(r"x = \hat x_0 \sigma_{t-1}", names)
    with pytest.raises(Unknown):
        value(r"x = z", names)
    with pytest.raises(AssertionError):
        value(r"y = \frac{x}{2", names)


@checks("1.1")
def forward_process():
    for schedule, t in zip(SCHEDULES, (0, 20, 30, 49), strict=True):
        diffusion = process(schedule)
        names = level_names(diffusion, t) | {"x_0": X_0, r"\epsilon": NOISE}
        x_t = diffusion.q_sample(tensor(X_0), torch.full((5,), t), tensor(NOISE))
        near(equation("1.1", names), x_t, 2e-6)


@checks("1.2", "1.3", "1.4", "1.5", "1.7")
def chain():
    diffusion = process("linear")
    for t in range(diffusion.timesteps):
        names = level_names(diffusion, t)
        names[r"\beta_t"] = beta = diffusion.betas[t].item()
        alpha, sigma = names[r"\alpha_t"], names[r"\sigma_t"]
        data = {"x_{t-1}": names[r"\alpha_{t-1}"], r"\epsilon_t": 0.0}
        old_noise = {"x_{t-1}": names[r"\sigma_{t-1}"], r"\epsilon_t": 0.0}
        new_noise = {"x_{t-1}": 0.0, r"\epsilon_t": 1.0}
        step = [equation("1.2", {r"\beta_t": beta} | each) for each in (data, old_noise, new_noise)]
        near(step[0], alpha, 1e-6)
        near(sqrt(step[1] ** 2 + step[2] ** 2), sigma, 1e-6)
        without = {name: each for name, each in names.items() if name.endswith(("beta_t", "-1}"))}
        near(equation("1.3", without), alpha, 1e-6)
        near(equation("1.4", without), sigma**2, 1e-6)
        near(equation("1.5", names), diffusion.alphas_cumprod[t].item(), 1e-6)
        near(equation("1.7", names), diffusion.log_snr[t].exp().item(), 1e-5)


@checks("1.6")
def cosine():
    levels = GaussianDiffusion("cosine", 1000)._levels
    for t in (0, 100, 500, 990):
        near(equation("1.6", {"c": (t + 1) / 1000, r"\delta": 0.008}), levels[t].alpha ** 2)


def posterior_names(diffusion: GaussianDiffusion, t: int) -> dict:
    """The names of level t with those of chapter 2, computed by its equations."""
    names = level_names(diffusion, t) | {"x_0": X_0, "x_t": X_T}
    names[r"\beta_t"] = equation("2.1", names)
    names[r"\tilde\beta_t"] = equation("2.2", names)
    names[r"\tilde\mu_t"] = equation("2.3", names)
    return names


@checks("2.1", "2.2", "2.3")
def posterior():
    for schedule in SCHEDULES:
        diffusion = process(schedule)
        for t in (0, 1, 20, 49):
            names = posterior_names(diffusion, t)
            near(names[r"\beta_t"], diffusion.betas[t].item(), 2e-6)
            mean, variance = diffusion.q_posterior(tensor(X_0), tensor(X_T), torch.full((5,), t))
            near(names[r"\tilde\mu_t"], mean, 2e-5)
            near(names[r"\tilde\beta_t"], variance[0].item(), 2e-6)
    # The product of both densities on a grid.
    names = posterior_names(process("cosine"), 20)
    a = names[r"\alpha_t"] / names[r"\alpha_{t-1}"]
    x = np.linspace(-8, 8, 100_001)
    log_p = -((x - names[r"\alpha_{t-1}"] * X_0[0, 0]) ** 2) / 2 / names[r"\sigma_{t-1}"] ** 2
    log_p = log_p - (X_T[0, 0] - a * x) ** 2 / 2 / names[r"\beta_t"]
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    near((weights * x).sum(), names[r"\tilde\mu_t"][0, 0], 1e-6)
    near((weights * x**2).sum() - (weights * x).sum() ** 2, names[r"\tilde\beta_t"], 1e-6)


@checks("2.4", "2.5")
def step_of_ddpm():
    for schedule in ("linear", "edm"):
        diffusion = process(schedule)
        names = posterior_names(diffusion, 20)
        cur, nxt = diffusion._levels[20], diffusion._levels[19]
        step = one_step(ddpm, exact(tensor(X_0)), cur, nxt)
        near(equation("2.4", names | {r"\epsilon": NOISE}), step)
        hidden = {name: each for name, each in names.items() if name != "x_0"}
        noise = (X_T - cur.alpha * X_0) / cur.sigma
        near(equation("2.5", hidden | {r"\hat\epsilon": noise}), names[r"\tilde\mu_t"])


@checks("2.6")
def learned_variance():
    diffusion = process("cosine")
    names = posterior_names(diffusion, 20)
    cur, nxt = diffusion._levels[20], diffusion._levels[19]

    class Denoise:
        def with_variance(self, x, level):
            return tensor(X_0), None, 0.3

    step = one_step(ddpm, Denoise(), cur, nxt, variance="learned")
    expected = names[r"\tilde\mu_t"] + sqrt(np.exp(equation("2.6", names | {"f": 0.3}))) * NOISE
    near(expected, step)


@checks("3.1", "3.3", "3.4", "3.5", "3.6", "3.7")
def predictions():
    out = X_0_HAT
    for schedule in SCHEDULES:
        level = process(schedule)._levels[30]
        alpha, sigma = level.alpha, level.sigma
        names = {"x_0": X_0, r"\epsilon": NOISE, "x_t": X_T, r"\alpha_t": alpha}
        names |= {r"\sigma_t": sigma, "r": sqrt(alpha**2 + sigma**2)}
        for name, tag, symbol in [
            ("eps", "3.1", r"\hat\epsilon"),
            ("v", "3.4", r"\hat v"),
            ("flow", "3.6", r"\hat u"),
            ("edm", "3.7", "F"),
        ]:
            if name != "v" or schedule in ("linear", "cosine"):
                found = PREDICTIONS[name].x_0(out, X_T, alpha, sigma)
                near(equation(tag, names | {symbol: out}), found)
        if schedule in ("linear", "cosine"):
            near(equation("3.3", names), PREDICTIONS["v"].target(X_0, NOISE, alpha, sigma))
        near(equation("3.5", names), PREDICTIONS["flow"].target(X_0, NOISE, alpha, sigma))


@checks("3.2")
def implied_noise():
    for schedule in SCHEDULES:
        diffusion = process(schedule)
        names = level_names(diffusion, 20) | {"x_t": X_T, r"\hat x_0": X_0_HAT}
        denoise = diffusion.denoiser(lambda x, t: tensor(X_0_HAT))
        _, eps = denoise(tensor(X_T), diffusion._levels[20])
        near(equation("3.2", names), eps, 1e-6)


@checks("3.8")
def score():
    """By the derivative of the log density of a mixture of normal distributions."""
    parts = [(0.3, -1.0, 0.2), (0.7, 1.5, 0.5)]
    level = process("cosine")._levels[20]
    x = tensor(X_T).requires_grad_()
    log_p = torch.stack(
        [
            log(weight)
            + torch.distributions.Normal(
                level.alpha * mean, sqrt((level.alpha * std) ** 2 + level.sigma**2)
            ).log_prob(x)
            for weight, mean, std in parts
        ]
    ).logsumexp(dim=0)
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    x_0, eps = Perfect(*parts)(tensor(X_T), level)
    names = {"x_t": X_T, r"\alpha_t": level.alpha, r"\sigma_t": level.sigma}
    near(equation("3.8", names | {r"\hat x_0": x_0, r"\hat\epsilon": eps}), gradient, 1e-6)


@checks("4.1")
def divergence():
    for m_1, m_2, v_1, v_2 in [(0.0, 0.0, 1.0, 1.0), (0.3, -1.0, 0.5, 2.0)]:
        names = {"m_1": m_1, "m_2": m_2, "v_1": v_1, "v_2": v_2}
        first, second = (
            torch.distributions.Normal(m, sqrt(v)) for m, v in [(m_1, v_1), (m_2, v_2)]
        )
        near(equation("4.1", names), torch.distributions.kl_divergence(first, second), 1e-6)
        found = gaussian_kl(tensor(m_1), tensor(v_1).log(), tensor(m_2), tensor(v_2).log())
        near(equation("4.1", names), found)


@checks("4.2", "4.3")
def term_of_the_bound():
    for schedule in SCHEDULES:
        diffusion = process(schedule)
        for t in (1, 20, 45):
            names = posterior_names(diffusion, t) | {r"\hat x_0": X_0_HAT}
            names["s_t"] = (names[r"\alpha_t"] / names[r"\sigma_t"]) ** 2
            names["s_{t-1}"] = (names[r"\alpha_{t-1}"] / names[r"\sigma_{t-1}"]) ** 2
            batch = (tensor(each).view(-1, 1) for each in (X_0_HAT, X_0, X_T))
            x_0_hat, x_0, x_t = batch
            bits = diffusion.bound(x_0_hat, None, x_0, x_t, torch.full((15,), t))
            nats = (bits * log(2)).view(5, 3)
            near(equation("4.2", names) / nats.numpy(), 1, 1e-4)
            near(equation("4.3", names) / nats.numpy(), 1, 1e-4)


@checks("4.4", "4.5", "4.6")
def weights_of_losses():
    """Both sides are evaluated: the error of a prediction, and that of x_0 with its weight."""
    for schedule in ("linear", "cosine"):
        names = level_names(process(schedule), 30)
        alpha, sigma = names[r"\alpha_t"], names[r"\sigma_t"]
        x_t = alpha * X_0 + sigma * NOISE
        noise_hat = (x_t - alpha * X_0_HAT) / sigma
        snr = (alpha / sigma) ** 2
        names |= {"x_0": X_0, r"\hat x_0": X_0_HAT, "s_t": snr}
        names |= {r"\epsilon": NOISE, r"\hat\epsilon": noise_hat}
        for symbol, prediction in (("v", "v"), ("u", "flow")):
            target = PREDICTIONS[prediction].target
            names[symbol] = target(X_0, NOISE, alpha, sigma)
            names[rf"\hat {symbol}"] = target(X_0_HAT, noise_hat, alpha, sigma)
        square = (X_0 - X_0_HAT) ** 2
        near(equation("4.4", names), LOSS_WEIGHTS["snr"](snr) * square)
        near(equation("4.5", names), LOSS_WEIGHTS["edm"](snr) * square)
        equation("4.6", names)


@checks("5.1")
def frequencies():
    found = TimestepEmbedding(64).frequencies
    near(equation("5.1", {"i": np.arange(32.0), "d": 64.0}), found, 1e-6)


@checks("6.1", "6.2")
def moving_average():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    ema = EMA(network, 0.999)
    before = ema.module.weight.clone()
    nn.init.normal_(network.weight)
    ema.update(network, 40)
    near(equation("6.2", {"n": 40.0}), ema_decay(40, 0.999))
    names = {"d": equation("6.2", {"n": 40.0}), "m": before, "w": network.weight.detach()}
    near(equation("6.1", names), ema.module.weight, 1e-6)


@checks("6.3")
def decay_of_the_learning_rate():
    train = {"lr": 0.003, "warmup_steps": 10, "lr_decay": "cosine"}
    for step in (10, 40, 60, 110):
        names = {r"\eta_0": 0.003, "c": (step - 10) / 100}
        near(equation("6.3", names), learning_rate(step, 110, train))


@checks("7.1", "7.2")
def step_of_ddim():
    for schedule in SCHEDULES:
        cur, nxt = (process(schedule)._levels[t] for t in (30, 20))
        names = step_names(cur, nxt) | {r"\eta": 0.7, r"\hat x_0": X_0, r"\epsilon": NOISE}
        names |= {"k": equation("7.2", names), r"\hat\epsilon": (X_T - cur.alpha * X_0) / cur.sigma}
        step = one_step(ddim, exact(tensor(X_0)), cur, nxt, eta=0.7)
        near(equation("7.1", names), step)


@checks("7.3", "7.4", "7.5")
def steps_of_the_equations():
    """x' is that of the samplers: `equation` holds x' / alpha' to the right side."""
    denoise = Perfect((0.4, -1.0, 0.3), (0.6, 0.5, 0.2))
    for schedule in SCHEDULES:
        cur, nxt = (process(schedule)._levels[t] for t in (30, 20))
        x_0, eps = denoise(tensor(X_T), cur)
        names = step_names(cur, nxt) | {"x": X_T, r"\hat x_0": x_0, r"\hat\epsilon": eps}
        for sampler in (ddim, euler):
            equation("7.3", names | {"x'": one_step(sampler, denoise, cur, nxt)})
        equation("7.4", names | {"x'": one_step(ddpm, denoise, cur, nxt, 0 * NOISE)})
        _, ahead = denoise(tensor(one_step(euler, denoise, cur, nxt)), nxt)
        names[r"\hat\epsilon'"] = ahead
        equation("7.5", names | {"x'": one_step(heun, denoise, cur, nxt)})


@checks("7.6", "7.7", "7.8")
def steps_of_dpm_solver():
    denoise = Perfect((0.4, -1.0, 0.3), (0.6, 0.5, 0.2))
    for schedule in SCHEDULES:
        levels = [process(schedule)._levels[t] for t in (40, 30, 15)]
        names = step_names(*levels[:2])
        x_0, _ = denoise(tensor(X_T), levels[0])
        for sampler, tag, first_order in ((dpmpp_2m, "7.6", ddim), (dpmpp_2m_sde, "7.8", ddpm)):
            first, second = sampler(denoise, tensor(X_T), levels, lambda x: tensor(NOISE))
            start = names | {"x": X_T, "D": x_0, r"\epsilon": NOISE}
            near(equation(tag, start), first)
            near(equation(tag, start), one_step(first_order, denoise, *levels[:2]))
            later = step_names(*levels[1:]) | {"x": first, r"\epsilon": NOISE, "p": x_0}
            later |= {r"\hat x_0": denoise(first, levels[1])[0], "r": names["h"]}
            later["r"] = names["h"] / later["h"]
            near(equation(tag, later | {"D": equation("7.7", later)}), second)


@checks("8.1")
def guidance_by_a_gradient():
    diffusion = process("cosine")
    level = diffusion._levels[20]
    model = lambda x, t: tensor(X_0_HAT)  # noqa: E731
    denoise = diffusion.denoiser(model, steering=lambda x, t: 2.5 * tensor(NOISE))
    names = level_names(diffusion, 20) | {r"\hat x_0": X_0_HAT, "w": 2.5, "g": NOISE}
    near(equation("8.1", names), denoise(tensor(X_T), level)[0], 1e-6)


@checks("8.2", "8.3", "8.4")
def classifier_free_guidance():
    diffusion = process("cosine")
    level = diffusion._levels[20]

    def model(x, t, condition):
        known = (condition.label >= 0)[:, None]
        return torch.where(known, tensor(X_0).repeat(len(x) // 5, 1), 2 * x)

    def guided(**options):
        label = label_condition(torch.arange(5))
        denoise = diffusion.denoiser(model, label, guidance_scale=3.0, **options)
        return denoise(tensor(X_T), level)[0].numpy()

    scaled = diffusion.scaled(tensor(X_T), torch.full((5,), 20))
    names = {"a": X_0, "b": (2 * scaled).float(), "w": 3.0, "w'": 2.0}
    near(equation("8.2", names), guided(), 1e-6)
    near(equation("8.3", names), guided(), 1e-6)
    names |= {r"\tilde a": equation("8.2", names), "f": 0.7}
    before, after = (names[name].std(axis=1, ddof=1, keepdims=True) for name in ("a", r"\tilde a"))
    names["r"] = before / after
    near(equation("8.4", names), guided(guidance_rescale=0.7), 1e-5)


@checks("9.1", "9.2", "9.5")
def bits_of_the_ode():
    """Of points from a normal distribution with its perfect denoiser."""
    data = spread_data(40)
    p = torch.distributions.Normal(MEAN, STD).log_prob(data).sum(dim=1).exp()
    torch.manual_seed(0)
    bits = flow_likelihood(perfect_denoiser("linear"), data, torch.randn_like, steps=100)
    near(equation("9.1", {"p": p, "d": float(DIMS)}), bits, 0.01)
    near(equation("9.5", {"c": STD}), bits.mean(), 0.03)  # 40 points
    denoise = perfect_denoiser("linear")
    denoise.diffusion.clip = True  # pixels; the first noise, 0, leaves them in the middle of bins
    calls = count()
    signs = lambda x: x * 0 + min(next(calls), 1)  # noqa: E731
    bits = flow_likelihood(denoise, data, signs, steps=100)
    near(equation("9.2", {"p": p, "d": float(DIMS)}), bits, 0.01)


@checks("9.3")
def decoder():
    pixels = torch.arange(1, 255) / 127.5 - 1
    names = {"x_0": pixels.double(), "m": 0.2, "c": 0.05}
    found = discretized_gaussian_nll(
        pixels.double(), tensor(0.2), tensor(2 * log(0.05)).expand(254)
    )
    probability = equation("9.3", names)
    seen = probability > 1e-6  # where the difference of two numbers near 1 is exact enough
    near(-np.log(probability[seen]), found[seen], 1e-6)
    assert seen.sum() > 50


@checks("9.4")
def integral_of_the_divergence():
    n, c = np.linspace(0, 5, 100_001), 0.7
    height = n / (c**2 + n**2)
    integral = ((height[1:] + height[:-1]) / 2).sum() * (n[1] - n[0])
    found = equation("9.4", {"c": c, "N": 5.0})
    near(found, integral, 1e-7)
    at_top = torch.distributions.Normal(0, sqrt(c**2 + 25)).log_prob(
        tensor(0.4 * sqrt(c**2 + 25) / c)
    )
    near(at_top + found, torch.distributions.Normal(0, c).log_prob(tensor(0.4)), 1e-6)


@checks("10.1")
def frechet():
    a, b = (gaussian_of(tensor(each).reshape(-1, 1)) for each in (X_0, 3 * NOISE + 1))
    names = {"m_1": a.mean.item(), "m_2": b.mean.item()}
    names |= {"c_1": a.covariance.sqrt().item(), "c_2": b.covariance.sqrt().item()}
    near(equation("10.1", names), frechet_distance(a, b))


@checks("10.2")
def energy():
    def mean_distance(a, b):
        distances = [np.linalg.norm(p - q) for p in a for q in b]
        return sum(distances) / (len(a) * (len(b) - (1 if a is b else 0)))

    names = {"A": mean_distance(X_0, NOISE), "B": mean_distance(X_0, X_0)}
    names["G"] = mean_distance(NOISE, NOISE)
    near(equation("10.2", names), energy_distance(tensor(X_0), tensor(NOISE)))


@checks("11.1", "11.2", "11.3")
def flow_matching():
    diffusion = process("flow")
    cur, nxt = diffusion._levels[30], diffusion._levels[10]
    x_t = equation("11.1", {"x_0": X_0, r"\epsilon": NOISE, r"\tau": cur.sigma})
    near(diffusion.q_sample(tensor(X_0), torch.full((5,), 30), tensor(NOISE)), x_t, 1e-6)
    eps = (X_T - cur.alpha * X_0) / cur.sigma
    names = step_names(cur, nxt) | {"x": X_T, r"\tau": cur.sigma, r"\tau'": nxt.sigma}
    names |= {r"\hat x_0": X_0, r"\hat\epsilon": eps}
    step = one_step(ddim, exact(tensor(X_0)), cur, nxt)
    near(equation("11.3", names), step)
    near(equation("11.2", names | {r"\hat u": eps - X_0}), step)


@checks("11.4", "11.5")
def other_clocks():
    flow = process("flow")
    for schedule in ("linear", "cosine", "edm"):
        names = level_names(process(schedule), 25)
        names[r"\tau"] = equation("11.5", names)
        names |= {"x_0": X_0, r"\epsilon": NOISE}
        equation("11.4", names | {"x_t": equation("1.1", names)})
        ratio = names[r"\sigma_t"] / names[r"\alpha_t"]
        near(flow.nearest(ratio).sigma, names[r"\tau"], 0.02)  # one of 50 timesteps


@checks("12.1")
def scaled_latents():
    torch.manual_seed(0)
    space = LatentSpace(Autoencoder(8, 1, channels=8).eval())
    images = torch.rand(3, 1, 8, 8)
    space.mean.fill_(0.3)
    space.std.fill_(2.0)
    z = space.autoencoder.encode(images).detach()
    near(equation("12.1", {"z": z, "m": 0.3, "c": 2.0}), space.encode(images), 1e-6)


@checks("12.2")
def distillation():
    """The single step with this prediction ends where the two steps of the teacher do."""
    denoise = Perfect((0.4, -1.0, 0.3), (0.6, 0.5, 0.2))
    levels = [process("cosine")._levels[t] for t in (40, 25, 10)]
    *_, goal = ddim(denoise, tensor(X_T), levels, None)
    names = {"x": X_T, "x''": goal, r"\alpha": levels[0].alpha, r"\sigma": levels[0].sigma}
    names |= {r"\alpha''": levels[2].alpha, r"\sigma''": levels[2].sigma}
    x_0 = tensor(equation("12.2", names))
    near(one_step(ddim, exact(x_0), levels[0], levels[2]), goal)


@checks("12.3")
def step_of_consistency():
    cur, nxt = (process("cosine")._levels[t] for t in (40, 25))
    names = step_names(cur, nxt) | {r"\hat x_0": X_0, r"\epsilon": NOISE}
    near(equation("12.3", names), one_step(consistency, exact(tensor(X_0)), cur, nxt))
