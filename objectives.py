"""Training objectives: predictions, loss weights, the choice of timesteps and noise, tuning."""

from collections.abc import Callable
from math import inf, log, pi
from typing import NamedTuple

import torch
from torch import Tensor


class Prediction(NamedTuple):
    """A prediction type: two formulas for the network's output, for tensors, arrays or floats.

    They hold for any alpha and sigma; `r` below is sqrt(alpha^2 + sigma^2), which is 1 in the
    variance-preserving case.
    """

    target: Callable  # (x_0, noise, alpha, sigma) -> what the network should output
    x_0: Callable  # (out, x_t, alpha, sigma) -> the clean data that this output implies


def r(alpha, sigma):
    return (alpha**2 + sigma**2) ** 0.5


PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(  # Ho et al. 2020, eq. 14 and 15
        target=lambda x_0, noise, alpha, sigma: noise,
        x_0=lambda out, x_t, alpha, sigma: (x_t - sigma * out) / alpha,
    ),
    "x_0": Prediction(
        target=lambda x_0, noise, alpha, sigma: x_0,
        x_0=lambda out, x_t, alpha, sigma: out,
    ),
    "v": Prediction(  # Salimans & Ho 2022, arXiv:2202.00512, appendix D
        target=lambda x_0, noise, alpha, sigma: (alpha * noise - sigma * x_0) / r(alpha, sigma),
        x_0=lambda out, x_t, alpha, sigma: (
            alpha * x_t / r(alpha, sigma) ** 2 - sigma / r(alpha, sigma) * out
        ),
    ),
    "flow": Prediction(  # the velocity of Liu et al. 2022, arXiv:2209.03003, eq. 1
        target=lambda x_0, noise, alpha, sigma: noise - x_0,
        x_0=lambda out, x_t, alpha, sigma: (x_t - sigma * out) / (alpha + sigma),
    ),
    "edm": Prediction(  # Karras et al. 2022, eq. 7 and table 1, for data of standard deviation 1
        target=lambda x_0, noise, alpha, sigma: (
            (x_0 - c_skip(alpha, sigma) * (alpha * x_0 + sigma * noise)) / c_out(alpha, sigma)
        ),
        x_0=lambda out, x_t, alpha, sigma: c_skip(alpha, sigma) * x_t + c_out(alpha, sigma) * out,
    ),
}


def c_skip(alpha, sigma):
    return alpha / r(alpha, sigma) ** 2


def c_out(alpha, sigma):
    return sigma / r(alpha, sigma)


# --- the weight of a squared error of x_0, by the signal-to-noise ratio --------------------------

MIN_SNR_GAMMA = 5.0

LOSS_WEIGHTS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "uniform": None,  # the plain mean squared error of whatever the network predicts
    "snr": lambda snr: snr,  # the error of eps, whatever the prediction
    "min-snr": lambda snr: snr.clamp(max=MIN_SNR_GAMMA),  # Hang et al. 2023, arXiv:2303.09556
    "edm": lambda snr: snr + 1,  # Karras et al. 2022, table 1, for data of standard deviation 1
    "vlb": None,  # not a weight: the variational bound itself
}


def right_once_clipped(x_0_hat: Tensor, x_0: Tensor) -> Tensor:
    """The mask of values where x_0 is a bound, -1 or 1, and its prediction x_0_hat is beyond it.

    Clipping to [-1, 1] makes such a prediction exact, so `clip_loss` does not count its error. A
    network cannot output exactly -1 for a black background. Its errors scatter around -1, and half
    of them remain visible once samplers have clipped the others. If errors beyond the bound do not
    count, the network learns to stay beyond the bound, and the clipped background is exact.

    The optimum, once clipped, is unchanged. Between the bounds the loss is the squared error, with
    its minimum at m = E[x_0 | x_t]; beyond a bound it only grows, unless m is the bound itself.
    """
    return (x_0.abs() == 1) & (x_0_hat * x_0 > 1)


# --- the choice of t in training -----------------------------------------------------------------

# Each maps (batch, the table of sigma / alpha (T,)) to timesteps (B,) on the table's device.


def uniform(batch: int, ratio: Tensor) -> Tensor:
    return torch.randint(len(ratio), (batch,), device=ratio.device)


def stratified(batch: int, ratio: Tensor) -> Tensor:
    """All t are equally likely, and each batch covers them evenly.

    Kingma et al. 2021, arXiv:2107.00630, appendix I.1.
    """
    u = torch.rand((), device=ratio.device) + torch.arange(batch, device=ratio.device) / batch
    return (u % 1 * len(ratio)).long().clamp(max=len(ratio) - 1)


def logit_normal(batch: int, ratio: Tensor) -> Tensor:
    """Middle timesteps are more likely (Esser et al. 2024, arXiv:2403.03206, eq. 19, s = 1)."""
    u = torch.randn(batch, device=ratio.device).sigmoid()
    return (u * len(ratio)).long().clamp(max=len(ratio) - 1)


def log_normal(batch: int, ratio: Tensor) -> Tensor:
    """log(sigma / alpha) from N(-1.2, 1.2^2) (Karras et al. 2022, table 1)."""
    log_ratio = ratio.log()
    wanted = -1.2 + 1.2 * torch.randn(batch, device=ratio.device)
    return torch.searchsorted((log_ratio[1:] + log_ratio[:-1]) / 2, wanted)


TIMESTEP_SAMPLINGS: dict[str, Callable[[int, Tensor], Tensor]] = {
    "uniform": uniform,
    "stratified": stratified,
    "logit-normal": logit_normal,
    "log-normal": log_normal,
}


# --- which noise goes to which data --------------------------------------------------------------


def independent(x_0: Tensor) -> Tensor:
    return torch.randn_like(x_0)


def optimal(x_0: Tensor) -> Tensor:
    """Noise assigned to the items of a batch with the least sum of squared distances.

    Li et al. 2024 (immiscible diffusion), arXiv:2406.12303; Tong et al. 2023, arXiv:2302.00482.
    """
    from scipy.optimize import linear_sum_assignment

    noise = torch.randn_like(x_0)
    cost = torch.cdist(x_0.flatten(1).float(), noise.flatten(1).float()) ** 2
    _, chosen = linear_sum_assignment(cost.cpu().numpy())
    return noise[torch.as_tensor(chosen, device=noise.device)]


def nearest(x_0: Tensor, candidates: int = 4) -> Tensor:
    """For each x_0, the nearest of a few noise samples (Li et al. 2025, arXiv:2505.18521)."""
    noise = torch.randn(candidates, *x_0.shape, device=x_0.device, dtype=x_0.dtype)
    distance = (noise - x_0).flatten(2).square().sum(dim=2)  # (K, B)
    chosen = noise[distance.argmin(dim=0), torch.arange(len(x_0), device=x_0.device)]
    return torch.empty_like(x_0).copy_(chosen)  # in x_0's memory layout


NOISE_ASSIGNMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "independent": independent,
    "optimal": optimal,
    "nearest": nearest,
}


# --- consistency tuning (Geng et al. 2024, arXiv:2406.14548) --------------------------------------


def has_boundary(prediction: str) -> bool:
    """Is the implied x_0 equal to x_t at sigma = 0, whatever the network outputs?"""
    return PREDICTIONS[prediction].x_0(0.5, 0.25, 1.0, 0.0) == 0.25


def starts_from_noise(prediction: str) -> bool:
    """Is the implied x_0 finite at alpha = 0, where sampling in a single step starts?"""
    try:
        PREDICTIONS[prediction].x_0(0.5, 0.25, 0.0, 1.0)
    except ZeroDivisionError:
        return False
    return True


def earlier_ratio(ratio: Tensor, stage: int) -> Tensor:
    """The lower noise level (B,) that `ratio`, sigma / alpha (B,), is compared with at a stage.

    Section 3.3, with q = 2, k = 8 and b = 1. Stages count from 0: the first compares low noise with
    clean data, which is the diffusion loss, and each further stage halves the distance.
    """
    n = 1 + 8 * torch.sigmoid(-ratio)
    return ratio * (1 - n * 0.5 ** (stage + 1)).clamp(min=0)


def pseudo_huber(error: Tensor) -> Tensor:
    """sqrt(mean(error^2) + c^2) - c for each item of a batch: (B,), from errors (B, ...).

    Large errors weigh less than in a squared error (Song & Dhariwal 2023, arXiv:2310.14189,
    section 3.3, also for c).
    """
    c = 0.00054
    return (error.flatten(1).square().mean(dim=1) + c**2).sqrt() - c


# --- densities -----------------------------------------------------------------------------------


def gaussian_kl(mean_1: Tensor, log_var_1: Tensor, mean_2: Tensor, log_var_2: Tensor) -> Tensor:
    """KL(N(mean_1, var_1) || N(mean_2, var_2)) in nats, element by element."""
    return 0.5 * (
        log_var_2
        - log_var_1
        + (log_var_1 - log_var_2).exp()
        + (mean_1 - mean_2) ** 2 * (-log_var_2).exp()
        - 1
    )


def gaussian_nll(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-log N(x; mean, var) in nats, element by element."""
    return 0.5 * (log_var + log(2 * pi) + (x - mean) ** 2 * (-log_var).exp())


def discretized_gaussian_nll(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-log of the probability that N(mean, var) gives to the bin of x, in nats, by element.

    x has the 256 values k / 127.5 - 1, and the outermost bins extend to infinity (Ho et al. 2020,
    eq. 13).
    """
    std = (0.5 * log_var).exp()
    upper = torch.where(x > 0.999, inf, (x - mean + 1 / 255) / std)
    lower = torch.where(x < -0.999, -inf, (x - mean - 1 / 255) / std)
    # The upper tail is mirrored, because differences of numbers near 1 lose precision.
    mirrored = lower > 0
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return -log_upper - torch.log1p(-(log_lower - log_upper).exp().clamp(max=1 - 1e-6))
