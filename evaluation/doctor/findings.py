"""A finding: a fault of a run, with its evidence, its cause, and a command that mends it."""

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """How bad a finding is; the worst comes first in a report."""

    HINT = 1  # the run works, and could be better
    WARNING = 2  # its result is worse than it seems
    FAULT = 3  # its result cannot be used


FAULT, WARNING, HINT = Severity.FAULT, Severity.WARNING, Severity.HINT


@dataclass(frozen=True)
class Finding:
    """One fault of a run.

    Attributes:
        severity: how bad it is.
        title: the fault, in one line.
        evidence: the numbers that show it, and where they are from.
        cause: the likely cause.
        command: the command that mends it.
    """

    severity: Severity
    title: str
    evidence: str
    cause: str
    command: str
