"""Exercise 9: a step of DDPM."""

import torch

from learn.exercise import Case, Exercise, Mistake, Task, random, tables

BETAS, ALPHAS_CUMPROD = tables()


def step(eps, x_t, t, noise, betas, alphas_cumprod, *, share=None, std=None, scale=None):
    """The solution, with another share of eps, noise or scale."""
    beta, alpha_bar = betas[t], alphas_cumprod[t]
    share = beta / (1 - alpha_bar).sqrt() if share is None else share
    scale = (1 - beta).sqrt() if scale is None else scale
    std = beta.sqrt() if std is None else std
    mean = (x_t - share * eps) / scale
    return mean if t == 0 else mean + std * noise


def noise_at_the_end(eps, x_t, t, noise, betas, table):
    beta = betas[t]
    return (x_t - beta / (1 - table[t]).sqrt() * eps) / (1 - beta).sqrt() + beta.sqrt() * noise


def no_noise_at_1(eps, x_t, t, noise, betas, table):
    return step(eps, x_t, t, noise if t > 1 else 0 * noise, betas, table)


def posterior_variance(eps, x_t, t, noise, betas, table):
    before = table[t - 1] if t > 0 else torch.ones(())
    std = ((1 - before) / (1 - table[t]) * betas[t]).sqrt()
    return step(eps, x_t, t, noise, betas, table, std=std)


def forward_std(eps, x_t, t, noise, betas, table):
    return step(eps, x_t, t, noise, betas, table, std=(1 - table[t]).sqrt())


def alpha_bar_scale(eps, x_t, t, noise, betas, table):
    return step(eps, x_t, t, noise, betas, table, scale=table[t].sqrt())


def all_of_the_noise(eps, x_t, t, noise, betas, table):
    return step(eps, x_t, t, noise, betas, table, share=(1 - table[t]).sqrt())


def alpha_share(eps, x_t, t, noise, betas, table):
    return step(eps, x_t, t, noise, betas, table, share=(1 - betas[t]) / (1 - table[t]).sqrt())


def share_without_root(eps, x_t, t, noise, betas, table):
    return step(eps, x_t, t, noise, betas, table, share=betas[t] / (1 - table[t]))


def root_of_beta(eps, x_t, t, noise, betas, table):
    return step(eps, x_t, t, noise, betas, table, share=betas[t].sqrt() / (1 - table[t]).sqrt())


def own_noise(eps, x_t, t, noise, betas, table):
    return step(eps, x_t, t, torch.randn_like(x_t), betas, table)


def in_place(eps, x_t, t, noise, betas, table):
    x_t -= betas[t] / (1 - table[t]).sqrt() * eps
    return step(0 * eps, x_t, t, noise, betas, table)


def arguments(t, *shape):
    return lambda: (
        random(*shape),
        random(*shape, seed=1),
        t,
        random(*shape, seed=2),
        BETAS,
        ALPHAS_CUMPROD,
    )


DDPM_STEP = Task(
    "ddpm_step",
    hint="mean = (x_t - beta / sqrt(1 - alpha_bar) * eps) / sqrt(1 - beta). Then add sqrt(beta) * "
    "noise, except at t = 0.",
    linear=["eps", "x_t", "noise"],
    cases=[
        Case("one pixel at t = 4", arguments(4, 1, 1, 1, 1)),
        Case("one pixel at t = 0, the last step", arguments(0, 1, 1, 1, 1)),
        Case("one pixel at t = 1", arguments(1, 1, 1, 1, 1)),
        Case("2 images (2, 3, 3) at t = 9", arguments(9, 2, 2, 3, 3)),
    ],
    mistakes=[
        Mistake(
            "noise added at the last step",
            "You add noise at t = 0, too. There the result is the finished image: algorithm 2 has "
            "z = 0 in the last step.",
            noise_at_the_end,
        ),
        Mistake(
            "no noise at t = 1",
            "You leave out the noise for t <= 1. t counts from 0 here, so only t = 0 is the last "
            "step (in the paper it is 1).",
            no_noise_at_1,
        ),
        Mistake(
            "no noise at all",
            "You never add noise. Without it DDPM's steps end in blurred images: add sqrt(beta) * "
            "noise except at t = 0.",
            lambda eps, x_t, t, noise, betas, table: step(eps, x_t, t, 0 * noise, betas, table),
        ),
        Mistake(
            "beta for its square root",
            "You multiply the noise by beta, its variance. Multiply by the standard deviation, "
            "sqrt(beta).",
            lambda e, x, t, noise, betas, table: step(e, x, t, noise, betas, table, std=betas[t]),
        ),
        Mistake(
            "the posterior variance for beta",
            "You use the posterior's variance. The paper allows both; this exercise asks for beta, "
            "sigma_t^2 = beta_t.",
            posterior_variance,
        ),
        Mistake(
            "the noise of q_sample",
            "You add sqrt(1 - alpha-bar) * noise, the noise of all steps together. A single step "
            "has sqrt(beta).",
            forward_std,
        ),
        Mistake(
            "alpha-bar instead of alpha",
            "You divide by sqrt(alpha-bar), as if to jump to x_0. One step divides by sqrt(alpha), "
            "sqrt(1 - beta).",
            alpha_bar_scale,
        ),
        Mistake(
            "not divided by sqrt(alpha)",
            "You do not divide by sqrt(1 - beta). The forward step has shrunk the signal by it.",
            lambda eps, x, t, z, betas, table: step(eps, x, t, z, betas, table, scale=1.0),
        ),
        Mistake(
            "divided by alpha",
            "You divide by 1 - beta. The signal was scaled by its square root.",
            lambda e, x, t, z, betas, table: step(e, x, t, z, betas, table, scale=1 - betas[t]),
        ),
        Mistake(
            "all noise subtracted",
            "You subtract sqrt(1 - alpha-bar) * eps, all of the noise. One step removes the part "
            "beta / sqrt(1 - alpha-bar).",
            all_of_the_noise,
        ),
        Mistake(
            "alpha for beta in the share of eps",
            "You subtract alpha / sqrt(1 - alpha-bar) * eps. The numerator is 1 - alpha, which is "
            "beta.",
            alpha_share,
        ),
        Mistake(
            "a square root forgotten in the share of eps",
            "You divide beta by 1 - alpha-bar. Algorithm 2 divides by its square root.",
            share_without_root,
        ),
        Mistake(
            "the square root of beta in the share of eps",
            "You subtract sqrt(beta) / sqrt(1 - alpha-bar) * eps. The numerator is beta, without a "
            "root.",
            root_of_beta,
        ),
        Mistake(
            "eps added",
            "You add the predicted noise instead of subtracting it.",
            lambda eps, x_t, t, noise, betas, table: step(-eps, x_t, t, noise, betas, table),
        ),
        Mistake(
            "noise of its own",
            "You draw new noise and do not use the argument. Use the argument, so that a seed can "
            "repeat the image.",
            own_noise,
        ),
        Mistake(
            "the input is changed in place",
            "Your result is right, but x_t has changed, because -= writes into the tensor itself. "
            "Compute a new tensor.",
            in_place,
        ),
    ],
)

EXERCISE = Exercise(
    file="09_ddpm_step",
    title="a step of DDPM",
    chapter="07_sampling.md",
    tasks=[DDPM_STEP],
    done="Repeated a thousand times, this step turns noise into an image.",
)
