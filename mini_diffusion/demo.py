"""A walk through the package, with real numbers: python -m mini_diffusion.demo"""

import argparse
import sys
import time

import numpy as np

from mini_diffusion.sampler import Sampler
from mini_diffusion.scheduler import NoiseScheduler, ScheduleType
from mini_diffusion.tensor import Tensor
from mini_diffusion.unet import UNet

MEAN, STD = 0.5, 0.1  # of the pixels that the perfect model knows


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="mini-diffusion-demo",
        description="Walk through tensors, schedules, the U-Net and sampling, with real numbers.",
    ).parse_args(argv)
    rng = np.random.default_rng(0)
    tensors(rng)
    schedules(rng)
    network(rng)
    sampling(rng)
    return 0


def tensors(rng: np.random.Generator) -> None:
    print("1. Tensors")
    print(f"   noise of 4 images               {Tensor.randn(4, 3, 32, 32, rng=rng)}")
    print(f"   weights, Xavier (to be 0.088)   {Tensor.xavier(128, 128, rng=rng)}")
    print(f"   weights, Kaiming (to be 0.042)  {Tensor.kaiming(128, 128, 3, 3, rng=rng)}")
    x = Tensor([-2, -1, 0, 1, 2])
    print(f"   x        {row(x)}")
    for name in ("relu", "sigmoid", "silu", "gelu"):
        print(f"   {name:8} {row(getattr(x, name)())}")


def schedules(rng: np.random.Generator) -> None:
    print("\n2. Schedules: x_t = alpha x_0 + sigma noise, over 1,000 timesteps")
    shown = [0, 250, 500, 750, 999]
    print(f"   t                {' '.join(f'{t:6}' for t in shown)}")
    for kind in ScheduleType:
        scheduler = NoiseScheduler.of_type(kind, 1000)
        print(f"   {kind.value:9} alpha  {row(scheduler.alpha[shown])}")
        print(f"             sigma  {row(scheduler.sigma[shown])}")
    scheduler, image = NoiseScheduler.cosine(1000), MEAN * Tensor.ones(1, 1, 64, 64)
    noisy = scheduler.add_noise(image, Tensor.randn(image.shape, rng=rng), 500)
    print(f"   an image that is {MEAN} everywhere, noised to t = 500 by cosine: {noisy}")


def network(rng: np.random.Generator) -> None:
    print("\n3. The U-Net, 64 channels, 28x28 images, with random weights")
    model = UNet(1, 1, 64, rng)
    print(f"   {model.parameter_count():,} parameters")
    for n in (1, 4):
        x = Tensor.randn(n, 1, 28, 28, rng=rng)
        start = time.perf_counter()
        out = model(x, 500)
        milliseconds = (time.perf_counter() - start) * 1000
        print(f"   {n} images: {x.shape} -> {out.shape} in {milliseconds:.0f} ms")


def sampling(rng: np.random.Generator) -> None:
    scheduler = NoiseScheduler.cosine(1000)

    def perfect(x_t: Tensor, timestep: int) -> Tensor:
        """E[noise | x_t] for pixels from N(MEAN, STD^2)."""
        alpha, sigma = scheduler.level(timestep)
        return sigma / ((alpha * STD) ** 2 + sigma**2) * (x_t - alpha * MEAN)

    def show(step: int, total: int, timestep: int, current: Tensor) -> None:
        if step % (total // 5) == 0:
            print(f"   step {step:4} of {total:4}, from t = {timestep:3}: {current}")

    for name, sampler in [
        ("DDIM", Sampler.ddim(scheduler, 50)),
        ("DDPM", Sampler.ddpm(scheduler, 1000)),
    ]:
        print(f"\n4. {name}: from noise to pixels of mean {MEAN}, std {STD}, by a perfect model")
        sampler.sample(perfect, (4, 1, 28, 28), rng, show)

    print("\nA trained network: export.py writes it, and mini_diffusion.sample draws its images.")


def row(numbers: Tensor | np.ndarray) -> str:
    values = numbers.data if isinstance(numbers, Tensor) else numbers
    return " ".join(f"{x:6.3f}" for x in values)


if __name__ == "__main__":
    sys.exit(main())
