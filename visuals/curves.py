"""Curves of a training run's metrics."""

from pathlib import Path

import numpy as np

from utils import matches_type
from visuals.pictures import pixels_of, save_figure
from visuals.style import Figure, default_style


def column(rows: list[dict], name: str) -> tuple[list[int], list[float]]:
    """The steps and values of the rows that have a number of this name."""
    found = [row for row in rows if matches_type(row.get(name), float)]
    return [row["step"] for row in found], [row[name] for row in found]


def running_average(average: float, value: float, count: int) -> float:
    """Update the running average of `count` values with one more; old values are forgotten."""
    keep = min(0.9, count / (count + 2))  # less at first, while the loss falls fast
    return keep * average + (1 - keep) * value


@default_style()
def plot_loss(rows: list[dict], path: Path) -> None:
    """Plot the loss, and the classifier-FID if measured, over the training steps."""
    steps, distances = column(rows, "classifier_fid")
    figure = Figure(figsize=(7, 7 if steps else 4), layout="constrained")
    axes, *below = figure.subplots(2 if steps else 1, squeeze=False)[:, 0]
    draw_loss(axes, rows)
    axes.set(xlabel="step", ylabel="loss", title="Training and validation loss")
    for lower in below:
        lower.plot(steps, distances, ".-", color="tab:green")
        lower.set(xlabel="step", yscale="log", title="classifier-FID of 2,000 images")
        lower.grid(alpha=0.25)
    save_figure(path, figure, dpi=110)


@default_style()
def draw_accuracies(accuracies: dict[float, float], what: str) -> np.ndarray:
    """A diagram (H, W, 3) of the accuracy of recognising `what`, over the noise level."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(accuracies), list(accuracies.values()), ".-")
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="noise level, sigma / alpha", ylabel="accuracy")
    axes.set_title(f"held-out images of which the {what} is recognised", fontsize=10)
    axes.grid(alpha=0.25)
    return pixels_of(figure)


def draw_loss(axes, rows: list[dict]) -> None:
    """Draw the loss, its running average and the validation loss into matplotlib axes."""
    steps, losses = column(rows, "loss")
    average, averages = 0.0, []
    for count, loss in enumerate(losses):
        average = running_average(average, loss, count)
        averages.append(average)
    axes.plot(
        steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="mean since the last point"
    )
    axes.plot(steps, averages, color="tab:blue", linewidth=1.8, label="running average")
    held_out = column(rows, "validation_loss")
    if held_out[0]:
        axes.plot(*held_out, ".-", color="tab:orange", label="held-out items")
    if losses:  # the first losses are near 1: without a limit they flatten the rest
        axes.set_ylim(0, min(max(losses), 3 * averages[-1]) * 1.05)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
