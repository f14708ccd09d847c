"""What commands write: never over their sources; what cannot be written is found before work."""

import os
import shutil
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from conftest import TINY
from images import noise_pixels, save_image
from utils import save_whole

QUICK = ["--num-images", "2", "--steps", "1"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sample", ["--checkpoint", "model.npz", "--output", "model.npz", *QUICK]),
        ("sample", ["--checkpoint", "model.pt", "--start-from", "a.png", "--output", "a.png"]),
        ("sample", ["--checkpoint", "model.pt", "--invert", "a.png", "--output", "./a.png"]),
        (
            "sample",
            ["--checkpoint", "model.pt", "--start-from", "a.gif", "--animate", "--output", "a.png"],
        ),
        ("export", ["--checkpoint", "model.safetensors", "model.safetensors"]),
        ("export", ["--checkpoint", "model.npz", "linked.npz"]),
        ("evaluate", ["--checkpoint", "model.pt", "--output", "model.pt"]),
        ("evaluate", ["--samples", "few.npy", "--dataset", "digits", "--output", "few.npy"]),
        ("visualize_diffusion", ["--dataset", "folder", "--data-dir", ".", "--save-path", "a.png"]),
    ],
)
def test_a_file_that_is_read_is_not_replaced(script, tmp_path, trained, name, words):
    for copy in ("model.pt", "model.npz", "model.safetensors"):
        shutil.copy(trained / "model_final.pt", tmp_path / copy)
    (tmp_path / "linked.npz").symlink_to("model.npz")
    np.save(tmp_path / "few.npy", noise_pixels(20, 8, 8))
    for picture in ("a.png", "a.gif"):
        save_image(tmp_path / picture, noise_pixels(8, 8))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = script(name, *words)
    assert result.code == 2
    assert "cannot write to" in result.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    for name, target in [("old", "disk/there"), ("new", "disk/not_yet")]:
        (tmp_path / name).symlink_to(target)
    (tmp_path / "disk" / "there").write_text("before")
    for name in ("old", "new"):
        save_whole(tmp_path / name, lambda partial: partial.write_text("after"))
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "after"
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["not_yet", "there"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """And so is a device: root could replace /dev/null."""
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    save_whole(pipe, lambda partial: partial.write_text("text"))
    reader.join(10)
    assert received == ["text"]
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("output", ["there.png", f"{'x' * 250}.png"])
def test_a_name_that_cannot_be_written_is_refused_before_the_work(
    script, tmp_path, trained, output
):
    (tmp_path / "there.png").mkdir()
    result = script(
        "sample", "--checkpoint", trained / "model_final.pt", "--output", output, *QUICK
    )
    assert result.code == 2
    assert result.out == ""
    assert "cannot write to" in result.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train", [*TINY, "--output-dir", ""]),
        ("train", [*TINY, "--resume", ""]),
        ("train", ["--dataset", "folder", "--data-dir", ""]),
        ("train", ["--dataset", "folder", "--cache-dir", " "]),
        ("sample", ["--checkpoint", ""]),
        ("sample", ["--checkpoint", "model.pt", "--start-from", ""]),
        ("sample", ["--checkpoint", "model.pt", "--output", ""]),
        ("evaluate", ["--samples", ""]),
        ("export", ["--checkpoint", "model.pt", ""]),
        ("visualize_diffusion", ["--run", ""]),
    ],
)
def test_an_empty_name_is_not_the_current_folder(script, tmp_path, name, words):
    assert script(name, *words).code == 2
    assert not any(tmp_path.iterdir())


def test_a_report_of_another_program_is_not_replaced(script, tmp_path):
    np.save(tmp_path / "few.npy", noise_pixels(20, 8, 8))
    (tmp_path / "metrics.json").write_text('{"psnr": 30}')
    words = ["--samples", "few.npy", "--dataset", "digits", "--metrics", "copies"]
    result = script("evaluate", *words)
    assert result.code == 2
    assert "metrics.json" in result.err
    assert "--output" in result.err
    assert (tmp_path / "metrics.json").read_text() == '{"psnr": 30}'
    (tmp_path / "metrics.json").unlink()
    for _ in range(2):  # its own report is
        assert script("evaluate", *words).code == 0


def test_a_picture_of_another_program_is_not_replaced_without_output(script, tmp_path, trained):
    picture = tmp_path / "outputs" / "generated_samples.png"
    picture.parent.mkdir()
    Image.new("L", (8, 8)).save(picture)
    words = ["--checkpoint", trained, "--num-images", 1, "--steps", 1]
    result = script("sample", *words)
    assert result.code == 2
    assert f"cannot write to {Path('outputs', picture.name)}" in result.err
    assert script("sample", *words, "--output", picture).code == 0  # a flag names it
    assert script("sample", *words).code == 0  # its own picture is replaced


def test_an_empty_name_as_a_keyword_argument_is_refused(script):
    from train import train

    with pytest.raises(ValueError, match="empty"):
        train(dataset="digits", output_dir="")
