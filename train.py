"""Train a diffusion model on images or points."""

import time

START = time.monotonic()  # --max-minutes counts from here

from argparse import BooleanOptionalAction

from flags import (
    Parser,
    add_data_flags,
    add_runtime_flags,
    add_seed_flag,
    names,
    number,
    parse_keywords,
    parse_saved,
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
    process.add_argument("--class-conditional", action="store_true",
                         help="tell the network the images' classes, so that sample.py can ask "
                         "for one")
    process.add_argument("--label-dropout", type=number(float, 0, 1), default=0.1, metavar="P",
                         help="with --class-conditional: share of images that go without their "
                         "class, so that guidance has something to compare with")

    length = parser.add_argument_group("length (the first limit ends the run)")
    length.add_argument("--epochs", type=number(int, 1), metavar="N",
                        help="passes over the data (default: 20, if no limit is given)")
    length.add_argument("--max-steps", type=number(int, 1), metavar="N", help="updates")
    length.add_argument("--max-minutes", type=number(float, 0.05), metavar="M",
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
    machine.add_argument("--compile", action="store_true",
                         help="torch.compile the network; the first step then takes a minute or so")

    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", default="outputs", metavar="DIR", help="folder of the run")
    output.add_argument("--sample-interval", type=number(int, 0), metavar="N",
                        help="epochs between two pictures of samples; 0: only at the end (default: "
                        "1; for points 5)")
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
    if args.resume and args.overwrite:
        parser.error("--resume goes on with a run and --overwrite deletes it: give one of them")
    if "label_dropout" in args.given and not (args.class_conditional or args.resume):
        parser.error("--label-dropout is for --class-conditional")
    if args.allow_data_change and not args.resume:
        parser.error("--allow-data-change is for --resume")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import DATASETS, Data, kind_of, load_dataset, shape_config, standard_deviation
from diffusion import GaussianDiffusion
from folders import changes, digest_of, read_files, save_files
from models import DEFAULT, MODELS, cost, model_config
from points import distances
from training.checkpoint import CheckpointError, differences, load_run, require_state
from training.distributed import (
    barrier,
    is_main,
    launched,
    main_first,
    own_device,
    process_group,
    restarted,
    say,
    world_size,
)
from training.environment import append_environment, environment
from training.folder import RunFolder
from training.log import read_metrics
from training.run import Run
from training.sharded import read_record
from training.trainer import Trainer
from training.validation import held_out_count
from utils import (
    check_writable,
    choose_device,
    choose_precision,
    describe,
    out_of_memory,
    set_deterministic,
)

# What is natural depends on the data; measured for each.
NATURAL = {
    "images": {"batch_size": 128, "optimizer": "muon", "lr": 3e-3, "sample_interval": 1},
    "points": {"batch_size": 512, "optimizer": "adamw", "lr": 2e-3, "sample_interval": 5},
}
# Flags of the network, each for those that take it.
NETWORK = ("channels", "multipliers", "blocks", "attention_resolutions", "dropout", "patch_size")
NETWORK += ("long_skips",)
MAX_RATIO = 300  # sigma / alpha from which eps without clipping runs away (linear ends at 157)
CACHE = ("cache_dir", "cache_limit")  # flags of where data is held, which changes nothing else
DIGESTED = ("count", "classes", "skip_bad_images")  # they show in the digest of a folder
LIMITS = ("epochs", "max_steps", "max_minutes")
# Training flags that a resumed run cannot change.
FIXED = ("update_size", "seed", "optimizer", "timestep_sampling", "noise_assignment")
FIXED += ("class_conditional", "label_dropout", "validation")
# Flags of a command and not of a run: no checkpoint sets them.
COMMAND = {"debug", "list_models", "no_download", "device", "compile"}
COMMAND |= {"output_dir", "resume", "overwrite", "tensorboard"}
COMMAND |= {"allow_data_change"}


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
    checkpoint = checkpoint_to_resume(args)
    precision = choose_precision(args.precision, device)
    if args.fsdp and (not launched() or args.compile or precision == "fp16"):
        raise ValueError(
            "--fsdp is for several processes, in fp32 or bf16 and without --compile: "
            "torchrun --standalone --nproc-per-node=2 train.py --fsdp ..."
        )
    set_deterministic(args.deterministic)
    say(f"device: {describe(device, precision)}")
    with main_first():
        data = load_dataset(
            args.dataset,
            args.data_dir,
            image_size=args.image_size,
            download=not args.no_download,
            skip_bad_images=args.skip_bad_images,
            fit=args.fit,
            cache_dir=args.cache_dir,
            cache_limit=args.cache_limit,
            progress=partial(tqdm, disable=None if is_main() else True),  # no bar off a terminal
        )
    kind = kind_of(data.items.shape[1:])
    shape = " x ".join(map(str, data.items.shape[1:]))
    say(f"data: {args.dataset}, {len(data.items):,} {kind} of {shape}")
    if data.note:
        say(data.note)
    config = make_config(args, data)
    if checkpoint is not None:
        take_up(checkpoint["config"], config, data.files, args)
    trainer = Trainer(config, device, precision, args.compile)
    say(f"network: {args.model}, {sum(p.numel() for p in trainer.model.parameters()):,} parameters")
    if checkpoint is not None:
        if "shards" not in checkpoint:
            require_state(checkpoint, trainer.model, trainer.optimizers)
        trainer.load(checkpoint)
    folder, total = RunFolder(args.output_dir), planned_steps(args, checkpoint)
    job = Run(
        config,
        trainer,
        data,
        folder,
        keep=args.keep,
        total=total,
        start=start,
        tensorboard=args.tensorboard,
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
        ours, floor = distances(job.drawn, name)
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


def make_config(args, data: Data) -> dict:
    """What a checkpoint says of its run: plain values only."""
    shape = shape_config(data.items.shape[1:])
    is_image = kind_of(data.items.shape[1:]) == "images"
    if args.flip and not is_image:
        raise ValueError("--flip mirrors images; these are points")
    flip = DATASETS[args.dataset].flip if args.flip is None else args.flip

    def chosen(*flags: str) -> dict:
        return {flag: getattr(args, flag) for flag in flags}

    choose_natural(args, kind_of(data.items.shape[1:]))
    args.validation = held_out_count(args.validation, len(data.items))
    prediction, sampling = natural_objective(args)
    options = {flag: getattr(args, flag) for flag in NETWORK if getattr(args, flag) is not None}
    if args.learn_sigma:
        options["learn_sigma"] = True
    if args.class_conditional:
        options["num_classes"] = len(data.classes)
        if len(data.classes) < 2:
            raise ValueError(f"--class-conditional: {args.dataset} has no classes here")
    process = {
        **chosen("schedule", "timesteps", "zero_terminal_snr", "learn_sigma", "loss_weight"),
        "prediction": prediction,
        "clip": is_image,  # points have no bounds
        "sigma_data": standard_deviation(data.items) if prediction == "edm" else 1.0,
    }
    ratio = float(GaussianDiffusion(**process).ratio[-1])
    if prediction == "eps" and not is_image and ratio > MAX_RATIO:
        raise ValueError(
            f"--prediction eps does not go with points and the schedule {args.schedule}: at its "
            f"end an error of the noise is one of the data {ratio:,.0f} times as large, and there "
            "are no bounds to clip it to; use linear or quadratic, or another prediction"
        )
    return {
        "data": {
            **chosen("dataset", "data_dir", "skip_bad_images", "fit", *CACHE),
            **shape,
            "count": len(data.items),
            "classes": data.classes,
            "digest": digest_of(data.files),
            "flip": flip,
        },
        "model": model_config(args.model, shape, args.timesteps, options),
        "diffusion": process,
        "train": {
            **chosen(*LIMITS, "batch_size", "grad_accum", "seed", "optimizer", "lr", "lr_decay"),
            **chosen("warmup_steps", "grad_clip", "ema_decay", "noise_assignment", "validation"),
            **chosen("class_conditional", "label_dropout", "grad_checkpoint", "precision"),
            **chosen("deterministic", "sample_interval", "save_interval", "save_every_steps"),
            **chosen("save_every_minutes", "fsdp", "keep"),
            "timestep_sampling": sampling,
            "processes": world_size(),
            "update_size": args.batch_size * args.grad_accum * world_size(),
            "total_steps": None,
        },
    }


def choose_natural(args, kind: str) -> None:
    """Set what was not asked for to what is natural for images, or for points."""
    for flag, value in {"model": DEFAULT[kind], **NATURAL[kind]}.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)


def natural_objective(args) -> tuple[str, str]:
    """The prediction and the timestep sampling: as asked for, or as the schedule's paper does.

    Elsewhere the velocity of flow matching learned fastest, with the cosine schedule too.
    """
    prediction = "edm" if args.schedule == "edm" else "flow"
    sampling = "log-normal" if args.schedule == "edm" else "uniform"
    return args.prediction or prediction, args.timestep_sampling or sampling


def checkpoint_to_resume(args) -> dict | None:
    """The checkpoint that --resume asks for; flags that were not given are taken from its run.

    None for a run from the beginning: without --resume, or if the run has no checkpoint yet.
    """
    folder = RunFolder(args.output_dir)
    check_writable(folder.path)
    if not (args.resume or restarted()):
        if folder.holds_run() and not args.overwrite:
            raise ValueError(
                f"{folder.path} holds a run already: go on with it (--resume), replace it "
                "(--overwrite), or choose another --output-dir"
            )
        return None
    if args.resume in (None, "newest") or (restarted() and folder.holds_run()):
        path, damaged = folder.newest_checkpoint()
        for error in damaged:
            say(f"left out: {error}")
        if path is None:
            return begin_anew(args, folder, damaged)
    else:
        path = Path(args.resume)
    checkpoint = read_record(path) if path.is_dir() else load_run(path)
    home = RunFolder.of(path)
    if "output_dir" not in args.given:
        args.output_dir = str(home.path)
    elif folder.holds_run() and folder.path.resolve() != home.path.resolve():
        raise ValueError(f"{path} is of the run in {home.path}, but {folder.path} holds another")
    say(f"resuming from {path}, step {checkpoint['step']:,}")
    take_flags(args, checkpoint["config"])
    spread(args, checkpoint["config"]["train"])
    return checkpoint


def begin_anew(args, folder: RunFolder, damaged: list) -> None:
    """Let a run begin that is to be resumed, and ended before its first checkpoint, if at all.

    Raises ValueError where that may not be what is meant.
    """
    config = folder.saved_config()
    if damaged or (config is None and "dataset" not in args.given and not restarted()):
        raise ValueError(
            f"--resume: there is no whole checkpoint in {folder.path}"
            + ("" if damaged else "; with --dataset a run would be started there")
        )
    say(f"there is no checkpoint in {folder.path} yet: the run begins at step 0")
    if config is not None:
        take_flags(args, config)


def take_flags(args, config: dict) -> None:
    """Take the flags that were not given from the configuration of a run.

    Raises CheckpointError for a value that the command line would refuse.
    """
    saved = {key: value for section in config.values() for key, value in section.items()}
    saved["model"] = saved["name"]
    if args.given & set(LIMITS):  # a new limit replaces the old ones
        saved = {key: value for key, value in saved.items() if key not in LIMITS}
    parser = make_parser()
    of_a_run = {action.dest for action in parser._actions} - COMMAND
    for key in sorted(saved.keys() & of_a_run - args.given):
        try:
            setattr(args, key, parse_saved(parser, key, saved[key]))
        except ValueError as error:
            raise CheckpointError(f"the run's configuration contradicts itself: {error}") from None


def spread(args, saved: dict) -> None:
    """Share the updates of a run that began on another number of processes among those of now.

    An update stays as large as it was; what is computed at once does not become larger.
    """
    if saved["processes"] == world_size() or args.given & {"batch_size", "grad_accum"}:
        return
    share, rest = divmod(saved["update_size"], world_size())
    if rest:
        raise ValueError(
            f"--resume: the run's updates of {saved['update_size']} cannot be shared by "
            f"{world_size()} processes"
        )
    at_once = range(1, min(saved["batch_size"], share) + 1)
    args.batch_size = max(size for size in at_once if share % size == 0)
    args.grad_accum = share // args.batch_size
    say(
        f"the run had {saved['processes']} processes and has {world_size()} now: updates are as "
        "large as before, but their last bits may differ from those of an uninterrupted run"
    )


def take_up(saved: dict, config: dict, files: Mapping[str, str], args) -> None:
    """Make sure that a run can go on as it began, and say so where its data did not stay the same.

    Raises CheckpointError if it cannot, or if a folder's images are others without leave.
    """
    if files:  # the network has learned at the scale of the images that it began with
        config["diffusion"]["sigma_data"] = saved["diffusion"]["sigma_data"]
    change = data_change(saved, config, files, RunFolder(args.output_dir).data)
    require_same(saved, config, "" if args.allow_data_change else change)
    if change:
        say(
            f"the data has changed since the last session: {change}; this run's bits are those of "
            "no other"
        )


def data_change(saved: dict, config: dict, files: Mapping[str, str], listed: Path) -> str:
    """What has changed in a folder of images since a checkpoint was written, or "" for nothing.

    Names and pixels are compared, not places and times: a folder that was copied is the same.

    Args:
        saved, config: the checkpoint's configuration, and that of now.
        files: the images now, {name: digest}.
        listed: the file that has them as they were.
    """
    before, now = saved["data"].get("digest"), config["data"]["digest"]
    alike = all(saved["data"].get(k) == config["data"].get(k) for k in ("image_size", "fit"))
    if before is None or now is None or before == now or not alike:
        return ""
    known = read_files(listed)
    if digest_of(known) != before:  # missing, damaged, or of another session
        return f"its pixels are others ({listed} does not say which)"
    return changes(known, files)


def require_same(saved: dict, config: dict, change: str) -> None:
    """Raise a CheckpointError that lists what keeps a checkpoint from going on with these flags.

    `change` is what has changed in the data, where that is not allowed.
    """
    ignored = {"data_dir", "digest", *CACHE}
    if saved["data"].get("digest") and config["data"]["digest"]:
        ignored |= set(DIGESTED)
    data = {k: v for k, v in config["data"].items() if k not in ignored}
    train = {key: config["train"][key] for key in FIXED}
    found = differences(saved, {**config, "data": data, "train": train})
    if change:
        found.append(f"the data has changed: {change}; --allow-data-change goes on all the same")
    if found:
        raise CheckpointError("this checkpoint is of another run:\n  " + "\n  ".join(found))


def planned_steps(args, checkpoint: dict | None) -> int | None:
    """The number of steps that the run being resumed had planned, unless a new limit is given."""
    if checkpoint is None or args.given & set(LIMITS):
        return None
    return checkpoint["config"]["train"]["total_steps"]


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
