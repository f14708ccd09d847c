"""Run the notebooks and save them with their outputs: name.py -> name.ipynb.

python notebooks/execute.py                     # all of them
python notebooks/execute.py notebooks/1_moons.py
"""

import os
import sys
import time
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat import write as write_notebook

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted(HERE.glob("[0-9]_*.py"))


def read(path: Path) -> NotebookNode:
    """Read a notebook without outputs from a py:percent file. Equal files give equal notebooks."""
    notebook = jupytext.read(path)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    for i, cell in enumerate(notebook.cells):  # otherwise random, and different in every commit
        cell.id = f"cell-{i}"
        cell.metadata = {}
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run a notebook from top to bottom in a folder, and add the outputs to it.

    Raises nbclient's CellExecutionError for a cell that fails.
    """
    client = NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=os.environ | {"TINY_DIFFUSION_STATIC": "1"})  # pictures, no sliders
    notebook.metadata.pop("language_info", None)  # the exact version of Python
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        output.get("data", {}).pop("image/jpeg", None)  # Pillow adds each picture twice
    return notebook


def main(paths: list[Path]) -> None:
    """Run notebooks, save them, and print how long each took."""
    for path in paths:
        start = time.monotonic()
        target = path.with_suffix(".ipynb")
        write_notebook(execute(read(path), path.parent), target)
        path.touch()  # jupytext opens no notebook whose .py file is older
        size = target.stat().st_size / 1000
        print(f"{target.name}: {time.monotonic() - start:.0f} s, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]] or NOTEBOOKS)
