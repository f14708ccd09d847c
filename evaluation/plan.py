"""Which metrics an evaluation has by default, and which requests cannot be measured."""

from collections.abc import Callable

from cli.evaluation import EvaluationRequest
from dataset.items import kind_of
from evaluation.features import require_classes
from evaluation.measures import NEIGHBOURS_OF_DENSITY
from evaluation.prompts import check_of
from evaluation.real import RealData
from models.tokenizer import tokenizer_of

OF_RECONSTRUCTIONS = {"reconstruction", "classifier", "two-sample"}


def default_metrics(
    request: EvaluationRequest,
    real: RealData,
    encodes: bool,
    small: int | list | None,
    say: Callable[[str], None],
) -> list[str]:
    """The default of --metrics.

    Args:
        encodes: the checkpoint is an autoencoder.
        small: the input size of a super-resolution model; None for other models.
        say: prints a line, where figures of a classifier must be left out.
    """
    if encodes:
        return ["reconstruction", *(["classifier"] if len(real.train.classes) > 1 else [])]
    if small:
        return ["super-resolution", *(["inception"] if request.inception_weights else [])]
    if kind_of(real.shape) == "points":
        return ["bpd"]
    metrics = ["classifier", "copies"] if len(real.train.classes) > 1 else ["copies"]
    if real.train.attributes is not None and request.checkpoint:
        metrics = ["prompt", *metrics]
    if metrics == ["copies"]:
        say(f"{real.name} has no classes to train a classifier on: its figures are left out")
    return metrics + (["inception"] if request.inception_weights else [])


def require_used(
    request: EvaluationRequest, metrics: list[str], encodes: bool, small: int | list | None
) -> None:
    """Raise ValueError for a flag that has no effect on the metrics, or a metric on the model."""
    if not small and "super-resolution" in metrics:
        raise ValueError(
            "--metrics super-resolution needs a --checkpoint of train.py --super-resolution"
        )
    if small and (unfit := {"bpd", "prompt"} & set(metrics)):
        raise ValueError(f"--metrics {min(unfit)} does not support super-resolution models")
    if small and (unused := {"class_id", "prompt", "prompts"} & request.given):
        flag = min(unused).replace("_", "-")
        raise ValueError(f"--{flag} has no effect on super-resolution: the data have conditions")
    if encodes and (unfit := set(metrics) - OF_RECONSTRUCTIONS):
        raise ValueError(f"--metrics {min(unfit)} needs samples, and an autoencoder draws nothing")
    if not encodes and "reconstruction" in metrics:
        raise ValueError("--metrics reconstruction needs the --checkpoint of an autoencoder")
    if encodes and (unused := set(request.named(use="drawing")) & request.given):
        flag = min(unused).replace("_", "-")
        raise ValueError(f"--{flag} has no effect on an autoencoder, which draws nothing")
    unused = set() if "bpd" in metrics else set(request.named(use="likelihood"))
    if metrics == ["bpd"]:
        unused = set(request.named(use="drawing"))
    if unused := unused & request.given:
        flag = min(unused).replace("_", "-")
        raise ValueError(f"--{flag} has no effect on --metrics {' '.join(metrics)}")


def require_measurable(
    request: EvaluationRequest, metrics: list[str], real: RealData, config: dict | None
) -> None:
    """Raise ValueError for images that cannot be measured, before they are sampled."""
    if kind_of(real.shape) == "points":
        raise ValueError(
            f"--metrics {' '.join(metrics)} is for images; points have bpd, and the energy "
            "distance that train.py prints at its end"
        )
    if "prompt" in metrics:
        require_prompts(request, config, real)
    elif request.clip_score:
        raise ValueError("--clip-score has no effect without --metrics prompt")
    if "classifier" not in metrics:
        return
    if request.class_id is not None:
        raise ValueError(
            "--class-id: samples of some classes cannot be compared with data of all classes; "
            "without it, classes are sampled as often as they are in the data"
        )
    require_classes(real)
    if len(real.held_out.items) <= NEIGHBOURS_OF_DENSITY:
        raise ValueError(
            f"--metrics classifier needs more than {NEIGHBOURS_OF_DENSITY} held-out images, and "
            f"there are {len(real.held_out.items)}; --metrics copies needs no more"
        )
    if request.num_images is not None and request.num_images <= NEIGHBOURS_OF_DENSITY:
        raise ValueError(
            f"--num-images {request.num_images}: --metrics classifier needs more than "
            f"{NEIGHBOURS_OF_DENSITY}"
        )


def require_prompts(request: EvaluationRequest, config: dict | None, real: RealData) -> None:
    """Raise ValueError if no pictures can be compared with their prompts."""
    if config is None or tokenizer_of(config) is None:
        raise ValueError(
            "--metrics prompt needs a --checkpoint that is conditioned on captions "
            "(train.py --text-conditional)"
        )
    if check_of(real.name, config["data"]) is None:
        raise ValueError(
            f"--metrics prompt: it is not known what is on the pictures of {real.name}"
        )
    for flag in ("prompt", "prompts"):
        if flag in request.given:
            raise ValueError(f"--{flag} has no effect on --metrics prompt: the data have captions")
