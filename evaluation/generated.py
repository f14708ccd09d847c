"""The images that are measured: samples of a checkpoint, or given images."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from checkpoints.checkpoint import restore
from cli.evaluation import EvaluationRequest
from cli.sampling import SamplerFlags, SamplingRequest
from dataset.items import indices_like
from dataset.types import Data
from evaluation.images import load_images
from evaluation.measures import NEIGHBOURS_OF_DENSITY, random_indices
from evaluation.real import RealData, subset
from evaluation.reconstruction import reconstructed
from evaluation.super_resolution import in_low_resolution
from sampling.draw import SamplingJob, draw
from sampling.threads import choose_threads
from training.conditioning import condition_of
from utils import DataError, choose_precision, describe

COUNT = 2000  # default number of samples of a set


class Generated(NamedTuple):
    """Images to measure."""

    sets: list[Tensor]  # uint8 (N, C, H, W): one set for each seed
    labels: Tensor | None  # the classes (N,) that were requested, for each set
    record: dict  # how the images were made or read, for the report
    indices: Tensor | None = None  # of the data's items (N,) that gave the conditions


def given_images(
    request: EvaluationRequest,
    real: RealData,
    *,
    progress: Callable[..., Iterable],
    say: Callable[[str], object],
) -> Generated:
    """Read the images of --samples; with --num-images, a random choice of that many.

    Raises:
        DataError: the images cannot be read, or are too few.
        ValueError: there are fewer than --num-images.
    """
    options = request.chosen(("skip_bad_images", "follow_links"))
    images, how = load_images(Path(request.samples), real.shape, progress, **options)
    if len(images) <= NEIGHBOURS_OF_DENSITY:
        raise DataError(f"{request.samples} has only {len(images)} images: too few to compare")
    count = request.num_images or len(images)
    if count > len(images):
        raise ValueError(f"--num-images {count}: there are only {len(images)}")
    images = images[random_indices(len(images), count, "samples")]
    say(f"{len(images):,} images, {how}")
    return Generated([images], None, {"read_as": how})


def reconstructed_images(
    request: EvaluationRequest, checkpoint: dict, data: Data, device: torch.device
) -> Generated:
    """Encode and decode some images of data by an autoencoder; without --num-images, 2,000."""
    precision = choose_precision(request.precision or "auto", device)
    model, _ = restore(checkpoint, device, raw=request.raw)
    count = min(request.num_images or COUNT, len(data.items))
    indices = random_indices(len(data.items), count, "reconstructed", request.seed)
    images = reconstructed(model, data.items[indices], device, precision)
    labels = None if data.labels is None else data.labels[indices]
    return Generated([images], labels, {"precision": precision}, indices)


def sampled_images(
    request: EvaluationRequest, data: Data, *, say: Callable[[str], object]
) -> Generated:
    """Sample sets of images from the checkpoint, with the classes and captions of data.

    A checkpoint for super-resolution enlarges the images of `data`.
    """
    job = SamplingJob(
        SamplingRequest(
            **request.chosen(SamplerFlags.named(use="drawing")),
            checkpoint=request.checkpoint,
            raw=request.raw,
            batch_size=request.batch_size,
            num_images=request.num_images or COUNT,
            precision=request.precision or "auto",
            device=request.device,
            threads=request.threads,
            seed=request.seed,
            given=request.given,
        ),
        images_follow=True,
    )
    plan, seeds = job.plan, list(range(request.seed, request.seed + request.repeats))
    indices = indices_like(len(data.items), plan.count)
    like = subset(data, indices)
    if (condition := condition_of(like, job.config)) is not None:
        plan.wanted.of_data(condition, like.captions)
    if plan.images is not None:
        plan.images = in_low_resolution(like.items, tuple(plan.images.shape[2:]))
    if threads := choose_threads(job, request.repeats):
        say(threads)
    say(
        f"sampling {request.repeats} x {plan.count:,} images: {plan.name}, {plan.steps} steps, "
        f"{describe(job.device, job.precision)}"
    )
    for line in plan.wanted.described():
        say(line)
    sets, start = [], time.monotonic()
    for seed in seeds:
        job.request.seed = seed
        sets.append(draw(job).items)
    record = {
        **{name: plan.chosen[name] for name in ("sampler", "steps", "spacing")},
        "seeds": seeds,
        "precision": job.precision,
        "guidance_scale": request.guidance_scale,
        "guide": request.guide,
        **({} if plan.images is None else {"augmentation": request.augmentation}),
        "seconds_of_a_set": (time.monotonic() - start) / request.repeats,
    }
    condition = plan.wanted.condition
    return Generated(sets, None if condition is None else condition.label, record, indices)
