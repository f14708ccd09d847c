"""Bits per dimension of held-out items: the mean over a few of them, by two measures."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from checkpoints.checkpoint import restore
from cli.evaluation import EvaluationRequest
from dataset.items import epoch_order, to_unit
from evaluation.likelihood import flow_likelihood, variational_bound
from evaluation.real import RealData, subset
from training.conditioning import condition_of
from utils import NoisePerImage, choose_precision, describe

COUNT = 32  # default number of items, and batch size


class Estimate(NamedTuple):
    """Bits per dimension: mean over items, and its standard error."""

    mean: float
    standard_error: float


def bits_per_dimension(
    request: EvaluationRequest,
    checkpoint: dict,
    real: RealData,
    device: torch.device,
    *,
    progress: Callable,
    say: Callable[[str], object],
) -> dict[str, float]:
    """Bits per dimension by the variational bound and by the ODE, for a report.

    Args:
        request: how many items, of which seed, and how to compute.
        checkpoint: the loaded checkpoint.
        real: the data set, with its held-out items.
        device: the device to compute on.
        progress: makes a progress bar, as tqdm does.
        say: called with a line for each result.
    """
    precision = choose_precision(request.precision or "fp32", device)
    model, diffusion = restore(checkpoint, device, raw=request.raw)
    data, batch_size = real.held_out, request.batch_size or COUNT
    chosen = epoch_order(len(data.items), request.seed, 0)[: request.num_images or COUNT]
    starts = range(0, len(chosen), batch_size)
    every = condition_of(subset(data, chosen), checkpoint["config"])
    say(f"{len(chosen)} items ({real.origin}), {describe(device, precision)}")

    def estimate(measure: Callable, name: str, calls: int, **options) -> Estimate:
        bits, start = [], time.monotonic()
        with progress(total=calls * len(starts), desc=name) as bar:
            for first in starts:
                indices = chosen[first : first + batch_size]
                x_0 = to_unit(data.items[indices].to(device))
                rows = slice(first, first + batch_size)
                condition = None if every is None else every[rows].to(device)
                noise_like = NoisePerImage(request.seed, range(first, first + len(x_0)))
                denoise = diffusion.denoiser(model, condition, precision=precision)
                bits.append(measure(denoise, x_0, noise_like, done=bar.update, **options).cpu())
        values, seconds = torch.cat(bits), time.monotonic() - start
        found = Estimate(values.mean().item(), values.std().item() / len(values) ** 0.5)
        say(
            f"{name}: {found.mean:.4f} +- {found.standard_error:.4f} bits per dimension "
            f"({seconds:.0f} s)"
        )
        return found

    steps = min(request.ode_steps, diffusion.timesteps)
    bound = estimate(variational_bound, "variational bound", diffusion.timesteps)
    ode = estimate(flow_likelihood, "ODE", steps, steps=steps)
    return {
        "bpd_bound": bound.mean,
        "bpd_bound_standard_error": bound.standard_error,
        "bpd_ode": ode.mean,
        "bpd_ode_standard_error": ode.standard_error,
        "bpd_ode_steps": steps,
        "bpd_num_images": len(chosen),
    }
