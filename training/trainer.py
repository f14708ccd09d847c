"""The training step: batch, loss, backward pass, optimizer, moving average."""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.utils.checkpoint import checkpoint

from checkpoints.averages import LENGTHS, exponent
from checkpoints.checkpoint import FROZEN
from checkpoints.shards import load_shards
from conditions import Condition
from diffusion import GaussianDiffusion
from distributed import mean, world_size
from models import build_model
from training.ema import EMA, PowerEMA
from training.learned import objective_of
from training.objective import Objective
from training.optimizers import OPTIMIZERS, muon_momentum
from training.sharding import alone, placed, shard, unsharded
from utils import RANDOM_STATE, autocast, keep_freed_memory, memory_format


class Diverged(FloatingPointError):
    """The weights themselves have become infinite or not a number."""


class Trainer:
    """The training step, and the state that it changes: weights, their average, the optimizer.

    Each process has a trainer of its own with the same weights. It computes its part of a step and
    takes the mean of all gradients (DistributedDataParallel), or holds a shard of every tensor
    (`sharded`, FSDP).

    Args:
        config: the configuration of the run.
        device, precision: the device to compute on, and the number format: fp32, bf16 or fp16.
        compiled: a mode of torch.compile, or None.
        model: the network. By default it is built from the configuration.
        objective: the loss. By default it is chosen by the configuration (`objective_of`).
    """

    def __init__(
        self,
        config: dict,
        device: torch.device,
        precision: str,
        compiled: str | None = None,
        *,
        model: nn.Module | None = None,
        objective: Objective | None = None,
    ):
        train = config["train"]
        self.seed, self.grad_accum = train["seed"], train["grad_accum"]
        self.batch_size = train["batch_size"]  # of one forward pass
        self.max_norm = train["grad_clip"] or float("inf")
        self.momentum_warmup = train.get("momentum_warmup", 0)
        self.device, self.precision = device, precision
        keep_freed_memory()
        if model is None:
            with RANDOM_STATE:
                torch.manual_seed(self.seed)
                model = build_model(config["model"])
        self.model = model.to(device, memory_format=memory_format(device)).train()
        self.diffusion = self.objective = None
        if objective is None:
            self.diffusion = GaussianDiffusion(**config["diffusion"]).to(device)
            objective = objective_of(self.diffusion, config, device)
        self.objective = objective
        others = {name: getattr(objective, name, None) for name in FROZEN}
        self.frozen = {name: other for name, other in others.items() if other is not None}
        self.ema = EMA(self.model, train["ema_decay"])
        lengths = LENGTHS if train.get("post_hoc_ema") else ()
        self.averages = {length: PowerEMA(self.model, exponent(length)) for length in lengths}
        if train["grad_checkpoint"]:  # not of the average, which has no gradients
            recompute_blocks(self.model)
        self.network, self.sharded = self.model, bool(train["fsdp"])
        self.alone = nullcontext  # gradients are exchanged once a step, not with each batch
        if self.sharded:
            shard(self.model, device)
            shard(self.ema.module, device)
            self.alone = partial(alone, self.model)
        elif world_size() > 1:
            self.network = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
            self.alone = self.network.no_sync
        self.optimizers = OPTIMIZERS[train["optimizer"]](self.model, train["lr"], precision)
        if compiled:
            self.network = torch.compile(self.network, mode=compiled)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.step, self.lr = 0, train["lr"]  # lr: of the last step
        self.skipped = 0  # steps that changed nothing: their loss or gradient was not finite
        self.skipped_in_a_row = 0

    def train_step(
        self, items: Tensor, condition: Condition | None, lr: float
    ) -> tuple[Tensor, Tensor]:
        """One training step on this process's items (B, ...) and their condition, if any.

        Returns the loss and the gradient's norm. If one of them is not finite, only the step number
        changes. Raises Diverged if the step makes the weights infinite.
        """
        with RANDOM_STATE:
            batch = self.objective.batch(items, condition, self.step)
            loss = self.forward_backward(batch, len(items))
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = unsharded(clip_grad_norm_(self.model.parameters(), self.max_norm))
        loss = mean(loss)  # of all processes, so that all decide alike
        if bool((norm + loss).isfinite()):
            self.skipped_in_a_row = 0
            self.apply_gradients(lr)
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        self.scaler.update()
        self.step += 1
        self.lr = lr
        if "teacher" in self.frozen and self.objective.has_new_teacher(self.step):
            self.frozen["teacher"].load_state_dict(self.ema.module.state_dict())
        return loss, norm

    def forward_backward(self, batch, count: int) -> Tensor:
        """The loss of a batch of `count` items, with its gradients, in `grad_accum` parts."""
        total = torch.zeros((), device=self.device)
        size = count // self.grad_accum
        for i in range(self.grad_accum):
            part = batch.rows(slice(i * size, (i + 1) * size))
            with nullcontext() if i + 1 == self.grad_accum else self.alone():
                with autocast(self.device, self.precision):
                    loss = self.objective(self.network, part)
                loss = loss / self.grad_accum
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def apply_gradients(self, lr: float) -> None:
        """Update the weights and their averages. Raises Diverged if the weights become infinite."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
                if "momentum" in group:
                    group["momentum"] = muon_momentum(self.step, self.momentum_warmup)
            self.scaler.step(optimizer)
        if not unsharded(get_total_norm(self.model.parameters())).isfinite():
            raise Diverged(
                f"the weights are not finite after step {self.step + 1:,} and are not saved. "
                "Resume from the last checkpoint (--resume) with a lower --lr"
            )
        average_statistics(self.model)
        for average in (self.ema, *self.averages.values()):
            average.update(self.model, self.step)

    def held_out_loss(self, items: Tensor, condition: Condition | None) -> float:
        """The loss of held-out items (N, ...) by the averaged weights."""
        network, size = self.ema.module, self.batch_size
        if self.frozen:
            self.objective.begin(self.step)
        with RANDOM_STATE:
            return self.objective.held_out_loss(network, items, condition, size, self.precision)

    def state(self) -> dict:
        """The trainer's part of a checkpoint."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": {name: o.state_dict() for name, o in self.optimizers.items()},
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            **{name: network.state_dict() for name, network in self.frozen.items()},
            **({"averages": self.state_of_averages()} if self.averages else {}),
        }

    def state_of_averages(self) -> dict[str, dict[str, Tensor]]:
        """The weights of the post-hoc averages, by their length."""
        return {f"{length:.2f}": a.module.state_dict() for length, a in self.averages.items()}

    def load(self, state: dict) -> None:
        """Continue from a checkpoint, whole or sharded."""
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
        for name, network in self.frozen.items():
            network.load_state_dict(state[name])
        if self.frozen:
            self.objective.begin(self.step)
        for length, average in self.averages.items():
            average.module.load_state_dict(state["averages"][f"{length:.2f}"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def fill_optimizers(self) -> None:
        """Create the optimizers' tensors, to load into, by a step that changes nothing."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = 0.0
                for p in group["params"]:
                    p.grad = torch.zeros_like(p)
            optimizer.step()
            optimizer.zero_grad()


def average_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their BatchNorm statistics, so that they stay equal."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for statistic in (module.running_mean, module.running_var):
                statistic.copy_(mean(statistic))


def recompute_blocks(model: nn.Module) -> None:
    """Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174).

    Only the inputs of each block are kept, and the backward pass computes the rest again, to the
    same bits. Raises ValueError for a network without such blocks.
    """
    blocks = model.recomputable() if hasattr(model, "recomputable") else []
    if not blocks:
        raise ValueError(f"--grad-checkpoint: {type(model).__name__} has no blocks to recompute")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
