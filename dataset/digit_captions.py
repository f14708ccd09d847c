"""Captions of canvases with digits: a small grammar that writes them, and its parser.

The tables hold all words. A caption names every digit of its canvas, but leaves out some of the
digits' properties and places. `mentioned` parses a caption.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby, permutations
from typing import NamedTuple

COLOURS = {
    "white": (255, 255, 255),
    "red": (255, 40, 40),
    "orange": (255, 135, 0),
    "yellow": (255, 235, 40),
    "green": (40, 215, 40),
    "cyan": (0, 225, 235),
    "blue": (70, 95, 255),
    "pink": (255, 90, 200),
}
# Words for the values of a digit's properties. The values in between have no words.
WORDS = {
    "thickness": {"thin": ("thin", "slender"), "thick": ("thick", "bold")},
    "slant": {
        "left": ("left-leaning", "left-slanted"),
        "right": ("right-leaning", "right-slanted"),
    },
    "colour": {name: (name,) for name in COLOURS},
}
ADJECTIVES = (("thickness", "slant", "colour"), ("slant", "thickness", "colour"))  # their orders
MENTIONED = {"thickness": 0.6, "slant": 0.6, "colour": 0.75}  # probability of a word that has one
NUMBERS = {2: "two", 3: "three"}
GROUPED = 0.7  # probability of "two 5s" instead of "a 5 and a 5"
ORDERED, ARRANGED = 0.6, 0.6  # probability of saying where each digit is, or how they are arranged

# Where a single digit is.
PLACES = {
    "centre": ("in the middle", "in the centre"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "top left": ("at the top left", "in the top left corner"),
    "top right": ("at the top right", "in the top right corner"),
    "bottom left": ("at the bottom left", "in the bottom left corner"),
    "bottom right": ("at the bottom right", "in the bottom right corner"),
}
# How several digits are arranged.
ARRANGEMENTS = {
    "row": ("in a row", "side by side"),
    "column": ("in a column", "in a stack"),
}
# Where each digit is. {0} is the first in a row from the left, or in a column from the top.
RELATIONS = {
    ("row", 2): (
        "{0} to the left of {1}",
        "{1} to the right of {0}",
        "{0} on the left and {1} on the right",
        "{1} on the right and {0} on the left",
    ),
    ("column", 2): (
        "{0} above {1}",
        "{1} below {0}",
        "{0} over {1}",
        "{1} under {0}",
        "{0} at the top and {1} at the bottom",
    ),
    ("row", 3): (
        "{0}, {1} and {2} from left to right",
        "{2}, {1} and {0} from right to left",
        "{1} between {0} on the left and {2} on the right",
    ),
    ("column", 3): (
        "{0}, {1} and {2} from top to bottom",
        "{2}, {1} and {0} from bottom to top",
        "{1} between {0} at the top and {2} at the bottom",
    ),
}
DRAWS = 32  # random numbers that suffice for a caption


class Digit(NamedTuple):
    """The properties of a digit, or those that a caption mentions; None if not mentioned."""

    digit: str
    colour: str | None = None  # a key of COLOURS
    thickness: str | None = None  # thin, medium or thick
    slant: str | None = None  # left, little or right


class Facts(NamedTuple):
    """The facts about a canvas, or those that a caption mentions."""

    digits: tuple[Digit, ...]
    layout: str | None  # a key of PLACES or ARRANGEMENTS; None if it is not said
    ordered: bool = True  # are the digits in the order of their places?


def describe(truth: Facts, draws: Iterator[float]) -> str:
    """A caption of a canvas, chosen by random numbers in [0, 1)."""
    count, layout = len(truth.digits), truth.layout

    def chosen(options: Sequence):
        return options[int(next(draws) * len(options))]

    def likely(probability: float) -> bool:
        return next(draws) < probability

    if count > 1 and likely(ORDERED):
        phrases = [phrase([digit], chosen, likely) for digit in truth.digits]
        return chosen(RELATIONS[layout, count]).format(*phrases)
    digits = list(chosen([*permutations(truth.digits)]))
    groups = [[digit] for digit in digits]
    if likely(GROUPED):
        order = [digit.digit for digit in digits]
        digits.sort(key=lambda each: order.index(each.digit))
        groups = [list(same) for _, same in groupby(digits, lambda each: each.digit)]
    text = listing([phrase(group, chosen, likely) for group in groups])
    if not likely(ARRANGED):
        return text
    where = chosen((PLACES | ARRANGEMENTS)[layout])
    return f"{where}, {text}" if count == 1 and likely(0.3) else f"{text} {where}"


def phrase(
    group: list[Digit], chosen: Callable[[Sequence], object], likely: Callable[[float], bool]
) -> str:
    """A phrase for equal digits, with words for properties that all of them share."""
    words = []
    for name in chosen(ADJECTIVES):
        values = {getattr(digit, name) for digit in group}
        synonyms = WORDS[name].get(values.pop()) if len(values) == 1 else None
        if synonyms and likely(MENTIONED[name]):
            words.append(chosen(synonyms))
    words.append(group[0].digit + ("s" if len(group) > 1 else ""))
    number = NUMBERS.get(len(group)) or ("an" if words[0][0] in "aeiou8" else "a")
    return " ".join([number, *words])


def listing(phrases: list[str]) -> str:
    """Phrases as a list in English: "a 3, a 5 and a 7"."""
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


# --- parsing a caption ----------------------------------------------------------------------------

MEANINGS = {
    word: (name, value)
    for name, values in WORDS.items()
    for value, synonyms in values.items()
    for word in synonyms
}
SINGLE = r"an? (?:[a-z-]+ )*\d"
PHRASE = rf"(?:{SINGLE}|(?:{'|'.join(NUMBERS.values())}) (?:[a-z-]+ )*\ds)"


def mentioned(caption: str) -> Facts:
    """The facts that a caption mentions. Raises ValueError for a caption of another grammar."""
    for pattern, layout in relations():
        if match := pattern.fullmatch(caption):
            digits = [read_phrase(text) for _, text in sorted(match.groupdict().items())]
            return Facts(tuple(digit for (digit,) in digits), layout)
    layout, text = split_layout(caption)
    if not re.fullmatch(rf"{PHRASE}(?:, {PHRASE})*(?: and {PHRASE})?", text):
        raise ValueError(f"not a caption of captioned_mnist: {caption!r}")
    digits = [digit for part in re.findall(PHRASE, text) for digit in read_phrase(part)]
    return Facts(tuple(digits), layout, ordered=False)


@cache
def relations() -> list[tuple[re.Pattern, str]]:
    """A pattern for each sentence of RELATIONS, with its layout."""
    cells = [f"(?P<cell_{i}>{SINGLE})" for i in range(3)]
    return [
        (re.compile(sentence.format(*cells)), layout)
        for (layout, _), sentences in RELATIONS.items()
        for sentence in sentences
    ]


def split_layout(caption: str) -> tuple[str | None, str]:
    """The layout that a caption ends or begins with, or None, and the rest of the caption."""
    for layout, ways in (PLACES | ARRANGEMENTS).items():
        for where in ways:
            if caption.endswith(f" {where}"):
                return layout, caption.removesuffix(f" {where}")
            if caption.startswith(f"{where}, "):
                return layout, caption.removeprefix(f"{where}, ")
    return None, caption


def read_phrase(text: str) -> list[Digit]:
    """The digits of a phrase: one for "a red 3", two for "two 5s". Raises ValueError for others."""
    number, *adjectives, noun = text.split()
    if unknown := [word for word in adjectives if word not in MEANINGS]:
        raise ValueError(f"not a word of captioned_mnist: {unknown[0]!r}")
    count = next((count for count, word in NUMBERS.items() if word == number), 1)
    return [Digit(noun.removesuffix("s"), **dict(MEANINGS[word] for word in adjectives))] * count


def holds(said: Facts, truth: Facts) -> bool:
    """Are the facts that a caption mentions true of a canvas?"""
    if len(said.digits) != len(truth.digits) or said.layout not in (None, truth.layout):
        return False
    orders = [truth.digits] if said.ordered else permutations(truth.digits)
    return any(all(map(agree, said.digits, order)) for order in orders)


def agree(said: Digit, true: Digit) -> bool:
    """Are the properties that are mentioned of a digit its true ones?"""
    return all(value in (None, known) for value, known in zip(said, true, strict=True))
