"""Evaluates the equations of a page as they are written: a small part of LaTeX, for arithmetic.

    value(r"x_t = \\alpha_t x_0 + \\sigma_t \\epsilon", {"x_0": 1.0, r"\\alpha_t": 0.5, ...})

Numbers, names with subscripts, + - = ( ), \\frac, \\sqrt, powers, a few functions. Names without a
sign between them are multiplied. `\\bar`, `\\hat` and `\\tilde` belong to the name that follows.
"""

import re
from collections.abc import Mapping
from math import erf

import numpy as np

NAME = r"(?:\\(?:bar|hat|tilde) ?)?(?:\\[a-zA-Z]+|[a-zA-Z])'*(?:_(?:[a-zA-Z0-9]|\{[^{}]+\}))?"
TOKEN = re.compile(rf"\s*(\d+(?:\.\d+)?|{NAME}|[-+=(){{}}^/])")
normal_cdf = np.vectorize(lambda x: (1 + erf(x / 2**0.5)) / 2)
FUNCTIONS = {
    r"\Phi": normal_cdf,
    r"\log": np.log,
    r"\exp": np.exp,
    r"\cos": np.cos,
    r"\sin": np.sin,
}
IGNORED = (r"\left", r"\right")  # they only make brackets larger


class Unknown(KeyError):
    """A name has no value."""


def value(equation: str, names: Mapping[str, object]):
    """The value of the last side of an equation.

    The sides before it must be equal to it, except those with a name that has no value. Raises
    Unknown for such a name in the last side, and AssertionError for sides that differ.
    """
    *before, last = (side for side in equation.split("=") if side.strip())
    result = Parser(last, names).whole()
    for side in before:
        try:
            other = Parser(side, names).whole()
        except Unknown:
            continue
        np.testing.assert_allclose(other, result, rtol=1e-9, atol=1e-12, err_msg=equation)
    return result


class Parser:
    """Evaluates an expression while it reads it."""

    def __init__(self, text: str, names: Mapping[str, object]):
        self.tokens, self.names, at = [], names, 0
        while at < len(text.rstrip()):
            found = TOKEN.match(text, at)
            assert found, f"cannot read {text[at:]!r}"
            if found[1] not in IGNORED:
                self.tokens.append(found[1])
            at = found.end()

    def peek(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def take(self, wanted: str | None = None) -> str:
        assert self.tokens, f"{wanted or 'something'} is missing"
        token = self.tokens.pop(0)
        assert wanted in (None, token), f"{token} instead of {wanted}"
        return token

    def whole(self):
        result = self.sum()
        assert not self.tokens, f"left over: {self.tokens}"
        return result

    def sum(self):
        result = -self.product() if self.peek() == "-" and self.take() else self.product()
        while self.peek() in ("+", "-"):
            result = result + self.product() if self.take() == "+" else result - self.product()
        return result

    def product(self):
        result = self.power()
        while self.peek() not in ("", "+", "-", ")", "}"):
            if self.peek() == "/":
                self.take()
                result = result / self.power()
            else:
                result = result * self.power()
        return result

    def power(self):
        base = self.atom()
        if self.peek() == "^":
            self.take()
            base = base ** (self.group() if self.peek() == "{" else self.atom())
        return base

    def group(self, opening: str = "{", closing: str = "}"):
        self.take(opening)
        result = self.sum()
        self.take(closing)
        return result

    def atom(self):
        token = self.peek()
        if token in ("(", "{"):
            return self.group(token, {"(": ")", "{": "}"}[token])
        self.take()
        if token[0].isdigit():
            return float(token)
        if token == r"\frac":
            return self.group() / self.group()
        if token == r"\sqrt":
            return self.group() ** 0.5
        if token in FUNCTIONS:
            squared = self.peek() == "^" and self.take() and self.take("2")
            result = FUNCTIONS[token](self.group("(", ")") if self.peek() == "(" else self.power())
            return result**2 if squared else result
        if token == r"\pi":
            return np.pi
        if token == "e":
            return np.e
        if token not in self.names:
            raise Unknown(token)
        return self.names[token]
