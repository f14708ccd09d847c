"""Sessions of train.py: run to the end, resumed where they were interrupted, and measured."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import ROOT
from training.log import read_metrics

POLL = 0.1  # seconds between two looks at a running train.py


def train_to_the_end(
    flags: list[str],
    folder: Path,
    sessions: list[dict],
    save: Callable[[], None],
    minutes: float | None = None,
) -> None:
    """Run train.py to its end, from where an earlier session was interrupted.

    Args:
        flags: of train.py.
        folder: of the run.
        sessions: the earlier ones; each session adds its start, and what `run_session` measures.
        save: is called when `sessions` has changed.
        minutes: stop and resume train.py after so many minutes each time.

    Raises CalledProcessError if train.py fails.
    """
    for lost in sessions:  # this script was killed
        lost.setdefault("seconds", seconds_of_log(folder, lost["start"]))
    while True:
        # --resume has the number of steps that the first session planned: no second --max-minutes.
        resumed = sessions and saved_since(folder, sessions[0]["start"])
        chosen = ["--resume"] if resumed else [*flags, "--overwrite"]
        if not resumed:
            sessions.clear()
        sessions.append({"start": time.time()})
        save()
        try:
            finished = run_session(chosen, folder, sessions[-1], minutes)
        finally:
            save()
        if finished:
            return


def run_session(flags: list[str], folder: Path, row: dict, minutes: float | None) -> bool:
    """Run train.py once; returns whether it came to its end, or was stopped after the minutes.

    `row` gets the wall-clock `seconds`, the `memory` at the peak in MB, and `begin`, the seconds
    from the start of the process to its first training step (of a new run). Raises
    CalledProcessError.
    """
    command = [sys.executable, "train.py", *flags, "--output-dir", str(folder)]
    print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
    start, own_peak = time.monotonic(), peak_of_this_process()
    # A session of its own: Ctrl-C reaches this script alone, which passes it on once.
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    stopped, usage = False, None
    try:
        while usage is None:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if row.get("begin") is None and "--resume" not in flags:
                row["begin"] = begin_of(folder, row["start"])
            if pid:
                process.returncode, usage = os.waitstatus_to_exitcode(status), used
                break
            row["memory"] = peak_of(process.pid) or row.get("memory")
            if minutes and not stopped and time.monotonic() - start > 60 * minutes:
                process.terminate()  # it saves a checkpoint
                stopped = True
            time.sleep(POLL)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        row["seconds"] = time.monotonic() - start
    # A new process starts with the peak of its parent, so the system's figure counts above it.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    if peak > own_peak:
        row["memory"] = peak
    if process.returncode and not stopped:
        raise subprocess.CalledProcessError(process.returncode, command)
    return process.returncode == 0


def peak_of(pid: int | str) -> float | None:
    """The peak of a process's resident memory so far, in MB; None if the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else None


def peak_of_this_process() -> float:
    return peak_of("self") or 0.0


def begin_of(folder: Path, start: float) -> float | None:
    """Seconds from the start of train.py to its first training step; None if none is logged yet.

    `start` is a reading of `time.time()`. A row of the log has the seconds of all steps up to it.
    """
    log = folder / "metrics.jsonl"
    if not log.exists() or log.stat().st_mtime < start:  # that of an earlier run
        return None
    rows = [row for row in read_metrics(log) if "seconds" in row]
    return log.stat().st_mtime - start - rows[-1]["seconds"] if rows else None


def saved_since(folder: Path, start: float) -> bool:
    """Has the run that started then saved a checkpoint?"""
    paths = [*folder.glob("checkpoints/*.pt"), *folder.glob("model_final.pt")]
    return any(path.stat().st_mtime >= start for path in paths)


def seconds_of_log(folder: Path, start: float) -> float:
    """The length of a session that was killed, as far as its log shows."""
    log = folder / "metrics.jsonl"
    return max(0.0, log.stat().st_mtime - start) if log.exists() else 0.0
