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
from notebooks.execute import NOTEBOOKS, main, read

ids = [path.stem for path in NOTEBOOKS]
HOME = r"(?<![\w.])(?:/(?:home|root|Users|tmp|var|opt|mnt|usr|work)/|[A-Z]:\\)"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    """With small sizes, in this process. The first starts in notebooks/, like in Jupyter.

    The notebook on digits uses MNIST if it is found, and the one on CIFAR-10 runs without its data.
    """
    data = os.environ.get("TINY_DIFFUSION_DATA", ROOT / "data") if "digits" in path.stem else "none"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "train.py").touch()  # by which a notebook recognises the project's folder
    monkeypatch.chdir(tmp_path / "notebooks" if path == NOTEBOOKS[0] else tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TINY_DIFFUSION_QUICK", "1")
    monkeypatch.setenv("TINY_DIFFUSION_DATA", str(data))
    monkeypatch.setattr(pyplot, "show", pyplot.close)
    runpy.run_path(str(path), run_name="__main__")
    assert {file.name for file in tmp_path.iterdir()} == {"notebooks", "train.py", "outputs"}
    assert not list((tmp_path / "notebooks").iterdir())


def test_a_notebook_is_saved_with_its_outputs(tmp_path):
    path = tmp_path / "1_example.py"
    code = "import os\nfrom PIL import Image\nprint(os.getcwd())\nImage.new('L', (8, 8))"
    path.write_text(f"# %% [markdown]\n# Text\n\n# %%\n{code}\n")
    main([path])
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    assert [cell.source for cell in notebook.cells] == ["Text", code]
    assert [cell.id for cell in notebook.cells] == ["cell-0", "cell-1"]
    printed, picture = notebook.cells[1].outputs
    assert printed.text.strip() == str(tmp_path)
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
