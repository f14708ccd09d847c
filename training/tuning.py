"""Tuning: a trained network, the teacher, becomes one that draws in one or two steps."""

import warnings
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from conditions import Condition
from diffusion import GaussianDiffusion, at, call, flow_time
from distributed import rank, world_size
from models import build_model
from objectives import earlier_ratio, pseudo_huber, right_once_clipped
from training.objective import DiffusionObjective, NoisyBatch
from utils import derive_seed, memory_format, unwrapped

SAME_TIME = 0.25  # share of a mean flow's items that learn the velocity itself (r = t)


class PairedBatch(NamedTuple):
    """A batch of items at two noise levels, t and r < t."""

    x_0: Tensor  # (B, ...)
    condition: Condition | None
    t: Tensor  # (B,)
    noise: Tensor  # (B, ...)
    r: Tensor  # (B,), -1 for clean data

    def rows(self, chosen: slice) -> "PairedBatch":
        """Some items of the batch."""
        condition = None if self.condition is None else self.condition[chosen]
        return PairedBatch(
            self.x_0[chosen], condition, self.t[chosen], self.noise[chosen], self.r[chosen]
        )


class TaughtObjective(DiffusionObjective):
    """An objective with a teacher, which is guided with the scale --teacher-guidance.

    Guidance is by the condition, or by `guide`, a weaker network (autoguidance).
    """

    def __init__(self, diffusion: GaussianDiffusion, config: dict, device: torch.device):
        super().__init__(diffusion, config, device)
        train = config["train"]
        self.guidance = train["teacher_guidance"]
        if train["teacher"] is not None:
            self.teacher = frozen_network(config, device)
        if train.get("teacher_guide") is not None:
            self.guide = frozen_network(config, device)

    def taught(
        self, x_t: Tensor, condition: Condition | None, t: Tensor, guided: bool = True
    ) -> Tensor:
        """The clean data (B, ...) that the teacher predicts for x_t (B, ...) at times t (B,)."""
        scale = self.guidance if guided else 1.0
        return with_guidance(self.diffusion, self.teacher, x_t, condition, t, scale, self.guide)


class ConsistencyObjective(TaughtObjective):
    """Consistency tuning in stages.

    Song et al. 2023, arXiv:2303.01469; Geng et al. 2024, arXiv:2406.14548.

    The target for the network's x_0 at t is its own x_0 at r < t, one step of DDIM closer to clean
    data. With each stage, r comes closer to t, until they are neighbours. Then x_0 is the same
    along the whole trajectory, and a single step samples. Both calls have the same dropout.

    The step of DDIM uses the teacher's x_0, with guidance at a fixed scale (a variable scale would
    be an input that the network does not have). So one call samples with guidance, where the
    teacher needs two. Without a teacher, the step uses the training image; a perfect teacher would
    predict the mean of all images that x_t may be.

    The validation loss is always that of the first stage, so that its values can be compared.
    """

    def __init__(self, diffusion: GaussianDiffusion, config: dict, device: torch.device):
        super().__init__(diffusion, config, device)
        self.stage_steps = config["train"]["stage_steps"]
        self.alpha, self.sigma = clean_last(diffusion)
        self.time = self.sigma / (self.alpha + self.sigma)  # as flow matching counts it
        if self.teacher is not None:
            self.label_dropout = 0.0  # the network itself is never guided

    def completed(self, batch: NoisyBatch, step: int) -> PairedBatch:
        """The batch with the lower noise level of each item, at the stage of a step."""
        return PairedBatch(*batch, self.earlier(batch.t, step // self.stage_steps))

    def earlier(self, t: Tensor, stage: int) -> Tensor:
        """The timesteps r (B,), from -1 to t - 1, that timesteps t (B,) are compared with."""
        table = self.diffusion.ratio
        wanted = earlier_ratio(table[t], stage)
        return torch.minimum(torch.searchsorted(table, wanted, right=True) - 1, t - 1)

    def __call__(self, model: nn.Module, batch: PairedBatch) -> Tensor:
        diffusion, (x_0, condition, t, noise, r) = self.diffusion, batch
        x_t = diffusion.q_sample(x_0, t, noise)
        goal = x_0
        if self.teacher is not None:
            goal = self.taught(x_t, condition, t)
        eps = (x_t - at(self.alpha, t, x_t) * goal) / at(self.sigma, t, x_t)
        x_r = at(self.alpha, r, x_t) * goal + at(self.sigma, r, x_t) * eps
        state = random_state(x_t.device)
        with torch.no_grad():
            target = predicted(diffusion, model, x_r, condition, r.clamp(min=0))
            target = target.clamp(-1, 1) if diffusion.clip else target
            target = torch.where((r < 0).view(-1, *[1] * (x_0.ndim - 1)), goal, target)
        set_random_state(x_t.device, state)  # the same dropout
        torch.clear_autocast_cache()  # it may hold the weights without their gradients
        found = predicted(diffusion, model, x_t, condition, t)
        error = found - target
        if diffusion.clip_loss:
            error = error.masked_fill(right_once_clipped(found, target), 0)
        return (self.weight(t, r) * pseudo_huber(error / diffusion.sigma_data)).mean()

    def weight(self, t: Tensor, r: Tensor) -> Tensor:
        """The inverse of the time (B,) between t and r."""
        return 1 / (self.time[t] - self.time[r])


class DistillationObjective(TaughtObjective):
    """Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512, algorithm 2).

    In each stage the network learns to make one step of DDIM where its teacher makes two. The
    network then becomes the teacher of the next stage, which has half as many steps, until one is
    left. The guidance of --teacher-guidance is learned in the first stage.

    The loss is the usual one, for the clean data and the noise that the teacher's two steps imply.
    The configuration keeps how many steps the network has learned ("student_steps").
    """

    def __init__(self, diffusion: GaussianDiffusion, config: dict, device: torch.device):
        super().__init__(diffusion, config, device)
        self.train = config["train"]
        self.stage_steps, self.first = self.train["stage_steps"], self.train["teacher_steps"]
        if self.guidance != 1:
            self.label_dropout = 0.0  # the network itself is never guided
        self.begin(0)

    def begin(self, done: int) -> None:
        """Set what depends on the number of training steps that are done."""
        self.step = done
        self.train["student_steps"] = self.steps_of(max(0, done - 1))

    def steps_of(self, step: int) -> int:
        """The number of sampling steps that the network learns at a training step."""
        return max(1, self.first >> (1 + step // self.stage_steps))

    def has_new_teacher(self, step: int) -> bool:
        """Does a stage end after this number of training steps, and another one follow?"""
        return step % self.stage_steps == 0 and self.steps_of(step) < self.steps_of(step - 1)

    def batch(self, items: Tensor, condition: Condition | None, step: int) -> NoisyBatch:
        self.begin(step + 1)
        self.step = step
        return super().batch(items, condition, step)

    def completed(self, batch: NoisyBatch, step: int) -> NoisyBatch:
        """The batch with its timesteps moved to the nearest that are visited in sampling."""
        count = self.steps_of(self.step)
        visited = torch.tensor([level.t for level in self.diffusion.levels(count)[-2::-1]])
        index = batch.t * count // self.diffusion.timesteps
        return batch._replace(t=visited.to(batch.t.device)[index])

    def __call__(self, model: nn.Module, batch: NoisyBatch) -> Tensor:
        x_t = self.diffusion.q_sample(batch.x_0, batch.t, batch.noise)
        x_0, eps = self.implied(x_t, batch.condition, batch.t)
        return self.diffusion.loss(model, x_0, batch.condition, t=batch.t, noise=eps)

    @torch.no_grad()
    def implied(self, x_t: Tensor, condition: Condition | None, t: Tensor) -> tuple[Tensor, Tensor]:
        """The (x_0, eps) with which one step of DDIM from x_t equals two of the teacher's.

        Appendix G. Both have the shape of x_t (B, ...); t (B,) are timesteps that sampling visits.
        """
        count, tables = self.steps_of(self.step), clean_last(self.diffusion)
        path = torch.tensor([level.t for level in self.diffusion.levels(2 * count)]).to(t.device)
        index = (path == t[:, None]).int().argmax(dim=1)  # path ends with clean data, -1
        x, now = x_t, t
        for following in (path[index + 1], path[index + 2]):
            x_0, eps = self.teacher_says(x, condition, now)
            x = at(tables.alpha, following, x) * x_0 + at(tables.sigma, following, x) * eps
            now = following
        share = at(tables.sigma, now, x) / at(tables.sigma, t, x)
        x_0 = (x - share * x_t) / (at(tables.alpha, now, x) - share * at(tables.alpha, t, x))
        if self.diffusion.clip:
            x_0 = x_0.clamp(-1, 1)
        return x_0, (x_t - at(tables.alpha, t, x) * x_0) / at(tables.sigma, t, x)

    def teacher_says(
        self, x_t: Tensor, condition: Condition | None, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The teacher's (x_0, eps), in the first stage with guidance."""
        first = self.steps_of(self.step) == self.steps_of(0)  # later teachers have learned guidance
        x_0 = self.taught(x_t, condition, t, guided=first)
        alpha, sigma = at(self.diffusion.alpha, t, x_t), at(self.diffusion.sigma, t, x_t)
        return x_0, (x_t - alpha * x_0) / sigma


class MeanFlowObjective(TaughtObjective):
    """Mean flows (Geng et al. 2025, arXiv:2505.13447).

    The network predicts the average velocity u between two times, r < t, so that it can make steps
    of any length.

    On the line z_t = x_t / (alpha + sigma) = (1 - t) x_0 + t noise, differentiating (t - r) u gives
    the identity u = v - (t - r) du/dt (eq. 6), with v the velocity at t. du/dt along the
    trajectory is a product of the Jacobian with (v, 1), by forward-mode differentiation.

    v is the teacher's velocity, with guidance. Without a teacher, v in eq. 6 is the velocity of the
    pair (x_0, noise), and the derivative uses the network's own velocity, which has less variance
    (improved mean flows; Geng et al. 2025, arXiv:2512.02012).
    """

    def __init__(self, diffusion: GaussianDiffusion, config: dict, device: torch.device):
        super().__init__(diffusion, config, device)
        alpha, sigma = clean_last(diffusion)
        self.scale, self.time = flow_time(diffusion.sigma_data * alpha, sigma)  # each (T + 1,)
        index = torch.arange(diffusion.timesteps, device=alpha.device, dtype=torch.float32)
        self.scale_in = diffusion.scale_in * self.scale[:-1]  # of z, as the network receives it
        self.d_scale_in = gradient(self.scale_in, self.time[:-1])
        self.d_index = gradient(index, self.time[:-1])
        with warnings.catch_warnings():  # PyTorch's first use of forward mode warns of its own code
            warnings.simplefilter("ignore", FutureWarning)
            torch.func.jvp(torch.sin, (index,), (index,))
        if self.teacher is not None:
            self.label_dropout = 0.0  # the network itself is never guided

    def batch(self, items: Tensor, condition: Condition | None, step: int) -> PairedBatch:
        batch = super().batch(items, condition, step)
        return batch._replace(r=self.earlier(batch.t, step, world_size(), rank()))

    def completed(self, batch: NoisyBatch, step: int) -> PairedBatch:
        """The batch with an earlier time for each item."""
        return PairedBatch(*batch, self.earlier(batch.t, step))

    def earlier(self, t: Tensor, step: int, parts: int = 1, part: int = 0) -> Tensor:
        """Timesteps r (B,) for t (B,): t itself for `SAME_TIME` of the items, else -1 ... t - 1.

        -1 is clean data. Random numbers are drawn for `parts` batches; t is batch number `part`.
        """
        generator = torch.Generator().manual_seed(derive_seed("span", self.seed, step))
        drawn = torch.rand(2, parts * len(t), generator=generator)
        share, kind = drawn[:, part * len(t) : (part + 1) * len(t)].to(t.device)
        r = torch.searchsorted(self.time[:-1], share * self.time[t]) - 1
        return torch.where(kind < SAME_TIME, t, torch.minimum(r, t - 1))

    def __call__(self, model: nn.Module, batch: PairedBatch) -> Tensor:
        diffusion, (x_0, condition, t, noise, r) = self.diffusion, batch
        s, x_t = diffusion.sigma_data, diffusion.q_sample(x_0, t, noise)
        span = self.time[t] - self.time[r]
        given = replace(condition or Condition(), span=span)
        state = random_state(x_t.device)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # needed by forward mode
            if self.teacher is None:
                velocity = noise - x_0 / s
                now = replace(given, span=torch.zeros_like(span))
                along = call(unwrapped(model), diffusion.scaled(x_t, t), t, now).float()
            else:
                x_0 = self.taught(x_t, condition, t)
                eps = (x_t - at(diffusion.alpha, t, x_t) * x_0) / at(diffusion.sigma, t, x_t)
                velocity = along = eps - x_0 / s
            set_random_state(x_t.device, state)
            derivative = self.derivative(unwrapped(model), x_t, given, t, along)
            target = velocity - span.view(-1, *[1] * (x_0.ndim - 1)) * derivative
        set_random_state(x_t.device, state)  # the same dropout
        torch.clear_autocast_cache()  # it may hold the weights without their gradients
        found = call(model, diffusion.scaled(x_t, t), t, given).float()
        error = found - target
        if diffusion.clip_loss:
            straight = s * (x_t / at(self.scale, t, x_t) - at(self.time, t, x_t) * found)
            error = error.masked_fill(right_once_clipped(straight, x_0), 0)
        return pseudo_huber(error).mean()

    def derivative(
        self, model: nn.Module, x_t: Tensor, condition: Condition, t: Tensor, along: Tensor
    ) -> Tensor:
        """du/dt (B, ...) at x_t (B, ...) in the direction of the velocity `along` (B, ...).

        r is fixed, so that the span t - r grows with t.
        """
        scale_in = at(self.scale_in, t, x_t)
        x_in = at(self.diffusion.scale_in, t, x_t) * x_t
        d_x_in = at(self.d_scale_in, t, x_t) / scale_in * x_in + scale_in * along

        def average(x_in: Tensor, t: Tensor, span: Tensor) -> Tensor:
            return call(model, x_in, t, replace(condition, span=span)).float()

        inputs = (x_in, t.to(x_in.dtype), condition.span)
        tangents = (d_x_in, self.d_index[t], torch.ones_like(condition.span))
        return torch.func.jvp(average, inputs, tangents)[1]


class ReflowObjective(DiffusionObjective):
    """Rectified flow (Liu et al. 2022, arXiv:2209.03003): the diffusion loss of drawn samples.

    Each sample is paired with the noise it came from. The items of the data set are both,
    concatenated along axis 1 (`with_noise`).
    """

    def completed(self, batch: NoisyBatch, step: int) -> NoisyBatch:
        """The batch with its samples and their noise."""
        x_0, noise = batch.x_0.chunk(2, dim=1)
        return batch._replace(x_0=x_0.contiguous(), noise=noise.contiguous())


TUNINGS: dict[str, type[DiffusionObjective]] = {
    "consistency": ConsistencyObjective,
    "distill": DistillationObjective,
    "meanflow": MeanFlowObjective,
    "reflow": ReflowObjective,
}


def frozen_network(config: dict, device: torch.device) -> nn.Module:
    """A network that is not trained, with the configuration of the run."""
    model = build_model(config["model"]).eval().requires_grad_(False)
    return model.to(device, memory_format=memory_format(device))


def gradient(values: Tensor, points: Tensor) -> Tensor:
    """The derivative (T,) of values (T,) at increasing points (T,), by differences."""
    return torch.gradient(values.double(), spacing=(points.double(),))[0].float()


class Tables(NamedTuple):
    """alpha and sigma (T + 1,) of a process; the last row, which is also row -1, is clean data."""

    alpha: Tensor
    sigma: Tensor


def clean_last(diffusion: GaussianDiffusion) -> Tables:
    """The tables of a process, with a row for clean data."""
    one = diffusion.alpha.new_ones(1)
    return Tables(torch.cat([diffusion.alpha, one]), torch.cat([diffusion.sigma, 0 * one]))


def predicted(
    diffusion: GaussianDiffusion,
    model: nn.Module,
    x: Tensor,
    condition: Condition | None,
    t: Tensor,
) -> Tensor:
    """The clean data (B, ...) that a network predicts for x (B, ...) at timesteps t (B,)."""
    out, _ = diffusion.split(call(model, diffusion.scaled(x, t), t, condition).float())
    return diffusion.x_0(out, x, at(diffusion.alpha, t, x), at(diffusion.sigma, t, x))


@torch.no_grad()
def with_guidance(
    diffusion: GaussianDiffusion,
    model: nn.Module,
    x: Tensor,
    condition: Condition | None,
    t: Tensor,
    scale: float,
    guide: nn.Module | None = None,
) -> Tensor:
    """The clean data (B, ...) that a network predicts with guidance, without gradients.

    Guidance is by the condition, or by a weaker network, `guide`. x_0 is clipped as in sampling.
    """
    if scale == 1:
        x_0 = predicted(diffusion, model, x, condition, t)
        return x_0.clamp(-1, 1) if diffusion.clip else x_0
    if guide is not None:
        better = predicted(diffusion, model, x, condition, t)
        weaker = predicted(diffusion, guide, x, condition, t)
    else:
        both = condition.cat(condition.null())
        x_0 = predicted(diffusion, model, torch.cat([x, x]), both, torch.cat([t, t]))
        better, weaker = x_0.chunk(2)
    if diffusion.clip_loss:
        better, weaker = better.clamp(-1, 1), weaker.clamp(-1, 1)
    x_0 = weaker + scale * (better - weaker)
    return x_0.clamp(-1, 1) if diffusion.clip else x_0


def random_state(device: torch.device) -> Tensor:
    """The state of the random numbers that a network draws on a device."""
    if device.type == "mps":
        return torch.mps.get_rng_state()
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Restore a state that `random_state` has returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.set_rng_state(state)
