"""The flags of all commands: declaration, spelling, help, errors, and the page docs/flags.md."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import models
import objectives
import samplers
import schedules
from cli import docs, process
from cli.declare import keys, option
from cli.docs import COMMANDS
from cli.evaluation import EVALUATE
from cli.export import EXPORT
from cli.parser import Command
from cli.sampling import SAMPLE
from cli.training import TRAIN
from cli.visualization import VISUALIZE
from conftest import ROOT
from dataset import image_files, registry
from processes import Processes
from training import config, optimizers, plan

HELP_WIDTH, MAX_HELP = 120, 80  # characters of a line of --help, and of a flag's own text
REQUIRED = {SAMPLE: ["--checkpoint", "x"], EVALUATE: ["--checkpoint", "x"]}
REQUIRED[EXPORT] = ["--checkpoint", "x"]
PARTNERS = {"inpaint": ["mask"], "samples": ["dataset"]}  # rules that are not declared as `needs`


@pytest.fixture(params=COMMANDS, scope="module")
def command(request) -> Command:
    return COMMANDS[request.param]


# --- command lines for each flag ------------------------------------------------------------------


def values_for(command: Command, name: str) -> list[str]:
    """Words after a flag that it accepts and that are not its default."""
    field, declared = command.declared[name]
    if declared.switch:
        return []
    if declared.nargs == 2:
        return ["diffusers", "folder"] if name == "from_" else ["0.5", "3"]
    if declared.choices:
        return [choice for choice in declared.choices if choice != field.default][-1:]
    for text in ("4", "0.25", "cpu"):
        try:
            if declared.parse(text) != field.default:
                return [text]
        except argparse.ArgumentTypeError:
            continue
    raise AssertionError(f"no value found for {name}")


def spelled(command: Command, name: str) -> list[str]:
    """A flag with a value, as on a command line."""
    values = values_for(command, name)
    return values if command.declared[name][1].positional else [option(name), *values]


def company(command: Command, name: str, seen: tuple[str, ...] = ()) -> list[str]:
    """The words of other flags without which a flag is an error."""
    words, declared = [], command.declared[name][1]
    source = {EVALUATE: "samples", EXPORT: "from_"}.get(command)  # in place of a checkpoint
    if source not in (name, *declared.needs):
        words += REQUIRED.get(command, [])
    needed = [] if {*seen} & {*declared.needs} else declared.needs[:1]  # one of them is there
    for other in {*needed, *PARTNERS.get(name, [])} - {*seen, name}:
        words += [*spelled(command, other), *company(command, other, (*seen, name))]
    return words


def test_every_flag_may_be_spelled_with_hyphens_or_underscores(command):
    parser = command.parser()
    for name, (field, declared) in command.declared.items():
        others, words = company(command, name), spelled(command, name)
        flags = command.parsed(parser, [*others, *words])
        assert name in flags.given
        if name != "field" or command is not VISUALIZE:
            assert getattr(flags, name) != field.default, name
        if declared.positional:
            continue
        underscores = f"--{name.rstrip('_')}"  # Python has a word "from"
        assert command.parsed(parser, [*others, underscores, *words[1:]]) == flags, name
        if len(words) == 2:
            assert command.parsed(parser, [*others, f"{underscores}={words[1]}"]) == flags, name
        for further in declared.names:
            assert command.parsed(parser, [*others, further, *words[1:]]) == flags, name
        if declared.switch == "on-off":
            off = command.parsed(parser, [*others, f"--no_{name}"])
            assert getattr(off, name) is False


def test_values_keep_their_underscores():
    for words in (["--output_dir", "a_b"], ["--output-dir=a_b"]):
        assert TRAIN.parse(words).output_dir == "a_b"


def test_given_names_the_flags_of_the_command_line():
    flags = TRAIN.parse(["--batch_size", "128", "--resume", "--no-flip"])
    assert flags.given == {"batch_size", "resume", "flip"}
    assert (flags.batch_size, flags.resume, flags.flip) == (128, "newest", False)
    assert flags.grad_accum == 1


def test_a_flag_that_has_no_effect_alone_is_an_error(command):
    parser = command.parser()
    for name, (_, declared) in command.declared.items():
        required = REQUIRED.get(command, [])
        if command is EVALUATE and declared.needs == ("checkpoint",):
            required = ["--samples", "s.npz", "--dataset", "mnist"]
        needed = set(declared.needs) - {word[2:] for word in required}
        if needed:
            message = f"{option(name)} has no effect without .*{option(declared.needs[0])}"
            with pytest.raises(ValueError, match=message):
                command.parsed(parser, [*required, *spelled(command, name)])


def test_a_flag_is_in_use_if_its_value_is_neither_the_default_nor_nothing():
    interval = ["--checkpoint", "x", "--guidance-interval", "0.5", "3", "--guidance-scale"]
    assert SAMPLE.parse([*interval, "0"]).guidance_scale == 0  # guided away from the class
    churn = ["--checkpoint", "x", "--churn", "0", "--churn-min", "1"]
    for words, needed in [
        ([*interval, "1"], r"a --guidance-scale other than 1\.0 or --classifier or --clip"),
        (churn, "--churn"),
    ]:
        with pytest.raises(ValueError, match=f"has no effect without {needed}$"):
            SAMPLE.parsed(SAMPLE.parser(), words)


def test_a_flag_that_another_one_makes_useless_is_an_error(command):
    parser = command.parser()
    for name, (_, declared) in command.declared.items():
        for other in set(declared.unless) & command.declared.keys():
            words = [*company(command, other), *company(command, name)]
            words += [*spelled(command, other), *spelled(command, name)]
            with pytest.raises(ValueError, match=f"{option(name)} has no effect with --"):
                command.parsed(parser, words)


def test_custom_is_another_word_for_a_folder_of_images():
    assert TRAIN.parse(["--dataset", "custom"]).dataset == "folder"
    assert TRAIN.keywords(dataset="custom").dataset == "folder"
    assert VISUALIZE.parse(["--dataset", "custom"]).dataset == "folder"
    assert EVALUATE.parse(["--samples", "s.npz", "--dataset", "custom"]).dataset == "folder"


@pytest.mark.parametrize(
    ("flag", "table"),
    [
        ("dataset", registry.DATASETS | {"custom": None}),
        ("fit", image_files.FITS),
        ("model", models.NETWORKS),
        ("preset", config.PRESETS),
        ("schedule", schedules.SCHEDULES),
        ("prediction", objectives.PREDICTIONS),
        ("loss_weight", objectives.LOSS_WEIGHTS),
        ("timestep_sampling", objectives.TIMESTEP_SAMPLINGS),
        ("noise_assignment", objectives.NOISE_ASSIGNMENTS),
        ("optimizer", optimizers.OPTIMIZERS),
        ("lr_decay", plan.LR_DECAYS),
        ("sampler", {"auto": None} | samplers.SAMPLERS),
        ("spacing", schedules.SPACINGS),
    ],
)
def test_choices_are_the_keys_of_the_dictionaries(flag, table):
    declared = [c.declared[flag][1] for c in COMMANDS.values() if flag in c.declared]
    assert declared
    for each in declared:
        assert tuple(each.choices) == tuple(table)


def test_a_table_that_is_missing_is_an_error():
    with pytest.raises(LookupError, match=r"samplers\.py has no dict WALKS"):
        keys("samplers.py", "WALKS")


# --- --help ---------------------------------------------------------------------------------------


def test_every_flag_has_one_line_in_the_help(command):
    lines = command.parser().format_help().splitlines()
    assert max(map(len, lines)) <= HELP_WIDTH
    end = lines.index("values:") if "values:" in lines else lines.index("examples:")
    of_flags = [line for line in lines[:end] if line.startswith(" ")]
    name = re.compile(r"  (?:-h, )?(?:--)?([\w-]+).* {2}\S")
    shown = {name.match(line)[1].lower(): line for line in of_flags}
    names = {option(name)[2:]: name for name in command.declared}
    assert len(shown) == len(of_flags)
    assert shown.keys() == {"help", *names}
    for flag, name in names.items():
        field, declared = command.declared[name]
        assert len(declared.help) <= MAX_HELP
        assert declared.help in shown[flag]
        default = field.default_factory() if callable(field.default_factory) else field.default
        if default not in (None, "") and default is not False:
            text = " ".join(map(str, default)) if isinstance(default, list) else str(default)
            assert f"(default: {text}" in shown[flag] or f"default: {text})" in shown[flag]
        if declared.choices and not declared.metavar:
            text = shown[flag] + " ".join(lines[end:])
            assert all(re.search(rf"[ {{,]{choice}\b", text) for choice in declared.choices)


def test_the_defaults_of_the_help():
    text = TRAIN.parser().format_help()
    assert re.search(r"--timesteps T .*\(default: 1000\)\n", text)
    assert re.search(r"--seed N .*\(default: 0\)\n", text)
    assert re.search(r"--max-steps N +training steps\n", text)  # it has no default
    assert re.search(r"--flip .*\(default: for cifar10 and folder\); --no-flip: off\n", text)
    text = VISUALIZE.parser().format_help()
    assert "(default: 0 50 100 200 400 600 800 999)\n" in text


# Runs a command in this process and prints its CPU time and the modules that it has imported.
HELP = """
import contextlib, io, runpy, sys, time
sys.argv = [sys.argv[1], "--help"]
with contextlib.redirect_stdout(io.StringIO()) as out:
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code
print(code, time.process_time(), *{name.partition(".")[0] for name in sys.modules})
sys.stdout.write(out.getvalue())
"""


@pytest.mark.parametrize("script", COMMANDS)
def test_the_help_answers_at_once(script):
    done = subprocess.run(
        [sys.executable, "-c", HELP, script], cwd=ROOT, capture_output=True, text=True
    )
    first, _, text = done.stdout.partition("\n")
    code, seconds, *imported = first.split()
    assert code == "0", done.stderr
    assert not {"torch", "numpy", "matplotlib", "tqdm"} & set(imported)
    assert float(seconds) < 0.5
    assert f"usage: {Path(script).name} [flags]" in text
    assert text.count(f"  python {script} ") == 2


def test_the_examples_of_the_help_are_accepted():
    for script, command in COMMANDS.items():
        for example in command.examples:
            python, name, *words = example.split()
            assert (python, name) == ("python", script)
            command.parse(words)


# --- keyword arguments and saved values -----------------------------------------------------------


def test_keyword_arguments_are_parsed_like_a_command_line():
    flags = TRAIN.keywords(
        dataset="digits", lr=0.01, flip=False, resume=True, long_skips=False, multipliers=(1, 2),
        attention_resolutions=[], epochs=None, compile="reduce-overhead", output_dir="-a_b",
    )  # fmt: skip
    words = ["--dataset", "digits", "--lr", "0.01", "--no-flip", "--resume", "--multipliers", "1"]
    words += ["2", "--attention-resolutions", "--compile", "reduce-overhead", "--output-dir=-a_b"]
    expected = TRAIN.parse(words)
    assert flags == expected
    assert flags.given == expected.given
    flags = EXPORT.keywords(checkpoint="c.pt", output="model.npz")
    assert flags == EXPORT.parse(["--checkpoint", "c.pt", "model.npz"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown flag epoch; the flags are debug, "),
        ({"epochs": 0}, "argument --epochs: must be at least 1, not 0"),
    ],
)
def test_keyword_arguments_that_the_command_line_would_refuse(values, message):
    with pytest.raises(ValueError, match=message):
        TRAIN.keywords(**values)


SAVED = [
    ("epochs", None), ("lr", 2), ("lr", 0.5), ("class_conditional", True), ("flip", None),
    ("multipliers", [1, 3]), ("attention_resolutions", []), ("schedule", "flow"),
    ("data_dir", "-a --b_c"), ("cache_limit", 0), ("long_skips", True), ("model", "dit"),
]  # fmt: skip
NOT_SAVED = [
    ("timesteps", None), ("lr", -1), ("lr", True), ("epochs", 1.5), ("epochs", "3"),
    ("class_conditional", 1), ("class_conditional", "yes"), ("zero_terminal_snr", "x"),
    ("multipliers", 3), ("multipliers", []), ("multipliers", [1, "x"]), ("schedule", "square"),
    ("schedule", ["flow"]), ("data_dir", 3), ("data_dir", ["a"]), ("cache_limit", float("nan")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), SAVED)
def test_a_saved_value_that_the_command_line_accepts_is_valid(name, value):
    TRAIN.require_valid(name, value)


@pytest.mark.parametrize(("name", "value"), NOT_SAVED)
def test_a_saved_value_that_the_command_line_refuses_is_an_error(name, value):
    with pytest.raises(ValueError, match=option(name)):
        TRAIN.require_valid(name, value)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script_name", "arguments", "message"),
    [
        ("train", ["--batch-size", "0"], "argument --batch-size: must be at least 1, not 0"),
        ("train", ["--batch-size", "many"], "'many' is not a whole number"),
        ("train", ["--lr", "many"], "'many' is not a number"),
        ("train", ["--lr", "nan"], "'nan' is not finite"),
        ("train", ["--lr", "inf"], "'inf' is not finite"),
        ("train", ["--dropout", "1"], "must lie between 0 and 0.99, not 1"),
        ("train", ["--epochs", "9" * 25], "must be at most 1000000000, not 9"),
        ("train", ["--lr", "1e300"], "must be at most 1e+30, not 1e300"),
        ("train", ["--seed", "-1"], "must lie between 0 and"),
        ("train", ["--dataset", "svhn"], "invalid choice: 'svhn'"),
        ("train", ["--device", "tpu"], "'tpu' is not one of auto, cpu, cuda"),
        ("train", ["--device=--"], "argument --device: '--' is not a value"),
        ("train", ["--multipliers=--"], "argument --multipliers: '--' is not a value"),
        ("train", ["--epoch", "3"], "unrecognized arguments: --epoch"),
        ("train", ["--resume", "--overwrite"], "give only one"),
        ("train", ["--list-models", "--preset", "fast"], "omit --preset"),
        ("sample", [], "the following arguments are required: --checkpoint"),
        ("sample", ["--checkpoint", "x", "--eta", "1.5"], "must lie between 0 and 1, not 1.5"),
        ("sample", ["--checkpoint", "x", "--class-id", ""], "argument --class-id: names no class"),
        ("sample", ["--checkpoint", "x", "--inpaint", "i.png"], "--inpaint needs a --mask"),
        (
            "sample",
            ["--checkpoint", "x", "--interpolate", "--invert", "i.png"],
            "give only one of --interpolate and --invert",
        ),
        ("evaluate", [], "give either --checkpoint or --samples"),
        ("evaluate", ["--checkpoint", "x", "--metrics", "beauty"], "invalid choice: 'beauty'"),
        ("visualize_diffusion", ["--timesteps", "1000"], "must lie between 0 and 999"),
        ("visualize_diffusion", ["--num-images", "65"], "must lie between 1 and 64"),
    ],
)
def test_usage_errors(script, script_name, arguments, message):
    result = script(script_name, *arguments)
    assert result.code == 2
    error, hint = result.err.splitlines()
    assert error.startswith(f"{script_name}.py: error: ")
    assert message in error
    assert hint == f"{script_name}.py --help lists the flags."


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("first line\nsecond line"), 1, "RuntimeError: first line\n(--debug shows"),
        (ValueError("a value"), 2, "error: a value\n"),
        (ValueError("\x1b[2J\x9b1m\u202ea\nb\xe9"), 2, "error: ?[2J?1m?a\nb\xe9\n"),
        (FileNotFoundError("a file"), 1, "error: a file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_is_one_message_with_an_exit_code(capsys, error, code, message):
    def fail(flags):
        raise error

    assert process.run(fail, TRAIN.parse([])) == code
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    if isinstance(error, Exception):
        assert process.run(fail, TRAIN.parse(["--debug"])) == code
        assert "Traceback" in capsys.readouterr().err


# --- one declaration for each flag ----------------------------------------------------------------


def test_the_page_of_all_flags_is_up_to_date():
    assert docs.FILE.read_text(encoding="utf-8") == docs.page()


def test_only_the_parsers_know_argparse():
    """No source uses its private names, and only parsers of command lines use its Namespace."""
    classes = [argparse.ArgumentParser, argparse.Action, argparse.Namespace]
    private = {name for one in classes for name in dir(one)} | set(vars(argparse.ArgumentParser()))
    private = [name for name in private if re.match("_[a-z]", name)]
    assert {"_actions", "_get_value"} <= set(private)
    known = re.compile(rf"\.({'|'.join(private)})\b")
    parsers = {ROOT / name for name in ("cli", "benchmarks", "mini_diffusion")}
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]:
        if path.parent.name != "tests":
            text = path.read_text(encoding="utf-8")
            assert not known.search(text), path
            assert path.parent in parsers or "Namespace" not in text, path


# Adds two flags to a copy of the project, each as one field. Then trains with them, and resumes.
NEW_FLAGS = {
    "cli/training.py": (
        "    batch_size:",
        "    colour_jitter: float = train_flag(\n"
        '        0.0, "strength of a colour jitter", parse=number(float, 0, 1), fixed=True)\n',
    ),
    "cli/common.py": (
        "    cache_limit:",
        '    greyscale: bool = data_flag(False, "read without colours", switch="on", fixed=True)\n',
    ),
}
USE_NEW_FLAGS = """
import json
from cli import docs
from cli.training import TRAIN
from train import train
from training import preview, run_log

preview.GRID_STEPS, run_log.plot_loss = 1, lambda *_: None

def refusal(**flags):
    try:
        train(resume=True, max_steps=2, **flags)
    except Exception as error:
        return str(error)

small = {"model": "dit", "channels": 8, "blocks": 1, "timesteps": 2, "validation": 0}
new = {"colour_jitter": 0.5, "greyscale": True}
run = train(dataset="digits", device="cpu", precision="fp32", max_steps=1, **small, **new)
print(json.dumps({
    "help": TRAIN.parser().format_help(),
    "config": json.loads((run.folder / "config.json").read_text()),
    "refusals": [refusal(colour_jitter=0.25), refusal(colour_jitter=2)],
    "resumed": train(resume=True, max_steps=2).metrics[-1],
    "page": docs.page(),
}))
"""


def use_new_flags(names: str) -> None:
    """Run the program with the copy in the current folder; `names` are its modules."""
    for name in [*sys.modules]:
        if name.partition(".")[0] in names.split(","):
            del sys.modules[name]
    sys.path.insert(0, os.getcwd())
    exec(USE_NEW_FLAGS, {"__name__": "__main__"})


def test_a_flag_is_added_in_one_place(tmp_path):
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
    names = [*packages, *(path.name for path in ROOT.glob("*.py"))]
    for name in names:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    for name, (before, field) in NEW_FLAGS.items():
        source = (tmp_path / name).read_text(encoding="utf-8")
        assert source.count(before) == 1
        (tmp_path / name).write_text(source.replace(before, field + before), encoding="utf-8")
    names = [Path(name).stem for name in names]
    job = Processes(tmp_path, 1, use_new_flags, ",".join(names))
    assert job.wait() == [0], job.text("err")
    found = json.loads(job.text("out").splitlines()[-1])
    assert "--colour-jitter X" in found["help"]
    assert "strength of a colour jitter (default: 0.0)" in found["help"]
    assert "read without colours" in found["help"]
    assert found["config"]["train"]["colour_jitter"] == 0.5
    assert found["config"]["data"]["greyscale"] is True
    other, invalid = found["refusals"]
    assert "train.colour_jitter: 0.5 in the checkpoint, 0.25 now" in other
    assert "argument --colour-jitter: must lie between 0 and 1, not 2" in invalid
    assert found["resumed"]["step"] == 2
    assert "| `--colour-jitter X` | strength of a colour jitter | `0.0` | fixed |" in found["page"]
    assert "| `--greyscale` | read without colours |  | fixed |" in found["page"]
