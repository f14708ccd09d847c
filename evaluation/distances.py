"""How far apart two sets of items are: of features of images (`evaluation`), or of points.

Sets are tensors (N, D) and (M, D); what is computed of them is computed in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 500  # items whose distances to others are computed at once


LARGE = 20_000  # of which so many are turned into floats at once


def energy_distance(a: Tensor, b: Tensor, *, biased: bool = False) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| over two sets (N, ...) and (M, ...): 0 if they agree.

    The norm is Euclidean, over all elements of an item (Szekely & Rizzo 2013, eq. 5). An item is
    not compared with itself, so that chance may bring it a little below 0; with `biased` it is, and
    the distance is above 0 by about as much as chance makes two sets differ.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    if min(len(a), len(b)) < 2:
        raise ValueError("an energy distance needs at least two items of each set")

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - (0 if biased else 1)))

    return (2 * torch.cdist(a, b).mean() - within(a) - within(b)).item()


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D), float64, of a set."""

    mean: Tensor
    covariance: Tensor


def moments(x: Tensor) -> Moments:
    """Those of items (N, D), the covariance with N - 1. Raises ValueError for a single item."""
    if len(x) < 2:
        raise ValueError("a covariance needs at least two items")
    x = x.double()
    return Moments(x.mean(dim=0), torch.cov(x.T).reshape(x.shape[1], x.shape[1]))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), between the Gaussians of these moments.

    Dowson & Landau 1982, eq. 4; of Inception's features it is the FID (Heusel et al. 2017, eq. 6).
    """
    # (C_a C_b)^(1/2) has the trace of (R C_b R)^(1/2), R = C_a^(1/2), whose root is real.
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0)
    spread = a.covariance.trace() + b.covariance.trace() - 2 * product.sqrt().sum()
    return ((a.mean - b.mean).square().sum() + spread).clamp(min=0).item()


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """The squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, without bias.

    Of Inception's features it is the KID (Binkowski et al. 2018, section 4), here over all pairs
    instead of subsets. Chance may bring it a little below 0.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a kernel distance needs at least two items of each set")
    a, b = a.double(), b.double()

    def total(x: Tensor, y: Tensor) -> float:
        return sum(kernel(part @ y.T, y.shape[1]).sum().item() for part in x.split(CHUNK))

    def within(x: Tensor) -> float:
        itself = kernel(x.square().sum(dim=1), x.shape[1]).sum().item()
        return (total(x, x) - itself) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b))


def kernel(products: Tensor, dim: int) -> Tensor:
    return (products / dim + 1) ** 3


class Coverage(NamedTuple):
    """How two sets cover each other."""

    precision: float  # share of the generated that lie among the real
    recall: float  # share of the real that lie among the generated
    density: float  # how many real ones are near a generated one; about 1 for equal sets
    coverage: float  # share of the real that have a generated one near


def coverage(real: Tensor, generated: Tensor, neighbours: int = 3) -> Coverage:
    """Precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2), density and coverage (Naeem et
    al. 2020, eq. 5 and 6), of sets (N, D) and (M, D).

    An item lies among a set if it is no further from one of that set's than that one's own k-th
    neighbour there. Comparable only between sets of the same sizes. Raises ValueError for sets that
    have no k-th neighbours.
    """
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(f"neighbour number {neighbours} is not there in so small a set")
    real, generated = real.double(), generated.double()
    of_real, of_generated = radii(real, neighbours), radii(generated, neighbours)
    balls = torch.zeros(len(generated), dtype=torch.int64, device=real.device)  # that hold each
    covered, recalled = [], []
    for part, radius in zip(real.split(CHUNK), of_real.split(CHUNK), strict=True):
        distances = torch.cdist(part, generated)
        near = distances <= radius[:, None]
        balls += near.sum(dim=0)
        covered.append(near.any(dim=1))
        recalled.append((distances <= of_generated).any(dim=1))
    return Coverage(
        precision=(balls > 0).double().mean().item(),
        recall=torch.cat(recalled).double().mean().item(),
        density=balls.double().mean().item() / neighbours,
        coverage=torch.cat(covered).double().mean().item(),
    )


def radii(x: Tensor, neighbours: int) -> Tensor:
    """The distance (N,) from each item to its k-th neighbour in its own set."""
    parts = (torch.cdist(part, x) for part in x.split(CHUNK))
    return torch.cat([part.kthvalue(neighbours + 1).values for part in parts])  # 1 is itself


def nearest(x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The Euclidean distance (N,) from each item of x to the nearest of others, and its index.

    Both may be uint8: they are taken as numbers a part at a time.
    """
    distances, indices = [], []
    for part in x.split(CHUNK):
        part, best = part.float(), torch.full((len(part),), torch.inf)
        index = torch.zeros(len(part), dtype=torch.int64)
        for first, chunk in zip(range(0, len(others), LARGE), others.split(LARGE), strict=True):
            chunk = chunk.float()
            near = (chunk.square().sum(dim=1) - 2 * part @ chunk.T).min(dim=1)
            closer = near.values < best
            best = torch.where(closer, near.values, best)
            index = torch.where(closer, near.indices + first, index)
        distances.append((part.double() - others[index].double()).norm(dim=1))
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def chi_square(counts: Tensor, expected: Tensor) -> tuple[float, float]:
    """Pearson's statistic of counts (K,) against shares that are expected (K,), and the probability
    that chance alone makes it as large.

    Raises ValueError for a class that is expected never to occur.
    """
    counts, expected = counts.double(), expected.double()
    if (expected <= 0).any():
        raise ValueError("every class must be expected to occur")
    expected = expected * (counts.sum() / expected.sum())
    statistic = ((counts - expected).square() / expected).sum()
    freedom = torch.full_like(statistic, len(counts) - 1)
    return statistic.item(), torch.special.gammaincc(freedom / 2, statistic / 2).item()
