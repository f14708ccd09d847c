"""Distances between two sets, against SciPy, torchmetrics and closed forms."""

import math

import pytest
import torch
from scipy.stats import chisquare
from scipy.stats import energy_distance as scipy_energy_distance
from torch.testing import assert_close

from evaluation.distances import (
    chi_square,
    energy_distance,
    frechet_distance,
    gaussian_of,
    kernel_distance,
    nearest_neighbours,
    prdc,
)


def test_energy_distance_matches_scipy_in_one_dimension():
    """SciPy takes the square root and compares items with themselves, a bias of order 1 / N."""
    torch.manual_seed(0)
    a, b = torch.randn(2000, 1), 0.5 * torch.randn(3000, 1) + 1
    expected = scipy_energy_distance(a[:, 0].numpy(), b[:, 0].numpy()) ** 2
    assert energy_distance(a, b) == pytest.approx(expected, abs=2e-3)


def test_energy_distance_of_two_normal_distributions():
    """E|x| of N(m, 2) is known in one dimension."""
    torch.manual_seed(0)
    a, b = torch.randn(4000, 1), torch.randn(4000, 1) + 1.5
    mean, std = 1.5, math.sqrt(2)
    folded = std * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / 2 / std**2)
    folded += mean * math.erf(mean / std / math.sqrt(2))
    expected = 2 * folded - 2 * std * math.sqrt(2 / math.pi)
    assert energy_distance(a, b) == pytest.approx(expected, rel=0.08)


def test_energy_distance_of_equal_distributions_is_zero_without_bias():
    torch.manual_seed(0)
    distances = torch.tensor(
        [energy_distance(torch.randn(50, 1, 4, 4), torch.randn(50, 1, 4, 4)) for _ in range(200)]
    )
    assert abs(distances.mean()) < 4 * distances.std() / 200**0.5


def test_energy_distance_ignores_the_order_and_shape_of_items():
    torch.manual_seed(0)
    a, b = torch.randn(20, 1, 3, 3), torch.randn(30, 1, 3, 3) + 0.2
    assert_close(energy_distance(a, b), energy_distance(b.flatten(1), a[torch.randperm(20)]))


def test_energy_distance_needs_two_items():
    with pytest.raises(ValueError, match="at least two"):
        energy_distance(torch.zeros(1, 2), torch.zeros(5, 2))


# --- the Frechet distance ------------------------------------------------------------------------


def gaussian(count: int, mean: float, std: list[float]) -> torch.Tensor:
    """Items (N, D) with exactly the moments of a Gaussian with independent dimensions."""
    x = torch.randn(count, len(std), dtype=torch.float64)
    x = x - x.mean(dim=0)
    root = torch.linalg.cholesky(torch.cov(x.T))
    return torch.linalg.solve_triangular(root, x.T, upper=False).T * torch.tensor(std) + mean


def test_frechet_distance_of_known_gaussians():
    """With commuting covariances: squared differences of means and standard deviations."""
    torch.manual_seed(0)
    a, b = gaussian(500, 1.0, [1.0, 2.0, 3.0]), gaussian(400, -0.5, [2.0, 2.0, 0.5])
    expected = 3 * 1.5**2 + (1 - 2) ** 2 + 0 + (3 - 0.5) ** 2
    assert frechet_distance(gaussian_of(a), gaussian_of(b)) == pytest.approx(expected, rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    rotated = frechet_distance(gaussian_of(a @ rotation), gaussian_of(b @ rotation))
    assert rotated == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(gaussian_of(a), gaussian_of(a)) < 1e-9


def test_frechet_distance_of_fewer_items_than_dimensions():
    torch.manual_seed(0)
    a, b = gaussian_of(torch.randn(20, 64)), gaussian_of(torch.randn(30, 64))
    assert math.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def features() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    mix = torch.randn(16, 16)
    return torch.randn(300, 16).relu() @ mix, (torch.randn(200, 16) + 0.2).relu() @ mix


def test_frechet_and_kernel_distance_match_torchmetrics():
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.kid import poly_mmd

    a, b = (x.double() for x in features())
    expected = _compute_fid(a.mean(dim=0), torch.cov(a.T), b.mean(dim=0), torch.cov(b.T)).item()
    assert frechet_distance(gaussian_of(a), gaussian_of(b)) == pytest.approx(expected, rel=1e-6)
    assert kernel_distance(a[:200], b) == pytest.approx(poly_mmd(a[:200], b).item(), rel=1e-9)


def test_kernel_distance_of_equal_distributions_is_zero_without_bias():
    torch.manual_seed(0)
    found = torch.tensor(
        [kernel_distance(torch.randn(40, 8), torch.randn(60, 8)) for _ in range(200)]
    )
    assert abs(found.mean()) < 4 * found.std() / 200**0.5


# --- precision, recall, density, coverage ---------------------------------------------------------


def prdc_by_definition(real, generated, k):
    """Precision, recall, density and coverage, from the distance of every pair."""

    def distance(a, b):
        return math.dist(a.tolist(), b.tolist())

    def radius(x, i):
        return sorted(distance(x[i], other) for j, other in enumerate(x) if j != i)[k - 1]

    of_real = [radius(real, i) for i in range(len(real))]
    of_generated = [radius(generated, j) for j in range(len(generated))]
    near = [[distance(r, g) for g in generated] for r in real]
    inside = [[near[i][j] <= of_real[i] for j in range(len(generated))] for i in range(len(real))]
    precision = sum(any(row[j] for row in inside) for j in range(len(generated))) / len(generated)
    among = [
        any(near[i][j] <= of_generated[j] for j in range(len(generated))) for i in range(len(real))
    ]
    recall = sum(among) / len(real)
    density = sum(map(sum, inside)) / k / len(generated)
    return precision, recall, density, sum(map(any, inside)) / len(real)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_density_and_coverage_match_their_definitions(k):
    torch.manual_seed(0)
    real, generated = torch.randn(30, 3), torch.randn(25, 3) * 0.7 + 0.4
    assert prdc(real, generated, k) == pytest.approx(prdc_by_definition(real, generated, k))
    assert min(prdc(real, generated, k)) > 0


def test_coverage_shows_a_lost_mode():
    torch.manual_seed(0)
    real = torch.cat([torch.randn(600, 2), torch.randn(600, 2) + 50])
    assert prdc(real, real + 1000) == (0, 0, 0, 0)
    lost = prdc(real, torch.randn(1200, 2))  # one of two modes
    assert lost.precision > 0.9
    assert lost.recall < 0.55
    assert lost.coverage < 0.55
    again = prdc(real, torch.cat([torch.randn(600, 2), torch.randn(600, 2) + 50]))
    assert again.density == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="more than 3 items"):
        prdc(real[:3], real)


# --- the rest ------------------------------------------------------------------------------------


def test_nearest_neighbours_match_cdist():
    torch.manual_seed(0)
    x, others = torch.randint(256, (700, 12)), torch.randint(256, (900, 12))
    distances, index = nearest_neighbours(x, others)
    expected = torch.cdist(x.double(), others.double()).min(dim=1)
    assert_close(distances, expected.values)
    assert_close(torch.cdist(x.double(), others.double())[range(700), index], expected.values)


def test_chi_square_matches_scipy():
    counts, shares = torch.tensor([18, 25, 40, 17]), torch.tensor([2, 2, 4, 2])
    expected = chisquare(counts.numpy(), 10 * shares.numpy())
    assert chi_square(counts, shares) == pytest.approx((expected.statistic, expected.pvalue))
    assert chi_square(shares, shares) == (0, 1)
    with pytest.raises(ValueError, match="every class"):
        chi_square(counts, torch.tensor([1, 1, 0, 1]))
