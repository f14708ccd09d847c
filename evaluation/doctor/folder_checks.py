"""Checks of the files in the folder of a run."""

from evaluation.doctor.commands import again, draw, flags_of, resume
from evaluation.doctor.findings import FAULT, HINT, WARNING, Finding
from evaluation.doctor.log_measures import FAR, rates, with_usual_lr
from evaluation.doctor.run import Run


def unreadable_config(run: Run) -> Finding | None:
    """config.json is missing or damaged."""
    if run.config and not run.config_error:  # or it is missing, and a checkpoint has it
        return None
    evidence = run.config_error or f"there is no {run.path / 'config.json'}"
    if run.config:
        cause = "the file was changed or cut; the checkpoints hold the same configuration"
        return Finding(HINT, "config.json cannot be read", evidence, cause, resume(run))
    cause = "it was changed, cut, or written by another version; no checkpoint replaces it"
    if flags_of(run) is None:
        cause += ". Add the flags of the run to the command, which has only its folder"
    return Finding(FAULT, "the run's configuration is lost", evidence, cause, again(run))


def damaged_checkpoints(run: Run) -> Finding | None:
    """A checkpoint does not match its SHA-256, or cannot be opened."""
    if not run.damaged:
        return None
    evidence = "; ".join(list(run.damaged.values())[:2])
    if (more := len(run.damaged) - 2) > 0:
        evidence += f"; and {more} more"
    cause = "the file was cut by a full disk or a copy, or changed on the disk"
    if run.newest is None:
        return Finding(FAULT, "no checkpoint is intact", evidence, cause, again(run))
    left = f"{cause}. {run.newest.name} is intact"
    if run.newest in run.checkpoints:
        return Finding(WARNING, "a checkpoint is damaged", evidence, left, resume(run))
    return Finding(WARNING, "a checkpoint is damaged", evidence, left, draw(run.newest))


def missing_checkpoints(run: Run) -> Finding | None:
    """The run has made steps, has ended, and left nothing to resume from or to draw with."""
    if run.checkpoints or run.damaged or run.writing:
        return None
    if not run.step and not run.snapshots:
        return no_steps(run)
    evidence = f"metrics.jsonl reaches step {run.step:,}; there is no checkpoint in {run.path}"
    evidence += f", {len(run.snapshots)} snapshots" if run.snapshots else ""
    if run.is_finished:
        cause = "the run reached its last step, and its files were moved or deleted"
    else:
        cause = "the process was killed before its first checkpoint, which comes after ten minutes"
    if run.snapshots:
        cause += "; the snapshots draw, and cannot be resumed"
    if run.model in ("", "custom") or run.setting("model", "autoencoder"):
        return Finding(FAULT, "there is no checkpoint", evidence, cause, again(run))
    return Finding(
        FAULT, "there is no checkpoint", evidence, cause, resume(run, save_every_minutes=2)
    )


def no_steps(run: Run) -> Finding:
    """The run ended before it wrote anything of its training."""
    evidence = f"{run.path} has a configuration, and neither metrics nor checkpoints"
    lr, usual = rates(run)
    if lr >= FAR * usual:
        cause = (
            f"the weights became infinite at once: the learning rate is {lr:g}, usual is {usual:g}"
        )
        command = with_usual_lr(run)
    else:
        cause = "it ended within its first ten steps; it printed why. The command shows it again"
        command = again(run)
    return Finding(FAULT, "the run has ended without a step", evidence, cause, command)
