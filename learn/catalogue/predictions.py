"""Exercise 3: the clean image that a prediction implies."""

import torch

from learn.exercise import Case, Exercise, Mistake, Task, random, tables

_, ALPHAS_CUMPROD = tables()


def weights(t, alphas_cumprod):
    """alpha and sigma (B, 1, 1, 1)."""
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def x_0_from_eps(eps, x_t, t, alphas_cumprod):
    alpha, sigma = weights(t, alphas_cumprod)
    return (x_t - sigma * eps) / alpha


def x_0_from_v(v, x_t, t, alphas_cumprod):
    alpha, sigma = weights(t, alphas_cumprod)
    return alpha * x_t - sigma * v


def added(eps, x_t, t, alphas_cumprod):
    return x_0_from_eps(-eps, x_t, t, alphas_cumprod)


def not_divided(eps, x_t, t, alphas_cumprod):
    return x_t - weights(t, alphas_cumprod)[1] * eps


def divided_in_part(eps, x_t, t, alphas_cumprod):
    alpha, sigma = weights(t, alphas_cumprod)
    return x_t - sigma * eps / alpha


def divided_by_alpha_bar(eps, x_t, t, alphas_cumprod):
    alpha, sigma = weights(t, alphas_cumprod)
    return (x_t - sigma * eps) / alpha**2


def no_root_of_sigma(eps, x_t, t, alphas_cumprod):
    alpha, sigma = weights(t, alphas_cumprod)
    return (x_t - sigma**2 * eps) / alpha


def flat_eps(eps, x_t, t, alphas_cumprod):
    alpha_bar = alphas_cumprod[t]
    return (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def clipped(eps, x_t, t, alphas_cumprod):
    return x_0_from_eps(eps, x_t, t, alphas_cumprod).clamp(-1, 1)


def noise_from_v(v, x_t, t, alphas_cumprod):
    alpha, sigma = weights(t, alphas_cumprod)
    return sigma * x_t + alpha * v


def v_added(v, x_t, t, alphas_cumprod):
    return x_0_from_v(-v, x_t, t, alphas_cumprod)


def v_no_roots(v, x_t, t, alphas_cumprod):
    alpha, sigma = weights(t, alphas_cumprod)
    return alpha**2 * x_t - sigma**2 * v


def v_exchanged(v, x_t, t, alphas_cumprod):
    alpha, sigma = weights(t, alphas_cumprod)
    return sigma * x_t - alpha * v


def velocity_to_data(v, x_t, t, alphas_cumprod):
    return x_t - weights(t, alphas_cumprod)[1] * v


def divided(v, x_t, t, alphas_cumprod):
    alpha, sigma = weights(t, alphas_cumprod)
    return (alpha * x_t - sigma * v) / (alpha + sigma)


def flat_v(v, x_t, t, alphas_cumprod):
    alpha_bar = alphas_cumprod[t]
    return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * v


CASES = [
    Case(
        "one pixel at t = 4",
        lambda: (
            torch.full((1, 1, 1, 1), 2.0),
            torch.full((1, 1, 1, 1), 3.0),
            torch.tensor([4]),
            ALPHAS_CUMPROD,
        ),
    ),
    Case(
        "4 images (3, 4, 4) at 4 different t",
        lambda: (
            random(4, 3, 4, 4),
            random(4, 3, 4, 4, seed=1),
            torch.tensor([9, 0, 3, 6]),
            ALPHAS_CUMPROD,
        ),
    ),
    Case(
        "2 images (3, 5, 4) at 2 different t",
        lambda: (
            random(2, 3, 5, 4),
            random(2, 3, 5, 4, seed=1),
            torch.tensor([2, 7]),
            ALPHAS_CUMPROD,
        ),
    ),
]

BROADCAST = (
    "Your factors have the shape (B,), and PyTorch matches them with the last axis, the width. "
    "Shape them to (B, 1, 1, 1), so that each image gets its own."
)
OFF_BY_ONE = (
    "You use the table's entry t - 1. t counts from 0 here, so entry t is the right one (the paper "
    "counts from 1)."
)

X_0_FROM_EPS = Task(
    "x_0_from_eps",
    hint="Write down eq. 4, x_t = a x_0 + s eps, and solve it for x_0.",
    linear=["eps", "x_t"],
    cases=CASES,
    mistakes=[
        Mistake(
            "noise added instead of subtracted",
            "You add the noise once more. x_t contains sigma * eps, so subtract it.",
            added,
        ),
        Mistake(
            "not divided by sqrt(alpha-bar)",
            "You remove the noise but do not divide. What is left is sqrt(alpha-bar) * x_0.",
            not_divided,
        ),
        Mistake(
            "only the noise divided",
            "You divide the noise by sqrt(alpha-bar), but not x_t. Put parentheses around the "
            "difference: both are divided.",
            divided_in_part,
        ),
        Mistake(
            "divided by alpha-bar",
            "You divide by alpha-bar. The signal was multiplied by its square root, so divide by "
            "that.",
            divided_by_alpha_bar,
        ),
        Mistake(
            "square root of the noise's weight forgotten",
            "You multiply eps by 1 - alpha-bar, its variance. Eq. 4 has sqrt(1 - alpha-bar).",
            no_root_of_sigma,
        ),
        Mistake("wrong broadcast over (B, C, H, W)", BROADCAST, flat_eps),
        Mistake(
            "off by one in t",
            OFF_BY_ONE,
            lambda eps, x_t, t, table: x_0_from_eps(eps, x_t, t - 1, table),
        ),
        Mistake(
            "clipped",
            "You clip the result to [-1, 1]. Sampling may do so for images; this function returns "
            "what eps implies.",
            clipped,
        ),
        Mistake(
            "eps and x_t exchanged",
            "You subtract x_t from eps. The arguments are eps first, then x_t.",
            lambda eps, x_t, t, table: x_0_from_eps(x_t, eps, t, table),
        ),
    ],
)

X_0_FROM_V = Task(
    "x_0_from_v",
    hint="v = a noise - s x_0 and x_t = a x_0 + s noise, with a^2 + s^2 = 1. Compute a x_t - s v: "
    "the noise cancels.",
    linear=["v", "x_t"],
    cases=CASES,
    mistakes=[
        Mistake(
            "the noise instead of x_0",
            "You compute sigma * x_t + alpha * v, which is the noise. x_0 is alpha * x_t - sigma "
            "* v.",
            noise_from_v,
        ),
        Mistake(
            "the wrong sign of v",
            "You add sigma * v. Insert v = alpha noise - sigma x_0: the noise cancels only with a "
            "minus.",
            v_added,
        ),
        Mistake(
            "both square roots forgotten",
            "You use alpha-bar and 1 - alpha-bar. alpha and sigma are their square roots.",
            v_no_roots,
        ),
        Mistake(
            "alpha and sigma exchanged",
            "You multiply x_t by sigma and v by alpha. At t = 0 alpha is nearly 1, and x_0 must be "
            "nearly x_t.",
            v_exchanged,
        ),
        Mistake(
            "v as the velocity of a straight line",
            "x_t - sigma * v holds for flow matching, where v = noise - x_0. Here v = alpha noise "
            "- sigma x_0, and x_t is multiplied by alpha.",
            velocity_to_data,
        ),
        Mistake(
            "divided by alpha + sigma",
            "You divide by alpha + sigma, as for flow matching. Here alpha^2 + sigma^2 = 1, and "
            "nothing is divided.",
            divided,
        ),
        Mistake(
            "v taken for eps",
            "You treat v as predicted noise. v = alpha noise - sigma x_0 mixes noise and image.",
            x_0_from_eps,
        ),
        Mistake("wrong broadcast over (B, C, H, W)", BROADCAST, flat_v),
        Mistake(
            "off by one in t", OFF_BY_ONE, lambda v, x_t, t, table: x_0_from_v(v, x_t, t - 1, table)
        ),
    ],
)

EXERCISE = Exercise(
    file="03_predictions",
    title="from a prediction to x_0",
    chapter="03_what_to_predict.md",
    tasks=[X_0_FROM_EPS, X_0_FROM_V],
    done="Whatever a network predicts, you can say which clean image that means.",
)
