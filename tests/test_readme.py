"""The README says what is true of the scripts."""

import re
import shlex

import pytest

from conftest import ROOT, SCRIPTS

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
