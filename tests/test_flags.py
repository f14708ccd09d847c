import subprocess
import sys
import time

import pytest

import models
import objectives
import samplers
import schedules
from cli import parser as flags
from conftest import ROOT, SCRIPTS
from dataset import registry as data
from training import optimizers, plan

EVERY_FLAG = [
    (script, flag)
    for script, module in SCRIPTS.items()
    for action in module.make_parser()._actions
    for flag in action.option_strings
    if action.dest != "help"
]
REQUIRED = {name: ["--checkpoint", "x.pt"] for name in ("sample", "evaluate", "export")}
NEEDS = {  # flags that mean something only beside another
    "--allow-data-change": ["--resume"],
    "--label-dropout": ["--class-conditional"],
    "--no-class-conditional": ["--preset", "fast"],
    "--inpaint": ["--mask", "m.png"],
    "--mask": ["--inpaint", "i.png"],
    "--churn-min": ["--churn", "2"],
    "--churn-max": ["--churn", "2"],
    "--churn-noise": ["--churn", "2"],
    "--guidance-interval": ["--guidance-scale", "2"],
    "--guidance-rescale": ["--guidance-scale", "2"],
    "--resamplings": ["--inpaint", "i.png", "--mask", "m.png"],
    "--strength": ["--start-from", "i.png"],
    "--field": ["--checkpoint", "x.pt"],
}
NEEDS_HERE = {  # needed in one script alone
    ("visualize_diffusion", "--checkpoint"): ["--field"],
    ("visualize_diffusion", "--steps"): ["--run", "outputs"],
    ("visualize_diffusion", "--device"): ["--run", "outputs"],
    ("evaluate", "--dataset"): ["--samples", "s.npz"],
    ("evaluate", "--image-size"): ["--samples", "s.npz", "--dataset", "mnist"],
    ("evaluate", "--samples"): ["--dataset", "mnist"],
}
INSTEAD = {"--samples", "--dataset", "--image-size"}  # flags of evaluate.py without a checkpoint


def values_of(script: str, flag: str) -> list[str]:
    """Arguments that the flag accepts and that are not its default."""
    action = next(a for a in SCRIPTS[script].make_parser()._actions if flag in a.option_strings)
    if action.nargs == 0:
        return []
    if action.nargs == 2:
        return ["0.5", "3"]
    if action.choices:
        return list(action.choices)[-1:]
    for text in ("4", "0.25", "cpu"):
        try:
            if (action.type or str)(text) != action.default:
                return [text]
        except Exception:
            continue
    raise AssertionError(f"no value found for {flag}")


@pytest.mark.parametrize(("script", "flag"), EVERY_FLAG)
def test_every_flag_in_both_spellings(script, flag):
    values, required = values_of(script, flag), REQUIRED.get(script, []) + NEEDS.get(flag, [])
    required = [] if script == "evaluate" and flag in INSTEAD else required
    required = required + NEEDS_HERE.get((script, flag), [])
    parse = SCRIPTS[script].parse_args
    hyphens = parse([*required, flag, *values])
    underscored = "--" + flag[2:].replace("-", "_")
    assert vars(parse([*required, underscored, *values])) == vars(hyphens)
    if len(values) == 1:
        assert vars(parse([*required, f"{underscored}={values[0]}"])) == vars(hyphens)
    defaults = vars(parse(["--checkpoint", "y.pt"] if script in REQUIRED else []))
    changed = [k for k in defaults if k != "given" and vars(hyphens)[k] != defaults[k]]
    only_choice = values == [defaults.get(flag[2:].replace("-", "_"))]
    assert changed or only_choice  # the flag did something


def test_values_keep_their_underscores():
    assert SCRIPTS["train"].parse_args(["--output_dir", "a_b"]).output_dir == "a_b"
    assert SCRIPTS["train"].parse_args(["--output-dir=a_b"]).output_dir == "a_b"


def test_given_holds_what_stood_on_the_command_line():
    args = SCRIPTS["train"].parse_args(["--batch_size", "128", "--resume"])
    assert args.given == {"batch_size", "resume"}


@pytest.mark.parametrize(
    ("file", "table", "actual"),
    [
        ("data.py", "DATASETS", data.DATASETS),
        ("schedules.py", "SCHEDULES", schedules.SCHEDULES),
        ("schedules.py", "SPACINGS", schedules.SPACINGS),
        ("objectives.py", "PREDICTIONS", objectives.PREDICTIONS),
        ("objectives.py", "LOSS_WEIGHTS", objectives.LOSS_WEIGHTS),
        ("objectives.py", "TIMESTEP_SAMPLINGS", objectives.TIMESTEP_SAMPLINGS),
        ("objectives.py", "NOISE_ASSIGNMENTS", objectives.NOISE_ASSIGNMENTS),
        ("samplers.py", "SAMPLERS", samplers.SAMPLERS),
        ("models/__init__.py", "MODELS", models.MODELS),
        ("training/optimizers.py", "OPTIMIZERS", optimizers.OPTIMIZERS),
        ("training/plan.py", "LR_DECAYS", plan.LR_DECAYS),
    ],
)
def test_names_read_from_the_source_are_the_dicts_keys(file, table, actual):
    assert flags.names(file, table) == tuple(actual)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_at_once(script):
    times = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, ROOT / f"{script}.py", "--help"], capture_output=True, text=True
        )
        times.append(time.monotonic() - start)
        assert done.returncode == 0
    assert min(times) < 0.5
    assert done.stdout.count(f"python {script}.py") >= 2  # the two examples
    assert "default:" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_examples_of_the_help_are_accepted(script):
    parser = SCRIPTS[script].make_parser()
    examples = [line.split() for line in parser.epilog.splitlines() if "python" in line]
    assert len(examples) == 2
    for _, name, *arguments in examples:
        assert name == f"{script}.py"
        SCRIPTS[script].parse_args(arguments)


@pytest.mark.parametrize(
    ("script_name", "arguments", "message"),
    [
        ("train", ["--batch-size", "0"], "--batch-size: must be at least 1, not 0"),
        ("train", ["--batch-size", "many"], "'many' is not a whole number"),
        ("train", ["--lr", "nan"], "'nan' is not finite"),
        ("train", ["--lr", "inf"], "'inf' is not finite"),
        ("train", ["--dropout", "1"], "must lie between 0 and 0.99, not 1"),
        ("train", ["--dataset", "svhn"], "invalid choice: 'svhn'"),
        ("train", ["--schedule", "square"], "invalid choice: 'square'"),
        ("train", ["--device=--"], "argument --device: '--' is no value"),
        ("train", ["--multipliers=--"], "argument --multipliers: '--' is no value"),
        ("train", ["--device", "tpu"], "'tpu' is not one of auto, cpu, cuda"),
        ("train", ["--resume", "--overwrite"], "give one of them"),
        ("train", ["--epoch", "3"], "unrecognized arguments: --epoch"),
        ("train", ["--seed", "-1"], "must lie between 0 and"),
        ("train", ["--epochs", "9" * 25], "must be at most 1000000000, not 9"),
        ("train", ["--max-minutes", "0"], "must lie between 0.05 and 1000000, not 0"),
        ("train", ["--lr", "1e300"], "must be at most 1e+30, not 1e300"),
        ("sample", [], "the following arguments are required: --checkpoint"),
        ("sample", ["--checkpoint", "x", "--steps", "0"], "--steps: must be at least 1"),
        ("sample", ["--checkpoint", "x", "--eta", "1.5"], "must lie between 0 and 1, not 1.5"),
        ("sample", ["--checkpoint", "x", "--sampler", "magic"], "invalid choice: 'magic'"),
        ("sample", ["--checkpoint", "x", "--class-id", "two"], "'two' is not a whole number"),
        ("sample", ["--checkpoint", "x", "--mask", "m.png"], "--mask is for --inpaint"),
        ("sample", ["--checkpoint", "x", "--inpaint", "i.png"], "--inpaint needs a --mask"),
        ("sample", ["--checkpoint", "x", "--strength", "0.5"], "--strength is for --start-from"),
        (
            "sample",
            ["--checkpoint", "x", "--interpolate", "--invert", "i.png"],
            "give one of --interpolate and --invert",
        ),
        ("sample", ["--checkpoint", "x", "--churn-min", "1"], "--churn-min is for --churn"),
        (
            "sample",
            ["--checkpoint", "x", "--guidance-rescale", "0.5"],
            "--guidance-rescale is for a --guidance-scale other than 1",
        ),
        (
            "sample",
            ["--checkpoint", "x", "--invert", "i.png", "--animate"],
            "--invert has no use for --animate",
        ),
        ("train", ["--label-dropout", "0.2"], "--label-dropout is for --class-conditional"),
        ("train", ["--allow-data-change"], "--allow-data-change is for --resume"),
        ("train", ["--prediction", "noise"], "invalid choice: 'noise'"),
        ("evaluate", ["--checkpoint", "x", "--metrics", "beauty"], "invalid choice: 'beauty'"),
        ("visualize_diffusion", ["--timesteps", "1000"], "must lie between 0 and 999"),
        ("visualize_diffusion", ["--num-images", "65"], "must lie between 1 and 64"),
    ],
)
def test_usage_errors(script, script_name, arguments, message):
    result = script(script_name, *arguments)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) <= 2
    assert "Traceback" not in result.err


def test_errors_are_one_message_and_a_traceback_only_with_debug(capsys):
    def fail(args):
        raise RuntimeError("first line\nsecond line")

    parser = flags.Parser("x", [])
    assert flags.run(fail, parser.parse_args([])) == 1
    err = capsys.readouterr().err
    assert "error: RuntimeError: first line\n(--debug shows where)" in err
    assert "Traceback" not in err
    assert flags.run(fail, parser.parse_args(["--debug"])) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupts_have_their_exit_code(capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    assert flags.run(interrupted, flags.Parser("x", []).parse_args([])) == 130
    assert "interrupted" in capsys.readouterr().err
