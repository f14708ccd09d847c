"""Exercise 8: the moving average of the weights."""

import torch
from torch import nn

from learn.exercise import Case, Exercise, Mistake, Task

EMA_DECAY = Task(
    "ema_decay",
    hint="min(limit, (1 + step) / (10 + step)).",
    cases=[
        Case("step = 0, limit = 0.999", lambda: (0, 0.999)),
        Case("step = 90, limit = 0.999", lambda: (90, 0.999)),
        Case("step = 90, limit = 0.5", lambda: (90, 0.5)),
        Case("step = 100000, limit = 0.999", lambda: (100_000, 0.999)),
    ],
    mistakes=[
        Mistake(
            "max for min",
            "You take the larger of both. limit is an upper bound: take the smaller (min).",
            lambda step, limit: max(limit, (1 + step) / (10 + step)),
        ),
        Mistake(
            "no warm-up",
            "You return limit for every step. The average would remember the random weights of "
            "the start for thousands of steps: begin with a small decay.",
            lambda step, limit: limit,
        ),
        Mistake(
            "no limit",
            "You leave out limit, so the decay approaches 1, and the average stops moving.",
            lambda step, limit: (1 + step) / (10 + step),
        ),
        Mistake(
            "whole-number division",
            "You divide with //, which gives 0, and the average is only a copy. Use /.",
            lambda step, limit: min(limit, (1 + step) // (10 + step)),
        ),
        Mistake(
            "one minus the decay",
            "You return the share of the new weights. The decay is the share that the average "
            "keeps.",
            lambda step, limit: 1 - min(limit, (1 + step) / (10 + step)),
        ),
        Mistake(
            "0 at the start",
            "You use step / (10 + step). The numerator is 1 + step.",
            lambda step, limit: min(limit, step / (10 + step)),
        ),
    ],
)


# --- ema_update -----------------------------------------------------------------------------------


def pair(decay, average=1.0, network=3.0):
    """An average and a network of two parameters each, as inputs."""

    def make():
        modules = []
        for value in (average, network):
            layer = nn.Linear(1, 1)
            nn.init.constant_(layer.weight, value)
            nn.init.constant_(layer.bias, value / 2)
            modules.append(layer)
        return (*modules, decay)

    return make


def after_update(function, average, network, decay):
    """What is compared: the weights of both networks after one update and a second one."""
    before = list(average.parameters())
    result = function(average, network, decay)
    facts = {
        "weight of the average": average.weight.detach().clone(),
        "bias of the average": average.bias.detach().clone(),
    }
    function(average, network, decay)
    facts["weight after a second update"] = average.weight.detach().clone()
    facts["weight of the network"] = network.weight.detach().clone()
    facts["the average's parameters are the same tensors"] = all(
        a is b for a, b in zip(before, average.parameters(), strict=True)
    )
    facts["the average needs no gradients of the network"] = average.weight.grad_fn is None
    facts["the result is None"] = result is None
    return facts


@torch.no_grad()
def update(average, network, decay, own=None):
    """The solution, with another share of the network's weights."""
    own = 1 - decay if own is None else own
    for a, p in zip(average.parameters(), network.parameters(), strict=True):
        a.copy_(decay * a + own * p)


def not_in_place(average, network, decay):
    for a, p in zip(average.parameters(), network.parameters(), strict=True):
        a = decay * a + (1 - decay) * p


def network_changed(average, network, decay):
    update(network, average, decay)


@torch.no_grad()
def both_changed(average, network, decay):
    for a, p in zip(average.parameters(), network.parameters(), strict=True):
        p.copy_(decay * a + (1 - decay) * p)
        a.copy_(p)


@torch.no_grad()
def first_only(average, network, decay):
    a, p = next(average.parameters()), next(network.parameters())
    a.copy_(decay * a + (1 - decay) * p)


def tracked(average, network, decay):
    for a, p in zip(average.parameters(), network.parameters(), strict=True):
        a.copy_(decay * a + (1 - decay) * p)


def data_replaced(average, network, decay):
    for name, p in network.named_parameters():
        a = getattr(average, name)
        setattr(average, name, nn.Parameter((decay * a + (1 - decay) * p).detach()))


EMA_UPDATE = Task(
    "ema_update",
    hint="Loop over zip(average.parameters(), network.parameters()) under torch.no_grad(), and "
    "write into the average's tensors: a.copy_(...), or a.lerp_(p, 1 - decay).",
    cases=[
        Case("average 1, network 3, decay = 0.9", pair(0.9), after_update, names=()),
        Case("average 1, network 3, decay = 0", pair(0.0), after_update, names=()),
        Case("average -2, network 2, decay = 0.25", pair(0.25, -2.0, 2.0), after_update, names=()),
    ],
    mistakes=[
        Mistake(
            "the wrong way round",
            "You keep 1 - decay of the average and take decay of the network, so that the average "
            "is nearly the network. With decay = 0.9 it keeps 0.9 of itself.",
            lambda average, network, decay: update(average, network, 1 - decay),
        ),
        Mistake(
            "the average does not move",
            "Your average keeps its values: assigning to the loop's variable changes no parameter. "
            "Write into the tensor, with a.copy_(...).",
            not_in_place,
        ),
        Mistake(
            "the network is changed",
            "You write into the network's weights instead of the average's. Training must go on "
            "with its own weights.",
            network_changed,
        ),
        Mistake(
            "both are changed",
            "You write into the network's weights, too. They belong to the optimizer: only the "
            "average changes.",
            both_changed,
        ),
        Mistake(
            "a copy of the network",
            "You copy the network's weights. The average keeps the share decay of its own.",
            lambda average, network, decay: update(average, network, 0.0, 1.0),
        ),
        Mistake(
            "only the first parameter",
            "Only the first parameter is averaged. Loop over all of them.",
            first_only,
        ),
        Mistake(
            "the network added in full",
            "You add the network's weights in full. The shares are decay and 1 - decay, which sum "
            "to 1.",
            lambda average, network, decay: update(average, network, decay, 1.0),
        ),
        Mistake(
            "the difference added twice",
            "Your shares are decay and 1 + decay. They must sum to 1: decay and 1 - decay.",
            lambda average, network, decay: update(average, network, decay, 1 + decay),
        ),
        Mistake(
            "without no_grad",
            "PyTorch refuses to change weights in place while it records gradients. Put "
            "@torch.no_grad() above the function.",
            tracked,
        ),
        Mistake(
            "new parameters in place of the old",
            "Your numbers are right, but you replace the average's parameters by new ones, which "
            "others that hold them do not see. Write into them, with a.copy_(...).",
            data_replaced,
        ),
    ],
)

EXERCISE = Exercise(
    file="08_ema",
    title="moving average of the weights",
    chapter="06_training.md",
    tasks=[EMA_DECAY, EMA_UPDATE],
    done="You can keep the averaged network, which draws better than the one in training.",
)
