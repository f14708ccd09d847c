"""Exercise 13: a step of DPM-Solver++(2M)."""

from math import exp, log, sqrt

from learn.exercise import Case, Exercise, Mistake, Task, random


def level(sigma):
    """(alpha, sigma) of a variance-preserving process."""
    return sqrt(1 - sigma**2), sigma


def lam(level):
    return log(level[0] / level[1])


def step(x, x_0, x_0_last, last, cur, nxt, *, ratio=None, weight=0.5, factor=None, length=None):
    """The solution, with another ratio of steps, weight of the slope, or step."""
    if nxt[1] == 0:
        return x_0
    h = lam(nxt) - lam(cur) if length is None else length
    d = x_0
    if x_0_last is not None:
        r = (lam(cur) - lam(last)) / h if ratio is None else ratio(lam(cur) - lam(last), h)
        d = x_0 + weight * (x_0 - x_0_last) / r
    factor = exp(-h) - 1 if factor is None else factor(h)
    return nxt[1] / cur[1] * x - nxt[0] * factor * d


def first_order(x, x_0, x_0_last, last, cur, nxt):
    return step(x, x_0, None, last, cur, nxt)


def infinite(x, x_0, x_0_last, last, cur, nxt):
    if nxt[1] == 0:
        1 / nxt[1]
    return step(x, x_0, x_0_last, last, cur, nxt)


def logarithm_of_zero(x, x_0, x_0_last, last, cur, nxt):
    if nxt[1] == 0:
        log(nxt[1])
    return step(x, x_0, x_0_last, last, cur, nxt)


def extrapolated_to_clean(x, x_0, x_0_last, last, cur, nxt):
    if nxt[1] == 0 and x_0_last is not None:
        return x_0 + (x_0 - x_0_last) / 2
    return step(x, x_0, x_0_last, last, cur, nxt)


def inverse_lambda(x, x_0, x_0_last, last, cur, nxt):
    flipped = [None if a is None else (a[1], a[0]) for a in (last, cur, nxt)]
    if nxt[1] == 0:
        return x_0
    h = lam(flipped[2]) - lam(flipped[1])
    return step(x, x_0, x_0_last, last, cur, nxt, length=h)


def sigma_exchanged(x, x_0, x_0_last, last, cur, nxt):
    if nxt[1] == 0:
        return x_0
    right = step(x, x_0, x_0_last, last, cur, nxt)
    return right - nxt[1] / cur[1] * x + cur[1] / nxt[1] * x


def alpha_of_cur(x, x_0, x_0_last, last, cur, nxt):
    if nxt[1] == 0:
        return x_0
    kept = nxt[1] / cur[1] * x
    return kept + cur[0] / nxt[0] * (step(x, x_0, x_0_last, last, cur, nxt) - kept)


def ratio_of_alphas(x, x_0, x_0_last, last, cur, nxt):
    if nxt[1] == 0:
        return x_0
    right = step(x, x_0, x_0_last, last, cur, nxt)
    return right - nxt[1] / cur[1] * x + nxt[0] / cur[0] * x


def plus(x, x_0, x_0_last, last, cur, nxt):
    if nxt[1] == 0:
        return x_0
    return 2 * nxt[1] / cur[1] * x - step(x, x_0, x_0_last, last, cur, nxt)


def arguments(last, cur, nxt, *shape):
    return lambda: (
        random(*shape),
        random(*shape, seed=1),
        random(*shape, seed=2),
        level(last),
        level(cur),
        level(nxt) if nxt else (1.0, 0.0),
    )


def first_arguments():
    x = random(1, 1, 1, 1)
    return x, random(1, 1, 1, 1, seed=1), None, None, level(0.9), level(0.6)


DPMPP_2M_STEP = Task(
    "dpmpp_2m_step",
    hint="lambda = log(alpha / sigma), h = lambda(nxt) - lambda(cur), r = (lambda(cur) - "
    "lambda(last)) / h, d = x_0 + (x_0 - x_0_last) / (2 r). Treat nxt[1] == 0 and x_0_last is None "
    "first.",
    linear=["x", "x_0", "x_0_last"],
    cases=[
        Case("one pixel, the first step, from sigma = 0.9 to 0.6", first_arguments),
        Case("one pixel, from sigma = 0.8 to 0.5 after 0.9", arguments(0.9, 0.8, 0.5, 1, 1, 1, 1)),
        Case("one pixel, from sigma = 0.3 to clean data", arguments(0.6, 0.3, 0, 1, 1, 1, 1)),
        Case("2 images, from sigma = 0.5 to 0.4 after 0.9", arguments(0.9, 0.5, 0.4, 2, 1, 2, 2)),
    ],
    mistakes=[
        Mistake(
            "order 1 only",
            "You do not use x_0_last. Without it this is a step of DDIM: extrapolate x_0 to the "
            "middle of the step.",
            first_order,
        ),
        Mistake(
            "division by zero at clean data",
            "At nxt[1] = 0 lambda is infinite. Return x_0 there, before you compute lambda.",
            infinite,
        ),
        Mistake(
            "logarithm of zero at clean data",
            "At nxt[1] = 0 lambda is infinite. Return x_0 there, before you compute lambda.",
            logarithm_of_zero,
        ),
        Mistake(
            "extrapolated to clean data",
            "In the last step you extrapolate as well. The step in lambda is infinite there, so "
            "the slope means nothing: return x_0.",
            extrapolated_to_clean,
        ),
        Mistake(
            "the ratio of steps upside down",
            "Your r is h / h_last. It is the last step divided by this one: (lambda(cur) - "
            "lambda(last)) / h.",
            lambda *inputs: step(*inputs, ratio=lambda last, h: h / last),
        ),
        Mistake(
            "the ratio of steps left out",
            "You take r = 1, which only holds for steps of one length in lambda.",
            lambda *inputs: step(*inputs, ratio=lambda last, h: 1.0),
        ),
        Mistake(
            "the whole slope instead of half",
            "You add (x_0 - x_0_last) / r. Divide by 2 r: the middle of the step is half a step "
            "ahead.",
            lambda *inputs: step(*inputs, weight=1.0),
        ),
        Mistake(
            "extrapolated backwards",
            "You subtract the slope. x_0 changes from x_0_last to x_0; go on in that direction.",
            lambda *inputs: step(*inputs, weight=-0.5),
        ),
        Mistake(
            "the sign of h in the exponential",
            "You compute exp(h) - 1. The equation has exp(-h) - 1, which is between -1 and 0.",
            lambda *inputs: step(*inputs, factor=lambda h: exp(h) - 1),
        ),
        Mistake(
            "exp(-h) without - 1",
            "You leave out the - 1. The factor is exp(-h) - 1, which is 0 for a step of length 0.",
            lambda *inputs: step(*inputs, factor=lambda h: exp(-h)),
        ),
        Mistake(
            "lambda upside down",
            "Your lambda is log(sigma / alpha). It is log(alpha / sigma), which grows towards "
            "clean data.",
            inverse_lambda,
        ),
        Mistake(
            "sigmas exchanged",
            "You multiply x by sigma(cur) / sigma(nxt), which grows. It is sigma(nxt) / "
            "sigma(cur): noise disappears.",
            sigma_exchanged,
        ),
        Mistake(
            "alpha of the current level",
            "You multiply the second term by alpha(cur). x_0 enters with the alpha of nxt.",
            alpha_of_cur,
        ),
        Mistake(
            "x scaled by the alphas",
            "You multiply x by alpha(nxt) / alpha(cur). In DPM-Solver++, which predicts x_0, it is "
            "sigma(nxt) / sigma(cur).",
            ratio_of_alphas,
        ),
        Mistake(
            "plus for minus",
            "You add the second term. exp(-h) - 1 is negative, and the minus makes x_0's weight "
            "positive.",
            plus,
        ),
    ],
)

EXERCISE = Exercise(
    file="13_dpmpp_2m_step",
    title="a step of DPM-Solver++(2M)",
    chapter="07_sampling.md",
    tasks=[DPMPP_2M_STEP],
    done="You have a sampler of second order at one network call a step, which most programs use.",
)
