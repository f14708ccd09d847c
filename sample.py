"""Draw images from a trained model."""

from flags import Parser, add_runtime_flags, add_seed_flag, names, number, run


DEFAULT_STEPS = 100  # more did not draw better digits


# fmt: off
def make_parser() -> Parser:
    parser = Parser(
        "Draw images from a checkpoint; the checkpoint says all that is needed about its network.",
        [
            "python sample.py --checkpoint outputs/model_final.pt",
            "python sample.py --checkpoint outputs/model_final.pt --sampler ddim --steps 20",
        ],
    )
    what = parser.add_argument_group("what")
    what.add_argument("--checkpoint", required=True, metavar="FILE", help="written by train.py")
    what.add_argument("--num-images", "--num-samples", type=number(int, 1), default=64, metavar="N",
                      help="how many")
    what.add_argument("--raw", action="store_true",
                      help="use the weights as trained, not their moving average")
    add_seed_flag(what)

    how = parser.add_argument_group("how")
    how.add_argument("--sampler", choices=names("samplers.py", "SAMPLERS"), default="ddpm",
                     help="the walk back from noise")
    how.add_argument("--steps", type=number(int, 1), metavar="N",
                     help=f"calls of the network, up to T (default: {DEFAULT_STEPS})")
    how.add_argument("--eta", type=number(float, 0, 1), metavar="X",
                     help="ddim: fresh noise in each step, from 0, none, to 1, as much as ddpm's "
                     "(default: 0)")
    how.add_argument("--timesteps", type=number(int, 2), metavar="T",
                     help="steps of the forward process; checked against the checkpoint's")
    how.add_argument("--batch-size", type=number(int, 1), default=64, metavar="N",
                     help="images that are computed at once; does not change them")
    add_runtime_flags(parser, "fp32", "with bf16, faster, images depend a little on the batch size")

    output = parser.add_argument_group("output")
    output.add_argument("--output", default="outputs/generated_samples.png", metavar="FILE",
                        help="a picture of all images, or, if it ends in .npz, their pixels: "
                        "uint8 arr_0 of shape N, H, W, C")
    output.add_argument("--show-intermediate", action="store_true",
                        help="also write the walk: intermediate/step_XXXX.png and a filmstrip.png, "
                        "beside the output")
    return parser


# fmt: on


def parse_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import to_uint8
from samplers import SAMPLERS, options_of
from training.checkpoint import load_checkpoint, restore
from utils import (
    NoisePerImage,
    autocast,
    check_writable,
    choose_device,
    choose_precision,
    describe,
    image_format,
    image_grid,
    memory_format,
    save_picture,
    save_whole,
    square,
)

MOMENTS = 10  # pictures of the walk that --show-intermediate writes


def main(args) -> int:
    output = Path(args.output)
    if output.suffix != ".npz":
        image_format(output)  # an ending that cannot be written is refused now, not after the work
    check_writable(output.parent)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    checkpoint = load_checkpoint(args.checkpoint)
    config = checkpoint["config"]
    model, diffusion = restore(checkpoint, raw=args.raw)
    model = model.to(device, memory_format=memory_format(device))
    levels = diffusion.levels(steps_of(args, diffusion.timesteps))
    options = sampler_options(args)
    data = config["data"]
    shape = (data["image_channels"], data["image_size"], data["image_size"])

    weights = "as trained" if args.raw else "moving average"
    print(f"{args.checkpoint}: {data['dataset']}, step {checkpoint['step']:,}, weights: {weights}")
    print(f"{args.sampler}, {len(levels) - 1} steps, {describe(device, precision)}", flush=True)

    denoise = diffusion.denoiser(model)
    keep = moments(len(levels) - 1) if args.show_intermediate else set()
    images, walk = [], {}  # walk: what the first batch looks like at a few moments
    start = time.monotonic()
    bar = tqdm(
        total=args.num_images * (len(levels) - 1), unit="step", disable=not sys.stderr.isatty()
    )
    for first in range(0, args.num_images, args.batch_size):
        batch = range(first, min(first + args.batch_size, args.num_images))
        noise_like = NoisePerImage(args.seed, batch)
        x = noise_like.draw(shape).to(device)
        if keep and first == 0:
            walk[0] = to_uint8(x).cpu()
        with autocast(device, precision):
            walker = SAMPLERS[args.sampler](denoise, x, levels, noise_like, **options)
            for done, x in enumerate(walker, start=1):
                bar.update(len(batch))
                if done in keep and first == 0:
                    walk[done] = to_uint8(x).cpu()
        images.append(to_uint8(x).cpu())
    bar.close()
    images = torch.cat(images)
    seconds = time.monotonic() - start

    if output.suffix == ".npz":
        save_npz(output, images)
    else:
        save_picture(output, image_grid(images, square(len(images))))
    print(f"{len(images)} images in {seconds:.1f} s: {output}")
    if walk:
        folder = write_walk(output.parent / "intermediate", walk, [level.t for level in levels])
        print(f"the walk: {folder}")
    return 0


def steps_of(args, timesteps: int) -> int:
    """The number of sampling steps; raises ValueError for flags that do not fit the checkpoint."""
    if args.timesteps not in (None, timesteps):
        raise ValueError(
            f"--timesteps {args.timesteps}: the checkpoint was trained with {timesteps}"
        )
    if args.steps is None:
        return min(DEFAULT_STEPS, timesteps)
    if args.steps > timesteps:
        raise ValueError(f"--steps {args.steps}: the checkpoint has only {timesteps} timesteps")
    return args.steps


def sampler_options(args) -> dict:
    """The sampler's own options that were given; raises ValueError for another sampler's."""
    given = {name: getattr(args, name) for name in ("eta",) if getattr(args, name) is not None}
    if other := given.keys() - options_of(SAMPLERS[args.sampler]).keys():
        raise ValueError(f"--{other.pop()} is not an option of the sampler {args.sampler}")
    return given


def moments(steps: int) -> set[int]:
    """Numbers of steps done, from 0 to all, at which the walk is kept."""
    return {round(i * steps / (MOMENTS - 1)) for i in range(MOMENTS)}


def write_walk(folder: Path, walk: dict[int, torch.Tensor], t: list[int]) -> Path:
    """A grid of each moment, named by its timestep (0000 for clean), and all as a filmstrip."""
    for old in folder.glob("step_*.png"):
        old.unlink()
    for done, images in walk.items():
        grid = image_grid(images, square(len(images)))
        save_picture(folder / f"step_{t[done] + 1:04d}.png", grid)
    rows = min(8, len(walk[0]))
    strip = torch.stack(
        [images[:rows] for images in walk.values()], dim=1
    )  # (rows, moments, C, H, W)
    save_picture(folder / "filmstrip.png", image_grid(strip.flatten(0, 1), len(walk)))
    return folder


def save_npz(path: Path, images: torch.Tensor) -> None:
    """uint8 images (N, C, H, W) as arr_0 of shape (N, H, W, C), the form that FID tools read."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:  # given a name, NumPy would add an ending to it
            np.savez(file, images.permute(0, 2, 3, 1).numpy())

    save_whole(path, write)


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
