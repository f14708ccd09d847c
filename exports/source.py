"""One Python file made of parts of this project's sources, which runs without the project.

`bundled` reads the sources as text: it copies a module, and every function, class and constant of
other modules that it uses, in an order in which Python can run them. Imports from the project turn
into these copies, and other imports stay. A copy is made at each export, so that it cannot differ
from its source.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Source:
    """The text of a module of this project, and the names that it defines and imports."""

    def __init__(self, module: str):
        path = ROOT / f"{module.replace('.', '/')}.py"
        self.module, self.lines = module, path.read_text(encoding="utf-8").splitlines()
        self.tree = ast.parse("\n".join(self.lines))
        self.defined: dict[str, ast.stmt] = {}
        self.imported: dict[str, tuple[str, str]] = {}  # name here: module, and name there
        self.external: dict[str, tuple[str, str]] = {}  # name here: module, and name there
        for node in self.tree.body:
            self.read(node)

    def read(self, node: ast.stmt) -> None:
        """Note the names of a statement at the top of the module."""
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            self.defined[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (n for target in targets for n in ast.walk(target)):
                if isinstance(name, ast.Name):
                    self.defined[name.id] = node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                here = alias.asname or alias.name.partition(".")[0]
                self.external[here] = (written(alias), "")
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                here = alias.asname or alias.name
                if is_ours(node.module):
                    self.imported[here] = (node.module, alias.name)
                else:
                    self.external[here] = (node.module, written(alias))

    def text(self, node: ast.stmt) -> str:
        """The lines of a definition, with its decorators and the comment above it."""
        decorators = [each.lineno for each in getattr(node, "decorator_list", [])]
        first = min([node.lineno, *decorators]) - 1
        while first and self.lines[first - 1].startswith("#"):
            first -= 1
        return "\n".join(self.lines[first : node.end_lineno])


class Bundle:
    """The definitions of a file, with the imports that they need."""

    def __init__(self, instead: Mapping[tuple[str, str], tuple[str, str]]):
        self.instead, self.sources = instead, {}
        self.origin: dict[str, tuple[str, str]] = {}  # name in the file: its module, and name there
        self.parts: list[str] = []
        self.imports: set[tuple[str, str]] = set()  # module, and name; "" for the module itself

    def source(self, module: str) -> Source:
        """A module of the project, read once."""
        if module not in self.sources:
            self.sources[module] = Source(module)
        return self.sources[module]

    def is_new(self, name: str, found: tuple[str, str]) -> bool:
        """Is a name not in the file yet? Raises ValueError if it has another meaning there."""
        if self.origin.get(name, found) != found:
            raise ValueError(f"{name} is defined in {self.origin[name][0]} and in {found[0]}")
        new = name not in self.origin
        self.origin[name] = found
        return new

    def add(self, module: str, name: str) -> None:
        """Add a definition, after all that it uses."""
        if not self.is_new(name, (module, name)):
            return
        current = self.source(module)
        node = current.defined[name]
        for used in sorted(set(names_in(node))):
            self.add_used(current, used)
        self.parts.append(current.text(node))

    def add_used(self, current: Source, used: str) -> None:
        """Add the definition or import of a name in a module, unless it is local or built-in."""
        if used in current.defined:
            self.add(current.module, used)
        elif used in current.imported:
            found = self.instead.get(current.imported[used], current.imported[used])
            self.add(*found)
            if used != found[1] and self.is_new(used, found):
                self.parts.append(f"{used} = {found[1]}")
        elif used in current.external:
            self.imports.add(current.external[used])

    def import_lines(self) -> list[str]:
        """The imports, those of Python's own modules first."""
        lines: dict[bool, list[str]] = {True: [], False: []}
        for module in sorted({module for module, _ in self.imports}):
            names = sorted(name for other, name in self.imports if other == module and name)
            found = lines[module.partition(".")[0] in sys.stdlib_module_names]
            if (module, "") in self.imports:
                found.append(f"import {module}")
            if names:
                found.append(f"from {module} import {', '.join(names)}")
        return ["\n".join(each) for each in lines.values() if each]


def bundled(module: str, instead: Mapping[tuple[str, str], tuple[str, str]] = {}) -> str:
    """The text of a module that imports nothing of this project.

    Args:
        module: such as "exports.diffusers_network".
        instead: replaces what is imported from the project, (module, name) by (module, name).

    Raises ValueError if two modules define the same name differently.
    """
    bundle = Bundle(instead)
    first = bundle.source(module)
    for name in first.defined:
        bundle.add(module, name)
    docstring = f'"""{ast.get_docstring(first.tree, clean=False)}"""'
    header = [docstring, "from __future__ import annotations", *bundle.import_lines()]
    return "\n\n".join(header) + "\n\n\n" + "\n\n\n".join(bundle.parts) + "\n"


def is_ours(module: str) -> bool:
    """Is this a module of the project?"""
    return (ROOT / f"{module.replace('.', '/')}.py").exists()


def written(alias: ast.alias) -> str:
    """An imported name as in its import statement, with `as` if it is renamed."""
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def names_in(node: ast.AST) -> Iterator[str]:
    """The names that a definition uses, local ones too."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
