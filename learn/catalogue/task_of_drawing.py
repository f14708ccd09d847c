"""Exercise 16, second function: draw with a network, from noise that is the student's choice."""

from itertools import pairwise

import torch
from torch import nn

from learn.exercise import Case, Mistake, Task, nearest, tables
from learn.solved import solution

TIMESTEPS = 10
_, ALPHAS_CUMPROD = tables(TIMESTEPS)


class Perfect(nn.Module):
    """The best network for data in which each pixel is `value`; it records its inputs."""

    def __init__(self, value):
        super().__init__()
        self.value, self.times, self.inputs = value, [], []
        self.w = nn.Parameter(torch.tensor(0.0))
        self.shapes = set()

    def forward(self, x_t, t):
        self.shapes.add(tuple(t.shape))
        self.times.append(int(t.flatten()[0]))
        alpha_bar = ALPHAS_CUMPROD[t.long()].view(-1, 1, 1, 1)
        self.inputs.append(x_t.detach().clone())
        noise = (x_t - alpha_bar.sqrt() * self.value) / (1 - alpha_bar).sqrt()
        return noise + self.w


def facts_of_drawing(function, value, steps):
    """What is compared: the images, and what the network was called with."""
    network = Perfect(value)
    images = function(network, ALPHAS_CUMPROD, 64, (1, 3, 4), steps)
    facts = {"shapes of t": sorted(network.shapes), "t of the calls": tuple(network.times)}
    if network.inputs:
        first = network.inputs[0]
        facts["mean of the first x is about"] = nearest(first.mean(), 0.5)
        facts["deviation of the first x is about"] = nearest(first.std(), 0.25)
        facts["shape of the first x"] = tuple(first.shape)
        facts["mean of the x of the last call is about"] = nearest(network.inputs[-1].mean(), 0.25)
    if isinstance(images, torch.Tensor):
        facts["gradients are recorded"] = images.requires_grad
        facts["the images"] = images.detach()
    else:
        facts["the result is"] = type(images).__name__
    return facts


@torch.no_grad()
def drawn(
    network,
    alphas_cumprod,
    count,
    shape,
    steps,
    *,
    start=torch.randn,
    times=None,
    clip=True,
    t_shape=None,
    clean=True,
):
    """The solution, with other parts."""
    last = len(alphas_cumprod) - 1
    x = start(count, *shape)
    if times is None:
        visited = torch.linspace(last, 0, steps).round().long().tolist()
    else:
        visited = times(last, steps)
    visited = [*visited, -1] if clean else visited
    for t, t_next in pairwise(visited):
        eps = network(x, torch.full((count,) if t_shape is None else t_shape, t))
        alpha_bar = alphas_cumprod[t]
        if clip:
            x_0 = solution("x_0_from_eps")(eps, x, torch.full((count,), t), alphas_cumprod)
            eps = (x - alpha_bar.sqrt() * x_0.clamp(-1, 1)) / (1 - alpha_bar).sqrt()
        x = solution("ddim_step")(eps, x, t, t_next, alphas_cumprod)
    return x


def clipped_at_the_end(*arguments):
    return drawn(*arguments, clip=False).clamp(-1, 1)


def with_gradients(*arguments):
    with torch.enable_grad():
        return drawn.__wrapped__(*arguments)


def drawing(**options):
    """A `draw` with some parts replaced."""

    def draw(*arguments):
        return drawn(*arguments, **options)

    return draw


def rising(last, steps):
    return torch.linspace(0, last, steps).round().long().tolist()


def every(last, steps):
    return list(range(last, -1, -1))


def without_last(last, steps):
    return torch.linspace(last - 1, 0, steps).round().long().tolist()


DRAW = Task(
    "draw",
    hint="x = torch.randn(count, *shape), times = torch.linspace(last, 0, steps).round().long()"
    ".tolist() + [-1]. For each t and the next one: time = torch.full((count,), t), then the three "
    "lines of the docstring. Put @torch.no_grad() above the function.",
    cases=[
        Case("64 images in 4 steps, data 0.5", lambda: (0.5, 4), facts_of_drawing, names=()),
        Case("64 images in 10 steps, data 0.5", lambda: (0.5, 10), facts_of_drawing, names=()),
        Case("64 images in 4 steps, data 1.5", lambda: (1.5, 4), facts_of_drawing, names=()),
    ],
    mistakes=[
        Mistake(
            "starts from zeros",
            "You start from zeros, so that all images are the same. Start from normal noise: "
            "torch.randn.",
            drawing(start=torch.zeros),
        ),
        Mistake(
            "starts from uniform noise",
            "You start from torch.rand, uniform on [0, 1). The forward process ends in normal "
            "noise: torch.randn.",
            drawing(start=torch.rand),
        ),
        Mistake(
            "from clean to noisy",
            "Your timesteps rise. Sampling begins with the most noise, T - 1, and ends with clean "
            "data.",
            drawing(times=rising),
        ),
        Mistake(
            "every timestep",
            "You visit all T timesteps and ignore steps. Take `steps` of them, evenly from T - 1 "
            "to 0.",
            drawing(times=every),
        ),
        Mistake(
            "the last timestep is left out",
            "You begin at T - 2. x is pure noise at first, which is the last entry, T - 1.",
            drawing(times=without_last),
        ),
        Mistake(
            "the step to clean data is missing",
            "You stop at t = 0, where a little noise is left. Add -1 at the end of the timesteps, "
            "clean data.",
            drawing(clean=False),
        ),
        Mistake(
            "not clipped",
            "You do not clip x_0 to [-1, 1], so the errors that the network makes in much noise "
            "stay and grow. Clip what x_0_from_eps returns, and compute eps from it.",
            drawing(clip=False),
        ),
        Mistake(
            "clipped only at the end",
            "You clip the finished images alone. Clip x_0 in each step, and compute eps from the "
            "clipped x_0, or the errors made in much noise grow until the end.",
            clipped_at_the_end,
        ),
        Mistake(
            "gradients are recorded",
            "You record gradients, so memory grows with each step. Put @torch.no_grad() above the "
            "function.",
            with_gradients,
        ),
        Mistake(
            "t is not one for each image",
            "You give the network a single t. It expects (B,), one for each image: "
            "torch.full((count,), t).",
            drawing(t_shape=(1,)),
        ),
    ],
    uses=["x_0_from_eps", "ddim_step"],
)
