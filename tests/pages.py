"""Pages of `export.py --to web` in tests: exporting them, their sources in Node, their controls."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import export
from browser import Browser
from checkpoints.weights import save_weights
from cli import process
from cli.export import EXPORT
from cli.training import TRAIN
from dataset.registry import load_dataset
from exports.page import PAGES, source
from models import build_model
from training.config import make_config, with_defaults

NODE = shutil.which("node")
READ = """
const fs = require("fs");
const [sources, names, page, data] = JSON.parse(fs.readFileSync(0, "utf8"));
const api = new Function(`${sources}; return {${names}};`)();
function networkOf({ content, weights }) {
  const bytes = Uint8Array.from(atob(weights), (c) => c.charCodeAt(0));
  const floats = content.shape.dim ? Float32Array : Uint16Array;
  const read = api.weightsOf(content.index, new floats(bytes.buffer));
  return api.predictor(content.model, content.shape, read);
}
"""


def run_node(kind: str, names: str, program: str, page: dict | None, data: object):
    """What a program returns in Node.

    Args:
        kind: key of `PAGES`, for its sources of the worker.
        names: the functions of these sources that the program uses, as `api.NAME`.
        program: the body of a function; `networkOf(page)` is the network of the page.
        page: what `parts_of` returns, or None.
        data: `data` of the program.
    """
    if NODE is None:
        pytest.skip("needs Node")
    text = json.dumps(["\n".join(map(source, PAGES[kind].engine)), names, page, data])
    script = f"{READ}console.log(JSON.stringify((() => {{{program}}})()));"
    command = [NODE, "-e", script]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def parts_of(page: Path) -> dict:
    """The description and the weights that a page holds."""
    text = page.read_text()

    def element(name: str) -> str:
        return re.search(rf'<script id="{name}"[^>]*>(.*?)</script>', text, re.DOTALL)[1]

    return {"content": json.loads(element("model")), "weights": element("weights").strip()}


def write_weights(path: Path, *flags) -> Path:
    """Write the weights file of an untrained network, as train.py makes it for these flags.

    Weights that begin with zero are random, because each part of the network should matter.
    """
    parsed = TRAIN.parse([*map(str, flags)])
    data = load_dataset(parsed.dataset, image_size=parsed.image_size)
    config = make_config(with_defaults(parsed, data), data)
    torch.manual_seed(0)
    model = build_model(config["model"])
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    save_weights(path, config, 1, "ema", model.state_dict())
    return path


def exported(checkpoint: Path, page: Path) -> Path:
    words = ["--checkpoint", str(checkpoint), "--to", "web", str(page)]
    assert process.run(export.main, EXPORT.parse(words)) == 0
    return page


def damage(page: Path) -> None:
    """Change one character of the weights in a page."""
    text = page.read_text()
    place = text.index('<script id="weights"') + 4000
    other = "A" if text[place] != "A" else "B"
    page.write_text(text[:place] + other + text[place + 1 :])


def wait(browser: Browser, condition: str, seconds: float = 120) -> None:
    """Wait until a condition of the page holds."""
    end = time.monotonic() + seconds
    while not browser.run(condition):
        assert time.monotonic() < end, (condition, text_of(browser, "status"))
        time.sleep(0.02)


def pixels_of(browser: Browser, canvas: str) -> np.ndarray:
    """The red channel (H, W) of a canvas: the grey levels of a grey picture."""
    script = f"""(() => {{
        const canvas = document.getElementById("{canvas}");
        const context = canvas.getContext("2d");
        const {{ data }} = context.getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.height, canvas.width, Array.from(data.filter((_, i) => i % 4 === 0))];
    }})()"""
    height, width, values = browser.run(script)
    return np.array(values).reshape(height, width)


def text_of(browser: Browser, element: str) -> str:
    return browser.run(f"document.getElementById('{element}').textContent")


def set_value(browser: Browser, control: str, value: object, event: str = "input") -> None:
    browser.run(
        f"(() => {{ const node = document.getElementById('{control}'); "
        f"node.value = {json.dumps(str(value))}; node.dispatchEvent(new Event('{event}')); }})()"
    )


def click(browser: Browser, control: str) -> None:
    browser.run(f"document.getElementById('{control}').click()")


def require_quiet(browser: Browser, page: Path) -> None:
    """Every control has a label, the console is empty, and nothing but the page was requested."""
    unnamed = "[...document.querySelectorAll('input, select')].filter(n => !n.labels.length).length"
    assert browser.run(unnamed) == 0
    events = ["Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"]
    assert browser.seen(*events, "Network.loadingFailed") == []
    urls = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert [url for url in urls if not url.startswith("blob:")] == [page.resolve().as_uri()]
