"""The speed of training and sampling next to programs that keep processor cores busy.

    python benchmarks/contention.py
    python benchmarks/contention.py --neighbours 0 4 --threads 1 4 8 auto --seconds 20

Starts 0, 1 and 2 processes that only count. Next to them it runs train.py --preset laptop on MNIST
for some seconds, and samples from weights/mnist.safetensors, with each number of threads. Prints a
Markdown table of images/s; with auto, the number that was chosen follows in brackets. The time to
start and to choose is not counted. Takes less than five minutes.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import ROOT, command_line, machine
from training.log import read_metrics

LIFE = 120  # seconds after which a neighbour ends by itself, even if this process was killed
PATIENCE = 90  # seconds that a command may take to begin, or to end
SAMPLES, BATCH = 256, 32
NEIGHBOUR = f"import time\nend = time.monotonic() + {LIFE}\nwhile time.monotonic() < end: pass"


@contextmanager
def neighbours(count: int) -> Iterator[list[subprocess.Popen]]:
    """While open, so many processes keep a core busy each."""
    processes = []
    try:
        for _ in range(count):
            processes.append(subprocess.Popen([sys.executable, "-c", NEIGHBOUR]))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_for(seconds: float, begins: str, script: str, *flags: object) -> str:
    """Run a command and interrupt it some seconds after a line that begins so.

    Returns its output. It is killed if it takes far too long to begin or to end.
    """
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *map(str, flags)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            end = time.monotonic() + PATIENCE
            while process.poll() is None and time.monotonic() < end:
                if re.search(f"^{begins}", text_of(log), re.MULTILINE):
                    break
                time.sleep(0.05)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.terminate()  # a program started in the background may ignore SIGINT
                process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass  # the caller finds what there is
        finally:
            process.kill()
            process.wait()
        return text_of(log)


def text_of(log) -> str:
    log.seek(0)
    return log.read()


def training_speed(threads: str, data_dir: str, seconds: float) -> str:
    """images/s of train.py in the first seconds."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--dataset", "mnist", "--data-dir", data_dir, "--no-download"]
        flags += ["--preset", "laptop", "--threads", threads, "--output-dir", folder]
        text = run_for(seconds, "threads:", "train.py", *flags)
        rows = [row for row in read_metrics(Path(folder, "metrics.jsonl")) if "seconds" in row]
    if not rows:
        return failed(text)
    return shown(64 * rows[-1]["step"] / rows[-1]["seconds"], threads, text)


def sampling_speed(threads: str, seconds: float) -> str:
    """images/s of sample.py, until all are drawn or the seconds are over."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--checkpoint", ROOT / "weights" / "mnist.safetensors", "--num-images", SAMPLES]
        flags += ["--steps", 20, "--batch-size", BATCH, "--threads", threads]
        begins = r"\S+, 20 steps, .*\n(threads:|sampling)" if threads == "auto" else "threads:"
        text = run_for(seconds, begins, "sample.py", *flags, "--output", Path(folder, "s.npz"))
    if done := re.search(r"^(\d+) images in ([\d.]+) s", text, re.MULTILINE):
        return shown(int(done[1]) / float(done[2]), threads, text)
    if not (part := re.search(r"(\d+) of \d+ images are in", text)):
        return failed(text)
    found = shown(max(int(part[1]), BATCH) / seconds, threads, text)
    return found if int(part[1]) else f"under {found}"


def shown(speed: float, threads: str, text: str) -> str:
    """A speed, with the number of threads that auto has chosen."""
    chosen = re.search(r"^threads: (\d+)", text, re.MULTILINE)
    number = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
    return f"{number} ({chosen[1]})" if threads == "auto" and chosen else number


def failed(text: str) -> str:
    print(text[-2000:], file=sys.stderr)
    return "-"


def main() -> int:
    cores = torch.get_num_threads()
    parser = command_line(__doc__)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", nargs="+", default=["1", str(cores), "auto"])
    parser.add_argument("--seconds", type=float, default=8, help="of each run (default: 8)")
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all processes are ended
    heads = [f"{what}, {n}" for what in ("training", "sampling") for n in args.threads]
    lines = [f"{machine(torch.device('cpu'))}, torch {torch.__version__}; images/s", ""]
    lines += [f"| busy neighbours | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    print("\n".join(lines), flush=True)
    for count in args.neighbours:
        cells = []
        for what in (training_speed, sampling_speed):
            for threads in args.threads:
                given = [args.data_dir] if what is training_speed else []
                with neighbours(count):
                    cells.append(what(threads, *given, args.seconds))
        lines.append(f"| {count} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
