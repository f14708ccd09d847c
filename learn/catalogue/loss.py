"""Exercise 4: the training loss."""

import torch

from learn.exercise import Case, Exercise, Mistake, Model, Task, loss_and_gradient, random, tables
from learn.solved import solution

_, ALPHAS_CUMPROD = tables()
SHAPE = (4, 2, 3, 3)


def predicted(model, x_0, t, noise, alphas_cumprod):
    """The prediction for the right x_t."""
    return model(solution("q_sample")(x_0, t, noise, alphas_cumprod), t)


def compared_with_x_0(model, x_0, t, noise, table):
    return (predicted(model, x_0, t, noise, table) - x_0).square().mean()


def compared_with_x_t(model, x_0, t, noise, table):
    x_t = solution("q_sample")(x_0, t, noise, table)
    return (model(x_t, t) - x_t).square().mean()


def summed(model, x_0, t, noise, table):
    return (predicted(model, x_0, t, noise, table) - noise).square().sum()


def absolute(model, x_0, t, noise, table):
    return (predicted(model, x_0, t, noise, table) - noise).abs().mean()


def root(model, x_0, t, noise, table):
    return solution("loss")(model, x_0, t, noise, table).sqrt()


def square_of_mean(model, x_0, t, noise, table):
    return (predicted(model, x_0, t, noise, table) - noise).mean().square()


def clean_input(model, x_0, t, noise, table):
    return (model(x_0, t) - noise).square().mean()


def own_noise(model, x_0, t, noise, table):
    drawn = torch.randn_like(noise)
    return (predicted(model, x_0, t, drawn, table) - noise).square().mean()


def both_own_noise(model, x_0, t, noise, table):
    return solution("loss")(model, x_0, t, torch.randn_like(noise), table)


def detached(model, x_0, t, noise, table):
    return solution("loss")(model, x_0, t, noise, table).detach()


def number(model, x_0, t, noise, table):
    return solution("loss")(model, x_0, t, noise, table).item()


def each_item(model, x_0, t, noise, table):
    return (predicted(model, x_0, t, noise, table) - noise).square().flatten(1).mean(dim=1)


def fraction_of_t(model, x_0, t, noise, table):
    x_t = solution("q_sample")(x_0, t, noise, table)
    return (model(x_t, t / len(table)) - noise).square().mean()


def reshaped_t(model, x_0, t, noise, table):
    x_t = solution("q_sample")(x_0, t, noise, table)
    return (model(x_t, t.view(-1, 1, 1, 1)) - noise).square().mean()


def arguments(*shape):
    t = torch.tensor([9, 0, 3, 6])[: shape[0]]
    return lambda: (Model(), random(*shape), t, random(*shape, seed=1), ALPHAS_CUMPROD)


LOSS = Task(
    "loss",
    hint="Three steps: x_t by your q_sample, eps by model(x_t, t), and the mean of the squared "
    "difference from the noise, over everything: (a - b).square().mean().",
    cases=[
        Case("one image of one pixel", arguments(1, 1, 1, 1), loss_and_gradient),
        Case("4 images (2, 3, 3)", arguments(*SHAPE), loss_and_gradient),
    ],
    mistakes=[
        Mistake(
            "compared with x_0",
            "You compare the prediction with the clean image. In eq. 14 the network predicts the "
            "noise.",
            compared_with_x_0,
        ),
        Mistake(
            "compared with x_t",
            "You compare the prediction with the network's own input x_t. Its target is the noise "
            "in it.",
            compared_with_x_t,
        ),
        Mistake(
            "a sum instead of a mean",
            "You sum the squared errors, so that the loss grows with batch and image size, and "
            "the learning rate would depend on them. Take the mean.",
            summed,
        ),
        Mistake(
            "the absolute error",
            "You take the absolute error. Eq. 14 has the square, so that the best prediction is "
            "the mean of the noise.",
            absolute,
        ),
        Mistake(
            "a square root of the loss",
            "You take the root of the mean squared error. Leave it out: it changes the gradients.",
            root,
        ),
        Mistake(
            "the square of the mean",
            "You average the errors first, so errors of opposite signs cancel. Square each error, "
            "then average.",
            square_of_mean,
        ),
        Mistake(
            "the network sees the clean image",
            "You call the model with x_0. It must find the noise in x_t, which q_sample makes.",
            clean_input,
        ),
        Mistake(
            "noise of its own in x_t",
            "You draw new noise for x_t and compare with the argument. The target must be the "
            "noise that is in x_t.",
            own_noise,
        ),
        Mistake(
            "new noise instead of the argument",
            "You draw noise inside the function and do not use the argument. Use the argument, "
            "for x_t and as the target: the caller draws it.",
            both_own_noise,
        ),
        Mistake(
            "no gradient",
            "The value is right, but it is cut off from the network (detach or no_grad). Training "
            "needs its gradient.",
            detached,
        ),
        Mistake(
            "a number instead of a tensor",
            "You return a Python number (item()), which has no gradient. Return the tensor.",
            number,
        ),
        Mistake(
            "one loss for each image",
            "You return (B,), one loss for each image. Take the mean over the batch, too: "
            "backward() needs a scalar.",
            each_item,
        ),
        Mistake(
            "t divided by T",
            "You give the network t / T. It expects the whole number t, as the time embedding "
            "does.",
            fraction_of_t,
        ),
        Mistake(
            "t reshaped for the model",
            "You give the model t as (B, 1, 1, 1). It expects (B,), one number for each image.",
            reshaped_t,
        ),
    ],
    uses=["q_sample"],
)

EXERCISE = Exercise(
    file="04_loss",
    title="the training loss",
    chapter="04_loss.md",
    tasks=[LOSS],
    done="You have all of DDPM's training objective. Next: the network that it trains.",
)
