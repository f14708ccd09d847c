"""The checks of a run. To add one, write a function `(run) -> Finding | None` and a line here."""

from collections.abc import Callable

from evaluation.doctor import data_checks as data
from evaluation.doctor import folder_checks as folder
from evaluation.doctor import loss_checks as loss
from evaluation.doctor import machine_checks as machine
from evaluation.doctor import picture_checks as pictures
from evaluation.doctor.findings import Finding
from evaluation.doctor.run import Run

# Causes come before their effects: findings of one severity keep this order.
CHECKS: dict[str, Callable[[Run], Finding | None]] = {
    "config": folder.unreadable_config,
    "damaged-checkpoint": folder.damaged_checkpoints,
    "no-checkpoint": folder.missing_checkpoints,
    "not-finite": loss.not_finite,
    "range": data.narrow_range,
    "scale": data.data_not_scaled,
    "diverged": loss.diverged,
    "loss-does-not-fall": loss.does_not_fall,
    "lr-too-high": loss.learning_rate_too_high,
    "lr-too-low": loss.learning_rate_too_low,
    "average-lags": loss.average_lags,
    "noise": pictures.only_noise,
    "grey": pictures.grey_pictures,
    "saturated": pictures.saturated_pictures,
    "alike": pictures.all_alike,
    "one-class-drawn": pictures.one_class_drawn,
    "not-of-their-classes": pictures.not_of_their_classes,
    "overfitting": loss.overfitting,
    "near-copies": pictures.near_copies,
    "one-class": data.one_class_of_data,
    "few-images": data.few_images,
    "duplicates": data.duplicate_images,
    "waits-for-data": machine.wait_for_data,
    "slow-steps": machine.slow_steps,
    "precision": machine.unfit_precision,
}


def examine(run: Run) -> dict[str, Finding]:
    """The findings of all checks by their names, the worst first."""
    found = {name: finding for name, check in CHECKS.items() if (finding := check(run))}
    return dict(sorted(found.items(), key=lambda item: -item[1].severity))
