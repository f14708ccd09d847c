"""Draw images from a model that export.py wrote: python -m mini_diffusion.sample model.npz"""

import argparse
import io
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from mini_diffusion.model_file import read_model
from mini_diffusion.picture import grid, png, to_uint8, write_whole
from mini_diffusion.sampler import Sampler
from mini_diffusion.scheduler import NoiseScheduler
from mini_diffusion.unet import UNet

SAMPLERS = {"ddim": Sampler.ddim, "ddpm": Sampler.ddpm}
STEPS = {"ddim": 50, "ddpm": 100}
BATCH = 64  # images that are computed at once
EXAMPLES = """examples:
  python -m mini_diffusion.sample model.npz
  python -m mini_diffusion.sample model.npz --num-images 16 --steps 20 --seed 7
"""


class Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def at_least(low: int, text: str) -> int:
    """A whole number of a flag."""
    if not text.lstrip("-").isdecimal() or int(text) < low:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
    return int(text)


POSITIVE, NATURAL = partial(at_least, 1), partial(at_least, 0)


# fmt: off
def make_parser() -> Parser:
    parser = Parser(
        prog="python -m mini_diffusion.sample",
        description="Draw images from a model that export.py wrote, with NumPy alone.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="an .npz of export.py")
    parser.add_argument("--num-images", type=POSITIVE, default=64, metavar="N",
                        help="how many (default: 64)")
    parser.add_argument("--seed", type=NATURAL, default=0, metavar="N",
                        help="fixes every random number (default: 0)")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim",
                        help="ddpm draws fresh noise in each step (default: ddim)")
    parser.add_argument("--steps", type=POSITIVE, metavar="N",
                        help="of the walk back from noise, at most T (default: ddim 50, ddpm 100)")
    parser.add_argument("--class-id", type=NATURAL, metavar="ID",
                        help="of all images (default: image i is of class i, counted round)")
    parser.add_argument("--output", type=Path, default=Path("outputs/mini_samples.png"),
                        metavar="FILE",
                        help="a picture of all images, or, if it ends in .npz, their pixels: uint8 "
                        "arr_0 of shape N, H, W, C (default: outputs/mini_samples.png)")
    return parser


# fmt: on


def hyphenated(arg: str) -> str:
    """`--num_images=8` as `--num-images=8`; anything but a flag as it is."""
    flag, equals, value = arg.partition("=")
    return flag.replace("_", "-") + equals + value if arg.startswith("--") else arg


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args([hyphenated(arg) for arg in (sys.argv[1:] if argv is None else argv)])
    try:
        draw(args)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def draw(args: argparse.Namespace) -> None:
    if args.output.suffix not in (".png", ".npz"):
        raise ValueError(f"--output {args.output}: the name must end in .png or .npz")
    config = read_model(args.model).config
    model, scheduler = UNet.load(args.model), NoiseScheduler.load(args.model)
    steps = args.steps or min(STEPS[args.sampler], scheduler.timesteps)
    if steps > scheduler.timesteps:
        raise ValueError(f"--steps {steps}: the model has only {scheduler.timesteps} timesteps")
    sampler = SAMPLERS[args.sampler](scheduler, steps)
    labels = choose_labels(args, model.num_classes)
    args.output.parent.mkdir(parents=True, exist_ok=True)  # or fail now, not after the work

    print(f"{args.model}: {config['dataset']}, {model.parameter_count():,} parameters")
    print(f"{args.sampler}, {steps} steps, NumPy {np.__version__}", flush=True)
    rng, start, batches = np.random.default_rng(args.seed), time.monotonic(), []
    for first in range(0, args.num_images, BATCH):
        count = min(BATCH, args.num_images - first)
        shape = (count, config["image_channels"], config["image_size"], config["image_size"])
        y = None if labels is None else labels[first : first + count]
        batches.append(to_uint8(sampler.sample(partial(model, y=y), shape, rng)))
    images = np.concatenate(batches)
    save(args.output, images)
    print(f"{len(images)} images in {time.monotonic() - start:.1f} s: {args.output}")


def choose_labels(args: argparse.Namespace, num_classes: int | None) -> np.ndarray | None:
    """The class of each image (N,), or None for a model without classes."""
    if num_classes is None:
        if args.class_id is not None:
            raise ValueError("--class-id: this model knows no classes")
        return None
    if args.class_id is None:
        return np.arange(args.num_images) % num_classes
    if args.class_id >= num_classes:
        raise ValueError(f"--class-id {args.class_id}: the classes are 0 ... {num_classes - 1}")
    return np.full(args.num_images, args.class_id)


def save(path: Path, images: np.ndarray) -> None:
    """uint8 images (N, H, W, C) as a grid, or as an .npz."""
    if path.suffix == ".png":
        data = png(grid(images))
    else:
        buffer = io.BytesIO()
        np.savez(buffer, images)
        data = buffer.getvalue()
    write_whole(path, data)


if __name__ == "__main__":
    sys.exit(main())
