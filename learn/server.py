"""The process that checks exercises. Each check runs in a fork of it, with limits.

PyTorch is imported once, here, so a check takes a fraction of a second. Requests and answers are
lines of JSON on standard input and output; see `client`.

    {"folder": ..., "number": 4, "seconds": 5, "memory": 2048, "grace": 20, "scratch": ...,
     "picture": null}
"""

import contextlib
import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import torch

from learn.catalogue import EXERCISES
from learn.solved import all_solutions
from learn.student import SLOW, Student, expected

MAX_PRINTED = 2000  # characters of what a student's code prints that are kept
MAX_ANSWER = 2**20  # bytes
MAX_FILE = 2**26  # bytes of a file that a student's code writes
MAX_PROCESSES = 64  # that a student's code may start
FDS = "/dev/fd"


def main() -> None:
    """Answer requests until standard input ends."""
    torch.set_num_threads(1)  # threads do not survive a fork
    all_solutions()
    gc.freeze()  # otherwise garbage collection in a fork copies the memory of all imports
    print(json.dumps({"contents": contents()}), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for line in sys.stdin:
        for answer in answers(json.loads(line)):
            print(json.dumps(answer), flush=True)


def contents() -> list[dict]:
    """What commands show of the exercises, in order."""
    return [
        {
            "number": exercise.number,
            "file": exercise.file,
            "title": exercise.title,
            "chapter": exercise.chapter,
            "done": exercise.done,
            "trains_with": list(exercise.trains_with),
            "hints": {task.name: task.hint for task in exercise.tasks},
        }
        for exercise in EXERCISES
    ]


def answers(request: dict) -> Iterator[dict]:
    """The answers to a request: {"progress": text} any number of times, then the verdict.

    The verdict has the number and path of the exercise, and "functions" (see `student`),
    "missing" if there is no file, or "ended" with the reason if there is no answer.
    """
    exercise = next(e for e in EXERCISES if e.number == request["number"])
    for task in exercise.tasks:
        expected(task.name)  # computed once, and known to all forks
    path = Path(request["folder"]) / f"{exercise.file}.py"
    verdict = {"number": exercise.number, "path": str(path)}
    if not path.is_file():
        yield verdict | {"missing": True, "functions": []}
        return
    if request["picture"] is None:
        limit = 2 * SLOW * len(exercise.tasks) * request["seconds"] + request["grace"]
        target = judge
    else:
        limit, target = request["seconds"], draw
    verdict |= {"functions": []}
    for answer in forked(target, request, limit):
        if "progress" in answer:
            yield answer
        else:
            verdict |= answer
    yield verdict


def judge(request: dict, send: Callable[[dict], None]) -> None:
    """Judge an exercise. Runs in a fork."""
    exercise = next(e for e in EXERCISES if e.number == request["number"])
    student = Student(Path(request["folder"]), request["seconds"])
    send({"functions": student.judge(exercise)})


def draw(request: dict, send: Callable[[dict], None]) -> None:
    """Train and draw with the student's functions. Runs in a fork."""
    student = Student(Path(request["folder"]), request["seconds"])
    try:
        from learn.drawing import train_and_draw  # it imports the student's functions

        done = train_and_draw(Path(request["picture"]), lambda text: send({"progress": text}))
    except (Exception, SystemExit) as error:
        send({"functions": [{"name": "train, draw", **student.error(error)}]})
    else:
        send({"drawn": done})


def forked(target: Callable, request: dict, limit: float) -> Iterator[dict]:
    """Run a target in a process of its own; yield what it sends, then {"printed": text}.

    Whatever the process does, this ends: after `limit` seconds the process is killed. If it ends
    by itself before the target does, {"ended": reason} is yielded, too.
    """
    results, results_end = os.pipe()
    output, output_end = os.pipe()
    parent = os.getppid()
    pid = os.fork()
    if pid == 0:
        become_student(target, request, results_end, output_end)
    os.close(results_end)
    os.close(output_end)
    end = time.monotonic() + limit
    rest, printed, pipes = b"", b"", [results, output]
    finished = late = False
    try:
        while results in pipes and not finished and not late:
            if os.getppid() != parent:  # the command that asked has been killed
                sys.exit(1)
            for pipe in select.select(pipes, [], [], 0.1)[0]:
                data = os.read(pipe, 2**16)
                if not data:
                    pipes.remove(pipe)
                elif pipe == output:
                    printed = (printed + data)[:MAX_PRINTED]
                else:
                    *lines, rest = (rest + data)[:MAX_ANSWER].split(b"\n")
                    for answer in map(json.loads, lines):
                        finished = "finished" in answer
                        if not finished:
                            yield answer
            late = time.monotonic() > end
        if not finished:
            yield {"ended": reason(kill(pid), late, limit, request["memory"])}
        while (
            output in pipes and select.select([output], [], [], 0)[0] and len(printed) < MAX_PRINTED
        ):
            data = os.read(output, MAX_PRINTED)
            printed += data
            if not data:
                break
        yield {"printed": printed[:MAX_PRINTED].decode(errors="replace")}
    finally:
        kill(pid)
        os.close(results)
        os.close(output)


def kill(pid: int) -> int | None:
    """Kill a process and those that it has started; its exit code, or None if it is known."""
    status = None
    with contextlib.suppress(ChildProcessError):
        for _ in range(20):  # one that is ending by itself gets the time to do so
            done, found = os.waitpid(pid, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(found)
                break
            time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if status is None:
        with contextlib.suppress(ChildProcessError):
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status


def reason(code: int | None, late: bool, limit: float, memory: int) -> str:
    """Why a process has ended without an answer."""
    if late or code == -signal.SIGXCPU:
        return f"The code was still running after {limit:g} seconds and was stopped."
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"The process of the code was ended by {name}: out of memory ({memory} MiB)?"
    return f"The code ended its process (exit code {code}), so its result is not known."


def become_student(target: Callable, request: dict, results: int, output: int) -> NoReturn:
    """In a fork: set up streams and limits, run the target, and end."""
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number in map(int, os.listdir(FDS) if os.path.isdir(FDS) else range(3, 64)):
            if number > 2 and number != results:
                with contextlib.suppress(OSError):
                    os.close(number)
        set_limits(request)
        sys.dont_write_bytecode = True
        sys.pycache_prefix = request["scratch"]  # never a stale .pyc of a file edited just now
        os.chdir(request["scratch"])
        sys.argv = ["check.py"]
        warnings.simplefilter("ignore")

        def send(answer: dict) -> None:
            data = json.dumps(answer).encode() + b"\n"
            while data:
                data = data[os.write(results, data) :]

        target(request, send)
        send({"finished": True})
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:  # of ours: what the student's code raises is part of the verdict
        with contextlib.suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(0)


def set_limits(request: dict) -> None:
    """Limit the memory, processor time, files and processes of this process."""
    limits = {
        resource.RLIMIT_DATA: data_size() + request["memory"] * 2**20,
        resource.RLIMIT_FSIZE: MAX_FILE,
        resource.RLIMIT_CORE: 0,
    }
    if request["picture"] is None:  # processor time of all threads
        limits[resource.RLIMIT_CPU] = int(4 * request["seconds"] + request["grace"])
        limits[resource.RLIMIT_NPROC] = process_count() + MAX_PROCESSES
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):  # a system without this limit
            resource.setrlimit(name, (value, value))


def data_size() -> int:
    """Bytes of data that this process has already; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def process_count() -> int:
    """The processes and threads of all users, at least those of this one."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 4096


if __name__ == "__main__":
    main()
