"""matplotlib in its default style, whatever settings the user has. Other modules import it here."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# matplotlib cannot be imported if MPLBACKEND, which notebooks pass on to commands, names a backend
# that is not installed. Nothing here needs one.
BACKEND = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
import matplotlib  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

if BACKEND is not None:
    os.environ["MPLBACKEND"] = BACKEND
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = BACKEND

__all__ = ["Figure", "FigureCanvasAgg", "default_style"]


@contextmanager
def default_style() -> Iterator[None]:
    """While open, or in a function that this decorates, figures have matplotlib's default style.

    A `matplotlibrc` or a notebook may ask for LaTeX or for fonts that are not installed.
    """
    settings = matplotlib.rcParamsDefault.items()
    with matplotlib.rc_context({k: v for k, v in settings if not k.startswith("backend")}):
        yield
