"""evaluate.py: real images as samples, anybody's files, and the report."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from checkpoints.checkpoint import load_checkpoint
from conftest import TINY
from dataset.items import classes_like
from dataset.registry import load_dataset
from evaluation import classifier, inception
from evaluation import real as real_module
from evaluation.classifier import judge_for, shifted
from evaluation.copies import copies
from evaluation.images import load_images, with_channels
from evaluation.measures import Reference
from evaluation.real import Real, part
from training import run
from training.log import read_metrics
from utils import DataError

DIGITS = ["--dataset", "digits", "--repeats", 2]
FIGURES = ["classifier_fid", "classifier_kid", "precision", "recall", "density", "coverage"]
FIGURES += ["confidence", "class_chi_square", "class_p_value"]


@pytest.fixture(scope="module")
def real() -> Real:
    """The bundled digits, a fifth of them held out."""
    data = load_dataset("digits")
    train, held_out = (part(data, i) for i in torch.arange(1797).split(1397))
    return Real("digits", train, held_out, "held out", False, Path("/dev/null/none"))


@pytest.fixture(scope="module")
def reference(real, tmp_path_factory) -> Reference:
    """With a classifier that is good enough."""
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(classifier, "UPDATES", 150)
        folder = tmp_path_factory.mktemp("judge")
        judge = judge_for(real._replace(cache=folder), folder, torch.device("cpu"))
    return Reference(judge, real)


# --- the classifier and what is measured with it --------------------------------------------------


def test_it_learns_the_digits(reference):
    assert reference.judge.accuracy > 0.9
    assert reference.judge.path.is_file()
    seen = reference.judge.see(reference.train.items)
    assert seen.features.std(dim=0).mean() == pytest.approx(1, abs=0.05)


def test_a_kept_classifier_is_read(reference, real):
    def nothing(text):
        raise AssertionError(text)

    again = judge_for(real, reference.judge.path.parent, torch.device("cpu"), say=nothing)
    assert again.sha256 == reference.judge.sha256
    assert again.accuracy == reference.judge.accuracy
    for a, b in zip(again.see(real.held_out.items), reference.seen, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("how", ["bit", "text", "empty"])
def test_a_damaged_classifier_is_made_anew(real, tmp_path, how, monkeypatch):
    monkeypatch.setattr(classifier, "UPDATES", 3)
    arguments = real, tmp_path, torch.device("cpu")
    judge = judge_for(*arguments)
    content = bytearray(judge.path.read_bytes())
    content[-100] ^= 1
    judge.path.write_bytes({"bit": content, "text": b"hello", "empty": b""}[how])
    said = []
    again = judge_for(*arguments, say=said.append)
    assert "training the classifier of digits" in said[0]
    assert again.sha256 == judge.sha256  # the seed is its own


def test_it_is_kept_where_that_is_possible(real, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "UPDATES", 1)
    (tmp_path / "file").write_text("")
    real = real._replace(cache=tmp_path / "file" / "below")
    judge = judge_for(real, tmp_path / "second", torch.device("cpu"))
    assert judge.path.parent == tmp_path / "second"
    judge = judge_for(real, tmp_path / "file", torch.device("cpu"))
    assert judge.path is None


def test_other_data_or_recipes_have_other_classifiers(real, monkeypatch):
    other = real.train._replace(items=real.train.items.clone())
    other.items[0, 0, 0, 0] += 1
    keys = [classifier.key_of(data, flip) for data in (real.train, other) for flip in (False, True)]
    monkeypatch.setattr(classifier, "RECIPE", 10**6)
    assert len({*keys, classifier.key_of(real.train, False)}) == 5


def test_photographs_have_a_larger_classifier(real, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "UPDATES", 1)
    arguments = real, tmp_path, torch.device("cpu")
    smaller = judge_for(*arguments)
    monkeypatch.setattr(classifier, "LARGER", ["digits"])
    for _ in range(2):  # made in place of the smaller one, and then read
        larger = judge_for(*arguments)
        features = larger.see(real.held_out.items[:3]).features  # of images of 8x8
        assert features.shape == (3, 256)
    assert larger.path == smaller.path


def test_training_leaves_the_random_numbers_alone(real, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "UPDATES", 1)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    classifier.train_classifier(real.train, 1, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_shifted_images_keep_their_pixels():
    torch.manual_seed(0)
    x = torch.zeros(200, 3, 9, 11, dtype=torch.uint8)
    x[:, :, 4, 5] = 7
    moved = shifted(x, 2)
    places = {tuple(image[0].nonzero()[0].tolist()) for image in moved}
    assert (moved.flatten(1).sum(dim=1) == 21).all()
    assert places == {(row, column) for row in range(2, 7) for column in range(3, 8)}
    assert torch.equal(shifted(x, 0), x)


def test_real_images_are_at_the_floor_and_others_are_not(reference, real):
    def measured(images, count=300):
        return reference.measure(reference.judge.see(images[:count]))

    torch.manual_seed(0)
    order = torch.randperm(len(real.train.items))
    good = measured(real.train.items[order])
    noise = measured(torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8))
    ones = measured(real.train.items[real.train.labels == 1], 100)
    for name in ("classifier_fid", "classifier_kid"):
        assert 10 * good[name] < min(ones[name], noise[name])
    assert good["precision"] > 0.6
    assert good["recall"] > 0.6
    assert noise["precision"] < 0.3
    assert ones["recall"] < 0.4
    assert ones["class_p_value"] < 1e-6 < good["class_p_value"]
    assert good["confidence"] > noise["confidence"]


def test_asking_for_classes_is_judged(reference, real):
    seen = reference.judge.see(real.held_out.items)
    right = reference.measure(seen, real.held_out.labels)["class_accuracy"]
    wrong = reference.measure(seen, (real.held_out.labels + 1) % 10)["class_accuracy"]
    assert right == pytest.approx(reference.judge.accuracy)
    assert wrong < 0.1


# --- near-copies ----------------------------------------------------------------------------------


def test_sorted_images_are_not_taken_for_a_part(reference, real):
    """A file may hold one class after the other; more images than are held out are compared."""
    order = real.train.labels.argsort()
    found = reference.measure(reference.judge.see(real.train.items[order]))
    assert found["recall"] > 0.6
    assert found["coverage"] > 0.6


def test_copies_are_found(real):
    train, held_out = real.train.items, real.held_out.items
    copied = train[:40].int() + torch.randint(-2, 3, (40, 1, 8, 8))
    generated = torch.cat([copied.clamp(0, 255).byte(), held_out[:160]])
    found = copies(generated, train, held_out)
    assert found.indices[:40].tolist() == list(range(40))
    assert found.share == pytest.approx(0.2, abs=0.02)
    assert (found.distances[:40] < 3).all()
    assert found.record()["near_copies"] == found.share


def test_new_images_are_no_copies(real):
    assert copies(real.held_out.items, real.train.items, real.held_out.items).share <= 0.011


# --- anybody's images -----------------------------------------------------------------------------


def forms(images: torch.Tensor, folder: Path) -> dict[str, Path]:
    """The same images in files of every kind."""
    x = images.numpy()
    arrays = {
        "uint8, N C H W": x,
        "uint8, N H W C": np.moveaxis(x, 1, -1),
        "uint8, N H W": x[:, 0],
        "three channels": np.repeat(np.moveaxis(x, 1, -1), 3, axis=-1),
        "0 ... 1": x / np.float32(255),
        "-1 ... 1": np.moveaxis(x, 1, -1) / np.float64(127.5) - 1,
        "0 ... 255": x.astype(np.float16),
    }
    paths = {}
    for number, (name, array) in enumerate(arrays.items()):
        paths[name] = folder / f"{number}.npz"
        np.savez(paths[name], array)
    paths["npy"] = folder / "x.npy"
    np.save(paths["npy"], x)
    for mode in ("L", "RGB"):
        paths[mode] = folder / mode
        paths[mode].mkdir()
        for i, image in enumerate(x):
            Image.fromarray(image[0]).convert(mode).save(paths[mode] / f"{i:04}.png")
    return paths


def test_every_form_of_the_same_images_gives_the_same_figures(script, tmp_path):
    images = load_dataset("digits").items[100:160]
    reports = {}
    for name, path in forms(images, tmp_path).items():
        x, _ = load_images(path, (1, 8, 8))
        assert torch.equal(x, images), name
        result = script("evaluate", "--samples", path, *DIGITS, "--output", "m.json")
        assert result.code == 0, result.err
        report = json.loads(Path("m.json").read_text())
        reports[name] = {key: report[key] for key in ("classifier", "copies", "num_images")}
    assert len(reports) == 10
    assert all(report == reports["npy"] for report in reports.values())


def test_colours(tmp_path):
    torch.manual_seed(0)
    x = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    np.save(tmp_path / "x.npy", x.numpy())
    assert torch.equal(load_images(tmp_path / "x.npy", (3, 8, 8))[0], x)
    grey = load_images(tmp_path / "x.npy", (1, 8, 8))[0]
    colours = x.movedim(1, -1).numpy()
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colours])
    assert np.abs(grey[:, 0].numpy().astype(int) - expected).max() <= 1
    assert torch.equal(with_channels(grey, 3)[:, 2:], grey)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 7, 8), np.uint8), "shape"),
        (np.zeros((4, 8, 8), np.int64), "int64"),
        (np.full((4, 8, 8), 3e4), "3e+04"),
        (np.full((4, 8, 8), np.nan), "not finite"),
        (np.array([{}], dtype=object), "cannot be read"),
        (np.zeros((5, 8, 8), np.uint8), "too few"),
    ],
)
def test_arrays_that_are_no_images(script, array, message):
    np.savez("x.npz", array)
    result = script("evaluate", "--samples", "x.npz", *DIGITS)
    assert result.code == 1
    assert message in result.err
    assert len(result.err.splitlines()) == 1


def test_files_that_hold_no_images(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty").mkdir()
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    for path, message in [
        ("text.npz", "cannot be read"),
        ("none.npz", "does not exist"),
        ("empty", "no image"),
        (".", "9 x 8"),
    ]:
        with pytest.raises(DataError, match=message):
            load_images(tmp_path / path, (1, 8, 8))


# --- the script -----------------------------------------------------------------------------------


def test_a_checkpoint_is_measured(script, conditional):
    flags = ["--num-images", 30, "--steps", 4, "--repeats", 2, "--output", "new/m.json"]
    result = script("evaluate", "--checkpoint", conditional, *flags)
    assert result.code == 0, result.err
    report = json.loads(Path("new/m.json").read_text())
    assert report["num_images"] == 30
    assert report["seeds"] == [0, 1]
    assert (report["sampler"], report["steps"]) == ("dpmpp_2m_sde", 4)
    found = report["classifier"]
    assert len(found["sha256"]) == 64
    assert "class_p_value" not in found  # the classes were asked for
    for name in [*FIGURES[:7], "class_accuracy"]:
        assert f"\n{name} " in result.out
        assert len(found[name]["values"]) == len(found[name]["floor_values"]) == 2
    fid = found["classifier_fid"]
    assert fid["values"][0] != fid["values"][1]
    assert fid["ratio"] == pytest.approx(sum(fid["values"]) / sum(fid["floor_values"]))
    assert Path("new/m_nearest.png").is_file()
    assert "near-copies: " in result.out
    again = script("evaluate", "--checkpoint", conditional, *flags)
    assert "training the classifier" not in again.out
    assert json.loads(Path("new/m.json").read_text())["classifier"] == found


def test_what_is_drawn_is_what_sample_py_draws(script, trained, monkeypatch):
    checkpoint, seen = trained / "model_final.pt", []
    flags = ["--checkpoint", checkpoint, "--num-images", 20, "--steps", 3, "--precision", "fp32"]
    assert script("sample", *flags, "--output", "s.npz", "--seed", 4).code == 0
    measure = evaluate.copies
    monkeypatch.setattr(evaluate, "copies", lambda x, *real: seen.append(x) or measure(x, *real))
    script("evaluate", *flags, "--metrics", "copies", "--output", "a.json", "--seed", 4)
    with np.load("s.npz") as drawn:
        assert (seen[0].movedim(1, -1).numpy() == drawn["arr_0"]).all()
    script("evaluate", "--samples", "s.npz", *DIGITS, "--metrics", "copies", "--output", "b.json")
    a, b = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert a["num_images"] == b["num_images"] == 20
    # Their training images differ a little: the run knows which it held out.
    close = b["copies"]["median_distance"]
    assert a["copies"]["median_distance"] == pytest.approx(close, rel=0.05)


def test_folders_without_classes_have_no_classifier(script, image_folder):
    for path in list(image_folder.rglob("*.png")):
        path.rename(image_folder / path.name)
    np.savez("x.npz", np.zeros((6, 16, 16, 3), np.uint8))
    flags = ["--samples", "x.npz", "--dataset", "folder", "--data-dir", image_folder]
    flags += ["--image-size", 16]
    result = script("evaluate", *flags)
    assert result.code == 0, result.err
    assert "folder has no classes" in result.out
    assert "near-copies" in result.out
    result = script("evaluate", *flags, "--metrics", "classifier")
    assert result.code == 2
    assert "folder has no classes" in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give a --checkpoint, or --samples"),
        (["--checkpoint", "a", "--samples", "b"], "give a --checkpoint, or --samples"),
        (["--samples", "b"], "--dataset"),
        (["--samples", "b", "--dataset", "mnist", "--metrics", "bpd"], "no likelihood"),
        (["--samples", "b", "--dataset", "mnist", "--split", "validation"], "held the images out"),
        (["--checkpoint", "a", "--dataset", "mnist"], "a checkpoint knows its own"),
        (["--checkpoint", "a", "--metrics", "inception"], "--inception-weights"),
        (["--checkpoint", "a", "--churn-min", "1"], "--churn"),
        (["--samples", "b", "--dataset", "mnist", "--steps", "5"], "--steps is for a --checkpoint"),
        (["--checkpoint", "a", "--metrics", "copies", "--inception-weights", "w"], "is for"),
    ],
)
def test_flags_that_do_not_fit(script, flags, message):
    result = script("evaluate", *flags)
    assert result.code == 2
    assert message in result.err


def test_one_process_measures(script, conditional, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = script("evaluate", "--checkpoint", conditional)
    assert result.code == 2
    assert "evaluate.py is for one process" in result.err


def test_points_are_measured_elsewhere(script):
    np.savez("x.npz", np.zeros((5, 2), np.float32))
    result = script("evaluate", "--samples", "x.npz", "--dataset", "moons", "--metrics", "copies")
    assert result.code == 2
    assert "these are points" in result.err


# --- train.py --eval-interval ---------------------------------------------------------------------


def test_a_run_follows_its_distance(script, monkeypatch):
    monkeypatch.setattr(run, "EVALUATED", 40)
    monkeypatch.setattr(run, "AT_ONCE", 15)
    flags = [*TINY, "--epochs", 3, "--eval-interval", 2]
    result = script("train", *flags)
    assert result.code == 0, result.err
    rows = [row for row in read_metrics(Path("outputs/metrics.jsonl")) if "classifier_fid" in row]
    assert [row["epoch"] for row in rows] == [2, 3]  # the last one always
    assert f"epoch 3: classifier-FID {rows[1]['classifier_fid']:.3f}" in result.out + result.err
    # The same as evaluate.py's, of the same images.
    args = ["--checkpoint", "outputs/model_final.pt", "--metrics", "classifier", "--steps", 10]
    args += ["--num-images", 40, "--repeats", 1, "--precision", "fp32", "--output", "m.json"]
    assert script("evaluate", *args).code == 0
    found = json.loads(Path("m.json").read_text())["classifier"]["classifier_fid"]["mean"]
    assert found == pytest.approx(rows[1]["classifier_fid"], rel=0.01)


def test_following_the_distance_changes_nothing_else(script, monkeypatch):
    monkeypatch.setattr(run, "EVALUATED", 10)
    for name, options in {"plain": [], "followed": ["--eval-interval", 1]}.items():
        flags = [*TINY, "--epochs", 2, "--class-conditional", "--output-dir", name]
        assert script("train", *flags, *options).code == 0
    a, b = (load_checkpoint(f"{name}/model_final.pt") for name in ("plain", "followed"))
    for name, weight in a["ema"].items():
        assert torch.equal(weight, b["ema"][name])


def test_a_class_conditional_run_is_followed_by_its_classes(script, monkeypatch):
    """The labels that it asks for are those that evaluate.py judges by."""
    monkeypatch.setattr(run, "EVALUATED", 30)
    asked = []
    walk = run.Run.walk
    monkeypatch.setattr(
        run.Run, "walk", lambda self, *args: asked.append(args[2]) or walk(self, *args)
    )
    flags = [*TINY, "--max-steps", 3, "--class-conditional", "--eval-interval", 1]
    assert script("train", *flags, "--max-minutes", 5).code == 0  # with time that is planned
    labels = load_dataset("digits").labels
    assert any(torch.equal(y, classes_like(labels, 30)) for y in asked if y is not None)


def test_points_cannot_be_followed_so(script):
    result = script("train", "--dataset", "moons", "--eval-interval", 1, "--max-steps", 2)
    assert result.code == 2
    assert "--eval-interval is for images; moons is points" in result.err


# --- Inception ------------------------------------------------------------------------------------


def test_without_its_weights_the_rest_runs(script, tmp_path):
    np.savez("x.npz", load_dataset("digits").items[:50].numpy())
    flags = ["--samples", "x.npz", *DIGITS, "--metrics", "copies", "inception"]
    (tmp_path / "bad.pth").write_bytes(b"x" * 1000)
    for weights, message in [("none.pth", "does not exist"), ("bad.pth", "SHA-256")]:
        result = script("evaluate", *flags, "--inception-weights", weights)
        assert result.code == 0
        assert "inception is left out: " in result.err
        assert message in result.err
        assert inception.WHERE in result.err
        report = json.loads(Path("metrics.json").read_text())
        assert message in report["inception"]["left_out"]
        assert report["copies"]["near_copies"] > 0.9


def test_inception_by_torch_fidelity(script, monkeypatch):
    """With weights made up, as the true ones cannot be had here: the way is the same."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = extractor.FeatureExtractorInceptionV3
    monkeypatch.setattr(network, "load_state_dict", lambda self, state: torch.manual_seed(0))
    monkeypatch.setattr(extractor.torch, "load", lambda path, **_: {})
    Path("weights.pth").write_bytes(b"made up")
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(b"made up").hexdigest())
    monkeypatch.setattr(real_module, "held_out_count", lambda *_: 12)
    np.savez("x.npz", load_dataset("digits").items[:8].numpy())
    flags = ["--samples", "x.npz", *DIGITS, "--metrics", "inception"]
    result = script("evaluate", *flags, "--inception-weights", "weights.pth")
    assert result.code == 0, result.err
    found = json.loads(Path("metrics.json").read_text())["inception"]
    assert found["FID@8"] > 0
    assert found["IS"] >= 1
    assert found["tool"].startswith("torch-fidelity ")
    assert (found["num_images"], found["num_reference"]) == (8, 12)
    assert found["compared_with"] == "held out of training"
    assert "FID@8: " in result.out
