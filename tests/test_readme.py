"""README, docs and CONTRIBUTING match the code."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import record
from cli import docs
from cli.training import TRAIN
from conftest import ROOT
from mini_diffusion import sample as mini_sample
from training.config import PRESETS

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [
        *ROOT.glob("*.md"),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs" / "guide").glob("*.md")),
    ]
}


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a page in one language ("" for commands)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


COMMAND = rf"^(?:python|torchrun .*?|timeout \w+ python) ({'|'.join(docs.COMMANDS)}) ?(.*)$"
COMMANDS = {
    found: page
    for page, text in PAGES.items()
    for block in blocks(text, "")
    for found in re.findall(COMMAND, block, re.MULTILINE)
}
SNIPPETS = [(page, code) for page, text in PAGES.items() for code in blocks(text, "python")]


def test_the_first_snippet_goes_from_import_to_samples():
    snippet = blocks(README, "python")[0]
    assert len(snippet.split("\n\n")) == 2  # imports, and the rest
    assert len([line for line in snippet.splitlines() if line]) <= 15
    assert "range(1000)" in snippet
    names = {}
    exec(snippet.replace("range(1000)", "range(2)"), names)
    assert names["samples"].shape == (16, 1, 8, 8)
    assert names["samples"].abs().max() <= 1
    assert names["loss"].isfinite()


@pytest.mark.parametrize(("page", "code"), SNIPPETS)
def test_imports_of_snippets_exist(page, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), page


@pytest.mark.parametrize(("script", "arguments"), COMMANDS, ids=lambda text: text[:60])
def test_commands_are_accepted(script, arguments):
    command = docs.COMMANDS[script]
    command.parsed(command.parser(), shlex.split(arguments, comments=True))


def test_commands_of_mini_diffusion_are_accepted():
    commands = re.findall(r"^python -m mini_diffusion\.sample (.*)$", README, re.MULTILINE)
    assert commands
    for arguments in commands:
        mini_sample.make_parser().parse_args(shlex.split(arguments))


def test_each_script_is_shown():
    shown = {script for (script, _), page in COMMANDS.items() if page == "README.md"}
    assert shown == set(docs.COMMANDS)


def test_the_commands_of_make_demo_are_shown():
    recipe = (ROOT / "Makefile").read_text().replace("\\\n\t\t", "")
    demo = re.search(r"^demo:.*\n((?:\t.*\n)+)", recipe, re.MULTILINE)[1]
    commands = re.findall(r"^\t\$\(BIN\)/(python .*)$", demo, re.MULTILINE)
    assert len(commands) == 4
    assert "\n".join(commands) in README


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 300


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path if path else ROOT / page).resolve()
        if path.startswith("https://") or is_of_missing_exercises(target):
            continue
        assert target.exists(), link
        if anchor and target.suffix == ".md":  # test_guide.py checks lines of code
            assert anchor in slugs(target.read_text(encoding="utf-8")), link


def is_of_missing_exercises(target: Path) -> bool:
    """Is a path in learn/, which this checkout lacks?"""
    return target.is_relative_to(ROOT / "learn") and not (ROOT / "learn").exists()


def test_each_page_is_linked_from_the_readme():
    """The chapters of the guide are linked from its own README."""
    pages = {page for page in PAGES if not page.startswith("docs/guide/")}
    assert {page for page in pages if f"({page})" not in README} == {"README.md"}


def test_the_tree_names_each_module_and_package():
    tree = next(block for block in blocks(README, "") if "diffusion.py  " in block)
    modules = {path.name for path in ROOT.glob("*.py")}
    packages = {f"{path.parent.name}/" for path in ROOT.glob("[a-z]*/*.py")} - {"data/", "outputs/"}
    named = set(re.findall(r"\b\w+(?:\.py|/)", tree))
    assert (modules | packages) - named == set()
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_shown_with_their_flags(name):
    shown = re.search(rf"^\| `{name}` \| `(.*?)`", README, re.MULTILINE)[1]
    flags = TRAIN.parsed(TRAIN.parser(), shlex.split(shown))
    assert flags.chosen(flags.given) == PRESETS[name]


def test_results_are_those_of_the_record():
    """record.py --check compares the figures themselves."""
    quoted = r"^\| `(--dataset .*?)` \| .*<!-- results.json: (.*?): ratio and range --> \|$"
    shown = re.findall(quoted, README, re.MULTILINE)
    assert len(shown) == README.count("\n| `--dataset ") > 0
    assert all(flags in record.RECIPES[recipe].train for flags, recipe in shown)
