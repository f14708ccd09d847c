"""Guidance by a network that judges noisy images: its gradient steers the denoiser.

The score of p(x_t | y) is that of p(x_t) plus the gradient of log p(y | x_t) (Bayes' rule;
Dhariwal & Nichol 2021, arXiv:2105.05233, eq. 14). Guidance without such a network, by the
condition or by a weaker model, is in `diffusion.Denoiser`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition

# (x_t (B, ...), t (B,)) -> the gradient with respect to x_t of how well x_t fits, times a scale
Steering = Callable[[Tensor, Tensor], Tensor]


def together(parts: Sequence[Steering]) -> Steering | None:
    """The sum of several gradients; None for none."""
    if not parts:
        return None
    return lambda x_t, t: sum(steer(x_t, t) for steer in parts)


def clip_guidance(
    clip: nn.Module,
    scaled: Callable[[Tensor, Tensor], Tensor],
    condition: Condition,
    scale: float,
) -> Steering:
    """The gradient of scale * similarity of image and caption (Nichol et al. 2021, GLIDE).

    Args:
        clip: maps (x, t, condition) to embeddings (B, 2, D) of images and of captions.
        scaled: maps (x_t, t) to the network's input; `GaussianDiffusion.scaled` of the process.
        condition: the captions (B).
        scale: of the gradient; 1 is that of the similarity as it was trained.
    """

    def steer(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            image, caption = clip(scaled(x, t), t, condition).unbind(dim=1)  # each (B, D)
            similarity = (image * caption).sum()
            return scale * torch.autograd.grad(similarity, x)[0]

    return steer


def classifier_guidance(
    classifier: nn.Module,
    scaled: Callable[[Tensor, Tensor], Tensor],
    labels: Tensor,
    scale: float,
) -> Steering:
    """The gradient of scale * log p(labels | x_t).

    Args:
        classifier: maps (x, t) to scores (B, classes).
        scaled: maps (x_t, t) to the network's input; `GaussianDiffusion.scaled` of the process.
        labels: the wanted classes (B,).
        scale: 1 gives p(x_t | y); more emphasizes the class.
    """

    def steer(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            scores = classifier(scaled(x, t), t)  # (B, classes)
            exact = torch.promote_types(scores.dtype, torch.float32)
            log_p = F.log_softmax(scores, dim=1, dtype=exact)
            wanted = log_p.gather(1, labels[:, None]).sum()
            return scale * torch.autograd.grad(wanted, x)[0]

    return steer
