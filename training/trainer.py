"""The training step: data -> loss -> backward -> optimizer -> moving average."""

import torch
from torch import Tensor

from data import flipped, to_unit
from diffusion import GaussianDiffusion
from models import build_model
from training.ema import EMA
from utils import autocast, derive_seed, memory_format


class Trainer:
    """What an update changes (weights, their average, the optimizer), and the update."""

    def __init__(self, config: dict, device: torch.device, precision: str, compiled: bool):
        train = config["train"]
        self.seed, self.grad_accum = train["seed"], train["grad_accum"]
        self.max_norm = train["grad_clip"] or float("inf")
        self.flip = config["data"]["flip"]
        self.device, self.precision = device, precision
        torch.manual_seed(self.seed)
        self.layout = memory_format(device)
        self.model = build_model(config["model"]).to(device, memory_format=self.layout)
        self.network = torch.compile(self.model) if compiled else self.model
        self.diffusion = GaussianDiffusion(**config["diffusion"]).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=train["lr"], fused=True)
        self.ema = EMA(self.model, train["ema_decay"])
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.step = 0

    def update(self, images: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """One update on uint8 images (B, C, H, W). Returns the loss and the gradient's norm.

        Its random numbers depend on the seed and the step alone, and are drawn for all of the
        update at once, so that neither a resume nor the number of batches it is split into changes
        them.
        """
        torch.manual_seed(derive_seed("step", self.seed, self.step))
        images = flipped(images) if self.flip else images
        x_0 = to_unit(images.to(self.device, memory_format=self.layout))
        t = torch.randint(self.diffusion.timesteps, (len(x_0),), device=self.device)
        noise = torch.randn_like(x_0)

        total = torch.zeros((), device=self.device)
        parts = (x.chunk(self.grad_accum) for x in (x_0, t, noise))
        for x_0, t, noise in zip(*parts, strict=True):
            with autocast(self.device, self.precision):
                loss = self.diffusion.loss(self.network, x_0, t=t, noise=noise) / self.grad_accum
            self.scaler.scale(loss).backward()
            total += loss.detach()

        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.model)
        self.step += 1
        return total, norm

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
        }

    def load(self, state: dict) -> None:
        """Go on from a checkpoint."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.ema.n_averaged.fill_(self.step)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
