import os
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

if "PYTEST_XDIST_WORKER" in os.environ:  # two workers of two threads each would only wait
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

import evaluate
import export
import sample
import train
import visualize_diffusion
from browser import CHROMIUM, Browser
from cli import activity, process
from cli.docs import COMMANDS
from cli.training import TRAIN
from evaluation import classifier, two_sample
from images import make_image_folder
from training import environment, preview, run_log
from visuals.curves import plot_loss
from visuals.pictures import save_picture

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the tests run in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

activity.AFTER = 1e6  # on a slow machine, messages would be other than on a fast one


def write_blank(rows: list[dict], path: Path) -> None:
    """Stands in for the plot of the loss, which takes more than half of the time of a short run."""
    save_picture(path, np.zeros((9, 9, 3), np.uint8))


run_log.plot_loss = write_blank
for name in ("git_commit", "package_version"):  # looked up once, not by each run
    setattr(environment, name, cache(getattr(environment, name)))
preview.GRID_STEPS = 5  # the grids of short runs are looked at for their size alone

torch.set_num_threads(min(2, torch.get_num_threads()))

SCRIPTS = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "export": export,
    "visualize_diffusion": visualize_diffusion,
}
ROOT = Path(__file__).resolve().parent.parent

# A network and a run that take a second.
TINY = ["--dataset", "digits", "--channels", "8", "--precision", "fp32", "--device", "cpu"]
TINY += ["--sample-interval", "0", "--save-interval", "0", "--warmup-steps", "5"]
TINY += ["--snapshots", "0", "--no-class-conditional"]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Before the first test, fork the process that others will be forked from, if one needs it."""
    if "processes" in sys.modules:
        sys.modules["processes"].fork_server()


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def script(capsys, monkeypatch, tmp_path):
    """Runs a script in this process: script("train", "--dataset", ...) -> Result.

    The current folder is an empty one, so that nothing is written outside it.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classifier, "STEPS", 30)  # and this one is of use all the same
    monkeypatch.setattr(two_sample, "STEPS", 2)

    def call(name: str, *arguments) -> Result:
        module: ModuleType = SCRIPTS[name]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        monkeypatch.setattr(train, "START", train.time.monotonic())
        capsys.readouterr()
        try:
            code = process.run(module.main, COMMANDS[f"{name}.py"].parse())
        except SystemExit as stop:  # argparse's way out
            code = stop.code
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The output folder of a finished tiny run on digits, with two epochs."""
    output = tmp_path_factory.mktemp("trained")
    arguments = [*TINY, "--epochs", "2", "--output-dir", str(output), "--overwrite"]
    arguments += ["--sample-interval", "1", "--save-interval", "1"]
    arguments += ["--multipliers", "1"]  # half the time, of each test that reads the checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log, "plot_loss", plot_loss)
        assert process.run(train.main, TRAIN.parse(arguments)) == 0
    return output


@pytest.fixture(scope="session")
def conditional(tmp_path_factory) -> Path:
    """The checkpoint of a tiny class-conditional run on digits that learned its variance."""
    output = tmp_path_factory.mktemp("conditional")
    arguments = [*TINY, "--max-steps", "15", "--timesteps", "100", "--output-dir", str(output)]
    arguments += ["--class-conditional", "--learn-sigma", "--multipliers", "1", "1"]
    assert process.run(train.main, TRAIN.parse(arguments)) == 0
    return output / "model_final.pt"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser with one page; skips without Chromium."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with the real data sets, as torchvision lays them out; skips without one."""
    folder = Path(os.environ.get("TINY_DIFFUSION_DATA", ROOT / "data"))
    if not (folder / "MNIST").is_dir():
        pytest.skip("no real MNIST in data/ or in $TINY_DIFFUSION_DATA")
    return folder


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Twelve colour PNGs of odd sizes in two subfolders, "cats" and "dogs"."""
    make_image_folder(tmp_path / "images")
    return tmp_path / "images"
