"""Exercise 2: the posterior q(x_{t-1} | x_t, x_0)."""

import torch

from learn.exercise import Case, Exercise, Mistake, Task, random, tables

BETAS, ALPHAS_CUMPROD = tables()


def posterior(x_0, x_t, t, betas, alphas_cumprod, *, before=None, now=None):
    """The solution, in which the tables of alpha-bar can be replaced."""
    before = torch.cat([torch.ones(1), alphas_cumprod[:-1]]) if before is None else before
    now = alphas_cumprod if now is None else now
    beta, before, now = (a[t].view(-1, 1, 1, 1) for a in (betas, before, now))
    mean = before.sqrt() * beta / (1 - now) * x_0
    mean = mean + (1 - beta).sqrt() * (1 - before) / (1 - now) * x_t
    return mean, (1 - before) / (1 - now) * beta


def rolled(x_0, x_t, t, betas, alphas_cumprod):
    return posterior(x_0, x_t, t, betas, alphas_cumprod, before=alphas_cumprod.roll(1))


def clamped(x_0, x_t, t, betas, alphas_cumprod):
    before = torch.cat([alphas_cumprod[:1], alphas_cumprod[:-1]])
    return posterior(x_0, x_t, t, betas, alphas_cumprod, before=before)


def same_step(x_0, x_t, t, betas, alphas_cumprod):
    return posterior(x_0, x_t, t, betas, alphas_cumprod, before=alphas_cumprod)


def beta_for_variance(x_0, x_t, t, betas, alphas_cumprod):
    mean, _ = posterior(x_0, x_t, t, betas, alphas_cumprod)
    return mean, betas[t].view(-1, 1, 1, 1)


def deviation(x_0, x_t, t, betas, alphas_cumprod):
    mean, variance = posterior(x_0, x_t, t, betas, alphas_cumprod)
    return mean, variance.sqrt()


def coefficients_exchanged(x_0, x_t, t, betas, alphas_cumprod):
    return posterior(x_t, x_0, t, betas, alphas_cumprod)


def no_root_of_before(x_0, x_t, t, betas, alphas_cumprod):
    before = torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    x_0 = before.sqrt()[t].view(-1, 1, 1, 1) * x_0
    return posterior(x_0, x_t, t, betas, alphas_cumprod)


def no_root_of_alpha(x_0, x_t, t, betas, alphas_cumprod):
    x_t = (1 - betas).sqrt()[t].view(-1, 1, 1, 1) * x_t
    return posterior(x_0, x_t, t, betas, alphas_cumprod)


def alpha_bar_for_alpha(x_0, x_t, t, betas, alphas_cumprod):
    x_t = (alphas_cumprod / (1 - betas)).sqrt()[t].view(-1, 1, 1, 1) * x_t
    return posterior(x_0, x_t, t, betas, alphas_cumprod)


def flat_variance(x_0, x_t, t, betas, alphas_cumprod):
    mean, variance = posterior(x_0, x_t, t, betas, alphas_cumprod)
    return mean, variance.flatten()


def exchanged_results(x_0, x_t, t, betas, alphas_cumprod):
    mean, variance = posterior(x_0, x_t, t, betas, alphas_cumprod)
    return variance, mean


POSTERIOR = Task(
    "posterior",
    hint="Make a table of the alpha-bar before each step: torch.cat of a 1 and of all but the last "
    "entry of alphas_cumprod. Then index all three tables with t and shape them to (B, 1, 1, 1).",
    linear=["x_0", "x_t"],
    cases=[
        Case(
            "one pixel at t = 4",
            lambda: (
                torch.full((1, 1, 1, 1), 0.5),
                -torch.ones(1, 1, 1, 1),
                torch.tensor([4]),
                BETAS,
                ALPHAS_CUMPROD,
            ),
        ),
        Case(
            "one pixel at t = 0, where x_{t-1} is x_0 itself",
            lambda: (
                torch.full((1, 1, 1, 1), 0.5),
                -torch.ones(1, 1, 1, 1),
                torch.tensor([0]),
                BETAS,
                ALPHAS_CUMPROD,
            ),
        ),
        Case(
            "3 images (2, 4, 3) at 3 different t",
            lambda: (
                random(3, 2, 4, 3),
                random(3, 2, 4, 3, seed=1),
                torch.tensor([9, 0, 5]),
                BETAS,
                ALPHAS_CUMPROD,
            ),
        ),
    ],
    mistakes=[
        Mistake(
            "alphas_cumprod[t - 1] at t = 0",
            "At t = 0 you read entry -1, which is the last of the table, the most noise. Before "
            "the first step there is no noise: alpha-bar is 1 there.",
            rolled,
        ),
        Mistake(
            "alpha-bar before the first step is not 1",
            "For t = 0 you use alphas_cumprod[0] for the step before as well. Before the first "
            "step there is no noise, so that alpha-bar is 1, the variance 0 and the mean x_0.",
            clamped,
        ),
        Mistake(
            "alpha-bar of t for that of t - 1",
            "You use alphas_cumprod[t] in both places. The numerators of eq. 7 have the alpha-bar "
            "of the step before, t - 1.",
            same_step,
        ),
        Mistake(
            "beta for the posterior variance",
            "Your variance is beta, that of the forward step. Once x_0 is known, less is "
            "uncertain: multiply by (1 - alpha-bar before) / (1 - alpha-bar).",
            beta_for_variance,
        ),
        Mistake(
            "standard deviation for the variance",
            "Your mean is right, and the second value is the standard deviation. Return the "
            "variance, without the square root.",
            deviation,
        ),
        Mistake(
            "the coefficients exchanged",
            "You multiply x_t by the coefficient of x_0, and x_0 by that of x_t. At t = 0 the mean "
            "must be x_0.",
            coefficients_exchanged,
        ),
        Mistake(
            "square root of the coefficient of x_0 forgotten",
            "You multiply x_0 by alpha-bar of the step before. Eq. 7 has its square root.",
            no_root_of_before,
        ),
        Mistake(
            "square root of the coefficient of x_t forgotten",
            "You multiply x_t by alpha, 1 - beta. Eq. 7 has its square root.",
            no_root_of_alpha,
        ),
        Mistake(
            "alpha-bar for alpha in the coefficient of x_t",
            "You multiply x_t by sqrt(alpha-bar). Eq. 7 has sqrt(alpha) here, of the single step: "
            "1 - beta.",
            alpha_bar_for_alpha,
        ),
        Mistake(
            "the variance has no axes for the pixels",
            "Your numbers are right, but the variance has the shape (B,). Return (B, 1, 1, 1), so "
            "that it multiplies images.",
            flat_variance,
        ),
        Mistake(
            "mean and variance exchanged",
            "You return the variance first. The order is mean, variance.",
            exchanged_results,
        ),
    ],
)

EXERCISE = Exercise(
    file="02_posterior",
    title="the posterior",
    chapter="02_posterior.md",
    tasks=[POSTERIOR],
    done="You know where x_{t-1} lies, for anyone who knows x_0. A network will guess that x_0.",
)
