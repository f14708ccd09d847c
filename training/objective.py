"""Objectives: each draws the batch of a training step, and computes its loss."""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli.activity import tell
from cli.sampling import MAX_AUGMENTATION
from conditions import Condition, augmented
from dataset.items import flipped, low_resolution, to_unit
from diffusion import GaussianDiffusion
from distributed import gather, mean, rank, share, world_size
from models.autoencoder import latent_shape
from utils import autocast, derive_seed, memory_format, set_seed, sides


class Objective(Protocol):
    """The interface of objectives: the training loop can train any loss that has it."""

    def batch(self, items: Tensor, condition: Condition | None, step: int):
        """The batch of a training step, with all random numbers drawn; `rows` slices it.

        Args:
            items: this process's items (B, ...), as the data set holds them.
            condition: the condition of the items (B), or None.
            step: the training step, from 0; random numbers depend only on it and the seed.
        """

    def __call__(self, model: nn.Module, batch) -> Tensor:
        """The loss of a batch, or of a slice of it: a scalar, the mean over its items."""

    def held_out_loss(
        self,
        model: nn.Module,
        items: Tensor,
        condition: Condition | None,
        size: int,
        precision: str,
    ) -> float:
        """The mean loss of held-out items, in batches of `size`; the same draws at each call."""


class NoisyBatch(NamedTuple):
    """Clean data with the timesteps and the noise to learn from."""

    x_0: Tensor  # (B, ...)
    condition: Condition | None
    t: Tensor  # (B,)
    noise: Tensor  # (B, ...)

    def rows(self, chosen: slice) -> "NoisyBatch":
        """Some items of the batch."""
        condition = None if self.condition is None else self.condition[chosen]
        return NoisyBatch(self.x_0[chosen], condition, self.t[chosen], self.noise[chosen])


class DiffusionObjective:
    """The diffusion loss, for a network with the prediction type of its process.

    `teacher` and `guide` are other networks that the loss needs, or None. They are not trained, and
    checkpoints keep their weights.

    Args:
        diffusion: the process.
        config: the configuration of the run.
        device: the device to compute on.
    """

    teacher: nn.Module | None = None
    guide: nn.Module | None = None

    def __init__(self, diffusion: GaussianDiffusion, config: dict, device: torch.device):
        train = config["train"]
        self.diffusion, self.device, self.seed = diffusion, device, train["seed"]
        self.timestep_sampling = train["timestep_sampling"]
        self.noise_assignment = train["noise_assignment"]
        self.label_dropout = train["label_dropout"]
        self.flip = config["data"]["flip"]

    def __call__(self, model: nn.Module, batch: NoisyBatch) -> Tensor:
        return self.diffusion.loss(model, batch.x_0, batch.condition, t=batch.t, noise=batch.noise)

    def batch(self, items: Tensor, condition: Condition | None, step: int) -> NoisyBatch:
        """Draw random numbers for all processes of a training step, and keep this process's part.

        So neither a resume nor the number of processes or batches changes the draws. Only dropout
        draws for each process separately.
        """
        set_seed(derive_seed("step", self.seed, step), self.device)
        count = len(items) * world_size()
        mine = slice(rank() * len(items), (rank() + 1) * len(items))
        if self.flip:
            items = flipped(items, (torch.rand(count)[mine] < 0.5).to(items.device))
        x_0 = to_unit(items.to(self.device, memory_format=memory_format(self.device, items)))
        t = self.diffusion.sample_t(count, self.timestep_sampling)[mine]
        noise = self.noise(x_0, count)[mine]
        if condition is not None:  # Ho & Salimans 2022, algorithm 1
            dropped = torch.rand(count, device=self.device)[mine] < self.label_dropout
            condition = condition.to(self.device).dropped(dropped)
        set_seed(derive_seed("dropout", self.seed, step, rank()), self.device)
        return self.completed(NoisyBatch(x_0, condition, t, noise), step)

    def conditioned(
        self, condition: Condition | None, x_0: Tensor, step: int, parts: int = 1, part: int = 0
    ) -> Condition | None:
        """The condition (B), with the fields that are computed from clean data x_0 (B, ...).

        Random numbers depend only on the seed and the step. They are drawn for `parts` batches of
        this size; x_0 is batch number `part`.
        """
        return condition

    def begin(self, done: int) -> None:
        """Set what depends on the number of training steps that are done."""

    def has_new_teacher(self, step: int) -> bool:
        """Does the network become its own teacher after this number of training steps?"""
        return False

    def completed(self, batch: NoisyBatch, step: int) -> NoisyBatch:
        """The batch of a step with everything that the loss needs."""
        return batch

    def noise(self, x_0: Tensor, count: int) -> Tensor:
        """The noise (count, ...) of all processes, of which x_0 is this process's part."""
        if count == len(x_0):
            everything = x_0
        elif self.noise_assignment == "independent":  # depends on the shape only
            everything = x_0.new_empty(count, *x_0.shape[1:])
        else:
            everything = gather(x_0)
        everything = everything.to(memory_format=memory_format(self.device, x_0))
        return self.diffusion.sample_noise(everything, self.noise_assignment)

    @torch.no_grad()
    def held_out_loss(
        self,
        model: nn.Module,
        items: Tensor,
        condition: Condition | None,
        size: int,
        precision: str,
    ) -> float:
        """The mean training loss of items (N, ...), with the same timesteps and noise each time.

        Each process computes its share of each batch.
        """
        set_seed(derive_seed("validation", self.seed), self.device)
        total = torch.zeros((), device=self.device)
        t = self.diffusion.sample_t(len(items), self.timestep_sampling)
        for first in range(0, len(items), size):
            tell(f"{first:,} of {len(items):,}")
            rows = slice(first, first + size)
            layout = memory_format(self.device, items)
            x_0 = to_unit(items[rows].to(self.device, memory_format=layout))
            noise = self.diffusion.sample_noise(x_0, self.noise_assignment)
            mine = share(len(x_0))
            # At least one item: a sharded network computes in all processes together.
            part = slice(mine.start, max(mine.stop, mine.start + 1))
            given = None if condition is None else condition[rows].to(self.device)
            given = self.conditioned(given, x_0, -1 - first)
            batch = self.completed(NoisyBatch(x_0, given, t[rows], noise), 0).rows(part)
            with autocast(self.device, precision):
                total += self(model, batch) * len(mine)
        return float(mean(total)) * world_size() / len(items)


class SuperResolutionObjective(DiffusionObjective):
    """The diffusion loss of a network that is conditioned on each image in low resolution.

    That image has noise of a random level (conditioning augmentation; Ho et al. 2021).
    """

    def __init__(self, diffusion: GaussianDiffusion, config: dict, device: torch.device):
        super().__init__(diffusion, config, device)
        self.size = sides(config["model"]["super_resolution"])

    def batch(self, items: Tensor, condition: Condition | None, step: int) -> NoisyBatch:
        batch = super().batch(items, condition, step)
        found = self.conditioned(batch.condition, batch.x_0, step, world_size(), rank())
        return batch._replace(condition=found)

    def conditioned(
        self, condition: Condition | None, x_0: Tensor, step: int, parts: int = 1, part: int = 0
    ) -> Condition:
        """The condition with the low-resolution images and the level of their noise."""
        generator = torch.Generator().manual_seed(derive_seed("augmentation", self.seed, step))
        count, mine = parts * len(x_0), slice(part * len(x_0), (part + 1) * len(x_0))
        image = low_resolution(x_0, self.size)
        level = MAX_AUGMENTATION * torch.rand(count, generator=generator)[mine].to(x_0.device)
        noise = torch.randn(count, *image.shape[1:], generator=generator)[mine].to(x_0.device)
        return replace(condition or Condition(), image=augmented(image, level, noise), level=level)


class NoisyClassifierObjective(DiffusionObjective):
    """Cross-entropy of the classes of noisy images; the noise is that of the diffusion loss."""

    def __init__(self, diffusion: GaussianDiffusion, config: dict, device: torch.device):
        super().__init__(diffusion, config, device)
        self.label_dropout = 0.0  # the labels are what is learned

    def __call__(self, model: nn.Module, batch: NoisyBatch) -> Tensor:
        x_t = self.diffusion.q_sample(batch.x_0, batch.t, batch.noise)
        scores = model(self.diffusion.scaled(x_t, batch.t), batch.t)  # (B, classes)
        return F.cross_entropy(scores.float(), batch.condition.label)


class ClipObjective(NoisyClassifierObjective):
    """Contrastive loss of noisy images and captions (Radford et al. 2021, figure 3).

    Each image is matched to its caption among those of the batch, and each caption to its image.
    Equal captions of a batch count as one.
    """

    def __call__(self, model: nn.Module, batch: NoisyBatch) -> Tensor:
        x_t = self.diffusion.q_sample(batch.x_0, batch.t, batch.noise)
        embeddings = model(self.diffusion.scaled(x_t, batch.t), batch.t, batch.condition)
        images, captions = embeddings.unbind(dim=1)  # each (B, D)
        similarities = images @ captions.T  # (B, B)
        tokens = batch.condition.tokens
        same = (tokens[:, None] == tokens).all(dim=2).float()
        target = same / same.sum(dim=1, keepdim=True)
        by_image = F.cross_entropy(similarities, target)
        return (by_image + F.cross_entropy(similarities.T, target)) / 2


class AutoencoderObjective(DiffusionObjective):
    """Mean absolute error of reconstructions, and the penalty of the autoencoder.

    The noise of the latents is the first part of the batch's noise, which has more numbers. If set,
    `feature_distance(reconstructions, images)`, a scalar, is added with the weight of
    --feature-loss.
    """

    feature_distance: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(self, diffusion: GaussianDiffusion, config: dict, device: torch.device):
        super().__init__(diffusion, config, device)
        self.shape = latent_shape(config["model"])
        self.feature_weight = config["train"].get("feature_loss", 0.0)

    def __call__(self, model: nn.Module, batch: NoisyBatch) -> Tensor:
        noise = batch.noise.flatten(1)[:, : prod(self.shape)].view(-1, *self.shape)
        reconstruction, penalty = model(batch.x_0, noise)
        loss = F.l1_loss(reconstruction.float(), batch.x_0) + penalty
        if self.feature_distance is not None:
            loss = loss + self.feature_weight * self.feature_distance(
                reconstruction.float(), batch.x_0
            )
        return loss


# of the networks in `models.NOT_DENOISERS`
OBJECTIVES = {
    "classifier": NoisyClassifierObjective,
    "clip": ClipObjective,
    "autoencoder": AutoencoderObjective,
}
