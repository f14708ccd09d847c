"""The README says what is true of the scripts."""

import json
import re
import shlex
from types import SimpleNamespace

import pytest

import train
from conftest import ROOT, SCRIPTS
from training.config import PRESETS

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(rf"^python ({'|'.join(SCRIPTS)})\.py ?(.*)$", BLOCKS, re.MULTILINE)


@pytest.mark.parametrize(("script", "arguments"), COMMANDS)
def test_commands_are_accepted(script, arguments):
    SCRIPTS[script].parse_args(shlex.split(arguments, comments=True))


def test_each_script_is_shown():
    assert {script for script, _ in COMMANDS} == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_table_has_every_flag_with_its_default(script):
    section = README.split(f"### `{script}.py`")[1].split("\n### ")[0].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(--[\w-]+)[^|]*\| ([^|]*?) *\|", section, re.MULTILINE))
    actions = SCRIPTS[script].make_parser()._actions
    flags = {a.option_strings[0]: a for a in actions if a.option_strings}
    del flags["-h"]
    assert rows.keys() == flags.keys()
    for flag, action in flags.items():
        default = action.default
        if isinstance(default, list):
            default = " ".join(map(str, default))
        if default is not None and default is not False and default != "":
            assert rows[flag] == f"`{default}`", flag


def test_pictures_exist():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(pictures) >= 3
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_shown_as_they_are(name):
    flags = train.flags_of(SimpleNamespace(**PRESETS[name]), PRESETS[name])
    assert f"| `{name}` | `{flags}`" in README


def test_the_headline_is_that_of_the_results():
    rows = json.loads((ROOT / "docs" / "results.json").read_text())
    found = {row["recipe"]: row["measures"]["classifier_fid"] for row in rows}
    ten = found["mnist, 10 minutes"]
    low, high = (f(ten["values"]) / ten["floor"] for f in (min, max))
    assert f"**{ten['ratio']:.2f} times" in README
    assert f"(three sets: {low:.2f} to {high:.2f};" in README
    head = " ".join(README.split("## Two commands")[0].split())
    for recipe in found.keys() - {"mnist, 10 minutes"}:
        assert f"{found[recipe]['ratio']:.1f} times" in head, recipe
