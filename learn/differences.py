"""Comparison of results: are they the same, and if not, what is right about one of them."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

RTOL, ATOL = 5e-4, 1e-5  # float32 in another order of operations stays well within this
SHOWN = 6  # numbers of a tensor that are shown
FACTORS = {  # names of factors that mistakes often lead to
    2: "2",
    0.5: "1/2",
    math.sqrt(2): "sqrt(2)",
    math.sqrt(0.5): "1/sqrt(2)",
    4: "4",
    0.25: "1/4",
    -1: "-1: the sign is wrong",
}


def same(a: object, b: object) -> bool:
    """Are two results the same, up to rounding? A list counts as a tuple, an int as a float."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return False
        alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        if not alike or a.is_meta:  # a tensor on the meta device has no values
            return alike
        return close(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if is_number(a) and is_number(b):
        return math.isclose(a, b, rel_tol=RTOL, abs_tol=ATOL) or (a != a and b != b)
    return type(a) is type(b) and bool(a == b)


def close(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    if a.is_complex() or b.is_complex():
        return torch.equal(a, b)
    return torch.allclose(a.double(), b.double(), rtol=RTOL, atol=ATOL, equal_nan=True)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- words ----------------------------------------------------------------------------------------


def differences(expected: object, got: object, name: str = "the result") -> list[str]:
    """What is wrong and what is right about a result, in lines for a student."""
    if got is None:
        return [f"{name} is None: is a `return` missing?"]
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        known = [key for key in expected if key in got]  # an error may leave some unknown
        wrong = [key for key in known if not same(expected[key], got[key])]
        right = [key for key in known if key not in wrong]
        lines = [line for key in wrong for line in differences(expected[key], got[key], key)]
        few = ", ".join(right) if len(right) <= 5 else f"{len(right)} other things"
        return lines + ([f"right: {few}"] if right else [])
    if isinstance(expected, (tuple, list)):
        return list(sequence_differences(expected, got, name))
    if isinstance(expected, Tensor) and isinstance(got, Tensor):
        return list(tensor_differences(expected, got, name))
    lines = [f"{name}: expected {shown(expected)}, got {shown(got)}"]
    if type(expected) is not type(got) and not (is_number(expected) and is_number(got)):
        lines.append(f"{name} must be {kind(expected)}, not {kind(got)}")
    return lines


def sequence_differences(expected: tuple | list, got: object, name: str) -> Iterator[str]:
    if not isinstance(got, (tuple, list)):
        yield f"{name} must be {len(expected)} values, not {kind(got)}"
    elif len(expected) != len(got):
        yield f"{name} must be {len(expected)} values, not {len(got)}"
    else:
        right = [i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if same(a, b)]
        for i, (a, b) in enumerate(zip(expected, got, strict=True)):
            if i not in right:
                yield from differences(a, b, f"{name.removeprefix('the ')}, value {i + 1}")
        if right:
            yield "right: " + ", ".join(f"value {i + 1}" for i in right)


def tensor_differences(expected: Tensor, got: Tensor, name: str) -> Iterator[str]:
    """What is wrong and what is right about a tensor."""
    right = []
    for what in ("shape", "dtype", "device"):
        a, b = getattr(expected, what), getattr(got, what)
        a, b = (tuple(a), tuple(b)) if what == "shape" else (a, b)
        if a != b:
            yield f"{name} has the {what} {b}; it must be {a}"
        else:
            right.append(what)
    if expected.is_meta or got.is_meta or got.is_complex():
        return
    if expected.shape == got.shape and close(expected, got):
        right.append("values")
    else:
        yield f"{name}: expected {shown(expected)}"
        yield f"{' ' * len(name)}  got      {shown(got)}"
        if expected.shape == got.shape:
            yield from values(expected.detach().double(), got.detach().double())
            mean = expected.double().mean().item()
            if expected.numel() > 1 and math.isclose(mean, got.double().mean(), rel_tol=1e-3):
                right.append("mean")
    if right:
        yield f"right about it: {', '.join(right)}"


def values(expected: Tensor, got: Tensor) -> Iterator[str]:
    """How the values of two tensors of one shape differ."""
    wrong = ~torch.isclose(expected, got, rtol=RTOL, atol=ATOL, equal_nan=True)
    if expected.numel() > SHOWN:
        where = tuple(wrong.nonzero()[0].tolist())
        yield (
            f"{int(wrong.sum())} of {wrong.numel()} values differ, the first at "
            f"[{', '.join(map(str, where))}]: expected {expected[where]:.5g}, got {got[where]:.5g}"
        )
    elif wrong.numel() > 1 and not wrong.all():
        numbers = [str(i + 1) for i in (~wrong).flatten().nonzero().flatten().tolist()]
        yield f"right among the values: number {', '.join(numbers)}"
    if bad := nonfinite(got):
        yield bad
        return
    if note := relation(expected, got):
        yield note
    if expected.ndim > 1 and len(expected) > 1:
        items = [i for i, rows in enumerate(wrong) if not rows.any()]
        if items:
            yield f"right for these items of the batch: {', '.join(map(str, items))}"


def nonfinite(got: Tensor) -> str:
    """A note on values that are infinite or not a number."""
    if got.isnan().any():
        return "nan: a 0 / 0, or the root or logarithm of a negative number"
    return "inf: a division by 0, or an overflow" if got.isinf().any() else ""


def relation(expected: Tensor, got: Tensor) -> str:
    """A simple relation of all values to the expected ones, or ""."""
    a, b = expected.flatten(), got.flatten()
    if a.numel() < 2:
        return ""
    if (got == 0).all():
        return "all values are 0"
    if (a.abs() > 1e-6).all():
        factor = (b / a).mean().item()
        if close(factor * a, b):
            near = [
                text for value, text in FACTORS.items() if math.isclose(factor, value, rel_tol=1e-3)
            ]
            return f"each value is the expected one times {near[0] if near else f'{factor:.4g}'}"
    if close(a.sort().values, b.sort().values):
        return "the values are right, but in another order or at other places"
    if close(a + (b - a).mean(), b):
        return f"each value is the expected one plus {(b - a).mean().item():.4g}"
    if close(a.square(), b):
        return "each value is the square of the expected one"
    if (a >= 0).all() and close(a.sqrt(), b):
        return "each value is the square root of the expected one"
    return ""


def weight_line(name: str, expected: float, got: float) -> str:
    """How the weight of an input in a weighted sum differs, and what may be the reason."""
    if math.isclose(expected, got, rel_tol=RTOL, abs_tol=ATOL):
        return f"weight of {name}: {got:.5g}, right"
    reasons = {
        "the sign is wrong": -expected,
        "the square of that: is a square root missing?": expected**2,
        "the square root of that: is there one too many?": abs(expected) ** 0.5,
        "the inverse of that": 1 / expected if expected else math.inf,
    }
    near = (text for text, value in reasons.items() if math.isclose(got, value, rel_tol=RTOL))
    reason = next(near, "it does not enter" if abs(got) < ATOL else "")
    note = f" ({reason})" if reason else ""
    return f"weight of {name}: expected {expected:.5g}, got {got:.5g}{note}"


def kind(value: object) -> str:
    """The type of a value in words."""
    if value is None:
        return "None"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    return "a tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def shown(value: object) -> str:
    """A value in one short line."""
    if isinstance(value, Tensor):
        if value.is_meta:
            return f"a tensor {tuple(value.shape)}"
        numbers = value.detach().flatten()
        text = ", ".join(f"{x:.5g}" for x in numbers[:SHOWN].tolist())
        if value.ndim == 0:
            return text
        shape = f"shape {tuple(value.shape)}"
        if numbers.numel() == 1:
            return f"{text}, {shape}"
        return f"[{text}, ...], {shape}" if numbers.numel() > SHOWN else f"[{text}], {shape}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(shown, value[:SHOWN])) + (", ..." if len(value) > SHOWN else "")
    return str(value)[:200]
