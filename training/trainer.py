"""The training step: data -> loss -> backward -> optimizer -> moving average."""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.utils.checkpoint import checkpoint

from checkpoints.shards import load_shards
from dataset.items import flipped, to_unit
from diffusion import GaussianDiffusion
from distributed import gather, mean, rank, world_size
from models import build_model
from training.ema import EMA
from training.optimizers import OPTIMIZERS
from training.sharding import alone, placed, shard, whole
from utils import autocast, derive_seed, memory_format


class Diverged(FloatingPointError):
    """The weights themselves have become infinite or not a number."""


class Trainer:
    """What an update changes (weights, their average, the optimizer), and the update.

    Where there are several processes, each has its own trainer with the same weights, computes its
    part of an update, and takes the mean of all gradients (DistributedDataParallel), or holds a
    shard of all that it has (`sharded`, FSDP).
    """

    def __init__(self, config: dict, device: torch.device, precision: str, compiled: str | None):
        train = config["train"]
        self.seed, self.grad_accum = train["seed"], train["grad_accum"]
        self.batch_size = train["batch_size"]  # of what is computed at once
        self.max_norm = train["grad_clip"] or float("inf")
        self.timestep_sampling = train["timestep_sampling"]
        self.noise_assignment = train["noise_assignment"]
        self.label_dropout = train["label_dropout"]
        self.flip = config["data"]["flip"]
        self.device, self.precision = device, precision
        torch.manual_seed(self.seed)
        self.model = build_model(config["model"]).to(device, memory_format=memory_format(device))
        self.diffusion = GaussianDiffusion(**config["diffusion"]).to(device)
        self.ema = EMA(self.model, train["ema_decay"])
        if train["grad_checkpoint"]:  # of the network that learns, not of its copy that samples
            recompute_blocks(self.model)
        self.network, self.sharded = self.model, bool(train["fsdp"])
        self.alone = nullcontext  # gradients are exchanged once an update, not with each batch
        if self.sharded:
            shard(self.model, device)
            shard(self.ema.module, device)
            self.alone = partial(alone, self.model)
        elif world_size() > 1:
            self.network = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
            self.alone = self.network.no_sync
        self.optimizers = OPTIMIZERS[train["optimizer"]](self.model, train["lr"])
        if compiled:  # a mode of torch.compile
            self.network = torch.compile(self.network, mode=compiled)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.step, self.lr = 0, train["lr"]  # lr: of the last update
        self.skipped = 0  # updates that were not made, for a loss or gradient that is not finite
        self.skipped_now = 0  # the last ones in a row

    def update(self, items: Tensor, y: Tensor | None, lr: float) -> tuple[Tensor, Tensor]:
        """One update on uint8 images (B, C, H, W) or points (B, 2), with labels (B,) for a
        conditional network: this process's share of them.

        Returns the loss and the gradient's norm. Its random numbers depend on the seed and the
        step alone, and are drawn for all of the update at once, so that neither a resume nor the
        number of batches or processes it is split into changes them; only dropout's depend on the
        process too. With a loss or gradient that is not finite nothing changes but the step.

        Raises Diverged if the update makes the weights infinite.
        """
        torch.manual_seed(derive_seed("step", self.seed, self.step))
        count = len(items) * world_size()
        mine = slice(rank() * len(items), (rank() + 1) * len(items))
        if self.flip:
            items = flipped(items, (torch.rand(count)[mine] < 0.5).to(items.device))
        x_0 = to_unit(items.to(self.device, memory_format=memory_format(self.device, items)))
        t = self.diffusion.sample_t(count, self.timestep_sampling)[mine]
        noise = self.noise(x_0, count)[mine]
        if y is not None:  # some by the null label (Ho & Salimans 2022, algorithm 1)
            dropped = torch.rand(count, device=self.device)[mine] < self.label_dropout
            y = torch.where(dropped, self.model.num_classes, y.to(self.device))
        torch.manual_seed(derive_seed("dropout", self.seed, self.step, rank()))

        total = torch.zeros((), device=self.device)
        size = len(x_0) // self.grad_accum
        for i in range(self.grad_accum):
            part = slice(i * size, (i + 1) * size)
            labels = None if y is None else y[part]
            last = i + 1 == self.grad_accum
            with nullcontext() if last else self.alone():
                with autocast(self.device, self.precision):
                    loss = self.diffusion.loss(
                        self.network, x_0[part], labels, t=t[part], noise=noise[part]
                    )
                loss = loss / self.grad_accum
                self.scaler.scale(loss).backward()
            total += loss.detach()

        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = whole(clip_grad_norm_(self.model.parameters(), self.max_norm))
        total = mean(total)  # of all processes, so that all decide the same
        if bool((norm + total).isfinite()):
            self.skipped_now = 0
            self.apply(lr)
        else:
            self.skipped, self.skipped_now = self.skipped + 1, self.skipped_now + 1
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        self.scaler.update()
        self.step += 1
        self.lr = lr
        return total, norm

    def apply(self, lr: float) -> None:
        """Change the weights and their average by the gradients."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
            self.scaler.step(optimizer)
        if not whole(get_total_norm(self.model.parameters())).isfinite():
            raise Diverged(f"the weights are not finite after step {self.step + 1:,}")
        share_statistics(self.model)
        self.ema.update(self.model, self.step)

    def noise(self, x_0: Tensor, count: int) -> Tensor:
        """The noise of all of the update (count, ...), of which x_0 is this process's part."""
        if count == len(x_0):
            whole = x_0
        elif self.noise_assignment == "independent":  # which looks at the shape alone
            whole = x_0.new_empty(count, *x_0.shape[1:])
        else:
            whole = gather(x_0)
        whole = whole.to(memory_format=memory_format(self.device, x_0))
        return self.diffusion.sample_noise(whole, self.noise_assignment)

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": {name: o.state_dict() for name, o in self.optimizers.items()},
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
        }

    def load(self, state: dict) -> None:
        """Go on from a checkpoint, whole or sharded."""
        self.step, self.skipped = state["step"], state["skipped"]
        if "shards" in state:
            self.fill_optimizers()
            load_shards(state["shards"], self.state())
            return
        for network, saved in [(self.model, state["model"]), (self.ema.module, state["ema"])]:
            own = network.state_dict()
            network.load_state_dict({k: placed(v, own[k]) for k, v in saved.items()})
        for name, optimizer in self.optimizers.items():
            saved = state["optimizer"][name]
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            for i, values in saved["state"].items():
                for key, value in values.items():
                    values[key] = placed(value, weights[i])
            optimizer.load_state_dict(saved)
            self.lr = optimizer.param_groups[0]["lr"]
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def fill_optimizers(self) -> None:
        """Let the optimizers hold tensors to load into, by a step that changes nothing."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = 0.0
                for p in group["params"]:
                    p.grad = torch.zeros_like(p)
            optimizer.step()
            optimizer.zero_grad()


def share_statistics(model: nn.Module) -> None:
    """Give all processes the mean of what their BatchNorms have seen of the data, so that they go
    on with the same, and average the same."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for seen in (module.running_mean, module.running_var):
                seen.copy_(mean(seen))


def recompute_blocks(model: nn.Module) -> None:
    """Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): of each block only the inputs
    are kept, and the backward pass computes the rest again, to the same bits.

    Raises ValueError for a network without such blocks.
    """
    if not (blocks := model.recomputable()):
        name = type(model).__name__
        raise ValueError(f"--grad-checkpoint: the {name} has no blocks that may be computed twice")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
