"""The functions of the solutions, by name."""

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
SOLUTIONS, EXERCISES, PIECES = HERE / "solutions", HERE / "exercises", "pieces"


def solution(name: str) -> Callable:
    """The solution's function of a name."""
    return getattr(all_solutions(), name)


@cache
def all_solutions() -> ModuleType:
    """All solutions as one module, as `from pieces import ...` sees them."""
    pieces = use_pieces(SOLUTIONS)
    files = set(pieces.WHERE.values())
    for name in pieces.WHERE:
        setattr(pieces, name, getattr(pieces, name))  # found once, and kept
    sys.path.remove(str(SOLUTIONS))
    for name in {*files, PIECES}:
        del sys.modules[name]
    return pieces


def use_pieces(folder: Path) -> ModuleType:
    """From now on, `from pieces import ...` imports functions of the files in a folder."""
    sys.path.insert(0, str(folder))
    spec = spec_from_file_location(PIECES, EXERCISES / f"{PIECES}.py")
    module = sys.modules[PIECES] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(file: str) -> ModuleType:
    """The module of a file in the folder of `use_pieces`."""
    return import_module(file)
