"""Demonstration of the package: python -m mini_diffusion.demo"""

import argparse
import sys
import time

import numpy as np

from mini_diffusion.sample import say
from mini_diffusion.sampler import Sampler
from mini_diffusion.scheduler import NoiseScheduler, ScheduleType
from mini_diffusion.tensor import Tensor
from mini_diffusion.unet import UNet

MEAN, STD = 0.5, 0.1  # pixel distribution for which the optimal model is known


def main(argv: list[str] | None = None) -> int:
    """Run all parts of the demonstration."""
    argparse.ArgumentParser(
        prog="mini-diffusion-demo",
        description="Demonstrate tensors, noise schedules, the U-Net and the samplers.",
    ).parse_args(argv)
    rng = np.random.default_rng(0)
    tensors(rng)
    schedules(rng)
    network(rng)
    sampling(rng)
    return 0


def tensors(rng: np.random.Generator) -> None:
    say("1. Tensors")
    say(f"   noise, 4 images                         {Tensor.randn(4, 3, 32, 32, rng=rng)}")
    say(f"   Xavier weights (expected std: 0.088)    {Tensor.xavier(128, 128, rng=rng)}")
    say(f"   Kaiming weights (expected std: 0.042)   {Tensor.kaiming(128, 128, 3, 3, rng=rng)}")
    x = Tensor([-2, -1, 0, 1, 2])
    say(f"   x        {row(x)}")
    for name in ("relu", "sigmoid", "silu", "gelu"):
        say(f"   {name:8} {row(getattr(x, name)())}")


def schedules(rng: np.random.Generator) -> None:
    """Print alpha and sigma of each noise schedule, and the statistics of a noisy image."""
    say("\n2. Schedules: x_t = alpha x_0 + sigma noise, over 1,000 timesteps")
    shown = [0, 250, 500, 750, 999]
    say(f"   t                {' '.join(f'{t:6}' for t in shown)}")
    for kind in ScheduleType:
        scheduler = NoiseScheduler.of_type(kind, 1000)
        say(f"   {kind.value:9} alpha  {row(scheduler.alpha[shown])}")
        say(f"             sigma  {row(scheduler.sigma[shown])}")
    scheduler, image = NoiseScheduler.cosine(1000), MEAN * Tensor.ones(1, 1, 64, 64)
    noisy = scheduler.add_noise(image, Tensor.randn(image.shape, rng=rng), 500)
    say(f"   constant image {MEAN} at t = 500, cosine schedule: {noisy}")


def network(rng: np.random.Generator) -> None:
    say("\n3. U-Net: 64 channels, 28x28 images, random weights")
    model = UNet(1, 1, 64, rng)
    say(f"   {model.parameter_count():,} parameters")
    for n in (1, 4):
        x = Tensor.randn(n, 1, 28, 28, rng=rng)
        start = time.perf_counter()
        out = model(x, 500)
        milliseconds = (time.perf_counter() - start) * 1000
        say(f"   {n} images: {x.shape} -> {out.shape} in {milliseconds:.0f} ms")


def sampling(rng: np.random.Generator) -> None:
    scheduler = NoiseScheduler.cosine(1000)

    def optimal(x_t: Tensor, timestep: int) -> Tensor:
        """Conditional mean E[noise | x_t] for independent pixels from N(MEAN, STD^2)."""
        alpha, sigma = scheduler.level(timestep)
        return sigma / ((alpha * STD) ** 2 + sigma**2) * (x_t - alpha * MEAN)

    def show(step: int, total: int, timestep: int, current: Tensor) -> None:
        if step % (total // 5) == 0:
            say(f"   step {step:4} of {total:4}, from t = {timestep:3}: {current}")

    for title, sampler in [
        ("4. DDIM", Sampler.ddim(scheduler, 50)),
        ("5. DDPM", Sampler.ddpm(scheduler, 1000)),
    ]:
        say(f"\n{title} with an optimal model of pixels with mean {MEAN} and std {STD}")
        sampler.sample(optimal, (4, 1, 28, 28), rng, show)

    say("\nTo sample from a trained network, export it with the project's export.py and run")
    say("python -m mini_diffusion.sample model.npz")


def row(numbers: Tensor | np.ndarray) -> str:
    """Numbers of a one-dimensional tensor or array, with three decimals."""
    values = numbers.data if isinstance(numbers, Tensor) else numbers
    return " ".join(f"{x:6.3f}" for x in values)


if __name__ == "__main__":
    sys.exit(main())
