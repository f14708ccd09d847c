"""Figure of cross-attention: for each word, where a network looks, at several timesteps."""

from collections.abc import Sequence

from torch import Tensor

from visuals.pictures import pictures_of
from visuals.style import Figure, default_style

SIZE = 0.95  # inches of a picture


@default_style()
def draw_attention(
    words: Sequence[str], rows: Sequence[tuple[str, Tensor, Tensor]], heading: str
) -> Figure:
    """Draw a row for each timestep: its name, the predicted x_0 and a map of each word.

    Args:
        words: of the prompt, one a column.
        rows: (name, x_0 (C, H, W), maps (words, H, W)).
        heading: above the figure.
    """
    columns = len(words) + 1
    figure = Figure(figsize=(SIZE * columns + 0.6, SIZE * len(rows) + 0.8), layout="constrained")
    figure.suptitle(heading, fontsize=10, parse_math=False)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    brightest = max(float(maps[1:].max()) for _, _, maps in rows)  # the caption's own is often 1
    for line, (name, x_0, maps) in zip(axes, rows, strict=True):
        pictures = pictures_of(x_0.shape)
        image = pictures.pixels(pictures.to_items(x_0[None]))[0].expand(3, -1, -1)
        line[0].imshow(image.permute(1, 2, 0).numpy())
        line[0].set_ylabel(name, fontsize=8)
        for panel, each in zip(line[1:], maps, strict=True):
            panel.imshow(image.float().mean(dim=0).numpy(), cmap="gray", vmin=0, vmax=255)
            panel.imshow(each.numpy(), cmap="inferno", alpha=0.75, vmin=0, vmax=brightest)
        for panel in line:
            panel.set_xticks([])
            panel.set_yticks([])
    for panel, word in zip(axes[0], ["predicted x_0", *words], strict=True):
        panel.set_title(word, fontsize=8, parse_math=False)
    return figure
