"""The stages of a cascade: a model draws small images, and others enlarge them (Ho et al. 2021)."""

from collections.abc import Sequence
from dataclasses import replace

from cli.sampling import CLASSES, EDITING, GUIDANCE, OPTIONS, PROMPTS, SamplingRequest
from utils import derive_seed

AUGMENTATION = 0.1  # default noise level of images that a model has drawn


def first_request(request: SamplingRequest) -> SamplingRequest:
    """The request of the stages before the last one.

    Raises ValueError if a flag has neither one value nor one for each stage.
    """
    fewer = {name: before_last(request, name) for name in per_stage(request)}
    shown = {"show_intermediate": False, "animate": False}
    return replace(request, then=request.then[:-1] or None, **fewer, **shown)


def last_request(request: SamplingRequest, count: int) -> SamplingRequest:
    """The request of the last stage, which enlarges `count` images."""
    cleared = ["then", "augmentation", "sampler", "steps", "spacing", "timesteps", "model"]
    for group in (CLASSES, PROMPTS, GUIDANCE, OPTIONS, EDITING):
        cleared += [name for name in request.named(group=group) if name != "text_encoder"]
    changed = {name: request.default(name) for name in [*cleared, *per_stage(request)]}
    changed["augmentation"] = AUGMENTATION
    for name in per_stage(request):
        if values := getattr(request, name):
            changed[name.removeprefix("then_")] = values[-1]
    changed |= {"checkpoint": request.then[-1], "num_images": count, "given": frozenset()}
    return replace(request, **changed, seed=derive_seed("stage", len(request.then), request.seed))


def per_stage(request: SamplingRequest) -> list[str]:
    """The flags that have a value for each stage of --then."""
    return request.named(needs=("then",))


def before_last(request: SamplingRequest, name: str) -> Sequence | None:
    """The values of a flag for all stages of --then except the last.

    Raises ValueError unless there is one value, or one for each stage.
    """
    values, count = getattr(request, name), len(request.then)
    if values is not None and len(values) not in (1, count):
        raise ValueError(
            f"--{name.replace('_', '-')} has {len(values)} values for the {count} stages of "
            "--then: give one, or one for each"
        )
    if values is None or count == 1:
        return None
    return values if len(values) == 1 else values[:-1]
