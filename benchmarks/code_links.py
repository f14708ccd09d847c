"""Links from pages to lines of code: each shows the text of the line that it leads to.

    [`log_snr = 2 * alpha.log()`](../../diffusion.py#L125)

The text in backticks must be part of that line. If the line has moved, update the numbers:

    python benchmarks/code_links.py
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[`([^`]+)`\]\(([^()\s#]+\.py)#L(\d+)\)")
ANY_LINK = re.compile(r"\]\([^()\s#]+\.py#[^()]*\)")
PAGES = ("docs/guide/*.md",)


class CodeLink(NamedTuple):
    """A link of a page to a line of a source file."""

    page: Path
    text: str  # in backticks: a part of the line
    target: str  # path of the source, relative to the page
    number: int  # of the line, from 1

    def lines(self) -> list[int]:
        """The numbers of all lines that contain the text."""
        source = (self.page.parent / self.target).read_text(encoding="utf-8").splitlines()
        return [number for number, line in enumerate(source, 1) if self.text in line]

    def nearest(self) -> int | None:
        """The line with the text that is nearest to the present number; None if none has it."""
        return min(self.lines(), key=lambda line: abs(line - self.number), default=None)

    def problem(self) -> str | None:
        """What is wrong with the link, and where it should lead; None if nothing is."""
        place = f"{self.page.name}: `{self.text}` is not line {self.number} of {self.target}"
        if (line := self.nearest()) is None:
            return f"{place}, nor any other line: change the text of the link"
        if line != self.number:
            return f"{place} but line {line}: run python benchmarks/code_links.py"
        return None


def links_of(page: Path) -> Iterator[CodeLink]:
    """The links of a page to lines of code."""
    for text, target, number in LINK.findall(page.read_text(encoding="utf-8")):
        yield CodeLink(page, text, target, int(number))


def renumbered(page: Path) -> str:
    """The text of a page with the line numbers of today; links without a line stay."""

    def replace(found: re.Match) -> str:
        link = CodeLink(page, found[1], found[2], int(found[3]))
        line = link.nearest() or link.number
        return f"[`{link.text}`]({link.target}#L{line})"

    return LINK.sub(replace, page.read_text(encoding="utf-8"))


def main() -> int:
    """Update the line numbers of all pages, and print the links that need another text."""
    problems = []
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            if (text := renumbered(page)) != page.read_text(encoding="utf-8"):
                page.write_text(text, encoding="utf-8")
                print(f"{page.relative_to(ROOT)}: line numbers updated")
            problems += [link.problem() for link in links_of(page) if link.problem()]
    print("\n".join(problems), end="\n" if problems else "")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
