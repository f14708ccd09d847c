"""Going on with a run: from which checkpoint, with which flags, and whether it is the same run."""

from collections.abc import Mapping
from pathlib import Path

from checkpoints.checkpoint import CheckpointError, config_differences, load_resumable
from checkpoints.shards import read_shard_record
from cli.parser import Parser, parse_saved
from dataset.changes import changes, digest_of, read_files
from distributed import job, restarted, say, world_size
from training.environment import read_environment
from training.folder import RunFolder
from utils import check_writable

CACHE = ("cache_dir", "cache_limit")  # flags of where data is held, which changes nothing else
DIGESTED = ("count", "classes", "skip_bad_images")  # they show in the digest of a folder
LIMITS = ("epochs", "max_steps", "max_minutes")
# Training flags that a resumed run cannot change.
FIXED = ("update_size", "seed", "optimizer", "timestep_sampling", "noise_assignment")
FIXED += ("class_conditional", "label_dropout", "validation")
# Flags of a command and not of a run: no checkpoint sets them.
COMMAND = {"debug", "list_models", "preset", "no_download", "device", "compile"}
COMMAND |= {"output_dir", "resume", "overwrite", "tensorboard", "allow_data_change"}


def checkpoint_to_resume(args, parser: Parser) -> dict | None:
    """The checkpoint that --resume asks for; flags that were not given are taken from its run.

    None for a run from the beginning: without --resume, or if the run has no checkpoint yet.
    """
    folder = RunFolder(args.output_dir)
    check_writable(folder.path)
    again = comes_back(folder)
    if not (args.resume or again):
        if folder.holds_run() and not args.overwrite:
            raise ValueError(
                f"{folder.path} holds a run already: go on with it (--resume), replace it "
                "(--overwrite), or choose another --output-dir"
            )
        return None
    if again or args.resume == "newest":
        path, damaged = folder.newest_checkpoint()
        for error in damaged:
            say(f"left out: {error}")
        if path is None:
            return begin_anew(args, parser, folder, damaged)
    else:
        path = Path(args.resume)
    checkpoint = read_shard_record(path) if path.is_dir() else load_resumable(path)
    home = RunFolder.of(path)
    if "output_dir" not in args.given:
        args.output_dir = str(home.path)
    elif folder.holds_run() and folder.path.resolve() != home.path.resolve():
        raise ValueError(f"{path} is of the run in {home.path}, but {folder.path} holds another")
    say(f"resuming from {path}, step {checkpoint['step']:,}")
    take_flags(args, parser, checkpoint["config"])
    spread(args, checkpoint["config"]["train"])
    return checkpoint


def comes_back(folder: RunFolder) -> bool:
    """Has torchrun started the processes again that were at work in this folder?

    A run of somebody else's is not gone on with, only because torchrun insists.
    """
    sessions = read_environment(folder.environment)
    return restarted() and bool(sessions) and sessions[-1].get("job") == job()


def begin_anew(args, parser: Parser, folder: RunFolder, damaged: list) -> None:
    """Let a run begin that is to be resumed, and ended before its first checkpoint, if at all.

    Raises ValueError where that may not be what is meant.
    """
    config = folder.saved_config()
    if damaged or (config is None and "dataset" not in args.given):
        raise ValueError(
            f"--resume: there is no whole checkpoint in {folder.path}"
            + ("" if damaged else "; with --dataset a run would be started there")
        )
    say(f"there is no checkpoint in {folder.path} yet: the run begins at step 0")
    if config is not None:
        take_flags(args, parser, config)


def take_flags(args, parser: Parser, config: dict) -> None:
    """Take the flags that were not given from the configuration of a run.

    Raises CheckpointError for a value that the command line would refuse.
    """
    saved = {key: value for section in config.values() for key, value in section.items()}
    saved["model"] = saved["name"]
    if args.given & set(LIMITS):  # a new limit replaces the old ones
        saved = {key: value for key, value in saved.items() if key not in LIMITS}
    of_a_run = {action.dest for action in parser._actions} - COMMAND
    for key in sorted(saved.keys() & of_a_run - args.given):
        try:
            setattr(args, key, parse_saved(parser, key, saved[key]))
        except ValueError as error:
            raise CheckpointError(f"the run's configuration contradicts itself: {error}") from None


def spread(args, saved: dict) -> None:
    """Share the updates of a run that began on another number of processes among those of now.

    An update stays as large as it was; what is computed at once does not become larger.
    """
    if saved["processes"] == world_size() or args.given & {"batch_size", "grad_accum"}:
        return
    share, rest = divmod(saved["update_size"], world_size())
    if rest:
        raise ValueError(
            f"--resume: the run's updates of {saved['update_size']} cannot be shared by "
            f"{world_size()} processes"
        )
    at_once = range(1, min(saved["batch_size"], share) + 1)
    args.batch_size = max(size for size in at_once if share % size == 0)
    args.grad_accum = share // args.batch_size
    say(
        f"processes: {world_size()}, and {saved['processes']} before: updates are as large as they "
        "were, but their last bits may differ from those of an uninterrupted run"
    )


def take_up(saved: dict, config: dict, files: Mapping[str, str], args) -> None:
    """Make sure that a run can go on as it began, and say so where its data did not stay the same.

    Raises CheckpointError if it cannot, or if a folder's images are others without leave.
    """
    if files:  # the network has learned at the scale of the images that it began with
        config["diffusion"]["sigma_data"] = saved["diffusion"]["sigma_data"]
    change = data_change(saved, config, files, RunFolder(args.output_dir).data)
    require_same(saved, config, "" if args.allow_data_change else change)
    if change:
        say(
            f"the data has changed since the last session: {change}; this run's bits are those of "
            "no other"
        )


def data_change(saved: dict, config: dict, files: Mapping[str, str], listed: Path) -> str:
    """What has changed in a folder of images since a checkpoint was written, or "" for nothing.

    Names and pixels are compared, not places and times: a folder that was copied is the same.

    Args:
        saved, config: the checkpoint's configuration, and that of now.
        files: the images now, {name: digest}.
        listed: the file that has them as they were.
    """
    before, now = saved["data"].get("digest"), config["data"]["digest"]
    alike = all(saved["data"].get(k) == config["data"].get(k) for k in ("image_size", "fit"))
    if before is None or now is None or before == now or not alike:
        return ""
    known = read_files(listed)
    if digest_of(known) != before:  # missing, damaged, or of another session
        return f"its pixels are others ({listed} does not say which)"
    return changes(known, files)


def require_same(saved: dict, config: dict, change: str) -> None:
    """Raise a CheckpointError that lists what keeps a checkpoint from going on with these flags.

    `change` is what has changed in the data, where that is not allowed.
    """
    ignored = {"data_dir", "digest", *CACHE}
    if saved["data"].get("digest") and config["data"]["digest"]:
        ignored |= set(DIGESTED)
    data = {k: v for k, v in config["data"].items() if k not in ignored}
    train = {key: config["train"][key] for key in FIXED}
    found = config_differences(saved, {**config, "data": data, "train": train})
    if change:
        found.append(f"the data has changed: {change}; --allow-data-change goes on all the same")
    if found:
        raise CheckpointError("this checkpoint is of another run:\n  " + "\n  ".join(found))


def planned_steps(args, checkpoint: dict | None) -> int | None:
    """The number of steps that the run being resumed had planned, unless a new limit is given."""
    if checkpoint is None or args.given & set(LIMITS):
        return None
    return checkpoint["config"]["train"]["total_steps"]
