"""The comparison of outputs by tests/compare_bits.py."""

import numpy as np
import pytest
import torch

from compare_bits import contents, differences


@pytest.fixture
def outputs(tmp_path):
    """Writes the outputs of a run to a folder of that name: outputs("a", weight=2.0) -> Path."""

    def write(name: str, weight: float = 1.0, count: int = 3, seconds: float = 5.0):
        folder = tmp_path / name
        folder.mkdir()
        optimizer = {"muon": {"state": {0: {"momentum": torch.zeros(2)}}, "param_groups": []}}
        values = {"step": count, "seconds": seconds, "model": {"w": torch.tensor([0.0, weight])}}
        torch.save({**values, "optimizer": optimizer}, folder / "model_final.pt")
        np.savez(folder / "drawn.npz", np.arange(count, dtype=np.uint8))
        return folder

    return write


def test_equal_outputs_have_no_differences(outputs):
    assert not differences(contents(outputs("a")), contents(outputs("b", seconds=6.0)))


def test_a_changed_tensor_is_named_with_its_largest_difference(outputs):
    found = differences(contents(outputs("a")), contents(outputs("b", weight=1.5)))
    assert found == ["model_final.pt model w: largest difference 0.5"]


def test_the_sign_of_zero_is_a_difference():
    assert differences({"w": torch.zeros(1)}, {"w": -torch.zeros(1)})


def test_equal_values_that_are_not_numbers_are_no_difference():
    values = {"w": torch.tensor([float("nan")]), "loss": float("nan")}
    assert not differences(values, dict(values))


def test_changed_counters_and_shapes_are_named(outputs):
    found = differences(contents(outputs("a")), contents(outputs("b", count=4)))
    assert [line.partition(":")[0] for line in found] == [
        "drawn.npz arr_0",
        "model_final.pt step",
    ]


def test_a_missing_file_is_a_difference(outputs):
    a, b = outputs("a"), outputs("b")
    (b / "drawn.npz").unlink()
    assert differences(contents(a), contents(b)) == ["drawn.npz arr_0: missing"]
    assert differences(contents(b), contents(a)) == ["drawn.npz arr_0: not in the reference"]
