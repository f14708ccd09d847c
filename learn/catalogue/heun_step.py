"""Exercise 12: a step of Heun's method."""

import torch

from learn.exercise import Case, Exercise, Mistake, Task, random


def denoiser(calls):
    """The best denoiser of data N(0.5, 1) in each pixel, which records its noise levels."""

    def denoise(x, sigma):
        calls.append(float(sigma))
        return (x + 0.5 * sigma**2) / (1 + sigma**2)

    return denoise


def with_calls(function, x, sigma, sigma_next):
    """What is compared: the result, and the noise levels at which the network was called."""
    calls = []
    result = function(denoiser(calls), x, sigma, sigma_next)
    return {"the result": result, "noise levels of the calls": tuple(calls)}


def slope(denoise, x, sigma):
    return (x - denoise(x, sigma)) / sigma


def euler(denoise, x, sigma, nxt):
    return x + (nxt - sigma) * slope(denoise, x, sigma)


def solved(denoise, x, sigma, nxt):
    first = slope(denoise, x, sigma)
    x_next = x + (nxt - sigma) * first
    if nxt == 0:
        return x_next
    return x + (nxt - sigma) * (first + slope(denoise, x_next, nxt)) / 2


def divides_by_zero(denoise, x, sigma, nxt):
    first = slope(denoise, x, sigma)
    x_next = x + (nxt - sigma) * first
    second = (x_next - denoise(x_next, nxt)) / torch.tensor(nxt)
    return x + (nxt - sigma) * (first + second) / 2


def python_divides_by_zero(denoise, x, sigma, nxt):
    if nxt == 0:
        1 / nxt
    return solved(denoise, x, sigma, nxt)


def from_x_next(denoise, x, sigma, nxt):
    first = slope(denoise, x, sigma)
    x_next = x + (nxt - sigma) * first
    if nxt == 0:
        return x_next
    return x_next + (nxt - sigma) * (first + slope(denoise, x_next, nxt)) / 2


def not_averaged(denoise, x, sigma, nxt):
    first = slope(denoise, x, sigma)
    x_next = x + (nxt - sigma) * first
    if nxt == 0:
        return x_next
    return x + (nxt - sigma) * (first + slope(denoise, x_next, nxt))


def second_only(denoise, x, sigma, nxt):
    x_next = euler(denoise, x, sigma, nxt)
    if nxt == 0:
        return x_next
    return x + (nxt - sigma) * slope(denoise, x_next, nxt)


def same_level(denoise, x, sigma, nxt):
    first = slope(denoise, x, sigma)
    x_next = x + (nxt - sigma) * first
    if nxt == 0:
        return x_next
    return x + (nxt - sigma) * (first + slope(denoise, x_next, sigma)) / 2


def divided_by_sigma(denoise, x, sigma, nxt):
    first = slope(denoise, x, sigma)
    x_next = x + (nxt - sigma) * first
    if nxt == 0:
        return x_next
    return x + (nxt - sigma) * (first + (x_next - denoise(x_next, nxt)) / sigma) / 2


def old_x(denoise, x, sigma, nxt):
    first = slope(denoise, x, sigma)
    if nxt == 0:
        return x + (nxt - sigma) * first
    return x + (nxt - sigma) * (first + slope(denoise, x, nxt)) / 2


def wrong_sign(denoise, x, sigma, nxt):
    first = slope(denoise, x, sigma)
    x_next = x + (sigma - nxt) * first
    if nxt == 0:
        return x_next
    return x + (sigma - nxt) * (first + slope(denoise, x_next, nxt)) / 2


def not_divided(denoise, x, sigma, nxt):
    first = x - denoise(x, sigma)
    x_next = x + (nxt - sigma) * first
    if nxt == 0:
        return x_next
    return x + (nxt - sigma) * (first + x_next - denoise(x_next, nxt)) / 2


def no_parentheses(denoise, x, sigma, nxt):
    first = x - denoise(x, sigma) / sigma
    x_next = x + (nxt - sigma) * first
    if nxt == 0:
        return x_next
    return x + (nxt - sigma) * (first + x_next - denoise(x_next, nxt) / nxt) / 2


def midpoint(denoise, x, sigma, nxt):
    if nxt == 0:
        return euler(denoise, x, sigma, nxt)
    middle = (sigma + nxt) / 2
    return x + (nxt - sigma) * slope(denoise, euler(denoise, x, sigma, middle), middle)


NAMES = ("x", "sigma", "sigma_next")

HEUN_STEP = Task(
    "heun_step",
    hint="slope(x, sigma) = (x - denoise(x, sigma)) / sigma. Take Euler's step with it, compute "
    "the slope there, and repeat the step from the old x with the mean of both slopes.",
    cases=[
        Case(
            "one pixel, from sigma = 2 to 1",
            lambda: (torch.full((1, 1, 1, 1), 3.0), 2.0, 1.0),
            with_calls,
            NAMES,
        ),
        Case(
            "one pixel, from sigma = 1 to 0",
            lambda: (torch.full((1, 1, 1, 1), 3.0), 1.0, 0.0),
            with_calls,
            NAMES,
        ),
        Case(
            "2 images, from sigma = 80 to 5",
            lambda: (80 * random(2, 1, 2, 2), 80.0, 5.0),
            with_calls,
            NAMES,
        ),
    ],
    mistakes=[
        Mistake(
            "Euler's step alone",
            "You take Euler's step, of order 1. Heun's method corrects it: compute the slope at "
            "the end as well, and average both.",
            euler,
        ),
        Mistake(
            "0 / 0 in the last step",
            "At sigma_next = 0 you divide by 0. There is no slope there: the last step is Euler's "
            "alone (line 6 of algorithm 1).",
            divides_by_zero,
        ),
        Mistake(
            "division by zero in the last step",
            "At sigma_next = 0 you divide by 0. There is no slope there: the last step is Euler's "
            "alone (line 6 of algorithm 1).",
            python_divides_by_zero,
        ),
        Mistake(
            "the correction starts from x_next",
            "You take the averaged step from Euler's result, so there are two steps. Take it from "
            "the old x.",
            from_x_next,
        ),
        Mistake(
            "slopes added, not averaged",
            "You add both slopes. Take their mean: divide by 2.",
            not_averaged,
        ),
        Mistake(
            "only the second slope",
            "You use the slope at the end alone. Heun's method takes the mean of both slopes.",
            second_only,
        ),
        Mistake(
            "the second call at the old noise level",
            "You give the second call sigma. x_next has the noise level sigma_next.",
            same_level,
        ),
        Mistake(
            "the second slope divided by sigma",
            "You divide the second slope by sigma. There the noise level is sigma_next.",
            divided_by_sigma,
        ),
        Mistake(
            "the second slope at the old x",
            "You compute the second slope at the old x. Compute it at the end of Euler's step.",
            old_x,
        ),
        Mistake(
            "the wrong direction",
            "Your step is sigma - sigma_next, which is positive and adds noise. It is sigma_next - "
            "sigma.",
            wrong_sign,
        ),
        Mistake(
            "slopes not divided by the noise level",
            "Your slope is x - x_0. The slope is the predicted noise, (x - x_0) / sigma.",
            not_divided,
        ),
        Mistake(
            "only the prediction divided by sigma",
            "You compute x - x_0 / sigma. Put parentheses around the difference: (x - x_0) / "
            "sigma.",
            no_parentheses,
        ),
        Mistake(
            "the midpoint method",
            "You take the slope in the middle of the step. That is of order 2 as well, but Heun's "
            "method averages the slopes at both ends.",
            midpoint,
        ),
    ],
)

EXERCISE = Exercise(
    file="12_heun_step",
    title="a step of Heun's method",
    chapter="07_sampling.md",
    tasks=[HEUN_STEP],
    done="Sampling is solving a differential equation, and you can do it to second order.",
)
