"""Kill a training run repeatedly, and compare its result with that of an uninterrupted run.

    python benchmarks/kill_resume.py --kills 200
    python benchmarks/kill_resume.py --kills 30 --precision bf16

Trains a tiny network on the bundled digits, always with the same command, which contains --resume.
Each session gets a SIGKILL after a random time, and the next one resumes, until the kills are used
up and the last session finishes. If a run finishes earlier, another one starts. The calls that
write a file to the disk take a random time here, so that many kills fall inside them.

Fails if one bit differs from the uninterrupted run (weights, optimizer, averages, grids, metrics,
samples), if a session does not resume from the newest finished checkpoint, or if a file is left
over or missing. Each session is a fork of a process that has imported train.py, so this needs Linux
or macOS. It runs on the CPU, on one thread.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ctypes import Structure, c_longlong
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process that forks must have no other threads
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.backends.backend_agg  # noqa: F401  imported once, for all sessions
import numpy as np
import sklearn.datasets  # noqa: F401
import torch
import torchvision.utils  # noqa: F401

import train
from checkpoints.checkpoint import load_checkpoint
from cli import process
from cli.training import TRAIN
from sample import sample
from training.folder import RunFolder
from training.log import read_metrics
from utils import set_deterministic

COMMAND = ["--dataset", "digits", "--channels", "8", "--multipliers", "1", "--dropout", "0.1"]
COMMAND += ["--flip", "--class-conditional", "--batch-size", "64", "--save-interval", "1"]
COMMAND += ["--keep", "2", "--save-every-steps", "7", "--save-every-minutes", "0"]
COMMAND += ["--warmup-steps", "10", "--device", "cpu", "--deterministic", "--resume"]
STEPS = 2  # per kill; fewer than are made between two kills, so that some fall at the end of a run
MIN_STEPS = 30  # an epoch and a little
PAUSE = 0.1  # most seconds before and after each call that writes a checkpoint to the disk
MEASURED = ("step", "epoch", "loss", "validation_loss", "lr", "gradient_norm", "skipped")


class Shared(Structure):
    """What a session tells the process that kills it."""

    _fields_ = [
        ("newest", c_longlong),  # step of the newest finished checkpoint of this run
        ("saving", c_longlong),  # step of the checkpoint that is being written, or 0
        ("lost", c_longlong),  # checkpoints that were damaged, or finished and not resumed from
    ]


class Killer:
    """Runs that are killed, and counts of the kills.

    Attributes:
        kills, sessions, runs: how many there were.
        unsaved: kills before the first checkpoint of a run.
        saving, writing: kills during the write of a checkpoint, and of another file.
        finishing: kills during the write of the last checkpoint or of the files after it.
    """

    def __init__(self, folder: Path, command: list[str], steps: int, seed: int):
        folder.mkdir()
        self.folder, self.command, self.steps = folder, command, steps
        self.chance = random.Random(seed)
        self.shared = RawValue(Shared)
        self.reach = 1.0  # most seconds until the next kill
        self.kills = self.sessions = self.runs = 0
        self.unsaved = self.saving = self.writing = self.finishing = 0

    def run(self, kills: int) -> Path:
        """Start a run, kill it at most this many times, and let it finish.

        Returns its folder. Raises RuntimeError if a session fails.
        """
        self.runs += 1
        folder, self.shared.newest = self.folder / f"run_{self.runs}", 0
        last = self.kills + kills
        while self.session(folder, kill=self.kills < last):
            self.kills += 1
        return folder

    def session(self, folder: Path, kill: bool) -> bool:
        """One session of a run, until it finishes or is killed. Returns whether it was killed."""
        self.sessions += 1
        log, before, self.shared.saving = self.folder / "log.txt", self.shared.newest, 0
        log.unlink(missing_ok=True)
        command = [*self.command, "--output-dir", str(folder)]
        pause, seed = PAUSE if kill else 0, self.chance.getrandbits(32)
        session = multiprocessing.get_context("fork").Process(
            target=train_slowly, args=(command, log, pause, seed, self.shared)
        )
        session.start()
        session.join(self.chance.uniform(0, self.reach) if kill else None)
        session.kill()
        session.join()
        if session.exitcode == -signal.SIGKILL:
            self.count_kill(folder, progressed=self.shared.newest > before)
            return True
        printed = log.read_text() if log.exists() else ""
        if session.exitcode and "this run has finished its" not in printed:  # killed after the end
            raise RuntimeError(f"a session ended with exit code {session.exitcode}:\n{printed}")
        return False

    def count_kill(self, folder: Path, progressed: bool) -> None:
        """Count a kill, and adapt the time until the next: half of the sessions should save."""
        self.reach *= 0.8 if progressed else 1.3
        self.unsaved += self.shared.newest == 0
        self.saving += self.shared.saving > 0
        self.writing += any(".pt." not in path.name for path in folder.rglob(".*.partial"))
        self.finishing += self.steps in (self.shared.newest, self.shared.saving)


def train_slowly(command: list[str], log: Path, longest: float, seed: int, shared: Shared) -> None:
    """Run train.py with its output in a file, and with pauses around writing to the disk."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    chance, save, newest = random.Random(seed), RunFolder.save, RunFolder.newest_checkpoint

    def noted_save(folder: RunFolder, path: Path, checkpoint: dict) -> None:
        shared.saving = checkpoint["step"]
        save(folder, path, checkpoint)
        shared.newest, shared.saving = max(shared.newest, shared.saving), 0

    def noted_newest(folder: RunFolder) -> tuple:
        path, damaged = newest(folder)
        step = folder.steps()[0][path] if path else 0
        shared.lost += len(damaged) + (step < shared.newest)
        return path, damaged

    def pause() -> None:  # shorter for small files, which would take most of the time otherwise
        time.sleep(chance.uniform(0, longest if shared.saving else longest / 10))

    RunFolder.save, RunFolder.newest_checkpoint = noted_save, noted_newest
    os.fsync, os.replace = (between(pause, call) for call in (os.fsync, os.replace))
    train.START = time.monotonic()
    sys.exit(process.run(train.main, TRAIN.parse(command)))


def between(pause: Callable, call: Callable) -> Callable:
    """The function `call` with a pause before and after it."""

    def slowly(*arguments) -> None:
        pause()
        call(*arguments)
        pause()

    return slowly


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a run's folder that must not depend on interruptions, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix in (".pt", ".safetensors"):
            found |= {f"{name} {key}": value for key, value in leaves(load_checkpoint(path))}
        elif path.suffix == ".png" or path.name == "config.json":
            found[name] = path.read_bytes()
    for i, row in enumerate(read_metrics(folder / "metrics.jsonl")):
        measured = {key: row[key] for key in MEASURED if key in row}
        found[f"metrics.jsonl row {i}"] = json.dumps(measured).encode()
    final = folder / "model_final.pt"
    if final.exists():
        found["sample.py"] = sample(final, num_images=16, device="cpu").tobytes()
    return found


def leaves(state, name: str = "") -> Iterator[tuple[str, bytes]]:
    """The tensors and values of a checkpoint as bytes, except the seconds of training."""
    if isinstance(state, (dict, list, tuple)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            if key != "seconds":
                yield from leaves(value, f"{name}.{key}" if name else key)
    elif isinstance(state, torch.Tensor):
        yield name, state.contiguous().numpy().tobytes()
    else:
        yield name, repr(state).encode()


def differing_bits(a: bytes, b: bytes) -> int:
    """The number of bits that differ; all of them if the lengths differ."""
    if len(a) != len(b):
        return 8 * max(len(a), len(b))
    one, other = (np.frombuffer(x, np.uint8) for x in (a, b))
    return int(np.unpackbits(one ^ other).sum())


def names(folder: Path) -> set[str]:
    """The paths of all files in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def report(killer: Killer, whole: Path, killed: list[Path]) -> int:
    """Print the result; returns 1 if anything is lost, differs or is left over, else 0."""
    expected, differing, strange = contents(whole), Counter(), set()
    for run in killed:
        found = contents(run)
        for name in expected | found:
            differing[name] += differing_bits(expected.get(name, b""), found.get(name, b""))
        strange |= {f"{run.name}/{name}" for name in names(whole) ^ names(run)}
    bits, lost = 8 * sum(map(len, expected.values())), killer.shared.lost
    print(f"{killer.kills} kills of {killer.runs} runs of {killer.steps:,} steps:")
    print(f"{killer.unsaved:10,} before the first checkpoint")
    print(f"{killer.saving:10,} during the write of a checkpoint")
    print(f"{killer.writing:10,} during the write of another file")
    print(f"{killer.finishing:10,} during the write of the last checkpoint and the last grid")
    print(f"{killer.sessions:10,} sessions")
    print(f"{lost:10,} lost checkpoints")
    total = differing.total()
    print(f"{total:10,} bits that differ, of {bits:,} in the {len(expected)} values of a run")
    print(f"{len(strange):10,} files left over or missing")
    for name in [*sorted(+differing), *sorted(strange)]:
        print(f"  {name}: {differing[name]:,} bits" if differing[name] else f"  {name}")
    return int(bool(lost or total or strange))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the times of kills")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    set_deterministic(True)  # imports a compiler, here once for all sessions
    gc.freeze()  # otherwise each session's garbage collection copies the memory of all imports
    steps = max(STEPS * args.kills, MIN_STEPS)
    command = [*COMMAND, "--precision", args.precision, "--max-steps", str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        whole = Killer(Path(folder, "whole"), command, steps, args.seed).run(kills=0)
        killer, killed = Killer(Path(folder, "killed"), command, steps, args.seed), []
        while killer.kills < args.kills:
            killed.append(killer.run(kills=args.kills - killer.kills))
        gc.unfreeze()
        return report(killer, whole, killed)


if __name__ == "__main__":
    sys.exit(main())
