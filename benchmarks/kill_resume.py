"""Kill a training again and again, and compare what it comes to with one that nobody killed.

    python benchmarks/kill_resume.py --kills 200
    python benchmarks/kill_resume.py --kills 30 --precision bf16

Trains a tiny network on the bundled digits, always by the same command line, with --resume. Each
session of it gets a SIGKILL after a random time, and another one goes on, until the kills are used
up and the last session ends by itself; a run that ends before is followed by another one. The calls
that bring a file to the disk take a random moment here, so that many kills fall inside them.

Fails if one bit differs from the run that nobody killed (of weights, optimizer, averages, grids,
metrics, images by sample.py), if a session did not go on from the newest checkpoint that had been
finished, or if a file is left over or missing. A session is a fork of a process that has imported
train.py, so this needs Linux or macOS; it runs on the CPU, on one thread.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process that is forked must have no other threads

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib.backends.backend_agg  # noqa: F401  imported here, once, for all sessions
import numpy as np
import sklearn.datasets  # noqa: F401
import torch
import torchvision.utils  # noqa: F401

import train
from checkpoints.checkpoint import load_checkpoint
from cli import parser as flags
from sample import sample
from training.folder import RunFolder
from training.log import read_metrics
from utils import set_deterministic

COMMAND = ["--dataset", "digits", "--channels", "8", "--multipliers", "1", "--dropout", "0.1"]
COMMAND += ["--flip", "--class-conditional", "--batch-size", "64", "--save-interval", "1"]
COMMAND += ["--keep", "2", "--save-every-steps", "7", "--save-every-minutes", "0"]
COMMAND += ["--warmup-steps", "10", "--device", "cpu", "--deterministic", "--resume"]
STEPS = 2  # of a run, for each kill: fewer than are made between two, so that some come at its end
LEAST_STEPS = 30  # an epoch and a little
PAUSE = 0.1  # seconds at most, before and after each call that brings a checkpoint to the disk
MEASURED = ("step", "epoch", "loss", "validation_loss", "lr", "gradient_norm", "skipped")


class Killer:
    """Runs that are killed, and what became of them.

    Attributes:
        kills, sessions, runs: how many there were.
        unsaved: kills before the first checkpoint of a run.
        saving, writing: kills inside the save of a checkpoint, and of another file.
        finishing: kills while the last checkpoint was written, or what comes after it.
        lost: checkpoints that were damaged, or that were finished and not gone on from.
    """

    def __init__(self, folder: Path, command: list[str], steps: int, seed: int):
        folder.mkdir()
        self.folder, self.command, self.steps = folder, command, steps
        self.chance = random.Random(seed)
        # Set by a session: of the newest checkpoint that is finished, and of the one being saved.
        self.newest, self.saved = RawValue("q"), RawValue("q")
        self.reach = 1.0  # seconds, the longest time until the next kill
        self.kills = self.sessions = self.runs = 0
        self.unsaved = self.saving = self.writing = self.finishing = self.lost = 0

    def run(self, kills: int) -> Path:
        """Start a run, kill it as many times at most, and let it come to its end.

        Returns its folder. Raises RuntimeError if a session fails.
        """
        self.runs += 1
        folder, self.newest.value = self.folder / f"run_{self.runs}", 0
        last = self.kills + kills
        while self.session(folder, kill=self.kills < last):
            self.kills += 1
        return folder

    def session(self, folder: Path, kill: bool) -> bool:
        """One session of a run, to its end or to a kill. Was it killed?"""
        self.sessions += 1
        log, before, self.saved.value = self.folder / "log.txt", self.newest.value, 0
        log.unlink(missing_ok=True)
        command = [*self.command, "--output-dir", str(folder)]
        pause, seed = PAUSE if kill else 0, self.chance.getrandbits(32)
        process = multiprocessing.get_context("fork").Process(
            target=train_slowly, args=(command, log, pause, seed, self.newest, self.saved)
        )
        process.start()
        process.join(self.chance.uniform(0, self.reach) if kill else None)
        process.kill()
        process.join()
        said = log.read_text() if log.exists() else ""
        self.lost += lost(said, before)
        if process.exitcode == -signal.SIGKILL:
            self.count_kill(folder, progressed=self.newest.value > before)
            return True
        if process.exitcode != 0 and "this run has made its" not in said:  # killed after its end
            raise RuntimeError(f"a session ended with exit code {process.exitcode}:\n{said}")
        return False

    def count_kill(self, folder: Path, progressed: bool) -> None:
        """Note where a kill fell; let the next be later if too few checkpoints are finished."""
        self.reach *= 0.8 if progressed else 1.3  # so that half of the sessions finish one
        self.unsaved += self.newest.value == 0
        self.saving += self.saved.value > 0
        self.writing += any(".pt." not in path.name for path in folder.rglob(".*.partial"))
        self.finishing += self.steps in (self.newest.value, self.saved.value)


def train_slowly(command: list[str], log: Path, longest: float, seed: int, newest, saved) -> None:
    """train.py with what it prints in a file, and with pauses in what brings files to the disk."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    chance, save = random.Random(seed), RunFolder.save

    def noted_save(folder: RunFolder, path: Path, checkpoint: dict) -> None:
        saved.value = checkpoint["step"]
        save(folder, path, checkpoint)
        newest.value, saved.value = max(newest.value, saved.value), 0

    def pause() -> None:  # shorter for small files, or all the time would go into them
        time.sleep(chance.uniform(0, longest if saved.value else longest / 10))

    RunFolder.save = noted_save
    os.fsync, os.replace = (between(pause, call) for call in (os.fsync, os.replace))
    train.START = time.monotonic()
    sys.exit(flags.run(train.main, train.parse_args(command)))


def between(pause: Callable, call: Callable) -> Callable:
    """The call with a pause before and after it."""

    def slowly(*arguments) -> None:
        pause()
        call(*arguments)
        pause()

    return slowly


def lost(said: str, newest: int) -> int:
    """How many checkpoints a session left out, by what it said, if the newest was of that step."""
    step = re.search(r"resuming from .*, step ([\d,]+)|the run begins at step (0)", said)
    went_back = step is not None and int((step[1] or step[2]).replace(",", "")) < newest
    return said.count("left out: ") + went_back


def contents(folder: Path) -> dict[str, bytes]:
    """What a run has come to, by name: all that must not depend on how often it was killed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".pt":
            found |= {f"{name} {key}": value for key, value in leaves(load_checkpoint(path))}
        elif path.suffix == ".png" or path.name == "config.json":
            found[name] = path.read_bytes()
    for i, row in enumerate(read_metrics(folder / "metrics.jsonl")):
        measured = {key: row[key] for key in MEASURED if key in row}
        found[f"metrics.jsonl row {i}"] = json.dumps(measured).encode()
    final = folder / "model_final.pt"
    found["sample.py"] = (
        sample(final, num_images=16, device="cpu").tobytes() if final.exists() else b""
    )
    return found


def leaves(state, name: str = "") -> Iterator[tuple[str, bytes]]:
    """The tensors and values of a checkpoint, as bytes; not the seconds that it took."""
    if isinstance(state, (dict, list, tuple)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            if key != "seconds":
                yield from leaves(value, f"{name}.{key}" if name else key)
    elif isinstance(state, torch.Tensor):
        yield name, state.contiguous().numpy().tobytes()
    else:
        yield name, repr(state).encode()


def differing_bits(a: bytes, b: bytes) -> int:
    if len(a) != len(b):
        return 8 * max(len(a), len(b))
    one, other = (np.frombuffer(x, np.uint8) for x in (a, b))
    return int(np.unpackbits(one ^ other).sum())


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def report(killer: Killer, whole: Path, killed: list[Path]) -> int:
    """Print what was found; returns 1 if anything was lost, differs or is left over, else 0."""
    expected, differing, strange = contents(whole), Counter(), set()
    for run in killed:
        found = contents(run)
        for name in expected | found:
            differing[name] += differing_bits(expected.get(name, b""), found.get(name, b""))
        strange |= {f"{run.name}/{name}" for name in names(whole) ^ names(run)}
    bits = 8 * sum(map(len, expected.values()))
    print(f"{killer.kills} kills of {killer.runs} runs of {killer.steps:,} steps:")
    print(f"{killer.unsaved:10,} before the first checkpoint")
    print(f"{killer.saving:10,} inside the save of a checkpoint")
    print(f"{killer.writing:10,} inside the save of another file")
    print(f"{killer.finishing:10,} while the last checkpoint and the last grid were written")
    print(f"{killer.sessions:10,} sessions")
    print(f"{killer.lost:10,} lost checkpoints")
    print(
        f"{differing.total():10,} bits that differ, of {bits:,} in a run's {len(expected)} values"
    )
    print(f"{len(strange):10,} files left over or missing")
    for name in [*sorted(+differing), *sorted(strange)]:
        print(f"  {name}: {differing[name]:,} bits" if differing[name] else f"  {name}")
    return int(bool(killer.lost or differing.total() or strange))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of when to kill")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    set_deterministic(True)  # imports a compiler: here, once, for all sessions
    gc.freeze()  # or each session would look through all that is imported, and copy it so
    steps = max(STEPS * args.kills, LEAST_STEPS)
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
