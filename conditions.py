"""Conditions of a network (class labels, captions, images): one container for all kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

NULL_LABEL = -1  # stands for "any class"; networks read it as the last row of their embedding
PADDING = 0  # the token that fills up a caption; a caption of nothing else is the null caption


@dataclass(frozen=True)
class Condition:
    """A batch of conditions: tensors with one leading batch axis (B, ...), or None where absent.

    Guidance, label dropout, batching and sharding handle a condition as a whole. To add a kind of
    condition, add a field here, and its unconditional form to `null`.

    Args:
        label: class labels, int64 (B,), from 0; `NULL_LABEL` for no label.
        tokens: caption tokens, int64 (B, L), padded with `PADDING`.
        states: embeddings (B, L, D) of the tokens by a pretrained, frozen text encoder.
        image: low-resolution images (B, C, h, w) in about [-1, 1], for super-resolution.
        level: noise level (B,) in [0, 1] of `image`, as `augmented` adds it.
        span: time (B,) in [0, 1] over which the velocity is averaged, for mean flows.
    """

    label: Tensor | None = None
    tokens: Tensor | None = None
    states: Tensor | None = None
    image: Tensor | None = None
    level: Tensor | None = None
    span: Tensor | None = None

    def __len__(self) -> int:
        """The batch size. Raises ValueError for a condition that holds nothing."""
        for tensor in self.tensors().values():
            return len(tensor)
        raise ValueError("an empty condition has no batch size")

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are present, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """Apply a function to each tensor."""
        return replace(self, **{name: function(t) for name, t in self.tensors().items()})

    def null(self) -> Condition:
        """The unconditional form, of the same batch size.

        An image, its level and a span are kept: guidance acts on class and caption only.
        """
        label = None if self.label is None else torch.full_like(self.label, NULL_LABEL)
        tokens = None if self.tokens is None else torch.full_like(self.tokens, PADDING)
        states = None if self.states is None else torch.zeros_like(self.states)
        return replace(self, label=label, tokens=tokens, states=states)

    def dropped(self, mask: Tensor) -> Condition:
        """The condition with the rows of a boolean mask (B,) in their unconditional form."""
        null = self.null().tensors()

        def choose(name: str, tensor: Tensor) -> Tensor:
            rows = mask.view(-1, *[1] * (tensor.ndim - 1))
            return torch.where(rows, null[name], tensor)

        return replace(self, **{name: choose(name, t) for name, t in self.tensors().items()})

    def cat(self, other: Condition) -> Condition:
        """Both batches, one after the other; `other` has the same fields."""
        theirs = other.tensors()
        joined = {name: torch.cat([t, theirs[name]]) for name, t in self.tensors().items()}
        return replace(self, **joined)

    def to(self, device: torch.device | str) -> Condition:
        """The condition on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def __getitem__(self, rows) -> Condition:
        """Some rows of the batch: a slice, or a tensor of indices or of booleans."""
        return self.map(lambda tensor: tensor[rows])


def augmented(image: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Low-resolution images (B, C, h, w) with noise of the levels (B,) in [0, 1]; 0 adds none.

    Conditioning augmentation (Ho et al. 2021, arXiv:2106.15282, section 4): a network trained with
    it does not rely on details that another network generated. The variance is preserved.
    """
    level = level.view(-1, 1, 1, 1)
    return (1 - level**2).sqrt() * image + level * noise


def label_condition(labels: Tensor | None) -> Condition | None:
    """The condition of class labels (B,); None without labels."""
    return None if labels is None else Condition(label=labels)
