"""The contenders of time_to_quality.py: train.py, and libraries as their documentation uses them.

Another library is a class with three methods. `__init__(shape, device)` builds the network as the
documentation does, `update(images)` makes a training step on uint8 images (B, C, H, W) and returns
the loss, and `draw(count)` samples uint8 images with the library's own sampler. `foreign` trains
any of them. Docstrings name every difference from the documentation.
"""

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import SAMPLING, flops_per_image, now, real_images, sampled
from checkpoints.checkpoint import load_checkpoint
from cli.training import TRAIN
from dataset.items import flipped, kind_of, on_device, to_uint8, to_unit
from dataset.registry import DATASETS
from evaluation.real import RealData
from train import train_run
from training import folder
from training.ema import EMA
from training.loop import Batches
from utils import autocast, choose_precision, derive_seed
from visuals.curves import column

WARM_UP = 3  # training steps of another library before its clock starts
MOMENTS = (
    1 / 8,
    1 / 4,
    1 / 2,
)  # fractions of the time at which images are sampled, too
CURVE = 250  # images sampled at each of these moments
AT_ONCE = 64  # batch size for sampling from other libraries

GUIDED = {**SAMPLING, "guidance_scale": 1.3}  # for class-conditional networks


class Task(NamedTuple):
    """What every contender is given."""

    dataset: str
    data_dir: str
    minutes: float
    seed: int
    samples: int  # images to sample at the end, and at most CURVE at each moment before
    device: torch.device
    folder: Path  # for its files

    @property
    def curve_samples(self) -> int:
        """Images to sample at each moment before the end."""
        return min(CURVE, self.samples)

    def real(self) -> RealData:
        """The images to train on, and those to compare with."""
        return real_images(self.dataset, self.data_dir, self.seed)


class Moment(NamedTuple):
    """Samples during the training, or at its end."""

    seconds: float  # of training so far
    updates: int  # training steps so far
    images: Tensor  # uint8 (N, C, H, W)


class Result(NamedTuple):
    """Result of a contender."""

    parameters: int
    precision: str
    batch: int  # images per training step
    images_per_second: float
    flops: float  # per image, of convolutions and matrix products, without the optimizer's
    sampler: str
    nfe: int  # network evaluations per sample: with guidance two per step
    seconds_of_64: float  # to sample 64 images
    moments: list[Moment]  # the last one is the end


# --- train.py ------------------------------------------------------------------------------------


def ours(task: Task, flags: list[str], sampling: dict = SAMPLING) -> Result:
    """train.py with these flags, and sample.py with the flags `sampling`.

    The clock is that of --max-minutes: data, validation, checkpoints and the last grid count. The
    images of the moments are sampled afterwards, from checkpoints.
    """
    command = ["--dataset", task.dataset, "--data-dir", task.data_dir, "--no-download"]
    command += ["--seed", str(task.seed), "--device", str(task.device), *flags]
    command += ["--max-minutes", str(task.minutes), "--sample-interval", "0"]
    command += ["--save-interval", "0", "--save-every-minutes", str(task.minutes * MOMENTS[0])]
    config = TRAIN.parse([*command, "--output-dir", str(task.folder / "run"), "--overwrite"])
    begun = time.time()
    with patch.object(folder, "KEEP_STEPS", 100):  # instead of the newest three
        trained = train_run(config, time.monotonic())
    ended = time.time() - begun
    if trained.exit_code:
        raise KeyboardInterrupt
    written = {  # {seconds of training: checkpoint}
        path.stat().st_mtime - begun: path
        for path in (task.folder / "run" / "checkpoints").glob("model_step_*.pt")
    }
    due = [60 * task.minutes * fraction for fraction in MOMENTS]
    nearest = sorted({min(written, key=lambda s: abs(s - moment)) for moment in due if written})
    labels = task.real().train.labels
    sample = partial(sampled, labels=labels, seed=task.seed, **sampling)
    moments = []
    for seconds in nearest:
        few, job, _ = sample(written[seconds], num_images=task.curve_samples)
        moments.append(Moment(seconds, job.step, few.items))

    checkpoint = load_checkpoint(trained.checkpoint)
    train = checkpoint["config"]["train"]
    all_samples, *_ = sample(trained.checkpoint, num_images=task.samples)
    few, job, seconds_of_64 = sample(trained.checkpoint, num_images=64)
    calls = few.calls // len(job.plan.batches)
    return Result(
        parameters=sum(p.numel() for p in job.make_denoiser.args[0].parameters()),
        precision=choose_precision(train["precision"], task.device),
        batch=train["update_size"],
        images_per_second=train["update_size"] * updates_per_second(trained.metrics),
        flops=flops_per_image(checkpoint["config"]),
        sampler=job.plan.name,
        nfe=calls if sampling.get("guidance_scale", 1) == 1 else 2 * calls,
        seconds_of_64=seconds_of_64,
        moments=[*moments, Moment(ended, checkpoint["step"], all_samples.items)],
    )


def updates_per_second(metrics: list[dict]) -> float:
    """Training steps per second after a run's first row of metrics, which includes compiling."""
    steps, seconds = column(metrics, "seconds")
    if len(steps) == 1:
        return steps[0] / seconds[0]
    return (steps[-1] - steps[0]) / (seconds[-1] - seconds[0])


# --- training of other libraries ------------------------------------------------------------------


def foreign(kind: Callable, task: Task, **options) -> Result:
    """Train another library's network until the time is up. Sampling does not count."""
    items, flip = on_device(task.real().train.items, task.device), DATASETS[task.dataset].flip
    torch.manual_seed(task.seed)
    contender = kind(items.shape[1:], task.device, **options)
    batches = Batches(items, None, torch.arange(len(items)), contender.batch, task.seed)

    def update(step: int) -> None:
        images, _ = batches.of_step(step)
        if flip:
            images = flipped(images, (torch.rand(len(images)) < 0.5).to(images.device))
        contender.update(images.to(task.device))

    for step in range(WARM_UP):
        with FlopCounterMode(display=False) as counter:
            update(step)
    limit, seconds, updates, moments = 60 * task.minutes, 0.0, 0, []
    due = [limit * fraction for fraction in MOMENTS]
    while seconds < limit:
        start = now(task.device)
        update(WARM_UP + updates)
        seconds, updates = seconds + now(task.device) - start, updates + 1
        if due and due[0] <= seconds < limit:
            due = [moment for moment in due if moment > seconds]
            images = drawn(contender, task.curve_samples, task.seed)
            moments.append(Moment(seconds, updates, images))
    moments.append(Moment(seconds, updates, drawn(contender, task.samples, task.seed)))
    start = now(task.device)
    drawn(contender, 64, task.seed)
    return Result(
        parameters=sum(p.numel() for p in contender.network.parameters()),
        precision=contender.precision,
        batch=contender.batch,
        images_per_second=updates * contender.batch / seconds,
        flops=counter.get_total_flops() / contender.batch,
        sampler=contender.sampler,
        nfe=contender.steps,
        seconds_of_64=now(task.device) - start,
        moments=moments,
    )


def drawn(contender, count: int, seed: int) -> Tensor:
    """Sample uint8 images (count, C, H, W); the random numbers of the training are not affected."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("contender", seed))
        sizes = [min(AT_ONCE, count - first) for first in range(0, count, AT_ONCE)]
        return torch.cat([contender.draw(size).cpu() for size in sizes])


# --- other libraries -----------------------------------------------------------------------------


class Diffusers:
    """diffusers, as in unit 2 of Hugging Face's diffusion course, which trains on MNIST at 28 x 28:
    https://huggingface.co/learn/diffusion-course/unit2/3

    UNet2DModel with (32, 64, 64) channels, noise prediction, cosine schedule of 1,000 steps,
    batches of 128, Adam at 1e-3, no EMA, fp32. The network is that of
    https://huggingface.co/learn/diffusion-course/unit1/3 without class labels. The course samples
    with DDPM in 1,000 steps; this samples with the library's DDIMScheduler in its default of 50.
    """

    batch, sampler, steps = 128, "DDIMScheduler", 50

    def __init__(
        self,
        shape: tuple,
        device: torch.device,
        channels: tuple = (32, 64, 64),
        precision: str = "fp32",
    ):
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

        self.shape, self.device = shape, device
        self.precision = choose_precision(precision, device)
        self.network = UNet2DModel(
            sample_size=shape[-1],
            in_channels=shape[0],
            out_channels=shape[0],
            layers_per_block=2,
            block_out_channels=channels,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        ).to(device)
        self.schedule = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
        self.sampling = DDIMScheduler.from_config(self.schedule.config)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)

    def update(self, images: Tensor) -> float:
        x_0 = to_unit(images)
        noise = torch.randn_like(x_0)
        t = torch.randint(0, 1000, (len(x_0),), device=self.device)
        x_t = self.schedule.add_noise(x_0, noise, t)
        with autocast(self.device, self.precision):
            loss = F.mse_loss(self.network(x_t, t).sample.float(), noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        self.sampling.set_timesteps(self.steps)
        x = torch.randn(count, *self.shape, device=self.device)
        for t in self.sampling.timesteps:
            with autocast(self.device, self.precision):
                eps = self.network(x, t).sample
            x = self.sampling.step(eps.float(), t, x).prev_sample
        return to_uint8(x)


class DenoisingDiffusion:
    """denoising-diffusion-pytorch, with the settings for Fashion-MNIST at 28 x 28 of "The Annotated
    Diffusion Model", to which its README links: https://huggingface.co/blog/annotated-diffusion

    Unet with dim = image size and dim_mults (1, 2, 4), batches of 128, Adam at 1e-3, fp32. The rest
    is the package's own: the defaults of GaussianDiffusion (velocity, sigmoid schedule of 1,000
    steps), the Trainer's gradient clipping and EMA, and DDIM. Its README samples in 250 steps; this
    samples in 50, as diffusers does.
    """

    batch, part, precision = 128, 128, "fp32"
    sampler, steps = "DDIM (sampling_timesteps)", 50

    def __init__(
        self,
        shape: tuple,
        device: torch.device,
        lr: float = 1e-3,
        betas: tuple = (0.9, 0.999),
        **unet,
    ):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA as Average

        options = {"dim": shape[-1], "dim_mults": (1, 2, 4), **unet}
        self.shape, self.device = shape, device
        self.network = Unet(**options, channels=shape[0])
        size = shape[-1] + -shape[-1] % self.network.downsample_factor
        self.diffusion = GaussianDiffusion(
            self.network, image_size=size, timesteps=1000, sampling_timesteps=self.steps
        ).to(device)
        self.margin = (size - shape[-1]) // 2, size - shape[-1] - (size - shape[-1]) // 2
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, betas=betas)
        self.ema = Average(self.diffusion, beta=0.995, update_every=10).to(device)

    def update(self, images: Tensor) -> float:
        x_0 = F.pad(images.float() / 255, self.margin * 2, mode="replicate")  # in 0 ... 1
        total = 0.0
        for part in x_0.split(self.part):
            with autocast(self.device, self.precision):
                loss = self.diffusion(part) * len(part) / len(x_0)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        return total

    def draw(self, count: int) -> Tensor:
        # The package shows a progress bar for each batch.
        with autocast(self.device, self.precision), redirect_stderr(io.StringIO()):
            x = self.ema.ema_model.sample(batch_size=count)
        start, size = self.margin[0], self.shape[-1]
        return to_uint8(2 * x[..., start : start + size, start : start + size] - 1)


class DenoisingDiffusionReadme(DenoisingDiffusion):
    """The same library with the settings of its README, which are for images of 128 x 128:
    https://github.com/lucidrains/denoising-diffusion-pytorch

    Unet with dim 64 and dim_mults (1, 2, 4, 8), two batches of 32 per step, Adam at 8e-5 with the
    Trainer's betas, mixed precision. The README's fp16 needs CUDA, so this uses bf16 where the
    hardware has it. Images are padded to a multiple of 8, which this network requires.
    """

    batch, part = 64, 32

    def __init__(self, shape: tuple, device: torch.device, dim: int = 64):
        self.precision = choose_precision("auto", device)
        unet = {"dim": dim, "dim_mults": (1, 2, 4, 8), "flash_attn": True}
        super().__init__(shape, device, lr=8e-5, betas=(0.9, 0.99), **unet)


class SmallDiffusion:
    """smalldiffusion, as in its example for Fashion-MNIST at 28 x 28:
    https://github.com/yuanchenyang/smalldiffusion/blob/main/examples/fashion_mnist_unet.py

    Unet with 64 channels times (1, 1, 2) and attention at half the size, noise prediction, 800
    log-linear sigmas from 0.01 to 20, AdamW at 7e-4, EMA of 0.999, 20 steps with gam=1.6, and fp32,
    Accelerate's default. The example's batch size of 1,024 is computed here in parts that fit into
    memory. Its EMA is torch-ema's, with the same formula as the one used here.
    """

    part, precision = 128, "fp32"
    sampler, steps = "samples(gam=1.6)", 20

    def __init__(self, shape: tuple, device: torch.device, batch: int = 1024, channels: int = 64):
        from smalldiffusion import Scaled, ScheduleLogLinear, Unet

        self.device, self.batch = device, batch
        attention = (shape[-1] // 2,)
        self.network = Scaled(Unet)(
            shape[-1],
            shape[0],
            shape[0],
            ch=channels,
            ch_mult=(1, 1, 2),
            attn_resolutions=attention,
        ).to(device)
        self.schedule = ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=7e-4)
        self.ema, self.updates = EMA(self.network, 0.999), 0

    def update(self, images: Tensor) -> float:
        from smalldiffusion import generate_train_sample

        self.network.train()
        self.optimizer.zero_grad()
        total = 0.0
        for part in to_unit(images).split(self.part):
            x_0, sigma, eps, _ = generate_train_sample(part, self.schedule)
            loss = self.network.get_loss(x_0, sigma, eps) * len(part) / len(images)
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.updates += 1
        self.ema.update(self.network, self.updates)
        return total

    def draw(self, count: int) -> Tensor:
        from smalldiffusion import samples

        sigmas = self.schedule.sample_sigmas(self.steps)
        x = self.network.rand_input(count).to(self.device) * sigmas[0]
        *_, x = samples(self.ema.module, sigmas, gam=1.6, xt=x)
        return to_uint8(x)


CONTENDERS: dict[str, Callable[[Task], Result]] = {
    "ours": partial(ours, flags=["--preset", "laptop"], sampling=GUIDED),
    "ours, without classes": partial(ours, flags=["--preset", "laptop", "--no-class-conditional"]),
    # The default network, which is not smaller than that of diffusers, with the same sampler.
    "ours, by default": partial(
        ours,
        flags=["--no-class-conditional"],
        sampling={**SAMPLING, "sampler": "ddim", "steps": 50},
    ),
    # With its default of 64 channels a training step takes minutes on a CPU: 26 GFLOPs per image.
    "ours, cnn": partial(
        ours, flags=["--no-class-conditional", "--model", "cnn", "--channels", "16"]
    ),
    "ours, naive_unet": partial(ours, flags=["--no-class-conditional", "--model", "naive_unet"]),
    "ours, dit": partial(ours, flags=["--no-class-conditional", "--model", "dit"]),
    "ours, dit, long skips": partial(
        ours, flags=["--no-class-conditional", "--model", "dit", "--long-skips"]
    ),
    "diffusers": partial(foreign, Diffusers),
    "denoising-diffusion-pytorch": partial(foreign, DenoisingDiffusion),
    "denoising-diffusion-pytorch, README": partial(foreign, DenoisingDiffusionReadme),
    "smalldiffusion": partial(foreign, SmallDiffusion),
    "smalldiffusion, batch 128": partial(foreign, SmallDiffusion, batch=128),
}
# A network of 6.8 M parameters on CIFAR-10, and one of diffusers with as many.
FOR_GPUS: dict[str, Callable[[Task], Result]] = {
    "ours, quality": partial(
        ours, flags=["--preset", "quality", "--compile", "reduce-overhead"], sampling=GUIDED
    ),
    "ours, quality, eager fp32": partial(
        ours, flags=["--preset", "quality", "--precision", "fp32"], sampling=GUIDED
    ),
    "diffusers, 6.8 M, bf16": partial(
        foreign, Diffusers, channels=(64, 128, 128), precision="auto"
    ),
}
CONTENDERS |= FOR_GPUS
IMAGES = [name for name, source in DATASETS.items() if kind_of(source.shape) == "images"]


def default_contenders(device: torch.device) -> list[str]:
    """The contenders that are compared on a device unless some are named."""
    return [name for name in CONTENDERS if device.type == "cuda" or name not in FOR_GPUS]
