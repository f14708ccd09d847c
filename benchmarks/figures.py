"""Figures that pages quote from a record: each is followed by a comment that names its source.

    1.75 (1.62 to 1.85)<!-- results.json: mnist, 10 minutes: ratio and range -->
    25.4<!-- measured.md: t logit-normal: classifier-FID -->

The source is docs/results.json, with a field of `FIELDS`, or a table of a page in docs/: the row
whose first cells, joined by commas, begin with the given text, and the name of a column. The last
numbers before the comment must be those of the source, and may be rounded.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from checkpoints.card import figures_table
from evaluation.copies import RARE

MARK = re.compile(r"(?<=\S)<!-- ([\w.]+\.(?:json|md)): (.+?): (.+?) -->")
ANY_MARK = re.compile(r"<!-- [\w.]+\.(?:json|md):.*?-->", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\d])")
PAGES = ("*.md", "docs/*.md", "docs/guide/*.md", "weights/*.md", "mini_diffusion/*.md")


Row = dict  # of docs/results.json


def mean_and_range(row: Row, measure: str) -> list[float]:
    found = row["measures"][measure]
    return [found["mean"], min(found["values"]), max(found["values"])]


def ratio_and_range(row: Row) -> list[float]:
    floor = row["measures"]["classifier_fid"]["floor"]
    return [value / floor for value in mean_and_range(row, "classifier_fid")]


def area(row: Row, name: str) -> list[float]:
    """The mean, range and floor of a two-sample test."""
    found = row["two_sample"][name]
    return [found["mean"], min(found["values"]), max(found["values"]), found["floor"]]


def almost_background(row: Row) -> list[float]:
    """The shares of samples and of training images, in percent."""
    levels = row["two_sample"]["grey_levels"]
    return [100 * levels[f"almost_background{of}"] for of in ("", "_of_real")]


def obeyed(row: Row, measure: str, captions: str = "held_out") -> list[float]:
    """The mean and range of a measure of whether samples show what captions say."""
    found = row["prompt"][captions][measure]
    return [found["mean"], min(found["values"]), max(found["values"])]


FIELDS: dict[str, Callable[[Row], list[float]]] = {
    "minutes": lambda row: [row["minutes"]],
    "updates": lambda row: [row["updates"]],
    "epochs": lambda row: [row["epochs"]],
    "images/s": lambda row: [row["images_per_second"]],
    "parameters": lambda row: [row["parameters"]],
    "memory": lambda row: [row["memory"]],
    "start": lambda row: [row["start"]],
    "64 images": lambda row: [row["seconds"]],
    "accuracy": lambda row: [100 * row["classifier"]["accuracy"]],
    "near-copies": lambda row: [100 * row["near_copies"]],
    "classifier-FID and range": lambda row: mean_and_range(row, "classifier_fid"),
    "range of the classifier-FID": lambda row: mean_and_range(row, "classifier_fid")[1:],
    "floor": lambda row: [row["measures"]["classifier_fid"]["floor"]],
    "ratio": lambda row: ratio_and_range(row)[:1],
    "ratio and range": ratio_and_range,
    "AUC, range and floor": lambda row: area(row, "auc"),
    "AUC of 16 levels, range and floor": lambda row: area(row, "auc_16_levels"),
    "almost background": almost_background,
    "exact match and range": lambda row: obeyed(row, "exact_match"),
    "statements and range": lambda row: obeyed(row, "attribute_accuracy"),
    "exact match of training captions": lambda row: obeyed(row, "exact_match", "training"),
}


class Quote(NamedTuple):
    """A figure in a page, with the comment that names its source."""

    page: Path
    line: int
    source: str
    numbers: list[re.Match]  # in the text of the page, one per number of the source
    expected: list[float] | None  # None if the record has no such figure yet

    @property
    def found(self) -> str:
        return " ".join(number[0] for number in self.numbers)

    def rounded(self) -> list[str]:
        """The expected numbers, with as many decimals as the page has."""
        return [
            f"{value:{',' if ',' in number[0] or value >= 1000 else ''}.{decimals(number[0])}f}"
            for number, value in zip(self.numbers, self.expected, strict=True)
        ]

    def holds(self) -> bool:
        """Is each number the expected one, rounded?"""
        return all(
            abs(value_of(number[0]) - value) <= 0.5 * 10.0 ** -decimals(number[0]) + 1e-9
            for number, value in zip(self.numbers, self.expected, strict=True)
        )

    def __str__(self) -> str:
        if self.expected is None:
            return f"{self.page}:{self.line}: {self.found} has no record yet ({self.source})"
        values = " ".join(self.rounded())
        return f"{self.page}:{self.line}: {self.found} should be {values} ({self.source})"


class UnknownSource(ValueError):
    """A comment names no source."""


def quotes_of(root: Path, page: Path, rows: list[dict], recipes: list[str]) -> Iterator[Quote]:
    """The quotes of a page. Raises UnknownSource with file and line.

    Args:
        root: the folder of the project.
        page: its path in `root`.
        rows: those of docs/results.json.
        recipes: all that it may have, measured or not.
    """
    text, end = (root / page).read_text(encoding="utf-8"), 0
    for mark in ANY_MARK.finditer(text):
        line = text.count("\n", 0, mark.start()) + 1
        try:
            parts = MARK.match(text, mark.start())
            if parts is None:
                raise UnknownSource("the comment must directly follow the figure, in one line")
            source, row, name = parts.groups()
            if source == "results.json":
                expected = recorded(rows, recipes, row, name)
            else:
                expected = tabulated(root / "docs" / source, row, name)
            begin = max(end, text.rfind("\n\n", 0, mark.start()))
            numbers = list(NUMBER.finditer(text, begin, mark.start()))
            if len(numbers) < len(expected or [0]):
                raise UnknownSource(f"{len(expected)} numbers should stand before the comment")
            numbers = numbers[-len(expected or [0]) :]
        except UnknownSource as error:
            raise UnknownSource(f"{page}:{line}: {error}: {mark[0]}") from None
        yield Quote(page, line, f"{source}: {row}: {name}", numbers, expected)
        end = mark.end()


def recorded(rows: list[dict], recipes: list[str], recipe: str, name: str) -> list[float] | None:
    """A field of a row of docs/results.json; None if it is not recorded yet."""
    if name not in FIELDS:
        raise UnknownSource(f"no field {name!r}; there are {'; '.join(FIELDS)}")
    if recipe not in recipes:
        raise UnknownSource(f"no recipe {recipe!r}")
    row = next((row for row in rows if row["recipe"] == recipe), {})
    try:
        values = FIELDS[name](row)
    except KeyError:
        return None
    return None if None in values else values


def tabulated(page: Path, row: str, column: str) -> list[float]:
    """The numbers in a cell of a page's table."""
    if not page.is_file():
        raise UnknownSource(f"no page {page.name}")
    found = []
    for head, *lines in tables(ANY_MARK.sub("", page.read_text(encoding="utf-8"))):
        if column in head:
            found += [c[head.index(column)] for c in lines if ", ".join(c).startswith(row)]
    if len(found) != 1:
        raise UnknownSource(f"{page.name} has {len(found)} rows {row!r} with {column!r}")
    return [value_of(text) for text in NUMBER.findall(found[0])]


def tables(text: str) -> Iterator[list[list[str]]]:
    """The tables of a page: the cells of the head and of each row."""
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()]
        yield [line for line in lines if not set("".join(line)) <= set("- :")]


def value_of(text: str) -> float:
    return float(text.replace(",", ""))


def decimals(text: str) -> int:
    return len(text.partition(".")[2])


def all_quotes(root: Path, rows: list[dict], recipes: list[str]) -> list[Quote]:
    """The quotes of all pages. Raises UnknownSource."""
    pages = [path for pattern in PAGES for path in sorted(root.glob(pattern))]
    return [
        quote for path in pages for quote in quotes_of(root, path.relative_to(root), rows, recipes)
    ]


def corrected(text: str, quotes: list[Quote]) -> str:
    """The text of a page with the numbers of its quotes replaced by the expected ones."""
    for quote in reversed(quotes):
        for number, value in reversed(list(zip(quote.numbers, quote.rounded(), strict=True))):
            text = text[: number.start()] + value + text[number.end() :]
    return text


def wrong_lines_of_card(root: Path, card: Path, row: dict) -> Iterator[str]:
    """The figures of a model card that are not those of its row, each with file and line."""
    lines = (root / card).read_text(encoding="utf-8").splitlines()
    report = {
        **({"prompt": row["prompt"]} if "prompt" in row else {}),
        **({"classifier": row["classifier"] | row["measures"]} if "measures" in row else {}),
        "two_sample": row.get("two_sample", {}),
        "copies": {"near_copies": row["near_copies"], "of_held_out": RARE},
        "num_images": 0,
        "compared_with": "",
    }
    steps = f"{row['updates']:,} training steps of "
    if not any(line.startswith(steps) for line in lines):
        yield f"{card}:1: should have {steps}... (results.json: {row['recipe']})"
    for expected in figures_table(report).splitlines()[2:]:
        if expected in lines:
            continue
        start = re.match(r"\| [^|]+ \||\D+", expected)[0]  # a cell, or a sentence up to its number
        found = [(i, line) for i, line in enumerate(lines, 1) if line.startswith(start)]
        line, text = found[0] if found else (1, "nothing")
        yield f"{card}:{line}: {text} should be {expected} (results.json: {row['recipe']})"
