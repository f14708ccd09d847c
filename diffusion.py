"""The forward process of a diffusion model, its training loss, and the denoiser that samplers call.

    x_t = alpha_t * x_0 + sigma_t * noise            (Ho et al. 2020, arXiv:2006.11239, eq. 4)

The process does not depend on networks, data sets or devices: a network is an argument, data may
have any shape, and tables are computed once in float64 and stored as float32 buffers. Schedules are
in `schedules.py`, and what a network's output means in `objectives.py`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import schedules
from conditions import Condition
from guidance import Steering
from objectives import (
    LOSS_WEIGHTS,
    NOISE_ASSIGNMENTS,
    PREDICTIONS,
    TIMESTEP_SAMPLINGS,
    Prediction,
    discretized_gaussian_nll,
    gaussian_kl,
    gaussian_nll,
    right_once_clipped,
)
from samplers import AUTO, SAMPLERS, generate
from schedules import CLEAN, MAX_TIMESTEPS, SCHEDULES, SPACINGS, Level
from utils import NoisePerImage, autocast, pick


class GaussianDiffusion(nn.Module):
    """The process q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) over T discrete steps.

    Networks see x_t / sqrt(alpha_t^2 + sigma_t^2), which is x_t itself in the variance-preserving
    case, so that their inputs are of one size in every process.

    Args:
        schedule: a name in `SCHEDULES`.
        timesteps: T, the number of steps; t runs from 0 (least noise) to T-1.
        prediction: a name in `PREDICTIONS`: what the network outputs.
        clip: clip the x_0 that the network implies to [-1, 1] while sampling. Right for images;
            points have no bounds.
        zero_terminal_snr: rescale a variance-preserving schedule to end in exactly pure noise.
        sigma_data: the data's standard deviation, the unit of the prediction's formulas and of the
            network's inputs. 1 gives the formulas of the papers; `edm` needs the true one.
        loss_weight: a name in `LOSS_WEIGHTS`.
        learn_sigma: the network's output has a second half of channels, the variance of the
            reverse steps (Nichol & Dhariwal 2021, section 3.1).
        clip_loss: count no error where clipping the implied x_0 makes it exactly right; see
            `objectives.right_once_clipped`.
        betas: variance of each forward step (T,), in (0, 1]; if given, `schedule` is ignored.

    Raises:
        ValueError: an unknown name, fewer than two timesteps or more than `MAX_TIMESTEPS`, or
            choices that contradict each other.
    """

    def __init__(
        self,
        schedule: str = "cosine",
        timesteps: int = 1000,
        prediction: str = "eps",
        clip: bool = True,
        zero_terminal_snr: bool = False,
        sigma_data: float = 1.0,
        loss_weight: str = "uniform",
        learn_sigma: bool = False,
        clip_loss: bool = False,
        betas: Sequence[float] | None = None,
    ):
        super().__init__()
        if timesteps < 2:
            raise ValueError(f"a diffusion process needs at least 2 timesteps, not {timesteps}")
        if timesteps > MAX_TIMESTEPS:
            raise ValueError(f"timesteps can be at most {MAX_TIMESTEPS:,}, not {timesteps:,}")
        if not 0 < sigma_data < inf:
            raise ValueError(f"sigma_data must be positive, not {sigma_data}")
        if clip_loss and (not clip or loss_weight == "vlb"):
            other = "the weight vlb" if clip else "data that are not clipped"
            raise ValueError(f"clip_loss cannot be used with {other}")
        pick(PREDICTIONS, prediction, "prediction")
        pick(LOSS_WEIGHTS, loss_weight, "loss weight")
        self.named = prediction, loss_weight  # names, because formulas cannot be pickled
        self.is_bound = loss_weight == "vlb"
        self.timesteps, self.clip, self.clip_loss = timesteps, clip, clip_loss
        self.sigma_data, self.learn_sigma = sigma_data, learn_sigma

        make_tables = pick(SCHEDULES, schedule, "schedule")
        if betas is None:
            alpha, sigma = make_tables(timesteps)
        elif len(betas) != timesteps or not all(0 < beta <= 1 for beta in betas):
            raise ValueError(f"betas must be {timesteps} numbers above 0 and at most 1")
        else:
            alpha, sigma = schedules.from_betas(torch.tensor(betas, dtype=torch.float64))
        preserving = torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha))
        if zero_terminal_snr:
            if not preserving:
                raise ValueError(
                    f"zero_terminal_snr does not apply to the schedule {schedule}: it "
                    + ("ends in pure noise already" if alpha[-1] == 0 else "never loses the signal")
                )
            alpha, sigma = schedules.zero_terminal_snr(alpha, sigma)
        if alpha[-1] == 0 and prediction == "eps":
            end = "zero_terminal_snr" if zero_terminal_snr else f"the schedule {schedule}"
            raise ValueError(
                f"prediction eps cannot be used with {end}: it ends in pure noise, where the noise "
                "does not determine the data; use v, flow, x_0 or edm"
            )

        alpha_prev = F.pad(alpha[:-1], (1, 0), value=1.0)
        sigma_prev = F.pad(sigma[:-1], (1, 0), value=0.0)
        # beta_t is the variance of q(x_t | x_t-1); in the variance-preserving case eq. 2's.
        step_alpha = alpha / alpha_prev
        betas = sigma**2 - (step_alpha * sigma_prev) ** 2
        # q(x_{t-1} | x_t, x_0), eq. 6 and 7. At t = 0 its variance is 0; the log uses t = 1 there.
        posterior_variance = betas * sigma_prev**2 / sigma**2
        posterior_log_variance = torch.cat([posterior_variance[1:2], posterior_variance[1:]]).log()
        posterior_coef_x_0 = betas * alpha_prev / sigma**2
        posterior_coef_x_t = step_alpha * sigma_prev**2 / sigma**2

        def register(name: str, table: Tensor) -> None:
            self.register_buffer(name, table.float())  # never float64 on the device: MPS has none

        register("alpha", alpha)
        register("sigma", sigma)
        register("ratio", sigma / alpha)
        register("log_snr", 2 * (alpha.log() - sigma.log()))
        register("scale_in", ((alpha * sigma_data) ** 2 + sigma**2) ** -0.5)
        register("betas", betas)
        register("posterior_variance", posterior_variance)
        register("posterior_log_variance", posterior_log_variance)
        register("posterior_coef_x_0", posterior_coef_x_0)
        register("posterior_coef_x_t", posterior_coef_x_t)
        if preserving:
            register("alphas_cumprod", alpha**2)
            register("alphas_cumprod_prev", alpha_prev**2)

        self._ratio = sigma / alpha  # float64 and on the CPU, as the samplers' coefficients are
        rows = zip(range(timesteps), alpha.tolist(), sigma.tolist(), strict=True)
        self._levels = [Level(*row) for row in rows]

    @property
    def prediction(self) -> Prediction:
        """The formulas of the prediction type: what the network's output means."""
        return PREDICTIONS[self.named[0]]

    @property
    def weight(self) -> Callable[[Tensor], Tensor] | None:
        """The loss weight as a function of the signal-to-noise ratio; None for no weight."""
        return LOSS_WEIGHTS[self.named[1]]

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noisy data x_t, of x_0's shape, at the timesteps t (B,). Eq. 4."""
        return at(self.alpha, t, x_0) * x_0 + at(self.sigma, t, x_0) * noise

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (of x_0's shape) and variance (B, 1, ...) of q(x_{t-1} | x_t, x_0). Eq. 6 and 7."""
        mean = at(self.posterior_coef_x_0, t, x_0) * x_0 + at(self.posterior_coef_x_t, t, x_0) * x_t
        return mean, at(self.posterior_variance, t, x_0)

    def sample_t(self, batch: int, sampling: str = "uniform") -> Tensor:
        """Timesteps (B,) to train on, by a name in `TIMESTEP_SAMPLINGS`."""
        return pick(TIMESTEP_SAMPLINGS, sampling, "timestep sampling")(batch, self.ratio)

    def sample_noise(self, x_0: Tensor, assignment: str = "independent") -> Tensor:
        """Noise of x_0's shape to train on, by a name in `NOISE_ASSIGNMENTS`."""
        return pick(NOISE_ASSIGNMENTS, assignment, "noise assignment")(x_0)

    def loss(
        self,
        model: nn.Module,
        x_0: Tensor,
        condition: Condition | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The training loss, a scalar: by default the mean squared error of the prediction, eq. 14.

        With `learn_sigma`, Nichol & Dhariwal's hybrid (eq. 16); with the weight vlb, the
        variational bound alone, in bits per dimension.

        Args:
            model: maps (x_t, t), or (x_t, t, condition), to a tensor of x_0's shape, or, with
                `learn_sigma`, of twice its channels.
            x_0: clean data (B, ...).
            condition: of the same batch, for a conditional network.
            t: timesteps (B,); drawn uniformly where not given.
            noise: of x_0's shape; drawn from N(0, I) where not given.
        """
        t = self.sample_t(len(x_0)) if t is None else t
        noise = self.sample_noise(x_0) if noise is None else noise
        x_t = self.q_sample(x_0, t, noise)
        out, fraction = self.split(call(model, self.scaled(x_t, t), t, condition).float())
        alpha, sigma = at(self.alpha, t, x_0), at(self.sigma, t, x_0)
        x_0_hat = self.x_0(out, x_t, alpha, sigma)
        if self.is_bound:
            return self.timesteps * self.bound(x_0_hat, fraction, x_0, x_t, t).mean()

        s = self.sigma_data
        if self.weight is None:
            error = out - self.prediction.target(x_0 / s, noise, s * alpha, sigma)
        else:
            error = (x_0_hat - x_0) / s
        if self.clip_loss:
            error = error.masked_fill(right_once_clipped(x_0_hat, x_0), 0)
        square = error.square()
        if self.weight is not None:
            square = self.weight((s * alpha / sigma) ** 2) * square
        loss = square.mean()
        if self.learn_sigma:  # the mean is detached: the bound trains only the variance
            bound = self.bound(x_0_hat.detach(), fraction, x_0, x_t, t).mean()
            loss = loss + 0.001 * (self.timesteps * bound)
        return loss

    def bound(
        self, x_0_hat: Tensor, fraction: Tensor | None, x_0: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """Terms (B,) of the variational bound at timesteps t (B,), in bits per dimension.

        KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, and -log p(x_0 | x_1) at t = 0,
        where pixels have 256 discrete values (Ho et al. 2020, eq. 5 and 13). x_0_hat is the
        predicted x_0, and `fraction` the learned variance, as `split` returns it.
        """
        mean, _ = self.q_posterior(x_0, x_t, t)
        mean_hat, _ = self.q_posterior(x_0_hat, x_t, t)
        log_var = at(self.posterior_log_variance, t, x_0)
        # A fixed variance is that of the posterior, but beta at t = 0, where the posterior has 0.
        fraction = (t == 0).float().view_as(log_var) if fraction is None else fraction
        log_var_hat = fraction * at(self.betas, t, x_0).log() + (1 - fraction) * log_var
        log_var, log_var_hat = log_var.expand_as(x_0), log_var_hat.expand_as(x_0)
        kl = gaussian_kl(mean, log_var, mean_hat, log_var_hat)
        decoder = discretized_gaussian_nll if self.clip else gaussian_nll
        nll = decoder(x_0, mean_hat, log_var_hat)
        nats = torch.where((t == 0).view(-1, *[1] * (x_0.ndim - 1)), nll, kl)
        return nats.flatten(1).mean(dim=1) / log(2)

    def split(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split a network's output (B, C or 2 C, ...) into the prediction and the learned variance.

        The variance (None without `learn_sigma`) is a fraction from 0, that of the posterior, to 1,
        beta; in between, it is interpolated in log space.
        """
        if not self.learn_sigma:
            return out, None
        out, variance = out.chunk(2, dim=1)
        return out, (variance + 1) / 2

    def scaled(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's input: x_t (B, ...) at timesteps t (B,), scaled to one size for all t."""
        return x_t * at(self.scale_in, t, x_t)

    def x_0(self, out: Tensor, x_t: Tensor, alpha, sigma) -> Tensor:
        """The clean data that the network's output implies."""
        s = self.sigma_data
        return s * self.prediction.x_0(out, x_t, s * alpha, sigma)

    def levels(self, steps: int | None = None, spacing: str = "trailing") -> list[Level]:
        """The noise levels of sampling in `steps` steps (default: all T).

        Returns `steps` + 1 levels, the last of them `CLEAN`. `spacing` is a name in `SPACINGS`.
        Raises ValueError unless 1 <= steps <= T.
        """
        steps = self.timesteps if steps is None else steps
        if not 1 <= steps <= self.timesteps:
            raise ValueError(f"steps must lie between 1 and {self.timesteps}, not {steps}")
        wanted = pick(SPACINGS, spacing, "spacing")(self._ratio, steps)
        chosen = schedules.distinct(wanted, self.timesteps)
        return [self._levels[t] for t in chosen] + [CLEAN]

    def nearest(self, ratio: float) -> Level:
        """The level with sigma / alpha nearest to `ratio`."""
        t = schedules.nearest_index(self._ratio, torch.tensor([ratio], dtype=torch.float64))
        return self._levels[int(t)]

    def denoiser(
        self, model: nn.Module, condition: Condition | None = None, **guidance
    ) -> "Denoiser":
        """The closure (x_t, level) -> (x_0, eps) that samplers call; see `Denoiser`."""
        return Denoiser(self, model, condition, **guidance)


class Denoiser:
    """A network as a function (x_t, level) -> (x_0, eps), without gradients.

    x_0 is the predicted mean of the clean data given x_t. For a mean flow, x_0 is a sample: the
    point to which the average velocity leads from x_t.

    `eps` is computed from the clipped x_0, so that both are consistent with x_t. `calls` counts the
    calls of the network, and `seen` is the last predicted x_0.

    Args:
        diffusion, model: a process and the network that was trained for it.
        condition: of the batch, or None.
        guidance_scale: w of classifier-free guidance, uncond + w (cond - uncond): 0 ignores the
            condition, 1 is the conditional prediction (Ho & Salimans 2022, arXiv:2207.12598; their
            w is w - 1 here).
        guidance_interval: the noise levels (low, high), in sigma / alpha, at which guidance acts
            (Kynkaanniemi et al. 2024, arXiv:2404.07724).
        guidance_rescale: from 0 to 1, how far the guided output's standard deviation is brought
            back to that of the conditional one (Lin et al. 2023, eq. 15 and 16).
        guide: a weaker network for the same process, such as one from earlier in the training.
            Its prediction, with the same condition, takes the place of the unconditional one
            (autoguidance; Karras et al. 2024, arXiv:2406.02507, eq. 4).
        steering: the gradient of a network that judges noisy images (see `guidance`). It acts
            at the noise levels of `guidance_interval`, in addition to other guidance.
        negative: a condition that guidance leads away from, in place of the unconditional form.
        blend: another condition, and its share of the conditional prediction for each item, (B,)
            from 0 to 1 (a mixture of predictions; Liu et al. 2022, arXiv:2206.01714).
        precision: fp32, bf16 or fp16, in which the network computes.

    Raises:
        ValueError: guidance without a condition or a guide.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        model: nn.Module,
        condition: Condition | None = None,
        *,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, inf),
        guidance_rescale: float = 0.0,
        guide: nn.Module | None = None,
        negative: Condition | None = None,
        blend: tuple[Condition, Tensor] | None = None,
        steering: Steering | None = None,
        precision: str = "fp32",
    ):
        if condition is None and guide is None and guidance_scale != 1:
            raise ValueError(f"a guidance scale of {guidance_scale} needs a condition or a guide")
        self.diffusion, self.model, self.condition = diffusion, model, condition
        self.scale, self.interval = guidance_scale, guidance_interval
        self.rescale, self.guide, self.precision = guidance_rescale, guide, precision
        self.negative, self.steering, self.blend = negative, steering, blend
        self.nearest = diffusion.nearest
        self.is_mean_flow = getattr(model, "average_velocity", False) is True
        _, self.time = flow_time(diffusion.sigma_data * diffusion.alpha, diffusion.sigma)  # (T,)
        self.calls, self.seen = 0, None

    @torch.no_grad()
    def __call__(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        x_0, eps, _ = self.with_variance(x_t, level)
        return x_0, eps

    @torch.no_grad()
    def with_variance(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor | None]:
        """(x_0, eps, fraction): the last is the learned variance, or None."""
        out, fraction = self.output(x_t, level)
        x_0 = self.diffusion.x_0(out, x_t, level.alpha, level.sigma)
        if self.steering is not None and self.guides_at(level) and level.alpha > 0:
            t = torch.full((len(x_t),), level.t, device=x_t.device)
            x_0 = x_0 + level.sigma**2 / level.alpha * self.steering(x_t, t)
        if self.diffusion.clip:
            x_0 = x_0.clamp(-1, 1)
        self.seen = x_0
        eps = (x_t - level.alpha * x_0) / level.sigma
        return x_0, eps, fraction

    @torch.no_grad()
    def averaged(self, x_t: Tensor, level: Level, following: Level) -> Tensor:
        """x at the level `following`, from x_t at `level`, by the average velocity of a mean flow.

        Geng et al. 2025, arXiv:2505.13447, eq. 12.
        """
        s = self.diffusion.sigma_data
        scale, time = flow_time(s * level.alpha, level.sigma)
        scale_following, time_following = flow_time(s * following.alpha, following.sigma)
        t = torch.full((len(x_t),), level.t, device=x_t.device)
        span = torch.full((len(x_t),), time - time_following, device=x_t.device)
        velocity = self.mixed(self.diffusion.scaled(x_t, t), t, span)
        x_0 = x_t / scale - time * velocity  # the average velocity, extended to clean data
        if self.diffusion.clip:
            x_0 = x_0.clamp(-1 / s, 1 / s)
        self.seen = s * x_0
        return scale_following * torch.lerp(x_0, x_t / scale, time_following / time)

    def output(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
        """The guided prediction, and the fraction of the learned variance."""
        t = torch.full((len(x_t),), level.t, device=x_t.device)
        x_in = self.diffusion.scaled(x_t, t)
        scale = self.scale if self.guides_at(level) else 1.0
        if scale == 1 or (self.condition is None and self.guide is None):
            return self.conditional(x_in, t)
        if self.guide is not None:
            cond, fraction = self.conditional(x_in, t)
            weaker, _ = self.diffusion.split(self.predict(self.guide, x_in, t, self.condition))
        elif scale == 0:
            null = self.negative or self.condition.null()
            return self.diffusion.split(self.predict(self.model, x_in, t, null))
        elif self.blend is not None:
            cond, fraction = self.conditional(x_in, t)
            null = self.negative or self.condition.null()
            weaker, _ = self.diffusion.split(self.predict(self.model, x_in, t, null))
        else:
            both = self.condition.cat(self.negative or self.condition.null())
            out = self.predict(self.model, torch.cat([x_in, x_in]), torch.cat([t, t]), both)
            prediction, fraction = self.diffusion.split(out)
            cond, weaker = prediction.chunk(2)
            fraction = None if fraction is None else fraction.chunk(2)[0]
        cond, weaker = (self.clipped(each, x_t, level) for each in (cond, weaker))
        guided = weaker + scale * (cond - weaker)
        if self.rescale:
            axes = tuple(range(1, guided.ndim))
            rescaled = guided * cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
            guided = torch.lerp(guided, rescaled, self.rescale)
        return guided, fraction

    def conditional(self, x_in: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction for the condition, and the fraction of the learned variance."""
        # The velocity of a mean flow is averaged all the way to clean data.
        span = self.time[t] if self.is_mean_flow else None
        return self.diffusion.split(self.mixed(x_in, t, span))

    def mixed(self, x_in: Tensor, t: Tensor, span: Tensor | None) -> Tensor:
        """The output for the condition, mixed with that for `blend`; a mean flow's over a span."""

        def given(condition: Condition | None) -> Condition | None:
            return condition if span is None else replace(condition or Condition(), span=span)

        out = self.predict(self.model, x_in, t, given(self.condition))
        if self.blend is None:
            return out
        other, share = self.blend
        share = share.view(-1, *[1] * (out.ndim - 1))
        return torch.lerp(out, self.predict(self.model, x_in, t, given(other)), share)

    def guides_at(self, level: Level) -> bool:
        """Does guidance act at a noise level?"""
        low, high = self.interval
        return low <= level.ratio <= high

    def clipped(self, out: Tensor, x_t: Tensor, level: Level) -> Tensor:
        """The prediction with its implied x_0 clipped to [-1, 1], if the process has `clip_loss`.

        That loss leaves x_0 arbitrary beyond a bound, where differences of two predictions would be
        meaningless.
        """
        diffusion, alpha, sigma = self.diffusion, level.alpha, level.sigma
        if not diffusion.clip_loss:
            return out
        x_0 = diffusion.x_0(out, x_t, alpha, sigma).clamp(-1, 1)
        noise, s = (x_t - alpha * x_0) / sigma, diffusion.sigma_data
        return diffusion.prediction.target(x_0 / s, noise, s * alpha, sigma)

    def predict(
        self, model: nn.Module, x_in: Tensor, t: Tensor, condition: Condition | None
    ) -> Tensor:
        """The output of a network, as float32."""
        self.calls += 1
        with autocast(x_in.device, self.precision):
            return call(model, x_in, t, condition).float()


class DDPM(nn.Module):
    """A network with its diffusion process, for your own training loop.

        ddpm = DDPM(UNet(image_size=28, image_channels=1))
        loss = ddpm(x_0)                                        # x_0 (B, 1, 28, 28) in [-1, 1]
        images = ddpm.sample(16, (1, 28, 28), sampler="ddim", steps=50)

    Args:
        network: maps (x_t, t), or (x_t, t, condition), to a tensor of x_t's shape.
        schedule, timesteps, prediction, process: as in `GaussianDiffusion`.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: str = "cosine",
        timesteps: int = 1000,
        prediction: str = "flow",
        **process,
    ):
        super().__init__()
        self.network = network
        self.diffusion = GaussianDiffusion(schedule, timesteps, prediction, **process)
        self.seen = False  # becomes True with the first data, which are checked

    def forward(self, x_0: Tensor, condition: Condition | None = None) -> Tensor:
        """The training loss of clean data (B, ...), a scalar."""
        if not (self.seen or torch.compiler.is_compiling()):
            self.seen = True
            require_data(x_0, self.diffusion.clip)
        return self.diffusion.loss(self.network, x_0, condition)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        shape: Sequence[int],
        *,
        sampler: str = AUTO,
        steps: int = 50,
        condition: Condition | None = None,
        seed: int | None = None,
        **guidance,
    ) -> Tensor:
        """Sample data (count, *shape), by a sampler of `samplers.SAMPLERS`, in evaluation mode.

        Args:
            condition: of `count` items, for a conditional network.
            seed: fixes all noise; drawn from PyTorch's global generator where not given.
            guidance: options of `Denoiser`.
        """
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        noise_like = NoisePerImage(seed, range(count))
        noise = noise_like.draw(shape).to(self.diffusion.alpha.device)
        denoise = self.diffusion.denoiser(self.network, condition, **guidance)
        levels, training = self.diffusion.levels(steps), self.network.training
        self.network.eval()
        *_, x_0 = generate(denoise, noise, levels, noise_like, pick(SAMPLERS, sampler, "sampler"))
        self.network.train(training)
        return x_0


def require_data(x_0: Tensor, clip: bool) -> None:
    """Raise ValueError if data are not floats, and warn if images are not in [-1, 1]."""
    if not x_0.is_floating_point():
        raise ValueError(f"x_0 must be floats, not {x_0.dtype}; to_unit converts uint8 images")
    if clip and x_0.numel() and x_0.abs().max() > 1.01:
        warnings.warn(
            f"x_0 is in {x_0.min():.3g} to {x_0.max():.3g}, and samples are clipped to [-1, 1]: "
            "scale images to that range, or pass clip=False for other data",
            stacklevel=3,
        )


def flow_time(alpha, sigma):
    """(scale, time) of noise levels in flow matching, for tensors or floats.

    If x_t = alpha x_0 + sigma noise, x_t / scale is on the line (1 - time) x_0 + time noise.
    """
    return alpha + sigma, sigma / (alpha + sigma)


def call(model: nn.Module, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
    """Call a network; one without conditions may be any function of (x_t, t)."""
    return model(x_t, t) if condition is None else model(x_t, t, condition)


def at(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Row t of a table (T,) for each item of a batch, shaped (B, 1, ...) to multiply x (B, ...)."""
    return table[t].view(-1, *[1] * (x.ndim - 1))
