"""The loss of items that are held out of training."""

import torch
from torch import Tensor

from dataset.items import to_unit
from distributed import mean, share, world_size
from training.trainer import Trainer
from utils import autocast, derive_seed, memory_format


@torch.no_grad()
def validation_loss(trainer: Trainer, items: Tensor, y: Tensor | None) -> float:
    """The training loss of items (N, ...), by the averaged weights.

    Timesteps and noise are the same at each call, so that the figures of a run compare. Batches are
    those of training, so that validation takes no more memory; each process takes a share of each.
    """
    torch.manual_seed(derive_seed("validation", trainer.seed))
    device, diffusion = trainer.device, trainer.diffusion
    total = torch.zeros((), device=device)
    t = diffusion.sample_t(len(items), trainer.timestep_sampling)
    for first in range(0, len(items), trainer.batch_size):
        batch = slice(first, first + trainer.batch_size)
        x_0 = to_unit(items[batch].to(device, memory_format=memory_format(device, items)))
        noise = diffusion.sample_noise(x_0, trainer.noise_assignment)
        mine = share(len(x_0))
        part = slice(
            mine.start, max(mine.stop, mine.start + 1)
        )  # a sharded network needs all of us
        labels = None if y is None else y[batch][part].to(device)
        with autocast(device, trainer.precision):
            loss = diffusion.loss(
                trainer.ema.module, x_0[part], labels, t=t[batch][part], noise=noise[part]
            )
        total += loss * len(mine)
    return float(mean(total)) * world_size() / len(items)
