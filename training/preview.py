"""Samples during training: the grid of each epoch, and the images that are evaluated."""

import math
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cli.activity import tell
from conditions import Condition
from dataset.items import (
    MAX_HELD_OUT,
    indices_like,
    item_shape,
    kind_of,
    low_resolution,
    noise_shape,
    to_unit,
)
from distributed import gather, is_main, rank, share, world_size
from models import AUTOENCODERS, NOT_DENOISERS
from models.latents import space_of
from samplers import SAMPLERS, generate
from sampling.conditioning import grid_condition
from sampling.plan import default_sampler, default_spacing, default_steps
from training.stop import StopSignals
from training.trainer import Trainer
from utils import NoisePerImage, autocast, memory_format, sides
from visuals.curves import draw_accuracies
from visuals.pictures import compared, pictures_of, square, stacked

GRID_STEPS = 50  # sampling steps of a grid
FIRST_GRID_STEPS = 15  # of the grid before the end of the first epoch
NUM_POINTS = 2000  # points of a picture
EVALUATION_STEPS = 10  # sampling steps of evaluated images
EVALUATED = 2000  # images that are evaluated
AT_ONCE = 250  # of them in a batch, at 32 x 32 pixels
RATIOS = (0.01, 100.0)  # limits of sigma / alpha at which a classifier's accuracy is shown
ACCURACY_LEVELS = 12
COLUMNS = 16  # reconstructed images of a picture


class Preview:
    """Samples by the averaged weights, from the same noise each time.

    Args:
        trainer: has the weights.
        config: the configuration of the run.
        items: the data (N, ...); a row of them is shown below the samples.
        condition: of the items (N), or None for an unconditional network.
        stop: ends sampling early.
    """

    def __init__(
        self,
        trainer: Trainer,
        config: dict,
        items: Tensor,
        condition: Condition | None,
        stop: StopSignals,
    ):
        self.trainer, self.condition, self.stop = trainer, condition, stop
        self.shape = noise_shape(config)
        self.config = config
        space = space_of(trainer.ema.module)
        shape, limits = item_shape(config["data"]), config["data"].get("range")
        self.pictures = pictures_of(shape, limits, space and space.decode)
        floats = items.ndim == 4 and items.is_floating_point()
        self.data = self.pictures.to_items(items) if floats else items
        self.samples: Tensor | None = None  # of the last grid
        self.part = ""  # of the images that are sampled now, for the user
        self.at_once = max(1, AT_ONCE * 32**2 // math.prod(shape[1:]))

    def picture(self, steps: int | None = None) -> np.ndarray | None:
        """A sample grid with a row of the data (H, W, 3), in the main process; None if stopped."""
        self.samples = self.grid(steps)
        if self.samples is None or not is_main():
            return None
        columns, prompts = square(len(self.samples)), self.config["data"].get("prompts", [])
        return self.pictures.grid(self.samples, columns, real=self.data, captions=prompts)

    def grid(self, steps: int | None = None) -> Tensor | None:
        """The items of a sample grid (N, ...), in the format of the data; None if stopped.

        Each process samples its share of them.
        """
        points = kind_of(self.shape) == "points"
        side = 0 if points else max(item_shape(self.config["data"])[1:])
        count = NUM_POINTS if points else 64 if side <= 32 else 16
        mine = share(count)
        # At least one item: a sharded network computes in all processes together.
        indices = torch.arange(mine.start, max(mine.stop, mine.start + 1))
        condition = grid_condition(self.config, indices, square(count))
        x = self.sample(GRID_STEPS if steps is None else steps, indices, condition)
        return None if x is None else self.pictures.to_items(gather(x[: len(mine)]))

    def evaluated(self, steps: int, count: int) -> Tensor | None:
        """uint8 images (count, C, H, W), with the conditions of the data; None if stopped.

        Each process samples equally many, as a sharded network needs all of them.
        """
        each = -(-count // world_size())
        indices, images = torch.arange(rank() * each, (rank() + 1) * each), []
        rows = indices_like(len(self.data), int(indices[-1]) + 1)
        parts = indices.split(self.at_once)
        for number, part in enumerate(parts, start=1):
            self.part = f"batch {number} of {len(parts)}, " if len(parts) > 1 else ""
            if (x := self.sample(steps, part, self.condition_of(rows[part]))) is None:
                return None
            images.append(self.pictures.to_items(x))
        self.part = ""
        return gather(torch.cat(images))[:count].cpu()

    def condition_of(self, rows: Tensor) -> Condition | None:
        """The condition of some items (N,) of the data."""
        return None if self.condition is None else self.condition[rows]

    def sample(self, steps: int, indices: Tensor, condition: Condition | None) -> Tensor | None:
        """The samples of these indices (N,), of a condition (N); None if stopped."""
        trainer, diffusion = self.trainer, self.trainer.diffusion
        noise_like = NoisePerImage(trainer.seed, indices.tolist())
        noise = noise_like.draw(self.shape).to(trainer.device)
        condition = None if condition is None else condition.to(trainer.device)
        denoise = diffusion.denoiser(trainer.ema.module, condition, precision=trainer.precision)
        steps = min(default_steps(self.config, steps), diffusion.timesteps)
        levels = diffusion.levels(steps, default_spacing(self.config))
        sampler = SAMPLERS[default_sampler(self.config)]
        for done, x in enumerate(generate(denoise, noise, levels, noise_like, sampler)):  # noqa: B007
            tell(f"{self.part}step {done} of {len(levels) - 1}")
            if self.stop.received and world_size() == 1:  # the others would wait for our share
                return None
        return x

    def has_own_steps(self) -> bool:
        """Is this a tuned network, with a number of sampling steps of its own?"""
        return default_steps(self.config, 0) > 0

    def seconds_of_grid(self) -> float:
        """The time that a sample grid takes, measured by a few of its steps."""
        self.grid(1)  # the first call is slower than the rest
        start = time.monotonic()
        if self.has_own_steps():
            self.grid()
            return time.monotonic() - start
        self.grid(3)
        return (time.monotonic() - start) * GRID_STEPS / 3

    def seconds_of_evaluation(self) -> float:
        """The time that an evaluation's images take, measured by one step of the first batch."""
        start, count = time.monotonic(), min(EVALUATED, self.at_once * world_size())
        self.evaluated(1, count)
        steps = 1 if self.has_own_steps() else EVALUATION_STEPS
        return (time.monotonic() - start) * steps * EVALUATED / count


class SuperResolutionPreview(Preview):
    """Held-out images in low resolution, enlarged by the averaged weights, and in full.

    Args:
        shown: indices of items.
        others: the other arguments of `Preview`.
    """

    def __init__(self, shown: Tensor, trainer: Trainer, config: dict, *others):
        super().__init__(trainer, config, *others)
        wide = max(item_shape(config["data"])[1:]) > 32
        self.shown = shown[: COLUMNS // 2 if wide else COLUMNS]
        self.size = sides(config["model"]["super_resolution"])

    def condition_of(self, rows: Tensor) -> Condition:
        """The condition of items (N,), with their images in low resolution, without noise."""
        image = low_resolution(to_unit(self.data[rows.to(self.data.device)].cpu()), self.size)
        given = super().condition_of(rows)
        given = Condition() if given is None else given.to(image.device)
        return replace(given, image=image, level=torch.zeros(len(rows)))

    def grid(self, steps: int | None = None) -> Tensor | None:
        """The enlarged images; each process samples its share of them."""
        mine = share(len(self.shown))
        indices = torch.arange(mine.start, max(mine.stop, mine.start + 1))
        condition = self.condition_of(self.shown[indices])
        x = self.sample(GRID_STEPS if steps is None else steps, indices, condition)
        return None if x is None else self.pictures.to_items(gather(x[: len(mine)]))

    def picture(self, steps: int | None = None) -> np.ndarray | None:
        """Low resolution above enlarged images above originals (H, W, 3); None if stopped.

        Only the main process has the picture; the others return None.
        """
        self.samples = self.grid(steps)
        if self.samples is None or not is_main():
            return None
        originals = to_unit(self.data[self.shown.to(self.data.device)].cpu())
        small = self.condition_of(self.shown).image
        return stacked(small, to_unit(self.samples.cpu()), originals)


class ReconstructionPreview:
    """Images, their reconstructions by an autoencoder, and the differences, in place of samples.

    Args:
        trainer: has the weights.
        items: held-out images (N, ...), or some to train on.
    """

    samples = None  # such a network draws none

    def __init__(self, trainer: Trainer, items: Tensor):
        self.trainer, self.items = trainer, items[:: max(1, len(items) // COLUMNS)][:COLUMNS]

    @torch.no_grad()
    def picture(self, steps: int | None = None) -> np.ndarray | None:
        """The images above their reconstructions above the differences (H, W, 3).

        Only the main process has the picture; the others return None. `steps` is ignored.
        """
        if not is_main():
            return None
        model, device = self.trainer.ema.module, self.trainer.device
        x_0 = to_unit(self.items.to(device, memory_format=memory_format(device)))
        with autocast(device, self.trainer.precision):
            reconstructed = model.decode(model.encode(x_0)).float()
        return compared(x_0, reconstructed)

    def seconds_of_grid(self) -> float:
        """The time that the picture takes."""
        start = time.monotonic()
        self.picture()
        return time.monotonic() - start


class AccuracyPreview:
    """Accuracy of a classifier or CLIP network at several noise levels, in place of samples.

    The accuracy of CLIP is that of finding each image's caption among those of a batch.

    Args:
        trainer: has the weights.
        items: held-out items (N, ...), or some to train on.
        condition: of the items (N).
    """

    samples = None  # such a network draws none

    def __init__(self, trainer: Trainer, items: Tensor, condition: Condition):
        self.trainer, self.items, self.condition = trainer, items, condition
        ratios = trainer.diffusion.ratio.clamp(*RATIOS).log()
        marks = torch.linspace(float(ratios[0]), float(ratios[-1]), ACCURACY_LEVELS)
        near = {(level := trainer.diffusion.nearest(float(mark.exp()))).t: level for mark in marks}
        self.levels = [near[t] for t in sorted(near)]
        self.of_classes = condition.label is not None

    @torch.no_grad()
    def accuracies(self) -> dict[float, float]:
        """The share of items that are judged right, by sigma / alpha."""
        trainer, found = self.trainer, {}
        x_0 = to_unit(self.items.to(trainer.device, memory_format=memory_format(trainer.device)))
        noise = NoisePerImage(trainer.seed, range(len(x_0))).draw(x_0.shape[1:]).to(x_0.device)
        for level in self.levels:
            right = []
            for rows in torch.arange(len(x_0)).split(AT_ONCE):
                t = torch.full((len(rows),), level.t, device=x_0.device)
                x_t = trainer.diffusion.q_sample(x_0[rows], t, noise[rows])
                right.append(self.right(x_t, t, self.condition[rows]))
            found[level.ratio] = torch.cat(right).double().mean().item()
        return found

    def right(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """bool (B,): for which noisy items x_t (B, ...) the network's answer is right."""
        trainer = self.trainer
        with autocast(trainer.device, trainer.precision):
            out = trainer.ema.module(trainer.diffusion.scaled(x_t, t), t, condition)
        if self.of_classes:
            return out.argmax(dim=1) == condition.label
        images, captions = out.unbind(dim=1)
        chosen = (images @ captions.T).argmax(dim=1)
        return (condition.tokens[chosen] == condition.tokens).all(dim=1)

    def picture(self, steps: int | None = None) -> np.ndarray | None:
        """A diagram of the accuracies (H, W, 3), in the main process; `steps` is ignored."""
        among = "class" if self.of_classes else f"caption, among {min(AT_ONCE, len(self.items))},"
        return draw_accuracies(self.accuracies(), among) if is_main() else None

    def seconds_of_grid(self) -> float:
        """The time that the diagram takes."""
        start = time.monotonic()
        self.picture()
        return time.monotonic() - start


def preview_of(
    trainer: Trainer,
    config: dict,
    items: Tensor,
    condition: Condition | None,
    held_out: Tensor,
    stop: StopSignals,
) -> Preview | AccuracyPreview | ReconstructionPreview:
    """The preview for the network of a run; the classes explain the arguments.

    `held_out` are the indices of the held-out items.
    """
    name = config["model"]["name"]
    if name not in NOT_DENOISERS and not config["model"].get("super_resolution"):
        return Preview(trainer, config, items, condition, stop)
    some = held_out if len(held_out) else torch.arange(min(len(items), MAX_HELD_OUT))
    if name not in NOT_DENOISERS:
        return SuperResolutionPreview(some, trainer, config, items, condition, stop)
    if name in AUTOENCODERS:
        return ReconstructionPreview(trainer, items[some])
    return AccuracyPreview(trainer, items[some], condition[some])
