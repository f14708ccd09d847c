"""The training step: data -> loss -> backward -> optimizer -> moving average."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data import flipped, to_unit
from diffusion import GaussianDiffusion
from models import build_model
from training.ema import EMA
from training.optimizers import OPTIMIZERS
from utils import autocast, derive_seed, memory_format


class Trainer:
    """What an update changes (weights, their average, the optimizer), and the update."""

    def __init__(self, config: dict, device: torch.device, precision: str, compiled: bool):
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
        self.network = torch.compile(self.model) if compiled else self.model
        self.diffusion = GaussianDiffusion(**config["diffusion"]).to(device)
        self.optimizers = OPTIMIZERS[train["optimizer"]](self.model, train["lr"])
        self.ema = EMA(self.model, train["ema_decay"])
        if train["grad_checkpoint"]:  # of the network that learns, not of its copy that samples
            recompute_blocks(self.model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.step, self.lr = 0, train["lr"]  # lr: of the last update

    def update(self, items: Tensor, y: Tensor | None, lr: float) -> tuple[Tensor, Tensor]:
        """One update on uint8 images (B, C, H, W) or points (B, 2), with labels (B,) for a
        conditional network.

        Returns the loss and the gradient's norm. Its random numbers depend on the seed and the
        step alone, and are drawn for all of the update at once, so that neither a resume nor the
        number of batches it is split into changes them.
        """
        torch.manual_seed(derive_seed("step", self.seed, self.step))
        items = flipped(items) if self.flip else items
        x_0 = to_unit(items.to(self.device, memory_format=memory_format(self.device, items)))
        t = self.diffusion.sample_t(len(x_0), self.timestep_sampling)
        noise = self.diffusion.sample_noise(x_0, self.noise_assignment)
        y = None if y is None else self.dropped(y.to(self.device))

        total = torch.zeros((), device=self.device)
        size = len(x_0) // self.grad_accum
        for part in (slice(i * size, (i + 1) * size) for i in range(self.grad_accum)):
            labels = None if y is None else y[part]
            with autocast(self.device, self.precision):
                loss = self.diffusion.loss(
                    self.network, x_0[part], labels, t=t[part], noise=noise[part]
                )
            loss = loss / self.grad_accum
            self.scaler.scale(loss).backward()
            total += loss.detach()

        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        # fp16 leaves out an update whose gradients overflow: for all of the optimizers or for none,
        # as clipping has spread the overflow to the gradients of all.
        usable = not self.scaler.is_enabled() or bool(norm.isfinite())
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
            if usable:
                self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()
        self.ema.update_parameters(self.model)
        self.step += 1
        self.lr = lr
        return total, norm

    def dropped(self, y: Tensor) -> Tensor:
        """Labels, some of them replaced by the null label (Ho & Salimans 2022, algorithm 1)."""
        drop = torch.rand(len(y), device=y.device) < self.label_dropout
        return torch.where(drop, self.model.num_classes, y)

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": {name: o.state_dict() for name, o in self.optimizers.items()},
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
        }

    def load(self, state: dict) -> None:
        """Go on from a checkpoint."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.ema.n_averaged.fill_(self.step)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizer"][name])
            self.lr = optimizer.param_groups[0]["lr"]
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


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
