"""Commands that mend a run: train again with other flags, train on, or draw."""

import shlex
from pathlib import Path

from cli.declare import option
from cli.training import TRAIN, RunConfig
from dataset.items import held_out_count, size_of
from dataset.registry import DATASETS
from evaluation.doctor.run import Run
from models import DEFAULT, NETWORKS, arguments_of
from training.config import DEFAULTS
from training.fit import NOT_FLAGS

PLACES = {"output_dir", "overwrite", "resume"}  # flags of where a run is written
NOT_SAVED = {"autoencoder"}  # a command of --latents cannot be rebuilt from the configuration


def again(run: Run, **changes: object) -> str:
    """The command that trains anew in a new folder, with changed flags; None removes a flag.

    A run of `fit`, or one with flags that are not known, is repeated by a call or resumed.
    """
    if run.is_custom:
        return call(run, **changes)
    if (flags := flags_of(run)) is None:
        if run.config:
            return resume(run, **changes)
        flags = {}  # nothing is left of the run that could be resumed or repeated
    flags = {**flags, **changes, "output_dir": str(new_folder(run.path))}
    return f"{launcher(run)} train.py {spelled(flags)}"


def resume(run: Run, **changes: object) -> str:
    """The command that continues the run, with changed flags."""
    if run.is_custom:
        return call(run, folder=str(run.path), **changes)
    words = spelled({**changes, "output_dir": str(run.path)})
    return f"{launcher(run)} train.py --resume {words}"


def launcher(run: Run) -> str:
    """The words that start train.py: Python, or torchrun for a run of several processes."""
    processes = int(run.number("train", "processes", 1))
    return f"torchrun --standalone --nproc-per-node={processes}" if processes > 1 else "python"


def draw(path: Path, *words: str) -> str:
    """The command that samples from a checkpoint."""
    return shlex.join(["python", "sample.py", "--checkpoint", str(path), *words])


def call(run: Run, data: str = "", **changes: object) -> str:
    """The call of `fit` that trains again, or on: the saved arguments, then the changes.

    `data` is the expression of the data, by default `images` or `points`. With
    class_conditional=False, labels are left out.
    """
    arguments = {"value_range": run.setting("data", "range"), **fit_flags(run)}
    labels = changes.pop("class_conditional", bool(run.setting("model", "num_classes")))
    arguments |= {"folder": str(new_folder(run.path)), **changes}
    if arguments["value_range"]:
        arguments["value_range"] = tuple(arguments["value_range"])
    words = ["model", data or run.kind, *(["labels"] if labels else [])]
    words += [f"{name}={value!r}" for name, value in arguments.items() if value is not None]
    return f"fit({', '.join(words)})"


def fit_flags(run: Run) -> dict[str, object]:
    """The flags of a run of `fit`, without those that are its defaults."""
    usual, found = RunConfig(), {}
    defaults = {**defaults_of_data(run), "optimizer": "adamw", "lr": 1e-3}
    for name, (_, declared) in TRAIN.declared.items():
        if declared.section not in ("diffusion", "train") or name in NOT_FLAGS:
            continue
        value = run.setting(declared.section, name)
        if value is not None and value != defaults.get(name, getattr(usual, name)):
            found[name] = value
    return found


def flags_of(run: Run) -> dict[str, object] | None:
    """The flags of the run's command as typed, or else the non-default ones of its configuration.

    None if neither is available.
    """
    for session in run.sessions[:1]:
        command = session.get("command")
        if isinstance(command, list) and command[:1] == ["train.py"]:
            try:
                flags = TRAIN.parsed(TRAIN.parser(), [str(word) for word in command[1:]])
            except (ValueError, SystemExit):  # of another version
                break
            if flags.resume is None:
                return flags.chosen(sorted(flags.given - PLACES, key=order))
    return configured_flags(run)


def configured_flags(run: Run) -> dict[str, object] | None:
    """The flags that lead to the configuration of a run, without defaults; None if not known."""
    if not run.config or run.model not in NETWORKS or NOT_SAVED & run.config["model"].keys():
        return None
    defaults, found, usual = resolved_defaults(run), {}, RunConfig()
    for field, declared in TRAIN.declared.values():
        name, section = field.name, declared.section
        value = run.setting(section or "", "name" if name == "model" else name)
        if run.tuned and section != "train":  # the teacher has the rest
            continue
        if section is None or value is None or value in (getattr(usual, name), defaults.get(name)):
            continue
        if name not in PLACES:
            try:
                TRAIN.require_valid(name, value)
            except ValueError:
                return None
            found[name] = value
    return found


def resolved_defaults(run: Run) -> dict[str, object]:
    """The defaults of the flags of a run, for its data, network and process."""
    source = DATASETS.get(run.dataset)
    arguments = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in arguments_of(run.model).items()
    }
    found = {
        **arguments,
        **defaults_of_data(run),
        "model": DEFAULT[run.kind],
    }
    if source is not None:
        found["flip"] = source.flip
        if run.kind == "images":
            found["image_size"] = size_of(*source.shape[1:])
    return found


def defaults_of_data(run: Run) -> dict[str, object]:
    """The defaults of training and process for the data and the schedule of a run."""
    edm = run.setting("diffusion", "schedule") == "edm"
    return {
        **DEFAULTS[run.kind],
        "validation": held_out_count(None, int(run.number("data", "count", 0))),
        "prediction": "edm" if edm else "flow",
        "timestep_sampling": "log-normal" if edm else "uniform",
        "text_conditional": bool(run.setting("data", "prompts")),
        "clip_loss": run.setting("diffusion", "clip"),
    }


def spelled(flags: dict[str, object]) -> str:
    """Flags as on a command line."""
    words = []
    for name in sorted(flags, key=order):
        for word in TRAIN.words({name: flags[name]}):
            prefix = f"{option(name)}="
            value = word.removeprefix(prefix)
            split = word.startswith(prefix) and value and not value.startswith("-")
            words += [option(name), value] if split else [word]
    return shlex.join(words)


def order(name: str) -> int:
    """Sort key of a flag: its place among the declarations, which begin with the data."""
    return list(TRAIN.declared).index(name)


def new_folder(path: Path) -> Path:
    """A new folder for another run, next to that of a run, or within it if it is `outputs`."""
    inside = path.name == "outputs"
    for number in range(2, 1000):
        folder = path / f"run_{number}" if inside else path.with_name(f"{path.name}_{number}")
        if not folder.exists():
            return folder
    return path.with_name(f"{path.name}_new")
