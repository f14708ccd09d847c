"""export.py --to web for points: the page draws and learns as PyTorch does."""

import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import train
from browser import Browser
from checkpoints.checkpoint import load_checkpoint, restore
from cli import process
from cli.training import TRAIN
from conditions import Condition
from diffusion import GaussianDiffusion
from exports.page import PAGES, SAMPLERS, rendered, require_page
from models.mlp import MLP
from pages import (
    click,
    damage,
    exported,
    parts_of,
    pixels_of,
    require_quiet,
    run_node,
    set_value,
    text_of,
    wait,
)
from sample import sample
from training import preview
from training.ema import EMA
from visuals.score_field import lattice

FEW = ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--save-interval", "0"]
FEW += ["--sample-interval", "0", "--snapshots", "0", "--dataset", "moons", "--channels", "32"]
FEW += ["--blocks", "2", "--max-steps", "30", "--batch-size", "256", "--lr", "0.01"]
NETWORKS = {
    "default": [],
    "classes": ["--class-conditional", "--prediction", "v", "--channels", "30"],
    "variance": ["--learn-sigma", "--schedule", "edm", "--channels", "16"],
}
DRAW = """
const { process, shape } = page.content;
const predict = networkOf(page);
return data.map((request) => Array.from([...api.draw(process, predict, shape, request)].at(-1).x));
"""
FIELD = """
const { process } = page.content;
const denoiser = new api.Denoiser(process, networkOf(page), null, 1);
return data.levels.map((level) => {
  const scale = Math.hypot(level.alpha, level.sigma);
  const { eps } = denoiser.denoise(Float32Array.from(data.positions, (x) => x * scale), level);
  return Array.from(eps);
});
"""
GRADIENT = """
const weights = Object.fromEntries(
  Object.entries(data.weights).map(([name, values]) => [name, Float32Array.from(values)])
);
const zero = ([name, values]) => [name, new Float32Array(values.length)];
const gradients = Object.fromEntries(Object.entries(weights).map(zero));
const network = new api.MLP(data.model, (name) => weights[name], [], gradients);
const loss = api.lossAndGradient(network, data.process, data.dim, data.batch);
const plain = ([name, values]) => [name, Array.from(values)];
return { loss, gradients: Object.fromEntries(Object.entries(gradients).map(plain)) };
"""
STEPS = """
const weights = Object.fromEntries(
  Object.entries(data.weights).map(([name, values]) => [name, Float32Array.from(values)])
);
const trainer = new api.Trainer(data.model, data.dim, data.process, weights);
const losses = data.batches.map((batch, i) => trainer.trainStep(batch, data.rates[i]));
const plain = ([name, values]) => [name, Array.from(values)];
const all = (found) => Object.fromEntries(Object.entries(found).map(plain));
return { losses, weights: all(trainer.weights), average: all(trainer.average) };
"""
LEARN = """
const points = Float32Array.from(data.points);
let last;
const training = { points, steps: data.steps, seed: 5 };
for (const { trainer } of api.train(data.process, 2, training)) last = trainer;
const predict = api.predictor(api.OWN_MODEL, { dim: 2 }, (name) => last.average[name]);
const request = { label: null, seed: 1, sampler: "dpmpp_2m", steps: 10, guidance: 1, count: 200 };
return Array.from([...api.draw(data.process, predict, { dim: 2 }, request)].at(-1).x);
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The checkpoint of a short run with one of `NETWORKS`, trained when it is first asked for."""
    folder, found = tmp_path_factory.mktemp("points"), {}

    def run(name: str) -> Path:
        if name not in found:
            found[name] = folder / name
            words = [*FEW, *NETWORKS[name], "--output-dir", str(found[name])]
            with mock.patch.object(preview, "NUM_POINTS", 100):
                assert process.run(train.main, TRAIN.parse(words)) == 0
        return found[name] / "model_final.pt"

    return run


@pytest.mark.parametrize("name", NETWORKS)
def test_the_page_draws_the_points_of_sample_py(runs, name, tmp_path):
    checkpoint = runs(name)
    page = parts_of(exported(checkpoint, tmp_path / "page.html"))
    classes, requests = page["content"]["classes"], []
    for number, sampler in enumerate(SAMPLERS):
        request = {"seed": number, "sampler": sampler, "steps": 5 + number, "count": 24}
        requests.append(request | {"label": None, "guidance": 1})
        if classes:  # of all classes in turn, of one, guided and not
            label = [i % 2 for i in range(24)] if number % 2 else 1
            requests[-1] |= {"label": label, "guidance": 1 + number}
    found = run_node("mlp", "draw, predictor, weightsOf", DRAW, page, requests)
    for request, x in zip(requests, found, strict=True):
        flags = {k: request[k] for k in ("seed", "sampler", "steps")}
        if classes:
            flags["guidance_scale"] = request["guidance"]
            flags |= {} if isinstance(request["label"], list) else {"class_id": "1"}
        expected = sample(checkpoint, num_images=24, threads=1, device="cpu", **flags)
        assert np.abs(np.array(x).reshape(24, 2) - expected).max() < 1e-3, request


def test_the_arrows_are_the_learned_score(runs, tmp_path):
    checkpoint = runs("default")
    page = parts_of(exported(checkpoint, tmp_path / "page.html"))
    model, diffusion = restore(load_checkpoint(checkpoint))
    levels = [diffusion.levels()[i] for i in (0, 400, 900)]
    data = {"positions": lattice().flatten().tolist()}
    data["levels"] = [{"t": v.t, "alpha": v.alpha, "sigma": v.sigma} for v in levels]
    found = run_node("mlp", "Denoiser, predictor, weightsOf", FIELD, page, data)
    for level, eps in zip(levels, found, strict=True):
        _, expected = diffusion.denoiser(model)(level.scale * lattice(), level)
        assert_close(torch.tensor(eps).view(-1, 2), expected, atol=1e-3, rtol=1e-3)


def lists(weights: dict) -> dict[str, list[float]]:
    """Tensors as plain lists, by name."""
    return {name: weight.flatten().tolist() for name, weight in weights.items()}


def described(diffusion: GaussianDiffusion, prediction: str) -> dict:
    """A process as the page has it."""
    levels = diffusion.levels()[-2::-1]
    return {
        "alpha": [level.alpha for level in levels],
        "sigma": [level.sigma for level in levels],
        "prediction": prediction,
        "clip": False,
        "clip_loss": False,
        "sigma_data": diffusion.sigma_data,
    }


def random_network(channels: int, num_classes: int | None = None) -> MLP:
    """A network with all its weights random: those that begin with zero would have no gradient."""
    torch.manual_seed(0)
    model = MLP(2, channels, 2, num_classes=num_classes)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def batches(count: int, size: int, classes: int = 0) -> list[dict]:
    """Points, timesteps, noise and labels; -1 is no label."""
    torch.manual_seed(1)
    return [
        {
            "x_0": torch.randn(size, 2),
            "t": torch.randint(1000, (size,)),
            "noise": torch.randn(size, 2),
            "label": torch.randint(-1, classes, (size,)) if classes else -torch.ones(size).long(),
        }
        for _ in range(count)
    ]


def plain(batch: dict) -> dict[str, list]:
    """A batch for JavaScript."""
    return {name: values.flatten().tolist() for name, values in batch.items()}


@pytest.mark.parametrize(
    ("prediction", "schedule", "sigma_data", "classes"),
    [("flow", "cosine", 1.0, 0), ("v", "cosine", 1.0, 3), ("edm", "edm", 0.7, 0)],
)
def test_the_gradient_is_that_of_pytorch(prediction, schedule, sigma_data, classes):
    diffusion = GaussianDiffusion(schedule, 1000, prediction, clip=False, sigma_data=sigma_data)
    model = random_network(22, classes or None)
    (batch,) = batches(1, 37, classes)
    condition = Condition(label=batch["label"]) if classes else None
    loss = diffusion.loss(model, batch["x_0"], condition, t=batch["t"], noise=batch["noise"])
    loss.backward()
    data = {"weights": lists(model.state_dict()), "batch": plain(batch), "dim": 2}
    data["process"] = described(diffusion, prediction)
    data["model"] = {"channels": 22, "blocks": 2, "num_classes": classes}
    found = run_node("mlp", "MLP, lossAndGradient", GRADIENT, None, data)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        gradient, size = torch.tensor(found["gradients"][name]), parameter.grad.abs().max()
        assert size > 0
        assert (gradient.view_as(parameter) - parameter.grad).abs().max() < 1e-4 * size, name


def test_training_steps_are_those_of_pytorch():
    """AdamW, the clipped gradient and the moving average, over a few steps."""
    diffusion = GaussianDiffusion("cosine", 1000, "flow", clip=False)
    model, steps = random_network(16), batches(5, 32)
    data = {"weights": lists(model.state_dict()), "batches": [*map(plain, steps)], "dim": 2}
    data |= {"rates": [1e-3, 2e-3, 3e-3, 2e-3, 1e-3], "process": described(diffusion, "flow")}
    data["model"] = {"channels": 16, "blocks": 2, "num_classes": 0}
    optimizer, ema, losses = torch.optim.AdamW(model.parameters()), EMA(model, 0.9999), []
    for i, (batch, rate) in enumerate(zip(steps, data["rates"], strict=True)):
        optimizer.param_groups[0]["lr"] = rate
        loss = diffusion.loss(model, batch["x_0"], t=batch["t"], noise=batch["noise"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model, i)
        losses.append(loss.item())
    found = run_node("mlp", "Trainer", STEPS, None, data)
    assert found["losses"] == pytest.approx(losses, rel=1e-4)
    for trained, saved in [(model, "weights"), (ema.module, "average")]:
        for name, weight in trained.state_dict().items():
            values = torch.tensor(found[saved][name]).view_as(weight)
            assert_close(values, weight, atol=1e-4, rtol=1e-4)


def test_a_network_that_is_trained_in_the_page_draws_what_it_was_trained_on():
    """Two narrow Gaussians: the samples lie at both, in equal parts."""
    rng = np.random.RandomState(0)
    centres = np.array([[-1.2, -0.8], [1.2, 0.8]])
    points = centres[rng.randint(2, size=2000)] + 0.1 * rng.randn(2000, 2)
    diffusion = GaussianDiffusion("cosine", 1000, "flow", clip=False)
    data = {"points": points.flatten().tolist(), "steps": 120}
    data["process"] = described(diffusion, "flow")
    names = "train, predictor, OWN_MODEL, draw"
    samples = np.array(run_node("mlp", names, LEARN, None, data)).reshape(-1, 2)
    distances = np.linalg.norm(samples[:, None] - centres, axis=2)
    assert np.median(distances.min(axis=1)) < 0.25
    assert 0.35 < np.mean(distances.argmin(axis=1)) < 0.65


def test_points_that_are_not_in_a_plane_are_refused():
    with pytest.raises(ValueError, match="its points have 3 coordinates"):
        require_page({"model": {"name": "mlp", "dim": 3}})


# --- in a browser --------------------------------------------------------------------------------

DRAWN = "document.getElementById('status').textContent.includes('network calls')"


def drawn(browser: Browser) -> np.ndarray:
    """The points (N, 2) that the page has drawn last."""
    wait(browser, DRAWN)
    return np.array(browser.run("Array.from(frames.at(-1).x)")).reshape(-1, 2)


def press(browser: Browser, key: str, code: int, modifiers: int = 0) -> None:
    """Press a key and release it."""
    options = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, **options)


def picture_of(browser: Browser, canvas: str) -> str:
    """A canvas as text, to compare it with other ones."""
    return browser.run(f"document.getElementById('{canvas}').toDataURL()")


def centre_of(browser: Browser, element: str) -> list[float]:
    """The centre of an element in the window, after scrolling to it."""
    return browser.run(
        f"(() => {{ const node = document.getElementById('{element}'); node.scrollIntoView(); "
        "const {left, top, width, height} = node.getBoundingClientRect(); "
        "return [left + width / 2, top + height / 2]; })()"
    )


def test_every_control_of_the_page_of_points_in_a_browser(browser, runs, tmp_path):
    checkpoint = runs("classes")
    page = exported(checkpoint, tmp_path / "page.html")
    browser.show(1000)
    browser.open(page)
    assert len(drawn(browser)) == 500  # it begins with a drawing

    # Draw.
    flags = {"sampler": "ddim", "steps": 5, "class_id": "1", "guidance_scale": 2}
    common = {"num_images": 200, "device": "cpu", "threads": 1}
    for control, value in [("class", 1), ("count", 200), ("seed", 2), ("sampler", "ddim")]:
        set_value(browser, control, value)
    for control, value in [("steps", 5), ("guidance", 2)]:
        set_value(browser, control, value)
    click(browser, "draw")
    expected = sample(checkpoint, seed=2, **flags, **common)
    assert np.abs(drawn(browser) - expected).max() < 1e-3
    assert text_of(browser, "status").startswith("10 network")
    click(browser, "another")
    expected = sample(checkpoint, seed=3, **flags, **common)
    assert np.abs(drawn(browser) - expected).max() < 1e-3

    # The points are where they should be, in the colour of points.
    colours = pixels_of(browser, "clean")
    x, y = np.round((expected / 3 * [1, -1] + 1) * 320).astype(int).T
    inside = (x >= 0) & (x < 640) & (y >= 0) & (y < 640)
    assert inside.mean() > 0.8
    assert (colours[y[inside], x[inside]] < 64).all()  # #0b5cad
    assert (colours > 192).mean() > 0.8
    assert picture_of(browser, "noisy") != picture_of(browser, "clean")
    click(browser, "trajectories")  # without them, both show the samples
    assert picture_of(browser, "noisy") == picture_of(browser, "clean")
    set_value(browser, "scrub", 0)
    assert "step 0 of 5" in text_of(browser, "moment")
    assert picture_of(browser, "noisy") == picture_of(browser, "clean")  # the noise
    set_value(browser, "scrub", 1)
    assert picture_of(browser, "noisy") != picture_of(browser, "clean")

    # The score, at two timesteps.
    arrows, noised = picture_of(browser, "arrows"), picture_of(browser, "noised")
    set_value(browser, "forward", 900)
    wait(browser, "field.t === 900 && !jobs.field")
    assert "t = 900" in text_of(browser, "signal")
    assert picture_of(browser, "arrows") != arrows
    assert picture_of(browser, "noised") != noised
    model, diffusion = restore(load_checkpoint(checkpoint))
    level, found = diffusion.levels()[99], browser.run("Array.from(field.arrows)")
    label = Condition(label=torch.ones(len(lattice()), dtype=torch.long))
    denoise = diffusion.denoiser(model, label, guidance_scale=2.0)
    _, eps = denoise(level.scale * lattice(), level)
    assert level.t == 900
    assert_close(torch.tensor(found).view(-1, 2), -eps, atol=1e-3, rtol=1e-3)

    # One's own points: by the mouse, by keys, cleared, copied.
    assert browser.run("document.getElementById('train').disabled")
    set_value(browser, "brush", 0.03)
    middle = centre_of(browser, "own")
    for kind, buttons in [("mousePressed", 1), ("mouseMoved", 1), ("mouseReleased", 0)]:
        options = {"x": middle[0], "y": middle[1], "button": "left", "buttons": buttons}
        browser.call("Input.dispatchMouseEvent", type=kind, clickCount=1, **options)
    points = np.array(browser.run("own")).reshape(-1, 2)
    assert len(points) == 16
    assert np.abs(points).max() < 0.2
    click(browser, "clear")
    assert text_of(browser, "counted").endswith("draw here")
    browser.run("document.getElementById('fade').focus()")
    press(browser, "Tab", 9, modifiers=8)  # with Shift: back
    assert browser.run("document.activeElement.id") == "own"
    for _ in range(4):
        press(browser, "ArrowRight", 39)
        press(browser, "ArrowUp", 38)
        press(browser, " ", 32)
    points = np.array(browser.run("own")).reshape(-1, 2)
    assert len(points) == 32
    assert np.abs(points.mean(axis=0) - 0.15 * 2.5).max() < 0.05
    browser.run("document.activeElement.blur()")  # hides the keyboard's brush
    click(browser, "copy")
    assert text_of(browser, "counted") == "x_0, your 200 points"
    set_value(browser, "fade", 999)
    assert "t = 999" in text_of(browser, "fading")
    assert picture_of(browser, "faded") != picture_of(browser, "own")
    set_value(browser, "fade", -1)
    assert picture_of(browser, "faded") == picture_of(browser, "own")

    # Train on them, stop, train again, and draw with that network.
    set_value(browser, "length", 20_000)
    click(browser, "train")
    wait(browser, "document.getElementById('trained').value > 10")
    click(browser, "stop")
    assert text_of(browser, "report").startswith("stopped after")
    drawn(browser)
    set_value(browser, "length", 100)
    click(browser, "train")
    wait(browser, "document.getElementById('report').textContent.startsWith('trained 100')")
    assert browser.run("document.getElementById('network').value") == "own"
    assert browser.run("document.querySelector('.conditional').hidden")
    assert text_of(browser, "learning").endswith("after 100 steps")
    assert picture_of(browser, "learned") != picture_of(browser, "own")
    assert len(drawn(browser)) == 200

    set_value(browser, "network", "page", "change")
    assert np.abs(drawn(browser) - expected).max() < 1e-3
    set_value(browser, "steps", 1000)
    click(browser, "draw")
    wait(browser, "document.getElementById('progress').value > 1")
    click(browser, "cancel")
    assert text_of(browser, "status") == "cancelled"
    require_quiet(browser, page)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_the_page_of_points_fits_the_window(browser, runs, tmp_path, width, dark):
    page = exported(runs("default"), tmp_path / "page.html")
    browser.show(width, dark=dark, less_motion=True)
    browser.open(page)
    browser.run("painted = 0; (() => { const all = show; show = (n) => (painted++, all(n)); })()")
    drawn(browser)
    assert browser.run("painted") == 1  # with reduced motion, only the end is shown
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert (pixels_of(browser, "own")[5, 5] < 64) == dark


def test_damaged_weights_are_reported_in_the_page_of_points(browser, runs, tmp_path):
    page = exported(runs("default"), tmp_path / "page.html")
    damage(page)
    browser.open(page)
    wait(browser, "document.getElementById('status').textContent.includes('damaged')")
    for control in ("draw", "another", "train"):
        assert browser.run(f"document.getElementById('{control}').disabled")


def test_the_published_page_of_points_is_made_of_the_published_sources():
    """Its weights are those of a run that docs/points.md describes."""
    published = Path(__file__).resolve().parent.parent / "docs" / "moons.html"
    text, parts = published.read_text(), parts_of(published)
    title = re.search("<title>(.*?)</title>", text)[1]
    summary = re.search(r"</h1>\n<p>(.*?) Everything runs", text)[1]
    model = re.search(r'<script id="model"[^>]*>(.*?)</script>', text, re.DOTALL)[1]
    content = {"title": title, "summary": summary, "model": model, "weights": parts["weights"]}
    expected = rendered(
        PAGES["mlp"], timesteps=len(parts["content"]["process"]["alpha"]), **content
    )
    assert text == expected
    assert published.stat().st_size < 300_000
