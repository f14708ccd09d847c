"""The report of the doctor: what a run is, its findings, and what to do next."""

import shlex
import textwrap
from collections.abc import Iterable

from evaluation.doctor.commands import draw, resume
from evaluation.doctor.findings import FAULT, Finding
from evaluation.doctor.length import estimate, longer, needed_images
from evaluation.doctor.run import Run
from models import AUTOENCODERS, GUIDES

SHORT = 0.5  # of the images that the shortest measured run of good quality saw
WIDTH = 100  # of a line; commands are not broken


def report_of(run: Run, findings: Iterable[Finding]) -> str:
    """The report of a run with these findings, the worst first."""
    findings = list(findings)
    blocks = [heading(run)]
    for number, finding in enumerate(findings, start=1):
        blocks.append(in_words(number, finding))
    if not findings:
        blocks.append(healthy(run))
    # The length of a run does not matter while its result cannot be used.
    if not any(each.severity == FAULT for each in findings) and (lines := estimate(run)):
        block = wrapped("how long: ", " ".join(lines))
        if not findings and (steps := longer(run)):
            block.append(f"   longer: {resume(run, max_steps=steps)}")
        blocks.append("\n".join(block))
    return "\n\n".join(blocks)


def heading(run: Run) -> str:
    """The first line of the report: the run's folder, data, network and state."""
    data, network = run.dataset, run.model or "unknown network"
    if run.is_custom:  # a run of `fit`
        data, network = f"{run.kind} of your own", "network of your own"
    if run.parameters:
        network += f" of {run.parameters:,} parameters"
    what = f"{data}, {network}"
    if run.tuned:
        what += f", --tune {run.tuned}"
    return f"{run.path}: {what}; {run.state}"


def in_words(number: int, finding: Finding) -> str:
    """A finding, as a paragraph."""
    lines = [f"{number}. {finding.severity.name.lower()}: {finding.title}"]
    lines += wrapped("   seen:   ", finding.evidence)
    lines += wrapped("   cause:  ", finding.cause)
    return "\n".join([*lines, f"   to do:  {finding.command}"])


def wrapped(label: str, text: str) -> list[str]:
    """A text in lines, after a label."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )


def healthy(run: Run) -> str:
    """The paragraph for a run without findings, with the next command."""
    found = "Nothing is wrong: the run looks healthy."
    if run.is_finished and run.newest is None:
        found += " Its checkpoint is sharded; the command writes model_final.pt, which can draw."
    if (steps := longer(run)) and run.images_seen < SHORT * needed_images(run).low:
        found = "Nothing is wrong, but the run is short: see below."
        return f"{found}\n   next:   {resume(run, max_steps=steps)}"
    return f"{found}\n   next:   {next_command(run)}"


def next_command(run: Run) -> str:
    """The command after a healthy run."""
    path = shlex.quote(str(run.path))
    if run.writing:
        return f"python visualize_diffusion.py --run {path}"
    if not run.is_finished or run.newest is None:  # a sharded checkpoint cannot draw
        return resume(run)
    if run.is_custom:
        return f"sample({str(run.newest)!r}, model=model, num_images=16)"
    file = shlex.quote(str(run.newest))
    if run.model in GUIDES:
        return f"python visualize_diffusion.py --run {path}"
    if run.model in AUTOENCODERS:
        return f"python evaluate.py --checkpoint {file}"
    if run.setting("model", "super_resolution"):
        return f"python evaluate.py --checkpoint {file}"
    return draw(run.newest)
