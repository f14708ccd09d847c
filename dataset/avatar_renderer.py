"""Render avatars: JSON from the standard input, bytes to the standard output.

`dataset.avatars` starts a process `python -m dataset.avatar_renderer` for each part of the data
set. These processes import neither torch nor the program that trains.
"""

import io
import json
import sys
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

import numpy as np


def render(definition: str, side: int, every: Iterable[dict]) -> Iterable[np.ndarray]:
    """A picture, uint8 (3, side, side), for each dict of DiceBear's options in `every`."""
    import resvg_py
    from dicebear import Avatar
    from PIL import Image

    for options in every:
        svg = Avatar(read_style(definition), options).to_string()
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        yield np.ascontiguousarray(pixels.transpose(2, 0, 1))


@cache
def read_style(definition: str):
    """A style of DiceBear, loaded once, because checking it against a schema takes two seconds."""
    from dicebear import Style

    text = files("dicebear_styles").joinpath(f"{definition}.json").read_text(encoding="utf-8")
    return Style(json.loads(text))


def main() -> None:
    """Render what the standard input asks for: {"definition", "side", "every"}."""
    request = json.load(sys.stdin)
    for pixels in render(request["definition"], request["side"], request["every"]):
        sys.stdout.buffer.write(pixels)


if __name__ == "__main__":
    main()
