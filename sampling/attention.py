"""Where the cross-attention of a network looks for each word of a prompt, over a trajectory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion import GaussianDiffusion
from models.latents import space_of
from models.pretrained import PretrainedTokenizer
from models.text import CrossAttention
from models.tokenizer import Tokenizer
from samplers import AUTO, SAMPLERS, generate
from utils import NoisePerImage


class Moment(NamedTuple):
    """A step of a trajectory, and the attention in it."""

    t: int  # the timestep
    x_0: Tensor  # (C, H, W), predicted at t
    maps: Tensor  # (words, H, W): the share of the attention that each word has, 0 to 1


def attention_over_trajectory(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    tokenizer: Tokenizer | PretrainedTokenizer,
    prompt: str,
    shape: Sequence[int],
    *,
    steps: int,
    moments: int,
    seed: int,
) -> tuple[list[str], list[Moment]]:
    """Sample an image, and record where the network looks for each word.

    Args:
        model, diffusion: of a checkpoint with captions.
        tokenizer: its tokenizer.
        prompt: what to draw.
        shape: (C, H, W) of the noise.
        steps: of sampling.
        moments: number of steps to return, evenly spread from the first to the last.
        seed: of the noise.

    Returns the words, of which the first stands for the whole caption, and the moments.
    """
    words, lengths = zip(*tokenizer.pieces(prompt), strict=True)
    lengths = [1, *lengths]
    condition = tokenizer.condition([prompt])
    device = diffusion.alpha.device
    noise_like = NoisePerImage(seed, range(1))
    denoise = diffusion.denoiser(model, condition.to(device))
    levels = diffusion.levels(steps)
    chosen = {round(i * (steps - 1) / max(1, moments - 1)) for i in range(moments)}
    found, space = [], space_of(model)
    with recorded_attention(model) as recorded:
        noise = noise_like.draw(shape).to(device)
        trajectory = generate(denoise, noise, levels, noise_like, SAMPLERS[AUTO])
        next(trajectory)  # the noise itself
        for i, _ in enumerate(trajectory):
            if i in chosen:
                x_0 = denoise.seen[0] if space is None else space.decode(denoise.seen)[0]
                maps = mean_map(recorded, x_0.shape[1:])  # (L + 1, H, W)
                by_word = maps[: sum(lengths)].split(lengths)
                summed = torch.stack([part.sum(dim=0) for part in by_word])
                found.append(Moment(levels[i].t, x_0.cpu(), summed.cpu()))
            recorded.clear()
    return ["(caption)", *words], found


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """While open, each cross-attention appends its weights (N, L + 1) to the list."""
    recorded: list[Tensor] = []

    def record(module: CrossAttention, inputs: tuple, output: Tensor) -> None:
        recorded.append(module.weights(*inputs)[0])

    modules = [module for module in model.modules() if isinstance(module, CrossAttention)]
    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def mean_map(recorded: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The mean of recorded attention (N, L + 1), each enlarged to an image: (L + 1, H, W)."""
    maps = []
    for weights in recorded:
        height, width = map_size(len(weights), size)
        small = weights.T.reshape(1, -1, height, width)
        maps.append(F.interpolate(small, tuple(size), mode="bilinear")[0])
    return torch.stack(maps).mean(dim=0)


def map_size(count: int, size: Sequence[int]) -> tuple[int, int]:
    """Height and width of a feature map of `count` pixels, with about the shape of the image."""
    pairs = [(h, count // h) for h in range(1, count + 1) if count % h == 0]
    return min(pairs, key=lambda pair: abs(pair[0] * size[1] - pair[1] * size[0]))
