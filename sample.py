"""Draw images, or points, from a trained model."""

from cli.parser import (
    Parser,
    add_checkpoint_flags,
    add_runtime_flags,
    add_walk_flags,
    check_walk_flags,
    leave,
    number,
    parse_keywords,
    run,
)

MODES = ("start_from", "inpaint", "interpolate", "invert")  # walks that begin elsewhere


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
    what.add_argument("--num-images", "--num-samples", type=number(int, 1, 10**6),
                      metavar="N",
                      help="how many (default: 64, with several classes 8 of each; 2000 points)")

    add_walk_flags(parser)

    edit = parser.add_argument_group("from given images")
    edit.add_argument("--start-from", metavar="IMAGE",
                      help="begin with this image, noised: image to image")
    edit.add_argument("--strength", type=number(float, 0.001, 1), default=0.6, metavar="X",
                      help="--start-from: share of the walk that is walked")
    edit.add_argument("--inpaint", metavar="IMAGE",
                      help="keep this image where --mask is white, and paint the rest")
    edit.add_argument("--mask", metavar="IMAGE", help="white: to keep; black: to paint")
    edit.add_argument("--resamplings", type=number(int, 1, 1000), default=10, metavar="N",
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
    args.mode = modes[0] if modes else None
    needs = {"mask": "inpaint", "resamplings": "inpaint", "strength": "start_from"}
    for flag, mode in needs.items():
        if flag in args.given and not getattr(args, mode):
            parser.error(f"--{flag} is for --{mode.replace('_', '-')}")
    unused = args.given & {"num_images", "batch_size", "seed", "show_intermediate", "animate"}
    if args.invert and unused:
        parser.error(f"--invert has no use for --{min(unused).replace('_', '-')}")
    check_walk_flags(parser, args)
    if args.inpaint and not args.mask:
        parser.error("--inpaint needs a --mask: white where the image is to be kept")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from dataset.registry import load_dataset
from sampling.drawing import (
    FRAMES,
    MOMENTS,
    Drawn,
    Job,
    Walk,
    draw,
    draw_batches,
    invert,
    moments,
    share,
    sum_of_all,
)
from sampling.parts import DAMAGED, WHOLE, Parts, save_npz
from visuals.pictures import image_format, save_animation, save_picture
from distributed import barrier, is_main, largest, process_group, say, world_size
from utils import check_writable, describe


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
    return job.walk.pictures.array(draw(job).items)


def main(args) -> int:
    output = Path(args.output)
    if output.suffix != ".npz":
        image_format(output)  # an ending that cannot be written is refused now, not after the work
    check_writable(output.parent)
    job = Job(args)
    with process_group(job.device):
        say(introduction(job))
        if args.invert:
            write_inversion(job, output)
        elif output.suffix == ".npz" and len(job.batches) > 1:
            return write_in_parts(job, output)
        else:
            write(job, output)
    return 0


def introduction(job: Job) -> str:
    """What draws, and how."""
    args, walk = job.args, job.walk
    weights = "as trained" if args.raw else "moving average"
    processes = f", {world_size()} processes" if world_size() > 1 else ""
    return (
        f"{args.checkpoint}: {job.config['data']['dataset']}, step {job.step:,}, "
        f"weights: {weights}\n{walk.name}, {len(walk.levels) - 1} steps, "
        f"{describe(job.device, job.precision)}{processes}"
    )


def write_inversion(job: Job, output: Path) -> None:
    """Write an image and its reconstruction; there is nothing to share in that."""
    if is_main():
        images, how_near = invert(job)
        say(how_near)
        save(output, job.walk.pictures.finished(images), job.walk)
        say(f"the image, and what came back: {output}")


def write(job: Job, output: Path) -> None:
    """Draw everything, and then write it."""
    start = time.monotonic()
    drawn = draw(job)
    seconds = time.monotonic() - start
    if is_main():
        points = job.walk.kind == "points"
        real = load_dataset(job.config["data"]["dataset"], split="test").items if points else None
        save(output, drawn.items, job.walk, real)
        say(finished(job, len(drawn.items), seconds, drawn.calls))
        write_frames(job, drawn)


def write_in_parts(job: Job, output: Path) -> int:
    """Draw and write an .npz batch by batch, so that the same command, with any number of
    processes, can go on after whatever ended it."""
    parts = Parts(output, job.decisive())
    try:
        with interrupts():
            draw_parts(job, parts)
    except KeyboardInterrupt as interruption:
        if is_main():
            print(f"sample.py: interrupted{what_is_kept(job, parts)}", file=sys.stderr)
        return 128 + interruption.args[0]
    return 0


def draw_parts(job: Job, parts: Parts) -> None:
    """Draw the batches that are not there yet, and make the .npz of all of them."""
    walk, start, calls, first = job.walk, time.monotonic(), 0, None
    missing = missing_parts(job, parts)
    for n, batch in draw_batches(job, share(missing)):
        parts.write(n, walk.pictures.array(batch.items))
        calls += batch.calls
        first = batch if n == 0 else first
    calls = sum_of_all(calls, job.device)  # which waits for every process
    seconds = time.monotonic() - start
    if is_main():
        none = walk.pictures.array(walk.nothing)
        parts.join(len(job.batches), (walk.count, *none.shape[1:]), none.dtype)
        say(finished(job, sum(len(job.batches[n]) for n in missing), seconds, calls))
        if first is not None:
            write_frames(job, first)
        parts.delete()
    barrier()  # nobody leaves before all is written


def missing_parts(job: Job, parts: Parts) -> list[int]:
    """The numbers of the batches to draw, the same on every process."""
    parts.check()
    if is_main():
        parts.begin()
    barrier()  # before anybody looks at what is there
    every = range(len(job.batches))
    mine = share(every)
    states = largest([parts.state(n) if n in mine else WHOLE for n in every], job.device)
    missing = [n for n in every if states[n] != WHOLE]
    there = job.walk.count - sum(len(job.batches[n]) for n in missing)
    if there:
        say(f"going on: {there:,} of {job.walk.count:,} {job.walk.kind} are there")
    if damaged := states.count(DAMAGED):
        say(f"parts that are damaged, and drawn again: {damaged}")
    if job.kept and 0 not in missing:  # its walk is asked for
        missing = [0, *missing]
    return missing


def what_is_kept(job: Job, parts: Parts) -> str:
    """What an interrupted job says of its parts."""
    if not parts.record.exists():
        return ""
    there = sum(len(batch) for n, batch in enumerate(job.batches) if parts.path(n).exists())
    return (
        f"; {there:,} of {job.walk.count:,} {job.walk.kind} are in {parts.folder}: the same "
        "command goes on"
    )


@contextmanager
def interrupts() -> Iterator[None]:
    """While open, Ctrl-C and SIGTERM raise a KeyboardInterrupt whose argument is the signal.

    That is once, as the process then ends: a second signal is not to take its last words.
    """
    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:  # none has come
            for number, handler in before.items():
                signal.signal(number, handler)


def interrupt(number: int, frame) -> None:
    """A signal's handler, for the first of them."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def finished(job: Job, count: int, seconds: float, calls: int) -> str:
    """The last line: what was drawn, in what time, and where it is."""
    whole = f"; all {job.walk.count:,}" if count < job.walk.count else ""
    return (
        f"{count} {job.walk.kind} in {seconds:.1f} s, {calls} network calls{whole}: "
        f"{job.args.output}"
    )


def write_frames(job: Job, drawn: Drawn) -> None:
    """Write the walk of the first batch, as far as the flags ask for it."""
    output, walk, steps = Path(job.args.output), job.walk, len(job.walk.levels) - 1
    if job.args.show_intermediate:
        chosen = {done: drawn.frames[done] for done in moments(steps, MOMENTS)}
        folder = write_walk(output.parent / "intermediate", chosen, walk)
        say(f"the walk: {folder}")
    if job.args.animate:
        chosen = [drawn.frames[i][0] for i in sorted(moments(steps, FRAMES))]
        grids = [walk.pictures.frame(items, walk.columns) for items in chosen]
        save_animation(output.with_suffix(".gif"), grids)
        say(f"the animation: {output.with_suffix('.gif')}")


def save(output: Path, drawn: Tensor, walk: Walk, real: Tensor | None = None) -> None:
    """Items as a picture, beside real ones if there are any, or as an .npz."""
    if output.suffix == ".npz":
        array = walk.pictures.array(drawn)
        save_npz(output, array.shape, array.dtype, [array.tobytes()])
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


if __name__ == "__main__":
    leave(run(main, ARGS))
