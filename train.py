"""Train a diffusion model on images or points."""

import time

START = time.monotonic()  # --max-minutes counts from here

from argparse import BooleanOptionalAction

from cli.parser import (
    Parser,
    add_data_flags,
    add_runtime_flags,
    add_seed_flag,
    leave,
    names,
    number,
    parse_keywords,
    run,
)


# fmt: off
def make_parser() -> Parser:
    parser = Parser(
        "Train a diffusion model on images or points, and write checkpoints and pictures.",
        [
            "python train.py --dataset mnist --max-minutes 10",
            "python train.py --dataset moons --output-dir outputs/moons",
        ],
    )
    data = add_data_flags(parser, default="mnist")
    data.add_argument("--flip", action=BooleanOptionalAction,
                      help="mirror images at random (default: for cifar10 and folder)")
    data.add_argument("--allow-data-change", action="store_true",
                      help="--resume: go on though the folder's images are others than before")

    network = parser.add_argument_group("network")
    network.add_argument("--model", choices=names("models/__init__.py", "MODELS"),
                         help="kind of network (default: unet for images, mlp for points)")
    network.add_argument("--channels", type=number(int, 1), metavar="N",
                         help="width of the first level, or of all (default: 64; dit 192, mlp 128)")
    network.add_argument("--multipliers", type=number(int, 1), nargs="+", metavar="N",
                         help="unet: width of each level, in multiples of --channels "
                         "(default: 1 2)")
    network.add_argument("--blocks", type=number(int, 1), metavar="N",
                         help="unet: residual blocks of a level (default: 1); dit, mlp: of all "
                         "(default: 6, 4)")
    network.add_argument("--attention-resolutions", type=number(int, 1), nargs="*", metavar="N",
                         help="unet: sizes of feature maps with self-attention; the middle always "
                         "has it")
    network.add_argument("--dropout", type=number(float, 0, 0.99), metavar="P",
                         help="unet, dit, mlp: probability of dropping a feature (default: 0)")
    network.add_argument("--patch-size", type=number(int, 1), metavar="N",
                         help="unet, dit: side of the patches that the image is folded into "
                         "(default: 2 and 4; for images under 16 pixels 1 and 2)")
    network.add_argument("--long-skips", action="store_true", default=None,
                         help="dit: join the first blocks to the last, as U-ViT does")
    network.add_argument("--list-models", action="store_true",
                         help="print each network that fits the data, with its parameters and "
                         "FLOPs, and end")

    network.add_argument("--preset", choices=names("training/config.py", "PRESETS"),
                         help="images: flags that go together; those that are given too count. "
                         "fast: many epochs; laptop: the best in minutes; quality: for a GPU or a "
                         "night")

    process = parser.add_argument_group("process")
    process.add_argument("--timesteps", type=number(int, 2), default=1000, metavar="T",
                         help="steps of the forward process")
    process.add_argument("--schedule", choices=names("schedules.py", "SCHEDULES"), default="cosine",
                         help="how noise grows over the steps")
    process.add_argument("--zero-terminal-snr", action="store_true",
                         help="shift the schedule so that it ends in pure noise")
    process.add_argument("--prediction", choices=names("objectives.py", "PREDICTIONS"),
                         help="what the network puts out (default: flow; edm for that schedule)")
    process.add_argument("--learn-sigma", action="store_true",
                         help="learn the variance of the reverse steps too")
    process.add_argument("--loss-weight", choices=names("objectives.py", "LOSS_WEIGHTS"),
                         default="uniform",
                         help="of the error at each noise level; vlb: the variational bound")
    process.add_argument("--timestep-sampling",
                         choices=names("objectives.py", "TIMESTEP_SAMPLINGS"),
                         help="choice of t in training (default: uniform; log-normal with edm)")
    process.add_argument("--noise-assignment",
                         choices=names("objectives.py", "NOISE_ASSIGNMENTS"), default="independent",
                         help="which noise goes to which image of a batch")
    process.add_argument("--class-conditional", action=BooleanOptionalAction, default=False,
                         help="tell the network the images' classes, so that sample.py can ask "
                         "for one")
    process.add_argument("--label-dropout", type=number(float, 0, 1), default=0.1, metavar="P",
                         help="with --class-conditional: share of images that go without their "
                         "class, so that guidance has something to compare with")

    length = parser.add_argument_group("length (the first limit ends the run)")
    length.add_argument("--epochs", type=number(int, 1), metavar="N",
                        help="passes over the data (default: 20, if no limit is given)")
    length.add_argument("--max-steps", type=number(int, 1), metavar="N", help="updates")
    length.add_argument("--max-minutes", type=number(float, 0.05, 10**6), metavar="M",
                        help="time, all told; the learning rate's decay is fitted to it")

    training = parser.add_argument_group("training")
    training.add_argument("--batch-size", type=number(int, 1), metavar="N",
                          help="images, or points, that are computed at once (default: 128; for "
                          "points 512)")
    training.add_argument("--grad-accum", type=number(int, 1), default=1, metavar="N",
                          help="batches of an update: the same update as one N times as large")
    training.add_argument("--grad-checkpoint", action=BooleanOptionalAction,
                          help="less memory and more time: compute the network's blocks again for "
                          "the gradient, instead of keeping all that is inside them")
    training.add_argument("--optimizer", choices=names("training/optimizers.py", "OPTIMIZERS"),
                          help="muon: for the matrices, and adamw for the rest (default: muon; for "
                          "points adamw)")
    training.add_argument("--lr", type=number(float, 0), metavar="X",
                          help="peak learning rate (default: 0.003; for points 0.002)")
    training.add_argument("--lr-decay", choices=names("training/plan.py", "LR_DECAYS"),
                          default="cosine",
                          help="its way to zero after the warm-up")
    training.add_argument("--warmup-steps", type=number(int, 0), default=100, metavar="N",
                          help="updates until the learning rate is at its peak")
    training.add_argument("--grad-clip", type=number(float, 0), default=1.0, metavar="X",
                          help="largest norm of the gradient; 0 does not clip")
    training.add_argument("--ema-decay", type=number(float, 0, 0.999999), default=0.9999,
                          metavar="X",
                          help="limit of the decay of the weights' moving average, which warms up")
    training.add_argument("--validation", type=number(int, 0), metavar="N",
                          help="items held out of training, on whose loss checkpoints/best.pt is "
                          "chosen (default: a twentieth, at most 1024)")
    add_seed_flag(training)

    machine = add_runtime_flags(parser, "auto", "auto takes bf16 where the hardware has it")
    machine.add_argument("--fsdp", action=BooleanOptionalAction,
                         help="under torchrun: share out the network itself, for one that does not "
                         "fit a GPU")
    machine.add_argument("--deterministic", action=BooleanOptionalAction,
                         help="let no algorithm whose result varies from run to run; slower on a "
                         "GPU")
    machine.add_argument("--compile", nargs="?", const="default", metavar="MODE",
                         choices=["default", "reduce-overhead"],
                         help="torch.compile the network, in its default mode or with CUDA graphs "
                         "(reduce-overhead); the first step then takes a minute or so")

    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", default="outputs", metavar="DIR", help="folder of the run")
    output.add_argument("--sample-interval", type=number(int, 0), metavar="N",
                        help="epochs between two pictures of samples; 0: only at the end (default: "
                        "1; for points 5)")
    output.add_argument("--eval-interval", type=number(int, 0), default=0, metavar="N",
                        help="epochs between two measurements of the classifier-FID, of 2,000 "
                        "images in 10 steps to the test split (see evaluate.py); 0: none")
    output.add_argument("--save-interval", type=number(int, 0), default=5, metavar="N",
                        help="epochs between two checkpoints; 0: only at the end")
    output.add_argument("--keep", type=number(int, 1), metavar="N",
                        help="keep only the newest N of these checkpoints (default: all)")
    output.add_argument("--save-every-steps", type=number(int, 0), default=0, metavar="N",
                        help="updates between two checkpoints of which the last 3 are kept; 0: "
                        "none")
    output.add_argument("--save-every-minutes", type=number(float, 0), default=10, metavar="M",
                        help="the same by the clock")
    output.add_argument("--tensorboard", action="store_true",
                        help="log for TensorBoard too, in the folder tensorboard of the run")
    output.add_argument("--resume", nargs="?", const="newest", metavar="CHECKPOINT",
                        help="go on with the run in --output-dir, with its flags, from its newest "
                        "whole checkpoint or the one given; start it if it has none yet")
    output.add_argument("--overwrite", action="store_true",
                        help="replace the run that --output-dir holds")
    return parser


# fmt: on


def parse_args(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.preset and args.list_models:
        parser.error("--list-models prints networks as they are by default: leave out --preset")
    if args.resume and args.overwrite:
        parser.error("--resume goes on with a run and --overwrite deletes it: give one of them")
    told = args.class_conditional or args.preset or args.resume
    if "label_dropout" in args.given and not told:
        parser.error("--label-dropout is for --class-conditional")
    if args.allow_data_change and not args.resume:
        parser.error("--allow-data-change is for --resume")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from dataset.registry import DATASETS, load_dataset
from dataset.types import Data
from dataset.items import kind_of, shape_config
from evaluation.classifier import judge_for
from evaluation.measures import Reference
from evaluation.real import real_data
from dataset.changes import save_files
from models import MODELS, cost, model_config
from evaluation.points import point_distances
from checkpoints.checkpoint import require_state
from training.config import PRESETS, make_config
from distributed import (
    barrier,
    is_main,
    launched,
    main_first,
    own_device,
    process_group,
    say,
    world_size,
)
from training.environment import append_environment, environment
from training.folder import RunFolder
from training.log import read_metrics
from training.resume import checkpoint_to_resume, planned_steps, take_up
from training.run import Run
from training.trainer import Trainer
from utils import (
    choose_device,
    choose_precision,
    describe,
    out_of_memory,
    set_deterministic,
)

BAR = partial(tqdm, disable=None)  # none off a terminal


class Trained(NamedTuple):
    """What a run has come to."""

    folder: Path
    checkpoint: Path  # model_final.pt, or interrupted.pt
    metrics: list[dict]  # the rows of metrics.jsonl
    exit_code: int  # 0, or 130 or 143 after Ctrl-C or SIGTERM


def train(**flags) -> Trained:
    """Train as `python train.py` does, with its flags as keyword arguments, for use in notebooks.

        train(dataset="moons", epochs=5, output_dir="outputs/moons")

    Raises ValueError for what the command line would refuse, KeyboardInterrupt once an interrupted
    run is saved, and what the run itself raises.
    """
    args = parse_keywords(make_parser(), parse_args, flags)
    if args.list_models:
        raise ValueError("list_models is for the command line; see models.cost")
    trained = train_with(args, time.monotonic())
    if trained.exit_code:
        raise KeyboardInterrupt(f"saved {trained.checkpoint}; train(resume=True) goes on")
    return trained


def main(args) -> int:
    return list_models(args) if args.list_models else train_with(args, START).exit_code


def train_with(args, start: float) -> Trained:
    """Train; --max-minutes counts from `start`, a reading of `time.monotonic()`."""
    device = own_device(choose_device(args.device))
    with process_group(device), explained_memory(args, device):
        return train_on(device, args, start)


def train_on(device: torch.device, args, start: float) -> Trained:
    checkpoint = checkpoint_to_resume(args, make_parser())
    precision = choose_precision(args.precision, device)
    if args.fsdp and (not launched() or args.compile or precision == "fp16"):
        raise ValueError(
            "--fsdp is for several processes, in fp32 or bf16 and without --compile: "
            "torchrun --standalone --nproc-per-node=2 train.py --fsdp ..."
        )
    graphs = device.type == "cuda" and world_size() == 1 and args.grad_accum == 1
    if args.compile == "reduce-overhead" and not graphs:
        raise ValueError(
            "--compile reduce-overhead is for a GPU, one process, and no --grad-accum: CUDA graphs "
            "overwrite the gradients that are to be summed up"
        )
    set_deterministic(args.deterministic)
    say(f"device: {describe(device, precision)}")
    load = partial(
        load_dataset,
        args.dataset,
        args.data_dir,
        image_size=args.image_size,
        download=not args.no_download,
        skip_bad_images=args.skip_bad_images,
        fit=args.fit,
        cache_dir=args.cache_dir,
        cache_limit=args.cache_limit,
        progress=partial(BAR, disable=None if is_main() else True),
    )
    with main_first():
        data = load()
    kind = kind_of(data.items.shape[1:])
    shape = " x ".join(map(str, data.items.shape[1:]))
    say(f"data: {args.dataset}, {len(data.items):,} {kind} of {shape}")
    if data.note:
        say(data.note)
    if args.preset and checkpoint is not None:
        say("--preset is for a new run: this one keeps its flags")
        args.preset = None
    config = make_config(args, data)
    if args.preset:
        say(f"preset {args.preset}: {flags_of(args, PRESETS[args.preset])}")
    if checkpoint is not None:
        take_up(checkpoint["config"], config, data.files, args)
    trainer = Trainer(config, device, precision, args.compile)
    say(f"network: {args.model}, {sum(p.numel() for p in trainer.model.parameters()):,} parameters")
    if checkpoint is not None:
        if "shards" not in checkpoint:
            require_state(checkpoint, trainer.model, trainer.optimizers)
        trainer.load(checkpoint)
    folder, total = RunFolder(args.output_dir), planned_steps(args, checkpoint)
    waited = time.monotonic()
    distance = distance_for(args, data, load, device) if args.eval_interval else None
    start += time.monotonic() - waited  # a classifier that is trained once is not the run's time
    job = Run(
        config,
        trainer,
        data,
        folder,
        keep=args.keep,
        total=total,
        start=start,
        tensorboard=args.tensorboard,
        distance=distance,
    )
    if world_size() > 1:
        say(
            f"{world_size()} processes x {job.batch // world_size()} {kind} = {job.batch} an update"
        )
    if job.batch < config["train"]["update_size"]:
        say(f"an update takes {job.batch} {kind}: there are no more")
    if 0 < args.sample_interval * job.epoch_steps < 50:
        say(
            f"an epoch is {job.epoch_steps} updates, so that grids may take more time than "
            "training; --sample-interval 20 draws fewer"
        )
    with folder.lock() if is_main() else nullcontext():
        if checkpoint is not None:
            job.load(checkpoint)
        if is_main():
            prepare(folder, config, args, trainer, data)
            append_environment(folder.environment, environment(device, precision, args.seed))
        barrier()  # nobody looks for checkpoints that are still to be moved
        signal = job.train()
        say(stopped(job) if signal else finished(job))
    checkpoint = folder.interrupted if signal else folder.final
    metrics = read_metrics(folder.metrics)
    return Trained(folder.path, checkpoint, metrics, 128 + signal if signal else 0)


def distance_for(args, data: Data, load: Callable[..., Data], device: torch.device) -> Callable:
    """What --eval-interval measures images by, in the main process, which alone asks."""
    with main_first():
        if not is_main():
            return lambda images: 0.0
        if kind_of(data.items.shape[1:]) == "points":
            raise ValueError(f"--eval-interval is for images; {args.dataset} is points")
        test = partial(load, split="test")
        real = real_data(args.dataset, data, test, args.data_dir, args.validation, args.seed)
        judge = judge_for(real, Path(args.output_dir), device, progress=BAR)
        return Reference(judge, real).distance


def flags_of(args, names: Iterable[str]) -> str:
    """What those flags have come to, as on a command line."""
    words = []
    for name in names:
        flag, value = name.replace("_", "-"), getattr(args, name)
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(words)


def prepare(folder: RunFolder, config: dict, args, trainer: Trainer, data: Data) -> None:
    """Clear the way for the run: of what it replaces, or of what lies ahead of where it resumes."""
    if trainer.step:
        if aside := folder.set_aside(after=trainer.step):
            say(f"checkpoints of later steps are set aside: {', '.join(p.name for p in aside)}")
    elif args.overwrite:
        folder.clear()
    folder.save_config(config)
    if data.files:
        save_files(folder.data, data.files)


@contextmanager
def explained_memory(args, device: torch.device) -> Iterator[None]:
    """Say what to do where memory runs out."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        shape = DATASETS[args.dataset].shape
        shape = (shape[0], args.image_size, args.image_size) if args.image_size else shape
        half = max(1, (args.batch_size or 2) // 2)
        raise MemoryError(
            f"out of memory on {device} with batches of {args.batch_size} x "
            f"{' x '.join(map(str, shape))} in {args.precision}: --batch-size {half} --grad-accum "
            f"{2 * args.grad_accum} makes the same update with about half of it, and "
            "--grad-checkpoint takes less for more time"
        ) from None


def finished(job: Run) -> str:
    """What a run has come to."""
    lines, name = [], job.config["data"]["dataset"]
    if job.kind == "points" and job.drawn is not None:
        ours, floor = point_distances(job.drawn, name)
        lines.append(
            f"energy distance of {len(job.drawn):,} samples to fresh {name}: {ours:.2e}, "
            f"{ours / floor:.2f} times that between two fresh sets ({floor:.2e})"
        )
    folder = job.folder
    lines.append(
        f"done: {job.trainer.step:,} updates in {tqdm.format_interval(job.seconds)}; "
        f"pictures in {folder.samples}, loss in {folder.loss_plot}"
    )
    lines.append(f"next: python sample.py --checkpoint {shlex.quote(str(folder.final))}")
    return "\n".join(lines)


def stopped(job: Run) -> str:
    """Where a run has stopped, and how it goes on."""
    return (
        f"stopped after step {job.trainer.step:,} and saved {job.folder.interrupted}; go on with\n"
        f"  python train.py --resume --output-dir {shlex.quote(str(job.folder.path))}"
    )


def list_models(args) -> int:
    """Print the networks for the data set, as they are by default, and what they cost."""
    shape = DATASETS[args.dataset].shape
    if args.image_size and kind_of(shape) == "images":
        shape = (shape[0], args.image_size, args.image_size)
    say(f"for {args.dataset}, {' x '.join(map(str, shape))}:")
    for name in MODELS:
        try:
            config = model_config(name, shape_config(shape), args.timesteps, {})
            parameters, flops = cost(config, shape)
        except ValueError as error:  # it does not fit: for other data, or for another size
            say(f"  {name:<11} -  {error}")
            continue
        say(f"  {name:<11} {parameters:>11,} parameters  {flops / 1e6:>9,.1f} MFLOPs an item")
    return 0


if __name__ == "__main__":
    leave(run(main, ARGS))
