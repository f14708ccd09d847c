"""export.py --to web for captions: the page reads prompts and draws as sample.py does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from checkpoints.checkpoint import load_checkpoint
from checkpoints.weights import save_weights
from cli import process
from cli.training import TRAIN
from exports.page import require_page
from images import save_image
from models.tokenizer import Tokenizer
from pages import (
    click,
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

FEW = ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--save-interval", "0"]
FEW += ["--sample-interval", "0", "--snapshots", "0", "--channels", "16", "--batch-size", "8"]
FEW += ["--attention-resolutions", "4", "--cross-attention-resolutions", "8"]
FEW += ["--max-steps", "1", "--multipliers", "1", "1", "--lr", "0.01", "--validation", "4"]
PROMPTS = ["a red square, number 3", "blue", "", "a Größe ς 3"]
TOKENS = "return data.captions.map((caption) => api.tokensOf(caption, data.words));"
DRAW = """
const { process, shape, captions } = page.content;
const predict = networkOf(page);
return data.map((request) => {
  const label = api.tokensOf(request.prompt, captions.words);
  return Array.from([...api.draw(process, predict, shape, { ...request, label })].at(-1).x);
});
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A network of small images in two colours, with captions.

    Its weights are random, because after a short training the prompt would hardly matter.
    """
    folder, lines = tmp_path_factory.mktemp("text"), []
    for i in range(16):
        colour = ("red", "blue")[i % 2]
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[:, :, 0 if colour == "red" else 2] = 200 + i
        save_image(folder / "images" / f"{i:02d}.png", pixels)
        lines.append({"file_name": f"{i:02d}.png", "text": f"a {colour} square, number {i}"})
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "images" / "metadata.jsonl").write_text(text)
    words = ["--dataset", "folder", "--data-dir", str(folder / "images"), "--image-size", "16"]
    words += [*FEW, "--captions", "--output-dir", str(folder / "run")]
    assert process.run(train.main, TRAIN.parse(words)) == 0
    trained = load_checkpoint(folder / "run" / "model_final.pt")
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: weight + 0.1 * torch.randn(weight.shape, generator=generator)
        for name, weight in trained["ema"].items()
    }
    path = folder / "random.safetensors"
    save_weights(path, trained["config"], trained["step"], "ema", weights)
    return path


def levels(x: list[float]) -> np.ndarray:
    """Numbers (C, H, W) in [-1, 1] as pixels (H, W, C) from 0 to 255."""
    return np.round((np.moveaxis(np.array(x).reshape(3, 16, 16), 0, -1).clip(-1, 1) + 1) * 127.5)


def test_tokens_are_those_of_the_tokenizer():
    captions = [*PROMPTS, "A  Red,\tRED... re-d", "naïve 中文 ½ x² _a_ 😀!", "e\u0301", "don't"]
    captions += ["\u0130stanbul", "\U0001d7db \u0663 \u0301"]
    tokenizer = Tokenizer(["a", "red", ",", "7", "naïve", "é"], 40)
    data = {"captions": captions, "words": tokenizer.words}
    found = run_node("unet", "tokensOf", TOKENS, None, data)
    assert found == [tokenizer.tokens(caption) for caption in captions]


def test_the_page_draws_prompts_as_sample_py_does(checkpoint, tmp_path):
    page = parts_of(exported(checkpoint, tmp_path / "page.html"))
    common, requests = {"sampler": "ddim", "steps": 4}, []
    for number, prompt in enumerate(PROMPTS):
        requests.append(common | {"prompt": prompt, "seed": 0, "guidance": 1 + number})
    names = "draw, predictor, weightsOf, tokensOf"
    everything = []
    for request, x in zip(requests, run_node("unet", names, DRAW, page, requests), strict=True):
        flags = {"prompt": [request["prompt"]], "guidance_scale": request["guidance"]}
        flags |= common | {"num_images": 1, "device": "cpu", "threads": 1}
        everything.append(sample(checkpoint, seed=0, **flags)[0].astype(int))
        assert np.abs(levels(x) - everything[-1]).max() <= 2, request
    assert np.abs(everything[0] - everything[1]).max() > 20  # the prompt matters


def test_prompts_in_a_browser(browser, checkpoint, tmp_path):
    page = exported(checkpoint, tmp_path / "page.html")
    browser.show(360)
    browser.open(page)
    wait(browser, "document.getElementById('status').textContent === 'ready'")
    assert browser.run("document.getElementById('prompt').value").startswith("a ")
    set_value(browser, "prompt", "a blue zebra")
    assert text_of(browser, "unknown") == "not in the training captions: zebra"
    for control, value in [("sampler", "ddim"), ("steps", 3), ("guidance", 2), ("seed", 1)]:
        set_value(browser, control, value)
    click(browser, "draw")
    wait(browser, "document.getElementById('status').textContent.includes('network calls')")
    flags = {"prompt": ["a blue zebra"], "sampler": "ddim", "steps": 3, "guidance_scale": 2}
    flags |= {"num_images": 1, "seed": 1, "device": "cpu", "threads": 1}
    expected = sample(checkpoint, **flags)[0, ..., 0].astype(int)
    assert np.abs(pixels_of(browser, "clean") - expected).max() <= 2
    set_value(browser, "prompt", "zebra " * 50)
    click(browser, "another")
    assert not browser.run("document.getElementById('prompt').validity.valid")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    require_quiet(browser, page)


def test_pretrained_text_encoders_are_refused():
    model = {"name": "unet", "caption_length": 16, "text_width": 64}
    with pytest.raises(ValueError, match="pretrained text encoder"):
        require_page({"model": model})
