import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.testing import assert_close

from visuals.pictures import (
    EXTENT,
    ImagePictures,
    PointPictures,
    enlarged,
    gif,
    pictures_of,
    png,
    save_figure,
    save_picture,
    square,
)


def test_small_images_are_enlarged_by_whole_pixels():
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    out = enlarged(images, 56)
    assert out.shape == (1, 1, 56, 56)
    assert_close(out[:, :, ::7, ::7], images)
    assert enlarged(torch.zeros(1, 3, 128, 128, dtype=torch.uint8)).shape[-1] == 128


def test_a_grid_has_rows_of_images_and_real_images_below_a_line():
    images = torch.stack([torch.full((3, 64, 64), i * 10, dtype=torch.uint8) for i in range(6)])
    grid = ImagePictures().grid(images, 3)
    assert grid.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    assert [grid[33, 33, 0], grid[33, 99, 0], grid[99, 33, 0]] == [0, 10, 30]
    both = ImagePictures().grid(images, 3, real=images + 100)
    line = both[grid.shape[0]]
    assert (line == 255).all()
    row = both[grid.shape[0] + 2 + 33]
    assert [row[33, 0], row[99, 0], row[165, 0]] == [100, 120, 140]  # spread over the whole set
    assert both.shape[0] == grid.shape[0] + 2 + 68  # one row, however many real images there are


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_grid_of_few_images_and_fewer_real_images(count):
    images = torch.full((count, 1, 64, 64), 200, dtype=torch.uint8)
    columns = square(count)
    grid = ImagePictures().grid(images, columns, real=images[:1])
    assert grid.shape[1] == columns * 66 + 2
    assert grid[-30, 30, 0] == 200
    assert columns == 1 or grid[-30, 96, 0] == 40


def test_a_grid_is_about_square():
    assert [square(n) for n in (1, 2, 4, 5, 9, 64)] == [1, 2, 2, 3, 3, 8]


def test_the_suffix_decides_the_format_of_a_picture(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    for name, kind in [("a.png", "PNG"), ("b/c.jpg", "JPEG")]:
        save_picture(tmp_path / name, picture)
        with Image.open(tmp_path / name) as image:
            assert image.format == kind
    with pytest.raises(ValueError, match=r"x\.txt: unknown image format"):
        save_picture(tmp_path / "x.txt", picture)


def test_images_are_clipped_to_uint8_and_exported_with_channels_last():
    pictures = pictures_of((3, 4, 4))
    pixels = pictures.to_items(torch.linspace(-2, 2, 96).view(2, 3, 4, 4))
    assert pixels.dtype == torch.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert pictures.array(pixels).shape == (2, 4, 4, 3)


def test_a_filmstrip_has_a_column_for_each_moment():
    moments = [torch.full((12, 1, 64, 64), 10 * i, dtype=torch.uint8) for i in range(3)]
    strip = ImagePictures().filmstrip(moments)
    assert strip.shape == (8 * 66 + 2, 3 * 66 + 2, 3)  # of the first eight images
    assert [strip[33, 33 + 66 * i, 0] for i in range(3)] == [0, 10, 20]


def test_a_comparison_has_a_row_of_images_for_each_name():
    named = {f"step {i}": torch.full((4, 1, 8, 8), 50 * i, dtype=torch.uint8) for i in range(3)}
    figure = ImagePictures().comparison(named)
    assert [axes.texts[0].get_text() for axes in figure.axes] == list(named)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [picture.shape for picture in shown] == [(60, 4 * 58 + 2, 3)] * 3
    assert [picture[30, 30, 0] for picture in shown] == [0, 50, 100]
    figure.canvas.draw()
    (text,), image = figure.axes[0].texts, figure.axes[0].images[0]
    name, row = text.get_window_extent(), image.get_window_extent()
    assert 0 <= name.x0 < name.x1 < row.x0 < row.x1 <= figure.bbox.x1  # nothing is cut off


def test_a_comparison_has_a_scatter_plot_for_each_name():
    figure = PointPictures().comparison({name: torch.zeros(3, 2) for name in "abcdefg"})
    assert [axes.get_title() for axes in figure.axes if axes.axison] == list("abcdefg")
    assert [len(axes.collections) for axes in figure.axes] == [1] * 7 + [0] * 3


def test_an_animation_shows_its_pictures_in_order():
    moments = [np.full((8, 8, 3), grey, np.uint8) for grey in (0, 120, 250)]
    with Image.open(io.BytesIO(gif(moments, 40))) as image:
        assert image.n_frames == 3
        for i, moment in enumerate(moments):
            image.seek(i)
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - moment).max() <= 4
            assert image.info["duration"] == (40 if i < 2 else 1500)  # a pause at the last
        assert image.info["loop"] == 0


def test_a_png_holds_the_pixels_of_the_picture():
    picture = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    with Image.open(io.BytesIO(png(picture))) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)


def blue(picture) -> np.ndarray:
    """A mask (H, W) of the pixels of a picture that have the points' color."""
    r, g, b = picture.astype(int).transpose(2, 0, 1)
    return (b - r > 60) & (b > g)


def test_points_are_drawn_at_their_coordinates():
    pictures = pictures_of((2,))
    assert isinstance(pictures, PointPictures)
    points = torch.tensor([[0.9 * EXTENT, 0.9 * EXTENT]]).repeat(500, 1)  # top right
    rows, columns = np.nonzero(blue(pictures.frame(points, 1)))
    height, width, _ = pictures.frame(points, 1).shape
    assert len(rows) > 0
    assert rows.max() < height / 4
    assert columns.min() > 3 * width / 4


def test_points_are_drawn_next_to_the_data_and_their_density():
    left, right = -torch.ones(500, 2), torch.ones(500, 2)
    pictures = PointPictures()
    picture = pictures.grid(right, 1, real=left)
    assert pictures.grid(right, 1).shape[1] < picture.shape[1]  # without data, one panel less
    rows, columns = np.nonzero(blue(picture))
    data, samples = columns < picture.shape[1] / 3, columns > picture.shape[1] / 3
    assert rows[data].min() > rows[samples].max()
    density = picture[:, 2 * picture.shape[1] // 3 :].astype(int).sum(axis=2)
    assert density.min() < 30  # black except for one bright spot


def test_points_are_not_clipped():
    points = torch.tensor([[2.5, -7.0]], dtype=torch.float64)
    items = PointPictures().to_items(points)
    assert items.dtype == torch.float32
    assert PointPictures().array(items).tolist() == [[2.5, -7.0]]
    strip = PointPictures().filmstrip([torch.zeros(5, 2)] * 4)
    assert strip.shape[1] > 3 * strip.shape[0]


def test_the_suffix_decides_the_format_of_a_figure(tmp_path):
    for name, kind in [("a.png", "PNG"), ("b.jpg", "JPEG")]:
        save_figure(tmp_path / name, Figure())
        with Image.open(tmp_path / name) as image:
            assert image.format == kind
