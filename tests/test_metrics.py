import math

import pytest
import torch
from scipy.stats import energy_distance as scipy_energy_distance
from torch.testing import assert_close

from metrics import energy_distance


def test_it_is_scipy_s_in_one_dimension():
    """scipy takes a square root, and compares items with themselves, which is a bias of 1 / N."""
    torch.manual_seed(0)
    a, b = torch.randn(2000, 1), 0.5 * torch.randn(3000, 1) + 1
    expected = scipy_energy_distance(a[:, 0].numpy(), b[:, 0].numpy()) ** 2
    assert energy_distance(a, b) == pytest.approx(expected, abs=2e-3)


def test_normal_distributions_with_other_means():
    """E|x| of N(m, 2 I) in one dimension is known."""
    torch.manual_seed(0)
    a, b = torch.randn(4000, 1), torch.randn(4000, 1) + 1.5
    mean, std = 1.5, math.sqrt(2)
    folded = std * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / 2 / std**2)
    folded += mean * math.erf(mean / std / math.sqrt(2))
    expected = 2 * folded - 2 * std * math.sqrt(2 / math.pi)
    assert energy_distance(a, b) == pytest.approx(expected, rel=0.08)


def test_equal_distributions_are_zero_apart_without_bias():
    torch.manual_seed(0)
    distances = torch.tensor(
        [energy_distance(torch.randn(50, 1, 4, 4), torch.randn(50, 1, 4, 4)) for _ in range(200)]
    )
    assert abs(distances.mean()) < 4 * distances.std() / 200**0.5


def test_order_and_shape_do_not_matter():
    torch.manual_seed(0)
    a, b = torch.randn(20, 1, 3, 3), torch.randn(30, 1, 3, 3) + 0.2
    assert_close(energy_distance(a, b), energy_distance(b.flatten(1), a[torch.randperm(20)]))


def test_one_item_is_too_few():
    with pytest.raises(ValueError, match="at least two"):
        energy_distance(torch.zeros(1, 2), torch.zeros(5, 2))
