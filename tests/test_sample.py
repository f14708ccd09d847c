"""sample.py with one process."""

import numpy as np
import pytest
from PIL import Image

import sample
from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from samplers import OF_TUNED, SAMPLERS


@pytest.fixture
def checkpoint(trained):
    return trained / "model_final.pt"


def pixels_of(path) -> np.ndarray:
    return np.load(path)["arr_0"]


def test_a_checkpoint_is_enough(script, checkpoint, tmp_path):
    result = script("sample", "--checkpoint", checkpoint)
    assert result.code == 0, result.err
    assert "dpmpp_2m_sde, 50 steps" in result.out
    assert "50 network calls" in result.out
    assert "digits, step 26" in result.out
    with Image.open(tmp_path / "outputs" / "generated_samples.png") as image:
        assert image.size == (8 * 58 + 2, 8 * 58 + 2)
        assert len(image.getcolors(1 << 20)) > 20  # not one flat colour


@pytest.mark.parametrize(
    "flags", [{}, {"sampler": "ddpm"}, {"sampler": "ddim", "eta": 1}, {"sampler": "heun"}]
)
def test_images_do_not_depend_on_the_batch_size(checkpoint, flags):
    whole, other = (
        sample.sample(checkpoint, num_images=4, steps=5, batch_size=size, **flags).astype(int)
        for size in (4, 3)
    )
    assert abs(other - whole).max() <= 1


def test_seeds(checkpoint):
    a, b, c = (sample.sample(checkpoint, num_images=4, steps=3, seed=seed) for seed in (1, 1, 2))
    assert (a == b).all()
    assert (a != c).any()


def test_npz_is_what_fid_tools_read(script, checkpoint):
    result = script(
        "sample", "--checkpoint", checkpoint, "--num-samples", 5, "--steps", 3, "--output", "s.npz"
    )
    assert result.code == 0
    with np.load("s.npz") as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"].shape == (5, 8, 8, 1)
        assert file["arr_0"].dtype == np.uint8


def test_one_batch_needs_no_parts(script, checkpoint, monkeypatch):
    monkeypatch.setattr(sample, "Parts", None)
    flags = ["--checkpoint", checkpoint, "--num-images", 4, "--steps", 1, "--output", "s.npz"]
    assert script("sample", *flags, "--batch-size", 4).code == 0
    assert "NoneType" in script("sample", *flags, "--batch-size", 3).err


def test_raw_changes_the_images(checkpoint):
    averaged, raw = (
        sample.sample(checkpoint, num_images=4, steps=3, raw=raw) for raw in (False, True)
    )
    assert (averaged != raw).any()


def test_ddpm_is_ddim_with_eta_1(checkpoint):
    flags = {"num_images": 4, "steps": 10, "precision": "fp32"}
    ddpm = sample.sample(checkpoint, **flags, sampler="ddpm").astype(int)
    assert abs(ddpm - sample.sample(checkpoint, **flags, sampler="ddim", eta=1)).max() <= 1


def test_intermediate_pictures(script, checkpoint, tmp_path):
    flags = ["--checkpoint", checkpoint, "--num-images", 6, "--steps", 20, "--show-intermediate"]
    assert script("sample", *flags, "--batch-size", 4).code == 0
    folder = tmp_path / "outputs" / "intermediate"
    names = sorted(p.name for p in folder.iterdir())
    assert {"filmstrip.png", "filmstrip_x_0.png"} <= set(names)
    assert {"step_0000.png", "step_1000.png"} <= set(names)  # clean, and noise
    assert len([name for name in names if name.startswith("step_")]) == 10
    assert [n[4:] for n in names if n.startswith("x_0_")] == [
        n[5:] for n in names if n[:5] == "step_"
    ]
    with Image.open(folder / "filmstrip.png") as image:
        assert image.size == (10 * 58 + 2, 4 * 58 + 2)
    script("sample", *flags, "--steps", 3)  # deletes the pictures of more steps
    assert len(list(folder.glob("step_*.png"))) == 4


def test_sampling_as_a_function(script, checkpoint, tmp_path):
    flags = {"num_images": 5, "steps": 4, "sampler": "ddim", "seed": 3}
    array = sample.sample(checkpoint, **flags)
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    script("sample", "--checkpoint", checkpoint, *words, "--output", "s.npz")
    assert (array == pixels_of("s.npz")).all()
    with pytest.raises(ValueError, match="writes nothing: output is for the command line"):
        sample.sample(checkpoint, output="x.png")
    with pytest.raises(ValueError, match="argument --steps: must be at least 1, not 0"):
        sample.sample(checkpoint, steps=0)


def test_all_steps(script, conditional):
    flags = ["--checkpoint", conditional, "--num-images", 1, "--sampler", "ddpm", "--steps", 100]
    result = script("sample", *flags, "--timesteps", 100, "--output", "one.npz")
    assert result.code == 0
    assert "ddpm, 100 steps" in result.out
    assert pixels_of("one.npz").shape == (1, 8, 8, 1)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--timesteps", 500], 2, "--timesteps 500: the checkpoint was trained with 1000"),
        (["--steps", 1001], 2, "--steps 1001: the checkpoint has only 1000 timesteps"),
        (["--output", "/dev/null/x.png"], 2, "cannot write to /dev/null: /dev/null is a file"),
        (["--output", "/dev/null/x.npz"], 2, "cannot write to /dev/null: /dev/null is a file"),
        (["--sampler", "ddpm", "--eta", 0.5], 2, "--eta is not an option of the sampler ddpm"),
        (["--class-id", 1], 2, "--class-id: this checkpoint is unconditional"),
        (["--guidance-scale", 2], 2, "--guidance-scale: this checkpoint is unconditional"),
        (["--sampler", "ddpm", "--variance", "learned"], 2, "trained without --learn-sigma"),
        (["--sampler", "ddpm", "--interpolate"], 2, "needs a sampler without fresh noise"),
        (["--sampler", "ddim", "--eta", 0.5, "--interpolate"], 2, "omit --eta"),
        (["--sampler", "heun", "--invert", "i.png"], 2, "--invert uses ddim, not --sampler heun"),
        (["--start-from", "i.png"], 1, "there is no image i.png"),
        (["--output", "x.txt"], 2, "x.txt: unknown image format"),
        (["--precision", "fp16", "--device", "cpu"], 2, "fp16 needs a CUDA GPU"),
    ],
)
def test_options_that_do_not_fit(script, checkpoint, tmp_path, options, code, message):
    result = script("sample", "--checkpoint", checkpoint, *options)
    assert result.code == code
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


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
    """End to end: a network that predicts a black image for any noise gives black samples."""
    checkpoint = load_checkpoint(trained / "model_final.pt")
    for name, weight in checkpoint["ema"].items():
        if name == "head.weight":
            weight.zero_()
        if name == "head.bias":  # a constant v of +90 implies an x_0 far below -1
            weight.fill_(90.0)
    save_checkpoint(tmp_path / "black.pt", checkpoint)
    script("sample", "--checkpoint", "black.pt", "--steps", 3, "--output", "black.npz")
    assert pixels_of("black.npz").max() <= 1


def test_every_sampler(script, checkpoint):
    flags = ["--checkpoint", checkpoint, "--num-images", 2, "--steps", 4]
    for name in SAMPLERS.keys() - OF_TUNED:
        result = script("sample", *flags, "--sampler", name, "--output", f"{name}.npz")
        assert result.code == 0, result.err
        calls = 7 if name == "heun" else 4
        assert f"{calls} network calls" in result.out


def test_options_of_samplers_change_the_images(checkpoint):
    options = {
        "heun": [{"churn": 3}],
        "euler": [{"churn": 3}],
        "unipc": [{"order": 1}],
        "gamma": [{"gamma": 1.5}, {"mu": 0.4}],
        "ddim": [{"eta": 0.5}],
        "ddpm": [{"variance": "large"}],
        "dpmpp_2m": [{"spacing": "karras"}],
    }
    for sampler, choices in options.items():
        flags = {"num_images": 2, "steps": 4, "sampler": sampler}
        default = sample.sample(checkpoint, **flags)
        for choice in choices:
            assert (sample.sample(checkpoint, **flags, **choice) != default).any(), choice


def test_an_animation(script, checkpoint, tmp_path):
    flags = ["--checkpoint", checkpoint, "--num-images", 4, "--steps", 12, "--animate"]
    assert script("sample", *flags).code == 0
    with Image.open(tmp_path / "outputs" / "generated_samples.gif") as gif:
        assert gif.n_frames == 13
        assert gif.size == (2 * 58 + 2, 2 * 58 + 2)


def test_classes(script, conditional, tmp_path):
    flags = ["--checkpoint", conditional, "--steps", 3]
    for name, options in {
        "any": ["--num-images", 10],
        "five": ["--num-images", 10, "--class-id", 5],
        "guided": ["--num-images", 10, "--class-id", 5, "--guidance-scale", 3],
        "late": ["--num-images", 10, "--class-id", 5, "--guidance-scale", 3]
        + ["--guidance-interval", 0, 1],
        "rescaled": ["--num-images", 10, "--class-id", 5, "--guidance-scale", 3]
        + ["--guidance-rescale", 0.7],
        "some": ["--num-images", 6, "--class-id", "0,1,2"],
    }.items():
        result = script("sample", *flags, *options, "--output", f"{name}.npz")
        assert result.code == 0, result.err
        assert "3 network calls" in result.out  # guided or not
    any_class, five = pixels_of("any.npz"), pixels_of("five.npz")
    assert (any_class[5] == five[5]).all()  # the same noise, and image 5 is of class 5
    assert (any_class != five).any()
    assert len(pixels_of("some.npz")) == 6
    pictures = [pixels_of(f"{name}.npz") for name in ("five", "guided", "late", "rescaled")]
    for i, picture in enumerate(pictures):
        for j in range(i):
            assert (picture != pictures[j]).any(), (i, j)

    assert script("sample", *flags, "--class-id", "all").code == 0
    with Image.open(tmp_path / "outputs" / "generated_samples.png") as image:
        assert image.size == (8 * 58 + 2, 10 * 58 + 2)  # one row each


def test_a_weaker_model_guides(script, checkpoint, conditional, trained):
    flags = ["--checkpoint", checkpoint, "--steps", 3, "--num-images", 4, "--guidance-scale", 2]
    earlier = trained / "checkpoints" / "model_epoch_001.pt"
    for name, options in {
        "alone": ["--guidance-scale", 1],
        "by itself": ["--guide", checkpoint],
        "by an earlier one": ["--guide", earlier],
    }.items():
        result = script("sample", *flags, *options, "--output", f"{name}.npz")
        assert result.code == 0, result.err
    alone = pixels_of("alone.npz")
    assert (pixels_of("by itself.npz") == alone).all()
    assert (pixels_of("by an earlier one.npz") != alone).any()
    result = script("sample", *flags, "--guide", conditional)
    assert result.code == 2
    assert f"--guide {conditional} does not fit the checkpoint: " in result.err
    assert "model.num_classes: 10 in the checkpoint, None now" in result.err


def test_classes_that_do_not_exist(script, conditional):
    result = script("sample", "--checkpoint", conditional, "--class-id", 10)
    assert result.code == 2
    assert "--class-id: there is no class '10'; the classes are 0, 1, 2" in result.err


def test_a_class_is_optional_for_given_images(script, conditional, picture):
    flags = ["--checkpoint", conditional, "--steps", 3]
    for mode in (["--interpolate"], ["--invert", "image.png"], ["--start-from", "image.png"]):
        for name, options in {"any": [], "two": ["--class-id", 2]}.items():
            result = script("sample", *flags, *mode, *options, "--output", f"{name}.npz")
            assert result.code == 0, result.err
        assert (pixels_of("any.npz") != pixels_of("two.npz")).any()
    result = script("sample", *flags, "--interpolate", "--class-id", "1,2")
    assert result.code == 2
    assert "give one class" in result.err
    result = script("sample", *flags, "--start-from", "image.png", "--guidance-scale", 2)
    assert result.code == 2
    assert "give the --class-id" in result.err
    result = script("sample", *flags, "--class-id", "all", "--num-images", 15)
    assert result.code == 2
    assert "--num-images 15 is not a multiple of 10 classes" in result.err


def test_learned_variance_is_used_by_default(conditional):
    flags = {"num_images": 3, "steps": 5, "sampler": "ddpm"}
    default, learned, small = (
        sample.sample(conditional, **flags, variance=variance)
        for variance in (None, "learned", "small")
    )
    assert (default == learned).all()
    assert (default != small).any()


def test_inpainting_has_the_variances_of_ddpm(script, conditional, picture):
    flags = {"num_images": 2, "steps": 4, "inpaint": "image.png", "mask": "mask.png"}
    small, large, learned = (
        sample.sample(conditional, **flags, resamplings=2, variance=variance)
        for variance in ("small", "large", "learned")
    )
    assert (small != large).any()
    assert (small != learned).any()


@pytest.fixture
def picture(tmp_path):
    """An image that is white above and black below, and a mask that keeps its left half."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(pixels.T.copy()).save(tmp_path / "mask.png")
    return pixels


def test_image_to_image(script, checkpoint, picture):
    flags = ["--checkpoint", checkpoint, "--num-images", 3, "--start-from", "image.png"]
    errors = []
    for strength in (0.05, 0.3, 1):
        result = script("sample", *flags, "--strength", strength, "--output", "a.npz")
        assert result.code == 0, result.err
        errors.append(abs(pixels_of("a.npz")[..., 0].astype(int) - picture).mean())
        assert strength != 0.3 or "15 steps" in result.out
    assert errors[0] < errors[1] < errors[2]


def test_inpainting_keeps_what_is_white_in_the_mask(script, checkpoint, picture):
    flags = ["--checkpoint", checkpoint, "--num-images", 3, "--steps", 5]
    flags += ["--inpaint", "image.png", "--mask", "mask.png", "--resamplings", 2]
    result = script("sample", *flags, "--output", "a.npz")
    assert result.code == 0, result.err
    assert "9 network calls" in result.out  # the last step leads to clean data and is not repeated
    pixels = pixels_of("a.npz")[..., 0]
    assert (pixels[:, :, :4] == picture[:, :4]).all()
    assert (pixels[:, :, 4:] != picture[:, 4:]).any()


def test_a_mask_of_another_size(script, checkpoint, picture, tmp_path):
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    flags = ["--checkpoint", checkpoint, "--inpaint", "image.png", "--mask", "wide.png"]
    result = script("sample", *flags)
    assert result.code == 2
    assert "wide.png is 9 x 8 pixels, and image.png 8 x 8" in result.err


@pytest.mark.parametrize("strokes", [255, 0])
def test_a_transparent_part_of_a_mask_is_the_opposite_of_its_strokes(
    script, checkpoint, picture, strokes
):
    """White strokes keep, as in editors of images; black strokes are what is sampled."""
    pixels = np.full((8, 8, 2), [strokes, 0], np.uint8)
    part = np.s_[:, :4] if strokes else np.s_[:, 4:]
    pixels[(*part, 1)] = 255
    Image.fromarray(pixels).save("mask.png")
    flags = ["--checkpoint", checkpoint, "--num-images", 2, "--steps", 2, "--resamplings", 1]
    flags += ["--inpaint", "image.png", "--mask", "mask.png", "--output", "a.npz"]
    result = script("sample", *flags)
    assert "white" not in result.out
    drawn = pixels_of("a.npz")[..., 0]
    assert (drawn[:, :, :4] == picture[:, :4]).all()
    assert (drawn[:, :, 4:] != picture[:, 4:]).any()


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "white nowhere: nothing is kept"), (1, "nothing is kept"), (255, "nothing is sampled")],
)
def test_a_mask_without_effect_is_pointed_out(script, checkpoint, picture, value, words):
    Image.new("L", (8, 8), value).save("mask.png")
    flags = ["--checkpoint", checkpoint, "--num-images", 1, "--steps", 1]
    result = script("sample", *flags, "--inpaint", "image.png", "--mask", "mask.png")
    assert result.code == 0, result.err
    assert words in result.out


def test_interpolation_starts_and_ends_at_two_noises(script, checkpoint, tmp_path):
    flags = ["--checkpoint", checkpoint, "--steps", 5]
    ends = ["--num-images", 2, "--sampler", "dpmpp_2m", "--output", "ends.npz"]
    script("sample", *flags, *ends)
    script("sample", *flags, "--num-images", 6, "--interpolate", "--output", "strip.npz")
    ends, strip = pixels_of("ends.npz").astype(int), pixels_of("strip.npz").astype(int)
    assert abs(strip[[0, -1]] - ends).max() <= 1
    assert (strip[2] != strip[3]).any()
    assert script("sample", *flags, "--interpolate").code == 0
    with Image.open(tmp_path / "outputs" / "generated_samples.png") as image:
        assert image.size == (10 * 58 + 2, 58 + 2)


def test_inversion_prints_its_error(script, checkpoint, picture):
    errors = []
    for steps in (5, 50):
        flags = ["--checkpoint", checkpoint, "--invert", "image.png", "--steps", steps]
        result = script("sample", *flags)
        assert result.code == 0, result.err
        errors.append(float(result.out.split("error ")[1].split()[0]))
        assert f"{2 * steps} network calls" in result.out
    assert errors[1] < errors[0]
