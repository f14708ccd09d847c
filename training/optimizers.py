"""Optimizers: AdamW, and Muon for the matrices with AdamW for the rest."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from training.sharding import placed, unsharded

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic coefficients of Jordan's post, chosen for speed
ITERATIONS = 5
MOMENTUM = (0.85, 0.95)  # of Muon, in the first step and after its warm-up


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices and convolutions.

    A convolution (D, C, k, k) counts as the matrix (D, C k^2), which `torch.optim.Muon` refuses.
    Updates are scaled by 0.2 sqrt(max(rows, columns)), so that they are as large as AdamW's and
    the same learning rate suits both (Liu et al. 2025, arXiv:2502.16982, eq. 4).

    Args:
        params: parameters of two or more dimensions.
        lr: learning rate.
        momentum: decay of the moving average of gradients, applied as Nesterov's. The trainer sets
            it before each step.
        dtype: number format of the iteration for matrices that are about as high as wide.
            torch.bfloat16 is enough (Jordan et al. 2024), but CPUs without instructions for it
            take 17 times as long with it as with torch.float32.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = MOMENTUM[1],
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    def __getstate__(self) -> dict:  # for copies: PyTorch's omits dtype
        return {**super().__getstate__(), "dtype": self.dtype}

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():  # matrices of one shape are computed together
                matrices = torch.stack([self.direction(p, group["momentum"]) for p in params])
                scale = 0.2 * max(matrices.shape[1:]) ** 0.5
                updates = orthogonal(matrices, self.dtype).to(matrices.dtype)
                for p, update in zip(params, updates, strict=True):
                    p.add_(placed(folded(update, shape), p), alpha=-group["lr"] * scale)

    def direction(self, p: nn.Parameter, momentum: float) -> Tensor:
        """The average of a parameter's gradients, with Nesterov's look ahead, as a matrix."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        average = state["momentum"].lerp_(p.grad, 1 - momentum)
        return unfolded(unsharded(p.grad.lerp(average, momentum)))


def muon_momentum(step: int, warmup: int) -> float:
    """Muon's momentum in a step, from 0: it rises linearly for `warmup` steps.

    A long memory of early gradients slows a short run (Jordan et al. 2024,
    github.com/KellerJordan/modded-nanogpt).
    """
    first, last = MOMENTUM
    return last if step >= warmup else first + (last - first) * step / warmup


def unfolded(weights: Tensor) -> Tensor:
    """Weights (D, C, k, k) as a matrix (D, k k C), in the order that channels_last has in memory.

    Other weights (D, C) are a matrix already.
    """
    return weights.movedim(1, -1).flatten(1)


def folded(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `unfolded`: weights of a shape from their matrix."""
    return matrix.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Roughly U V^T of each U S V^T (N, rows, columns): singular values of about 0.7 to 1.2.

    By a Newton-Schulz iteration x <- (a + b x x^T + c (x x^T)^2) x. For matrices that are much
    wider than high, such as those of convolutions, only the small matrix x x^T is iterated. For
    others, x is iterated in the given number format.
    """
    _, rows, columns = matrices.shape
    if rows > columns:
        return orthogonal(matrices.mT, dtype).mT
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    x = matrices / (norms + 1e-7)  # the largest singular value must not exceed 1
    if 2 * rows > columns:
        x = x.to(dtype)
        for _ in range(ITERATIONS):
            x = polynomial(x @ x.mT) @ x
        return x
    xx = x @ x.mT  # squared singular values: bfloat16 would lose the small ones
    product = step = polynomial(xx)
    for _ in range(ITERATIONS - 1):
        xx = step @ xx @ step  # all of these are polynomials in x x^T, and commute
        step = polynomial(xx)
        product = step @ product
    return product @ x


def polynomial(xx: Tensor) -> Tensor:
    """a + b xx + c xx^2, of the iteration."""
    a, b, c = NEWTON_SCHULZ
    result = torch.baddbmm(xx, xx, xx, beta=b, alpha=c)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the parameters: (matrices of hidden layers, for Muon; all others, for AdamW).

    Biases, norms, embeddings, and the first and last layers (`model.ends`, if it has that) are the
    rest.
    """
    first_and_last = model.ends() if hasattr(model, "ends") else []
    ends = {id(p) for module in first_and_last for p in module.parameters()}
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    hidden, rest = [], []
    for p in filter(lambda p: p.requires_grad, model.parameters()):
        fits = p.ndim >= 2 and id(p) not in ends | embeddings
        (hidden if fits else rest).append(p)
    return hidden, rest


def adamw(model: nn.Module, lr: float, precision: str = "fp32") -> dict[str, torch.optim.Optimizer]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return {"adamw": torch.optim.AdamW(trained, lr=lr, fused=True)}


def muon(model: nn.Module, lr: float, precision: str = "fp32") -> dict[str, torch.optim.Optimizer]:
    hidden, rest = split_parameters(model)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return {
        "muon": Muon(hidden, lr, dtype=dtype),
        "adamw": torch.optim.AdamW(rest, lr=lr, fused=True),
    }


# (model, lr, precision) -> the optimizers that together hold each parameter once, by name
OPTIMIZERS: dict[str, Callable[[nn.Module, float, str], dict[str, torch.optim.Optimizer]]] = {
    "muon": muon,
    "adamw": adamw,
}
