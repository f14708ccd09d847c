import base64
import copy
import io
import json
import shlex
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import train
from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from cli import process
from cli.docs import COMMANDS
from cli.training import TRAIN
from dataset.registry import load_dataset
from diffusion import GaussianDiffusion
from evaluation import report
from evaluation.report import (
    Learning,
    learning_rows,
    saved_steps,
    trajectory,
    write_report,
)
from sample import sample
from samplers import AUTO
from training import preview
from training.folder import RunFolder


@pytest.fixture
def run(trained, tmp_path) -> RunFolder:
    """A copy of a finished tiny run with a checkpoint after each of its two epochs."""
    shutil.copytree(trained, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def moons(tmp_path_factory) -> RunFolder:
    """A tiny run on points."""
    folder = RunFolder(tmp_path_factory.mktemp("moons"))
    arguments = ["--dataset", "moons", "--channels", "16", "--max-steps", "20", "--device", "cpu"]
    arguments += ["--sample-interval", "0", "--snapshots", "0", "--output-dir", str(folder.path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "NUM_POINTS", 100)
        assert process.run(train.main, TRAIN.parse(arguments)) == 0
    return folder


@pytest.fixture(scope="module")
def reported(trained, moons, tmp_path_factory) -> dict[str, tuple[RunFolder, Learning]]:
    """A run of images and one of points, with the samples of their checkpoints and a report."""
    images = RunFolder(tmp_path_factory.mktemp("reported") / "run")
    shutil.copytree(trained, images.path)
    runs = {"images": images, "points": moons}
    found = {}
    for kind, folder in runs.items():
        found[kind] = folder, learning_rows(folder.path, steps=1)
        write_report(folder.path, found[kind][1])
    return found


@pytest.fixture(autouse=True)
def blank_curves(monkeypatch):
    """Blank curves, which take a second of each page: those of `reported` alone are drawn."""
    blank = np.zeros((9, 9, 3), np.uint8)
    monkeypatch.setattr(report, "curve_picture", lambda metrics, name: blank)


class Page(HTMLParser):
    """The elements, attributes and text of a report; fails unless every element is closed."""

    def __init__(self, folder: RunFolder):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.html = folder.report.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.text.append(data.strip())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def value(self, name: str) -> str:
        """The value of a name in a table."""
        return self.text[self.text.index(name) + 1]


def step_labels(folder: RunFolder) -> list[str]:
    steps = sorted(set(folder.steps()[0].values()))
    return [f"step {step}, epoch {epoch}" for epoch, step in enumerate(steps, start=1)]


def opened(uri: str) -> Image.Image:
    kind, _, content = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    assert kind == f"data:image/{image.format.lower()}"
    return image


# --- samples of the checkpoints ------------------------------------------------------------------


def test_samples_equal_those_of_sample_py(run):
    lines = []
    learning = learning_rows(run.path, steps=3, seed=5, say=lines.append)
    assert list(learning.samples) == step_labels(run) == [line.split(": ")[1] for line in lines]
    files = [run.checkpoint(1), run.final]
    for items, file in zip(learning.samples.values(), files, strict=True):
        expected = sample(file, num_images=8, steps=3, seed=5)
        np.testing.assert_array_equal(items.permute(0, 2, 3, 1).numpy(), expected)
    first, last = learning.samples.values()
    assert not torch.equal(first, last)
    assert [len(x) for x in learning.frames] == [64] * 4  # noise, and each step
    assert (learning.frames[-1][:8].int() - last.int()).abs().max() <= 1
    assert learning.newest["path"] == run.final
    assert learning.notes == []


def test_each_column_is_one_class(conditional):
    learning = learning_rows(conditional.parent, steps=2)
    (row,) = learning.samples.values()
    np.testing.assert_array_equal(
        row.permute(0, 2, 3, 1).numpy(), sample(conditional, num_images=8, steps=2)
    )
    second_row = sample(conditional, num_images=9, steps=2, class_id=[0])[8]
    sampled = learning.frames[-1][8].permute(1, 2, 0).numpy()
    assert np.abs(sampled.astype(int) - second_row).max() <= 1


def test_points_are_shown_with_the_data(moons):
    learning = learning_rows(moons.path, steps=2)
    data, samples = learning.samples.values()
    assert next(iter(learning.samples)) == "data"
    assert torch.equal(data, load_dataset("moons", split="test").items[:2000])
    np.testing.assert_array_equal(samples.numpy(), sample(moons.final, steps=2))


@pytest.mark.parametrize("schedule", ["cosine", "edm"])
def test_noise_is_shown_with_unit_variance(schedule):
    class Zero(nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    diffusion = GaussianDiffusion(schedule, 100, prediction="v")
    config = {"data": {"image_channels": 1, "image_size": 8}, "model": {}}
    cpu = torch.device("cpu")
    shown = list(trajectory(Zero(), diffusion, config, 8, steps=10, seed=0, device=cpu))
    assert len(shown) == 11
    saturated = [((x == 0) | (x == 255)).float().mean().item() for x in shown[:4]]
    assert max(saturated) < 0.4  # of a normal distribution, 0.32 is outside [-1, 1]


def test_checkpoints_are_evenly_spaced_and_the_rest_is_noted(run, monkeypatch):
    checkpoint = load_checkpoint(run.final)
    last = checkpoint["step"]
    for step in range(last + 1, last + 4):  # without a row of metrics
        save_checkpoint(run.step_checkpoint(step), {**checkpoint, "step": step})
    save_checkpoint(run.interrupted, checkpoint)  # the same step as model_final.pt
    save_checkpoint(run.best, {**checkpoint, "step": 3})
    run.checkpoint(99).write_bytes(run.final.read_bytes()[:5000])
    monkeypatch.setattr(report, "MAX_CHECKPOINTS", 3)
    learning = learning_rows(run.path, steps=1)
    first = saved_steps(run)[0][0].label
    assert list(learning.samples) == [first, f"step {last + 1}", f"step {last + 3}"]
    damaged, shown = learning.notes
    assert f"Left out: {run.checkpoint(99)} is damaged" in damaged
    assert "\n" not in damaged
    assert shown == "3 of 5 checkpoints are shown, evenly spaced."


def test_the_best_checkpoint_is_used_if_there_is_no_other(run):
    checkpoint = load_checkpoint(run.final)
    run.clear()
    save_checkpoint(run.best, {**checkpoint, "step": 3})
    assert list(learning_rows(run.path, steps=1).samples) == ["step 3"]


def test_epochs_choose_the_checkpoints_at_their_end(run, monkeypatch):
    monkeypatch.setattr(report, "MAX_CHECKPOINTS", 1)  # is no limit here
    first, second = step_labels(run)  # model_epoch_001.pt and model_final.pt
    assert list(learning_rows(run.path, epochs=[2, 1, 2], steps=1).samples) == [first, second]
    learning = learning_rows(run.path, epochs=[1], steps=1)
    assert list(learning.samples) == [first]
    assert learning.newest["path"] == run.checkpoint(1)

    checkpoint = load_checkpoint(run.final)
    step = checkpoint["step"] + 3
    with open(run.metrics, "a") as file:
        file.write(json.dumps({"step": step, "epoch": 3, "loss": 0.5}) + "\n")
    save_checkpoint(run.interrupted, {**checkpoint, "step": step})  # in the middle of epoch 3
    message = "epochs without a checkpoint: 3, 8; epochs with one: 1, 2"
    with pytest.raises(ValueError, match=message):
        learning_rows(run.path, epochs=[1, 8, 3])
    run.interrupted.rename(run.checkpoint(3))
    run.metrics.unlink()  # the file names have the epochs
    assert list(learning_rows(run.path, epochs=[1, 3], steps=1).samples) == [
        first,
        f"step {step}, epoch 3",
    ]


def test_a_checkpoint_of_another_run_is_left_out(run, moons):
    shutil.copy(moons.final, run.checkpoint(9))  # of fewer steps than the others
    learning = learning_rows(run.path, steps=1)
    assert len(learning.samples) == 2
    assert "is of another run" in learning.notes[0]


# --- the page ------------------------------------------------------------------------------------


def test_the_page_needs_no_other_file(run, script):
    result = script("visualize_diffusion", "--run", run.path, "--steps", 2)
    assert (result.code, result.err) == (0, "")
    assert result.out.split() == [str(run.learning), str(run.report)]
    page, labels = Page(run), step_labels(run)

    assert page.all("html") == [{"lang": "en"}]
    assert [tag for tag, _ in page.elements].count("title") == 1
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object"})
    for attribute in ("href", "background", "poster", "data", "style", "onload"):
        assert not any(attribute in attributes for _, attributes in page.elements)
    head = page.html.split("<body>")[0]
    assert "url(" not in head
    assert "@import" not in head
    images = [opened(image["src"]) for image in page.all("img")]
    (still,) = [opened(source["srcset"]) for source in page.all("source")]
    assert still.size == images[2].size
    for attributes, image in zip(page.all("img"), images, strict=True):
        assert (int(attributes["width"]), int(attributes["height"])) == image.size

    alts = [image["alt"] for image in page.all("img")]
    curves = ["loss", "learning rate", "gradient norm", "images/s"]
    assert alts[:2] == [f"8 images: {label}" for label in labels]
    assert alts[2] == f"9 images from noise to data: {labels[-1]}"
    assert images[2].n_frames == 3
    assert alts[3] == f"64 images: {labels[-1]}"
    assert [alt.split(": ")[0] for alt in alts[4:]] == curves
    assert [text for text in page.text if text in [*labels, *curves]] == [*labels, *curves]


def test_the_page_describes_the_run(reported):
    run, _ = reported["images"]
    page, step = Page(run), load_checkpoint(run.final)["step"]
    assert page.text[1:3] == [
        "How a model learned digits",
        f"{step} training steps in {page.value('training time')}",
    ]
    assert page.value("items") == "1,797 images of 1 x 8 x 8"
    assert page.value("training steps") == str(step)
    assert page.value("lowest validation loss").endswith(f"at step {step}")
    assert page.value("PyTorch") == torch.__version__
    assert page.value("sampler") == AUTO
    for section in json.loads(run.config.read_text()).values():
        assert section.keys() <= set(page.text)
    assert page.value("multipliers") == "1"
    assert page.value("classes").startswith("0, 1, 2, ")
    assert page.value("flip") == "no"


def test_the_page_shows_the_samples(reported):
    run, learning = reported["images"]
    images = [opened(image["src"]) for image in Page(run).all("img")]
    for items, image in zip(learning.samples.values(), images, strict=False):
        pixels = np.asarray(image.convert("L"))
        size = 8 * 7  # pixels are enlarged
        for i, item in enumerate(items):
            left = 2 + i * (size + 2)
            np.testing.assert_array_equal(
                pixels[2 : 2 + size : 7, left : left + size : 7], item[0].numpy()
            )


def test_the_commands_of_the_page_are_valid(reported, run):
    finished, learning = reported["images"]
    step = learning.newest["step"]
    longer = f"train.py --resume --output-dir {finished.path} --max-steps {2 * step}"
    assert longer in commands(finished)
    config = copy.deepcopy(learning.newest["config"])
    config["train"]["total_steps"] = 100
    write_report(run.path, learning._replace(newest={**learning.newest, "config": config}))
    assert "--max-steps" not in commands(run)
    assert f"The run is not finished: step {step} of 100." in Page(run).text


def commands(folder: RunFolder) -> str:
    """The commands of a page, without "python"; fails if a script refuses one."""
    page = Page(folder)
    (block,) = [text for text in page.text if text.startswith("python ")]
    lines = [shlex.split(line)[1:] for line in block.splitlines()]
    for name, *words in lines:
        COMMANDS[name].parse(words)
    assert [line[0] for line in lines] == ["sample.py", "train.py", "visualize_diffusion.py"]
    return "\n".join(map(" ".join, lines))


def test_every_value_is_escaped(reported, run):
    _, learning = reported["images"]
    config = copy.deepcopy(learning.newest["config"])
    hostile = "<script>alert(1)</script> & \"quoted\" 'names' {{ title }} {% if %}"
    config["data"].update(data_dir=hostile, dataset="folder", classes=[hostile] * 30)
    config["data"]["<b>"] = 1
    write_report(run.path, learning._replace(newest={**learning.newest, "config": config}))
    page = Page(run)
    assert page.all("script") == page.all("b") == []
    assert page.value("data set") == f"folder {hostile}"
    assert page.value("<b>") == "1"
    assert page.value("classes") == ", ".join([hostile] * 20 + ["and 10 more"])
    assert page.text[0] == f"How a model learned folder {hostile}"


def test_the_page_of_a_run_on_points(reported):
    folder, _ = reported["points"]
    page = Page(folder)
    alts = [image["alt"] for image in page.all("img")]
    assert alts[:2] == ["2,000 points: data", "2,000 points: step 20, epoch 1"]
    assert "points/s" in page.text
    assert all(opened(image["src"]) for image in page.all("img"))


def test_save_path_is_that_of_the_picture(moons, script, tmp_path):
    picture = tmp_path / "elsewhere.jpg"
    result = script(
        "visualize_diffusion", "--run", moons.path, "--steps", 1, "--save-path", picture
    )
    assert result.out.split() == [str(picture), str(moons.report)]
    assert not moons.learning.exists()
    with Image.open(picture) as image:
        assert image.width > 1.6 * image.height  # the data and one checkpoint, side by side


def test_a_run_without_a_checkpoint_has_curves(run, script):
    for checkpoint in run.all_checkpoints():
        checkpoint.unlink()
    result = script("visualize_diffusion", "--run", run.path)
    assert result.code == 0
    assert result.out.strip() == str(run.report)
    assert "There is no checkpoint yet" in result.err
    page = Page(run)
    assert len(page.all("img")) == 4
    assert page.value("dataset") == "digits"
    assert page.all("pre") == []
    run.config.write_text("{")
    assert script("visualize_diffusion", "--run", run.path).code == 0
    assert any("The configuration cannot be read" in text for text in Page(run).text)


def test_a_damaged_checkpoint_is_named_on_the_page(run, script):
    run.checkpoint(1).write_bytes(b"torn")
    result = script("visualize_diffusion", "--run", run.path, "--steps", 1)
    assert result.code == 0
    assert f"Left out: {run.checkpoint(1)} is damaged" in result.err
    page = Page(run)
    assert any(f"{run.checkpoint(1)} is damaged" in text for text in page.text)
    assert page.all("img")[0]["alt"] == f"8 images: {step_labels(run)[-1].split(',')[0]}, epoch 2"


def test_metrics_newer_than_the_newest_checkpoint(reported, run):
    with open(run.metrics, "a") as file:
        file.write('{"step": 1500, "epoch": 99, "loss": 0.5, "seconds": 3723}\n{"step": 15')
    write_report(run.path, reported["images"][1])
    page = Page(run)
    assert page.value("training steps") == "1,500"
    assert page.value("training time") == "1 h 2 min 3 s"
    assert any("The metrics reach step 1,500" in text for text in page.text)


def test_write_report_samples_by_itself(conditional, monkeypatch):
    monkeypatch.setattr(report, "STEPS", 1)
    assert write_report(conditional.parent) == conditional.parent / "report.html"
    text = " ".join(Page(RunFolder(conditional.parent)).text)
    assert "Each column is one class." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "nowhere holds no run: no metrics. There is no checkpoint yet"),
        (["--run", "."], "There are runs in a, b, run."),
        (["--run", "a/model_final.pt"], "a/model_final.pt is damaged or is not a checkpoint"),
        (["--run", "torn"], "torn/model_final.pt is damaged"),
        (["--run", "a", "--save-path", "x.doc"], "unknown image format"),
        (["--run", "a", "--field", "--checkpoint", "x"], "--run has no effect with --field"),
        (["--run", "a", "--dataset", "digits"], "--dataset has no effect with --run"),
        (
            ["--field", "--checkpoint", "x", "--no-download"],
            "--no-download has no effect with --field",
        ),
        (["--steps", "5"], "--steps has no effect without --run"),
        (["--epochs", "5"], "--epochs has no effect without --run"),
        (
            ["--run", "RUN", "--epochs", "9"],
            "epochs without a checkpoint: 9; epochs with one: 1, 2",
        ),
        (["--run", "RUN", "--steps", "2000"], "steps must lie between 1 and 1000, not 2000"),
    ],
)
def test_errors(script, run, arguments, message):
    for path in ("a/metrics.jsonl", "b/metrics.jsonl", "a/model_final.pt", "torn/model_final.pt"):
        (run.path.parent / path).parent.mkdir(exist_ok=True)
        (run.path.parent / path).touch()
    result = script("visualize_diffusion", *[run.path if a == "RUN" else a for a in arguments])
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) <= 2
    assert "Traceback" not in result.err


# --- in a browser --------------------------------------------------------------------------------


IMAGES = """
Promise.all([...document.images].map(image => image.decode())).then(() =>
    [...document.images].map(image => [image.complete && image.naturalWidth > 0, image.currentSrc]))
"""


@pytest.mark.parametrize("kind", ["images", "points"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_is_whole_in_a_browser(browser, reported, kind, width):
    folder, _ = reported[kind]
    for dark in (False, True):
        browser.show(width, dark=dark)
        browser.open(folder.report)
        shown = browser.run(IMAGES)
        assert len(shown) >= 8
        assert all(loaded for loaded, _ in shown)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        background = browser.run("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(26, 26, 26)" if dark else "rgb(255, 255, 255)")
        events = ["Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"]
        assert browser.seen(*events, "Network.loadingFailed") == []
        requests = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
        elsewhere = [url for url in requests if not url.startswith("data:")]
        assert elsewhere == [folder.report.resolve().as_uri()]


def test_the_browser_reports_errors(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<img src="data:image/png;base64,AAAA"><img src="https://example.org/a.png">'
        "<script>console.error('wrong')</script>"
    )
    browser.open(page)
    loaded = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"
    assert browser.run(loaded) == [False, False]
    assert browser.seen("Runtime.consoleAPICalled")[0]["args"][0]["value"] == "wrong"
    assert browser.seen("Network.loadingFailed")


def test_reduced_motion_shows_a_still_picture(browser, reported):
    folder, _ = reported["images"]
    for less_motion in (False, True):
        browser.show(800, less_motion=less_motion)
        browser.open(folder.report)
        kinds = [source.partition(";")[0] for _, source in browser.run(IMAGES)]
        assert kinds.count("data:image/gif") == (0 if less_motion else 1)
        assert kinds.count("data:image/png") == len(kinds) - kinds.count("data:image/gif")
