"""benchmarks/record.py: rows that make themselves, and figures that are those of the record.

The commands are stand-ins, in a project of their own; no network is trained.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import figures, record, sessions
from benchmarks.code_digest import NOT_COUNTED, code_digest, code_of, path_of
from benchmarks.record import Recipe
from conftest import ROOT

ROWS = json.loads(record.ROWS.read_text())

TRAIN = '''
"""Stand-in for train.py: says how it was called, and leaves the files of a run."""
import json, os, signal, sys, time
from pathlib import Path
import recipe
folder = Path(sys.argv[-1])
with open("calls", "a") as file:
    file.write(" ".join(["train", *sys.argv[1:-2]]) + chr(10))
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
row = {"step": 10, "images_per_second": 100.0, "seconds": 0.001}
(folder / "metrics.jsonl").write_text(json.dumps(row) + chr(10))
config = {"train": {"update_size": 8, "validation": 20}, "data": {"count": 100}}
(folder / "config.json").write_text(json.dumps(config))
machine = {"time": "2026-01-02T", "device": {"name": "stand-in"}, "precision": "bf16"}
(folder / "env.json").write_text(json.dumps([{**machine, "packages": {"torch": "2"}}]))
def stop(*_):
    (folder / "checkpoints" / "interrupted.pt").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
if Path("fails").exists():
    sys.exit(1)
if Path("interrupts").exists():
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
(folder / "model_final.pt").touch()
(folder / "snapshots").mkdir(exist_ok=True)
(folder / "snapshots" / "step_5.safetensors").write_text("weights after five steps")
'''
EVALUATE = """
import json, sys
from pathlib import Path
import evaluation.measure
with open("calls", "a") as file:
    file.write("evaluate" + chr(10))
folder, asked = Path(sys.argv[2]).parent, sys.argv[sys.argv.index("--metrics") + 1:]
report = json.loads(Path("report.json").read_text())
measures = ("classifier", "two-sample", "copies", "prompt")
report = {name: report.get(name.replace("-", "_")) for name in measures if name in asked}
report = {name.replace("-", "_"): value for name, value in report.items()}
(folder / "metrics.json").write_text(json.dumps(report))
"""
SAMPLE = """
import sys
from pathlib import Path
print("64 images in 1.2 s")
Path(sys.argv[-1]).touch()
"""
EXPORT = """
import sys
from pathlib import Path
with open("calls", "a") as file:
    file.write("export " + sys.argv[5] + chr(10))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of stand-ins with one recipe, and one for a GPU."""
    files = {"train.py": TRAIN, "evaluate.py": EVALUATE, "sample.py": SAMPLE, "recipe.py": "a = 1"}
    files |= {"export.py": EXPORT, "weights/small.md": ""}
    files |= {"evaluation/__init__.py": "", "evaluation/measure.py": "b = 1", "README.md": "None."}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "docs").mkdir()
    area = {"mean": 0.9, "floor": 0.5, "values": [0.9], "floor_values": [0.5]}
    levels = {"almost_background": 0.4, "almost_background_of_real": 0.01}
    classifier = {**ROWS[0]["classifier"], **ROWS[0]["measures"]}
    tests = {"auc": area, "auc_16_levels": area, "grey_levels": levels}
    report = {"classifier": classifier, "two_sample": tests, "copies": {"near_copies": 0.01}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    recipes = {"tiny": Recipe("--tiny", "--steps 2"), "large": Recipe("", needs_gpu=True)}
    for module in (record, sessions):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(record, "ROWS", tmp_path / "docs" / "results.json")
    monkeypatch.setattr(record, "PAGE", tmp_path / "docs" / "results.md")
    monkeypatch.setattr(record, "RECIPES", recipes)
    monkeypatch.setattr(record, "parameters_of", lambda _: 5)
    monkeypatch.setattr(record.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sessions, "POLL", 0.01)
    return tmp_path


@pytest.fixture
def call(project, monkeypatch, capfd):
    """Runs record.py in the project: call("--all") -> code, output, and the commands that ran."""

    def run(*arguments):
        (project / "calls").write_text("")
        monkeypatch.setattr(sys, "argv", ["record.py", *arguments])
        capfd.readouterr()
        code = record.main()
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, ran=ran(project))

    return run


def ran(project: Path) -> list[str]:
    return (project / "calls").read_text().splitlines()


NEW = "train --tiny --data-dir data --overwrite"


def test_a_row_of_prompts_has_a_table_of_its_own(project, call):
    figures = {"mean": 0.7, "values": [0.6, 0.8], "floor": 0.99}
    measures = dict.fromkeys(("exact_match", "attribute_accuracy", "precision", "recall"), figures)
    prompt = {"reader": "5" * 64, "left_out": [], "training": measures, "held_out": measures}
    report = json.loads((project / "report.json").read_text())
    del report["classifier"]
    (project / "report.json").write_text(json.dumps({**report, "prompt": prompt}))
    metrics = ("prompt copies", "two-sample")
    record.RECIPES["tiny"] = Recipe("--tiny", "--steps 2", metrics=metrics)
    assert call("--only", "tiny").ran == [NEW, "evaluate", "evaluate"]
    text = record.PAGE.read_text()
    assert "| tiny | 0.700 (0.600 to 0.800) | 0.700 (0.600 to 0.800) | 0.70, 0.70 |" in text
    assert "| 0.990 | 1.00 % | 0.900 (0.900 to 0.900; floor 0.500) | " in text
    assert "--metrics prompt copies\npython evaluate.py" in text
    assert "--metrics two-sample\npython sample.py" in text
    assert "Reader of attributes `555555555555`" in text
    assert call("--only", "tiny").ran == []
    record.RECIPES["tiny"] = Recipe("--tiny", "--steps 2", metrics=("prompt copies",))
    assert call("--only", "tiny").ran == ["evaluate"]  # the network is kept


def test_a_row_is_made_once_for_each_version_of_the_code_that_matters(project, call, monkeypatch):
    listed = call("--list")
    assert listed.ran == []
    assert "not recorded yet" in listed.out
    assert "skipped: needs a GPU" in listed.out

    assert call("--all").ran == [NEW, "evaluate"]
    (row,) = json.loads(record.ROWS.read_text())
    assert row["updates"] == 10
    assert row["epochs"] == 1
    assert row["minutes"] < 0.5
    assert 1 < row["memory"] < 1000
    assert 0 <= row["start"] < 20
    assert row["two_sample"]["auc"]["mean"] == 0.9
    text = record.PAGE.read_text()
    assert "| 0.900 (0.900 to 0.900; floor 0.500) | 0.900 (0.900 to 0.900; floor 0.500) | " in text
    assert "| 40.00 % (1.00 %) |" in text
    assert (project / "docs" / "results_tiny.png").exists()

    (project / "recipe.py").write_text('"""Reworded."""\na = 1  # the same\n')
    again = call("--all")
    assert again.ran == []  # a docstring and a comment are no code
    assert "skipped: code and flags have not changed" in again.out
    (project / "evaluation" / "measure.py").write_text("b = 2")
    assert call("--all").ran == ["evaluate"]
    assert "older code" not in record.PAGE.read_text()
    (project / "README.md").write_text("Once 5<!-- results.json: tiny: updates --> steps.")
    call("--write")
    assert (project / "README.md").read_text().startswith("Once 10<")
    (project / "README.md").write_text("Once 5<!-- results.json: none: updates --> steps.")
    assert "no recipe 'none'" in call("--write").err
    assert call("--check").code == 1
    (project / "recipe.py").write_text("a = 2")
    assert "2026-01-02: 0 min      older code" in call("--list").out
    call("--write")
    assert "older code" in record.PAGE.read_text()
    assert call("--only", "tiny").ran == [NEW, "evaluate"]
    assert call("--only", "tiny", "--again").ran == [NEW, "evaluate"]
    monkeypatch.setitem(record.RECIPES, "tiny", Recipe("--tiny", "--steps 3"))
    assert call("--all").ran == ["evaluate"]


def test_a_published_recipe_has_weights_and_those_of_its_guide(project, call):
    record.RECIPES["tiny"] = Recipe("--tiny", "--steps 2", "small", guide="step_5")
    assert call("--only", "tiny").ran == [NEW, "evaluate", "export weights/small.safetensors"]
    guide = project / "weights" / "small_guide.safetensors"
    assert guide.read_text() == "weights after five steps"


def test_an_interrupted_run_is_resumed_unless_the_code_has_changed(project, call):
    (project / "interrupts").touch()
    for expected in (NEW, "train --resume"):
        with pytest.raises(KeyboardInterrupt):
            call("--all")
        assert ran(project) == [expected]
    assert not record.ROWS.exists()
    state = json.loads((project / "outputs" / "record" / "tiny.json").read_text())
    assert len(state["training"]["sessions"]) == 2
    (project / "interrupts").unlink()
    assert call("--all").ran == ["train --resume", "evaluate"]
    (row,) = json.loads(record.ROWS.read_text())
    assert row["sessions"] == 3
    assert " in 3 sessions | " in record.PAGE.read_text()

    (project / "recipe.py").write_text("a = 2")
    (project / "interrupts").touch()
    with pytest.raises(KeyboardInterrupt):
        call("--all")
    (project / "interrupts").unlink()
    (project / "recipe.py").write_text("a = 3")
    assert call("--all").ran == [NEW, "evaluate"]


def test_a_failed_run_is_reported(project, call):
    (project / "fails").touch()
    result = call("--all")
    assert result.code == 1
    assert "failed: tiny" in result.err
    assert json.loads(record.ROWS.read_text()) == []


def test_a_session_that_was_killed_counts_as_long_as_its_log(project):
    start, folder = time.time() - 100, project / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "model_step_1.pt").touch()
    (folder / "metrics.jsonl").touch()
    os.utime(folder / "metrics.jsonl", (start, start + 30))
    done = [{"start": start}]
    sessions.train_to_the_end([], folder, done, lambda: None)
    assert ran(project) == ["train --resume"]
    assert done[0]["seconds"] == pytest.approx(30)
    os.utime(folder / "checkpoints" / "model_step_1.pt", (0, 0))  # of an older run
    os.utime(folder / "model_final.pt", (0, 0))
    sessions.train_to_the_end(["--tiny"], folder, done, lambda: None)
    assert ran(project)[1:] == ["train --tiny --overwrite"]
    assert len(done) == 1


def test_a_recipe_in_parts_is_stopped_and_resumed(project):
    (project / "train.py").write_text(TRAIN.replace("os.kill(os.getppid(), signal.SIGINT)", ""))
    (project / "interrupts").touch()
    done = []

    def save():
        if len(done) == 2:
            (project / "interrupts").unlink(missing_ok=True)

    sessions.train_to_the_end(["--tiny"], project / "run", done, save, minutes=0.3 / 60)
    assert ran(project) == ["train --tiny --overwrite", "train --resume"]
    assert len(done) == 2


def test_the_command_of_a_recipe_in_parts_shows_how_to_resume():
    recipe = record.RECIPES["cifar10, 40 minutes on a GPU, in parts of 10"]
    first, second = record.train_command(recipe).splitlines()
    assert first.startswith("timeout 10m python train.py --dataset cifar10 --preset quality")
    assert second.startswith("timeout 10m python train.py --resume")


# --- the digest of the code -----------------------------------------------------------------------


def test_only_code_changes_the_digest(tmp_path):
    def digest(text: str) -> str:
        (tmp_path / "train.py").write_text(text)
        return code_digest(tmp_path, "train")

    plain = digest("def f(x):\n    'Text.'\n    raise ValueError('wrong')\nsay('done')\n")
    same = "# new\ndef f(x):\n    '''Other.'''\n\n    raise ValueError(f'bad: {x}')\nsay('end')"
    assert digest(same) == plain
    assert digest(same.replace("ValueError", "KeyError")) != plain
    flag = "lr: float = train_flag(0.1, 'the learning rate')"
    assert digest(flag) == digest(flag.replace("the learning", "peak learning"))
    assert digest(flag) != digest(flag.replace("0.1", "0.2"))
    (tmp_path / "visuals.py").write_text("a = 1")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "unet.py").write_text("a = 1")
    imports = "def f():\n    from models import unet\n    import visuals"
    before = digest(imports)
    (tmp_path / "visuals.py").write_text("a = 2")
    assert digest(imports) == before
    (tmp_path / "models" / "unet.py").write_text("a = 2")
    assert digest(imports) != before


def test_the_code_that_matters_is_found():
    assert all(path_of(ROOT, name) for name in NOT_COUNTED)
    counted = code_of(ROOT, ["train"]).keys() - NOT_COUNTED
    assert {"train", "diffusion", "models.unet", "training.plan", "dataset.registry"} <= counted
    assert {"cli.training", "training.config", "utils"} <= counted
    assert not {name for name in counted if name.startswith(("tests", "benchmarks"))}


# --- the figures of the pages ---------------------------------------------------------------------


def test_the_figures_of_the_pages_are_those_of_the_record():
    assert record.check(record.read()) == []
    for row in ROWS:
        assert (record.PAGE.parent / row["grid"]).is_file()


DISTANCE = {"mean": 0.782, "ratio": 1.7454, "values": [0.8301, 0.7281, 0.7882], "floor": 0.4481}
ROW = {"recipe": "mnist, 10 minutes", "updates": 4346, "classifier": {"accuracy": 0.9968}}
ROW |= {"measures": {"classifier_fid": DISTANCE}}
MARK = "<!-- results.json: mnist, 10 minutes: {} -->"
PAGE = f"""# Page

Three of **1.75** (1.62 to
1.85){MARK.format("ratio and range")} and 99.7 %{MARK.format("accuracy")}, not 3.

| 32.6<!-- other.md: b, c: FID --> | 4,346{MARK.format("updates")} |
"""
OTHER = "| name | kind | FID |\n| --- | --- | --- |\n| b | a | 1 |\n| b | c | 32.61 |\n"


@pytest.fixture
def quoting(tmp_path):
    """Writes a page, and returns its quotes."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text(OTHER)

    def quotes(text: str) -> list[figures.Quote]:
        (tmp_path / "page.md").write_text(text)
        return figures.all_quotes(tmp_path, [ROW], list(record.RECIPES))

    return quotes


def test_quoted_figures_are_found_and_corrected(quoting):
    assert [quote.found for quote in quoting(PAGE)] == ["1.75 1.62 1.85", "99.7", "32.6", "4,346"]
    assert all(quote.holds() for quote in quoting(PAGE))
    wrong = PAGE.replace("1.62", "1.6").replace("1.85", "1.86").replace("32.6", "3.61")
    wrong = wrong.replace("4,346", "4346")
    found = [str(quote) for quote in quoting(wrong) if not quote.holds()]
    assert found == [
        "page.md:4: 1.75 1.6 1.86 should be 1.75 1.6 1.85 "
        "(results.json: mnist, 10 minutes: ratio and range)",
        "page.md:6: 3.61 should be 32.61 (other.md: b, c: FID)",
    ]
    expected = PAGE.replace("1.62", "1.6").replace("32.6", "32.61")
    assert figures.corrected(wrong, quoting(wrong)) == expected


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (MARK.format("speed"), "no field 'speed'"),
        (MARK.format("floor").replace("10 minutes", "11 minutes"), "no recipe"),
        (MARK.format("ratio and range"), "3 numbers should stand before"),
        (" " + MARK.format("floor"), "must directly follow"),
        ("<!-- other.md: b: FID -->", "has 2 rows 'b'"),
        ("<!-- none.md: b: FID -->", "no page none.md"),
    ],
)
def test_a_comment_without_a_source_is_an_error(quoting, mark, message):
    with pytest.raises(figures.UnknownSource, match=rf"page\.md:3: .*{message}"):
        quoting(f"9\n\n1 and 2{mark}")


def test_a_figure_that_was_not_measured_has_no_record(quoting):
    mark = "<!-- results.json: cifar10, a night: ratio -->"
    (quote,) = quoting(f"1.5{mark}")
    assert quote.expected is None
    assert str(quote).startswith("page.md:1: 1.5 has no record yet")


def test_wrong_figures_of_a_model_card_are_found(tmp_path):
    row = next(row for row in ROWS if row["recipe"] == "mnist, 10 minutes")
    text = (ROOT / "weights" / "mnist.md").read_text()
    steps, precision = f"{row['updates']:,} ", re.search(r"\| precision \| (\S+)", text)[1]
    (tmp_path / "card.md").write_text(text.replace(precision, "0.1234").replace(steps, "4,347 "))
    steps, precision = figures.wrong_lines_of_card(tmp_path, Path("card.md"), row)
    assert f"should have {row['updates']:,} training steps" in steps
    line = text[: text.index("| precision")].count("\n") + 1
    assert precision.startswith(f"card.md:{line}: | precision | 0.1234 ")
