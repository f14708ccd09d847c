"""What two processes compute for test_distributed.py and test_sharded.py."""

from contextlib import nullcontext
from math import nan

import torch
from torch import Tensor

import train
from cli.training import TRAIN
from conditions import Condition
from dataset.items import epoch_order
from dataset.registry import load_dataset
from dataset.types import Data
from distributed import gather, is_main, process_group, rank, share, world_size
from models import MODELS
from processes import run_train
from training import loop, plan
from training.conditioning import condition_of
from training.config import make_config, with_defaults
from training.plan import learning_rate
from training.preview import Preview
from training.stop import StopSignals
from training.trainer import Trainer

SIZE = 128  # items of a training step, in all processes together
CPU = torch.device("cpu")
FLAGS = ["--channels", "8", "--device", "cpu", "--precision", "fp32", "--no-class-conditional"]
# Not muon: it rounds its matrices to bfloat16, where a difference in the last bit becomes large.
FLAGS += ["--optimizer", "adamw"]
SHALLOW = ["--multipliers", "1"]  # a U-Net of one resolution
CONDITIONAL = [*SHALLOW, "--class-conditional", "--label-dropout", "0.3", "--flip"]
CASES = {  # flags, and the number of training steps
    "plain": (CONDITIONAL, 2),
    "accumulated": ([*CONDITIONAL, "--grad-accum", "2", "--grad-checkpoint"], 2),
    "stratified": ([*SHALLOW, "--timestep-sampling", "stratified"], 2),
    "nearest": ([*SHALLOW, "--noise-assignment", "nearest"], 2),
    "optimal": ([*SHALLOW, "--noise-assignment", "optimal"], 2),
    "consistency": ([*CONDITIONAL, "--tune", "consistency", "--stage-steps", "2"], 3),
    "meanflow": ([*CONDITIONAL, "--tune", "meanflow"], 2),
    "captions": ([*SHALLOW, "--text-conditional", "--label-dropout", "0.3"], 2),
}


def make_trainer(*flags: str, dataset: str = "digits") -> tuple[Trainer, Data, dict]:
    """A trainer, its data, and their configuration."""
    data = load_dataset(dataset)
    if "--text-conditional" in flags:
        captions = [f"the digit {data.classes[label]}" for label in data.labels.tolist()]
        data = data._replace(captions=captions)
    parsed = with_defaults(TRAIN.parse([*FLAGS, *flags, "--dataset", dataset]), data)
    parsed.batch_size = SIZE // parsed.grad_accum // world_size()
    config = make_config(parsed, data)
    trainer = Trainer(config, CPU, parsed.precision, parsed.compile)
    trainer.condition = condition_of(data, config)
    return trainer, data, config


def train_step(trainer: Trainer, data: Data) -> float:
    """A training step with this process's share of the items. Returns the loss."""
    mine = share(SIZE)
    chosen = epoch_order(len(data.items), 0, trainer.step)[mine.start : mine.stop]
    condition = None if trainer.condition is None else trainer.condition[chosen]
    lr = learning_rate(trainer.step, None, {"lr": 1e-3, "warmup_steps": 100})
    return trainer.train_step(data.items[chosen], condition, lr)[0].item()


def weights(network: torch.nn.Module) -> Tensor:
    """All weights and buffers of a network (N,)."""
    return torch.cat([tensor.flatten().float() for tensor in network.state_dict().values()])


def losses_and_weights(flags: list[str], steps: int) -> tuple[list[float], Tensor]:
    """The losses of some training steps, and the weights (steps + 1, N) before and after each."""
    trainer, data, _ = make_trainer(*flags)
    losses, path = [], [weights(trainer.model)]
    for _ in range(steps):
        losses.append(train_step(trainer, data))
        path.append(weights(trainer.model))
    return losses, torch.stack(path)


def skip_a_step() -> dict:
    """Three training steps; the loss of the second is not finite in one of the processes."""
    trainer, data, _ = make_trainer(*SHALLOW)
    train_step(trainer, data)
    before, loss = weights(trainer.model), trainer.diffusion.loss
    if rank() == 1:
        trainer.diffusion.loss = lambda *args, **kwargs: nan * loss(*args, **kwargs)
    train_step(trainer, data)
    trainer.diffusion.loss, unchanged = loss, torch.equal(weights(trainer.model), before)
    train_step(trainer, data)
    return {
        "skipped": gather(torch.tensor([trainer.skipped])).tolist(),
        "unchanged": gather(torch.tensor([unchanged])).tolist(),
        "weights": gather(weights(trainer.model)[None]),
    }


def train_network(name: str) -> dict:
    """Two training steps of a network: the losses, and the weights in each process."""
    dataset = "digits" if MODELS[name].kind == "images" else "moons"
    trainer, data, _ = make_trainer("--model", name, dataset=dataset)
    return {
        "losses": [train_step(trainer, data) for _ in range(2)],
        "weights": gather(weights(trainer.model)[None]),
        "averages": gather(weights(trainer.ema.module)[None]),
    }


def evaluated_images() -> Tensor:
    """Images as --eval-interval measures them, of a network after two training steps."""
    flags = [*SHALLOW, "--class-conditional", "--max-steps", "100"]
    trainer, data, config = make_trainer(*flags)
    for _ in range(2):
        train_step(trainer, data)
    preview = Preview(trainer, config, data.items, Condition(data.labels), StopSignals())
    return preview.evaluated(steps=3, count=31)


def compute(path: str) -> None:
    """Write to a file what test_distributed.py compares with the results of one process."""
    with process_group(CPU):
        found = {name: losses_and_weights(*case) for name, case in CASES.items()}
        found["skipped"] = skip_a_step()
        found["evaluated"] = evaluated_images()
        found["networks"] = {name: train_network(name) for name in MODELS}
        if is_main():
            torch.save(found, path)


def train_sharded(*flags: str) -> None:
    """The runs of test_sharded.py, one after the other."""

    def run(*arguments: str) -> None:
        assert run_train(*flags, *arguments) == 0

    small = ["--batch-size", "32", "--max-steps", "1", "--validation", "64", "--fsdp"]
    unet = ["--batch-size", "32", "--max-steps", "9", "--multipliers", "1"]
    muon = [*unet, "--max-steps", "3", "--optimizer", "muon", "--fsdp", "--dropout", "0.1"]
    muon += ["--grad-accum", "2", "--grad-checkpoint"]
    mlp = [*small, "--dataset", "moons", "--precision", "bf16"]
    step_8 = "whole/checkpoints/model_step_00000008.pt"
    step_2 = "muon/checkpoints/model_step_00000002.shards"
    plan.FIRST_SNAPSHOT = 8
    train.process_group = lambda device: nullcontext()  # one for all of the runs
    with process_group(CPU):
        run(*unet, "--fsdp", "--snapshots", "12", "--output-dir", "sharded")
        run("--resume", step_8, "--fsdp", "--output-dir", "mixed")
        run(*muon, "--output-dir", "muon")
        run("--resume", step_2, "--optimizer", "muon", "--output-dir", "muon_resumed")
        loop.LOG_EVERY, loop.FIRST_GRID, loop.FIRST_GRID_STEP, loop.SOON = 3, -1, 3, -1
        grid = ["--model", "naive_unet", "--max-steps", "5", "--sample-interval", "1"]
        run(*small, *grid, "--output-dir", "naive_unet")  # samples/first.png after three steps
        for model in ("cnn", "dit"):
            run(*small, "--model", model, "--output-dir", model)
        run(*mlp, "--output-dir", "mlp")
