"""Check that this working tree trains and samples with the same bits as an earlier commit.

    python tests/compare_bits.py
    python tests/compare_bits.py --reference 38555b3 --only resume 'sampler-*'

Runs train.py and sample.py of both trees with the same arguments and compares checkpoints (except
for their configuration and the time spent), arrays, pixels of pictures, and logged losses. Prints
one line per run. The exit code is 1 if anything differs.

The outputs of the reference are cached in {reference}, one folder per run. Later checks run only
this tree, which also samples from the reference's checkpoints and resumes one. Each command runs in
a fork of this process, on one CPU thread, so that PyTorch is imported once. This needs Linux.
This script imports nothing of the project, and so works with any layout.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: bits depend on it, and a fork needs one thread

import numpy as np
import torch
from PIL import Image, ImageSequence

ROOT = Path(__file__).resolve().parent.parent
NOT_COMPARED = ("seconds", "config")  # in a checkpoint
LIBRARIES = ("matplotlib.backends.backend_agg", "sklearn.datasets", "torchvision.utils")
LIBRARIES += ("torch._dynamo",)  # slow to import, and so imported once
LOGGED = ("step", "epoch", "loss", "validation_loss", "lr", "gradient_norm", "skipped")
FIGURES = ("training_loss.png", "learning.png")  # diagrams, whose text may change

NEW = "train.py --warmup-steps 3 --save-interval 0 --save-every-minutes 0"
DIGITS = f"{NEW} --dataset digits --no-class-conditional --channels 16 --batch-size 32"
DIGITS += " --validation 64"
TRAIN = f"{DIGITS} --output-dir out --sample-interval 0 --max-steps 6"
SMALL = f"{TRAIN} --multipliers 1"
EPOCHS = f"{DIGITS} --output-dir out --epochs 2 --batch-size 400"
FOLDER = f"{SMALL} --dataset folder --data-dir {{inputs}} --image-size 12"
RESUMABLE = f"{DIGITS} --multipliers 1 --sample-interval 0 --lr-decay none --dropout 0.1"
STOPPED = f"{RESUMABLE} --output-dir out --max-steps 4 --save-every-steps 2"
RESUME = "train.py --resume --output-dir out --max-steps 8"
SAMPLE = "sample.py --steps 5 --output drawn.npz --checkpoint"
OWN = f"{SAMPLE} out/model_final.pt"
DRAW = f"{SAMPLE} {{reference}}/unet-muon/out/model_final.pt"
POINTS = f"{SAMPLE} {{reference}}/mlp/out/model_final.pt --output points.npz"  # not rounded
CLASSES = f"{SAMPLE} {{reference}}/classes/out/model_final.pt"
SHIPPED = f"{SAMPLE} {{tree}}/weights/NAME.safetensors --guidance-scale 1.3 --num-images 16"
SAMPLERS = ("ddpm", "ddim", "euler", "heun", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc")
SAMPLERS += ("ipndm", "gamma")
SPACINGS = ("trailing", "leading", "quadratic", "uniform-logsnr", "karras", "upper")

RUNS = {  # commands, each run in a folder of its own
    "unet-muon": [TRAIN, OWN],
    "unet-adamw": [f"{TRAIN} --optimizer adamw", f"{OWN} --raw"],
    "dit": [f"{TRAIN} --model dit --blocks 2 --channels 32"],
    "dit-long-skips": [f"{TRAIN} --model dit --blocks 3 --channels 32 --long-skips"],
    **{name: [f"{TRAIN} --model {name}"] for name in ("cnn", "naive_unet")},
    "mlp": [f"{NEW} --dataset moons --channels 32 --max-steps 6 --output-dir out", OWN],
    "preset": [f"{TRAIN} --preset fast --max-steps 3"],
    "classes": [f"{SMALL} --class-conditional --label-dropout 0.3", f"{OWN} --guidance-scale 2"],
    "edm": [f"{SMALL} --schedule edm", f"{OWN} --sampler heun --churn 2 --churn-max 10"],
    "vlb": [f"{SMALL} --learn-sigma --loss-weight vlb", f"{OWN} --sampler ddpm"],
    "hybrid": [f"{SMALL} --learn-sigma", f"{OWN} --sampler ddpm --variance learned"],
    "eps": [f"{SMALL} --prediction eps --schedule linear --loss-weight snr", OWN],
    "x_0": [f"{SMALL} --prediction x_0 --schedule sigmoid --lr-decay linear", OWN],
    "v": [f"{SMALL} --prediction v --schedule quadratic --zero-terminal-snr", OWN],
    "flow": [f"{SMALL} --schedule flow --timestep-sampling logit-normal", OWN],
    "grad-accum": [f"{SMALL} --grad-accum 2"],
    "grad-checkpoint": [f"{TRAIN} --grad-checkpoint"],
    "flip": [f"{SMALL} --flip"],
    **{name: [f"{SMALL} --noise-assignment {name}"] for name in ("optimal", "nearest")},
    "stratified": [f"{SMALL} --timestep-sampling stratified"],
    "dropout": [f"{TRAIN} --dropout 0.2 --attention-resolutions 4"],
    "min-snr": [f"{SMALL} --loss-weight min-snr"],
    "epochs": [f"{EPOCHS} --sample-interval 1 --save-interval 1"],
    "folder": [f"{FOLDER} --batch-size 8 --validation 4 --class-conditional"],
    "two-processes": [f"torchrun {SMALL}", f"torchrun {OWN} --batch-size 8"],
    "fsdp": [f"torchrun {SMALL} --fsdp"],
    "resume": [f"{RESUMABLE} --output-dir whole --max-steps 8", STOPPED, RESUME],
    "stopped": [STOPPED],
    "resume-reference": ["copy {reference}/stopped/out out", RESUME],
    **{
        f"sampler-{name}": [f"{DRAW} --sampler {name}", f"{POINTS} --sampler {name}"]
        for name in SAMPLERS
    },
    **{f"spacing-{name}": [f"{POINTS} --spacing {name}"] for name in SPACINGS},
    "ddpm-large": [f"{POINTS} --sampler ddpm --variance large"],
    "ddim-eta": [f"{POINTS} --sampler ddim --eta 0.5"],
    "euler-churn": [f"{POINTS} --sampler euler --churn 1"],
    "gamma-mu": [f"{POINTS} --sampler gamma --mu 0.3"],
    "batches": [f"{DRAW} --batch-size 24 --seed 3"],
    "class-id": [f"{CLASSES} --guidance-scale 2 --class-id 1,7,4"],
    "guidance-interval": [f"{CLASSES} --guidance-scale 3 --guidance-interval 0.3 5"],
    "guidance-rescale": [f"{CLASSES} --guidance-scale 3 --guidance-rescale 0.7"],
    "start-from": [f"{DRAW} --start-from {{inputs}}/a/00.png --strength 0.5"],
    "inpaint": [f"{DRAW} --inpaint {{inputs}}/a/00.png --mask {{inputs}}/b/01.png --resamplings 2"],
    "interpolate": [f"{DRAW} --interpolate --output drawn.png"],
    "invert": [f"{DRAW} --invert {{inputs}}/a/00.png"],
    "intermediate": [f"{DRAW} --show-intermediate --animate --output drawn.png"],
    **{name: [SHIPPED.replace("NAME", name)] for name in ("mnist", "fashion_mnist")},
}
SAME = {"resume": ("whole/model_final.pt", "out/model_final.pt")}  # equal within one tree, too


def execute(command: str, tree: Path, folder: Path) -> None:
    """Run one command of a tree, in a forked process."""
    os.chdir(folder)
    with open("log.txt", "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    program, *words = command.split()
    if program == "copy":
        shutil.copytree(*words)
        return
    words += ["--device", "cpu", "--precision", "fp32"]
    if program == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        os.execv(sys.executable, [sys.executable, *torchrun, f"{tree}/{words[0]}", *words[1:]])
    sys.argv = [f"{tree}/{program}", *words]
    sys.path[0] = str(tree)  # instead of the folder of this script
    runpy.run_path(sys.argv[0], run_name="__main__")


def run(name: str, tree: Path, folder: Path, cache: Path) -> None:
    """Run the commands of a run in a new folder. Raises RuntimeError if one fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for command in RUNS[name]:
        command = command.format(tree=tree, reference=cache, inputs=cache / "inputs")
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=execute, args=(command, tree, folder))
        process.start()
        process.join()
        if process.exitcode:
            lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"{command.split()[0]} failed: {' '.join(lines[-3:])}")


def run_reference(name: str, commit: str, tree: Path, cache: Path) -> None:
    """Fill the cache for a run, and for those whose outputs it reads. Check out what is needed."""
    for other in re.findall(r"{reference}/([\w-]+)", " ".join(RUNS[name])):
        run_reference(other, commit, tree, cache)
    if (cache / name).exists():
        return
    if not tree.exists():
        git("worktree", "add", "--detach", str(tree), commit)
    partial = cache / f"{name}-partial-{os.getpid()}"
    run(name, tree, partial, cache)
    with suppress(OSError):  # another process was faster
        partial.rename(cache / name)
    shutil.rmtree(partial, ignore_errors=True)


def cache_of(commit: str, parent: Path) -> Path:
    """The folder of a commit's outputs. Its name depends on all that decides them."""
    versions = sys.version, torch.__version__, np.__version__
    decisive = repr([commit, RUNS, versions, torch.backends.cpu.get_cpu_capability()])
    return parent.resolve() / hashlib.sha256(decisive.encode()).hexdigest()[:12]


def write_images(folder: Path) -> None:
    """Write 24 images in three classes, always the same. Those of class b can serve as masks."""
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 256, (18, 16, 1 if i % 3 == 1 else 3), dtype=np.uint8)
        path = folder / "abc"[i % 3] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(pixels.squeeze()).save(path)


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def flat(name: str, value: object) -> dict[str, object]:
    """The tensors, arrays and scalars of nested containers, by name."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, item in value.items() for k, v in flat(f"{name} {key}", item).items()}


def read(path: Path) -> object:
    """What is compared of a file."""
    if path.suffix == ".pt":
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value for key, value in checkpoint.items() if key not in NOT_COMPARED}
    if path.suffix == ".npz":
        return dict(np.load(path))
    if path.suffix in (".png", ".gif") and path.name not in FIGURES:
        with Image.open(path) as image:
            return [np.array(frame) for frame in ImageSequence.Iterator(image)]
    if path.name == "metrics.jsonl":
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return [{key: row.get(key) for key in LOGGED} for row in rows]
    return {}


def contents(folder: Path) -> dict[str, object]:
    """All values that are compared below a folder, by file and name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {k: v for f in files for k, v in flat(str(f.relative_to(folder)), read(f)).items()}


def difference(a: object, b: object) -> str | None:
    """How two values differ, or None if their bits are equal."""
    if not all(isinstance(value, (torch.Tensor, np.ndarray)) for value in (a, b)):
        return None if repr(a) == repr(b) else f"{str(a)[:40]} became {str(b)[:40]}"
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype} {list(a.shape)} became {b.dtype} {list(b.shape)}"
    if torch.equal(*(value.reshape(-1).view(torch.uint8) for value in (a, b))):
        return None
    return f"largest difference {(a.double() - b.double()).abs().max().item():.3g}"


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    """The values that differ or are missing, each with its name and how it differs."""
    lines = []
    for name in {**expected, **found}:
        if name not in found or name not in expected:
            lines.append(f"{name}: {'missing' if name in expected else 'not in the reference'}")
        elif how := difference(expected[name], found[name]):
            lines.append(f"{name}: {how}")
    return lines


def compare(name: str, folder: Path, cache: Path) -> tuple[bool, str]:
    """Do a run in this tree. Returns whether it equals the reference, and a line that says so."""
    try:
        run(name, ROOT, folder, cache)
    except RuntimeError as error:
        return False, str(error)
    expected = contents(cache / name)
    unequal = differences(expected, contents(folder))
    if not unequal and name in SAME:
        unequal = differences(*(flat(name, read(folder / file)) for file in SAME[name]))
    if unequal:
        return False, f"{len(unequal)} of {len(expected)} values differ, first {unequal[0]}"
    suffixes = {".pt": "tensor", ".npz": "array", ".png": "picture", ".gif": "frame"}
    tensors = (k for k, v in expected.items() if isinstance(v, (torch.Tensor, np.ndarray)))
    kinds = Counter(suffixes[Path(k.split()[0]).suffix] for k in tensors)
    return True, ", ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in kinds.items()) + " equal"


def main(args: argparse.Namespace, temporary: Path) -> int:
    names = [name for name in RUNS if any(fnmatch(name, pattern) for pattern in args.only)]
    if not names:
        raise SystemExit(f"no such run; there are {', '.join(RUNS)}")
    for library in LIBRARIES:
        importlib.import_module(library)
    commit = git("rev-parse", "--verify", f"{args.reference}^{{commit}}")
    default = Path(tempfile.gettempdir(), f"tiny-diffusion-bits-{commit[:12]}")
    cache, kept = cache_of(commit, Path(args.cache or default)), Path(args.keep or temporary)
    print(f"reference {commit[:12]}, cached in {cache}", flush=True)
    write_images(cache / "inputs")
    failed, seconds = [], 0.0  # seconds of this tree
    for name in names:
        run_reference(name, commit, temporary / "reference-tree", cache)
        start = time.monotonic()
        equal, line = compare(name, kept.resolve() / name, cache)
        seconds += time.monotonic() - start
        failed += [] if equal else [name]
        print(f"{name}: {line}" if equal else f"{name}: DIFFERENT: {line}", flush=True)
    print(f"{len(names) - len(failed)} of {len(names)} runs equal; this tree took {seconds:.0f} s")
    if failed:
        print(f"different: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", default="38555b3", help="commit to compare with")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="runs to compare")
    parser.add_argument("--cache", metavar="DIR", help="folder of the reference's outputs")
    parser.add_argument("--keep", metavar="DIR", help="keep this tree's outputs in this folder")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed
    temporary = Path(tempfile.mkdtemp(prefix="compare-bits-"))
    try:
        sys.exit(main(arguments, temporary))
    finally:
        if (temporary / "reference-tree").exists():
            git("worktree", "remove", "--force", str(temporary / "reference-tree"))
        shutil.rmtree(temporary, ignore_errors=True)
        git("worktree", "prune")
