"""The notebooks run, and the committed notebooks have the same cells with outputs."""

import os
import re
import runpy
import shlex
import sys

import nbformat
import pytest
from matplotlib import pyplot

from cli.docs import COMMANDS
from conftest import ROOT
from notebooks import interactive
from notebooks.execute import NOTEBOOKS, main, read
from test_readme import slugs
from training import preview

ids = [path.stem for path in NOTEBOOKS]
HOME = r"(?<![\w.])(?:/(?:home|root|Users|tmp|var|opt|mnt|usr|work)/|[A-Z]:\\)"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    """With small sizes, in this process. The first starts in notebooks/, like in Jupyter.

    The notebook on digits uses MNIST if it is found, and the one on CIFAR-10 runs without its data.
    The one on text reads the published weights.
    """
    data = os.environ.get("TINY_DIFFUSION_DATA", ROOT / "data") if "digits" in path.stem else "none"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "train.py").touch()  # by which a notebook recognises the project's folder
    given = {"notebooks", "train.py"}
    if "text" in path.stem:
        (tmp_path / "weights").symlink_to(ROOT / "weights")
        given.add("weights")
    monkeypatch.chdir(tmp_path / "notebooks" if path == NOTEBOOKS[0] else tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TINY_DIFFUSION_QUICK", "1")
    monkeypatch.setenv("TINY_DIFFUSION_STATIC", "1")
    monkeypatch.setenv("TINY_DIFFUSION_DATA", str(data))
    monkeypatch.setattr(pyplot, "show", pyplot.close)
    monkeypatch.setattr(preview, "NUM_POINTS", 100)
    runpy.run_path(str(path), run_name="__main__")
    assert {file.name for file in tmp_path.iterdir()} == {*given, "outputs"}
    assert not list((tmp_path / "notebooks").iterdir())


def test_a_notebook_is_saved_with_its_outputs(tmp_path):
    path = tmp_path / "1_example.py"
    code = (
        "import os\nfrom PIL import Image\nprint(os.getcwd(), os.environ['TINY_DIFFUSION_STATIC'])"
    )
    code += "\nImage.new('L', (8, 8))"
    path.write_text(f"# %% [markdown]\n# Text\n\n# %%\n{code}\n")
    main([path])
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    assert [cell.source for cell in notebook.cells] == ["Text", code]
    assert [cell.id for cell in notebook.cells] == ["cell-0", "cell-1"]
    printed, picture = notebook.cells[1].outputs
    assert printed.text.strip() == f"{tmp_path} 1"
    assert {"image/png"} == {kind for kind in picture.data if kind.startswith("image")}
    assert "language_info" not in notebook.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_the_committed_notebook_has_the_same_cells(path):
    """`make notebooks` writes it."""
    wanted = [(cell.cell_type, cell.source) for cell in read(path).cells]
    found = nbformat.read(path.with_suffix(".ipynb"), as_version=4).cells
    assert [(cell.cell_type, cell.source) for cell in found] == wanted


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_the_committed_outputs_are_complete_and_clean(path):
    file = path.with_suffix(".ipynb")
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # one run, from top to bottom
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert all(output.output_type != "error" for output in outputs)
    texts = [output.get("data", {}).get("text/plain", "") for output in outputs]
    texts = "\n".join([output.get("text", "") for output in outputs] + texts)
    assert not re.search(HOME, texts), "a path of the machine that ran it"
    assert not re.search("warning", texts, re.IGNORECASE)
    assert file.stat().st_size < 600_000


def test_every_notebook_has_both_files():
    pairs = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert pairs == {path.stem for path in NOTEBOOKS}


def test_commands_in_the_text_are_valid():
    cells = [cell for path in NOTEBOOKS for cell in read(path).cells]
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    prose = prose.replace("\\\n", " ").replace("`", "\n")
    commands = re.findall(r"^python (\w+\.py) (.*)$", prose, re.MULTILINE)
    assert len(commands) > 3
    for script, arguments in commands:
        COMMANDS[script].parse(shlex.split(arguments))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_links_lead_somewhere(path):
    """Each notebook links to the guide, and each link to a file and a heading that exist."""
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", prose)
    assert any(link.startswith("../docs/guide/") for link in links)
    for link in (link for link in links if not link.startswith("https://")):
        page, _, anchor = link.partition("#")
        text = (path.parent / page).read_text(encoding="utf-8")
        assert not anchor or anchor in slugs(text), link


# --- the slider -----------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, with sliders where ipywidgets is installed."""
    monkeypatch.delenv("TINY_DIFFUSION_STATIC", raising=False)
    displayed = []
    monkeypatch.setattr(interactive, "display", displayed.append)
    return displayed


def test_without_ipywidgets_a_slider_shows_the_picture_of_its_default(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # importing it fails
    interactive.slider(lambda value: f"picture of {value}", [1, 2, 3], default=2)
    interactive.slider(lambda value: None, [1, 2, 3], default=2)  # which displays it by itself
    assert shown == ["picture of 2"]


def test_a_saved_notebook_has_the_picture_of_the_default(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", object())  # any use of it fails
    monkeypatch.setenv("TINY_DIFFUSION_STATIC", "1")
    interactive.slider(lambda value: f"picture of {value}", [1, 2, 3], default=3)
    assert shown == ["picture of 3"]


def test_a_slider_draws_each_position(shown):
    drawn = []
    interactive.slider(drawn.append, range(0, 100, 20), default=40, name="t")
    (box,) = shown
    control, _ = box.children
    assert (control.options, control.description) == ((0, 20, 40, 60, 80), "t")
    control.value = 60
    assert drawn == [40, 60]


def test_the_default_of_a_slider_is_one_of_its_values():
    with pytest.raises(ValueError, match="default 5"):
        interactive.slider(str, [1, 2, 3], default=5)
