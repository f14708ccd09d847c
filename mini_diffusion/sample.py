"""Sample images or points from a model file: python -m mini_diffusion.sample model.npz"""

import argparse
import io
import math
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from mini_diffusion.model_file import read_model
from mini_diffusion.networks import load_network
from mini_diffusion.picture import grid, png, scatter, to_uint8, write_whole
from mini_diffusion.sampler import Sampler
from mini_diffusion.scheduler import NoiseScheduler
from mini_diffusion.tensor import Tensor

SAMPLERS = {"ddim": Sampler.ddim, "ddpm": Sampler.ddpm}
STEPS = {"ddim": 50, "ddpm": 100}
BATCH = {"images": 64, "points": 2000}  # batch size, and default number of samples
EXAMPLES = """examples:
  python -m mini_diffusion.sample model.npz
  python -m mini_diffusion.sample model.npz --num-images 16 --steps 20 --seed 7
"""


class Parser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line, without the usage."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def at_least(low: int, text: str) -> int:
    """Integer value >= low of a flag."""
    if not text.lstrip("-").isdecimal() or int(text) < low:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {low}, got {text!r}")
    return int(text)


def finite(text: str) -> float:
    """Finite number of a flag."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return number


def user_path(text: str) -> Path:
    """Path of a flag; `~` is the home folder, also in --output=~/samples.png."""
    return Path(os.path.expanduser(text))


POSITIVE, NATURAL = partial(at_least, 1), partial(at_least, 0)


# fmt: off
def make_parser() -> Parser:
    parser = Parser(
        prog="python -m mini_diffusion.sample",
        description="Sample images or points from a model file with NumPy alone.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="model file (.npz), written by export.py")
    parser.add_argument("--num-images", type=POSITIVE, metavar="N",
                        help="number of images or points (default: 64 images, 2000 points)")
    parser.add_argument("--seed", type=NATURAL, default=0, metavar="N",
                        help="random seed (default: 0)")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim",
                        help="sampler; ddpm adds fresh noise in each step (default: ddim)")
    parser.add_argument("--steps", type=POSITIVE, metavar="N",
                        help="number of sampling steps, at most T (default: ddim 50, ddpm 100)")
    parser.add_argument("--class-id", metavar="ID",
                        help="class of all samples, by name or index "
                        "(default: cycle through all classes)")
    parser.add_argument("--guidance-scale", type=finite, default=1.0, metavar="W",
                        help="classifier-free guidance towards the class (default: 1, none)")
    parser.add_argument("--output", type=user_path, metavar="FILE",
                        default=Path("outputs/mini_samples.png"),
                        help="picture (.png), or array arr_0 (.npz): uint8 of shape N, H, W, C, "
                        "or points of shape N, D "
                        "(default: outputs/mini_samples.png)")
    return parser


# fmt: on


def hyphenated(arg: str) -> str:
    """Flag with hyphens instead of underscores; other arguments unchanged."""
    flag, equals, value = arg.partition("=")
    return flag.replace("_", "-") + equals + value if arg.startswith("--") else arg


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 (file error), 2 (usage), 130 (interrupted)."""
    parser = make_parser()
    if isinstance(sys.stdout, io.TextIOWrapper):  # print any name, in any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    args = parser.parse_args([hyphenated(arg) for arg in (sys.argv[1:] if argv is None else argv)])
    try:
        generate(args)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def generate(args: argparse.Namespace) -> None:
    """Sample and write to `args.output`. Raises ValueError for invalid arguments."""
    if args.output.suffix.lower() not in (".png", ".npz"):
        raise ValueError(f"--output must end in .png or .npz, got {args.output}")
    file = read_model(args.model)
    config, model, scheduler = file.config, load_network(file), NoiseScheduler.load(file)
    kind = "points" if "dim" in config else "images"
    args.num_images = args.num_images or BATCH[kind]
    steps = args.steps or min(STEPS[args.sampler], scheduler.timesteps)
    if steps > scheduler.timesteps:
        most = scheduler.timesteps
        raise ValueError(f"--steps must be at most {most} for this model, got {steps}")
    sampler = SAMPLERS[args.sampler](scheduler, steps)
    labels = choose_labels(args, model.num_classes, config["classes"])
    args.output.parent.mkdir(parents=True, exist_ok=True)  # fails before sampling

    say(f"{args.model}: {config['dataset']}, {model.parameter_count():,} parameters")
    guided = "" if args.guidance_scale == 1 else f", guidance {args.guidance_scale:g}"
    say(f"{args.sampler}, {steps} steps{guided}, NumPy {np.__version__}")
    if args.class_id is not None:
        name = config["classes"][labels[0]]
        say(f"class {labels[0]}: {''.join(c if c.isprintable() else '?' for c in name)}")
    rng, start, batches = np.random.default_rng(args.seed), time.monotonic(), []
    guidance = {"null_model": model, "guidance_scale": args.guidance_scale}
    for first in range(0, args.num_images, BATCH[kind]):
        count = min(BATCH[kind], args.num_images - first)
        y = None if labels is None else labels[first : first + count]
        shape = (count, *shape_of_sample(config))
        batches.append(to_array(sampler.sample(partial(model, y=y), shape, rng, **guidance)))
    samples = np.concatenate(batches)
    save(args.output, samples)
    say(f"{len(samples)} {kind} in {time.monotonic() - start:.1f} s: {args.output}")


def say(text: str) -> None:
    """Print a line. If it cannot be written (`| head`, a full disk), later lines go nowhere."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def shape_of_sample(config: dict) -> tuple[int, ...]:
    """Shape of one sample: (C, H, W) of images, (D,) of points."""
    if "dim" in config:
        return (config["dim"],)
    return (config["image_channels"], *image_sides(config["image_size"]))


def to_array(x: Tensor) -> np.ndarray:
    """Samples in the form that is written: uint8 images (N, H, W, C), or float32 points (N, D)."""
    return to_uint8(x) if x.data.ndim == 4 else x.data


def image_sides(size: int | list[int]) -> tuple[int, int]:
    """Height and width of an image size, N for squares or [height, width]."""
    return (size, size) if isinstance(size, int) else tuple(size)


def choose_labels(
    args: argparse.Namespace, num_classes: int | None, classes: list[str]
) -> np.ndarray | None:
    """Class label of each sample (N,), or None for a model without classes."""
    if num_classes is None:
        if args.guidance_scale != 1:
            raise ValueError("--guidance-scale is not supported: this model has no classes")
        if args.class_id is not None:
            raise ValueError("--class-id is not supported: this model has no classes")
        return None
    if args.class_id is None:
        return np.arange(args.num_images) % num_classes
    return np.full(args.num_images, class_index(args.class_id, classes))


def class_index(text: str, classes: list[str]) -> int:
    """Index of a class, given by its name or else by its index. Raises ValueError for no class."""
    number = int(text) if text.isdecimal() and len(text) < 16 else -1
    for found in (
        [i for i, name in enumerate(classes) if name == text],
        [i for i, name in enumerate(classes) if name.casefold() == text.casefold()],
        [number] if 0 <= number < len(classes) else [],
    ):
        if len(found) == 1:
            return found[0]
    names = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:20]))
    more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
    raise ValueError(f"--class-id {text}: the classes are {names}{more}")


def save(path: Path, samples: np.ndarray) -> None:
    """Write images (N, H, W, C) or points (N, D) as a picture (.png) or as an array (.npz)."""
    if path.suffix.lower() == ".png":
        data = png(grid(samples) if samples.ndim == 4 else scatter(samples))
    else:
        buffer = io.BytesIO()
        np.savez(buffer, samples)
        data = buffer.getvalue()
    write_whole(path, data)


if __name__ == "__main__":
    sys.exit(main())
