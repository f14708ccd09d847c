"""Contenders of contenders.py, each in a process of its own, and the table of what became of them.

This file is what that process runs.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import CONTENDERS, Moment, Task
from benchmarks.rates import matmul_rate

COLUMNS = {
    "contender": "{name}",
    "parameters": "{parameters:,}",
    "precision": "{precision}",
    "batch": "{batch:,}",
    "updates": "{updates}",
    "images/s": "{speed}",
    "GFLOP an image": "{gflop:.3f}",
    "of the matrix product": "{share}",
    "classifier-FID": "{fid}",
    "times the floor": "{ratio}",
    "sampler": "{sampler}",
    "NFE": "{nfe}",
    "64 images, s": "{seconds_of_64}",
}


def compute(name: str, task: Task) -> tuple[dict | None, list[Tensor]]:
    """What has become of a contender, and the images of its moments; None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        what = json.dumps({**task._asdict(), "device": str(task.device), "folder": folder})
        command = [sys.executable, str(Path(__file__).resolve()), name, what]
        if subprocess.run(command).returncode:
            return None, []
        found = json.loads(Path(folder, "result.json").read_text())
        images = [torch.from_numpy(np.load(path)) for path in found.pop("files")]
    return {**found, "matrix_product": matmul_rate(found["precision"], task.device)}, images


def work(name: str, what: str) -> int:
    """Train and draw, in a process of its own; the result is in the task's folder."""
    fields = json.loads(what)
    fields |= {"device": torch.device(fields["device"]), "folder": Path(fields["folder"])}
    task = Task(**fields)
    try:
        result = CONTENDERS[name](task)._asdict()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0].replace("_", "-")
        print(f"{name} needs a package: pip install {package}", file=sys.stderr)
        return 1
    moments, files = result.pop("moments"), []
    for i, moment in enumerate(moments):
        files.append(str(task.folder / f"{i}.npy"))
        np.save(files[-1], moment.images.numpy())
    result |= {"moments": [without_images(moment) for moment in moments], "files": files}
    (task.folder / "result.json").write_text(json.dumps(result))
    return 0


def without_images(moment: Moment) -> dict:
    return {"seconds": moment.seconds, "updates": moment.updates}


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """A line for each contender: of several seeds, the mean."""
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]
        values = {
            **mine[0],
            "name": name,
            "gflop": mine[0]["flops"] / 1e9,
            "speed": spread([row["images_per_second"] for row in mine], ",.0f"),
            "share": spread([share(row) for row in mine], ".2f"),
            "seconds_of_64": spread([row["seconds_of_64"] for row in mine], ".2f"),
        }
        if "fid" in mine[0]:
            values |= {
                "updates": spread([row["updates"] for row in mine], ",.0f"),
                "fid": spread([row["fid"] for row in mine], ".3f"),
                "ratio": spread([row["fid"] / row["floor"] for row in mine], ",.1f"),
            }
        lines.append(f"| {' | '.join(columns.values())} |".format(**values))
    return "\n".join(lines)


def share(row: dict) -> float:
    """Of the FLOP/s of a matrix product in the same precision, those of training."""
    return row["images_per_second"] * row["flops"] / row["matrix_product"]


def spread(values: list[float], layout: str) -> str:
    """The mean, and in brackets the lowest and the highest if there are several."""
    text = format(mean(values), layout)
    if len(values) == 1:
        return text
    return f"{text} ({format(min(values), layout)} to {format(max(values), layout)})"


if __name__ == "__main__":
    sys.exit(work(*sys.argv[1:]))
