"""One HTML page that holds all it shows: it opens without a network, and runs no script.

The functions take plain text, which they escape, and return HTML; what they call parts is HTML.
"""

import base64
from collections.abc import Mapping
from html import escape
from string import Template

import numpy as np

from visuals.pictures import gif, png

SHOWN = 20  # entries of a list, at most


def document(title: str, summary: str, *parts: str) -> str:
    """The whole page."""
    return PAGE.substitute(title=escape(title), summary=escape(summary), body="".join(parts))


def section(title: str, *parts: str) -> str:
    """Parts under a heading; nothing, if they are empty."""
    body = "".join(parts)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}</section>\n" if body else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def notes(lines: list[str]) -> str:
    """What the reader should know first."""
    items = "".join(f"<li>{escape(line)}</li>\n" for line in lines)
    return f'<ul class="notes">\n{items}</ul>\n' if items else ""


def commands(lines: list[str]) -> str:
    """Lines to copy into a terminal."""
    text = escape("\n".join(lines))
    return f'<pre tabindex="0"><code>{text}</code></pre>\n' if text else ""


def rows(*parts: str) -> str:
    """Figures below one another, with their captions at the left."""
    return f'<div class="rows">\n{"".join(parts)}</div>\n' if parts else ""


def cards(*parts: str, small: bool = False) -> str:
    """Figures or tables beside one another, as many as there is room for."""
    size = " small" if small else ""
    return f'<div class="cards{size}">\n{"".join(parts)}</div>\n' if parts else ""


def table(caption: str, values: Mapping[str, object]) -> str:
    """Names and values."""
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(readable(value))}</td></tr>\n'
        for name, value in values.items()
    )
    title = f"<caption>{escape(caption)}</caption>\n" if caption else ""
    return f"<table>\n{title}{lines}</table>\n"


def readable(value: object) -> str:
    """A value of a configuration as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        more = [f"and {len(value) - SHOWN:,} more"] if len(value) > SHOWN else []
        return ", ".join([*map(readable, value[:SHOWN]), *more]) or "none"
    return "none" if value is None else str(value)


def figure(caption: str, alt: str, *moments: np.ndarray, plot: bool = False) -> str:
    """A picture (H, W, 3) uint8 with its caption; of several, an animation.

    Who has asked for less motion sees the last of them. A plot has a dark background on a dark
    page.
    """
    still = f"data:image/png;base64,{base64.b64encode(png(moments[-1])).decode()}"
    shown, otherwise = still, ""
    if len(moments) > 1:
        shown = f"data:image/gif;base64,{base64.b64encode(gif(moments)).decode()}"
        otherwise = f'<source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
    height, width, _ = moments[-1].shape
    kind = ' class="plot"' if plot else ""
    return (
        f"<figure{kind}>\n<figcaption>{escape(caption)}</figcaption>\n<picture>{otherwise}"
        f'<img src="{shown}" alt="{escape(alt)}" width="{width}" height="{height}"></picture>\n'
        "</figure>\n"
    )


PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --page: #fff; --card: #f5f6f8; --line: #dde1e6;
        --text: #1f2328; --soft: #59636e; --note: #9a6700; }
@media (prefers-color-scheme: dark) {
  :root { --page: #1a1a1a; --card: #252525; --line: #3a3a3a; --text: #e6e6e6; --soft: #a3a3a3;
          --note: #d9a62e; }
  .plot img { filter: invert(0.9) hue-rotate(180deg); }  /* white becomes #1a1a1a */
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1rem 4rem; background: var(--page);
       color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 1rem; padding-bottom: 0.25rem; border-bottom: 1px solid var(--line);
     font-size: 1.2rem; }
header p, figcaption, th { color: var(--soft); }
figure { margin: 0; }
figcaption { margin-bottom: 0.25rem; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.rows figure { display: grid; grid-template-columns: 10rem 1fr; align-items: center;
               margin-bottom: 0.5rem; }
.cards { display: grid; gap: 1.5rem;
         grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.small { gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.cards img { width: 100%; }
.notes { margin: 1.5rem 0; padding: 0.75rem 1rem 0.75rem 2rem; background: var(--card);
         border-left: 4px solid var(--note); border-radius: 4px; }
table { align-self: start; width: 100%; max-width: 40rem; border-collapse: collapse;
        font-size: 0.9rem; }
caption { padding: 0.25rem 0; font-weight: 600; text-align: left; }
th, td { padding: 0.25rem 0.5rem 0.25rem 0; border-bottom: 1px solid var(--line);
         font-weight: 400; text-align: left; vertical-align: top; }
th { width: 11rem; }
pre { margin: 0; padding: 0.75rem 1rem; overflow-x: auto; background: var(--card);
      border-radius: 4px; font-size: 0.9rem; }
@media (max-width: 40rem) { .rows figure { display: block; margin-bottom: 1rem; } }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>$summary</p>
</header>
<main>
$body</main>
</body>
</html>
""")
