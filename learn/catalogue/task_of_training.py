"""Exercise 16, first function: train a network.

Training draws random numbers in an order that is the student's choice, so its results are not
compared as numbers, but as facts: what the network has seen, and what has become of its weights.
"""

import copy
from itertools import islice

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from learn.exercise import Case, Mistake, Task, nearest
from learn.solved import solution

TIMESTEPS, STEPS, BATCH, SPACING = 10, 40, 16, 100.0


class Probe(nn.Module):
    """A network of two parameters that records what it sees, its weights and its gradients."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))
        self.seen, self.grads = [], []  # (x_t, t), and (own gradient, accumulated gradient)

    def watched(self):
        """The network, with its gradients recorded."""
        own = []
        self.w.register_hook(lambda grad: own.append(grad.clone()))
        self.w.register_post_accumulate_grad_hook(
            lambda p: self.grads.append((own[-1], p.grad.clone()))
        )
        return self

    def forward(self, x_t, t):
        self.seen.append((x_t.detach().clone(), t.detach().clone()))
        return self.w * parts(x_t, t)[1] + self.b


def numbered_images():
    """24 images of one pixel; all values are multiples of SPACING, larger than any noise."""
    return (SPACING * torch.arange(1, 25)).view(-1, 1, 1, 1)


def flat_table():
    """alpha-bar of a process with so little noise that each image can be recognised in x_t."""
    return 1 - torch.linspace(0.001, 0.01, TIMESTEPS)


def parts(x_t, t):
    """The images, recognised, and the noise in x_t."""
    alpha_bar = flat_table()[t.long().clamp(0, TIMESTEPS - 1)].view(-1, 1, 1, 1)
    images = SPACING * (x_t / SPACING).round()
    return images, (x_t - alpha_bar.sqrt() * images) / (1 - alpha_bar).sqrt()


def facts_of_training(function, images, table):
    """What is compared of a training run of a few steps."""
    network = Probe()
    average = copy.deepcopy(network)
    network.watched()
    weights, averages, losses, stepped, stepped_before = [], [], [], [], []
    hook = register_optimizer_step_pre_hook(lambda *_: stepped.append(True))
    try:
        run = function(network, average, images, table, STEPS, BATCH, 0.05)
        if run is None or not hasattr(run, "__iter__"):
            return {"yields a loss for each step": f"returns {type(run).__name__}"}
        for value in islice(run, 2 * STEPS):
            losses.append(value)
            stepped_before.append(len(stepped))
            weights.append(network.w.item())
            averages.append(average.w.item())
    finally:
        hook.remove()
    if not losses or not network.seen:
        return {"steps": len(losses), "the network is called": bool(network.seen)}
    return {
        "steps": len(losses),
        "type of what is yielded": type(losses[0]).__name__,
        "the optimizer makes steps": bool(stepped),
        "steps before the first loss is yielded": stepped_before[0],
        **facts_of_inputs(network.seen),
        **facts_of_weights(network, weights, averages),
    }


def facts_of_inputs(seen):
    """Facts about the batches, timesteps and noise that the network has seen."""
    x_t, t = (torch.cat([each[i] for each in seen]) for i in range(2))
    found, noise = parts(x_t, t)
    noise = noise.flatten()
    batches = [tuple(parts(*each)[0].flatten().tolist()) for each in seen]
    each = [n.tolist() for n in noise.split(BATCH)] if len(noise) >= BATCH else [noise.tolist()]
    return {
        "images in a batch": len(seen[0][0]),
        "dtype of t": str(t.dtype).removeprefix("torch."),
        "smallest t": int(t.min()),
        "largest t": int(t.max()),
        "t differs within a batch": any(len(set(times.tolist())) > 1 for _, times in seen),
        "t differs between batches": len({tuple(times.tolist()) for _, times in seen}) > 1,
        "images used": len(set(found.flatten().tolist())),
        "batches differ": len(set(batches)) > 1,
        "mean of the noise is about": nearest(noise.mean(), 0.5),
        "deviation of the noise is about": nearest(noise.std(), 0.25),
        "noise differs between batches": len({tuple(round(n, 1) for n in e) for e in each}) > 1,
        "noise differs within a batch": all(max(e) - min(e) > 0.5 for e in each),
    }


def facts_of_weights(network, weights, averages):
    """Facts about the gradients, the weights and their average."""
    facts = {"gradients are computed": bool(network.grads)}
    if not network.grads:
        return facts
    facts["gradients of each step alone"] = all(
        torch.allclose(own, total, atol=1e-9) for own, total in network.grads
    )
    facts["weights change"] = len(set(weights)) > 1
    facts["the first step lowers the loss"] = descends(network.grads, weights)
    facts["the average is that of"] = averaged(weights, averages)
    return facts


def descends(grads, weights):
    """Does the first step go against the gradient?"""
    return float(grads[0][0]) * weights[0] < 0


def averaged(weights, averages):
    """What the average follows: the weights after each step, before it, or nothing."""
    after = moving_averages(weights)
    candidates = {
        "the weights after each step": after,
        "the weights before each step": moving_averages([0.0, *weights]),
        "the weights after the step before": [0.0, *after],
    }
    for name, values in candidates.items():
        if all(abs(a - b) < 1e-5 for a, b in zip(averages, values, strict=False)):
            return name
    if len(set(averages)) == 1:
        return "nothing: it does not change"
    return "the last weights alone" if averages == weights else "something else"


def moving_averages(values):
    """The average after each of these values, which begins with 0."""
    found, average, decay = [], 0.0, solution("ema_decay")
    for step, value in enumerate(values):
        d = decay(step, 0.999)
        average = d * average + (1 - d) * value
        found.append(average)
    return found


def loop(
    network,
    average,
    images,
    alphas_cumprod,
    steps,
    batch_size=64,
    lr=2e-3,
    *,
    choose=None,
    times=None,
    noise_like=torch.randn_like,
    zero=True,
    order=("step", "ema", "yield"),
    maximize=False,
    decay=None,
    as_float=True,
    backward=True,
    fresh=True,
):
    """The solution, with other parts."""
    ema_decay, ema_update, loss = map(solution, ("ema_decay", "ema_update", "loss"))
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, maximize=maximize)
    shared = noise_like(images[:batch_size]) if not fresh else None
    for step in range(steps):
        index = torch.randint(len(images), (batch_size,)) if choose is None else choose(step)
        x_0 = images[index]
        t = torch.randint(len(alphas_cumprod), (len(x_0),)) if times is None else times(len(x_0))
        noise = noise_like(x_0) if shared is None else shared[: len(x_0)]
        value = loss(network, x_0, t, noise, alphas_cumprod)
        if zero:
            optimizer.zero_grad()
        if backward:
            value.backward()
        actions = {
            "step": optimizer.step,
            "ema": lambda step=step: ema_update(
                average, network, ema_decay(step, 0.999) if decay is None else decay
            ),
        }
        for name in order:
            if name == "yield":
                yield value.item() if as_float else value
            else:
                actions[name]()


def variant(**options):
    """A training loop with some parts replaced."""

    def train(*arguments):
        return loop(*arguments, **options)

    return train


def collected(*arguments):
    return list(loop(*arguments)) and None


def zeroed_too_late(network, average, images, alphas_cumprod, steps, batch_size=64, lr=2e-3):
    ema_decay, ema_update, loss = map(solution, ("ema_decay", "ema_update", "loss"))
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(steps):
        x_0 = images[torch.randint(len(images), (batch_size,))]
        t = torch.randint(len(alphas_cumprod), (batch_size,))
        value = loss(network, x_0, t, torch.randn_like(x_0), alphas_cumprod)
        value.backward()
        optimizer.zero_grad()
        optimizer.step()
        ema_update(average, network, ema_decay(step, 0.999))
        yield value.item()


TRAIN = Task(
    "train",
    hint="Before the loop: optimizer = torch.optim.Adam(network.parameters(), lr=lr). Each step: "
    "images[torch.randint(len(images), (batch_size,))], t by torch.randint, noise by "
    "torch.randn_like, loss, zero_grad, backward, step, ema_update, and yield the loss's item().",
    cases=[
        Case(
            "40 steps on 24 images of one pixel, with a network of two parameters",
            lambda: (numbered_images(), flat_table()),
            facts_of_training,
            names=(),
        ),
    ],
    mistakes=[
        Mistake(
            "gradients not reset",
            "Gradients of all steps add up, because zero_grad() is missing. Call it before "
            "backward() in each step.",
            variant(zero=False),
        ),
        Mistake(
            "gradients reset before the step",
            "You call zero_grad() between backward() and step(), so the optimizer sees no "
            "gradients. Call it before backward().",
            zeroed_too_late,
        ),
        Mistake(
            "no backward",
            "No gradients are computed. Call backward() on the loss before optimizer.step().",
            variant(backward=False),
        ),
        Mistake(
            "no optimizer step",
            "The weights never change. Call optimizer.step() after backward().",
            variant(order=("ema", "yield")),
        ),
        Mistake(
            "the loss is maximised",
            "The weights move along the gradient, so the loss grows. The optimizer must minimise "
            "it: no minus sign, no maximize=True.",
            variant(maximize=True),
        ),
        Mistake(
            "the average is not updated",
            "The average keeps its first weights, which are random. Call ema_update after each "
            "step.",
            variant(order=("step", "yield")),
        ),
        Mistake(
            "the average is updated before the step",
            "You update the average before optimizer.step(), so it is one step late. Update it "
            "after.",
            variant(order=("ema", "step", "yield")),
        ),
        Mistake(
            "yields before the step",
            "You yield the loss before optimizer.step(). A caller that stops early would lose this "
            "update: yield at the end of each step.",
            variant(order=("yield", "step", "ema")),
        ),
        Mistake(
            "yields before the average is updated",
            "You yield the loss before ema_update. A caller that stops early would lose this "
            "update: yield at the end of each step.",
            variant(order=("step", "yield", "ema")),
        ),
        Mistake(
            "the average is a copy",
            "The average equals the last weights. Use ema_decay(step, 0.999) as its decay.",
            variant(decay=0.0),
        ),
        Mistake(
            "no warm-up of the average",
            "You use a fixed decay. Use ema_decay(step, 0.999), with step counted from 0: the "
            "random weights of the start must be forgotten.",
            variant(decay=0.999),
        ),
        Mistake(
            "one t for the whole batch",
            "All images of a batch have the same t. Draw (batch_size,) of them: then each batch "
            "has many noise levels.",
            variant(times=lambda n: torch.randint(TIMESTEPS, (1,)).expand(n)),
        ),
        Mistake(
            "the last timestep is never drawn",
            "t never reaches T - 1. torch.randint leaves out its upper end already: "
            "torch.randint(len(alphas_cumprod), ...).",
            variant(times=lambda n: torch.randint(TIMESTEPS - 1, (n,))),
        ),
        Mistake(
            "t = 0 is never drawn",
            "You draw t from 1. Here t counts from 0 to T - 1.",
            variant(times=lambda n: torch.randint(1, TIMESTEPS, (n,))),
        ),
        Mistake(
            "uniform noise",
            "Your noise is uniform on [0, 1) (torch.rand). It must be normal: torch.randn_like.",
            variant(noise_like=torch.rand_like),
        ),
        Mistake(
            "the same noise in each step",
            "You draw the noise once, before the loop. Draw new noise in each step, or the network "
            "learns this noise by heart.",
            variant(fresh=False),
        ),
        Mistake(
            "the same images in each step",
            "Each batch has the same images. Draw new indices in each step.",
            variant(choose=lambda step: torch.arange(BATCH) % 8),
        ),
        Mistake(
            "a tensor instead of a number",
            "You yield the loss as a tensor, which keeps the memory of the whole step. Yield "
            "loss.item().",
            variant(as_float=False),
        ),
        Mistake(
            "nothing is yielded",
            "The function returns None. Write `yield` in the loop, so that the caller sees the "
            "loss of each step and may stop early.",
            collected,
        ),
    ],
    uses=["q_sample", "loss", "ema_decay", "ema_update"],
)
