"""Checks of the machine that a run used. Every threshold is a constant with its reason."""

import math
from statistics import median

from dataset.items import item_shape
from evaluation.doctor.commands import resume
from evaluation.doctor.findings import HINT, WARNING, Finding
from evaluation.doctor.run import Run

MEASURED_SECONDS, MEASURED_ROWS = 60, 30  # below which nothing is said about the speed
DROP = 0.3  # of the run's own fast steps; two processes on one core leave 0.5
WAITING = 0.3  # of the time of the steps; data in memory take less than 0.01


def is_measured(run: Run) -> bool:
    """Do the rows say how fast the steps are, in a run that can still be made faster?"""
    measured = len(run.speeds[1]) >= MEASURED_ROWS and run.seconds >= MEASURED_SECONDS
    return measured and not run.is_finished  # the result of a finished one is no worse


def wait_for_data(run: Run) -> Finding | None:
    """The steps wait until their items are read, now or from the first step on."""
    shares = run.waiting[-len(run.speeds[1]) // 3 :]
    if not is_measured(run) or not shares or (share := median(shares)) < WAITING:
        return None
    evidence = f"{share:.0%} of the time of the last steps is the reading of their {run.kind}"
    size = math.prod(item_shape(run.config["data"])) * run.count / 1e9 if run.config else 0
    if run.dataset == "folder" and size > (limit := run.number("data", "cache_limit", 2.0)):
        cause = (
            f"the {size:.1f} GB of pixels are read from the disk (--cache-limit {limit:g}), which "
            "is slower than the steps"
        )
        command = resume(run, cache_limit=math.ceil(size) + 1)
    else:
        cause = "the data lie on a slow disk, or the memory is full: copy them to a fast disk"
        command = resume(run)
    return Finding(HINT, "the steps wait for data", evidence, cause, command)


def slow_steps(run: Run) -> Finding | None:
    """The steps have become much slower than they were, though they do not wait for data."""
    speeds = run.speeds[1]
    if not is_measured(run) or wait_for_data(run):
        return None
    third = len(speeds) // 3
    fast, now = sorted(speeds)[-third], median(speeds[-third:])
    slowest = min(median(speeds[i : i + third]) for i in range(0, len(speeds) - third + 1, third))
    if slowest >= DROP * fast:
        return None
    evidence = (
        f"{slowest:,.0f} {run.kind}/s over a third of the steps, {fast:,.0f} in the fastest third, "
        f"{now:,.0f} at the end"
    )
    cause = "other programs use the cores, so that its threads wait: end them, then resume"
    command = resume(run) if run.is_custom else resume(run, threads="auto")
    return Finding(HINT, "the processor waits", evidence, cause, command)


def unfit_precision(run: Run) -> Finding | None:
    """The number format does not suit the hardware of the last session."""
    if run.is_finished:
        return None
    session = run.sessions[-1] if run.sessions else {}
    device, cpu = session.get("device"), session.get("cpu")
    if not isinstance(device, dict) or not isinstance(cpu, dict):
        return None
    used, kind = session.get("precision"), device.get("type")
    if kind == "cpu" and used == "bf16":
        features = cpu.get("features")
        if not isinstance(features, list) or {"avx512_bf16", "amx_bf16"} & {*map(str, features)}:
            return None
        evidence = f"env.json: bf16 on {cpu.get('name')}, which has no bf16 instructions"
        cause = "the processor computes bf16 by way of fp32, several times slower"
        command = resume(run, precision="fp32")
        return Finding(WARNING, "bf16 is slow on this processor", evidence, cause, command)
    capability = str(device.get("capability", "0")).partition(".")[0]
    if kind == "cuda" and used == "fp32" and capability.isdecimal() and int(capability) >= 8:
        evidence = (
            f"env.json: fp32 on {device.get('name')} (compute capability {device['capability']})"
        )
        cause = "this GPU has bf16, which is about twice as fast and has the range of fp32"
        return Finding(HINT, "bf16 is not used", evidence, cause, resume(run, precision="bf16"))
    if kind == "cuda" and used == "fp16" and capability.isdecimal() and int(capability) >= 8:
        evidence = (
            f"env.json: fp16 on {device.get('name')} (compute capability {device['capability']})"
        )
        cause = "this GPU has bf16, which is as fast and does not overflow"
        return Finding(
            HINT, "fp16 is used instead of bf16", evidence, cause, resume(run, precision="bf16")
        )
    return None
