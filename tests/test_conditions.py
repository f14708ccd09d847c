"""Conditions: their unconditional form, label dropout, concatenation, devices and slices."""

import dataclasses

import pytest
import torch

from conditions import NULL_LABEL, Condition, label_condition

KEPT = ("image", "level", "span")  # fields that the unconditional form keeps
LABELS = torch.tensor([3, 0, 2])


def labels(condition: Condition) -> list[int]:
    return condition.label.tolist()


def test_the_length_is_the_batch_size():
    assert len(Condition(label=LABELS)) == 3
    with pytest.raises(ValueError, match="no batch size"):
        len(Condition())


def test_null_replaces_every_label_by_the_null_label():
    condition = Condition(label=LABELS)
    assert labels(condition.null()) == [NULL_LABEL] * 3
    assert condition.null().label.dtype == torch.int64
    assert labels(condition) == [3, 0, 2]
    assert Condition().null() == Condition()


def test_dropped_replaces_the_masked_rows():
    condition, mask = Condition(label=LABELS), torch.tensor([True, False, True])
    assert labels(condition.dropped(mask)) == [NULL_LABEL, 0, NULL_LABEL]
    assert labels(condition.dropped(torch.zeros(3, dtype=torch.bool))) == [3, 0, 2]
    assert Condition().dropped(torch.tensor([True])) == Condition()


def test_cat_joins_two_batches_in_order():
    condition = Condition(label=LABELS)
    both = condition.cat(condition.null())
    assert labels(both) == [3, 0, 2, NULL_LABEL, NULL_LABEL, NULL_LABEL]


def test_to_moves_every_tensor():
    """The device "meta" stands in for a GPU."""
    assert Condition(label=LABELS).to("meta").label.device.type == "meta"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(1, 3), [0, 2]),
        (torch.tensor([2, 0]), [2, 3]),
        (torch.tensor([True, False, True]), [3, 2]),
    ],
)
def test_rows_are_selected_by_slice_index_or_mask(rows, expected):
    assert labels(Condition(label=LABELS)[rows]) == expected


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Condition)])
def test_every_field_has_a_null_form_and_follows_the_batch(name):
    values = torch.arange(6).view(3, 2)
    condition = Condition(**{name: values})
    first = torch.tensor([True, False, False])
    for changed, length in [
        (condition.null(), 3),
        (condition.dropped(first), 3),
        (condition.cat(condition), 6),
        (condition[:2], 2),
        (condition.to("cpu"), 3),
    ]:
        assert changed.tensors().keys() == {name}
        assert len(changed) == length
    null, dropped = condition.null().tensors()[name], condition.dropped(first).tensors()[name]
    assert torch.equal(dropped, torch.cat([null[:1], values[1:]]))
    assert torch.equal(null, values) == (name in KEPT)


def test_a_condition_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Condition(label=LABELS).label = None


def test_only_present_fields_are_listed():
    assert Condition().tensors() == {}
    assert Condition(label=LABELS).tensors() == {"label": LABELS}


def test_data_without_labels_has_no_condition():
    assert label_condition(None) is None
    assert labels(label_condition(LABELS)) == [3, 0, 2]
