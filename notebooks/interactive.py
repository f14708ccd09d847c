"""A slider for the notebooks, with ipywidgets; without it, the picture at the slider's default."""

import os
from collections.abc import Callable, Sequence

from IPython.display import display


def slider(
    function: Callable[[float], object],
    values: Sequence[float],
    default: float,
    name: str = "value",
) -> None:
    """Show what a function draws, with a slider over the values of its argument.

    A static picture, that of `default`, is shown where ipywidgets is not installed, and where the
    environment has TINY_DIFFUSION_STATIC: a saved notebook cannot show a slider.

    Args:
        function: of one value. It returns what is to be displayed, or displays it and returns None.
        values: positions of the slider, in order.
        default: the first position, one of `values`.
        name: label of the slider.

    Raises:
        ValueError: `default` is not one of `values`.
    """
    if default not in values:
        raise ValueError(f"the default {default} is not one of the values of the slider")

    def show(value: float) -> None:
        shown = function(value)
        if shown is not None:
            display(shown)

    try:
        import ipywidgets
    except ImportError:
        ipywidgets = None
    if ipywidgets is None or "TINY_DIFFUSION_STATIC" in os.environ:
        show(default)
        return
    control = ipywidgets.SelectionSlider(
        options=list(values),
        value=default,
        description=name,
        continuous_update=False,  # a picture may take a second
    )
    output = ipywidgets.interactive_output(show, {"value": control})
    display(ipywidgets.VBox([control, output]))
