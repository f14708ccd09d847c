"""What test_distributed.py lets two processes compute, and compares with what one does.

torchrun --nproc-per-node=2 tests/two_processes.py FILE
"""

import sys
from math import nan
from pathlib import Path

import torch
from torch import Tensor

import train
from dataset.items import epoch_order
from dataset.registry import load_dataset
from dataset.types import Data
from distributed import gather, is_main, process_group, rank, share, world_size
from models import MODELS
from training.config import make_config
from training.folder import RunFolder
from training.plan import learning_rate
from training.run import Run
from training.trainer import Trainer

SIZE = 128  # data of an update, of all processes
FLAGS = ["--channels", "8", "--device", "cpu", "--precision", "fp32"]
# Not muon: it rounds its matrices to bfloat16, where a difference in the last bit becomes large.
FLAGS += ["--optimizer", "adamw"]
CONDITIONAL = ["--class-conditional", "--label-dropout", "0.3", "--flip"]
CASES = {  # flags, and how many updates
    "plain": (CONDITIONAL, 50),
    "accumulated": ([*CONDITIONAL, "--grad-accum", "2", "--grad-checkpoint"], 5),
    "stratified": (["--timestep-sampling", "stratified"], 5),
    "nearest": (["--noise-assignment", "nearest"], 5),
    "optimal": (["--noise-assignment", "optimal"], 5),
}


def start(*flags: str, dataset: str = "digits") -> tuple[Trainer, Data, dict]:
    """A trainer, what it learns, and their configuration."""
    args, data = train.parse_args([*FLAGS, *flags, "--dataset", dataset]), load_dataset(dataset)
    args.batch_size = SIZE // args.grad_accum // world_size()
    config = make_config(args, data)
    return Trainer(config, torch.device("cpu"), args.precision, args.compile), data, config


def update(trainer: Trainer, data: Data) -> float:
    """An update with this process's share of a step's data. Returns the loss."""
    mine = share(SIZE)
    chosen = epoch_order(len(data.items), 0, trainer.step)[mine.start : mine.stop]
    conditional = getattr(trainer.model, "num_classes", None)
    y = data.labels[chosen] if conditional else None
    lr = learning_rate(trainer.step, None, {"lr": 1e-3, "warmup_steps": 100})
    return trainer.update(data.items[chosen], y, lr)[0].item()


def weights(trainer: Trainer) -> Tensor:
    """All that the network has learned (N,)."""
    tensors = trainer.model.state_dict().values()
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])


def averages(trainer: Trainer) -> Tensor:
    tensors = trainer.ema.module.state_dict().values()
    return torch.cat([tensor.flatten().float() for tensor in tensors])


def walk(flags: list[str], steps: int) -> tuple[list[float], Tensor]:
    """The losses of some updates, and the weights (steps + 1, N) before and after each."""
    trainer, data, _ = start(*flags)
    losses, walked = [], [weights(trainer)]
    for _ in range(steps):
        losses.append(update(trainer, data))
        walked.append(weights(trainer))
    return losses, torch.stack(walked)


def leave_out() -> dict:
    """Three updates, of which the second has no finite loss in one of the processes."""
    trainer, data, _ = start()
    update(trainer, data)
    before, loss = weights(trainer), trainer.diffusion.loss
    if rank() == 1:
        trainer.diffusion.loss = lambda *args, **kwargs: nan * loss(*args, **kwargs)
    update(trainer, data)
    trainer.diffusion.loss, unchanged = loss, torch.equal(weights(trainer), before)
    update(trainer, data)
    return {
        "skipped": gather(torch.tensor([trainer.skipped])).tolist(),
        "unchanged": gather(torch.tensor([unchanged])).tolist(),
        "weights": gather(weights(trainer)[None]),
    }


def network(name: str) -> dict:
    """Two updates of a network: the losses, and what each process then has."""
    dataset = "digits" if MODELS[name].kind == "images" else "moons"
    trainer, data, _ = start("--model", name, dataset=dataset)
    return {
        "losses": [update(trainer, data) for _ in range(2)],
        "weights": gather(weights(trainer)[None]),
        "averages": gather(averages(trainer)[None]),
    }


def evaluated(folder: Path) -> Tensor:
    """Images as --eval-interval measures them, of a network that has learned for a while."""
    trainer, data, config = start("--class-conditional", "--max-steps", "100")
    for _ in range(10):
        update(trainer, data)
    job = Run(config, trainer, data, RunFolder(folder), start=0.0)
    return job.evaluated(steps=3, count=31)


def main(path: str) -> None:
    with process_group(torch.device("cpu")):
        found = {name: walk(*case) for name, case in CASES.items()}
        found["left out"] = leave_out()
        found["evaluated"] = evaluated(Path(path).parent)
        found["networks"] = {name: network(name) for name in MODELS}
        if is_main():
            torch.save(found, path)


if __name__ == "__main__":
    main(sys.argv[1])
