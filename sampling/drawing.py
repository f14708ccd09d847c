"""Walking from noise to data with a trained model: what is asked for, and batch by batch.

The processes of a job share the batches. These are the same for any number of processes, as the
rounding of a network's output may depend on how many images it is given at once.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoints.checkpoint import load_checkpoint, restore
from dataset.image_files import read_image, require_same_size
from dataset.items import classes_like, item_shape, kind_of, to_unit
from diffusion import GaussianDiffusion
from distributed import gather, is_main, own_device, rank, world_size
from samplers import AUTO, SAMPLERS, options_of
from sampling import editing
from utils import NoisePerImage, autocast, choose_device, choose_precision
from visuals.pictures import pictures_of, square

MOMENTS = 10  # pictures of the walk that --show-intermediate writes


FRAMES = 60  # at most, of an animation


STEPS = {"ddpm": 100, "dpmpp_2m_sde": 50, "ddim": 50, "euler": 50}  # the other samplers: 20


SPACING = {"heun": "karras"}  # the others: trailing. Heun fails in the long first steps of that one


COUNT = {"images": 64, "points": 2000}  # drawn, and computed at once, where nothing is asked for


PIXELS = 64 * 64 * 64  # of the images that are computed at once then


# Flags that decide what is drawn as they are; others do as `Walk.chosen` has them.
DECISIVE = ("raw", "seed", "class_id", "guidance_scale", "guidance_interval", "guidance_rescale")


DECISIVE += ("strength", "resamplings", "interpolate")


FILES = ("checkpoint", "start_from", "inpaint", "mask")  # flags whose files' contents decide


# The flags of a walk from noise, for scripts that know no other, and that look at its end alone.
PLAIN = {"mode": None, "start_from": None, "inpaint": None, "invert": None, "interpolate": False}


PLAIN |= {"show_intermediate": False, "animate": False}


class Walk:
    """What sample.py draws: how many items, the levels they walk over, and how the walk begins."""

    def __init__(self, args, diffusion: GaussianDiffusion, config: dict, device: torch.device):
        data = config["data"]
        self.args, self.device = args, device
        self.shape = item_shape(data)
        self.pictures = pictures_of(self.shape)
        self.kind = kind_of(self.shape)
        self.nothing = self.pictures.finished(torch.empty(0, *self.shape))  # no items, as if drawn
        if self.kind == "points" and args.mode:
            raise ValueError(f"--{args.mode} is for images; these are points")
        self.name, options = choose_sampler(args, diffusion)
        self.sampler = partial(SAMPLERS[self.name], **options)
        steps, spacing = choose_steps(args, diffusion.timesteps, self.name)
        self.levels = diffusion.levels(steps, spacing)
        self.y, self.columns, self.count = choose_classes(args, config)
        self.chosen = {"sampler": self.name, **options_of(SAMPLERS[self.name]), **options}
        self.chosen |= {"steps": steps, "spacing": spacing, "num_images": self.count}
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

    def ask_like(self, labels: Tensor) -> None:
        """Ask for classes, unless the flags name some, in the shares that labels (N,) have."""
        if self.y is not None and self.args.class_id is None:
            self.y = classes_like(labels, self.count)

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


class Job:
    """A checkpoint that is ready to draw, and how."""

    def __init__(self, args):
        self.args = args
        self.device = own_device(choose_device(args.device))
        self.precision = choose_precision(args.precision, self.device)
        checkpoint = load_checkpoint(args.checkpoint)
        self.config, self.step = checkpoint["config"], checkpoint["step"]
        model, diffusion = restore(checkpoint, self.device, raw=args.raw)
        self.walk = Walk(args, diffusion, self.config, self.device)
        self.denoiser = partial(diffusion.denoiser, model, **guidance(args))
        fitting = max(1, PIXELS // self.walk.shape[-1] ** 2)
        at_once = args.batch_size or min(COUNT[self.walk.kind], fitting)
        self.batches = batches(self.walk.count, at_once)
        steps = len(self.walk.levels) - 1
        self.kept = moments(steps, MOMENTS if args.show_intermediate else 0)
        self.kept |= moments(steps, FRAMES if args.animate else 0)

    def decisive(self) -> dict[str, object]:
        """By flag, all that decides the bits of what is drawn; of files, their contents."""
        paths = {flag: getattr(self.args, flag) for flag in FILES}
        flags = {
            **{flag: getattr(self.args, flag) for flag in DECISIVE},
            **{flag: path and digest(Path(path)) for flag, path in paths.items()},
            **self.walk.chosen,
            "batch_size": len(self.batches[0]),
            "device": self.device.type,
            "precision": self.precision,
        }
        named = {f"--{flag.replace('_', '-')}": value for flag, value in flags.items()}
        return {**named, "PyTorch": torch.__version__}


class Drawn(NamedTuple):
    items: Tensor  # uint8 images (N, C, H, W) or points (N, 2)
    frames: dict[int, tuple[Tensor, Tensor]]  # by steps done, of the first batch: x_t, x_0 in it
    calls: int  # of the network


def draw(job: Job) -> Drawn:
    """Draw everything: each process its share, and then each gets the items of all.

    The frames are the main process's alone, which draws the first batch.
    """
    numbers = share(range(len(job.batches)))
    drawn = [batch for _, batch in draw_batches(job, numbers)]
    items = torch.cat([job.walk.nothing, *(batch.items for batch in drawn)]).to(job.device)
    indices = [i for number in numbers for i in job.batches[number]]
    order = gather(torch.tensor(indices, dtype=torch.int64, device=job.device)).argsort()
    calls = sum_of_all(sum(batch.calls for batch in drawn), job.device)
    return Drawn(gather(items)[order].cpu(), drawn[0].frames if drawn else {}, calls)


def draw_batches(job: Job, numbers: Sequence[int]) -> Iterator[tuple[int, Drawn]]:
    """Walk from noise to data with one batch after the other; yields each with its number."""
    total = sum(len(job.batches[number]) for number in numbers) * (len(job.walk.levels) - 1)
    whose = f"the first of {world_size()} processes" if world_size() > 1 else None
    hidden = not (is_main() and sys.stderr.isatty())
    with tqdm(total=total, unit="step", desc=whose, disable=hidden) as bar:
        for number in numbers:
            yield number, draw_batch(job, job.batches[number], bar)


def draw_batch(job: Job, batch: range, bar: tqdm) -> Drawn:
    """Walk from noise to data with the images of those numbers."""
    walk, device, finished = job.walk, job.device, job.walk.pictures.finished
    noise_like = NoisePerImage(job.args.seed, batch)
    y = None if walk.y is None else walk.y[batch.start : batch.stop].to(device)
    denoise = job.denoiser(y)
    x_t = walk.start(batch, noise_like)
    kept, frames = job.kept if batch.start == 0 else set(), {}
    with autocast(device, job.precision):
        for done, x in enumerate(walk.sampler(denoise, x_t, walk.levels, noise_like)):
            if done in kept:
                seen = x_t / walk.levels[done].scale  # edm's would be far too bright
                frames[done] = finished(seen), finished(denoise.seen)
            x_t = x
            bar.update(len(batch))
    if kept:
        frames[len(walk.levels) - 1] = finished(x_t), finished(x_t)
    return Drawn(finished(x_t), frames, denoise.calls)


def batches(count: int, size: int) -> list[range]:
    """The numbers of `count` images in batches of that size; the last may be smaller."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def share(numbers: Sequence[int]) -> Sequence[int]:
    """The numbers, of batches, that are this process's: all end at about the same time.

    The first is the main process's, and the last, which may be a smaller one, goes to one of those
    with the most.
    """
    return numbers[rank() :: world_size()]


def sum_of_all(number: int, device: torch.device) -> int:
    """The sum of the numbers of all processes."""
    return int(gather(torch.tensor([number], device=device)).sum())


def invert(job: Job) -> tuple[Tensor, str]:
    """The image and its reconstruction from its own noise (2, C, H, W), and how near it comes."""
    walk, device = job.walk, job.device
    y = None if walk.y is None else walk.y[:1].to(device)
    denoise = job.denoiser(y)
    with autocast(device, job.precision):
        *_, noise = editing.invert(denoise, walk.image, walk.levels)
        *_, x = walk.sampler(denoise, noise, walk.levels, NoisePerImage(0, range(1)))
    error = (x.clamp(-1, 1) - walk.image).square().mean().sqrt().item() * 127.5
    how_near = (
        f"image -> noise -> image in {denoise.calls} network calls: root-mean-square error "
        f"{error:.1f} of 255 grey levels; the noise's standard deviation is "
        f"{noise.std() / walk.levels[0].scale:.2f}"
    )
    return torch.cat([walk.image, x]), how_near


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


def choose_steps(args, timesteps: int, sampler: str) -> tuple[int, str]:
    """Steps and spacing of a walk; raises ValueError for flags that do not fit the checkpoint."""
    if args.timesteps not in (None, timesteps):
        raise ValueError(
            f"--timesteps {args.timesteps}: the checkpoint was trained with {timesteps}"
        )
    if args.steps is not None and args.steps > timesteps:
        raise ValueError(f"--steps {args.steps}: the checkpoint has only {timesteps} timesteps")
    steps = args.steps or min(STEPS.get(sampler, 20), timesteps)
    return steps, args.spacing or SPACING.get(sampler, "trailing")


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
    if args.class_id is None:
        if args.mode and (args.guidance_scale != 1 or config["train"]["label_dropout"] == 0):
            raise ValueError("give the --class-id of the images")
        if args.mode:  # of whatever class: the null label
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


def digest(path: Path) -> str:
    """What tells a file's content from any other."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
