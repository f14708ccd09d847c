"""A digest of the code that a result depends on: equal digests, equal results.

The code of a command is its module and every module of the project that it imports, directly or
not, except those in `NOT_COUNTED`. A new module therefore counts until it is listed there.
Comments, docstrings, messages and the help of flags do not count.
"""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

# Modules and packages that do not change a trained network, its samples or their measures.
NOT_COUNTED = {
    "cli.activity", "cli.parser", "cli.process", "cli.streams",  # messages
    "visuals", "training.progress", "training.run_log", "training.log",  # pictures and logs
    "checkpoints.card", "checkpoints.consistency", "checkpoints.inspection",  # checks of files
    "checkpoints.other_programs", "checkpoints.reading", "checkpoints.runs", "checkpoints.seal",
    "training.environment", "training.folder", "training.foreign", "training.resume",
    "training.saver", "training.saving", "training.session", "training.stop",
    "checkpoints.shards", "distributed", "training.sharding",  # for several processes
    "dataset.changes", "dataset.decoding", "dataset.downloads", "dataset.finding",
    "dataset.folders", "dataset.image_files", "dataset.opening", "dataset.own_files",
    "dataset.pixel_cache", "dataset.digits", "dataset.points",  # other data sets
    "evaluation.inception", "evaluation.likelihood", "evaluation.bits",  # other measures
    "sampling.editing", "sampling.parts",  # other outputs
}  # fmt: skip
SILENT = {"print", "say", "SAY", "activity"}  # calls that only print


def code_digest(root: Path, *commands: str, without: Iterable[str] = ()) -> str:
    """SHA-256 of the code of commands: of "train", for train.py.

    Args:
        root: the folder of the project.
        without: packages and modules that do not count, besides `NOT_COUNTED`.
    """
    skipped = NOT_COUNTED | set(without)
    sha256 = hashlib.sha256()
    for module, tree in sorted(code_of(root, commands).items()):
        parents = module.split(".")
        if not {".".join(parents[: n + 1]) for n in range(len(parents))} & skipped:
            sha256.update(f"{module}\n{normalised(tree)}\n".encode())
    return sha256.hexdigest()


def code_of(root: Path, modules: Iterable[str]) -> dict[str, ast.Module]:
    """The syntax trees of modules of the project and of those that they import, by name."""
    found, left = {}, list(modules)
    while left:
        name = left.pop()
        path = path_of(root, name)
        if name in found or path is None:
            continue
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
        left += [name.rpartition(".")[0]] if "." in name else []  # the package's __init__.py
        for node in ast.walk(found[name]):
            if isinstance(node, ast.Import):
                left += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                left += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def path_of(root: Path, module: str) -> Path | None:
    """The file of a module; None if it is not one of the project."""
    base = root.joinpath(*module.split("."))
    paths = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in paths if path.is_file()), None)


def normalised(tree: ast.Module) -> str:
    """Source text without comments, docstrings, messages and help."""
    return ast.unparse(ast.fix_missing_locations(Silence().visit(tree)))


class Silence(ast.NodeTransformer):
    """Removes what is written for readers."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc.args, node.exc.keywords = [], []
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in SILENT:
            node.args, node.keywords = [], []
        elif name.endswith("flag"):
            node.args = [each for each in node.args if not is_help(each)]
        return self.generic_visit(node)


def is_help(node: ast.AST) -> bool:
    """Is this a text of several words?"""
    return isinstance(node, ast.Constant) and " " in str(node.value)
