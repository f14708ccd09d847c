"""Figures of the forward process: data fading into noise, and the noise schedules."""

from collections.abc import Sequence

from torch import Tensor

from dataset.items import kind_of, to_uint8
from visuals.pictures import scatter
from visuals.style import Figure, default_style


@default_style()
def draw_noising(
    columns: Sequence[Tensor], timesteps: Sequence[int], log_snr: Tensor, heading: str
) -> Figure:
    """Draw x_t, images (N, C, H, W) or points (N, 2), and its SNR: a column for each timestep."""
    points = kind_of(columns[0].shape[1:]) == "points"
    rows, width = (1, 1.6) if points else (len(columns[0]), 1.15)
    height = width if points else width * columns[0].shape[2] / columns[0].shape[3]
    figure = Figure(figsize=(width * len(columns), height * rows + 0.9), layout="constrained")
    figure.suptitle(heading, fontsize=11)
    all_axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, t, x_t in zip(all_axes.T, timesteps, columns, strict=True):
        title = f"t = {t}\nSNR {log_snr[t].exp().item():.2g}"
        if points:
            scatter(column[0], x_t, title)
            continue
        column[0].set_title(title, fontsize=9)
        for axes, image in zip(column, to_uint8(x_t).permute(0, 2, 3, 1), strict=True):
            axes.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
            axes.axis("off")
    return figure


@default_style()
def draw_schedules(log_snr: dict[str, Tensor], highlighted: str) -> Figure:
    """Draw alphas_cumprod and log-SNR (T,) over t, one line for each schedule, one of them thicker.

    For schedules that are not variance-preserving, alphas_cumprod is alpha^2 / (alpha^2 + sigma^2).
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in log_snr.items():
        width = 2.5 if name == highlighted else 1.2
        left.plot(values.sigmoid().numpy(), label=name, linewidth=width)
        right.plot(values.numpy(), label=name, linewidth=width)
    left.set(xlabel="t", ylabel="alphas_cumprod", title="signal that is left")
    right.set(xlabel="t", ylabel="log SNR", title="log signal-to-noise ratio")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return figure
