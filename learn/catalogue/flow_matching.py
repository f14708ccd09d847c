"""Exercise 14: flow matching."""

import torch

from learn.exercise import Case, Exercise, Mistake, Model, Task, loss_and_gradient, random


def flow_loss(model, x_0, t, noise, *, target=None, time=None, x_t=None):
    """The solution, with another target or input."""
    time = t.view(-1, 1, 1, 1) if time is None else time
    x_t = (1 - time) * x_0 + time * noise if x_t is None else x_t
    target = noise - x_0 if target is None else target
    return (model(x_t, t) - target).square().mean()


def circle(model, x_0, t, noise):
    time = t.view(-1, 1, 1, 1)
    return flow_loss(model, x_0, t, noise, x_t=(1 - time**2).sqrt() * x_0 + time * noise)


def summed(model, x_0, t, noise):
    time = t.view(-1, 1, 1, 1)
    x_t = (1 - time) * x_0 + time * noise
    return (model(x_t, t) - (noise - x_0)).square().sum()


def clean_input(model, x_0, t, noise):
    return flow_loss(model, x_0, t, noise, x_t=x_0)


def noise_scaled(model, x_0, t, noise):
    time = t.view(-1, 1, 1, 1)
    return flow_loss(model, x_0, t, noise, target=time * noise - (1 - time) * x_0)


def reshaped_t(model, x_0, t, noise):
    return flow_loss(lambda x_t, t: model(x_t, t.view(-1, 1, 1, 1)), x_0, t, noise)


def arguments(*shape):
    t = torch.tensor([0.25, 1.0, 0.0, 0.5])[: shape[0]]
    return lambda: (Model(), random(*shape), t, random(*shape, seed=1))


FLOW_MATCHING_LOSS = Task(
    "flow_matching_loss",
    hint="time = t.view(-1, 1, 1, 1), x_t = (1 - time) * x_0 + time * noise, and the target is the "
    "derivative of this by time.",
    cases=[
        Case("one pixel, t = 0.25", arguments(1, 1, 1, 1), loss_and_gradient),
        Case("4 images (2, 4, 4)", arguments(4, 2, 4, 4), loss_and_gradient),
        Case("2 images (2, 4, 3)", arguments(2, 2, 4, 3), loss_and_gradient),
    ],
    mistakes=[
        Mistake(
            "the velocity points to the data",
            "Your target is x_0 - noise. Time runs from data (t = 0) to noise (t = 1) here, so the "
            "velocity is noise - x_0.",
            lambda model, x_0, t, noise: flow_loss(model, x_0, t, noise, target=x_0 - noise),
        ),
        Mistake(
            "the noise as the target",
            "Your target is the noise, as for DDPM. Flow matching predicts the velocity, noise - "
            "x_0.",
            lambda model, x_0, t, noise: flow_loss(model, x_0, t, noise, target=noise),
        ),
        Mistake(
            "x_0 as the target",
            "Your target is the clean image. Flow matching predicts the velocity, noise - x_0.",
            lambda model, x_0, t, noise: flow_loss(model, x_0, t, noise, target=x_0),
        ),
        Mistake(
            "time reversed",
            "Your x_t is t * x_0 + (1 - t) * noise, with the data at t = 1. Here t = 0 is data and "
            "t = 1 noise.",
            lambda model, x_0, t, noise: flow_loss(
                model, x_0, t, noise, time=1 - t.view(-1, 1, 1, 1)
            ),
        ),
        Mistake(
            "a circle instead of a straight line",
            "Your signal is weighted by sqrt(1 - t^2). In flow matching x_t lies on a straight "
            "line: 1 - t and t, without roots.",
            circle,
        ),
        Mistake(
            "weights in the target",
            "Your target is t * noise - (1 - t) * x_0. The derivative of x_t by t has no t in it: "
            "noise - x_0.",
            noise_scaled,
        ),
        Mistake(
            "the network sees the clean image",
            "You call the model with x_0. It sees x_t, the point on the line at t.",
            clean_input,
        ),
        Mistake(
            "a sum instead of a mean",
            "You sum the squared errors. Take the mean, so that the learning rate does not depend "
            "on the batch size.",
            summed,
        ),
        Mistake(
            "wrong broadcast over (B, C, H, W)",
            "t has the shape (B,), and PyTorch matches it with the width. Shape it to (B, 1, 1, "
            "1) before it multiplies images.",
            lambda model, x_0, t, noise: flow_loss(model, x_0, t, noise, time=t),
        ),
        Mistake(
            "t reshaped for the model",
            "You give the model t as (B, 1, 1, 1). It expects (B,), one number for each image.",
            reshaped_t,
        ),
    ],
)

FLOW_STEP = Task(
    "flow_step",
    hint="Position plus velocity times the change of time, which is negative from noise to data.",
    linear=["v", "x_t"],
    cases=[
        Case(
            "one pixel, from t = 1 to 0.5",
            lambda: (torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1), 1.0, 0.5),
        ),
        Case(
            "2 images, from t = 0.3 to 0",
            lambda: (random(2, 1, 2, 2), random(2, 1, 2, 2, seed=1), 0.3, 0.0),
        ),
    ],
    mistakes=[
        Mistake(
            "the wrong direction",
            "You step by t - t_next, so you move towards the noise. The change of time is t_next - "
            "t, which is negative.",
            lambda v, x_t, t, t_next: x_t + (t - t_next) * v,
        ),
        Mistake(
            "multiplied by t_next",
            "You multiply the velocity by t_next. Multiply by the change of time, t_next - t.",
            lambda v, x_t, t, t_next: x_t + t_next * v,
        ),
        Mistake(
            "a step to clean data",
            "You go all the way to t = 0. Only t_next - t of time passes.",
            lambda v, x_t, t, t_next: x_t - t * v,
        ),
        Mistake(
            "v and x_t exchanged",
            "You move v along x_t. The arguments are v first, then x_t.",
            lambda v, x_t, t, t_next: v + (t_next - t) * x_t,
        ),
        Mistake(
            "velocity not scaled",
            "You subtract all of v. Multiply it by the change of time, t_next - t.",
            lambda v, x_t, t, t_next: x_t - v,
        ),
    ],
)

EXERCISE = Exercise(
    file="14_flow_matching",
    title="flow matching",
    chapter="11_flow_matching.md",
    tasks=[FLOW_MATCHING_LOSS, FLOW_STEP],
    done="You know the other way to diffusion, which large image models use today.",
)
