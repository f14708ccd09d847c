"""Draw images, or points, from a trained model."""

from flags import (
    Parser,
    add_checkpoint_flags,
    add_runtime_flags,
    names,
    number,
    parse_keywords,
    run,
)

MODES = ("start_from", "inpaint", "interpolate", "invert")  # walks that begin elsewhere


def class_ids(text: str) -> str | list[int]:
    """An argparse type: `all`, or class numbers with commas between them."""
    return text if text == "all" else [number(int, 0)(part) for part in text.split(",")]


# fmt: off
def make_parser() -> Parser:
    parser = Parser(
        "Draw images, or points, from a checkpoint, which says all that is needed of its network.",
        [
            "python sample.py --checkpoint outputs/model_final.pt",
            "python sample.py --checkpoint outputs/model_final.pt --sampler ddim --steps 20",
        ],
    )
    what = add_checkpoint_flags(parser)
    what.add_argument("--num-images", "--num-samples", type=number(int, 1), metavar="N",
                      help="how many (default: 64, with several classes 8 of each; 2000 points)")

    classes = parser.add_argument_group("classes (of a checkpoint of train.py --class-conditional)")
    classes.add_argument("--class-id", type=class_ids, metavar="ID",
                         help="a class, several (0,1,2) or all: one row each "
                         "(default: image i is of class i, counted round)")
    classes.add_argument("--guidance-scale", type=number(float, 0), default=1.0, metavar="W",
                         help="classifier-free guidance: uncond + W (cond - uncond)")
    classes.add_argument("--guidance-interval", type=number(float, 0), nargs=2,
                         metavar=("LOW", "HIGH"),
                         help="guide only at these noise levels, sigma / alpha (default: at all)")
    classes.add_argument("--guidance-rescale", type=number(float, 0, 1), default=0.0, metavar="X",
                         help="bring the guided output back to its size without guidance, 0 to 1")

    how = parser.add_argument_group("how")
    how.add_argument("--sampler", choices=["auto", *names("samplers.py", "SAMPLERS")],
                     default="auto",
                     help="the walk back from noise; auto is the best known")
    how.add_argument("--steps", type=number(int, 1), metavar="N",
                     help="steps of the walk, up to T (default: the sampler's)")
    how.add_argument("--spacing", choices=names("schedules.py", "SPACINGS"),
                     help="which timesteps the steps visit (default: the sampler's)")
    how.add_argument("--timesteps", type=number(int, 2), metavar="T",
                     help="steps of the forward process; checked against the checkpoint's")
    how.add_argument("--batch-size", type=number(int, 1), metavar="N",
                     help="how many are computed at once; does not change them (default: 64; "
                     "2000 points)")

    options = parser.add_argument_group("options of single samplers")
    options.add_argument("--eta", type=number(float, 0, 1), metavar="X",
                         help="ddim: fresh noise in each step, from 0, none, to 1, as much as "
                         "ddpm's (default: 0)")
    options.add_argument("--variance", choices=["small", "large", "learned"],
                         help="ddpm: of each step (default: learned where the network has learned "
                         "it, else small)")
    options.add_argument("--churn", type=number(float, 0), metavar="X",
                         help="euler, heun: S_churn, fresh noise added before each step "
                         "(default: 0)")
    options.add_argument("--churn-min", type=number(float, 0), metavar="X",
                         help="euler, heun: S_min, the least sigma / alpha with churn (default: 0)")
    options.add_argument("--churn-max", type=number(float, 0), metavar="X",
                         help="euler, heun: S_max, the largest (default: none)")
    options.add_argument("--churn-noise", type=number(float, 0), metavar="X",
                         help="euler, heun: S_noise, standard deviation of that noise (default: 1)")
    options.add_argument("--order", type=number(int, 1, 4), metavar="N",
                         help="unipc: order of the predictor and the corrector (default: 3)")
    options.add_argument("--gamma", type=number(float, 0), metavar="X",
                         help="gamma: how far to go beyond each step; 1 is ddim (default: 2)")
    options.add_argument("--mu", type=number(float, 0, 0.99), metavar="X",
                         help="gamma: fresh noise, from 0, none, to 0.5, as ddpm's, and beyond "
                         "(default: 0)")

    edit = parser.add_argument_group("from given images")
    edit.add_argument("--start-from", metavar="IMAGE",
                      help="begin with this image, noised: image to image")
    edit.add_argument("--strength", type=number(float, 0.001, 1), default=0.6, metavar="X",
                      help="--start-from: share of the walk that is walked")
    edit.add_argument("--inpaint", metavar="IMAGE",
                      help="keep this image where --mask is white, and paint the rest")
    edit.add_argument("--mask", metavar="IMAGE", help="white: to keep; black: to paint")
    edit.add_argument("--resamplings", type=number(int, 1), default=10, metavar="N",
                      help="--inpaint: times that each step is walked")
    edit.add_argument("--interpolate", action="store_true",
                      help="a strip of images between two noises")
    edit.add_argument("--invert", metavar="IMAGE",
                      help="walk from this image to its noise and back, and say how near it comes")
    add_runtime_flags(parser, "fp32", "with bf16, faster, images depend a little on the batch size")

    output = parser.add_argument_group("output")
    output.add_argument("--output", default="outputs/generated_samples.png", metavar="FILE",
                        help="a picture of all images, or, if it ends in .npz, their pixels: "
                        "uint8 arr_0 of shape N, H, W, C; of points, float32 of N, 2")
    output.add_argument("--show-intermediate", action="store_true",
                        help="also write the walk, x_t and the x_0 that the network sees in it: "
                        "intermediate/step_XXXX.png, x_0_XXXX.png and filmstrips beside the output")
    output.add_argument("--animate", action="store_true",
                        help="also write the walk as NAME.gif, beside the output")
    return parser


# fmt: on


def parse_args(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    modes = [mode.replace("_", "-") for mode in MODES if getattr(args, mode)]
    if len(modes) > 1:
        parser.error(f"give one of --{' and --'.join(modes)}")
    needs = {"mask": "inpaint", "resamplings": "inpaint", "strength": "start_from"}
    for flag, mode in needs.items():
        if flag in args.given and not getattr(args, mode):
            parser.error(f"--{flag} is for --{mode.replace('_', '-')}")
    unused = args.given & {"num_images", "batch_size", "seed", "show_intermediate", "animate"}
    if args.invert and unused:
        parser.error(f"--invert has no use for --{min(unused).replace('_', '-')}")
    for flag in ("churn_min", "churn_max", "churn_noise"):
        if flag in args.given and not args.churn:
            parser.error(f"--{flag.replace('_', '-')} is for --churn")
    for flag in ("guidance_interval", "guidance_rescale"):
        if flag in args.given and args.guidance_scale == 1:
            parser.error(f"--{flag.replace('_', '-')} is for a --guidance-scale other than 1")
    if args.inpaint and not args.mask:
        parser.error("--inpaint needs a --mask: white where the image is to be kept")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import sys
import time
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import editing
from data import item_shape, kind_of, load_dataset, to_unit
from diffusion import GaussianDiffusion, Level
from folders import read_image, require_same_size
from pictures import image_format, pictures_of, save_animation, save_picture, square
from samplers import AUTO, SAMPLERS, options_of
from training.checkpoint import load_checkpoint, restore
from utils import (
    NoisePerImage,
    autocast,
    check_writable,
    choose_device,
    choose_precision,
    describe,
    save_whole,
)

MOMENTS = 10  # pictures of the walk that --show-intermediate writes
FRAMES = 60  # at most, of an animation
STEPS = {"ddpm": 100, "dpmpp_2m_sde": 50, "ddim": 50, "euler": 50}  # the other samplers: 20
SPACING = {"heun": "karras"}  # the others: trailing. Heun fails in the long first steps of that one
COUNT = {"images": 64, "points": 2000}  # drawn, and computed at once, where nothing is asked for


class Walk:
    """What sample.py draws: how many items, the levels they walk over, and how the walk begins."""

    def __init__(self, args, diffusion: GaussianDiffusion, config: dict, device: torch.device):
        data = config["data"]
        self.args, self.device = args, device
        self.shape = item_shape(data)
        self.pictures = pictures_of(self.shape)
        self.kind = kind_of(self.shape)
        if self.kind == "points" and (modes := [mode for mode in MODES if getattr(args, mode)]):
            raise ValueError(f"--{modes[0].replace('_', '-')} is for images; these are points")
        self.name, options = choose_sampler(args, diffusion)
        self.sampler = partial(SAMPLERS[self.name], **options)
        self.levels = choose_levels(args, diffusion, self.name)
        self.y, self.columns, self.count = choose_classes(args, config)
        if args.start_from:
            self.image = self.read(args.start_from)
            self.levels = editing.partway(self.levels, args.strength)
            self.name = f"{args.start_from} with {self.name}"
        elif args.inpaint:
            require_same_size(Path(args.inpaint), Path(args.mask))
            known, mask = self.read(args.inpaint), (self.read(args.mask)[:, :1] + 1) / 2
            self.name = f"repaint of {args.inpaint}"
            self.sampler = partial(
                editing.repaint,
                known=known,
                mask=mask,
                resamplings=args.resamplings,
                **options,
            )
        elif args.invert:
            self.image, self.count, self.columns = self.read(args.invert), 1, 2

    def read(self, path: str) -> Tensor:
        """An image file as x_0 (1, C, H, W), cropped and resized to what the network takes."""
        return to_unit(read_image(Path(path), self.shape[-1], self.shape[0])[None]).to(self.device)

    def start(self, batch: range, noise_like: NoisePerImage) -> Tensor:
        """x at the first level, for the images of those numbers."""
        first = self.levels[0]
        if self.args.interpolate:
            a, b = NoisePerImage(self.args.seed, range(2)).draw(self.shape)
            shares = [i / max(1, self.count - 1) for i in batch]
            noise = torch.stack([editing.slerp(a, b, share) for share in shares])
        else:
            noise = noise_like.draw(self.shape)
        noise = noise.to(self.device)
        if self.args.start_from:
            return editing.noised(self.image, first, noise)
        return first.scale * noise


def sample(checkpoint: str | Path, **flags) -> np.ndarray:
    """Draw as `python sample.py` does, with its flags as keyword arguments, for use in notebooks.

        sample("outputs/model_final.pt", num_images=16, steps=20)

    Returns what --output would hold as an .npz: uint8 images (N, H, W, C), or points (N, 2).
    Nothing is written. Raises ValueError for what the command line would refuse.
    """
    unused = flags.keys() & {"output", "show_intermediate", "animate", "invert"}
    if unused:
        raise ValueError(f"sample() writes nothing: {min(unused)} is for the command line")
    args = parse_keywords(make_parser(), parse_args, {"checkpoint": checkpoint, **flags})
    job = Job(args)
    return job.walk.pictures.array(draw(args, job).items)


class Job:
    """A checkpoint that is ready to draw, and how."""

    def __init__(self, args):
        self.device = choose_device(args.device)
        self.precision = choose_precision(args.precision, self.device)
        checkpoint = load_checkpoint(args.checkpoint)
        self.config, self.step = checkpoint["config"], checkpoint["step"]
        model, diffusion = restore(checkpoint, self.device, raw=args.raw)
        self.walk = Walk(args, diffusion, self.config, self.device)
        self.denoiser = partial(diffusion.denoiser, model, **guidance(args))


class Drawn(NamedTuple):
    items: Tensor  # uint8 images (N, C, H, W) or points (N, 2)
    frames: dict[int, tuple[Tensor, Tensor]]  # by steps done, of the first batch: x_t, x_0 in it
    calls: int  # of the network
    seconds: float


def main(args) -> int:
    output = Path(args.output)
    if output.suffix != ".npz":
        image_format(output)  # an ending that cannot be written is refused now, not after the work
    check_writable(output.parent)
    job = Job(args)
    walk, steps = job.walk, len(job.walk.levels) - 1
    dataset = job.config["data"]["dataset"]
    weights = "as trained" if args.raw else "moving average"
    print(f"{args.checkpoint}: {dataset}, step {job.step:,}, weights: {weights}")
    print(f"{walk.name}, {steps} steps, {describe(job.device, job.precision)}", flush=True)

    if args.invert:
        images = walk.pictures.finished(invert(job))
        save(output, images, walk)
        print(f"the image, and what came back: {output}")
        return 0

    items, frames, calls, seconds = draw(args, job)
    real = load_dataset(dataset, split="test").items if walk.kind == "points" else None
    save(output, items, walk, real)
    print(f"{len(items)} {walk.kind} in {seconds:.1f} s, {calls} network calls: {output}")
    if args.show_intermediate:
        chosen = {done: frames[done] for done in moments(steps, MOMENTS)}
        folder = write_walk(output.parent / "intermediate", chosen, walk)
        print(f"the walk: {folder}")
    if args.animate:
        chosen = [frames[i][0] for i in sorted(moments(steps, FRAMES))]
        grids = [walk.pictures.frame(items, walk.columns) for items in chosen]
        save_animation(output.with_suffix(".gif"), grids)
        print(f"the animation: {output.with_suffix('.gif')}")
    return 0


def draw(args, job: Job) -> Drawn:
    """Walk from noise to data, batch by batch."""
    walk, device, steps = job.walk, job.device, len(job.walk.levels) - 1
    kept = moments(steps, MOMENTS if args.show_intermediate else 0)
    kept |= moments(steps, FRAMES if args.animate else 0)
    frames, drawn, calls, start = {}, [], 0, time.monotonic()
    finished = walk.pictures.finished
    at_once = args.batch_size or COUNT[walk.kind]
    bar = tqdm(total=walk.count * steps, unit="step", disable=not sys.stderr.isatty())
    for first in range(0, walk.count, at_once):
        batch = range(first, min(first + at_once, walk.count))
        noise_like = NoisePerImage(args.seed, batch)
        y = None if walk.y is None else walk.y[batch.start : batch.stop].to(device)
        denoise = job.denoiser(y)
        x_t = walk.start(batch, noise_like)
        with autocast(device, job.precision):
            for done, x in enumerate(walk.sampler(denoise, x_t, walk.levels, noise_like)):
                if first == 0 and done in kept:
                    seen = x_t / walk.levels[done].scale  # edm's would be far too bright
                    frames[done] = finished(seen), finished(denoise.seen)
                x_t = x
                bar.update(len(batch))
        if first == 0 and kept:
            frames[steps] = finished(x_t), finished(x_t)
        drawn.append(finished(x_t))
        calls += denoise.calls
    bar.close()
    return Drawn(torch.cat(drawn), frames, calls, time.monotonic() - start)


def invert(job: Job) -> Tensor:
    """The image and its reconstruction from its own noise (2, C, H, W); prints how near it is."""
    walk, device = job.walk, job.device
    y = None if walk.y is None else walk.y[:1].to(device)
    denoise = job.denoiser(y)
    with autocast(device, job.precision):
        *_, noise = editing.invert(denoise, walk.image, walk.levels)
        *_, x = walk.sampler(denoise, noise, walk.levels, NoisePerImage(0, range(1)))
    error = (x.clamp(-1, 1) - walk.image).square().mean().sqrt().item() * 127.5
    print(
        f"image -> noise -> image in {denoise.calls} network calls: root-mean-square error "
        f"{error:.1f} of 255 grey levels; the noise's standard deviation is "
        f"{noise.std() / walk.levels[0].scale:.2f}"
    )
    return torch.cat([walk.image, x])


def choose_sampler(args, diffusion: GaussianDiffusion) -> tuple[str, dict]:
    """The sampler's name and its options; raises ValueError for what does not fit together."""
    name = args.sampler
    if name == "auto":
        name = "ddim" if args.invert else "dpmpp_2m" if args.interpolate else AUTO
    if args.inpaint and args.sampler not in ("auto", "ddpm"):
        raise ValueError(f"--inpaint walks by ddpm, not by --sampler {args.sampler}")
    name = "ddpm" if args.inpaint else name
    every = {option for sampler in SAMPLERS.values() for option in options_of(sampler)}
    given = {option: getattr(args, option) for option in every & args.given}
    if other := given.keys() - options_of(SAMPLERS[name]).keys():
        flag = min(other).replace("_", "-")
        raise ValueError(f"--{flag} is not an option of the sampler {name}")
    if given.get("variance") == "learned" and not diffusion.learn_sigma:
        raise ValueError("--variance learned: the checkpoint was trained without --learn-sigma")
    if name == "ddpm" and diffusion.learn_sigma:
        given.setdefault("variance", "learned")
    if args.interpolate or args.invert:
        mode = "--interpolate" if args.interpolate else "--invert"
        if name in ("ddpm", "dpmpp_2m_sde"):
            raise ValueError(f"{mode} needs a sampler without fresh noise, not {name}; try ddim")
        if noisy := [option for option in ("eta", "churn", "mu") if given.get(option)]:
            raise ValueError(f"{mode} needs a walk without fresh noise: leave out --{noisy[0]}")
    if args.invert and name != "ddim":
        raise ValueError(f"--invert walks by ddim, not by --sampler {name}")
    return name, given


def choose_levels(args, diffusion: GaussianDiffusion, sampler: str) -> list[Level]:
    """The levels of the walk; raises ValueError for flags that do not fit the checkpoint."""
    timesteps = diffusion.timesteps
    if args.timesteps not in (None, timesteps):
        raise ValueError(
            f"--timesteps {args.timesteps}: the checkpoint was trained with {timesteps}"
        )
    if args.steps is not None and args.steps > timesteps:
        raise ValueError(f"--steps {args.steps}: the checkpoint has only {timesteps} timesteps")
    steps = args.steps or min(STEPS.get(sampler, 20), timesteps)
    return diffusion.levels(steps, args.spacing or SPACING.get(sampler, "trailing"))


def choose_classes(args, config: dict) -> tuple[Tensor | None, int, int]:
    """Labels (N,), or None, the columns of the grid, and N; raises ValueError for no such class."""
    count, num_classes = args.num_images, config["model"].get("num_classes")
    if count is None:
        count = 10 if args.interpolate else COUNT[kind_of(item_shape(config["data"]))]
    columns = count if args.interpolate else square(count)
    if num_classes is None:
        for flag in ("class_id", "guidance_scale", "guidance_interval", "guidance_rescale"):
            if flag in args.given:
                raise ValueError(
                    f"--{flag.replace('_', '-')}: this checkpoint knows no classes; "
                    "train.py --class-conditional makes one that does"
                )
        return None, columns, count
    if args.guidance_scale != 1 and config["train"]["label_dropout"] == 0:
        raise ValueError(
            "--guidance-scale: this checkpoint was trained with --label-dropout 0, and has not "
            "learned to do without a class"
        )
    given_images = args.start_from or args.inpaint or args.invert or args.interpolate
    if args.class_id is None:
        if given_images and (args.guidance_scale != 1 or config["train"]["label_dropout"] == 0):
            raise ValueError("give the --class-id of the images")
        if given_images:  # of whatever class: the null label
            return torch.full((count,), num_classes), columns, count
        return torch.arange(count) % num_classes, columns, count
    ids = list(range(num_classes)) if args.class_id == "all" else args.class_id
    if wrong := [i for i in ids if i >= num_classes]:
        names = ", ".join(f"{i} {name}" for i, name in enumerate(config["data"]["classes"]))
        raise ValueError(f"--class-id {wrong[0]}: there are only the classes {names}")
    if len(ids) == 1:
        return torch.full((count,), ids[0]), columns, count
    if args.interpolate or args.invert:
        raise ValueError("--class-id: give one class, as all of these images share it")
    if args.num_images is None:
        count = COUNT[kind_of(item_shape(config["data"]))] // 8 * len(ids)
    if count % len(ids):
        raise ValueError(f"--num-images {count} cannot be shared evenly by {len(ids)} classes")
    columns = count // len(ids)
    return torch.tensor(ids).repeat_interleave(columns), columns, count


def guidance(args) -> dict:
    """The denoiser's options."""
    low, high = args.guidance_interval or (0.0, inf)
    if low > high:
        raise ValueError(f"--guidance-interval: {low} is above {high}")
    return {
        "guidance_scale": args.guidance_scale,
        "guidance_interval": (low, high),
        "guidance_rescale": args.guidance_rescale,
    }


def moments(steps: int, count: int) -> set[int]:
    """At most `count` numbers of steps done, from 0 to all, evenly spread."""
    return {round(i * steps / (count - 1)) for i in range(count)}


def save(output: Path, drawn: Tensor, walk: Walk, real: Tensor | None = None) -> None:
    """Items as a picture, beside real ones if there are any, or as an .npz."""
    if output.suffix == ".npz":
        save_npz(output, walk.pictures.array(drawn))
    else:
        save_picture(output, walk.pictures.grid(drawn, walk.columns, real))


def write_walk(folder: Path, frames: dict[int, tuple[Tensor, Tensor]], walk: Walk) -> Path:
    """A picture of each moment, named by its timestep (0000 for clean), and all as a filmstrip.

    The same for x_0 as the network saw it then.
    """
    for old in [*folder.glob("step_*.png"), *folder.glob("x_0_*.png")]:
        old.unlink()
    for which, (name, strip) in enumerate([("step", "filmstrip"), ("x_0", "filmstrip_x_0")]):
        moments = {done: pair[which] for done, pair in sorted(frames.items())}
        for done, items in moments.items():
            t = walk.levels[done].t + 1
            picture = walk.pictures.frame(items, walk.columns)
            save_picture(folder / f"{name}_{t:04d}.png", picture)
        save_picture(folder / f"{strip}.png", walk.pictures.filmstrip(list(moments.values())))
    return folder


def save_npz(path: Path, array: np.ndarray) -> None:
    """One array as arr_0, where FID tools look for it."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:  # given a name, NumPy would add an ending to it
            np.savez(file, array)

    save_whole(path, write)


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
