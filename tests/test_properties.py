"""Random command lines and altered checkpoints: a command ends soon, with a message and an exit
code, and leaves complete files.

TINY_DIFFUSION_EXAMPLES sets how many command lines are tried, and a quarter as many checkpoints:
40 and 25 by default, the same each time.
"""

import copy
import os
import resource
import shutil
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import export
import train
import visualize_diffusion
from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from cli import process
from cli.declare import Declaration, option
from cli.docs import COMMANDS
from cli.export import EXPORT
from cli.training import TRAIN
from conftest import TINY
from training import preview

ASKED = os.environ.get("TINY_DIFFUSION_EXAMPLES")
SECONDS = 30  # that a command may take
KILOBYTES = 1_000_000  # that the process may grow by
SETTINGS = {
    "deadline": None,  # there is a limit for each command
    "database": None,
    "derandomize": ASKED is None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}

# --- what is tried --------------------------------------------------------------------------------

# Most flags accept some of these; those that a flag refuses are tried too.
TEXTS = ["0", "1", "2", "3", "5", "8", "0.05", "0.5", "1.0", "1e-3", "1e9", "1000000000"]
TEXTS += ["1e300", "1e-300"]
ABSURD = ["-1", "1e308", "-1e308", "nan", "inf", "1e400", "9" * 25, "1e", "x", "", " ", "1,2"]
ABSURD += ["--", "\u00fc", "None", "True", "0x10", "1_0", "-", "--seed"]
FILES = ["points.pt", "classes.pt", "plain.pt", "weights.safetensors"]
FILES += ["torn.pt", "text.txt", "run", "none", "image.png", ""]
PICTURES = ["image.png", "colour.png", "text.txt", "run", "none", "points.pt"]
OUTPUTS = ["out.png", "out.npz", "sub/out.jpg", "out.gif", "out.safetensors", "out.xyz", "out"]
OUTPUTS += ["run", "text.txt/out.png", "/dev/null/out.png", "", ".", "image.png"]
FIGURES = ["out.json", "sub/out.json", "run", "text.txt/out.json", "/dev/null/out.json", "", "."]
# Values of flags that decide how long a command takes, or that name files.
VALUES = {
    "dataset": ["digits", "moons", "spiral", "folder", "mnist"],
    "data_dir": ["folder", "run", "none", "text.txt", ""],
    "cache_dir": ["cache", "text.txt"],
    "image_size": ["4", "8", "7", "16", "1"],
    "channels": ["1", "2", "4", "8", "16"],
    "multipliers": ["1", "2", "3"],
    "blocks": ["1", "2"],
    "attention_resolutions": ["8", "4", "2", "5"],
    "patch_size": ["1", "2", "4", "3"],
    "timesteps": ["2", "3", "5", "10", "30"],
    "epochs": ["1", "2"],
    "max_steps": ["1", "2", "3"],
    "num_images": ["1", "2", "5"],
    "steps": ["1", "2", "5", "10"],
    "ode_steps": ["2", "5"],
    "repeats": ["1", "2"],
    "inception_weights": FILES,
    "resamplings": ["1", "2"],
    "class_id": ["all", "0", "1,2", "9", "99"],
    "device": ["auto", "cpu"],
    "checkpoint": FILES,
    "resume": FILES,
    "run": FILES,
    "start_from": PICTURES,
    "inpaint": PICTURES,
    "mask": PICTURES,
    "invert": PICTURES,
    "output": OUTPUTS,
    "save_path": OUTPUTS,
    "output_dir": ["outputs", "run", "text.txt", "new/run", ""],
}
LEFT_OUT = {"debug", "compile"}  # a traceback that was asked for, and a minute of work
NEEDS = {  # what accompanies a flag, most of the time
    "eta": ["--sampler", "ddim"],
    "variance": ["--sampler", "ddpm"],
    "churn": ["--sampler", "heun"],
    "churn_min": ["--sampler", "euler", "--churn", "2"],
    "churn_max": ["--sampler", "euler", "--churn", "2"],
    "churn_noise": ["--sampler", "euler", "--churn", "2"],
    "order": ["--sampler", "unipc"],
    "gamma": ["--sampler", "gamma"],
    "mu": ["--sampler", "gamma"],
    "strength": ["--start-from", "image.png"],
    "inpaint": ["--mask", "image.png"],
    "mask": ["--inpaint", "image.png"],
    "resamplings": ["--inpaint", "image.png", "--mask", "image.png"],
    "class_id": ["--checkpoint", "classes.pt"],
    "guidance_scale": ["--checkpoint", "classes.pt"],
    "guidance_interval": ["--checkpoint", "classes.pt", "--guidance-scale", "2"],
    "guidance_rescale": ["--checkpoint", "classes.pt", "--guidance-scale", "2"],
    "label_dropout": ["--class-conditional"],
    "field": ["--checkpoint", "points.pt"],
    "ode_steps": ["--metrics", "copies", "bpd"],
    "fit": ["--dataset", "folder", "--data-dir", "folder", "--image-size", "8"],
    "skip_bad_images": ["--dataset", "folder", "--data-dir", "folder", "--image-size", "8"],
    "cache_dir": ["--dataset", "folder", "--data-dir", "folder", "--cache-limit", "0"],
    "cache_limit": ["--dataset", "folder", "--data-dir", "folder", "--image-size", "8"],
    "resume": ["--output-dir", "run"],
    "overwrite": ["--output-dir", "run"],
}
BEFORE = {  # what keeps a command short, unless later words override it
    "train": [*TINY, "--timesteps", "5", "--batch-size", "16"],
    "sample": ["--checkpoint", "plain.pt", "--steps", "2"],
    "evaluate": ["--checkpoint", "plain.pt", "--steps", "2", "--repeats", "1"],
    "export": ["--checkpoint", "plain.pt"],
    "visualize_diffusion": ["--num-images", "1"],
}
AFTER = {
    "train": ["--max-steps", "3", "--no-download"],
    "evaluate": ["--num-images", "5"],
}
OFTEN = ["train", "train", "sample", "sample", "sample", "sample", "export", "evaluate"]


def accepts(declared: Declaration, text: str) -> bool:
    """Does a flag accept a value?"""
    try:
        declared.parse(text)
    except Exception:
        return False
    return declared.choices is None or text in declared.choices


@st.composite
def words_of(draw, command: str, name: str, absurd: bool) -> list[str]:
    """A flag of a command and its values."""
    _, declared = COMMANDS[f"{command}.py"].declared[name]
    good = VALUES.get(name) or list(
        declared.choices or [text for text in TEXTS if accepts(declared, text)]
    )
    if (command, name) == ("evaluate", "output"):
        good = FIGURES
    bad = ABSURD + [text for text in TEXTS if not accepts(declared, text)]
    value = st.sampled_from(bad if absurd else good or ["x"])
    spellings = [option(name), *declared.names]
    spellings += [f"--no-{option(name)[2:]}"] if declared.switch == "on-off" else []
    flag = None if declared.positional else draw(st.sampled_from(spellings))
    if declared.switch:
        return [flag]
    if declared.nargs in ("+", "*"):
        values = draw(st.lists(value, max_size=12 if absurd else 3, min_size=declared.nargs == "+"))
    else:
        count = declared.nargs if isinstance(declared.nargs, int) else 1
        values = [draw(value) for _ in range(count)]
    if flag and len(values) == 1 and draw(st.booleans()):
        return [f"{flag.replace('-', '_').replace('__', '--', 1)}={values[0]}"]
    return [flag, *values] if flag else values


@st.composite
def command_lines(draw) -> tuple[str, list[str]]:
    """A command and its words."""
    command = draw(st.sampled_from([*OFTEN, *OFTEN, "visualize_diffusion"]))
    names = [name for name in COMMANDS[f"{command}.py"].declared if name not in LEFT_OUT]
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    # One absurd value ends a command where it is parsed: most have none.
    absurd = draw(st.sampled_from([None, None, None, *range(len(chosen))]))
    words = []
    for i, name in enumerate(chosen):
        words += draw(words_of(command, name, absurd=i == absurd))
    if absurd is not None and draw(st.integers(0, 5)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from(ABSURD)))
    if draw(st.integers(0, 3)):
        words = [*(need for name in chosen for need in NEEDS.get(name, [])), *words]
    return command, [*BEFORE[command], *words, *AFTER.get(command, [])]


# --- where it is tried ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with checkpoints of three kinds, weights, a run, pictures, and damaged files."""
    folder = tmp_path_factory.mktemp("workshop")

    def trained(name: str, *arguments: str) -> None:
        words = [*TINY, "--max-steps", "3", "--batch-size", "16", "--timesteps", "10", *arguments]
        words += ["--output-dir", str(folder / name)]
        with mock.patch.object(preview, "NUM_POINTS", 100):
            assert process.run(train.main, TRAIN.parse(words)) == 0

    few = ["--multipliers", "1", "--patch-size", "2"]  # fewer weights, at fewer resolutions
    trained("run", *few, "--batch-size", "853", "--save-interval", "1")  # two steps an epoch
    trained("points", "--dataset", "moons")
    trained("classes", *few, "--class-conditional", "--learn-sigma")
    shutil.copy(folder / "run" / "model_final.pt", folder / "plain.pt")
    for name in ("points", "classes"):
        shutil.move(folder / name / "model_final.pt", folder / f"{name}.pt")
        shutil.rmtree(folder / name)
    words = ["--checkpoint", str(folder / "plain.pt"), str(folder / "weights.safetensors")]
    assert process.run(export.main, EXPORT.parse(words)) == 0
    (folder / "torn.pt").write_bytes((folder / "plain.pt").read_bytes()[:10_000])
    (folder / "text.txt").write_text("hello")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(folder / "colour.png")
    Image.fromarray(pixels[0, :8, :8, 0]).save(folder / "image.png")
    for i, image in enumerate(pixels):
        path = folder / "folder" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


class Hang(BaseException):
    """Not an Exception: scripts must not catch it."""


def stop(*_) -> None:
    raise Hang(f"after {SECONDS} seconds")


@pytest.fixture
def attempt(script, workshop, tmp_path, monkeypatch):
    """Runs a command in a fresh copy of the workshop, and asserts that it ends as it should."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(preview, "NUM_POINTS", 100)
    monkeypatch.setattr(visualize_diffusion, "NUM_POINTS", 100)
    before = signal.signal(signal.SIGALRM, stop)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def call(name: str, words: list[str], prepare=lambda: None) -> int:
        folder = tmp_path / "here"
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(workshop, folder, copy_function=link_or_copy)
        monkeypatch.chdir(folder)
        prepare()
        there = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            result = script(name, *words)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        said = f"{name} {words}: {result.code}\n{result.out}\n{result.err}"
        assert result.code in (0, 1, 2), said
        assert "Traceback" not in result.err, said
        assert "--debug" not in result.err, said
        assert (result.code == 0) == ("error: " not in result.err), said
        for path in folder.rglob("*"):
            own = path.parent.name == ".tiny-diffusion"  # evaluate.py verifies its own files
            if there.get(path) != path.stat().st_mtime_ns and not own:
                assert is_whole(path), f"{path}: {said}"
        return result.code

    yield call
    signal.signal(signal.SIGALRM, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size < KILOBYTES


def link_or_copy(source: str, target: str) -> None:
    """Checkpoints are large, and replaced but never changed."""
    (os.link if source.endswith(".pt") else shutil.copy)(source, target)


def is_whole(path: Path) -> bool:
    """Can a file that a command has written be read?"""
    if path.suffix in (".pt", ".safetensors"):
        load_checkpoint(path)
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            dict(arrays)
    elif path.suffix in (".png", ".jpg", ".gif"):
        with Image.open(path) as image:
            image.load()
    return not path.name.endswith(".partial")


@settings(max_examples=int(ASKED or 40), **SETTINGS)
@given(command=command_lines())
def test_command_lines(attempt, command):
    attempt(*command)


# --- checkpoints ----------------------------------------------------------------------------------

JUNK = [None, True, 0, -1, 1, 2, 10**9, 2**62, 2**70, 0.5, -0.5, float("nan"), float("inf"), 1e300]
JUNK += ["", "x", "digits", "moons", "run", "mlp", "edm", "x" * 10_000, [], [1], [[]], ["x"]]
JUNK += [{}, {"a": 1}, {1: None}, b"bytes", (1, 2), {1, 2}, torch.zeros(0), torch.zeros(1)]
JUNK += [
    torch.zeros(3, dtype=torch.int64),
    torch.zeros(1).expand(10**6),
    torch.tensor(float("nan")),
]


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of all values in nested containers; of weights and states, only of a few."""
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    else:
        return []
    few = parts if len(path) < 2 or path[0] == "config" else parts[:1] + parts[-1:]
    return [(*path, key) for key, _ in few] + [
        place for key, part in few for place in places(part, (*path, key))
    ]


@pytest.fixture(scope="module")
def source(workshop) -> dict:
    return load_checkpoint(workshop / "classes.pt")


@st.composite
def changes(draw) -> list[tuple]:
    """Changes of a checkpoint: the number of the place, and how it is changed."""
    one = st.tuples(
        st.integers(0, 10**6), st.sampled_from(["replace", "replace", "delete", "add"]),
        st.integers(0, len(JUNK) - 1), st.sampled_from(["config", "config", "any"]),
    )  # fmt: skip
    return draw(st.lists(one, min_size=1, max_size=2))


def changed(checkpoint: dict, wanted: list[tuple]) -> dict:
    checkpoint = copy.deepcopy(checkpoint)
    for number, how, junk, where in wanted:
        every = [p for p in places(checkpoint) if where == "any" or p[0] == "config"]
        if not every:
            continue
        *path, key = every[number % len(every)]
        container = checkpoint
        for step in path:
            container = container[step]
        if how == "delete":
            del container[key]
        elif how == "add" and isinstance(container, dict):
            container[f"{key}s"] = copy.deepcopy(JUNK[junk])
        else:
            container[key] = copy.deepcopy(JUNK[junk])
    return checkpoint


READERS = [
    ("sample", ["--checkpoint", "bad.pt", "--num-images", "3", "--steps", "2"]),
    ("train", ["--resume", "bad.pt", "--output-dir", "on", "--max-steps", "5", "--no-download"]),
    ("evaluate", ["--checkpoint", "bad.pt", "--metrics", "bpd", "--num-images", "2"]),
    ("export", ["--checkpoint", "bad.pt", "--raw", "out.safetensors"]),
    ("visualize_diffusion", ["--run", "alone", "--steps", "2"]),
]


@settings(max_examples=int(ASKED or 100) // 4, **SETTINGS)
@given(wanted=changes(), reader=st.sampled_from(READERS[:2] * 4 + READERS))
def test_checkpoints(attempt, source, wanted, reader):
    checkpoint = changed(source, wanted)

    def prepare() -> None:
        save_checkpoint(Path("bad.pt"), checkpoint)
        if "alone" in reader[1]:
            Path("alone").mkdir()
            shutil.move("bad.pt", "alone/model_final.pt")

    attempt(*reader, prepare=prepare)
