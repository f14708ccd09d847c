"""Distances between two sets of items: of points, or of the features of images.

Sets are tensors (N, D) and (M, D). The computation is in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 500  # items that are compared with all others at a time
FLOAT_CHUNK = 20_000  # items of the other set that are converted to floats at a time


def energy_distance(a: Tensor, b: Tensor, *, biased: bool = False) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| over two sets (N, ...) and (M, ...): 0 if they agree.

    The norm is Euclidean, over all elements of an item (Szekely & Rizzo 2013, eq. 5). By default an
    item is not compared with itself, and the estimate may be slightly below 0. With `biased`, items
    are also compared with themselves, and the distance of equal distributions is above 0 by about
    the size of the random error. Raises ValueError for a set of fewer than two items.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    if min(len(a), len(b)) < 2:
        raise ValueError("an energy distance needs at least two items of each set")

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - (0 if biased else 1)))

    return (2 * torch.cdist(a, b).mean() - within(a) - within(b)).item()


class Gaussian(NamedTuple):
    """Mean (D,) and covariance (D, D), float64."""

    mean: Tensor
    covariance: Tensor


def gaussian_of(x: Tensor) -> Gaussian:
    """Mean and covariance (with N - 1) of items (N, D). Raises ValueError for a single item."""
    if len(x) < 2:
        raise ValueError("a covariance needs at least two items")
    x = x.double()
    return Gaussian(x.mean(dim=0), torch.cov(x.T).reshape(x.shape[1], x.shape[1]))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    Dowson & Landau 1982, eq. 4. In Inception's features it is the FID (Heusel et al. 2017, eq. 6).
    """
    # (C_a C_b)^(1/2) has the trace of (R C_b R)^(1/2), R = C_a^(1/2), which is symmetric.
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0)
    spread = a.covariance.trace() + b.covariance.trace() - 2 * product.sqrt().sum()
    return ((a.mean - b.mean).square().sum() + spread).clamp(min=0).item()


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """The squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, without bias.

    In Inception's features it is the KID (Binkowski et al. 2018, section 4), here over all pairs
    and not over subsets. The estimate may be slightly below 0. Raises ValueError for a set of fewer
    than two items.
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
    """The polynomial kernel of degree 3, from the products x . y in `dim` dimensions."""
    return (products / dim + 1) ** 3


class PRDC(NamedTuple):
    """Precision, recall, density and coverage of a generated set."""

    precision: float  # fraction of generated items inside the real set
    recall: float  # fraction of real items inside the generated set
    density: float  # number of real items near a generated one; about 1 for equal distributions
    coverage: float  # fraction of real items with a generated one near


def prdc(real: Tensor, generated: Tensor, neighbours: int = 3) -> PRDC:
    """Precision, recall, density and coverage of two sets (N, D) and (M, D).

    Kynkaanniemi et al. 2019, eq. 1 and 2; Naeem et al. 2020, eq. 5 and 6.
    An item is inside a set if it is no further from one of its members than that member's own k-th
    neighbour in the set. Values can be compared only between sets of the same sizes. Raises
    ValueError for sets of k items or fewer.
    """
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(f"a set needs more than {neighbours} items, to have so many neighbours")
    real, generated = real.double(), generated.double()
    of_real, of_generated = radii(real, neighbours), radii(generated, neighbours)
    balls = torch.zeros(len(generated), dtype=torch.int64, device=real.device)  # around each item
    covered, recalled = [], []
    for part, radius in zip(real.split(CHUNK), of_real.split(CHUNK), strict=True):
        distances = torch.cdist(part, generated)
        near = distances <= radius[:, None]
        balls += near.sum(dim=0)
        covered.append(near.any(dim=1))
        recalled.append((distances <= of_generated).any(dim=1))
    return PRDC(
        precision=(balls > 0).double().mean().item(),
        recall=torch.cat(recalled).double().mean().item(),
        density=balls.double().mean().item() / neighbours,
        coverage=torch.cat(covered).double().mean().item(),
    )


def radii(x: Tensor, neighbours: int) -> Tensor:
    """The distance (N,) of each item to its k-th neighbour in its own set."""
    parts = (torch.cdist(part, x) for part in x.split(CHUNK))
    return torch.cat([part.kthvalue(neighbours + 1).values for part in parts])  # first: itself


def nearest_neighbours(x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The Euclidean distance (N,) of each item of x to the nearest of `others`, and its index (N,).

    Both may be uint8: a chunk at a time is converted to floats.
    """
    distances, indices = [], []
    for part in x.split(CHUNK):
        part, best = part.float(), torch.full((len(part),), torch.inf)
        index = torch.zeros(len(part), dtype=torch.int64)
        starts = range(0, len(others), FLOAT_CHUNK)
        for first, chunk in zip(starts, others.split(FLOAT_CHUNK), strict=True):
            chunk = chunk.float()
            near = (chunk.square().sum(dim=1) - 2 * part @ chunk.T).min(dim=1)
            closer = near.values < best
            best = torch.where(closer, near.values, best)
            index = torch.where(closer, near.indices + first, index)
        distances.append((part.double() - others[index].double()).norm(dim=1))
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def chi_square(counts: Tensor, expected: Tensor) -> tuple[float, float]:
    """Pearson's chi-square statistic of counts (K,) for expected proportions (K,), and its p-value.

    Raises ValueError for a class with an expected proportion of 0.
    """
    counts, expected = counts.double(), expected.double()
    if (expected <= 0).any():
        raise ValueError("every class must have an expected proportion above 0")
    expected = expected * (counts.sum() / expected.sum())
    statistic = ((counts - expected).square() / expected).sum()
    freedom = torch.full_like(statistic, len(counts) - 1)
    return statistic.item(), torch.special.gammaincc(freedom / 2, statistic / 2).item()
