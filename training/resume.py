"""Resuming a run: from which checkpoint, with which flags, and whether it is the same run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from checkpoints.checkpoint import CheckpointError, config_differences, load_resumable
from checkpoints.consistency import CUSTOM
from checkpoints.runs import run_path, why_none
from checkpoints.shards import RECORD_FILE, read_shard_record
from cli.activity import activity
from cli.training import TRAIN, RunConfig
from dataset.changes import changes, digest_of, read_files
from distributed import job, largest, restarted, say, world_size
from models import with_later_arguments
from training.environment import read_environment
from training.folder import RunFolder
from training.foreign import require_no_foreign_files
from utils import check_writable, choose_precision, has_native_bf16

DIGESTED = ("count", "classes", "skip_bad_images")  # the digest of an image folder covers these


def checkpoint_to_resume(flags: RunConfig) -> tuple[RunConfig, dict | None]:
    """The flags, with those of the run to resume filled in, and the checkpoint to resume from.

    The checkpoint is None for a run that starts at step 0: without --resume, or if the run has no
    checkpoint yet. Raises ValueError if the folder holds a run that is not to be resumed.
    """
    source = run_of(flags.resume)
    if source is not None and "output_dir" not in flags.given:
        flags = replace(flags, output_dir=str(source.path))
    folder = RunFolder(flags.output_dir)
    check_writable(folder.path)
    again = is_restarted(folder)
    if not (flags.resume or again):
        if folder.holds_run() and not flags.overwrite:
            raise ValueError(
                f"{folder.path} already holds a run: resume it (--resume), replace it "
                "(--overwrite), or choose another --output-dir"
            )
        require_no_foreign_files(folder.path, deleted=flags.overwrite)
        return flags, None
    if again or flags.resume == "newest" or source is not None:
        named, source = source is not None and not again, folder if again else source or folder
        with activity("looking for the newest checkpoint"):
            path, damaged = source.newest_checkpoint()
        for error in damaged:
            say(f"skipped: {error}")
        if path is None:
            if named and source.saved_config() is None:
                raise CheckpointError(
                    why_none(Path(flags.resume), [str(error) for error in damaged])
                )
            require_no_foreign_files(folder.path)
            return start_anew(flags, folder, damaged), None
    else:
        path = Path(flags.resume)
    with activity(f"loading {path}"):
        checkpoint = read_shard_record(path) if path.is_dir() else load_resumable(path)
    home = RunFolder.of(path)
    if "output_dir" not in flags.given:
        flags = replace(flags, output_dir=str(home.path))
    elif folder.holds_run() and folder.path.resolve() != home.path.resolve():
        raise ValueError(
            f"{path} belongs to the run in {home.path}, but {folder.path} holds another run"
        )
    require_no_foreign_files(Path(flags.output_dir))
    say(f"resuming from {path}, step {checkpoint['step']:,}")
    flags = with_saved_flags(flags, checkpoint["config"])
    return with_same_updates(flags, checkpoint["config"]["train"]), checkpoint


def run_of(resume: str | None) -> RunFolder | None:
    """The run in the folder that --resume names, or None if it names a file, or no path.

    The folder may be that of the run or that of its checkpoints.
    """
    path = Path(resume or "")
    if resume in (None, "newest") or not path.is_dir() or (path / RECORD_FILE).exists():
        return None
    if path.suffix == ".shards":
        return None
    return RunFolder(run_path(path))


def is_restarted(folder: RunFolder) -> bool:
    """Has torchrun restarted the processes that were writing to this folder?

    Never resume a run that belongs to another job, only because torchrun restarts.
    """
    sessions = read_environment(folder.environment)
    return restarted() and bool(sessions) and sessions[-1].get("job") == job()


def start_anew(flags: RunConfig, folder: RunFolder, damaged: list) -> RunConfig:
    """The flags of a run that is to be resumed but has no checkpoint yet.

    Raises ValueError if the user may not intend to start a new run.
    """
    config = folder.saved_config()
    if damaged or (config is None and "dataset" not in flags.given):
        hint = "" if damaged else "; with --dataset, a new run is started there"
        raise ValueError(f"--resume: there is no valid checkpoint in {folder.path}{hint}")
    if config is not None and config["model"].get("autoencoder") and flags.latents is None:
        raise ValueError(f"--resume: there is no checkpoint in {folder.path} yet; add --latents")
    say(f"there is no checkpoint in {folder.path} yet: the run starts at step 0")
    return flags if config is None else with_saved_flags(flags, config)


def network_and_process(flags: RunConfig, config: dict) -> dict[str, dict]:
    """The sections "model" and "diffusion" of the configuration of a checkpoint.

    Arguments that did not exist when it was saved are added, with values that keep its behaviour.
    """
    before = {f.name: d.before for f, d in flags.declarations() if d.before is not None}
    return {
        "model": with_later_arguments(config["model"]),
        "diffusion": {**before, **config["diffusion"]},
    }


def with_saved_flags(flags: RunConfig, config: dict) -> RunConfig:
    """The flags, with those that were not given taken from the configuration of a run.

    Raises CheckpointError for a value that the command line would reject.
    """
    config = {**config, "model": with_later_arguments(config["model"])}
    if config["model"]["name"] == CUSTOM != flags.model:
        raise CheckpointError("this run trains a network of your own: resume it with fit()")
    limits, found = flags.named(limit=True), {}
    rivals = {n for each, d in flags.declarations() if each.name in flags.given for n in d.unless}
    for field, declared in flags.declarations():
        name, section = field.name, config.get(declared.section or "", {})
        key = "name" if name == "model" else name
        replaced = name in limits and flags.given & set(limits)  # a new limit replaces all
        excluded = name in rivals or flags.given & set(declared.unless)  # --grey and --colour
        if key not in section and declared.before is not None and name not in flags.given:
            found[name] = declared.before
        if key not in section or name in flags.given or replaced or excluded:
            continue
        try:
            TRAIN.require_valid(name, section[key])
        except ValueError as error:
            raise CheckpointError(f"the run's configuration contradicts itself: {error}") from None
        found[name] = section[key]
    return replace(flags, **found)


def number_format(wanted: str, checkpoint: dict | None, device: torch.device) -> tuple[str, str]:
    """fp32, bf16 or fp16 for a value of --precision, and a note for the user, or "".

    A resumed run keeps the number format that `auto` has chosen, if the device supports it, so that
    its results do not change. All processes agree. Raises ValueError for fp16 without CUDA.
    """
    if wanted != "auto" or checkpoint is None:
        chosen = choose_precision(wanted, device)
        if wanted == "auto" and largest([chosen == "fp32"], device)[0]:
            chosen = "fp32"  # processes may have measured different speeds
        return chosen, ""
    native = "bf16" if has_native_bf16(device) else "fp32"
    saved = checkpoint["config"]["train"].get("number_format") or native  # older ones lack it
    if saved in ("fp32", native):
        return saved, ""
    return native, f"{saved} before: results may differ from those of an uninterrupted run"


def with_same_updates(flags: RunConfig, saved: dict) -> RunConfig:
    """The flags for this number of processes, with training steps as large as before.

    The batch size of a process does not grow. Raises ValueError if the items of a step cannot be
    divided among the processes.
    """
    if saved["processes"] == world_size() or flags.given & {"batch_size", "grad_accum"}:
        return flags
    per_process, rest = divmod(saved["update_size"], world_size())
    if rest:
        raise ValueError(
            f"--resume: training steps of {saved['update_size']} items cannot be divided among "
            f"{world_size()} processes"
        )
    sizes = range(1, min(saved["batch_size"], per_process) + 1)
    batch_size = max(size for size in sizes if per_process % size == 0)
    say(
        f"processes: {world_size()} instead of {saved['processes']}; training steps stay as large, "
        "but results may differ in the last bits from those of an uninterrupted run"
    )
    return replace(flags, batch_size=batch_size, grad_accum=per_process // batch_size)


def require_same_run(saved: dict, config: dict, files: Mapping[str, str], flags: RunConfig) -> None:
    """Raise a CheckpointError if a checkpoint's run cannot continue with this configuration.

    Args:
        saved, config: the checkpoint's configuration, and the current one. For a folder of images,
            `sigma_data` of the current one is set to the saved value.
        files: of a folder of images, {name: digest}.
    """
    if files:  # the network has learned at the scale of the images that the run began with
        config["diffusion"]["sigma_data"] = saved["diffusion"]["sigma_data"]
    change = data_change(saved, config, files, RunFolder(flags.output_dir).data)
    free = set(flags.named(section="data")) - set(flags.named(section="data", fixed=True))
    ignored = {"digest", "class_counts", *free}
    if saved["data"].get("digest") and config["data"]["digest"]:
        ignored |= set(DIGESTED)
    data = {key: value for key, value in config["data"].items() if key not in ignored}
    fixed = flags.named(section="train", fixed=True)
    train = {key: config["train"][key] for key in [*fixed, "update_size"]}
    # A run from before a flag was added had its default.
    of_data = [name for name in flags.named(section="data", fixed=True) if name in data]
    saved = {
        **saved,
        **network_and_process(flags, saved),
        "data": {**RunConfig().chosen(of_data), **saved["data"]},
        "train": {**RunConfig().chosen(fixed), **saved["train"]},
    }
    found = config_differences(saved, {**config, "data": data, "train": train})
    explained = "items of a training step (--batch-size x --grad-accum x processes)"
    found = [line.replace("train.update_size", explained) for line in found]
    if change and not flags.allow_data_change:
        found.append(f"the data has changed: {change}; --allow-data-change resumes anyway")
    if found:
        raise CheckpointError("this checkpoint is of another run:\n  " + "\n  ".join(found))
    if change:
        say(
            f"the data has changed since the last session: {change}; results will differ from "
            "those of an uninterrupted run"
        )


def data_change(saved: dict, config: dict, files: Mapping[str, str], listed: Path) -> str:
    """A description of what has changed in a folder of images since a checkpoint; "" for nothing.

    Names and pixels are compared, so that a copy of the folder counts as the same.

    Args:
        saved, config: the checkpoint's configuration, and the current one.
        files: the current images, {name: digest}.
        listed: the file that lists the images of the checkpoint.
    """
    before, now = saved["data"].get("digest"), config["data"]["digest"]
    alike = all(saved["data"].get(k) == config["data"].get(k) for k in ("image_size", "fit"))
    if before is None or now is None or before == now or not alike:
        return ""
    known = read_files(listed)
    if digest_of(known) != before:  # missing, damaged, or of another session
        return f"its pixels differ ({listed} does not say where)"
    return changes(known, files)


def plan_of(flags: RunConfig, checkpoint: dict | None) -> dict:
    """The planned length of a resumed run, as entries of the section "train" of its configuration.

    Empty for a new run, or if a new limit is given.
    """
    if checkpoint is None or flags.given & set(flags.named(limit=True)):
        return {}
    saved = checkpoint["config"]["train"]
    return {"total_steps": saved["total_steps"], "decay_from": saved.get("decay_from")}
