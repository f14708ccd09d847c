"""Train a diffusion model on images or points.

python train.py --dataset mnist --max-minutes 10
python train.py --dataset moons --output-dir outputs/moons
python train.py --resume
"""

import time

START = time.monotonic()  # --max-minutes counts from here

from cli.process import leave, run
from cli.streams import unfailing_output
from cli.training import TRAIN, RunConfig

if __name__ == "__main__":
    FLAGS = TRAIN.parse()  # before the imports below, which take seconds

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from checkpoints.checkpoint import require_state
from cli.activity import Bar, activity
from dataset.items import kind_of, shape_config
from dataset.image_files import printable
from dataset.registry import DATASETS, READING, explained_folder, load_dataset
from dataset.types import Data
from distributed import (
    is_main,
    launched,
    main_first,
    own_device,
    process_group,
    say,
    world_size,
)
from evaluation.features import FeatureDistance, TrainedClassifier, classifier_for
from evaluation.measures import Reference
from evaluation.points import point_distances
from evaluation.real import RealData, real_data
from models import AUTOENCODERS, GUIDES, MODELS, NOT_DENOISERS, cost, model_config
from training.conditioning import cut_captions
from training.config import PRESETS, make_config, with_defaults
from training.folder import RunFolder
from training.initial import load_initial, require_same_network, with_initial
from training.latents import autoencoder_of, use_autoencoder
from training.pairs import Pairs, load_pairs
from training.loop import Finished, Run, Trained, trained_before
from training.session import session
from training.resume import (
    checkpoint_to_resume,
    is_restarted,
    number_format,
    plan_of,
    require_same_run,
)
from training.teacher import (
    load_teacher,
    use_guide,
    require_effect,
    require_tunable,
    use_weights,
    with_teacher,
)
from training.trainer import Trainer
from utils import (
    choose_device,
    describe,
    out_of_memory,
    set_deterministic,
    sides,
    torch_defaults,
)

SHOWN = 10  # classes that are printed
SHORTER = "--preset laptop --max-minutes 10"  # recommended if a run of images takes long


def train(**flags) -> Trained:
    """Train as `python train.py` does, with its flags as keyword arguments, for use in notebooks.

        train(dataset="moons", epochs=5, output_dir="outputs/moons")

    Returns the result, with the path of the trained `checkpoint`.

    Raises ValueError for flags that the command line would reject, KeyboardInterrupt after Ctrl-C,
    once the run is saved, and the errors of the run itself.
    """
    parsed = TRAIN.keywords(**flags)
    if parsed.list_models:
        raise ValueError("list_models is for the command line; see models.cost")
    trained = train_run(parsed, time.monotonic())
    if trained.exit_code:
        raise KeyboardInterrupt(f"saved {trained.checkpoint}; train(resume=True) continues")
    return trained


def main(flags: RunConfig) -> int:
    return list_models(flags) if flags.list_models else train_run(flags, START).exit_code


@unfailing_output()
@torch_defaults()
def train_run(flags: RunConfig, start: float) -> Trained:
    """Train; --max-minutes counts from `start`, a reading of `time.monotonic()`."""
    device = own_device(choose_device(flags.device))
    with process_group(device):
        # Find the checkpoint to start from, the device and the precision.
        flags, checkpoint = checkpoint_to_resume(flags)
        flags, teacher = teacher_of(flags, resumed=checkpoint is not None)
        flags, initial = initial_of(flags, resumed=checkpoint is not None)
        before = checkpoint or teacher or initial
        precision, note = number_format(flags.precision, checkpoint, device)
        require_possible(flags, device, precision)
        set_deterministic(flags.deterministic)
        say(f"device: {describe(device, precision, threads=False)}{note and f' ({note})'}")

        # Load the data, and fill in the defaults that depend on it.
        load = loader(flags)
        saved = None if before is None or "data_dir" in flags.given else flags.data_dir
        with activity("loading the data", has_bar=True), main_first(), explained_folder(saved):
            data = load()
        if before is not None:
            data = data.as_learned(before["config"]["data"])
        announce_data(flags, data)
        loaded, pairs = data, None
        if flags.pairs is not None:
            pairs = load_pairs(flags.pairs, before["config"])
            data = pairs.data
            say(f"pairs: {flags.pairs}, {len(data.items):,} samples and their noise")
        flags = complete(flags, data, resumed=checkpoint is not None)
        encoder = autoencoder_of(flags.latents, data, checkpoint)
        shape_of_latents = encoder and encoder["config"]["model"]
        config = make_config(flags, loaded, before and before["config"], shape_of_latents)
        if flags.teacher or flags.init_from:  # the network expects data of that scale
            config["diffusion"]["sigma_data"] = before["config"]["diffusion"]["sigma_data"]
        require_tunable(flags, config, teacher)
        require_shardable(flags, config)
        require_same_network(flags, config, initial)
        config["train"]["number_format"] = precision
        if pairs is not None:
            use_pairs(config, pairs, checkpoint)
        if cut := cut_captions(data, config):
            say(cut)
        if checkpoint is not None:
            require_same_run(checkpoint["config"], config, data.files, flags)

        with explained_memory(flags, device):
            # Build the network and what trains it.
            with activity("building the network"):
                trainer = Trainer(config, device, precision, flags.compile)
            if encoder is not None:
                use_autoencoder(trainer, encoder)
            if teacher is not None or initial is not None:
                use_weights(trainer, teacher or initial)
            if teacher is not None and flags.teacher_guide is not None:
                use_guide(trainer, flags.teacher_guide, teacher)
            parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
            say(f"network: {flags.model}, {parameters:,} parameters")
            if checkpoint is not None:
                with activity("loading the checkpoint into the network"):
                    load_state(trainer, checkpoint)
            waited = time.monotonic()
            if flags.feature_loss:
                used = use_features(trainer, flags, data, load, checkpoint)
                config["train"]["feature_classifier"] = used
            distance = distance_for(flags, loaded, load, device) if flags.eval_interval else None
            start += time.monotonic() - waited  # --max-minutes excludes a classifier's training

            # Train, and write the run's folder.
            folder = RunFolder(flags.output_dir)
            config["train"] |= plan_of(flags, checkpoint)
            options = {"tensorboard": flags.tensorboard, "distance": distance}
            options["shorter"] = shorter(flags, data, resumed=checkpoint is not None)
            try:
                job = Run(config, trainer, data, folder, start=start, **options)
            except Finished as finished:  # a scheduler may run the same command again
                trained = trained_before(folder, finished)
                say(f"{finished}\n{next_command(folder, flags.model)}")
                return trained
            announce_steps(flags, config, job)
            with session(job, checkpoint, overwrite=flags.overwrite, files=data.files):
                signal = job.train()
                say(stopped(job) if signal else summary(job))
    return job.result(signal)


# --- before the run ------------------------------------------------------------------------------


def teacher_of(flags: RunConfig, *, resumed: bool) -> tuple[RunConfig, dict | None]:
    """The flags of a new run with those of its teacher, and the checkpoint of --teacher.

    The checkpoint is None without a teacher. A resumed run needs none: its own checkpoint holds
    what it uses of the teacher. Raises ValueError for flags that lack a file or have no effect.
    """
    if flags.tune is None or resumed:
        return flags, None
    require_effect(flags)
    if flags.teacher is None and flags.tune in ("distill", "reflow"):
        raise ValueError(f"--tune {flags.tune} needs a network to start from: --teacher FILE")
    if flags.pairs is None and flags.tune == "reflow":
        raise ValueError("--tune reflow needs --pairs FILE, which sample.py --pairs writes")
    if flags.teacher is None:
        say(
            f"--tune {flags.tune} without --teacher: a trained network would learn this much faster"
        )
        return flags, None
    with activity(f"loading {flags.teacher}"):
        teacher = load_teacher(flags.teacher)
    return flags if is_begun(flags) else with_teacher(flags, teacher), teacher


def initial_of(flags: RunConfig, *, resumed: bool) -> tuple[RunConfig, dict | None]:
    """The flags of a new run with the network and process of --init-from, and its checkpoint."""
    if flags.init_from is None or resumed:
        return flags, None
    with activity(f"loading {flags.init_from}"):
        initial = load_initial(flags.init_from)
    return flags if is_begun(flags) else with_initial(flags, initial), initial


def is_begun(flags: RunConfig) -> bool:
    """Are the flags those of a run that is resumed at step 0, because it has no checkpoint yet?"""
    folder = RunFolder(flags.output_dir)
    return bool(flags.resume or is_restarted(folder)) and folder.saved_config() is not None


def require_shardable(flags: RunConfig, config: dict) -> None:
    """Raise ValueError for --fsdp with a network that one process alone makes pictures with."""
    model = config["model"]
    if flags.fsdp and (model["name"] in NOT_DENOISERS or model.get("autoencoder")):
        what = "a network of latents" if model.get("autoencoder") else f"--model {model['name']}"
        raise ValueError(f"--fsdp does not support {what}; torchrun without --fsdp trains it")


def use_pairs(config: dict, pairs: Pairs, checkpoint: dict | None) -> None:
    """Record in the configuration which pairs the run learns from.

    Raises ValueError if a resumed run has learned from others.
    """
    config["train"] |= {"pairs_seed": pairs.seed, "pairs_sha256": pairs.digest}
    saved = checkpoint and checkpoint["config"]["train"]
    if saved and saved.get("pairs_sha256") != pairs.digest:
        raise ValueError("--pairs: the run that is resumed has learned from another file")


def require_possible(flags: RunConfig, device: torch.device, precision: str) -> None:
    """Raise ValueError for flags that the device or the number of processes does not support."""
    if flags.fsdp and (not launched() or flags.compile or precision == "fp16"):
        raise ValueError(
            "--fsdp needs several processes, fp32 or bf16, and no --compile: "
            "torchrun --standalone --nproc-per-node=2 train.py --fsdp ..."
        )
    graphs = device.type == "cuda" and world_size() == 1 and flags.grad_accum == 1
    if flags.compile == "reduce-overhead" and not graphs:
        raise ValueError(
            "--compile reduce-overhead needs a GPU, one process, and no --grad-accum: CUDA graphs "
            "overwrite gradients that are to be added up"
        )


def load_state(trainer: Trainer, checkpoint: dict) -> None:
    """Load a checkpoint into the trainer. Raises CheckpointError if it does not fit."""
    if "shards" not in checkpoint:
        require_state(checkpoint, trainer.model, trainer.optimizers, trainer.frozen)
    trainer.load(checkpoint)


def loader(flags: RunConfig) -> Callable[..., Data]:
    """A function that loads the data set of the flags."""
    return partial(
        load_dataset,
        flags.dataset,
        **flags.chosen(READING),
        download=not flags.no_download,
        progress=partial(Bar, shown=is_main()),
    )


def announce_data(flags: RunConfig, data: Data) -> None:
    """Print what the data set is."""
    shape = " x ".join(map(str, data.items.shape[1:]))
    say(f"data: {flags.dataset}, {len(data.items):,} {kind_of(data.items.shape[1:])} of {shape}")
    if data.note:
        say(data.note)
    if data.classes and data.labels is not None:
        say(class_counts(data))


def class_counts(data: Data) -> str:
    """The first classes with the number of their items."""
    numbered = zip(data.classes, data.class_counts, strict=True)
    shown = [f"{printable(name)} ({count:,})" for name, count in numbered]
    more = f" and {len(shown) - SHOWN:,} more" if len(shown) > SHOWN else ""
    return f"classes: {', '.join(shown[:SHOWN])}{more}"


def complete(flags: RunConfig, data: Data, *, resumed: bool) -> RunConfig:
    """The flags with their defaults; prints those that the user may want to change."""
    if flags.preset and resumed:
        say("--preset is for a new run: the resumed run keeps its flags")
        flags.preset = None
    flips, conditional = flags.flip, flags.class_conditional
    conditioned = flags.text_conditional
    flags = with_defaults(flags, data, resumed=resumed)
    if flags.flip and flips is None and not resumed:
        say(f"images are mirrored at random (default for {flags.dataset}); --no-flip turns it off")
    announced = not resumed and flags.model not in NOT_DENOISERS  # of defaults that can be changed
    if flags.class_conditional and conditional is None and announced:
        say("the network is class-conditional (default); --no-class-conditional turns it off")
    if flags.text_conditional and conditioned is None and announced:
        say("the network is conditioned on captions (default); --no-text-conditional turns it off")
    if flags.preset:
        say(f"preset {flags.preset}: {spelled(flags, PRESETS[flags.preset])}")
    return flags


def spelled(flags: RunConfig, names: Iterable[str]) -> str:
    """Some flags with their values, as on a command line."""
    words = []
    for name in names:
        flag, value = name.replace("_", "-"), getattr(flags, name)
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(words)


def use_features(
    trainer: Trainer, flags: RunConfig, data: Data, load: Callable[..., Data], resumed: dict | None
) -> str:
    """Give the autoencoder's objective the classifier of --feature-loss.

    Returns the SHA-256 of the classifier.
    """
    with main_first():
        classifier, _ = classifier_of(flags, data, load, trainer.device)
    trainer.objective.feature_distance = distance = FeatureDistance(classifier)
    saved = resumed and resumed["config"]["train"].get("feature_classifier")
    if saved not in (None, distance.sha256):
        say("--feature-loss: another classifier than before, so results may differ from those of "
            "an uninterrupted run")  # fmt: skip
    return distance.sha256


def distance_for(
    flags: RunConfig, data: Data, load: Callable[..., Data], device: torch.device
) -> Callable[[torch.Tensor], float]:
    """The function that --eval-interval applies to samples: their distance to real images.

    Only the main process computes it; in others the function returns 0. Raises ValueError for data
    sets of points, and for networks that draw nothing.
    """
    with main_first():
        if not is_main():
            return lambda images: 0.0
        if kind_of(data.items.shape[1:]) == "points":
            raise ValueError(f"--eval-interval is for images, and {flags.dataset} is points")
        if flags.model in NOT_DENOISERS:
            raise ValueError(
                f"--eval-interval measures samples, and --model {flags.model} draws none"
            )
        return Reference(*classifier_of(flags, data, load, device)).distance


def classifier_of(
    flags: RunConfig, data: Data, load: Callable[..., Data], device: torch.device
) -> tuple[TrainedClassifier, RealData]:
    """The classifier of the data set (trained now if none is stored), and the real data."""
    test = partial(load, split="test")
    real = real_data(flags.dataset, data, test, flags.data_dir, flags.validation, flags.seed)
    return classifier_for(real, Path(flags.output_dir), device, progress=Bar, say=say), real


def shorter(flags: RunConfig, data: Data, *, resumed: bool) -> str:
    """Flags to recommend for a shorter run; "" if the user has limited this one already."""
    chosen = resumed or flags.preset or flags.max_minutes
    return "" if chosen or kind_of(data.items.shape[1:]) == "points" else SHORTER


def announce_steps(flags: RunConfig, config: dict, job: Run) -> None:
    """Print what may surprise the user: the size of a training step, or very short epochs."""
    size = job.batches.size
    if world_size() > 1:
        each = size // world_size()
        say(f"{world_size()} processes x {each} {job.kind} = {size} per training step")
    if size < config["train"]["update_size"]:
        say(f"batch size reduced to {size}: the data set has no more {job.kind}")
    if 0 < flags.sample_interval * job.epoch_steps < 50:
        say(
            f"an epoch is {job.epoch_steps} steps, so that sample grids may take more time than "
            "training; --sample-interval 20 writes fewer"
        )


@contextmanager
def explained_memory(flags: RunConfig, device: torch.device) -> Iterator[None]:
    """While open, replace an out-of-memory error by a MemoryError that names a remedy."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        shape = DATASETS[flags.dataset].shape
        shape = (shape[0], *sides(flags.image_size)) if flags.image_size else shape
        half = max(1, (flags.batch_size or 2) // 2)
        raise MemoryError(
            f"out of memory on {device} with batches of {flags.batch_size} x "
            f"{' x '.join(map(str, shape))} in {flags.precision}: --batch-size {half} --grad-accum "
            f"{2 * flags.grad_accum} makes the same training step with about half of it, and "
            "--grad-checkpoint takes less for more time"
        ) from None


# --- after the run -------------------------------------------------------------------------------


def summary(job: Run) -> str:
    """The last lines that a finished run prints."""
    lines, name = [], job.config["data"]["dataset"]
    if job.kind == "points" and job.preview.samples is not None:
        with activity("energy distance of the samples"):
            ours, floor = point_distances(job.preview.samples, name)
        lines.append(
            f"energy distance of {len(job.preview.samples):,} samples to fresh {name}: {ours:.2e}, "
            f"{ours / floor:.2f} times that between two fresh sets ({floor:.2e})"
        )
    folder = job.folder
    lines.append(
        f"done: {job.trainer.step:,} steps in {tqdm.format_interval(job.log.seconds)}; "
        f"pictures in {folder.samples}, loss in {folder.loss_plot}"
    )
    return "\n".join([*lines, next_command(folder, job.config["model"]["name"])])


def next_command(folder: RunFolder, model: str) -> str:
    """The command to run after a finished run with a network of this name."""
    if model in GUIDES:
        wanted = "--class-id all" if model == "classifier" else '--prompt "..."'
        path = shlex.quote(str(folder.final))
        return f"next: python sample.py --checkpoint MODEL --{model} {path} {wanted}"
    command = "evaluate" if model in AUTOENCODERS else "sample"
    return f"next: python {command}.py --checkpoint {shlex.quote(str(folder.final))}"


def stopped(job: Run) -> str:
    """The last lines that an interrupted run prints."""
    return (
        f"stopped after step {job.trainer.step:,} and saved {job.folder.interrupted}; resume with\n"
        f"  python train.py --resume --output-dir {shlex.quote(str(job.folder.path))}"
    )


def list_models(flags: RunConfig) -> int:
    """Print the networks for the data set, with their default arguments, and what they cost."""
    shape = DATASETS[flags.dataset].shape
    if flags.image_size and kind_of(shape) == "images":
        shape = (shape[0], *sides(flags.image_size))
    say(f"for {flags.dataset}, {' x '.join(map(str, shape))}:")
    for name in MODELS:
        try:
            config = model_config(name, shape_config(shape), flags.timesteps, {})
            parameters, flops = cost(config, shape)
        except ValueError as error:  # for other data, or for another size
            say(f"  {name:<11} -  {error}")
            continue
        say(f"  {name:<11} {parameters:>11,} parameters  {flops / 1e6:>9,.1f} MFLOPs per item")
    return 0


if __name__ == "__main__":
    leave(run(main, FLAGS))
