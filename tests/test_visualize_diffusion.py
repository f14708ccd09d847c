import numpy as np
import pytest
import torch
from PIL import Image

from diffusion import GaussianDiffusion
from schedules import SCHEDULES
from visuals.forward_process import draw_noising, draw_schedules


def size_of(path):
    with Image.open(path) as image:
        assert len(image.convert("RGB").getcolors(1 << 22)) > 20
        return image.size


def test_the_picture_has_a_row_for_each_image_and_a_column_for_each_timestep(script):
    result = script("visualize_diffusion")
    assert result.code == 0, result.err
    assert "showing digits" in result.out  # there is no MNIST in this empty folder
    width, height = size_of("outputs/forward_process.png")  # 8 images, 8 timesteps
    size_of("outputs/forward_process_schedules.png")

    few = ["--dataset", "digits", "--num-images", 3, "--timesteps", 0, 300, 999]
    script("visualize_diffusion", *few, "--save-path", "a/few.jpg", "--schedule", "linear")
    assert width > 2 * size_of("a/few.jpg")[0]
    assert height > 2 * size_of("a/few.jpg")[1]
    size_of("a/few_schedules.jpg")


def test_damaged_mnist_is_an_error(script, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / stem).write_bytes(b"")
    result = script("visualize_diffusion")
    assert result.code == 1
    assert "train-images-idx3-ubyte is damaged: empty" in result.err


def test_mnist_is_the_default_if_it_is_in_the_data_folder(script, real_data):
    result = script("visualize_diffusion", "--data-dir", real_data, "--num-images", 2)
    assert result.code == 0
    assert "digits" not in result.out


def test_each_column_shows_one_timestep():
    columns = [torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)]
    axes = draw_noising(columns, [0, 999], GaussianDiffusion("linear").log_snr, "heading").axes
    assert [a.get_title() for a in axes] == ["t = 0\nSNR 1e+04", "t = 999\nSNR 4e-05", "", ""]
    shown = [np.asarray(a.images[0].get_array()) for a in axes]
    assert [int(s.max()) for s in shown] == [128, 255, 128, 255]


def test_each_schedule_is_a_line():
    log_snr = {name: GaussianDiffusion(name, prediction="v").log_snr for name in SCHEDULES}
    for axes in draw_schedules(log_snr, highlighted="cosine").axes:
        assert [line.get_label() for line in axes.lines] == list(SCHEDULES)
        assert {len(line.get_ydata()) for line in axes.lines} == {1000}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--save-path", "x.doc"], 2, "unknown image format"),
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
