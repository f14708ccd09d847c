"""Training your own network on your own tensor, by the same loop as train.py."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from checkpoints.checkpoint import require_state
from checkpoints.consistency import CUSTOM, require_config
from cli.streams import unfailing_output
from cli.training import TRAIN, RunConfig
from dataset.types import Data
from distributed import own_device, process_group, say
from training.config import process_config, train_config, with_defaults
from training.folder import RunFolder
from training.given import (
    is_compiled,
    prepare_items,
    prepare_labels,
    require_prediction,
    require_trainable,
)
from training.loop import Finished, Run, Trained, trained_before
from training.resume import checkpoint_to_resume, number_format, plan_of, require_same_run
from training.session import session
from training.trainer import Trainer
from utils import choose_device, set_deterministic, torch_defaults

# Flags of train.py that `fit` has arguments for, or that are for this project's networks.
NOT_FLAGS = {"output_dir", "resume", "overwrite", "preset", "list_models", "eval_interval"}
NOT_FLAGS |= {"tune", "teacher", "pairs", "teacher_guidance", "teacher_steps", "stage_steps"}
NOT_FLAGS |= {"class_conditional", "learn_sigma", "fsdp", "allow_data_change", "no_download"}
NOT_FLAGS |= {"init_from", "teacher_guide"}


@unfailing_output()
@torch_defaults()
def fit(
    model: nn.Module,
    data: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | None = None,
    *,
    folder: str | Path = "outputs",
    value_range: tuple[float, float] | None = None,
    **flags,
) -> Trained:
    """Train a diffusion model: any network, any tensor. The same call again resumes the run.

        run = fit(model, images, folder="outputs/mine", max_steps=2000)
        pictures = sample(run.checkpoint, model=model, num_images=16)

    Args:
        model: maps (x_t, t), or (x_t, t, condition) where there are labels, to a tensor of x_t's
            shape. x_t is (B, C, H, W) or (B, D), and t int64 (B,). It is trained in place. The
            checkpoint also has the moving average of its weights.
        data: images (N, C, H, W), uint8 or other numbers, or points (N, D) of about unit size.
        labels: class labels (N,) from 0, for a conditional network. It receives them as
            `condition.label` (B,), with -1 for "any class".
        folder: of the run: checkpoints, metrics and sample grids, as train.py writes them.
        value_range: lowest and highest value of images other than uint8, which are scaled to
            [-1, 1].
        flags: of train.py, for the process, the length, the training, the machine and the output,
            such as `max_minutes=10`, `schedule="cosine"`, `batch_size=64`, `save_every_minutes=5`.

    Returns the result, with the path of the trained `checkpoint`.

    Raises:
        ValueError: a network, data, labels or flags that cannot be used.
        CheckpointError: the folder holds the run of another network or of other data.
        KeyboardInterrupt: Ctrl-C, once the run is saved.
    """
    start, folder = time.monotonic(), os.path.expanduser(folder)
    compiled, model = is_compiled(model), require_trainable(model)
    items = prepare_items(data, value_range)
    dataset = Data(items, *prepare_labels(labels, len(items)))
    device, run_folder = own_device(choose_device(flags.get("device", "auto"))), RunFolder(folder)
    with process_group(device):
        wanted, checkpoint = checkpoint_to_resume(parse(flags, folder))
        wanted = of_own_network(wanted, dataset)
        wanted = with_defaults(wanted, dataset, resumed=checkpoint is not None)
        precision, note = number_format(wanted.precision, checkpoint, device)
        if note:
            say(f"precision: {precision} ({note})")
        set_deterministic(wanted.deterministic)
        config = make_custom_config(wanted, dataset, model, value_range)
        config["train"]["number_format"] = precision
        require_config(config)  # or the checkpoints could not be read again
        if checkpoint is not None:
            require_same_run(checkpoint["config"], config, {}, wanted)
        torch.manual_seed(wanted.seed)
        mode = wanted.compile or ("default" if compiled else None)
        trainer = Trainer(config, device, precision, mode, model=model)
        require_prediction(trainer, dataset)
        if checkpoint is not None:
            require_state(checkpoint, trainer.model, trainer.optimizers)
            trainer.load(checkpoint)
        config["train"] |= plan_of(wanted, checkpoint)
        board = wanted.tensorboard
        try:
            run = Run(config, trainer, dataset, run_folder, start=start, tensorboard=board)
        except Finished as finished:
            return trained_before(run_folder, finished)
        with session(run, checkpoint):
            signal = run.train()
    if signal:
        raise KeyboardInterrupt(f"saved {run_folder.interrupted}; the same call resumes")
    return run.result(signal)


def parse(flags: dict, folder: str | Path) -> RunConfig:
    """The flags, as train.py would parse them. Raises ValueError for those that do not apply."""
    parsed = TRAIN.keywords(**flags)
    unused = NOT_FLAGS | set(parsed.named(section="model")) | set(parsed.named(section="data"))
    if unused & parsed.given:
        raise ValueError(f"fit() has no argument {min(unused & parsed.given)}")
    return replace(
        parsed,
        dataset=CUSTOM,
        model=CUSTOM,
        flip=False,
        output_dir=str(folder),
        resume="newest",
        given=parsed.given | {"dataset", "model", "flip", "output_dir"},
    )


def of_own_network(flags: RunConfig, data: Data) -> RunConfig:
    """The flags with the defaults for a network that is not one of this project's."""
    return replace(
        flags,
        class_conditional=data.labels is not None,
        optimizer=flags.optimizer or "adamw",
        lr=flags.lr or 1e-3,
    )


def make_custom_config(
    flags: RunConfig, data: Data, model: nn.Module, value_range: tuple[float, float] | None
) -> dict:
    """The configuration that checkpoints keep: plain values only."""
    return {
        "data": {
            "dataset": CUSTOM,
            "data_dir": "",
            "shape": list(data.items.shape[1:]),
            "range": None if value_range is None else [float(value) for value in value_range],
            "count": len(data.items),
            "classes": data.classes,
            "class_counts": data.class_counts,
            "digest": None,
            "flip": False,
        },
        "model": {
            "name": CUSTOM,
            "class": type(model).__name__,
            "num_classes": len(data.classes) or None,
        },
        "diffusion": process_config(flags, data),
        "train": train_config(flags),
    }
