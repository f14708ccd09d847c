"""The arguments of `fit` (network, data, labels), checked and converted."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from conditions import label_condition
from dataset.items import to_unit
from dataset.types import Data
from diffusion import call
from models import LIMITS
from training.trainer import Trainer
from utils import autocast, out_of_memory, torch_defaults, unwrapped


def is_compiled(model: nn.Module) -> bool:
    """Is a network the result of torch.compile?"""
    return hasattr(model, "_orig_mod")


def require_trainable(model: nn.Module) -> nn.Module:
    """The network itself, without wrappers. Raises ValueError if it has nothing to train."""
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise ValueError(f"model must be a torch.nn.Module, not {kind}: fit(model, data)")
    model = unwrapped(model)
    weights, name = list(model.parameters()), type(model).__name__
    if any(map(is_lazy, weights)):
        raise ValueError(f"{name} has lazy layers: call it once, on data, before fit()")
    if not weights:
        raise ValueError(f"{name} cannot be trained: it has no parameters")
    if not any(weight.requires_grad for weight in weights):
        raise ValueError(f"all weights of {name} are frozen; model.requires_grad_() changes that")
    return model


def require_prediction(trainer: Trainer, data: Data) -> None:
    """Raise ValueError if the network cannot be called as in training, or has no output like x_t.

    With an output of another shape, which broadcasts, training would run and learn nothing.
    """
    name, x = type(trainer.model).__name__, to_unit(data.items[:2]).to(trainer.device)
    t = torch.zeros(len(x), dtype=torch.int64, device=trainer.device)
    labels = None if data.labels is None else label_condition(data.labels[:2].to(trainer.device))
    called = f"{name} is called as model(x_t, t{', condition' if data.labels is not None else ''})"
    called += f" with x_t float32 {tuple(x.shape)} and t int64 ({len(t)},)"
    try:
        with torch_defaults(), torch.no_grad(), autocast(trainer.device, trainer.precision):
            out = call(trainer.ema.module, x, t, labels)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        hints = [hint for hint in (dtype_hint(trainer.model), axes_hint(x)) if hint]
        raise ValueError(". ".join([f"{called}, and fails: {error}".strip(), *hints])) from error
    if not isinstance(out, Tensor):
        raise ValueError(f"{called}, and must return a tensor of x_t's shape, not {kind_name(out)}")
    if out.shape != x.shape:
        raise ValueError(f"{called}, and must return that shape, not {tuple(out.shape)}")


def dtype_hint(model: nn.Module) -> str:
    """A hint for a network with weights that are not float32; "" for others."""
    kinds = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    other = sorted(map(str, kinds - {torch.float32}))
    return f"Its weights are {other[0]}: pass model.float()" if other else ""


def axes_hint(x: Tensor) -> str:
    """A hint for images with the channels in the last axis, as it seems; "" for others."""
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return "Images are (N, C, H, W): pass images.permute(0, 3, 1, 2) if they are (N, H, W, C)"
    return ""


def kind_name(out: object) -> str:
    """The type of a network's output, and where its tensor may be."""
    name = type(out).__name__
    if hasattr(out, "sample"):  # of diffusers
        return f"{name}: return its .sample"
    return f"{name}: return its first element" if isinstance(out, (tuple, list)) else name


def as_tensor(values: object, name: str) -> Tensor:
    """A tensor of numbers, from an array or nested lists. Raises ValueError for anything else."""
    if isinstance(values, Tensor):
        return values
    try:
        if isinstance(values, (list, tuple)) and values and isinstance(values[0], Tensor):
            return torch.stack(list(values))
        array = np.asarray(values)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{name} must be a tensor or an array of numbers, not {type(values).__name__}"
        ) from None


def prepare_items(values: object, value_range: tuple[float, float] | None) -> Tensor:
    """The data as training takes it: uint8 images, or floats in [-1, 1], or points.

    Raises ValueError for another shape or type, numbers outside the range, or no range.
    """
    data = as_tensor(values, "data")
    if data.ndim not in (2, 4) or not data.numel():
        grey = "; grey images need an axis of channels, images[:, None]" if data.ndim == 3 else ""
        raise ValueError(
            f"data must be images (N, C, H, W) or points (N, D), not of shape {tuple(data.shape)}"
            f"{grey}"
        )
    if data.dtype == torch.uint8 and data.ndim == 4:
        if value_range is not None:
            raise ValueError("value_range is for images in floats; uint8 images have 0 to 255")
        return data.cpu()
    if data.is_complex():
        raise ValueError(f"data must be real numbers, not {data.dtype}")
    kind, data = data.dtype, data.detach().float().cpu()
    if not data.isfinite().all():
        raise ValueError("data has values that are not finite")
    if data.ndim == 2:
        if value_range is not None:
            raise ValueError("value_range is for images; scale points to about unit size yourself")
        return data
    low, high = data.min().item(), data.max().item()
    if value_range is None:
        raise ValueError(
            f"images of {kind} need value_range=(lowest, highest); these are in {low:.3g} "
            f"to {high:.3g}"
        )
    lowest, highest = value_range
    if not lowest < highest or low < lowest or high > highest:
        raise ValueError(f"data in {low:.3g} to {high:.3g} exceeds value_range {value_range}")
    return (data - lowest) / (highest - lowest) * 2 - 1


def prepare_labels(labels: Tensor | None, count: int) -> tuple[Tensor | None, list[str]]:
    """Labels int64 (N,) and the names of their classes. Raises ValueError for other labels."""
    if labels is None:
        return None, []
    labels = as_tensor(labels, "labels")
    if labels.shape != (count,):
        hint = ""
        if labels.ndim == 2:
            column = "labels[:, 0]" if labels.shape[1] == 1 else "labels.argmax(1), if one-hot"
            hint = f": pass {column}"
        raise ValueError(f"labels must have the shape ({count},), not {tuple(labels.shape)}{hint}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be whole numbers, not {labels.dtype}: labels.long()")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= LIMITS["num_classes"]:
        raise ValueError(
            f"labels must be class numbers from 0 to {LIMITS['num_classes'] - 1:,}, and these are "
            f"{lowest} to {highest}; torch.unique(labels, return_inverse=True)[1] numbers them"
        )
    return labels.long().cpu(), [str(label) for label in range(highest + 1)]
