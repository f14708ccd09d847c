"""NumPy compared with PyTorch: seconds to sample the same images on one thread.

    python export.py --checkpoint outputs/model_final.pt --to numpy model.npz
    python benchmarks/mini_diffusion_speed.py --checkpoint outputs/model_final.pt --model model.npz

Both sample from the same noise with ddim in fp32, in turns. Prints the median of each, the lowest
and the highest ratio of a turn, and the largest difference of the images.
"""

import os
import sys
import time
from pathlib import Path
from statistics import median

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # read when NumPy and torch are imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.common import command_line
from checkpoints.checkpoint import load_checkpoint, restore
from mini_diffusion import NoiseScheduler, Sampler, UNet
from samplers import ddim, generate
from utils import sides


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--model", required=True, help="the checkpoint as exported by export.py")
    parser.add_argument("--num-images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, diffusion = restore(load_checkpoint(args.checkpoint))
    shape = (args.num_images, model.image_channels, *sides(model.image_size))
    levels = diffusion.levels(args.steps)
    unet = UNet.load(args.model)
    sampler = Sampler.ddim(NoiseScheduler.load(args.model), args.steps)

    def with_torch() -> np.ndarray:
        noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        denoise, start = diffusion.denoiser(model), torch.from_numpy(noise)
        *_, x = generate(denoise, start, levels, torch.randn_like, ddim)
        return x.numpy()

    def with_numpy() -> np.ndarray:
        return sampler.sample(unet, shape, np.random.default_rng(0)).data

    difference = np.abs(with_torch() - with_numpy()).max()  # also a warm-up
    seconds = {with_torch: [], with_numpy: []}
    for _ in range(args.repeats):
        for sample, times in seconds.items():
            start = time.perf_counter()
            sample()
            times.append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(f"{args.num_images} images, {args.steps} steps, one thread, {args.repeats} times")
    print(f"PyTorch {torch.__version__}: {median(seconds[with_torch]):.3f} s")
    print(f"NumPy {np.__version__}: {median(seconds[with_numpy]):.3f} s")
    print(f"ratio: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"largest difference of a pixel in [-1, 1]: {difference:.1e}")


if __name__ == "__main__":
    main()
