"""The layout of the source tree: imports go one way, and no source runs code that it reads.

Every test parses the sources and imports none of them.
"""

import ast
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

COMMANDS = {"train", "sample", "evaluate", "export", "visualize_diffusion"}
MATHEMATICS = {"conditions", "diffusion", "guidance", "objectives", "samplers", "schedules"}
MAX_TOP_LEVEL = 13

# Each layer may import itself, the layers after it, and the services.
LAYERS = [
    "commands",
    "exports",
    "evaluation",
    "training",
    "sampling",
    "checkpoints",
    "models",
    "mathematics",
]
# What each service may import besides itself: rooms or single modules.
SERVICES = {
    "dataset": {"utils"},
    "visuals": {"utils", "dataset.items"},
    "cli": set(),
    "utils": set(),
    "distributed": set(),
}
TEACHING = {"learn": {"cli", "dataset", "utils", "visuals"}}  # nothing imports it
ALONE = {"mini_diffusion", "docs"}  # import nothing of the rest, which imports nothing of them
FREE = {"benchmarks", "notebooks"}  # import anything, and are imported by each other alone
# Rooms with a docstring that names all modules.
LISTED = ("checkpoints", "dataset", "evaluation", "learn", "mini_diffusion", "sampling", "training")
LISTED += ("visuals",)
BELOW_COMMANDS = {*LAYERS, *SERVICES} - {"commands", "cli"}

UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "marshal", "shelve", "dill"}
UNSAFE_MODULES |= {"joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_CALLS |= {"torch.jit.load", "yaml.load", "torch.hub.load", "os.system"}


# --- reading the sources --------------------------------------------------------------------------


@cache
def sources() -> dict[str, ast.Module]:
    """The syntax tree of every source file but the tests, by module name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if {"tests", "outputs", "data", "build"} & set(parts) or parts[0].startswith("."):
            continue
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported_names(node: ast.AST) -> list[str]:
    """The modules that a node loads, if it is an import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not resolved here"
        names = [(node.module, f"{node.module}.{alias.name}") for alias in node.names]
        return [inner if inner in sources() else outer for outer, inner in names]
    return []


@cache
def all_imported_names(module: str) -> set[str]:
    """The modules that a module imports anywhere, in its functions too."""
    return {name for node in ast.walk(sources()[module]) for name in imported_names(node)}


def imports(module: str) -> set[str]:
    """The modules of the project that a module imports."""
    return all_imported_names(module) & sources().keys() - {module}


def room(module: str) -> str:
    """The part of the project that a module belongs to: a layer, a service, or its folder."""
    top = module.partition(".")[0]
    if top in COMMANDS:
        return "commands"
    return "mathematics" if top in MATHEMATICS else top


def may_import(module: str, other: str) -> bool:
    """Whether the layout lets a module import another one of the project."""
    source, target = room(module), room(other)
    if source == target:
        return source != "commands"
    if source in FREE:
        return True
    if source in TEACHING:
        return target in TEACHING[source]
    if target in ALONE | FREE | TEACHING.keys() or source in ALONE:
        return False
    if source == "mathematics":
        return target == "utils"
    if source in SERVICES:
        return bool({target, other} & SERVICES[source])
    return target in SERVICES or LAYERS.index(source) < LAYERS.index(target)


def calls(tree: ast.AST) -> list[tuple[int, str, dict[str, str]]]:
    """Line, name and keyword arguments of every call."""
    return [
        (
            node.lineno,
            ast.unparse(node.func),
            {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


# --- the direction of imports ---------------------------------------------------------------------


def test_every_source_belongs_to_a_known_part():
    rooms = {room(module) for module in sources()}
    assert rooms == {*LAYERS, *SERVICES, *TEACHING, *ALONE, *FREE}


def test_imports_go_one_way():
    wrong = [
        f"{module} imports {other}"
        for module in sources()
        for other in sorted(imports(module))
        if not may_import(module, other)
    ]
    assert wrong == []


def test_a_wrong_direction_is_found():
    for module, other in [
        ("models.unet", "training.trainer"),
        ("train", "sample"),
        ("diffusion", "dataset.items"),
        ("dataset.items", "models"),
        ("visuals.pictures", "dataset.registry"),
        ("cli.parser", "utils"),
        ("utils", "distributed"),
        ("mini_diffusion.unet", "utils"),
        ("evaluation.report", "benchmarks.runs"),
        ("sampling.draw", "mini_diffusion"),
        ("learn.exercise", "diffusion"),
        ("evaluation.report", "learn.exercise"),
    ]:
        assert not may_import(module, other), f"{module} may import {other}"
    for module, other in [
        ("train", "training.trainer"),
        ("sampling.draw", "checkpoints.checkpoint"),
        ("models.unet", "conditions"),
        ("samplers", "diffusion"),
        ("visuals.pictures", "dataset.items"),
        ("benchmarks.runs", "train"),
        ("learn.drawing", "dataset.registry"),
    ]:
        assert may_import(module, other), f"{module} may not import {other}"


@pytest.mark.parametrize("node_of", [str, room], ids=["modules", "parts"])
def test_imports_have_no_cycles(node_of):
    """Imports inside functions count too: they hide a cycle from Python, but not from a reader."""
    graph = {}
    for module in sources():
        others = {node_of(other) for other in imports(module)} - {node_of(module)}
        graph.setdefault(node_of(module), set()).update(others)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("cycle of imports: " + " <- ".join(error.args[1]))


def test_the_mathematics_loads_only_torch_and_numpy():
    """At the top of a module. Inside a function, one formula may need a library of its own."""
    allowed = {"torch", "numpy", "utils", *MATHEMATICS, *sys.stdlib_module_names}
    wrong = [
        f"{module} imports {name}"
        for module in sorted(MATHEMATICS)
        for node in sources()[module].body
        for name in imported_names(node)
        if name.partition(".")[0] not in allowed
    ]
    assert wrong == []


def test_exercises_and_solutions_load_only_torch_and_each_other():
    allowed = {"torch", "numpy", "pieces", *sys.stdlib_module_names}
    files = [m for m in sources() if m.startswith(("learn.exercises.", "learn.solutions."))]
    assert len(files) == 33  # 16 of each, and exercises/pieces.py
    wrong = [
        f"{module} imports {name}"
        for module in files
        for name in all_imported_names(module)
        if name.partition(".")[0] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("room", LISTED)
def test_the_docstring_of_a_room_names_its_modules(room):
    text = ast.get_docstring(sources()[room])
    modules = {path.stem for path in (ROOT / room).glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in (ROOT / room).glob("*/__init__.py")}
    assert [name for name in sorted(modules | folders) if name not in text] == []


def test_the_top_level_is_short():
    top_level = [module for module in sources() if (ROOT / f"{module}.py").exists()]
    assert {*COMMANDS, *MATHEMATICS} <= set(top_level)
    assert len(top_level) <= MAX_TOP_LEVEL, top_level


# --- what the sources may not do ------------------------------------------------------------------


def test_only_the_commands_and_cli_parse_arguments():
    below = [module for module in sources() if room(module) in BELOW_COMMANDS]
    assert "training.trainer" in below
    assert [module for module in below if "argparse" in all_imported_names(module)] == []


def test_nothing_below_the_commands_prints():
    """Except `distributed.say`, by which one process of a job prints for all."""
    printing = {
        module
        for module, tree in sources().items()
        if room(module) in BELOW_COMMANDS and any(name == "print" for _, name, _ in calls(tree))
    }
    assert printing == {"distributed"}


def unsafe(tree: ast.AST) -> list[str]:
    """What a source imports or calls that could run code from a file: "line: name"."""
    found = [
        f"{node.lineno}: {name}"
        for node in ast.walk(tree)
        for name in sorted({name.partition(".")[0] for name in imported_names(node)})
        if name in UNSAFE_MODULES
    ]
    for line, name, keywords in calls(tree):
        if (
            name in UNSAFE_CALLS
            or (name == "torch.load" and keywords.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and keywords.get("allow_pickle") == "True")
        ):
            found.append(f"{line}: {name}")
    return found


def test_no_source_runs_code_that_it_reads():
    assert {"train", "checkpoints.checkpoint", "mini_diffusion.model_file"} <= sources().keys()
    found = {module: unsafe(tree) for module, tree in sources().items()}
    assert {module: names for module, names in found.items() if names} == {}


def test_unsafe_imports_and_calls_are_found():
    for source in [
        "import pickle",
        "import os, pickle as p",
        "import joblib.numpy_pickle",
        "from marshal import loads",
        "def f():\n    from dill import load",
        "eval('1')",
        "x = [exec(code) for code in codes]",
        "__import__('os')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "torch.jit.load(path)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
    ]:
        assert len(unsafe(ast.parse(source))) == 1, source
    for source in [
        "import pickletools\nmodel.eval()\ntorch.compile(model)\nre.compile('x')",
        "torch.load(path, weights_only=True)\nnp.load(path)",
    ]:
        assert unsafe(ast.parse(source)) == [], source
