import numpy as np
import pytest
import torch
from PIL import Image

import visualize_diffusion
from diffusion import GaussianDiffusion
from schedules import SCHEDULES


def size_of(path):
    with Image.open(path) as image:
        assert len(image.convert("RGB").getcolors(1 << 22)) > 20
        return image.size


def test_needs_no_arguments(script, tmp_path):
    result = script("visualize_diffusion")
    assert result.code == 0, result.err
    assert "showing digits" in result.out  # there is no MNIST in this empty folder
    size_of(tmp_path / "outputs" / "forward_process.png")
    size_of(tmp_path / "outputs" / "forward_process_schedules.png")


def test_damaged_mnist_is_not_passed_over(script, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / stem).write_bytes(b"")
    result = script("visualize_diffusion")
    assert result.code == 1
    assert "train-images-idx3-ubyte is damaged: empty" in result.err


def test_takes_mnist_where_it_is_at_hand(script, real_data):
    result = script("visualize_diffusion", "--data-dir", real_data, "--num-images", 2)
    assert result.code == 0
    assert "digits" not in result.out


def test_rows_and_columns(script):
    few = ["--dataset", "digits", "--num-images", 2, "--timesteps", 0, 999]
    script("visualize_diffusion", *few, "--save-path", "few.png")
    many = ["--dataset", "digits", "--num-images", 4, "--timesteps", 0, 300, 600, 999]
    script("visualize_diffusion", *many, "--save-path", "a/many.jpg", "--schedule", "cosine")
    assert size_of("a/many.jpg")[0] > 1.8 * size_of("few.png")[0]
    assert size_of("a/many.jpg")[1] > 1.5 * size_of("few.png")[1]
    size_of("a/many_schedules.jpg")


def test_the_picture_shows_the_process():
    diffusion = GaussianDiffusion("linear")
    columns = [torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)]
    figure = visualize_diffusion.draw_images(columns, [0, 999], diffusion, "linear")
    axes = figure.axes
    assert [a.get_title() for a in axes] == ["t = 0\nSNR 1e+04", "t = 999\nSNR 4e-05", "", ""]
    shown = [np.asarray(a.images[0].get_array()) for a in axes]
    assert [int(s.max()) for s in shown] == [128, 255, 128, 255]


def test_each_schedule_is_a_line():
    figure = visualize_diffusion.draw_schedules("cosine")
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == list(SCHEDULES)
        assert {len(line.get_ydata()) for line in axes.lines} == {1000}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--save-path", "x.doc"], 2, "cannot write a picture of that ending"),
        (["--save-path", "/dev/null/x.png"], 2, "/dev/null is a file"),
        (["--dataset", "folder", "--data-dir", "none"], 1, "none is not a folder"),
        (["--dataset", "cifar10", "--no-download"], 1, "cifar10 not found in"),
    ],
)
def test_errors(script, options, code, message):
    result = script("visualize_diffusion", *options)
    assert result.code == code
    assert message in result.err
    assert "Traceback" not in result.err
