"""Exercise 15: the loss of a consistency model.

Chapter: docs/guide/12_latents_text_few_steps.md
Check:   python learn/check.py 15

As in exercise 14, x_t = (1 - t) * x_0 + t * noise.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def consistency_loss(model: Callable, x_0: Tensor, t: Tensor, r: Tensor, noise: Tensor) -> Tensor:
    """Consistency training (Song et al. 2023, arXiv:2303.01469; Geng et al. 2024,
    arXiv:2406.14548).

    The model predicts x_0. Its prediction at t must equal its prediction at r < t. Both points lie
    on one line, from x_0 to the noise:

        target   = model(x_r, r), without a gradient, and x_0 where r = 0
        square   = mean of (model(x_t, t) - target)^2 over each image           (B,)
        distance = sqrt(square + c^2) - c                with c = 0.00054       (B,)
        loss     = mean of distance / (t - r)

    Args:
        model: maps (x_t, t) to the predicted x_0 (B, C, H, W).
        x_0: clean images (B, C, H, W).
        t, r: times (B,) in [0, 1], r < t.
        noise: from N(0, I), (B, C, H, W), the same at t and at r.

    Returns:
        A scalar tensor with a gradient.

    Hint: torch.no_grad, torch.where, flatten(1).
    """
    raise NotImplementedError
