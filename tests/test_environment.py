"""The surroundings of a command: the user's settings, environment variables, missing packages."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch

from conftest import ROOT
from dataset.decoding import usable_cores
from runs import SMALL
from visuals.curves import plot_loss
from visuals.pictures import PointPictures, tiles

EPOCH = [*SMALL, "--epochs", "1", "--validation", "1700", "--sample-interval", "1"]


@pytest.fixture
def settings():
    """Changes settings of matplotlib until the end of the test."""
    with matplotlib.rc_context():
        yield matplotlib.rcParams.update


def test_a_run_does_not_need_latex_because_the_user_asks_for_it(script, settings):
    settings({"text.usetex": True})
    assert script("train", *EPOCH, "--output-dir", "run").code == 0
    assert script("visualize_diffusion", "--run", "run", "--steps", "2").code == 0
    assert script("visualize_diffusion", "--dataset", "digits", "--no-download").code == 0


def pictures(folder: Path) -> list[bytes]:
    """A plot of a loss, and a picture of points."""
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    plot_loss(rows, folder / "loss.png")
    return [(folder / "loss.png").read_bytes(), PointPictures().grid(points, 5).tobytes()]


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> list[bytes]:
    return pictures(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize(
    "users",
    [
        {"font.family": "No Such Font"},
        {"figure.facecolor": "black", "axes.facecolor": "black", "text.color": "white"},
        {"figure.autolayout": True, "savefig.bbox": "tight", "savefig.format": "svg"},
        {"lines.linewidth": 9, "axes.titlesize": 40, "figure.dpi": 300},
    ],
)
def test_pictures_do_not_depend_on_the_users_settings(tmp_path, usual, settings, caplog, users):
    settings(users)
    with caplog.at_level(logging.WARNING):
        assert pictures(tmp_path) == usual
    assert not caplog.records
    assert {name: matplotlib.rcParams[name] for name in users}.keys() == users.keys()
    for name, value in users.items():
        assert matplotlib.rcParams[name] in (value, [value])


# Imports matplotlib for each backend anew, and what that imports once.
BACKENDS = """
import os, sys
import dateutil.rrule, kiwisolver, numpy, PIL.Image, pyparsing
for backend in sys.argv[1:]:
    os.environ["MPLBACKEND"] = backend
    if backend == "None":
        del os.environ["MPLBACKEND"]
    if os.fork() == 0:
        import visuals.style as style
        figure = style.Figure()
        style.FigureCanvasAgg(figure).draw()
        known = backend == "svg" and style.matplotlib.rcParams["backend"]
        print(repr(os.environ.get("MPLBACKEND")), known, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="not on this system")
def test_any_backend_can_be_named_in_the_environment():
    """One that matplotlib knows is still used."""
    backends = ["garbage", "module://not.installed", "TkAgg", "", "None", "svg"]
    command = [sys.executable, "-W", "error", "-c", BACKENDS, *backends]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    names = [None if name == "None" else name for name in backends]
    assert done.stdout.splitlines() == [
        f"{name!r} {name if name == 'svg' else False}" for name in names
    ]


def test_a_plot_that_fails_does_not_end_a_run(script, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no fonts here")

    monkeypatch.setattr("training.run_log.plot_loss", fail)
    result = script("train", *EPOCH, "--output-dir", "run")
    assert result.code == 0
    assert result.err.count("the plot of the loss could not be written (no fonts here)") == 1


# --- packages -------------------------------------------------------------------------------------


def test_only_downloads_need_torchvision(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert script("train", *EPOCH, "--output-dir", "run").code == 0


@pytest.mark.parametrize("count", [2, 7, 12])
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 60, 48)])
def test_a_grid_equals_torchvisions(count, shape):
    from torchvision.utils import make_grid

    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
    theirs = make_grid(images, nrow=3, padding=2, pad_value=40)
    assert torch.equal(tiles(images, 3), theirs)


def test_a_missing_package_is_named_with_the_way_to_install_it(script, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = script("train", *SMALL, "--output-dir", "run")
    assert result.code == 1
    assert "sklearn is not installed: pip install -r requirements.txt" in result.err


def test_packages_that_every_command_needs_are_looked_for_first(script, monkeypatch):
    monkeypatch.setattr("cli.parser.is_installed", lambda name: name not in ("torch", "tqdm"))
    result = script("sample", "--checkpoint", "model.pt")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "not installed: torch, tqdm: pip install -r requirements.txt" in result.err


def test_a_torchvision_of_another_torch_is_explained(script, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("train.load_dataset", broken)
    result = script("train", "--dataset", "cifar10")
    assert "torch and torchvision do not fit together" in result.err


# --- processor cores ------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this system")
def test_only_the_cores_of_this_process_decode_images():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


# --- modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["utils.py", "models/__init__.py", "dataset.py"])
@pytest.mark.parametrize("imported", [True, False])
def test_a_users_module_of_the_same_name_is_named(tmp_path, name, imported):
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("")
    module = name.partition("/")[0].removesuffix(".py")
    code = f"import sys; sys.path.append({str(ROOT)!r})\n"
    code += f"import {module}\n" * imported + "from cli.training import TRAIN"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    message = done.stderr.splitlines()[-1]
    assert str(own) in message
    assert "rename it" in message


def test_a_users_modules_do_not_matter_where_ours_come_first(tmp_path):
    for name in ("utils", "models", "dataset"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, ROOT / "train.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
