"""Compare samplers by network calls: distance to the 1000-step result, and seconds.

    python benchmarks/samplers.py --checkpoint weights/mnist.safetensors

For each sampler and number of network calls (NFE), sample.py samples images from the same noise.
Their energy distance is measured to images of `ddpm` in all T steps from other noise, in the
features of the classifier of evaluate.py. The floor is the distance of images of `ddpm` in all T
steps from the first noise; it is subtracted from all distances. A class-conditional network cycles
through all classes, without guidance. The floor is then below 0, because sets with equal class
frequencies are more alike than random sets. Writes samplers.md and samplers.png to --output-dir.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.common import command_line, now, real_images, sampled
from checkpoints.checkpoint import load_checkpoint
from diffusion import Denoiser
from evaluation.distances import energy_distance
from evaluation.features import classifier_for
from samplers import OF_TUNED, SAMPLERS
from schedules import SPACINGS
from utils import choose_device, choose_precision, describe

NFE = [5, 6, 8, 10, 15, 20, 35, 50, 100]


@contextmanager
def network_clock() -> Iterator[list[float]]:
    """Yields a list to which the seconds of each network call are appended."""
    seconds, predict = [], Denoiser.predict

    def timed(denoiser: Denoiser, network: nn.Module, x_in: Tensor, *arguments) -> Tensor:
        start = now(x_in.device)
        out = predict(denoiser, network, x_in, *arguments)
        seconds.append(now(x_in.device) - start)
        return out

    with patch.object(Denoiser, "predict", timed):
        yield seconds


def main() -> None:
    parser = command_line(__doc__, folders=True)
    parser.add_argument("--checkpoint", required=True)
    names = [name for name in SAMPLERS if name not in OF_TUNED]
    parser.add_argument("--samplers", nargs="+", choices=names, default=names)
    parser.add_argument("--nfe", nargs="+", type=int, default=NFE)
    parser.add_argument("--spacing", choices=SPACINGS, default="trailing")
    parser.add_argument("--num-images", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    config, device = load_checkpoint(args.checkpoint)["config"], choose_device("auto")
    data, full = config["data"], config["diffusion"]["timesteps"]
    real = real_images(data["dataset"], args.data_dir, image_size=data["image_size"])
    classifier = classifier_for(real, args.output_dir, device, say=print)

    def sample(sampler: str, nfe: int, spacing: str, seed: int) -> tuple[Tensor, float]:
        """Features of samples, and seconds per 64 of them."""
        if sampler == "heun":  # n steps make 2 n - 1 calls; the spacing is the default of sample.py
            nfe, spacing = (nfe + 1) // 2, "karras"
        flags = {"sampler": sampler, "steps": nfe, "spacing": spacing, "seed": seed}
        flags |= {"num_images": args.num_images, "batch_size": args.batch_size}
        samples, _, seconds = sampled(args.checkpoint, precision=args.precision, **flags)
        return classifier.predict(samples.items).features, 64 * seconds / args.num_images

    reference, _ = sample("ddpm", full, "trailing", seed=1)
    again, seconds = sample("ddpm", full, "trailing", seed=2)
    floor, whole = energy_distance(again, reference), (full, seconds)
    print(f"ddpm, {full} calls: {floor:+.4f} (the floor), {seconds:.1f} s", flush=True)

    results: dict[str, list[tuple[int, float, float]]] = {}
    with network_clock() as inside:
        for sampler in args.samplers:
            for nfe in args.nfe:
                features, seconds = sample(sampler, nfe, args.spacing, seed=2)
                distance = energy_distance(features, reference) - floor
                results.setdefault(sampler, []).append((nfe, distance, seconds))
                print(f"{sampler}, {nfe}: {distance:+.4f}, {seconds:.2f} s", flush=True)
    total = sum(seconds for row in results.values() for *_, seconds in row) * args.num_images / 64

    overhead = 100 * (total / sum(inside) - 1)
    head = (
        f"{args.checkpoint}, {args.spacing} spacing, {args.num_images} images, "
        f"{describe(device, choose_precision(args.precision, device))}, torch {torch.__version__}. "
        f"Energy distance to ddpm with {full} steps in the features of classifier "
        f"{classifier.sha256[:12]} (accuracy on the held-out images: "
        f"{100 * classifier.accuracy:.2f} %), minus the floor, {floor:+.4f}. Seconds are for 64 "
        f"images. Samplers took {overhead:.1f} % more time than the network alone."
    )
    text = f"{head}\n\n{table(results, args.nfe, whole)}\n"
    (args.output_dir / "samplers.md").write_text(text, encoding="utf-8")
    plot(results).savefig(args.output_dir / "samplers.png", dpi=110)
    print(f"\n{text}\n{args.output_dir}")


def table(
    results: dict[str, list[tuple[int, float, float]]],
    nfe: list[int],
    whole: tuple[int, float],
) -> str:
    """A Markdown table. The last column, `whole`, has all timesteps, which only ddpm samples."""
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


def plot(results: dict[str, list[tuple[int, float, float]]]) -> Figure:
    """The distance of each sampler by network calls."""
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
