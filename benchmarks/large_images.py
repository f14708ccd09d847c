"""Ways to draw large images, trained for the same minutes: pixels, latents, a cascade.

    python benchmarks/large_images.py --minutes 60
    python benchmarks/large_images.py --minutes 60 --only pixels "latents, f4"
    python benchmarks/large_images.py --size 64 --minutes 10 --only pixels "a transformer"

Trains each way of `WAYS` on avatars; the minutes are those of all its models together, with the
encoding of the data set, but without rendering it. Then it draws avatars by held-out captions and
measures them. In --output-dir, each way leaves its models, a grid and a row of results; what is
there is not made again, so the command may be interrupted and repeated. The table of all rows is
written there, too.
"""

import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import (
    ROOT,
    append_row,
    command_line,
    in_new_process,
    read_rows,
    real_images,
    sampled,
    slug_of,
)
from checkpoints.checkpoint import load_checkpoint
from dataset.items import item_shape, to_unit
from evaluation.attributes import attribute_reader
from evaluation.measures import Measure, random_indices
from evaluation.prompts import check_of, prompt_measures, unreadable
from evaluation.real import RealData, subset
from evaluation.super_resolution import bicubic
from models import cost
from training.log import read_metrics
from utils import choose_device, save_whole
from visuals.pictures import pictures_of, save_picture

SMALL = 32  # pixels of the first stage of a cascade
GUIDANCE, STEPS = 2.0, 20
IN_GRID = 16  # images


class Stage(NamedTuple):
    """A model to train: its flags, with the folders of others in braces, and its share of time."""

    flags: str
    share: float


# So few images are seen in the time that batches are small: the larger the image, the smaller.
PIXELS, ENCODED, REDUCED = "--batch-size 32", "--batch-size 16", "--batch-size 64"
# The noise of a patch has more numbers than the network channels; with x_0, it need not pass them.
PATCHES = "--patch-size 8 --prediction x_0"
WAYS = {
    "pixels": {"model": Stage(f"--image-size {{size}} {PIXELS}", 1)},
    "pixels, patches of 4": {"model": Stage(f"--image-size {{size}} --patch-size 4 {REDUCED}", 1)},
    "pixels, patches of 8": {"model": Stage(f"--image-size {{size}} {PATCHES} {REDUCED}", 1)},
    "a narrow U-Net": {  # few channels where there are many pixels
        "model": Stage(f"--image-size {{size}} --channels 32 --multipliers 1 2 4 {REDUCED}", 1)
    },
    "a transformer": {
        "model": Stage(f"--image-size {{size}} --model dit --long-skips {PATCHES} {REDUCED}", 1)
    },
    "latents, f4": {
        "autoencoder": Stage(
            f"--image-size {{size}} --model autoencoder --downsample 4 {ENCODED}", 1 / 3
        ),
        "model": Stage(f"--image-size {{size}} --latents {{autoencoder}} {REDUCED}", 2 / 3),
    },
    "latents, f8": {
        "autoencoder": Stage(
            f"--image-size {{size}} --model autoencoder --downsample 8 {ENCODED}", 1 / 3
        ),
        "model": Stage(f"--image-size {{size}} --latents {{autoencoder}} {REDUCED}", 2 / 3),
    },
    "cascade": {
        "small": Stage(f"--image-size {SMALL} {REDUCED}", 0.5),
        "model": Stage(
            f"--image-size {{size}} --super-resolution {SMALL} {PATCHES} {REDUCED}", 0.5
        ),
    },
}


def train_stage(flags: str, minutes: float, folder: Path, data_dir: str) -> None:
    """Train a model, unless it is there; an interrupted training is resumed."""
    if (folder / "model_final.pt").exists():
        return
    command = [sys.executable, str(ROOT / "train.py"), "--output-dir", str(folder)]
    if (folder / "metrics.jsonl").exists():
        command.append("--resume")
    else:
        command += ["--dataset", "avatars", "--data-dir", data_dir, *flags.split()]
        command += ["--max-minutes", f"{minutes:g}", "--sample-interval", "0"]
    print("$", *command[1:], flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Drawn(NamedTuple):
    """Samples, and what they cost."""

    images: Tensor  # uint8 (N, C, H, W)
    small: Tensor | None  # those of a cascade's first stage
    seconds: float  # for each image
    memory: int  # peak of the process in MB


def drawn_by(folders: dict[str, Path], prompts: Path, count: int, seed: int, then: bool) -> Drawn:
    """Draw images by prompts. To be called in a new process, so that the memory is that of it."""
    flags: dict = {"prompts": str(prompts), "num_images": count, "seed": seed, "steps": STEPS}
    flags |= {"guidance_scale": GUIDANCE, "precision": "auto", "batch_size": 32}
    small = None
    if then:
        small = sampled(folders["small"], **flags)[0].items
        flags |= {"then": [str(folders["model"])], "then_steps": [STEPS]}
    first = folders["small"] if then else folders["model"]
    samples, _, seconds = sampled(first, **flags)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return Drawn(samples.items, small, seconds / count, memory)


def measured(
    name: str, folder: Path, real: RealData, size: int, count: int, repeats: int, device: str
) -> list[dict]:
    """The row of results of a trained way; of a cascade, also that of bicubic enlargement."""
    chosen = torch.device(choose_device(device))
    reader = attribute_reader(
        real, folder.parent, chosen, progress=partial(tqdm, disable=None), say=print
    )
    indices = random_indices(len(real.held_out.items), count, "large images")
    captions = subset(real.held_out, indices).captions
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(captions) + "\n", encoding="utf-8")
    folders = {stage: folder / stage for stage in WAYS[name]}
    drawn = [
        in_new_process(drawn_by, folders, prompts, count, seed, name == "cascade")
        for seed in range(repeats)
    ]
    ways = {name: [each.images for each in drawn]}
    if name == "cascade":
        small = [to_unit(each.small) for each in drawn]
        ways["the cascade's first stage, bicubic"] = [bicubic(x, (size, size)) for x in small]
    check = check_of(real.name, {"avatar_style": "voxel-art"})
    left_out = unreadable(check, reader, real.held_out)
    rows = []
    for way, sets in ways.items():
        measures, _ = prompt_measures(check, reader, real.held_out, indices, sets, left_out)
        grid = folder.parent / f"{slug_of(way)}.png"
        save_picture(grid, pictures_of(real.shape).frame(sets[0][:IN_GRID], 4))
        rows.append({"way": way, "reader": reader.sha256, "count": count, "grid": str(grid)})
        rows[-1] |= {key: measure.record() for key, measure in measures.items()}
    rows[0] |= {"seconds": mean(each.seconds for each in drawn)}
    rows[0] |= {"memory": max(each.memory for each in drawn)}
    rows[0] |= {"stages": {stage: of_training(folders[stage]) for stage in folders}}
    network = load_checkpoint(folders["model"] / "model_final.pt")["config"]["model"]
    rows[0] |= dict(zip(("parameters", "flops"), cost(network, item_shape(network)), strict=True))
    return rows


def of_training(folder: Path) -> dict:
    """What the metrics of a run tell."""
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "images_per_second" in row]
    speed = median(row["images_per_second"] for row in rows)
    return {"steps": rows[-1]["step"], "images_per_second": speed, "seconds": rows[-1]["seconds"]}


def table(rows: list[dict]) -> str:
    """The results as a Markdown table."""
    lines = ["| way | parameters | GFLOPs per image | images/s in training | steps | reader-FID "
             "| floor | statements | exact match | precision, recall | s an image | memory, MB |",
             "| --- " * 12 + "|"]  # fmt: skip
    for row in rows:
        stages = row.get("stages", {}).values()
        speeds = " + ".join(f"{each['images_per_second']:,.0f}" for each in stages)
        steps = " + ".join(f"{each['steps']:,}" for each in stages)
        fid = Measure(row["reader_fid"]["values"], row["reader_fid"]["floor_values"])
        low, high = min(fid.values), max(fid.values)
        drawn_by_network = "flops" in row  # not enlarged by interpolation
        cells = [row["way"]]
        cells += (
            [f"{row['parameters']:,}", f"{row['flops'] / 1e9:.2f}"]
            if drawn_by_network
            else ["", ""]
        )
        cells += [speeds, steps]
        cells += [f"{mean(fid.values):.2f} ({low:.2f} to {high:.2f})", f"{mean(fid.floor):.2f}"]
        cells += [f"{row[key]['mean']:.3f}" for key in ("attribute_accuracy", "exact_match")]
        cells += [f"{row['precision']['mean']:.2f}, {row['recall']['mean']:.2f}"]
        cells += [f"{row['seconds']:.2f}", f"{row['memory']:,}"] if drawn_by_network else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__, folders=True)
    parser.add_argument("--minutes", type=float, default=60, help="of training, for each way")
    parser.add_argument("--size", type=int, default=128, help="of the images, in pixels")
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    folder = args.output_dir / f"large_images_{args.size}"
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    real = None
    for name in args.only:
        if name in {row["way"] for row in read_rows(results)}:
            continue
        real = real or real_images("avatars", args.data_dir, image_size=args.size)
        if name == "cascade":  # rendered now, so that the minutes do not count it
            real_images("avatars", args.data_dir, image_size=SMALL)
        here = folder / slug_of(name)
        start = time.monotonic()
        for stage, (flags, share) in WAYS[name].items():
            places = {other: str(here / other) for other in WAYS[name]}
            filled = flags.format(size=args.size, **places)
            train_stage(filled, share * args.minutes, here / stage, args.data_dir)
        print(f"{name}: trained in {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
        options = (args.size, args.num_images, args.repeats, args.device)
        for row in measured(name, here, real, *options):
            append_row(results, {**row, "minutes": args.minutes, "size": args.size})
        text = table(read_rows(results)) + "\n"
        save_whole(folder / "table.md", lambda path, text=text: path.write_text(text))
        print(text, flush=True)


if __name__ == "__main__":
    main()
