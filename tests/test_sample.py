import numpy as np
import pytest
from PIL import Image

from training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def checkpoint(trained):
    return trained / "model_final.pt"


def pixels_of(path) -> np.ndarray:
    return np.load(path)["arr_0"]


def test_a_checkpoint_is_enough(script, checkpoint, tmp_path):
    result = script("sample", "--checkpoint", checkpoint)
    assert result.code == 0, result.err
    assert "ddpm, 100 steps" in result.out
    assert "digits, step 28" in result.out
    with Image.open(tmp_path / "outputs" / "generated_samples.png") as image:
        assert image.size == (8 * 58 + 2, 8 * 58 + 2)
        assert len(image.getcolors(1 << 20)) > 20  # not one flat colour


@pytest.mark.parametrize("options", [[], ["--sampler", "ddim"], ["--sampler", "ddim", "--eta", 1]])
def test_images_do_not_depend_on_the_batch_size(script, checkpoint, options):
    flags = ["--checkpoint", checkpoint, "--num-images", 7, "--steps", 10, *options]
    for size in (1, 3, 7):
        result = script("sample", *flags, "--batch-size", size, "--output", f"{size}.npz")
        assert result.code == 0, result.err
    whole = pixels_of("7.npz").astype(int)
    assert abs(pixels_of("1.npz") - whole).max() <= 1
    assert abs(pixels_of("3.npz") - whole).max() <= 1


def test_seeds(script, checkpoint):
    flags = ["--checkpoint", checkpoint, "--num-images", 4, "--steps", 5]
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        script("sample", *flags, "--seed", seed, "--output", f"{name}.npz")
    assert (pixels_of("a.npz") == pixels_of("b.npz")).all()
    assert (pixels_of("a.npz") != pixels_of("c.npz")).any()


def test_npz_is_what_fid_tools_read(script, checkpoint):
    result = script(
        "sample", "--checkpoint", checkpoint, "--num-samples", 5, "--steps", 3, "--output", "s.npz"
    )
    assert result.code == 0
    with np.load("s.npz") as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"].shape == (5, 8, 8, 1)
        assert file["arr_0"].dtype == np.uint8


def test_eta_and_raw_change_the_images(script, checkpoint):
    flags = ["--checkpoint", checkpoint, "--num-images", 4, "--steps", 5]
    flags += ["--sampler", "ddim"]
    for name, options in [("plain", []), ("eta", ["--eta", 0.5]), ("raw", ["--raw"])]:
        assert script("sample", *flags, *options, "--output", f"{name}.npz").code == 0
    for name in ("eta", "raw"):
        assert (pixels_of(f"{name}.npz") != pixels_of("plain.npz")).any()


def test_ddpm_is_ddim_with_eta_1(script, checkpoint):
    flags = ["--checkpoint", checkpoint, "--num-images", 4, "--steps", 20, "--precision", "fp32"]
    script("sample", *flags, "--sampler", "ddpm", "--output", "a.npz")
    script("sample", *flags, "--sampler", "ddim", "--eta", 1, "--output", "b.npz")
    difference = abs(pixels_of("a.npz").astype(int) - pixels_of("b.npz"))
    assert difference.max() <= 1


def test_intermediate_pictures(script, checkpoint, tmp_path):
    flags = ["--checkpoint", checkpoint, "--num-images", 6, "--steps", 20, "--show-intermediate"]
    assert script("sample", *flags, "--batch-size", 4).code == 0
    folder = tmp_path / "outputs" / "intermediate"
    names = sorted(p.name for p in folder.iterdir())
    assert names[0] == "filmstrip.png"
    assert names[1] == "step_0000.png"  # clean
    assert names[-1] == "step_1000.png"  # noise
    assert len(names) == 11
    with Image.open(folder / "filmstrip.png") as image:
        assert image.size == (10 * 58 + 2, 4 * 58 + 2)
    script("sample", *flags, "--steps", 3)  # a shorter walk leaves nothing of the longer one
    assert len(list(folder.glob("step_*.png"))) == 4


def test_all_steps(script, checkpoint):
    flags = ["--checkpoint", checkpoint, "--num-images", 1, "--steps", 1000]
    result = script("sample", *flags, "--output", "one.npz")
    assert result.code == 0
    assert "ddpm, 1000 steps" in result.out
    assert pixels_of("one.npz").shape == (1, 8, 8, 1)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--timesteps", 500], 2, "--timesteps 500: the checkpoint was trained with 1000"),
        (["--steps", 1001], 2, "--steps 1001: the checkpoint has only 1000 timesteps"),
        (["--output", "/dev/null/x.png"], 2, "cannot write to /dev/null: /dev/null is a file"),
        (["--sampler", "ddpm", "--eta", 0.5], 2, "--eta is not an option of the sampler ddpm"),
        (["--output", "x.txt"], 2, "x.txt: cannot write a picture of that ending"),
        (["--precision", "fp16", "--device", "cpu"], 2, "fp16 needs a CUDA GPU"),
    ],
)
def test_options_that_do_not_fit(script, checkpoint, tmp_path, options, code, message):
    result = script("sample", "--checkpoint", checkpoint, *options)
    assert result.code == code
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_agreeing_timesteps_are_accepted(script, checkpoint):
    flags = ["--checkpoint", checkpoint, "--num-images", 1, "--steps", 2, "--timesteps", 1000]
    assert script("sample", *flags).code == 0


def test_bad_checkpoints(script, tmp_path):
    result = script("sample", "--checkpoint", "none.pt")
    assert result.code == 1
    assert "there is no checkpoint none.pt" in result.err
    (tmp_path / "bad.pt").write_text("hello")
    result = script("sample", "--checkpoint", "bad.pt")
    assert result.code == 1
    assert "bad.pt is damaged or is not a checkpoint" in result.err
    assert "Traceback" not in result.err


def test_weights_of_a_perfect_model_give_its_image(script, trained, tmp_path):
    """End to end: a network whose output implies a black image, whatever the noise, draws black."""
    checkpoint = load_checkpoint(trained / "model_final.pt")
    for name, weight in checkpoint["ema"].items():
        if name == "head.weight":
            weight.zero_()
        if name == "head.bias":  # a constant "noise" of +9 implies an x_0 far below -1
            weight.fill_(9.0)
    save_checkpoint(tmp_path / "black.pt", checkpoint)
    script("sample", "--checkpoint", "black.pt", "--num-images", 2, "--output", "black.npz")
    assert pixels_of("black.npz").max() <= 1
