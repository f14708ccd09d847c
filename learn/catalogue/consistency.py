"""Exercise 15: the loss of a consistency model."""

import torch

from learn.exercise import Case, Exercise, Mistake, Model, Task, loss_and_gradient, random

C = 0.00054


def between(x_0, noise, t):
    time = t.view(-1, 1, 1, 1)
    return (1 - time) * x_0 + time * noise


def distance(error):
    return (error.square().flatten(1).mean(dim=1) + C**2).sqrt() - C


def consistency(
    model,
    x_0,
    t,
    r,
    noise,
    *,
    noise_r=None,
    detach=True,
    boundary=True,
    measure=distance,
    weight=None,
    time_r=None,
    swap=False,
):
    """The solution, with other parts."""
    x_t = between(x_0, noise, t)
    x_r = between(x_0, noise if noise_r is None else noise_r, r)
    target = model(x_r, r if time_r is None else time_r)
    if boundary:
        target = torch.where((r == 0).view(-1, 1, 1, 1), x_0, target)
    found = model(x_t, t)
    if swap:
        found, target = found.detach(), target
    elif detach:
        target = target.detach()
    weight = 1 / (t - r) if weight is None else weight
    return (weight * measure(found - target)).mean()


def squared(error):
    return error.square().flatten(1).mean(dim=1)


def summed(error):
    return (error.square().flatten(1).sum(dim=1) + C**2).sqrt() - C


def no_minus_c(error):
    return (error.square().flatten(1).mean(dim=1) + C**2).sqrt()


def absolute(error):
    return error.abs().flatten(1).mean(dim=1)


def compared_with_x_0(model, x_0, t, r, noise):
    return (distance(model(between(x_0, noise, t), t) - x_0) / (t - r)).mean()


def other_noise(model, x_0, t, r, noise):
    return consistency(model, x_0, t, r, noise, noise_r=torch.randn_like(noise))


def same_point(model, x_0, t, r, noise):
    x_t = between(x_0, noise, t)
    target = torch.where((r == 0).view(-1, 1, 1, 1), x_0, model(x_t, r).detach())
    return (distance(model(x_t, t) - target) / (t - r)).mean()


def over_all(model, x_0, t, r, noise):
    error = model(between(x_0, noise, t), t) - torch.where(
        (r == 0).view(-1, 1, 1, 1), x_0, model(between(x_0, noise, r), r).detach()
    )
    return (((error.square().mean() + C**2).sqrt() - C) / (t - r)).mean()


def reshaped_t(model, *inputs):
    return consistency(lambda x_t, t: model(x_t, t.view(-1, 1, 1, 1)), *inputs)


def arguments(batch):
    t = torch.tensor([0.8, 0.5, 1.0, 0.3])[:batch]
    r = torch.tensor([0.6, 0.0, 0.9, 0.25])[:batch]
    shape = (batch, 1, 2, 3)
    return lambda: (Model(), random(*shape), t, r, random(*shape, seed=1))


def from_clean():
    return (
        Model(),
        random(1, 1, 1, 1),
        torch.tensor([0.5]),
        torch.tensor([0.0]),
        random(1, 1, 1, 1, seed=1),
    )


CONSISTENCY_LOSS = Task(
    "consistency_loss",
    hint="x_t and x_r from the same noise. target = model(x_r, r) under torch.no_grad(), replaced "
    "by x_0 where r == 0. Then sqrt(mean square over each image + c^2) - c, divided by t - r, and "
    "the mean.",
    cases=[
        Case("one pixel, t = 0.5, r = 0 (clean data)", from_clean, loss_and_gradient),
        Case("one image, t = 0.8, r = 0.6", arguments(1), loss_and_gradient),
        Case("4 images", arguments(4), loss_and_gradient),
    ],
    mistakes=[
        Mistake(
            "the target is trained, too",
            "Gradients flow through the target. Compute it under torch.no_grad(): both would move "
            "towards each other, and collapse to a constant.",
            lambda *inputs: consistency(*inputs, detach=False),
        ),
        Mistake(
            "the wrong side is trained",
            "You detach the prediction at t and train the one at r. The less noisy one is the "
            "target, which is detached.",
            lambda *inputs: consistency(*inputs, swap=True),
        ),
        Mistake(
            "no boundary condition",
            "Where r = 0, your target is the model's output. Clean data is known: the target must "
            "be x_0, or nothing ties the model to data.",
            lambda *inputs: consistency(*inputs, boundary=False),
        ),
        Mistake(
            "other noise at r",
            "You draw new noise for x_r. Both points must lie on one line, from the same x_0 to "
            "the same noise.",
            other_noise,
        ),
        Mistake(
            "the same point twice",
            "You call the model with x_t for both times. The target sees x_r, the point at r.",
            same_point,
        ),
        Mistake(
            "the time of t for both",
            "You give the model t together with x_r. x_r has the time r.",
            lambda model, x_0, t, r, noise: consistency(model, x_0, t, r, noise, time_r=t),
        ),
        Mistake(
            "compared with x_0",
            "Your target is always x_0, which is the diffusion loss. The target is the model's own "
            "prediction at r.",
            compared_with_x_0,
        ),
        Mistake(
            "the square for the distance",
            "You use the squared error. The pseudo-Huber distance, sqrt(mean square + c^2) - c, "
            "weighs large errors less.",
            lambda *inputs: consistency(*inputs, measure=squared),
        ),
        Mistake(
            "the absolute error",
            "You use the mean absolute error. Take sqrt(mean square over the image + c^2) - c.",
            lambda *inputs: consistency(*inputs, measure=absolute),
        ),
        Mistake(
            "a sum over the pixels",
            "You sum the squares over the pixels. Take their mean, so that the loss does not grow "
            "with the image.",
            lambda *inputs: consistency(*inputs, measure=summed),
        ),
        Mistake(
            "c not subtracted",
            "You do not subtract c at the end. The distance of equal images must be 0.",
            lambda *inputs: consistency(*inputs, measure=no_minus_c),
        ),
        Mistake(
            "the root over the whole batch",
            "You average the squares over the whole batch before the root. Each image has a "
            "distance of its own.",
            over_all,
        ),
        Mistake(
            "not divided by t - r",
            "You do not divide by t - r. Neighbouring points differ less, and their errors must "
            "count as much.",
            lambda model, x_0, t, r, noise: consistency(
                model, x_0, t, r, noise, weight=torch.ones_like(t)
            ),
        ),
        Mistake(
            "multiplied by t - r",
            "You multiply by t - r. Divide by it.",
            lambda model, x_0, t, r, noise: consistency(model, x_0, t, r, noise, weight=t - r),
        ),
        Mistake(
            "t reshaped for the model",
            "You give the model t as (B, 1, 1, 1). It expects (B,), one number for each image.",
            reshaped_t,
        ),
    ],
)

EXERCISE = Exercise(
    file="15_consistency",
    title="the loss of a consistency model",
    chapter="12_latents_text_few_steps.md",
    tasks=[CONSISTENCY_LOSS],
    done="You know how a network learns to draw in a single step.",
)
