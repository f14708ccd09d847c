"""What smaller files of weights cost: size, change of the samples, classifier-FID. Prints a table.

    python benchmarks/smaller_files.py weights/mnist.safetensors weights/cifar10.safetensors

Each file is exported unchanged, by --half and by --quantize int8, and once more computed in
bfloat16. The mean change of the samples is in grey levels, of 255, from those of the float32 file.
"""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, command_line, sampled
from benchmarks.few_steps import Cell, evaluated

CHANGED = 256  # samples that are compared
FLAGS = ["--sampler", "dpmpp_2m", "--steps", "10"]


class Way(NamedTuple):
    """How weights are stored, by flags of export.py, and computed."""

    name: str
    export: tuple[str, ...] = ()
    precision: str = "fp32"


WAYS = (
    Way("float32"),
    Way("float16 in the file", ("--half",)),
    Way("int8 in the file", ("--quantize", "int8")),
    Way("float32, computed in bfloat16", precision="bf16"),
)


def exported(checkpoint: Path, way: Way, folder: Path) -> Path:
    """The file of a checkpoint, stored in one way."""
    name = f"{checkpoint.stem}_{'_'.join(way.export).replace('-', '') or 'whole'}.safetensors"
    command = [sys.executable, str(ROOT / "export.py"), "--checkpoint", str(checkpoint)]
    command += [*way.export, str(folder / name), "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / name


def drawn(file: Path, way: Way) -> np.ndarray:
    """Samples (N, C, H, W) of a file, as floats."""
    flags = {"sampler": FLAGS[1], "steps": int(FLAGS[3]), "precision": way.precision}
    return sampled(file, num_images=CHANGED, seed=0, **flags)[0].items.double().numpy()


def row(file: Path, way: Way, whole: np.ndarray, args) -> str:
    """A row of the table."""
    change = np.abs(drawn(file, way) - whole).mean()
    flags = ["--metrics", "classifier", "--data-dir", args.data_dir, "--batch-size", "250"]
    flags += ["--precision", way.precision, "--num-images", str(args.num_images)]
    fid = evaluated(Cell(way.name, 0, file, FLAGS), args.output_dir, flags)["classifier"]
    values = fid["classifier_fid"]["values"]
    found = f"{fid['classifier_fid']['mean']:.3f} ({min(values):.3f} to {max(values):.3f})"
    return f"| {way.name} | {file.stat().st_size / 1e6:.2f} | {change:.2f} | {found} |"


def main() -> None:
    parser = command_line(__doc__, folders=True)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--num-images", type=int, default=2000, help="of a set that is measured")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for checkpoint in args.checkpoints:
        print(f"{checkpoint}\n\n| weights | MB | grey levels | classifier-FID |")
        print("| --- " * 4 + "|", flush=True)
        whole = drawn(exported(checkpoint, WAYS[0], args.output_dir), WAYS[0])
        for way in WAYS:
            print(row(exported(checkpoint, way, args.output_dir), way, whole, args), flush=True)
        print()


if __name__ == "__main__":
    main()
