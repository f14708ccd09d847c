"""Exercise 1: the noise schedule and the forward process."""

import torch

from learn.exercise import Case, Exercise, Mistake, Task, random, tables

BETAS, ALPHAS_CUMPROD = tables()
FIRST, LAST = 1e-4, 0.02


def images(a):
    """Numbers (B,) shaped to multiply images (B, C, H, W)."""
    return a.view(-1, 1, 1, 1)


# --- linear_schedule ------------------------------------------------------------------------------


def with_betas(betas):
    return betas, torch.cumprod(1 - betas, dim=0)


def sum_instead_of_product(timesteps):
    betas = torch.linspace(FIRST, LAST, timesteps)
    return betas, 1 - torch.cumsum(betas, dim=0)


def products_of_beta(timesteps):
    betas = torch.linspace(FIRST, LAST, timesteps)
    return betas, torch.cumprod(betas, dim=0)


def not_accumulated(timesteps):
    betas = torch.linspace(FIRST, LAST, timesteps)
    return betas, 1 - betas


def one_in_front(timesteps):
    betas = torch.linspace(FIRST, LAST, timesteps)
    return betas, torch.cat([torch.ones(1), torch.cumprod(1 - betas, dim=0)[:-1]])


def root_of_alpha_bar(timesteps):
    betas, alphas_cumprod = with_betas(torch.linspace(FIRST, LAST, timesteps))
    return betas, alphas_cumprod.sqrt()


def one_minus_alpha_bar(timesteps):
    betas, alphas_cumprod = with_betas(torch.linspace(FIRST, LAST, timesteps))
    return betas, 1 - alphas_cumprod


def last_left_out(timesteps):
    return with_betas(FIRST + (LAST - FIRST) * torch.arange(timesteps) / timesteps)


def one_too_many(timesteps):
    return with_betas(torch.linspace(FIRST, LAST, timesteps + 1))


LINEAR_SCHEDULE = Task(
    "linear_schedule",
    hint="torch.linspace makes evenly spaced numbers, both ends included. torch.cumprod multiplies "
    "along a dimension: entry t is the product of the entries 0 to t.",
    cases=[
        Case("timesteps = 3", lambda: (3,)),
        Case("timesteps = 1000", lambda: (1000,)),
    ],
    mistakes=[
        Mistake(
            "products of beta",
            "You multiply the betas with each other. Each step keeps the share 1 - beta of the "
            "signal's variance, so alpha-bar is the product of 1 - beta.",
            products_of_beta,
        ),
        Mistake(
            "a sum instead of a product",
            "You subtract the sum of the betas from 1, which becomes negative for many steps. Each "
            "step scales what the last one has left, so the factors 1 - beta multiply.",
            sum_instead_of_product,
        ),
        Mistake(
            "alpha instead of alpha-bar",
            "Your second table is 1 - beta, the alpha of single steps. alphas_cumprod is the "
            "product of all alphas up to t (torch.cumprod).",
            not_accumulated,
        ),
        Mistake(
            "alpha-bar of the step before",
            "Your alphas_cumprod begins with 1, so it is one step late. Entry 0 is after the first "
            "step, 1 - betas[0].",
            one_in_front,
        ),
        Mistake(
            "square root of alpha-bar",
            "Your second table is sqrt(alpha-bar). Return alpha-bar itself: q_sample takes the "
            "root.",
            root_of_alpha_bar,
        ),
        Mistake(
            "1 - alpha-bar",
            "Your second table is the variance of the noise, 1 - alpha-bar. Return alpha-bar, the "
            "variance of the signal, which falls from nearly 1 to nearly 0.",
            one_minus_alpha_bar,
        ),
        Mistake(
            "the last beta is not reached",
            "Your betas stop one step short of 0.02. Both ends belong to the schedule: "
            "torch.linspace includes them, torch.arange leaves the last one out.",
            last_left_out,
        ),
        Mistake(
            "one timestep too many",
            "Your tables have timesteps + 1 entries. There is one beta for each of the T steps.",
            one_too_many,
        ),
        Mistake(
            "the ends exchanged",
            "Your betas fall from 0.02 to 0.0001. The first steps add the least noise: begin with "
            "0.0001.",
            lambda timesteps: with_betas(torch.linspace(LAST, FIRST, timesteps)),
        ),
        Mistake(
            "square roots on a line",
            "The square roots of your betas are evenly spaced (the quadratic schedule). In the "
            "linear schedule of the paper the betas themselves are.",
            lambda timesteps: with_betas(torch.linspace(FIRST**0.5, LAST**0.5, timesteps) ** 2),
        ),
        Mistake(
            "float64 tables",
            "Your tables are float64, and every image that they multiply would become float64, "
            "which networks refuse. Return float32, with .float() at the end.",
            lambda timesteps: with_betas(torch.linspace(FIRST, LAST, timesteps).double()),
        ),
    ],
)


# --- q_sample -------------------------------------------------------------------------------------


def q_sample(x_0, t, noise, alphas_cumprod):
    alpha_bar = images(alphas_cumprod[t])
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise


def alpha_for_alpha_bar(x_0, t, noise, alphas_cumprod):
    before = torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    return q_sample(x_0, t, noise, alphas_cumprod / before)


def no_roots(x_0, t, noise, alphas_cumprod):
    alpha_bar = images(alphas_cumprod[t])
    return alpha_bar * x_0 + (1 - alpha_bar) * noise


def no_root_of_noise(x_0, t, noise, alphas_cumprod):
    alpha_bar = images(alphas_cumprod[t])
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar) * noise


def no_root_of_signal(x_0, t, noise, alphas_cumprod):
    alpha_bar = images(alphas_cumprod[t])
    return alpha_bar * x_0 + (1 - alpha_bar).sqrt() * noise


def one_minus_root(x_0, t, noise, alphas_cumprod):
    alpha = images(alphas_cumprod[t]).sqrt()
    return alpha * x_0 + (1 - alpha) * noise


def exchanged(x_0, t, noise, alphas_cumprod):
    return q_sample(noise, t, x_0, alphas_cumprod)


def wrong_broadcast(x_0, t, noise, alphas_cumprod):
    alpha_bar = alphas_cumprod[t]
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise


def in_place(x_0, t, noise, alphas_cumprod):
    alpha_bar = images(alphas_cumprod[t])
    x_0 *= alpha_bar.sqrt()
    return x_0 + (1 - alpha_bar).sqrt() * noise


def own_noise(x_0, t, noise, alphas_cumprod):
    return q_sample(x_0, t, torch.randn_like(x_0), alphas_cumprod)


Q_SAMPLE = Task(
    "q_sample",
    hint="alphas_cumprod[t] takes one number for each image, (B,). .view(-1, 1, 1, 1) shapes it to "
    "(B, 1, 1, 1), and then it multiplies each image by its own number.",
    linear=["x_0", "noise"],
    cases=[
        Case(
            "one image of one pixel",
            lambda: (
                torch.ones(1, 1, 1, 1),
                torch.tensor([4]),
                -torch.ones(1, 1, 1, 1),
                ALPHAS_CUMPROD,
            ),
        ),
        Case(
            "4 images (3, 4, 4) at 4 different t",
            lambda: (
                random(4, 3, 4, 4),
                torch.tensor([9, 0, 3, 6]),
                random(4, 3, 4, 4, seed=1),
                ALPHAS_CUMPROD,
            ),
        ),
        Case(
            "2 images (3, 5, 4) at 2 different t",
            lambda: (
                random(2, 3, 5, 4),
                torch.tensor([2, 7]),
                random(2, 3, 5, 4, seed=1),
                ALPHAS_CUMPROD,
            ),
        ),
    ],
    mistakes=[
        Mistake(
            "alpha instead of alpha-bar",
            "You use the alpha of the single step t, 1 - beta. x_t has gone through all steps up "
            "to t, so the signal is scaled by sqrt(alpha-bar), the root of the product.",
            alpha_for_alpha_bar,
        ),
        Mistake(
            "both square roots forgotten",
            "You weight the image by alpha-bar and the noise by 1 - alpha-bar. These are "
            "variances: the weights are their square roots.",
            no_roots,
        ),
        Mistake(
            "square root of the noise's weight forgotten",
            "You multiply the noise by 1 - alpha-bar, which is its variance. Multiply by the "
            "standard deviation, sqrt(1 - alpha-bar).",
            no_root_of_noise,
        ),
        Mistake(
            "square root of the signal's weight forgotten",
            "You multiply the image by alpha-bar. Eq. 4 has sqrt(alpha-bar), so that the variance "
            "of the signal is alpha-bar.",
            no_root_of_signal,
        ),
        Mistake(
            "1 - sqrt(alpha-bar) for sqrt(1 - alpha-bar)",
            "You subtract after taking the root. The weight of the noise is sqrt(1 - alpha-bar): "
            "subtract first, so that the squares of both weights sum to 1.",
            one_minus_root,
        ),
        Mistake(
            "signal and noise exchanged",
            "You weight the noise with sqrt(alpha-bar) and the image with sqrt(1 - alpha-bar). At "
            "t = 0, where alpha-bar is nearly 1, x_t must be nearly the image.",
            exchanged,
        ),
        Mistake(
            "wrong broadcast over (B, C, H, W)",
            "Your factors have the shape (B,), and PyTorch matches them with the last axis, the "
            "width. Shape them to (B, 1, 1, 1), so that each image is multiplied by its own.",
            wrong_broadcast,
        ),
        Mistake(
            "off by one in t",
            "You use the table's entry t - 1. t counts from 0 here, so entry t is the right one "
            "(the paper counts from 1).",
            lambda x_0, t, noise, table: q_sample(x_0, t - 1, noise, table),
        ),
        Mistake(
            "the first t for the whole batch",
            "All images of the batch get the noise level of the first one. Each has a t of its "
            "own: index the table with the whole tensor t.",
            lambda x_0, t, noise, table: q_sample(x_0, t[:1], noise, table),
        ),
        Mistake(
            "noise of its own",
            "You draw new noise instead of using the argument. The loss compares the prediction "
            "with the noise that is given here, so x_t must contain that.",
            own_noise,
        ),
        Mistake(
            "the input is changed in place",
            "Your result is right, but x_0 has changed, because *= writes into the tensor itself. "
            "The caller still needs the clean image: write x = a * x_0 instead.",
            in_place,
        ),
        Mistake(
            "noise subtracted",
            "You subtract the noise. Eq. 4 adds it: noise of either sign is equally likely, but "
            "the loss would compare it with the wrong sign.",
            lambda x_0, t, noise, table: q_sample(x_0, t, -noise, table),
        ),
    ],
)

EXERCISE = Exercise(
    file="01_forward_process",
    title="noise schedule and forward process",
    chapter="01_noise_and_schedules.md",
    tasks=[LINEAR_SCHEDULE, Q_SAMPLE],
    done="You can turn any image into one with any amount of noise, in a single step.",
)
