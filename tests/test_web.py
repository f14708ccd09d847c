"""export.py --to web: the page draws what sample.py draws."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.checkpoint import load_checkpoint, restore
from conftest import ROOT
from diffusion import GaussianDiffusion
from exports.network import TrainedNetwork
from exports.page import PAGES, SAMPLERS, described_network
from pages import (
    click,
    damage,
    exported,
    parts_of,
    pixels_of,
    require_quiet,
    run_node,
    set_value,
    wait,
    write_weights,
)
from sample import sample
from utils import NoisePerImage

FEW = ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--save-interval", "0"]
FEW += ["--sample-interval", "0", "--snapshots", "0", "--batch-size", "8"]
NOISE = """
return data.map(([seed, index, counts]) => {
  const generator = new api.Generator(api.imageSeed(seed, index));
  return counts.map((count) => Array.from(generator.normal(count)));
});
"""
DRAW = """
const { process, shape } = page.content;
const predict = networkOf(page);
return data.map((request) => Array.from([...api.draw(process, predict, shape, request)].at(-1).x));
"""


def drawn(page: dict, requests: list[dict]) -> list[list[float]]:
    """The numbers of the images that the page draws, in Node."""
    return run_node("unet", "draw, predictor, weightsOf", DRAW, page, requests)


NETWORKS = {
    "default": [],  # efficient, with attention in the middle
    "laptop": ["--multipliers", "1", "3", "--no-efficient", "--blocks", "2", "--schedule", "edm"],
    "attention": ["--attention-resolutions", "8", "4", "--prediction", "v", "--learn-sigma"],
    "unconditional": ["--no-class-conditional", "--image-size", "8x12", "--prediction", "eps"],
}
NETWORKS["attention"] += ["--schedule", "flow"]  # which begins in pure noise


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights file of one of `NETWORKS`, untrained, written when it is first asked for."""
    folder, found = tmp_path_factory.mktemp("web"), {}

    def of(name: str) -> Path:
        if name not in found:
            path = folder / f"{name}.safetensors"
            words = ["--dataset", "digits", "--channels", "8", "--precision", "fp32"]
            found[name] = write_weights(path, *words, *NETWORKS[name])
        return found[name]

    return of


def test_noise_is_that_of_sample_py():
    requests = [[0, 0, [64]], [123456789, 7, [784, 784]], [5, 63, [100, 17, 3072]]]
    requests += [[5, 1, [2, 2, 2]], [1, 2, [3, 20, 15, 2]]]  # fewer than 16 are drawn one by one
    everything = run_node("unet", "Generator, imageSeed", NOISE, None, requests)
    for (seed, index, counts), found in zip(requests, everything, strict=True):
        stream = NoisePerImage(seed, [index])
        for count, numbers in zip(counts, found, strict=True):
            expected = stream.draw((count,))[0]
            assert np.abs(np.array(numbers) - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_the_page_draws_what_sample_py_draws(weights, name, tmp_path):
    """Within two grey levels: its weights are rounded to 16 bits."""
    checkpoint = weights(name)
    page = parts_of(exported(checkpoint, tmp_path / "page.html"))
    classes, requests = page["content"]["classes"], []
    for number, sampler in enumerate(SAMPLERS):
        guided = bool(classes) and number % 2 == 0
        request = {"seed": number, "index": 0, "sampler": sampler, "steps": 4 + number}
        requests.append(request | {"label": 3 if classes else None})
        requests[-1]["guidance"] = 1.7 if guided else 1
    shape = page["content"]["shape"]
    for request, x in zip(requests, drawn(page, requests), strict=True):
        flags = {k: request[k] for k in ("seed", "sampler", "steps")}
        if classes:
            flags |= {"class_id": "3", "guidance_scale": request["guidance"]}
        expected = sample(checkpoint, num_images=1, threads=1, device="cpu", **flags)[0]
        size = (shape["channels"], shape["height"], shape["width"])
        found = np.moveaxis(np.array(x).reshape(size), 0, -1)
        levels = np.round((found.clip(-1, 1) + 1) * 127.5)
        assert np.abs(levels - expected).max() <= 2, request


def test_the_page_fills_and_redraws_as_sample_py_does(weights, tmp_path):
    checkpoint = weights("default")
    page = parts_of(exported(checkpoint, tmp_path / "page.html"))
    picture = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :5] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    own = (picture / 127.5 - 1).flatten().tolist()
    common = {"seed": 3, "steps": 6, "label": 3, "guidance": 1}
    fill = {"known": own, "mask": (mask / 255).flatten().tolist(), "resamplings": 3}
    redraw = {"start": own, "strength": 0.5, "sampler": "ddim"}
    flags = {"seed": 3, "steps": 6, "class_id": "3", "num_images": 1}
    flags |= {"device": "cpu", "threads": 1}
    files = {"inpaint": str(tmp_path / "picture.png"), "mask": str(tmp_path / "mask.png")}
    expected = [
        sample(checkpoint, **flags, **files, resamplings=3),
        sample(checkpoint, **flags, start_from=files["inpaint"], strength=0.5, sampler="ddim"),
    ]
    found = drawn(page, [common | fill, common | redraw])
    for x, images in zip(found, expected, strict=True):
        levels = np.round((np.array(x).clip(-1, 1) + 1) * 127.5).reshape(8, 8)
        assert np.abs(levels - images[0, ..., 0]).max() <= 2


def test_a_tuned_network_offers_its_sampler_and_its_steps(weights, script, tmp_path):
    teacher = weights("default")
    words = ["--tune", "consistency", "--teacher", teacher, "--max-steps", 2, *FEW]
    assert script("train", *words, "--output-dir", "tuned").code == 0
    checkpoint = Path("tuned/model_final.pt")
    page = parts_of(exported(checkpoint, tmp_path / "page.html"))
    assert page["content"]["samplers"] == ["consistency"]
    assert page["content"]["steps"] == 2
    request = {"seed": 4, "sampler": "consistency", "steps": 2, "label": 5, "guidance": 1}
    (x,) = drawn(page, [request])
    expected = sample(checkpoint, num_images=1, class_id="5", seed=4, device="cpu", threads=1)[0]
    levels = np.round((np.array(x).clip(-1, 1) + 1) * 127.5).reshape(expected.shape[:2])
    assert np.abs(levels - expected[..., 0]).max() <= 2


def test_a_distilled_network_has_no_other_number_of_steps(weights, script, tmp_path):
    words = ["--tune", "distill", "--teacher", weights("default"), "--max-steps", 1, *FEW]
    words += ["--teacher-steps", 8]
    assert script("train", *words, "--output-dir", "tuned").code == 0
    content = parts_of(exported(Path("tuned/model_final.pt"), tmp_path / "page.html"))["content"]
    assert content["samplers"] == ["ddim"]
    assert (content["steps"], content["fixed_steps"], content["guided"]) == (4, True, False)


def test_the_page_begins_with_the_usual_sampler_and_steps(weights):
    checkpoint = load_checkpoint(weights("default"))
    model, _ = restore(checkpoint)
    for tune, timesteps, sampler, steps in [
        (None, 1000, "dpmpp_2m_sde", 20),
        (None, 10, "dpmpp_2m_sde", 10),  # the page has no more
        ("reflow", 1000, "ddim", 4),
        ("consistency", 1000, "consistency", 2),
    ]:
        config = checkpoint["config"]
        config["train"]["tune"] = tune
        process = GaussianDiffusion(**config["diffusion"] | {"timesteps": timesteps})
        network = TrainedNetwork(config, 1, "ema", model, process)
        content = described_network(PAGES["unet"], network)
        assert (content["samplers"][0], content["steps"]) == (sampler, steps)
        assert content["guided"] == (tune in (None, "reflow"))
        if content["guided"]:
            assert set(content["samplers"]) == set(SAMPLERS)


def test_networks_that_the_page_cannot_hold_are_refused(script, tmp_path):
    path = write_weights(tmp_path / "dit.safetensors", "--model", "dit", "--dataset", "digits")
    result = script("export", "--checkpoint", path, "--to", "web", "page.html")
    assert result.code == 2
    assert "contains the network dit; only unet and mlp" in result.err
    assert script("export", "--checkpoint", path, "--to", "web", "page.txt").code == 2


def test_weights_are_those_of_the_average_in_16_bits(conditional, tmp_path):
    page = parts_of(exported(conditional, tmp_path / "page.html"))
    halves = np.frombuffer(base64.b64decode(page["weights"]), "<f2")
    for name, weight in load_checkpoint(conditional)["ema"].items():
        first, count = page["content"]["index"][name]
        found = torch.from_numpy(halves[first : first + count].astype(np.float32))
        assert torch.equal(found, weight.flatten().half().float())


def test_the_published_page_is_made_of_the_published_weights_and_sources(tmp_path):
    root = Path(__file__).resolve().parent.parent
    published = root / "docs" / "mnist.html"
    expected = exported(root / "weights" / "mnist.safetensors", tmp_path / "page.html")
    processes = [parts_of(page)["content"]["process"] for page in (published, expected)]
    for name in (
        "alpha",
        "sigma",
    ):  # their last digits depend on the machine's exponential function
        assert np.allclose(*(process[name] for process in processes), rtol=1e-12, atol=0)
    texts = [
        re.sub(r'"(alpha|sigma)": \[[^]]*\]', "", page.read_text())
        for page in (published, expected)
    ]
    assert texts[0] == texts[1]
    assert published.stat().st_size < 6_000_000


# --- in a browser --------------------------------------------------------------------------------


DONE = "document.getElementById('status').textContent.includes('network calls')"


def test_every_control_of_the_page_in_a_browser(browser, weights, tmp_path):
    checkpoint = weights("default")
    page = exported(checkpoint, tmp_path / "page.html")
    browser.show(1000)
    browser.open(page)
    wait(browser, "document.getElementById('status').textContent === 'ready'")
    for control, value in [("class", 3), ("seed", 2), ("sampler", "ddim")]:
        set_value(browser, control, value)
    for control, value in [("steps", 5), ("guidance", 1.7)]:
        set_value(browser, control, value)
    click(browser, "draw")
    wait(browser, DONE)
    flags = {"class_id": "3", "sampler": "ddim", "steps": 5, "guidance_scale": 1.7}
    common = {"num_images": 1, "device": "cpu", "threads": 1}
    expected = sample(checkpoint, seed=2, **flags, **common)[0, ..., 0].astype(int)
    drawn = pixels_of(browser, "clean")
    assert np.abs(drawn - expected).max() <= 2
    assert browser.run("document.getElementById('status').textContent").startswith("10 network")

    set_value(browser, "scrub", 0)
    assert "step 0 of 5" in browser.run("document.getElementById('moment').textContent")
    assert np.abs(pixels_of(browser, "noisy") - drawn).max() > 50
    set_value(browser, "scrub", 5)
    assert np.array_equal(pixels_of(browser, "clean"), drawn)

    click(browser, "another")
    wait(browser, DONE + " && document.getElementById('seed').value === '3'")
    following = sample(checkpoint, seed=3, **flags, **common)[0, ..., 0].astype(int)
    assert np.abs(pixels_of(browser, "clean") - following).max() <= 2

    click(browser, "copy")
    assert np.abs(pixels_of(browser, "own") - following).max() <= 2
    set_value(browser, "forward", 900)
    assert "t = 900" in browser.run("document.getElementById('signal').textContent")
    assert np.abs(pixels_of(browser, "noised") - pixels_of(browser, "own")).max() > 50
    set_value(browser, "strength", 0.4)
    click(browser, "redraw")
    wait(browser, DONE)
    assert np.abs(pixels_of(browser, "clean") - following).mean() < 60

    click(browser, "clear")
    assert pixels_of(browser, "own").max() == 0
    box = browser.run(
        "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        "(document.getElementById('own').getBoundingClientRect())"
    )
    browser.run("document.getElementById('own').scrollIntoView()")
    box = browser.run(
        "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        "(document.getElementById('own').getBoundingClientRect())"
    )
    for kind, buttons in [("mousePressed", 1), ("mouseMoved", 1), ("mouseReleased", 0)]:
        options = {"x": box[0], "y": box[1], "button": "left", "buttons": buttons}
        browser.call("Input.dispatchMouseEvent", type=kind, clickCount=1, **options)
    assert pixels_of(browser, "own").max() > 200

    set_value(browser, "brush", "mark")
    for kind, buttons in [("mousePressed", 1), ("mouseReleased", 0)]:
        options = {"x": box[0] - 30, "y": box[1], "button": "left", "buttons": buttons}
        browser.call("Input.dispatchMouseEvent", type=kind, clickCount=1, **options)
    set_value(browser, "steps", 3)
    click(browser, "fill")
    wait(browser, DONE)
    set_value(browser, "sampler", "dpmpp_2m")
    set_value(browser, "seed", 2)
    set_value(browser, "other", 3)
    click(browser, "interpolate")
    captions = "[...document.querySelectorAll('#{0} figcaption')]"
    finished = captions + ".every(node => node.textContent.includes('calls'))"
    wait(browser, finished.format("between"))
    numbered = ".forEach((node, i) => node.id = 'between' + i)"
    browser.run("[...document.querySelectorAll('#between canvas')]" + numbered)
    flags = {"class_id": "3", "sampler": "dpmpp_2m", "steps": 3, "guidance_scale": 1.7}
    for place, seed in [(0, 2), (6, 3)]:
        end = sample(checkpoint, seed=seed, **flags, **common)[0, ..., 0].astype(int)
        assert np.abs(pixels_of(browser, f"between{place}") - end).max() <= 2
    click(browser, "compare")
    wait(browser, finished.format("compared"))
    assert browser.run("document.querySelectorAll('#compared canvas').length") == 3 * len(SAMPLERS)

    set_value(browser, "steps", 500)
    click(browser, "draw")
    wait(browser, "document.getElementById('progress').value > 1")
    click(browser, "cancel")
    assert browser.run("document.getElementById('status').textContent") == "cancelled"
    set_value(browser, "steps", 2)
    click(browser, "draw")
    wait(browser, DONE)

    require_quiet(browser, page)


@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_fits_the_window(browser, weights, tmp_path, width):
    page = exported(weights("default"), tmp_path / "page.html")
    for dark in (False, True):
        browser.show(width, dark=dark)
        browser.open(page)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")


def test_damaged_weights_are_reported_in_the_page(browser, weights, tmp_path):
    page = exported(weights("default"), tmp_path / "page.html")
    damage(page)
    browser.open(page)
    wait(browser, "document.getElementById('status').textContent.includes('damaged')")
    assert browser.run("document.getElementById('draw').disabled")


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_accessibility_asks_for(scheme):
    """4.5 between text and what is behind it (WCAG 2.2, criterion 1.4.3)."""
    blocks = re.findall(r":root \{(.*?)\}", (ROOT / "web" / "style.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", blocks[scheme]))
    for text in ("text", "soft", "accent", "own"):
        for behind in ("page", "card"):
            pair = sorted(luminance(colours[name]) for name in (text, behind))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (text, behind)
    button = sorted(luminance(colours[name]) for name in ("accent", "page"))
    assert (button[1] + 0.05) / (button[0] + 0.05) >= 4.5
