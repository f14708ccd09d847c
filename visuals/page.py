"""Report pages: HTML files, from templates, that open without network or scripts."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import StrictUndefined, Template  # torch depends on it
from markupsafe import Markup  # and jinja2 on this

from utils import MARK
from visuals.pictures import gif, png

TEMPLATE = Path(__file__).with_name("report.html.j2")
STYLE = Path(__file__).with_name("page.css")  # of all pages
MAX_ENTRIES = 20  # of a list that is shown


class PagePicture(NamedTuple):
    """A picture of the page; several frames are an animation."""

    caption: str
    alt: str
    frames: Sequence[np.ndarray]  # (H, W, 3) uint8
    is_plot: bool = False  # has a dark background on a dark page

    def still(self) -> str:
        return data_uri("png", png(self.frames[-1]))

    def animation(self) -> str:
        return data_uri("gif", gif(self.frames))


def data_uri(kind: str, content: bytes) -> str:
    """An image file as a URI that holds its content."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def readable(value: object) -> str:
    """A value of a configuration as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        more = [f"and {len(value) - MAX_ENTRIES:,} more"] if len(value) > MAX_ENTRIES else []
        return ", ".join([*map(readable, value[:MAX_ENTRIES]), *more]) or "none"
    return "none" if value is None else str(value)


def render(**content: object) -> str:
    """The report of a run as HTML; the first lines of the template list the content."""
    return fill_in(TEMPLATE, **content)


def fill_in(template: Path, **content: object) -> str:
    """Fill in the template of a page, which escapes all text."""
    options = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    filled = Template(template.read_text(encoding="utf-8"), autoescape=True, **options)
    style = Markup(STYLE.read_text(encoding="utf-8").rstrip("\n"))  # not escaped
    return filled.render(readable=readable, generator=MARK, style=style, **content)
