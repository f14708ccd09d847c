"""The notebooks run, and what is committed of them is what they hold."""

import os
import re
import shlex
import shutil
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT, SCRIPTS
from notebooks.execute import NOTEBOOKS, execute, read

ids = [path.stem for path in NOTEBOOKS]
HOME = r"(?<![\w.])(?:/(?:home|root|Users|tmp|var|opt|mnt|usr|work)/|[A-Z]:\\)"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of what the notebooks import, so that they write nothing into this one."""
    folder = tmp_path_factory.mktemp("project")
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    for name in ("models", "training", "evaluation"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "notebooks").mkdir()
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_runs_from_top_to_bottom(path, project, monkeypatch):
    """On reduced sizes; one begun in notebooks/ and the others in the project's folder.

    The one on digits takes MNIST where it is at hand; the one on CIFAR-10 goes the way without.
    """
    data = os.environ.get("TINY_DIFFUSION_DATA", ROOT / "data") if "digits" in path.stem else "none"
    monkeypatch.setenv("TINY_DIFFUSION_QUICK", "1")
    monkeypatch.setenv("TINY_DIFFUSION_DATA", str(data))
    before = {file.name for file in project.iterdir()}
    folder = project / "notebooks" if path == NOTEBOOKS[0] else project
    notebook = execute(read(path), folder)
    assert {file.name for file in project.iterdir()} - before <= {"outputs", "__pycache__"}
    assert not list((project / "notebooks").iterdir())
    assert len(pictures(notebook)) >= 3
    assert all(output.output_type != "error" for output in outputs(notebook))
    assert not re.search("warning", texts(notebook), re.IGNORECASE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_the_pair_holds_the_same_cells(path):
    """`make notebooks` writes the second anew."""
    wanted = [(cell.cell_type, cell.source) for cell in read(path).cells]
    found = nbformat.read(path.with_suffix(".ipynb"), as_version=4).cells
    assert [(cell.cell_type, cell.source) for cell in found] == wanted


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_the_committed_outputs_read_well(path):
    file = path.with_suffix(".ipynb")
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # of one run, from top to bottom
    assert pictures(notebook)
    assert all(output.output_type != "error" for output in outputs(notebook))
    assert not re.search(HOME, texts(notebook)), "a path of the machine that ran it"
    assert not re.search("warning", texts(notebook), re.IGNORECASE)
    assert file.stat().st_size < 600_000


def test_every_notebook_has_its_pair():
    pairs = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert pairs == {path.stem for path in NOTEBOOKS}


def test_their_commands_are_accepted():
    cells = [cell for path in NOTEBOOKS for cell in read(path).cells]
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    prose = prose.replace("\\\n", " ").replace("`", "\n")
    commands = re.findall(r"^python (\w+)\.py (.*)$", prose, re.MULTILINE)
    assert len(commands) > 3
    for script, arguments in commands:
        SCRIPTS[script].parse_args(shlex.split(arguments))


def outputs(notebook) -> list:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook) -> list[str]:
    return [o.data["image/png"] for o in outputs(notebook) if "image/png" in o.get("data", {})]


def texts(notebook) -> str:
    """All that the outputs say in words."""
    plain = [output.get("data", {}).get("text/plain", "") for output in outputs(notebook)]
    return "\n".join([output.get("text", "") for output in outputs(notebook)] + plain)
