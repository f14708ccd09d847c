"""Exercise 10: a step of DDIM."""

import torch

from learn.exercise import Case, Exercise, Mistake, Task, random, tables

_, ALPHAS_CUMPROD = tables()


def step(eps, x_t, now, following):
    """The solution, for two values of alpha-bar."""
    x_0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    return following.sqrt() * x_0 + (1 - following).sqrt() * eps


def at(table, t):
    return table[t] if t >= 0 else torch.ones(())


def solved(eps, x_t, t, t_next, table):
    return step(eps, x_t, at(table, t), at(table, t_next))


def last_row(eps, x_t, t, t_next, table):
    return step(eps, x_t, table[t], table[t_next])


def first_row(eps, x_t, t, t_next, table):
    return step(eps, x_t, table[t], table[max(t_next, 0)])


def one_step(eps, x_t, t, t_next, table):
    return step(eps, x_t, table[t], at(table, t - 1))


def x_0_only(eps, x_t, t, t_next, table):
    return step(eps, x_t, table[t], torch.ones(()))


def stays(eps, x_t, t, t_next, table):
    now, following = at(table, t), at(table, t_next)
    x_0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    return following.sqrt() * x_0 + (1 - now).sqrt() * eps


def not_scaled(eps, x_t, t, t_next, table):
    now, following = at(table, t), at(table, t_next)
    x_0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    return x_0 + (1 - following).sqrt() * eps


def noise_without_root(eps, x_t, t, t_next, table):
    now, following = at(table, t), at(table, t_next)
    x_0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    return following.sqrt() * x_0 + (1 - following) * eps


def no_roots(eps, x_t, t, t_next, table):
    now, following = at(table, t), at(table, t_next)
    x_0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    return following * x_0 + (1 - following) * eps


def fresh_noise(eps, x_t, t, t_next, table):
    now, following = at(table, t), at(table, t_next)
    x_0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    return following.sqrt() * x_0 + (1 - following).sqrt() * torch.randn_like(x_t)


def not_divided(eps, x_t, t, t_next, table):
    now, following = at(table, t), at(table, t_next)
    x_0 = x_t - (1 - now).sqrt() * eps
    return following.sqrt() * x_0 + (1 - following).sqrt() * eps


def clipped(eps, x_t, t, t_next, table):
    now, following = at(table, t), at(table, t_next)
    x_0 = ((x_t - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-1, 1)
    return following.sqrt() * x_0 + (1 - following).sqrt() * eps


def weights_exchanged(eps, x_t, t, t_next, table):
    now, following = at(table, t), at(table, t_next)
    x_0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    return (1 - following).sqrt() * x_0 + following.sqrt() * eps


def arguments(t, t_next, *shape):
    return lambda: (random(*shape), 2 * random(*shape, seed=1), t, t_next, ALPHAS_CUMPROD)


DDIM_STEP = Task(
    "ddim_step",
    hint="First x_0 as in exercise 3, then eq. 4 with the alpha-bar of t_next and the same eps. "
    "For t_next = -1 alpha-bar is 1.",
    linear=["eps", "x_t"],
    cases=[
        Case("one pixel, from t = 7 to 4", arguments(7, 4, 1, 1, 1, 1)),
        Case("one pixel, from t = 2 to clean data, t_next = -1", arguments(2, -1, 1, 1, 1, 1)),
        Case("2 images (2, 3, 3), from t = 9 to 8", arguments(9, 8, 2, 2, 3, 3)),
    ],
    mistakes=[
        Mistake(
            "alphas_cumprod[-1] for clean data",
            "For t_next = -1 you read the table's entry -1, which is the last, the most noise. "
            "Clean data has alpha-bar = 1.",
            last_row,
        ),
        Mistake(
            "t_next = -1 taken for t = 0",
            "For t_next = -1 you use the alpha-bar of t = 0, so a little noise stays in the image. "
            "Clean data has alpha-bar = 1.",
            first_row,
        ),
        Mistake(
            "t - 1 instead of t_next",
            "You go to t - 1. DDIM may skip timesteps: go to t_next.",
            one_step,
        ),
        Mistake(
            "x_0 returned",
            "You return the predicted x_0. Scale it by sqrt(alpha-bar of t_next) and add the noise "
            "of t_next: x_0 from much noise is blurred, and later steps improve it.",
            x_0_only,
        ),
        Mistake(
            "the noise of t instead of t_next",
            "You weight eps by the noise of t. At t_next there is less: sqrt(1 - alpha-bar of "
            "t_next).",
            stays,
        ),
        Mistake(
            "x_0 not scaled",
            "You add noise to x_0 without scaling it. The signal at t_next is sqrt(alpha-bar of "
            "t_next) * x_0.",
            not_scaled,
        ),
        Mistake(
            "x_0 not divided by sqrt(alpha-bar)",
            "Your x_0 is x_t without noise, but not divided by sqrt(alpha-bar of t). See exercise "
            "3.",
            not_divided,
        ),
        Mistake(
            "square root of the noise's weight forgotten",
            "You weight eps by 1 - alpha-bar. It is the variance: take its square root.",
            noise_without_root,
        ),
        Mistake(
            "both square roots forgotten",
            "You weight x_0 by alpha-bar and eps by 1 - alpha-bar. Both weights are square roots.",
            no_roots,
        ),
        Mistake(
            "fresh noise",
            "You draw new noise. DDIM with eta = 0 uses the predicted eps again, so the same noise "
            "always leads to the same image.",
            fresh_noise,
        ),
        Mistake(
            "t and t_next exchanged",
            "You use the alpha-bar of t_next to find x_0, and that of t to add noise. x_t is at t.",
            lambda eps, x_t, t, t_next, table: solved(eps, x_t, t_next, t, table),
        ),
        Mistake(
            "signal and noise exchanged",
            "You weight x_0 by sqrt(1 - alpha-bar) and eps by sqrt(alpha-bar). At clean data x_0 "
            "must be left alone.",
            weights_exchanged,
        ),
        Mistake(
            "x_0 clipped",
            "You clip x_0 to [-1, 1]. This function does not: `draw`, in exercise 16, clips x_0 "
            "before it calls this function.",
            clipped,
        ),
    ],
)

EXERCISE = Exercise(
    file="10_ddim_step",
    title="a step of DDIM",
    chapter="07_sampling.md",
    tasks=[DDIM_STEP],
    done="With this step, twenty calls of the network draw an image instead of a thousand.",
)
