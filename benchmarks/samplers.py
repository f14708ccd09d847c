"""Sampler by number of network calls: how near to the 1000-step result, and in how many seconds.

    python benchmarks/samplers.py --checkpoint weights/mnist.safetensors

For each sampler and number of network calls (NFE) it draws images from one set of noises, and
measures their energy distance to images that `ddpm` drew in all T steps from other noises, in the
features of evaluate.py's classifier. Images that `ddpm` draws in all T steps from the first noises
are at a distance too, the floor, which is taken off all. A network that is told the classes draws
image i of class i, counted round, without guidance; the floor is then below 0, as sets of the same
classes are more alike than chance makes them. Writes samplers.md and samplers.png to --output-dir.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.rates import now
from checkpoints.checkpoint import load_checkpoint, restore
from dataset.items import to_uint8
from dataset.registry import load_dataset
from evaluation.classifier import judge_for
from evaluation.distances import energy_distance
from evaluation.real import real_data
from samplers import SAMPLERS
from schedules import SPACINGS
from utils import (
    NoisePerImage,
    autocast,
    choose_device,
    choose_precision,
    describe,
)

NFE = [5, 6, 8, 10, 15, 20, 35, 50, 100]


class Timed(nn.Module):
    """A network that adds up the time it takes."""

    def __init__(self, model: nn.Module, device: torch.device):
        super().__init__()
        self.model, self.device, self.seconds = model, device, 0.0

    def forward(self, *inputs: Tensor) -> Tensor:
        start = now(self.device)
        out = self.model(*inputs)
        self.seconds += now(self.device) - start
        return out


class Bench:
    """A checkpoint and how images are drawn from it."""

    def __init__(self, args):
        self.device = choose_device("auto")
        self.precision = choose_precision(args.precision, self.device)
        checkpoint = load_checkpoint(args.checkpoint)
        model, self.diffusion = restore(checkpoint, self.device)
        self.model = Timed(model, self.device)
        self.classes = checkpoint["config"]["model"].get("num_classes")
        data = checkpoint["config"]["data"]
        self.shape = (data["image_channels"], data["image_size"], data["image_size"])
        self.count, self.batch = args.num_images, args.batch_size
        size = data["image_size"]
        load = partial(load_dataset, data["dataset"], args.data_dir, image_size=size)
        test = partial(load, split="test", download=False)
        real = real_data(data["dataset"], load(download=False), test, args.data_dir, None, 0)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        self.judge = judge_for(real, args.output_dir, self.device)

    def distance(self, a: Tensor, b: Tensor) -> float:
        """The energy distance of images (N, C, H, W) in [-1, 1]; it suits a few hundred, for which
        the classifier-FID has too many features."""
        return energy_distance(*(self.judge.see(to_uint8(x)).features for x in (a, b)))

    def draw(self, sampler: str, nfe: int, spacing: str, seed: int) -> tuple[Tensor, float, float]:
        """Images (N, C, H, W), seconds, and seconds of them spent in the network."""
        if sampler == "heun":  # 2 n - 1 calls for n steps; its spacing is sample.py's
            levels = self.diffusion.levels((nfe + 1) // 2, "karras")
        else:
            levels = self.diffusion.levels(nfe, spacing)
        self.model.seconds, images, start = 0.0, [], now(self.device)
        for first in range(0, self.count, self.batch):
            numbers = range(first, min(first + self.batch, self.count))
            noise_like = NoisePerImage(seed, numbers)
            x = levels[0].scale * noise_like.draw(self.shape).to(self.device)
            y = torch.tensor(numbers, device=self.device) % self.classes if self.classes else None
            denoise = self.diffusion.denoiser(self.model, y)
            with autocast(self.device, self.precision):
                *_, x = SAMPLERS[sampler](denoise, x, levels, noise_like)
            images.append(x.clamp(-1, 1).cpu())
        return torch.cat(images), now(self.device) - start, self.model.seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--nfe", nargs="+", type=int, default=NFE)
    parser.add_argument("--spacing", choices=SPACINGS, default="trailing")
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    parser.add_argument("--num-images", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "benchmarks")
    args = parser.parse_args()
    bench = Bench(args)

    full = bench.diffusion.timesteps
    reference, *_ = bench.draw("ddpm", full, "trailing", seed=1)
    again, seconds, _ = bench.draw("ddpm", full, "trailing", seed=2)
    floor = bench.distance(again, reference)
    per_64 = 64 / bench.count
    print(f"ddpm, {full} calls: {floor:+.4f} (the floor), {seconds * per_64:.1f} s", flush=True)

    whole = (full, seconds * per_64)
    results: dict[str, list[tuple[int, float, float]]] = {}
    total = inside = 0.0
    for sampler in args.samplers:
        for nfe in args.nfe:
            images, seconds, network = bench.draw(sampler, nfe, args.spacing, seed=2)
            distance = bench.distance(images, reference) - floor
            results.setdefault(sampler, []).append((nfe, distance, seconds * per_64))
            total, inside = total + seconds, inside + network
            print(f"{sampler}, {nfe}: {distance:+.4f}, {seconds * per_64:.2f} s", flush=True)

    overhead = 100 * (total - inside) / inside
    # Heun's calls are odd: with an even number it makes one fewer.
    head = (
        f"{args.checkpoint}, {args.spacing} spacing, {bench.count} images, "
        f"{describe(bench.device, bench.precision)}, torch {torch.__version__}. Energy distance "
        f"to ddpm with {full} steps in the features of classifier {bench.judge.sha256[:12]} (right "
        f"on {100 * bench.judge.accuracy:.2f} % of the held-out images), less the floor, "
        f"{floor:+.4f}. Seconds are for 64 images. Samplers took {overhead:.1f} % beyond the "
        "network's own time."
    )
    text = f"{head}\n\n{table(results, args.nfe, whole)}\n"
    (args.output_dir / "samplers.md").write_text(text, encoding="utf-8")
    draw(results).savefig(args.output_dir / "samplers.png", dpi=110)
    print(f"\n{text}\n{args.output_dir}")


def table(
    results: dict[str, list[tuple[int, float, float]]],
    nfe: list[int],
    whole: tuple[int, float],
) -> str:
    """The last column is `whole`: all timesteps, with which ddpm alone was run."""
    full, seconds_of_all = whole
    head = " | ".join(map(str, [*nfe, full]))
    rows = [f"| sampler | {head} |", "| --- " * (len(nfe) + 2) + "|"]
    for sampler, row in results.items():
        cells = [f"{distance:.3f}" for _, distance, _ in row]
        cells.append("0" if sampler == "ddpm" else "")
        rows.append(f"| `{sampler}` | " + " | ".join(cells) + " |")
    seconds = [
        min(row[i][2] for name, row in results.items() if name != "heun" or len(results) == 1)
        for i in range(len(nfe))
    ]
    rows.append("| seconds | " + " | ".join(f"{s:.2f}" for s in [*seconds, seconds_of_all]) + " |")
    return "\n".join(rows)


def draw(results: dict[str, list[tuple[int, float, float]]]) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (sampler, row), marker in zip(results.items(), "osv^<>DPX*", strict=False):
        nfe, distance, _ = zip(*row, strict=True)
        axes.plot(nfe, distance, label=sampler, marker=marker, markersize=4, linewidth=1)
    axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="network calls", ylabel="energy distance above the floor")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=-0.02)
    axes.set_xticks([nfe for nfe, *_ in row], [str(nfe) for nfe, *_ in row])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=2, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
