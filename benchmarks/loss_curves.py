"""The training losses of finished runs, next to which the doctor draws others.

    python train.py --dataset mnist --preset laptop --max-steps 1100 --output-dir outputs/curve
    python benchmarks/loss_curves.py outputs/curve

Writes docs/loss_curves.json with one curve for each run. Curves of the same name are replaced.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import command_line
from evaluation.doctor.length import CURVES, process_of
from evaluation.doctor.run import Run, read_run
from utils import save_whole

POINTS = 40  # of a curve, evenly spaced by the logarithm of the step


def curve_of(run: Run) -> dict:
    """The curve of a run: the mean loss between its points, over the images seen."""
    steps, losses = run.losses
    ends = sorted({round(len(steps) ** (i / POINTS)) for i in range(POINTS + 1)})
    parts = list(zip([0, *ends], ends, strict=False))
    return {
        "name": f"{run.dataset}, {run.step:,} steps of {run.batch_size:g}",
        "dataset": run.dataset,
        "process": process_of(run.config),
        "parameters": run.parameters,
        "images": [round(steps[end - 1] * run.batch_size) for _, end in parts],
        "loss": [round(fmean(losses[start:end]), 4) for start, end in parts],
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    found = (
        {each["name"]: each for each in json.loads(CURVES.read_text())} if CURVES.exists() else {}
    )
    for path in parser.parse_args().runs:
        curve = curve_of(read_run(path))
        found[curve["name"]] = curve
    lines = ",\n".join(json.dumps(curve) for curve in found.values())
    save_whole(CURVES, lambda partial: partial.write_text(f"[\n{lines}\n]\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
