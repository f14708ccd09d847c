"""The progress of a run next to that of measured runs."""

from collections.abc import Sequence
from typing import NamedTuple

from visuals.style import Figure, default_style

COLOURS = ("tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:olive", "tab:gray")


class Curve(NamedTuple):
    """Values over the number of items seen, with the ends of their spread, if measured."""

    label: str
    images: Sequence[float]
    values: Sequence[float]
    spread: Sequence[tuple[float, float]] = ()


class Progress(NamedTuple):
    """The curves of a run and of measured ones."""

    own: list[Curve]  # training loss, then the validation loss if there is one
    losses: list[Curve]  # training losses of measured runs
    quality: list[Curve]  # classifier-FID over its floor, of measured runs
    seen: float  # items that the run has seen
    planned: float | None  # items seen at its planned end, if that is later
    unit: str  # "images" or "points"


@default_style()
def draw_progress(progress: Progress, heading: str) -> Figure:
    """Draw the loss at the left, and the quality of measured runs, if any, at the right."""
    columns = 2 if progress.quality else 1
    figure = Figure(figsize=(6 * columns, 4.2), layout="constrained")
    left, *right = figure.subplots(1, columns, squeeze=False)[0]
    training, *held_out = progress.own
    for colour, curve in zip(COLOURS, progress.losses, strict=False):
        left.plot(curve.images, curve.values, color=colour, linewidth=1.2, label=curve.label)
    left.plot(training.images, training.values, color="tab:blue", label=training.label)
    for curve in held_out:
        left.plot(curve.images, curve.values, "o", color="tab:blue", label=curve.label)
    left.set(xscale="log", yscale="log", xlabel=f"{progress.unit} seen", title="training loss")
    for axes in right:
        for colour, curve in zip(COLOURS, progress.quality, strict=False):
            own = curve.label == training.label
            draw_quality(axes, curve, "tab:blue" if own else colour)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel=f"{progress.unit} seen")
        axes.set_title("classifier-FID over its floor (1: like real images)", fontsize=11)
        axes.axvline(progress.seen, color="tab:blue", label="this run, now")
        if progress.planned:
            axes.axvline(
                progress.planned, color="tab:blue", linestyle="--", label="its planned end"
            )
    for axes in (left, *right):
        axes.grid(alpha=0.25, which="both")
        axes.legend(frameon=False, fontsize=9)
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which("{x:.3g}")
        axes.tick_params(axis="y", which="minor", labelsize=8)
    figure.suptitle(heading, fontsize=11)
    return figure


def draw_quality(axes, curve: Curve, colour: str) -> None:
    """Draw a measured network: a point for each run, with its spread."""
    axes.plot(curve.images, curve.values, "o-", color=colour, markersize=4, label=curve.label)
    for images, (low, high) in zip(curve.images, curve.spread, strict=False):
        axes.plot([images, images], [low, high], color=colour, linewidth=2.5, alpha=0.5)
