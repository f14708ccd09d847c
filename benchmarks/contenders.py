"""Who is compared in time_to_quality.py: train.py, and libraries by their documented examples.

A foreign contender is a class of three methods: `__init__(shape, device)` builds it as its
documentation has it, `update(images)` takes uint8 images (B, C, H, W) and makes one update, and
`draw(count)` gives as many uint8 images by its own sampler. `foreign` is the loop around all of
them. What differs from the documentation is said where it does.
"""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import train
from benchmarks.rates import flops_per_image, now
from benchmarks.runs import SAMPLING, drawn_by_sample
from checkpoints.checkpoint import load_checkpoint
from dataset.items import epoch_order, flipped, on_device, to_uint8, to_unit
from dataset.registry import DATASETS, load_dataset
from evaluation.real import Real, real_data
from training import folder
from training.ema import EMA
from utils import autocast, choose_precision, derive_seed
from visuals.curves import column

WARM_UP = 3  # updates of a foreign contender that are not on the clock
MOMENTS = (1 / 8, 1 / 4, 1 / 2)  # of the time, at which images are drawn; and at its end
CURVE = 250  # images of a moment
AT_ONCE = 64  # images that are drawn at once

GUIDED = {**SAMPLING, "guidance_scale": 1.3}  # of a network that is told the classes


class Task(NamedTuple):
    """What a contender is given."""

    dataset: str
    data_dir: str
    minutes: float
    seed: int
    samples: int  # images to draw at the end; of a moment CURVE at most
    device: torch.device
    folder: Path  # where it may write

    @property
    def of_moment(self) -> int:
        return min(CURVE, self.samples)

    def real(self) -> Real:
        """The data: what is trained on, and what images are compared with."""
        load = partial(load_dataset, self.dataset, self.data_dir, download=False)
        test = partial(load, split="test")
        return real_data(self.dataset, load(), test, self.data_dir, None, self.seed)


class Moment(NamedTuple):
    seconds: float  # on the clock
    updates: int
    images: Tensor  # uint8 (N, C, H, W)


class Result(NamedTuple):
    """What has become of a contender."""

    parameters: int
    precision: str
    batch: int  # images of an update
    images_per_second: float
    flops: float  # of convolutions and matrix products, for an image: ours without Muon's
    sampler: str
    nfe: int  # evaluations of the network for an image: two a step with guidance
    seconds_of_64: float  # that it takes to draw 64 images
    moments: list[Moment]  # the last one is the end, with all images


# --- train.py ------------------------------------------------------------------------------------


def ours(task: Task, flags: list[str], sampling: dict = SAMPLING) -> Result:
    """train.py with those flags, and sample.py with others.

    Its clock is --max-minutes: data, validation, checkpoints and the last grid are on it. Images
    are drawn afterwards, from checkpoints of the moments.
    """
    command = ["--dataset", task.dataset, "--data-dir", task.data_dir, "--no-download"]
    command += ["--seed", str(task.seed), "--device", str(task.device), *flags]
    command += ["--max-minutes", str(task.minutes), "--sample-interval", "0"]
    command += ["--save-interval", "0", "--save-every-minutes", str(task.minutes * MOMENTS[0])]
    args = train.parse_args([*command, "--output-dir", str(task.folder / "run"), "--overwrite"])
    begun = time.time()
    with patch.object(folder, "KEEP_STEPS", 100):  # not the newest three alone
        trained = train.train_with(args, time.monotonic())
    ended = time.time() - begun
    if trained.exit_code:
        raise KeyboardInterrupt
    written = {  # seconds from the beginning: checkpoint
        path.stat().st_mtime - begun: path
        for path in (task.folder / "run" / "checkpoints").glob("model_step_*.pt")
    }
    due = [60 * task.minutes * share for share in MOMENTS]
    nearest = sorted({min(written, key=lambda s: abs(s - moment)) for moment in due if written})
    labels = task.real().train.labels
    drawn_from = partial(drawn_by_sample, seed=task.seed, sampling=sampling, labels=labels)
    moments = []
    for seconds in nearest:
        some, job, _ = drawn_from(written[seconds], task.of_moment)
        moments.append(Moment(seconds, job.step, some.items))

    checkpoint = load_checkpoint(trained.checkpoint)
    last, *_ = drawn_from(trained.checkpoint, task.samples)
    few, job, seconds_of_64 = drawn_from(trained.checkpoint, 64)
    batch = checkpoint["config"]["train"]["update_size"]
    return Result(
        parameters=sum(p.numel() for p in job.denoiser.args[0].parameters()),
        precision=choose_precision(checkpoint["config"]["train"]["precision"], task.device),
        batch=batch,
        images_per_second=batch * updates_per_second(trained.metrics),
        flops=flops_per_image(checkpoint["config"]),
        sampler=job.walk.name,
        nfe=few.calls // len(job.batches) * (1 if sampling.get("guidance_scale", 1) == 1 else 2),
        seconds_of_64=seconds_of_64,
        moments=[*moments, Moment(ended, checkpoint["step"], last.items)],
    )


def updates_per_second(metrics: list[dict]) -> float:
    """Of a run after its first row, on whose clock --compile is."""
    steps, seconds = column(metrics, "seconds")
    if len(steps) == 1:
        return steps[0] / seconds[0]
    return (steps[-1] - steps[0]) / (seconds[-1] - seconds[0])


# --- the loop around the others -------------------------------------------------------------------


def foreign(kind: Callable, task: Task, **options) -> Result:
    """Train a foreign contender until the time is up. While it draws, the clock stands still."""
    items, flip = on_device(task.real().train.items, task.device), DATASETS[task.dataset].flip
    torch.manual_seed(task.seed)
    contender = kind(items.shape[1:], task.device, **options)
    batches = shuffled(items, contender.batch, task.seed, flip)
    for _ in range(WARM_UP):
        with FlopCounterMode(display=False) as counter:
            contender.update(next(batches).to(task.device))

    limit, seconds, updates, moments = 60 * task.minutes, 0.0, 0, []
    due = [limit * share for share in MOMENTS]
    while seconds < limit:
        start = now(task.device)
        contender.update(next(batches).to(task.device))
        seconds, updates = seconds + now(task.device) - start, updates + 1
        if due and due[0] <= seconds < limit:
            due = [moment for moment in due if moment > seconds]
            moments.append(Moment(seconds, updates, drawn(contender, task.of_moment, task.seed)))
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


def shuffled(items: Tensor, batch: int, seed: int, flip: bool) -> Iterator[Tensor]:
    """Batches of items for ever, in train.py's order; mirrored at random if that is asked for."""
    epoch, order = 0, torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < batch:
            order = torch.cat([order, epoch_order(len(items), seed, epoch)])
            epoch += 1
        images, order = items[order[:batch]], order[batch:]
        yield flipped(images, (torch.rand(batch) < 0.5).to(images.device)) if flip else images


def drawn(contender, count: int, seed: int) -> Tensor:
    """uint8 images (count, C, H, W), on the CPU; the training's random numbers stay as they are."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("contender", seed))
        sizes = [min(AT_ONCE, count - first) for first in range(0, count, AT_ONCE)]
        return torch.cat([contender.draw(size).cpu() for size in sizes])


# --- the others ----------------------------------------------------------------------------------


class Diffusers:
    """diffusers, as in unit 2 of Hugging Face's diffusion course, which trains on MNIST at 28 x 28:
    https://huggingface.co/learn/diffusion-course/unit2/3

    UNet2DModel of (32, 64, 64) channels, noise prediction, cosine schedule of 1,000 steps, batches
    of 128, Adam at 1e-3, no EMA, fp32. The network is unit 1's without the classes:
    https://huggingface.co/learn/diffusion-course/unit1/3. The course draws by DDPM in 1,000 steps;
    here it is the library's DDIMScheduler, with its default of 50.
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
        self.walk = DDIMScheduler.from_config(self.schedule.config)
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
        self.walk.set_timesteps(self.steps)
        x = torch.randn(count, *self.shape, device=self.device)
        for t in self.walk.timesteps:
            with autocast(self.device, self.precision):
                eps = self.network(x, t).sample
            x = self.walk.step(eps.float(), t, x).prev_sample
        return to_uint8(x)


class DenoisingDiffusion:
    """denoising-diffusion-pytorch, with what "The Annotated Diffusion Model", which its README
    links to, has for Fashion-MNIST at 28 x 28: https://huggingface.co/blog/annotated-diffusion

    Unet of dim = the image's size and dim_mults (1, 2, 4), batches of 128, Adam at 1e-3, fp32. From
    the package itself: GaussianDiffusion as it is by default (velocity, sigmoid schedule of 1,000
    steps), the Trainer's clipping and EMA, and DDIM. Its README draws in 250 steps; here it is 50,
    as many as diffusers has.
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
        # The package shows a bar for each batch.
        with autocast(self.device, self.precision), redirect_stderr(io.StringIO()):
            x = self.ema.ema_model.sample(batch_size=count)
        start, size = self.margin[0], self.shape[-1]
        return to_uint8(2 * x[..., start : start + size, start : start + size] - 1)


class DenoisingDiffusionReadme(DenoisingDiffusion):
    """The same by its README, which has nothing for small images but images of 128 x 128:
    https://github.com/lucidrains/denoising-diffusion-pytorch

    Unet of dim 64 and dim_mults (1, 2, 4, 8), two batches of 32 an update, Adam at 8e-5 with the
    Trainer's betas, mixed precision: fp16 needs CUDA, so that it is bf16 where the hardware has it.
    Images are padded to a multiple of 8, as this network asks for.
    """

    batch, part = 64, 32

    def __init__(self, shape: tuple, device: torch.device, dim: int = 64):
        self.precision = choose_precision("auto", device)
        unet = {"dim": dim, "dim_mults": (1, 2, 4, 8), "flash_attn": True}
        super().__init__(shape, device, lr=8e-5, betas=(0.9, 0.99), **unet)


class SmallDiffusion:
    """smalldiffusion, as in its example for Fashion-MNIST at 28 x 28:
    https://github.com/yuanchenyang/smalldiffusion/blob/main/examples/fashion_mnist_unet.py

    Unet of 64 channels times (1, 1, 2) with attention at half the size, noise prediction, 800
    log-linear sigmas from 0.01 to 20, AdamW at 7e-4, EMA of 0.999, 20 steps with gam=1.6; fp32, as
    Accelerate has it unless it is told otherwise. The example's batch is 1,024, which is computed
    here in parts, so that it fits into memory; its EMA is torch-ema's, whose formula is ours.
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
    # The default network, which is no smaller than diffusers', drawn as that is.
    "ours, by default": partial(
        ours, flags=[], sampling={**SAMPLING, "sampler": "ddim", "steps": 50}
    ),
    # With its own 64 channels an image takes 26 GFLOPs: minutes for an update on a CPU.
    "ours, cnn": partial(ours, flags=["--model", "cnn", "--channels", "16"]),
    "ours, naive_unet": partial(ours, flags=["--model", "naive_unet"]),
    "ours, dit": partial(ours, flags=["--model", "dit"]),
    "ours, dit, long skips": partial(ours, flags=["--model", "dit", "--long-skips"]),
    "diffusers": partial(foreign, Diffusers),
    "denoising-diffusion-pytorch": partial(foreign, DenoisingDiffusion),
    "denoising-diffusion-pytorch, README": partial(foreign, DenoisingDiffusionReadme),
    "smalldiffusion": partial(foreign, SmallDiffusion),
    "smalldiffusion, batch 128": partial(foreign, SmallDiffusion, batch=128),
}
# A network of 6.8 M parameters on CIFAR-10, and diffusers' loop with as many.
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


def usual(device: torch.device) -> list[str]:
    """The contenders that are compared on a device, unless some are asked for."""
    return [name for name in CONTENDERS if device.type == "cuda" or name not in FOR_GPUS]
