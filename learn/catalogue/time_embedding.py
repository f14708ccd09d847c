"""Exercise 5: the time embedding."""

import math

import torch

from learn.exercise import Case, Exercise, Mistake, Task


def embedded(t, dim, *, period=10_000, step=1.0, last=0.0, scale=1.0):
    """The solution, with other frequencies."""
    half = dim // 2
    exponents = step * torch.arange(half, device=t.device) / (half - last)
    angles = scale * t[:, None] * torch.exp(-math.log(period) * exponents)
    return angles.cos(), angles.sin()


def sines_first(t, dim):
    cos, sin = embedded(t, dim)
    return torch.cat([sin, cos], dim=1)


def interleaved(t, dim):
    return torch.stack(embedded(t, dim), dim=2).flatten(1)


def along_the_batch(t, dim):
    return torch.cat(embedded(t, dim), dim=0)


def sines_only(t, dim):
    _, sin = embedded(t, dim)
    return torch.cat([sin, sin], dim=1)


def half_of_features(t, dim):
    return torch.cat(embedded(t, dim // 2), dim=1)


def all_of_dim(t, dim):
    return torch.cat(embedded(t, 2 * dim), dim=1)


def rising(t, dim):
    half = dim // 2
    angles = t[:, None] * torch.exp(math.log(10_000) * torch.arange(half, device=t.device) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def on_the_cpu(t, dim):
    half = dim // 2
    angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def whole_exponents(t, dim):
    half = dim // 2
    exponents = torch.arange(half, device=t.device) // half
    angles = t[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


TIME_EMBEDDING = Task(
    "time_embedding",
    hint="half = dim // 2 frequencies: exp(-log(10000) * i / half) for i = 0 ... half - 1. "
    "t[:, None] * frequencies is (B, half). torch.cat its cosines and sines along dimension 1.",
    cases=[
        Case("t = 1, dim = 4", lambda: (torch.tensor([1]), 4)),
        Case("three t, dim = 16", lambda: (torch.tensor([0, 7, 999]), 16)),
        Case(
            "a t that is not in the computer's main memory, as on a GPU (device meta)",
            lambda: (torch.tensor([3, 4], device="meta"), 8),
        ),
    ],
    mistakes=[
        Mistake(
            "sines first",
            "Your sines come first. Here the cosines are the first half, as in the guide; a "
            "trained network would need the order of its training.",
            sines_first,
        ),
        Mistake(
            "cosines and sines alternate",
            "Your cosines and sines alternate. Put all cosines first, then all sines: torch.cat "
            "along dimension 1.",
            interleaved,
        ),
        Mistake(
            "joined along the batch",
            "You join cosines and sines along dimension 0, the batch. The result must be (B, dim): "
            "use dim=1.",
            along_the_batch,
        ),
        Mistake(
            "only sines",
            "Both halves are sines. Of a sine alone, two different t can look alike: the first "
            "half are cosines.",
            sines_only,
        ),
        Mistake(
            "the exponents reach 1",
            "You divide by half - 1, so that the last frequency is exactly 1/10000. Divide by "
            "half, as in the equation.",
            lambda t, dim: torch.cat(embedded(t, dim, last=1.0), dim=1),
        ),
        Mistake(
            "whole-number division",
            "You divide with //, which gives 0 for every i < half, so that all frequencies are 1. "
            "Use /.",
            whole_exponents,
        ),
        Mistake(
            "frequencies rise",
            "Your frequencies grow from 1 to 10000. They must fall: the exponent is negative.",
            rising,
        ),
        Mistake(
            "exponents too large by 2",
            "Your exponents reach 2 i / half. With half = dim / 2 the exponent of the paper, 2i / "
            "dim, is i / half.",
            lambda t, dim: torch.cat(embedded(t, dim, step=2.0), dim=1),
        ),
        Mistake(
            "exponents too small by 2",
            "You divide i by dim. There are only half = dim / 2 frequencies, so divide by half.",
            lambda t, dim: torch.cat(embedded(t, dim, step=0.5), dim=1),
        ),
        Mistake(
            "angles times 2 pi",
            "You multiply the angles by 2 pi. In this embedding a frequency is in radians: leave "
            "it out.",
            lambda t, dim: torch.cat(embedded(t, dim, scale=2 * math.pi), dim=1),
        ),
        Mistake(
            "the logarithm to base 10",
            "You use log10(10000) = 4 with exp. exp belongs to the natural logarithm, math.log.",
            lambda t, dim: torch.cat(embedded(t, dim, period=math.exp(4)), dim=1),
        ),
        Mistake(
            "half as many features",
            "You return dim / 2 features. dim / 2 frequencies give dim / 2 cosines and dim / 2 "
            "sines.",
            half_of_features,
        ),
        Mistake(
            "twice as many features",
            "You return 2 dim features. Use dim / 2 frequencies, each for a cosine and a sine.",
            all_of_dim,
        ),
        Mistake(
            "frequencies on the wrong device",
            "Your frequencies are always on the CPU, and a network on a GPU would fail here. Write "
            "torch.arange(half, device=t.device).",
            on_the_cpu,
        ),
    ],
)

EXERCISE = Exercise(
    file="05_time_embedding",
    title="time embedding",
    chapter="05_network.md",
    tasks=[TIME_EMBEDDING],
    done="The network can know how noisy its input is.",
)
