"""Pictures of images and points: grids, scatter plots, animations.

`ImagePictures` and `PointPictures` have the same methods; `pictures_of` chooses between them.
"""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.items import kind_of, to_uint8
from utils import MARK, save_whole
from visuals.style import Figure, FigureCanvasAgg, default_style

EXTENT = 3.0  # plots of points show [-EXTENT, EXTENT] of both coordinates: pure noise fits in
DIFFERENCE = 4  # factor by which differences of images are amplified
DECODED = 16  # images that are decoded from latents at once, so that memory stays small
LINE = 2  # pixels between the images of a grid
BLANK = 40  # grey level of these lines, and of places without an image
FONT_SIZE, LINE_HEIGHT = 11, 14  # pixels, of captions
FILMSTRIP_ROWS = 8  # at most, of images
LARGEST = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535}  # pixels of a side; a PNG has no limit


class ImagePictures:
    """Pictures of images (N, C, H, W): uint8, or floats in `value_range` (low, high).

    `decode` maps x_0 or x_t to images in [-1, 1], if they are latents.
    """

    def __init__(
        self,
        value_range: Sequence[float] | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
    ):
        self.value_range, self.decode = value_range, decode

    def to_items(self, x: Tensor) -> Tensor:
        """Convert x_0 or x_t, floats in [-1, 1], to images in the data's format, on the CPU."""
        if self.decode is not None:
            x = torch.cat([self.decode(part) for part in x.split(DECODED)])
        if self.value_range is None:
            return to_uint8(x).cpu()
        low, high = self.value_range
        return (x.float().clamp(-1, 1).cpu() + 1) / 2 * (high - low) + low

    def pixels(self, images: Tensor) -> Tensor:
        """Images as uint8, grey or in colour; of other numbers of channels, only the first."""
        if self.value_range is not None:
            low, high = self.value_range
            images = to_uint8((images - low) / (high - low) * 2 - 1)
        return images if images.shape[1] in (1, 3) else images[:, :1]

    def grid(
        self,
        images: Tensor,
        columns: int,
        real: Tensor | None = None,
        captions: Sequence[str] = (),
    ) -> np.ndarray:
        """A picture (H', W', 3): rows of images; below a thin line, a row of real images.

        Row i has caption i below it, and captions repeat. A single caption is below all rows.
        """
        picture = tiles(self.pixels(images), columns)
        if len(captions) == 1:  # of all rows
            picture = torch.cat([picture, strip(captions[0], picture.shape[2])], dim=1)
        elif captions:
            width, parts = picture.shape[2], []
            for i, row in enumerate(self.pixels(images).split(columns)):
                tiled = tiles(row, columns)
                parts.append(F.pad(tiled, (0, width - tiled.shape[2])))
                parts.append(strip(captions[i % len(captions)], width))
            picture = torch.cat(parts, dim=1)
        if real is not None:
            line = torch.full_like(picture[:, :2], 255)
            # Folders are sorted by class, so the row is taken evenly from all of the data.
            shown = self.pixels(real[:: max(1, len(real) // columns)][:columns])
            row = torch.full_like(shown[:1], BLANK).repeat(columns, 1, 1, 1)
            row[: len(shown)] = shown  # the rest stays blank
            picture = torch.cat([picture, line, tiles(row, columns)], dim=1)
        return picture.permute(1, 2, 0).numpy()

    def parts(
        self, picture: np.ndarray, shape: Sequence[int], captions: Sequence[str] = ()
    ) -> tuple[Tensor, Tensor]:
        """The inverse of `grid` with `real` images: uint8 samples and real images (N, C, H, W).

        Of images with other numbers of channels than 1 and 3, only the first channel is recovered.
        Raises ValueError for a picture of another layout.
        """
        factor, pixels = factor_of(shape), torch.from_numpy(picture).permute(2, 0, 1)
        height, width = (side * factor + LINE for side in shape[1:])
        columns, rest = divmod(pixels.shape[2] - LINE, width)
        end = pixels.shape[1] - (height + LINE) - LINE  # of the samples: a white line follows
        if rest or columns < 1 or end < height or int(pixels[:, end : end + LINE].min()) != 255:
            raise ValueError(f"a picture of {picture.shape} is no grid of images of {tuple(shape)}")
        strips = [strip(caption, pixels.shape[2]).shape[1] for caption in captions]
        tops, top = [], 0
        if len(strips) == 1:
            end -= strips.pop()
        while top + height <= end:
            tops.append(top)
            top += height + (LINE + strips[(len(tops) - 1) % len(strips)] if strips else 0)

        def row(top: int) -> Tensor:
            found = pixels[:, top + LINE : top + height, : columns * width]
            found = found.unflatten(2, (columns, width))[..., LINE::factor][:, ::factor]
            return found.permute(2, 0, 1, 3)[:, : 3 if shape[0] == 3 else 1]

        real = row(pixels.shape[1] - (height + LINE))
        blank = (real == BLANK).flatten(1).all(dim=1)  # there were fewer than columns
        return torch.cat([row(top) for top in tops]), real[~blank]

    def size(self, shape: Sequence[int], count: int, columns: int) -> tuple[int, int]:
        """Height and width of the grid of `count` images of a shape (C, H, W)."""
        height, width = (side * factor_of(shape) + LINE for side in shape[1:])
        rows = math.ceil(count / columns)
        return rows * height + LINE, min(columns, count) * width + LINE

    def frame(self, images: Tensor, columns: int) -> np.ndarray:
        """A frame of an animation (H', W', 3)."""
        return self.grid(images, columns)

    def filmstrip(self, moments: Sequence[Tensor]) -> np.ndarray:
        """A picture (H', W', 3) of the first few images, with a column for each moment."""
        columns = torch.stack([images[:FILMSTRIP_ROWS] for images in moments], dim=1)
        return self.grid(columns.flatten(0, 1), len(moments))  # from (rows, moments, C, H, W)

    @default_style()
    def comparison(self, named: dict[str, Tensor]) -> Figure:
        """A figure with a row of images for each name; the name is at the left."""
        columns = max(map(len, named.values()))
        height, width = next(iter(named.values())).shape[2:]
        row = 0.08 + 0.72 * height / width
        figure = Figure(figsize=(1.4 + 0.72 * columns, row * len(named)), layout="compressed")
        all_axes = figure.subplots(len(named), squeeze=False)[:, 0]
        for axes, (name, images) in zip(all_axes, named.items(), strict=True):
            axes.imshow(self.grid(images, columns))
            axes.axis("off")
            axes.text(-0.01, 0.5, name, transform=axes.transAxes, ha="right", va="center")
        return figure

    def array(self, images: Tensor) -> np.ndarray:
        """An array (N, H, W, C), as FID tools read it."""
        return images.permute(0, 2, 3, 1).numpy()


class PointPictures:
    """Pictures of points (N, D): their first two coordinates."""

    def to_items(self, x: Tensor) -> Tensor:
        """Convert x_0 or x_t to float32 points on the CPU."""
        return x.float().cpu()

    @default_style()
    def grid(
        self,
        points: Tensor,
        columns: int,
        real: Tensor | None = None,
        captions: Sequence[str] = (),
    ) -> np.ndarray:
        """A picture (H', W', 3): the real points, if given, the points, and their density."""
        named = {"samples": points} if real is None else {"data": real, "samples": points}
        panels = len(named) + 1
        figure = Figure(figsize=(3.2 * panels, 3.4), layout="constrained")
        *scatters, density = figure.subplots(1, panels)
        for axes, (title, shown) in zip(scatters, named.items(), strict=True):
            scatter(axes, shown[: len(points)], title)
        x, y = plane(points)
        density.hist2d(x, y, bins=60, range=[[-EXTENT, EXTENT]] * 2, cmap="magma")
        format_axes(density, "density of the samples")
        return pixels_of(figure)

    def size(self, shape: Sequence[int], count: int, columns: int) -> tuple[int, int]:
        """Height and width of the largest picture of points, which does not grow with them."""
        return 340, 960

    @default_style()
    def frame(self, points: Tensor, columns: int) -> np.ndarray:
        """A frame of an animation (H', W', 3); `columns` is ignored."""
        figure = Figure(figsize=(3.2, 3.2), layout="constrained")
        scatter(figure.subplots(), points)
        return pixels_of(figure)

    @default_style()
    def filmstrip(self, moments: Sequence[Tensor]) -> np.ndarray:
        """A picture (H', W', 3) with a scatter plot for each moment, from left to right."""
        figure = Figure(figsize=(1.6 * len(moments), 1.6), layout="constrained")
        all_axes = figure.subplots(1, len(moments), squeeze=False)[0]
        for axes, points in zip(all_axes, moments, strict=True):
            scatter(axes, points)
        return pixels_of(figure)

    @default_style()
    def comparison(self, named: dict[str, Tensor]) -> Figure:
        """A figure with a scatter plot for each name; the name is the title."""
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
        return points.numpy()


def pictures_of(
    shape: Sequence[int],
    value_range: Sequence[float] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> ImagePictures | PointPictures:
    """The class of pictures for items of a shape; for the other arguments see `ImagePictures`."""
    return PointPictures() if kind_of(shape) == "points" else ImagePictures(value_range, decode)


def compared(x_0: Tensor, reconstructed: Tensor) -> np.ndarray:
    """Images (N, C, H, W) in [-1, 1], their reconstructions, and the absolute differences.

    Three rows in a picture (H', W', 3); differences are amplified by the factor DIFFERENCE.
    """
    difference = (reconstructed.clamp(-1, 1) - x_0).abs() * DIFFERENCE - 1
    return stacked(x_0, reconstructed, difference)


def stacked(*rows: Tensor) -> np.ndarray:
    """A picture (H', W', 3) with a row for each batch of images (N, C, H, W) in [-1, 1].

    Smaller images are enlarged to the size of the largest, by nearest pixels.
    """
    size = max(tuple(row.shape[2:]) for row in rows)
    rows = [row if row.shape[2:] == size else F.interpolate(row, size) for row in rows]
    return ImagePictures().grid(to_uint8(torch.cat(rows)).cpu(), len(rows[0]))


def tiles(images: Tensor, columns: int) -> Tensor:
    """uint8 images (N, C, H, W) in rows of `columns`, with thin lines between them: (3, H', W')."""
    images = enlarged(images).expand(-1, 3, -1, -1)
    height, width = (side + LINE for side in images.shape[2:])
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    picture = images.new_full((3, rows * height + LINE, columns * width + LINE), BLANK)
    for i, image in enumerate(images):
        top, left = LINE + i // columns * height, LINE + i % columns * width
        picture[:, top : top + height - LINE, left : left + width - LINE] = image
    return picture


def strip(caption: str, width: int) -> Tensor:
    """A caption as a picture (3, H', width) uint8, with line breaks."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_SIZE)
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        fits = font.getlength(longer) <= width - 2 * LINE
        lines = [*lines[:-1], longer] if fits or not lines[-1] else [*lines, word]
    height = len(lines) * LINE_HEIGHT + 2 * LINE
    image = Image.new("RGB", (width, height), (40, 40, 40))
    ImageDraw.Draw(image).text((LINE, LINE), "\n".join(lines), (230, 230, 230), font, spacing=2)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def enlarged(images: Tensor, size: int = 56) -> Tensor:
    """Repeat the pixels of small uint8 images, up to about `size` of them on the larger side."""
    return F.interpolate(images, scale_factor=factor_of(images.shape[1:], size), mode="nearest")


def factor_of(shape: Sequence[int], size: int = 56) -> int:
    """The factor that enlarges images (C, H, W) to about `size` pixels on the larger side."""
    return max(1, round(size / max(shape[1:])))


def square(count: int) -> int:
    """The number of columns of a nearly square grid of `count` images."""
    return math.ceil(math.sqrt(count))


def plane(points: Tensor) -> np.ndarray:
    """The first two coordinates (2, N) of points (N, D); a missing second one is 0."""
    return F.pad(points, (0, max(0, 2 - points.shape[1])))[:, :2].T.numpy()


def scatter(axes, points: Tensor, title: str = "") -> None:
    """Draw points (N, 2) into matplotlib axes; many points are drawn smaller than few."""
    x, y = plane(points)
    size = min(8.0, 4000 / max(1, len(points)))
    axes.scatter(x, y, s=size, linewidths=0, alpha=0.6, color="tab:blue")
    format_axes(axes, title)


def format_axes(axes, title: str) -> None:
    """Give axes a title and, without ticks, the same square of the plane as all others."""
    axes.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=10)


# --- files ---------------------------------------------------------------------------------------


def pixels_of(figure: Figure) -> np.ndarray:
    """Render a figure as a picture (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[:, :, :3]


def gif(pictures: Sequence[np.ndarray], milliseconds: int = 60) -> bytes:
    """Encode pictures (H, W, 3) uint8 as a GIF that repeats, with a pause at the last picture."""
    from PIL import Image

    first, *rest = [Image.fromarray(picture).quantize(64) for picture in pictures]
    times = [milliseconds] * len(rest) + [1500]
    content = io.BytesIO()
    options = {"save_all": True, "append_images": rest, "duration": times, "loop": 0}
    first.save(content, format="GIF", **options, **mark("GIF"))
    return content.getvalue()


def png(picture: np.ndarray) -> bytes:
    """Encode a picture (H, W, 3) uint8 as a PNG."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG", optimize=True, **mark("PNG"))
    return content.getvalue()


def save_animation(path: Path, pictures: Sequence[np.ndarray], milliseconds: int = 60) -> None:
    """Write pictures (H, W, 3) uint8 as a GIF; see `gif`."""
    content = gif(pictures, milliseconds)
    save_whole(path, lambda partial: partial.write_bytes(content))


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8 in the format of the file name's suffix."""
    from PIL import Image

    require_size(Path(path), *picture.shape[:2])
    kind, image = image_format(Path(path)), Image.fromarray(picture)
    save_whole(Path(path), lambda partial: image.save(partial, format=kind, **mark(kind)))


@default_style()
def save_figure(path: Path, figure: Figure, dpi: int = 130) -> None:
    """Write a figure in the format of the file name's suffix."""
    width, height = figure.get_size_inches() * dpi
    require_size(path, round(height), round(width))
    kind = image_format(path)
    options = {"dpi": dpi, "format": kind.lower(), "pil_kwargs": mark(kind)}
    save_whole(path, lambda partial: figure.savefig(partial, **options))


def mark(kind: str) -> dict:
    """Options of Pillow's `save` that write `MARK` into the metadata of an image format.

    `dataset.own_files` uses the mark to distinguish our pictures from data.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if kind == "PNG":
        text = PngInfo()
        text.add_text("Software", MARK)
        return {"pnginfo": text}
    if kind == "WEBP":
        exif = Image.Exif()
        exif[0x131] = MARK  # Software
        return {"exif": exif}
    return {"comment": MARK}  # GIF, JPEG


def require_size(path: Path, height: int, width: int) -> None:
    """Raise ValueError if a picture of this size is too large for the format of its file."""
    kind = "GIF" if path.suffix.lower() == ".gif" else image_format(path)
    if max(height, width) > LARGEST.get(kind, math.inf):
        way = "take fewer images" if kind == "GIF" else "write a .png or fewer images"
        raise ValueError(
            f"{path}: the picture would be {width:,} pixels wide and {height:,} high, and {kind} "
            f"takes at most {LARGEST[kind]:,}; {way}"
        )


def image_format(path: Path) -> str:
    """The image format of a file name's suffix. Raises ValueError for an unknown suffix."""
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path}: unknown image format; use one of {', '.join(formats)}")
    return formats[path.suffix.lower()]
