"""Sample images or points from a trained model.

python sample.py --checkpoint outputs/model_final.pt
python sample.py --checkpoint outputs/model_final.pt --sampler ddim --steps 20
"""

from cli.process import leave, run
from cli.sampling import SAMPLE, SamplingRequest
from cli.streams import unfailing_output

if __name__ == "__main__":
    REQUEST = SAMPLE.parse()  # before the imports below, which take seconds

import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from checkpoints.checkpoint import load_checkpoint
from checkpoints.runs import find_checkpoint
from dataset.image_files import printable
from dataset.items import item_shape, kind_of
from cli.activity import activity
from dataset.own_files import is_own_picture, require_own
from dataset.registry import load_dataset
from distributed import barrier, is_main, largest, process_group, say, world_size
from sampling.draw import (
    FRAMES,
    SNAPSHOTS,
    SamplingJob,
    Samples,
    draw,
    draw_batches,
    evenly_spread,
    reconstruct,
    own_batches,
    sum_of_all,
)
from sampling.plan import SamplingPlan
from sampling.parts import DAMAGED, WHOLE, Parts, save_npz
from sampling.threads import choose_threads
from training.stop import REQUESTS, handle_requests
from utils import check_output, describe, kept_threads, torch_defaults
from visuals.pictures import image_format, require_size, save_animation, save_picture

STRIPS = {"step": "filmstrip", "x_0": "filmstrip_x_0"}  # of --show-intermediate: x_t and x_0
STRIP_NAMES = [f"{name}.png" for name in STRIPS.values()]


@unfailing_output()
@torch_defaults()
def sample(checkpoint: str | Path, model: nn.Module | None = None, **flags) -> np.ndarray:
    """Sample as `python sample.py` does, with its flags as keyword arguments, for use in notebooks.

        sample("outputs/model_final.pt", num_images=16, steps=20)

    Args:
        checkpoint: a file written by train.py, `training.fit.fit` or export.py, or a run's folder.
        model: the network, if it is not one of this project's.
        flags: of sample.py, except those about its output.

    Returns the samples: uint8 images (N, H, W, C), or points (N, 2). Nothing is written. Raises
    ValueError for flags that the command line would reject.
    """
    unused = flags.keys() & {
        "output",
        "show_intermediate",
        "animate",
        "invert",
        "list_classes",
        "pairs",
    }
    if unused:
        raise ValueError(f"sample() writes nothing: {min(unused)} is for the command line")
    request = SAMPLE.keywords(checkpoint=checkpoint, **flags)
    request.model = model
    job = SamplingJob(request)
    choose_threads(job)
    return job.plan.pictures.array(draw(job).items)


@kept_threads()
def main(request: SamplingRequest) -> int:
    request.checkpoint = str(find_checkpoint(request.checkpoint, say))
    if request.list_classes:
        return list_classes(request)
    output = Path(request.output)
    for path in [output, output.with_suffix(".gif")] if request.animate else [output]:
        check_output(path, *request.read())
    require_ending(output)
    if request.pairs and not is_array(output):
        raise ValueError("--pairs needs an --output that ends with .npz")
    with activity(f"loading {request.checkpoint}"):
        job = SamplingJob(request)
    require_sizes(job, output)
    require_own_files(job, output)
    with process_group(job.device):
        threads = choose_threads(job)
        say("\n".join(filter(None, [introduction(job), threads])))
        if request.invert:
            write_inversion(job, output)
        elif is_array(output) and len(job.plan.batches) > 1:
            return write_in_parts(job, output)
        else:
            write(job, output)
    return 0


def is_array(output: Path) -> bool:
    """Is --output an .npz array of all samples, rather than a picture?"""
    return output.suffix.lower() == ".npz"


def require_ending(output: Path) -> None:
    """Raise ValueError, before sampling, if --output has an ending that cannot be written."""
    if not is_array(output):
        try:
            image_format(output)
        except ValueError as error:
            raise ValueError(f"{error}, or .npz for an array of all samples") from None


def require_sizes(job: SamplingJob, output: Path) -> None:
    """Raise ValueError for pictures that their format cannot hold, before they are drawn."""
    plan = job.plan
    size = partial(plan.pictures.size, plan.item, columns=plan.columns)
    if not is_array(output):
        require_size(output, *size(count=plan.count))
    if job.request.animate:
        require_size(output.with_suffix(".gif"), *size(count=len(plan.batches[0])))


def require_own_files(job: SamplingJob, output: Path) -> None:
    """Raise ValueError if a file that no flag names would replace another program's file.

    These are the default of --output, and the animation and the trajectory, with names that are
    derived from it.
    """
    paths, folder = [], trajectory(output)
    if "output" not in job.request.given:
        paths.append(output)
    if job.request.animate:
        paths.append(output.with_suffix(".gif"))
    if job.request.show_intermediate and not is_old_trajectory(folder):
        paths += [folder / name for name in trajectory_names(job.plan)]
    for path in paths:
        require_own(path, is_own_picture, "another --output")


def trajectory(output: Path) -> Path:
    """The folder of --show-intermediate."""
    return output.parent / "intermediate"


def is_old_trajectory(folder: Path) -> bool:
    """Does a folder hold only pictures of an older version's --show-intermediate?

    Those carry no mark of this project and are recognised by their names.
    """
    paths = list(folder.iterdir()) if folder.is_dir() else []
    ours = all(is_trajectory_name(path.name) and not is_own_picture(path) for path in paths)
    return ours and set(STRIP_NAMES) <= {path.name for path in paths}


def is_trajectory_name(name: str) -> bool:
    return name in STRIP_NAMES or re.fullmatch(r"(step|x_0)_[0-9]{4,}\.png", name) is not None


def trajectory_names(plan: SamplingPlan) -> list[str]:
    """The names of the pictures of --show-intermediate."""
    steps = evenly_spread(len(plan.levels) - 1, SNAPSHOTS)
    names = [f"{name}_{plan.levels[done].t + 1:04d}" for name in STRIPS for done in steps]
    return [*(f"{name}.png" for name in names), *STRIP_NAMES]


def list_classes(request: SamplingRequest) -> int:
    """Print the classes of a checkpoint, one a line: index, name, and number of items."""
    config = load_checkpoint(request.checkpoint, mapped=True)["config"]
    if config["model"].get("num_classes") is None:
        say(
            f"{request.checkpoint} is not conditioned on classes; "
            "train.py --class-conditional trains a network that is"
        )
        return 0
    classes, kind = config["data"]["classes"], kind_of(item_shape(config["data"]))
    counts = config["data"].get("class_counts")  # earlier versions did not save them
    width = len(str(len(classes) - 1))
    for index, name in enumerate(classes):
        count = f"  ({counts[index]:,} {kind})" if counts else ""
        say(f"{index:>{width}}  {printable(name)}{count}")
    return 0


def introduction(job: SamplingJob) -> str:
    """The first lines of output: the checkpoint, the sampler, the machine."""
    request, plan = job.request, job.plan
    before = [] if job.previous is None else [introduction(job.previous)]
    described = plan.wanted.described() if job.previous is None else []
    weights = "as trained" if request.raw else "moving average"
    processes = f", {world_size()} processes" if world_size() > 1 else ""
    lines = [
        f"{request.checkpoint}: {job.config['data']['dataset']}, step {job.step:,}, "
        f"weights: {weights}",
        f"{plan.name}, {len(plan.levels) - 1} steps, {describe(job.device, job.precision)}"
        f"{processes}",
    ]
    return "\n".join([*before, *lines, *described])


def write_inversion(job: SamplingJob, output: Path) -> None:
    """Write an image and its reconstruction, in the main process."""
    if is_main():
        with activity("inverting and reconstructing"):
            images, how_close = reconstruct(job)
        say(how_close)
        save(output, images, job.plan)
        say(f"the image and its reconstruction: {output}")


def write(job: SamplingJob, output: Path) -> None:
    """Draw all samples, then write them."""
    start = time.monotonic()
    drawn = draw(job)
    seconds = time.monotonic() - start
    if is_main():
        points = job.plan.kind == "points"
        real = load_dataset(job.config["data"]["dataset"], split="test").items if points else None
        with activity(f"writing {output}"):
            save(output, drawn.items, job.plan, real)
        say(summary(job, len(drawn.items), seconds, drawn.calls))
        write_frames(job, drawn)


def write_in_parts(job: SamplingJob, output: Path) -> int:
    """Draw and write an .npz batch by batch.

    After an interruption the same command continues, with any number of processes.
    """
    parts = Parts(output, job.decisive())
    try:
        with interrupts():
            draw_parts(job, parts)
    except KeyboardInterrupt as interruption:
        if is_main():
            print(f"sample.py: interrupted{what_is_kept(job, parts)}", file=sys.stderr)
        return 128 + interruption.args[0]
    return 0


def draw_parts(job: SamplingJob, parts: Parts) -> None:
    """Draw the batches that are missing, and join all of them into the .npz."""
    plan, start, calls, first = job.plan, time.monotonic(), 0, None
    with activity("looking for the parts that exist"):
        missing = missing_parts(job, parts)
    for n, batch in draw_batches(job, own_batches(missing)):
        parts.write(n, plan.pictures.array(batch.items))
        calls += batch.calls
        first = batch if n == 0 else first
    calls = sum_of_all(calls, job.device)  # waits for every process
    seconds = time.monotonic() - start
    if is_main():
        none = plan.pictures.array(job.no_items())
        with activity(f"writing {parts.output}"):
            shape = (plan.count, *none.shape[1:])
            parts.join(len(job.plan.batches), shape, none.dtype, origin_of(plan))
        say(summary(job, sum(len(job.plan.batches[n]) for n in missing), seconds, calls))
        if first is not None:
            write_frames(job, first)
        parts.delete()
    barrier()  # no process leaves before all is written


def missing_parts(job: SamplingJob, parts: Parts) -> list[int]:
    """The numbers of the batches to draw, the same on every process."""
    parts.check()
    if is_main():
        parts.begin()
    barrier()  # before any process looks for parts
    every = range(len(job.plan.batches))
    mine = own_batches(every)
    states = largest([parts.state(n) if n in mine else WHOLE for n in every], job.device)
    missing = [n for n in every if states[n] != WHOLE]
    there = job.plan.count - sum(len(job.plan.batches[n]) for n in missing)
    if there:
        say(f"continuing: {there:,} of {job.plan.count:,} {job.plan.kind} exist")
    if damaged := states.count(DAMAGED):
        say(f"{damaged} damaged parts are drawn again")
    if job.kept and 0 not in missing:  # the trajectory of batch 0 is requested
        missing = [0, *missing]
    return missing


def what_is_kept(job: SamplingJob, parts: Parts) -> str:
    """For the message of an interrupted job: how many samples are kept, and where."""
    if not parts.record.exists():
        return ""
    there = sum(len(batch) for n, batch in enumerate(job.plan.batches) if parts.path(n).exists())
    return (
        f"; {there:,} of {job.plan.count:,} {job.plan.kind} are in {parts.folder}: the same "
        "command continues"
    )


@contextmanager
def interrupts() -> Iterator[None]:
    """While open, Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt with the signal's number.

    Only the first signal raises, so that a second one does not interrupt the last message.
    """
    before = handle_requests(interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt:  # no signal has arrived
                signal.signal(number, handler)


def interrupt(number: int, frame) -> None:
    """Handle the first signal, and ignore later ones."""
    for each in REQUESTS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def summary(job: SamplingJob, count: int, seconds: float, calls: int) -> str:
    """The last line of output: the number of samples, the time, and the file."""
    whole = f"; all {job.plan.count:,}" if count < job.plan.count else ""
    return (
        f"{count} {job.plan.kind} in {seconds:.1f} s, {calls} network calls{whole}: "
        f"{job.request.output}"
    )


def write_frames(job: SamplingJob, drawn: Samples) -> None:
    """Write the requested pictures of the trajectory of the first batch."""
    output, plan, steps = Path(job.request.output), job.plan, len(job.plan.levels) - 1
    if job.request.show_intermediate:
        chosen = {done: drawn.frames[done] for done in evenly_spread(steps, SNAPSHOTS)}
        with activity("writing the trajectory"):
            folder = write_trajectory(trajectory(output), chosen, plan)
        say(f"the trajectory: {folder}")
    if job.request.animate:
        chosen = [drawn.frames[i][0] for i in sorted(evenly_spread(steps, FRAMES))]
        with activity("writing the animation"):
            grids = [plan.pictures.frame(items, plan.columns) for items in chosen]
            save_animation(output.with_suffix(".gif"), grids)
        say(f"the animation: {output.with_suffix('.gif')}")


def origin_of(plan: SamplingPlan) -> dict[str, np.ndarray]:
    """The arrays that --pairs adds to the samples: the seed of their noise, and their classes."""
    if not plan.request.pairs:
        return {}
    found = {"seed": np.array(plan.request.seed)}
    condition = plan.wanted.condition
    if condition is not None and condition.label is not None:
        found["labels"] = condition.label.cpu().numpy()
    return found


def save(output: Path, drawn: Tensor, plan: SamplingPlan, real: Tensor | None = None) -> None:
    """Write samples as a picture, with real ones if given, or as an .npz."""
    if is_array(output):
        array = plan.pictures.array(drawn)
        save_npz(output, array.shape, array.dtype, [array.tobytes()], origin_of(plan))
    else:
        prompts = plan.wanted.prompts
        save_picture(output, plan.pictures.grid(drawn, plan.columns, real, captions=prompts))


def write_trajectory(
    folder: Path, frames: dict[int, tuple[Tensor, Tensor]], plan: SamplingPlan
) -> Path:
    """Write pictures of x_t and of the predicted x_0 during sampling, and a filmstrip of each.

    Pictures are numbered t + 1, so that 0000 is clean data. Returns the folder.
    """
    every = is_old_trajectory(folder)
    for old in folder.glob("*.png"):
        if is_trajectory_name(old.name) and (every or is_own_picture(old)):
            old.unlink()
    for which, (name, strip) in enumerate(STRIPS.items()):
        moments = {done: pair[which] for done, pair in sorted(frames.items())}
        for done, items in moments.items():
            t = plan.levels[done].t + 1
            picture = plan.pictures.frame(items, plan.columns)
            save_picture(folder / f"{name}_{t:04d}.png", picture)
        save_picture(folder / f"{strip}.png", plan.pictures.filmstrip(list(moments.values())))
    return folder


if __name__ == "__main__":
    leave(run(main, REQUEST))
