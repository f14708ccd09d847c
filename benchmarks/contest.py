"""Run the contenders of contenders.py, each in its own process, and tabulate the results."""

import sys
import tempfile
import traceback
from pathlib import Path
from statistics import mean

from benchmarks.common import in_new_process, matmul_rate
from benchmarks.contenders import CONTENDERS, Task

COLUMNS = {
    "contender": "{name}",
    "parameters": "{parameters:,}",
    "precision": "{precision}",
    "batch": "{batch:,}",
    "updates": "{updates}",
    "images/s": "{speed}",
    "GFLOPs per image": "{gflops:.3f}",
    "share": "{share}",
    "classifier-FID": "{fid}",
    "times the floor": "{ratio}",
    "sampler": "{sampler}",
    "NFE": "{nfe}",
    "64 images, s": "{seconds_of_64}",
}


def compute(name: str, task: Task) -> dict | None:
    """The result of a contender, and the FLOP/s of a matrix product in its precision.

    None if it failed; the reason is printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = in_new_process(CONTENDERS[name], task._replace(folder=Path(folder)))
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0].replace("_", "-")
            print(f"{name} needs a package: pip install {package}", file=sys.stderr)
            return None
        except Exception:
            traceback.print_exc()
            return None
    return {**result._asdict(), "matrix_product": matmul_rate(result.precision, task.device)}


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """A Markdown table with a line for each contender: the mean over seeds."""
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]
        values = {
            **mine[0],
            "name": name,
            "gflops": mine[0]["flops"] / 1e9,
            "speed": spread([row["images_per_second"] for row in mine], ",.0f"),
            "share": spread([share_of_peak(row) for row in mine], ".2f"),
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


def share_of_peak(row: dict) -> float:
    """The FLOP/s of training, divided by those of a matrix product in the same precision."""
    return row["images_per_second"] * row["flops"] / row["matrix_product"]


def spread(values: list[float], layout: str) -> str:
    """The mean, followed by the lowest and the highest of several values."""
    text = format(mean(values), layout)
    if len(values) == 1:
        return text
    return f"{text} ({format(min(values), layout)} to {format(max(values), layout)})"
