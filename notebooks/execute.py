"""Run the notebooks and write each with its outputs: name.py -> name.ipynb.

python notebooks/execute.py                     # all of them
python notebooks/execute.py notebooks/1_moons.py
"""

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
    """The notebook of a py:percent file, without outputs; the same file gives the same notebook."""
    notebook = jupytext.read(path)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    for i, cell in enumerate(notebook.cells):  # which are random otherwise, and new in every commit
        cell.id = f"cell-{i}"
        cell.metadata = {}
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run a notebook from top to bottom with that current folder; it then has its outputs.

    Raises nbclient's CellExecutionError for a cell that fails.
    """
    client = NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata.pop("language_info", None)  # the version of Python, to the last digit
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        output.get("data", {}).pop("image/jpeg", None)  # Pillow gives each picture twice
    return notebook


def main(paths: list[Path]) -> None:
    for path in paths:
        start = time.monotonic()
        target = path.with_suffix(".ipynb")
        write_notebook(execute(read(path), path.parent), target)
        path.touch()  # Jupyter with jupytext opens no pair whose text is the older
        size = target.stat().st_size / 1000
        print(f"{target.name}: {time.monotonic() - start:.0f} s, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]] or NOTEBOOKS)
