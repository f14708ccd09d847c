"""The classes that a user names, and how they are shown."""

import csv
import difflib
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from dataset.image_files import printable

SHOWN = 20  # classes in a message, at most
MAX_DIGITS = 15  # of a number that a class name or an index may be


class ClassNames:
    """The names of the classes of a checkpoint, and how they may be spelled.

    A name wins over an index: of the classes "1", "2" and "10", 10 is the last, and 0 the first.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names
        spellings: tuple[Callable, ...] = (str, folded, number)  # the first that fits decides
        self.spellings = [(spell, by_spelling(names, spell)) for spell in spellings]
        self.most_parts = max((name.count(",") for name in names), default=0) + 1

    def indices(self, text: str) -> list[int]:
        """The classes that a text names: one, several separated by commas, or `all`.

        Names may contain commas: the longest name that fits is taken. Quoted parts ("a","b") are
        never split. Raises ValueError for an unknown class and for an ambiguous spelling.
        """
        if text in self.names:
            return [self.names.index(text)]
        if folded(text) == "all" and not self.named(text):
            return list(range(len(self.names)))
        if '"' in text:
            return [self.index(part) for part in quoted_parts(text)]
        parts, found = text.split(","), []
        while parts:
            lengths = range(min(self.most_parts, len(parts)), 1, -1)
            length = next((n for n in lengths if self.named(",".join(parts[:n]))), 1)
            found.append(self.index(",".join(parts[:length])))
            parts = parts[length:]
        return found

    def index(self, text: str) -> int:
        """The class of a name, or else of an index. Raises ValueError if there is none."""
        found = self.named(text)
        if len(found) > 1:
            raise ValueError(f"{printable(text)!r} could be {self.shown(found)}")
        if found:
            return found[0]
        index = number(text)
        if index is None or index >= len(self.names):
            names = {folded(name): name for name in self.names}
            close = index is None and difflib.get_close_matches(folded(text), names, n=1)
            hint = f"did you mean {printable(names[close[0]])!r}? The" if close else "the"
            every = self.shown(range(len(self.names)))
            raise ValueError(
                f"there is no class {printable(text[:60])!r}; {hint} classes are {every}"
            )
        return index

    def named(self, text: str) -> list[int]:
        """The classes that have this name, in the closest spelling that any of them has."""
        for spell, names in self.spellings:
            if (spelled := spell(text)) in names:
                return names[spelled]
        return []

    def shown(self, indices: Iterable[int]) -> str:
        """Classes with index and name, such as "0 cat, 1 dog"; at most `SHOWN`."""
        indices = list(indices)
        shown = [self.label(i) for i in indices[:SHOWN]]
        more = len(indices) - len(shown)
        return ", ".join(shown) + (f" and {more:,} more (--list-classes)" if more else "")

    def drawn(self, indices: Sequence[int]) -> str:
        """The classes that are drawn, in words: "class 3: cat", "classes: 3 cat, 5 dog"."""
        if len(indices) > 1:
            return f"classes: {self.shown(indices)}"
        return "class " + self.label(indices[0], ": ")

    def label(self, index: int, between: str = " ") -> str:
        """A class with index and name; only the index if that is the name."""
        name = self.names[index]
        return name if name == str(index) else f"{index}{between}{printable(name)}"


def folded(text: str) -> str:
    """A name normalized for comparison: in case, surrounding blanks and composed letters."""
    return unicodedata.normalize("NFC", text).strip().casefold()


def number(text: str) -> int | None:
    """The number that a text spells, also with leading zeros; None for any other text."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None


def by_spelling(names: Sequence[str], spell: Callable) -> dict[object, list[int]]:
    """The indices of the names, by their spelling; those that cannot be spelled are left out."""
    found: dict[object, list[int]] = {}
    for index, name in enumerate(names):
        if (spelled := spell(name)) is not None:
            found.setdefault(spelled, []).append(index)
    return found


def quoted_parts(text: str) -> list[str]:
    """Split a text at the commas outside double quotes. Raises ValueError if it cannot be read."""
    try:
        return next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise ValueError(f"{printable(text)!r}: {error}") from None
