"""Pictures of what a model draws: grids of images, scatter plots of points.

`ImagePictures` and `PointPictures` have the same methods, so that scripts need not ask which data
they have; `pictures_of` chooses.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from dataset.items import kind_of, to_uint8
from utils import save_whole

EXTENT = 3.0  # half the side of the square of the plane that is shown: pure noise fits in


ROWS = 8  # at most, of a filmstrip of images


class ImagePictures:
    """Images (N, C, H, W), as uint8 pixels."""

    def finished(self, x: Tensor) -> Tensor:
        """x_0 or x_t, floats, as what is shown and saved, on the CPU."""
        return to_uint8(x).cpu()

    def grid(self, images: Tensor, columns: int, real: Tensor | None = None) -> np.ndarray:
        """A picture (H', W', 3) of rows of images, with a row of real ones below a thin line."""
        picture = tiles(images, columns)
        if real is not None:
            line = torch.full_like(picture[:, :2], 255)
            row = torch.full_like(real[:1], 40).repeat(columns, 1, 1, 1)
            shown = real[:: max(1, len(real) // columns)][:columns]  # folders are sorted by class
            row[: len(shown)] = shown  # blank where there are too few
            picture = torch.cat([picture, line, tiles(row, columns)], dim=1)
        return picture.permute(1, 2, 0).numpy()

    def frame(self, images: Tensor, columns: int) -> np.ndarray:
        """A picture of one moment of a walk."""
        return self.grid(images, columns)

    def filmstrip(self, moments: Sequence[Tensor]) -> np.ndarray:
        """A picture with a column for each moment, of the first few images."""
        columns = torch.stack([images[:ROWS] for images in moments], dim=1)
        return self.grid(columns.flatten(0, 1), len(moments))  # from (rows, moments, C, H, W)

    def comparison(self, named: dict[str, Tensor]) -> Figure:
        """A figure with a row of images for each name, which stands to its left."""
        columns = max(map(len, named.values()))
        figure = Figure(figsize=(1.4 + 0.72 * columns, 0.8 * len(named)), layout="compressed")
        all_axes = figure.subplots(len(named), squeeze=False)[:, 0]
        for axes, (name, images) in zip(all_axes, named.items(), strict=True):
            axes.imshow(self.frame(images, columns))
            axes.axis("off")
            axes.text(-0.01, 0.5, name, transform=axes.transAxes, ha="right", va="center")
        return figure

    def array(self, images: Tensor) -> np.ndarray:
        """(N, H, W, C), the form that FID tools read."""
        return images.permute(0, 2, 3, 1).numpy()


class PointPictures:
    """Points (N, 2) in the plane."""

    def finished(self, x: Tensor) -> Tensor:
        """x_0 or x_t on the CPU: points are saved as they are."""
        return x.float().cpu()

    def grid(self, points: Tensor, columns: int, real: Tensor | None = None) -> np.ndarray:
        """A picture (H', W', 3): the data, if given, the points, and their density.

        `columns` is of no use here.
        """
        panels = 2 if real is None else 3
        figure = Figure(figsize=(3.2 * panels, 3.4), layout="constrained")
        *scatters, density = figure.subplots(1, panels)
        named = [("samples", points)] if real is None else [("data", real), ("samples", points)]
        for axes, (title, shown) in zip(scatters, named, strict=True):
            scatter(axes, shown[: len(points)], title)
        x, y = points.T.numpy()
        density.hist2d(x, y, bins=60, range=[[-EXTENT, EXTENT]] * 2, cmap="magma")
        frame(density, "density of the samples")
        return picture_of(figure)

    def frame(self, points: Tensor, columns: int) -> np.ndarray:
        """A picture of one moment of a walk; `columns` is of no use here."""
        figure = Figure(figsize=(3.2, 3.2), layout="constrained")
        scatter(figure.subplots(), points)
        return picture_of(figure)

    def filmstrip(self, moments: Sequence[Tensor]) -> np.ndarray:
        """A picture with a scatter plot for each moment, side by side."""
        figure = Figure(figsize=(1.6 * len(moments), 1.6), layout="constrained")
        all_axes = figure.subplots(1, len(moments), squeeze=False)[0]
        for axes, points in zip(all_axes, moments, strict=True):
            scatter(axes, points)
        return picture_of(figure)

    def comparison(self, named: dict[str, Tensor]) -> Figure:
        """A figure with a scatter plot for each name, which stands above it."""
        columns = min(5, len(named))
        rows = math.ceil(len(named) / columns)
        figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (name, points) in zip(all_axes, named.items(), strict=False):
            scatter(axes, points, name)
        for axes in all_axes[len(named) :]:
            axes.axis("off")
        return figure

    def array(self, points: Tensor) -> np.ndarray:
        """(N, 2)."""
        return points.numpy()


def pictures_of(shape: Sequence[int]) -> ImagePictures | PointPictures:
    """Those for items of that shape."""
    return PointPictures() if kind_of(shape) == "points" else ImagePictures()


def enlarged(images: Tensor, to: int = 56) -> Tensor:
    """uint8 images with each pixel repeated, so that small ones can be read on a screen."""
    return F.interpolate(images, scale_factor=max(1, round(to / images.shape[-1])), mode="nearest")


def tiles(images: Tensor, columns: int) -> Tensor:
    """uint8 images (N, C, H, W) in rows of `columns`: (3, H', W')."""
    from torchvision.utils import make_grid

    if len(images) == 1:  # make_grid would leave out the padding
        return F.pad(enlarged(images)[0].expand(3, -1, -1), (2, 2, 2, 2), value=40)
    return make_grid(enlarged(images), nrow=columns, padding=2, pad_value=40)


def square(count: int) -> int:
    """The number of columns that makes a grid of so many images about square."""
    return math.ceil(math.sqrt(count))


def scatter(axes, points: Tensor, title: str = "") -> None:
    """Draw points (N, 2) into matplotlib axes; the more there are, the smaller."""
    x, y = points.T.numpy()
    size = min(8.0, 4000 / max(1, len(points)))
    axes.scatter(x, y, s=size, linewidths=0, alpha=0.6, color="tab:blue")
    frame(axes, title)


def frame(axes, title: str) -> None:
    """The same square of the plane for all plots, without ticks."""
    axes.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=10)


def picture_of(figure: Figure) -> np.ndarray:
    """A figure as a picture (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[:, :, :3]


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8 in the format of the path's ending."""
    from PIL import Image

    path = Path(path)
    save_whole(
        path, lambda partial: Image.fromarray(picture).save(partial, format=image_format(path))
    )


def save_animation(path: Path, pictures: Sequence[np.ndarray], milliseconds: int = 60) -> None:
    """Write pictures (H, W, 3) uint8 as a GIF that repeats and rests on its last picture."""
    content = gif(pictures, milliseconds)
    save_whole(path, lambda partial: partial.write_bytes(content))


def gif(pictures: Sequence[np.ndarray], milliseconds: int = 60) -> bytes:
    """The content of that GIF."""
    from PIL import Image

    first, *rest = [Image.fromarray(picture).quantize(64) for picture in pictures]
    times = [milliseconds] * len(rest) + [1500]
    content = io.BytesIO()
    first.save(content, format="GIF", save_all=True, append_images=rest, duration=times, loop=0)
    return content.getvalue()


def png(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as the content of a PNG."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG", optimize=True)
    return content.getvalue()


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure in the format of the path's ending."""
    save_whole(
        path, lambda partial: figure.savefig(partial, dpi=130, format=image_format(path).lower())
    )


def image_format(path: Path) -> str:
    """The image format that a path's ending names.

    Raises ValueError for one that is not an image's.
    """
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path}: cannot write a picture of that ending; use {', '.join(formats)}")
    return formats[path.suffix.lower()]
