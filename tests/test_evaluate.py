"""evaluate.py: its measures of real images, how it reads given images, and its report."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from checkpoints.checkpoint import load_checkpoint
from cli.evaluation import EVALUATE
from dataset.items import indices_like
from dataset.registry import load_dataset
from evaluation import classifier, features, generated, inception
from evaluation import real as real_module
from evaluation.bits import bits_per_dimension
from evaluation.copies import find_near_copies
from evaluation.features import classifier_for, classifier_key
from evaluation.images import load_images, with_channels
from evaluation.measures import Reference
from evaluation.real import RealData, subset
from images import noise_pixels, save_image
from runs import SMALL
from training import loop, preview
from training.log import read_metrics
from utils import DataError

CPU = torch.device("cpu")
DIGITS = ["--dataset", "digits", "--repeats", 2]
MEASURES = ["classifier_fid", "classifier_kid", "precision", "recall", "density", "coverage"]
MEASURES += ["confidence", "class_accuracy"]


@pytest.fixture(scope="module")
def real() -> RealData:
    """The bundled digits, about a fifth of them held out."""
    data = load_dataset("digits")
    train, held_out = (subset(data, indices) for indices in torch.arange(1797).split(1397))
    return RealData("digits", train, held_out, "held out", False, Path("/dev/null/none"))


@pytest.fixture(scope="module")
def reference(real, tmp_path_factory) -> Reference:
    """The held-out digits in the features of a classifier with a good accuracy."""
    folder = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "STEPS", 60)
        trained = classifier_for(real._replace(cache=folder), folder, CPU)
    return Reference(trained, real)


# --- the stored classifier ------------------------------------------------------------------------


def test_classifier_learns_digits(reference):
    assert reference.classifier.accuracy > 0.9
    features = reference.classifier.predict(reference.train.items).features
    assert features.std(dim=0).mean() == pytest.approx(1, abs=0.05)


def test_stored_classifier_is_read(reference, real):
    said = []
    again = classifier_for(real, reference.classifier.path.parent, CPU, say=said.append)
    assert said == []
    assert again.sha256 == reference.classifier.sha256
    assert again.accuracy == reference.classifier.accuracy
    for a, b in zip(again.predict(real.held_out.items), reference.predictions, strict=True):
        assert torch.equal(a, b)


def test_damaged_classifier_is_trained_again(real, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 2)
    trained = classifier_for(real, tmp_path, CPU)
    content = bytearray(trained.path.read_bytes())
    content[-100] ^= 1
    for damaged in (content, b"hello", b""):
        trained.path.write_bytes(damaged)
        said = []
        again = classifier_for(real, tmp_path, CPU, say=said.append)
        assert "training the classifier of digits" in said[0]
        assert again.sha256 == trained.sha256  # from the same seed


def test_classifier_is_stored_where_possible(real, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 1)
    (tmp_path / "file").write_text("")
    real = real._replace(cache=tmp_path / "file" / "below")
    assert classifier_for(real, tmp_path / "second", CPU).path.parent == tmp_path / "second"
    assert classifier_for(real, tmp_path / "file", CPU).path is None


def test_each_data_set_and_recipe_has_its_own_classifier(real, monkeypatch):
    other = real.train._replace(items=real.train.items.clone())
    other.items[0, 0, 0, 0] += 1
    keys = [classifier_key(data, flip) for data in (real.train, other) for flip in (False, True)]
    monkeypatch.setattr(features, "RECIPE", 10**6)
    assert len({*keys, classifier_key(real.train, False)}) == 5


def test_larger_classifier_replaces_a_smaller_one(real, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 1)
    smaller = classifier_for(real, tmp_path, CPU)
    monkeypatch.setattr(classifier, "LARGER", ["digits"])
    for _ in range(2):  # trained, and then read
        larger = classifier_for(real, tmp_path, CPU)
        assert larger.predict(real.held_out.items[:3]).features.shape == (3, 256)
    assert larger.path == smaller.path


# --- measures -------------------------------------------------------------------------------------


def test_measures_tell_real_images_from_noise_and_from_a_single_class(reference, real):
    def measured(images, count=300):
        return reference.measure(reference.classifier.predict(images[:count]))

    torch.manual_seed(0)
    order = torch.randperm(len(real.train.items))
    good = measured(real.train.items[order])
    noise = measured(torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8))
    ones = measured(real.train.items[real.train.labels == 1], 100)
    for name in ("classifier_fid", "classifier_kid"):
        assert 5 * good[name] < min(ones[name], noise[name])
    assert good["precision"] > 0.6
    assert good["recall"] > 0.6
    assert noise["precision"] < 0.3
    assert ones["recall"] < 0.4
    assert ones["class_p_value"] < 1e-6 < good["class_p_value"]
    assert good["confidence"] > noise["confidence"]


def test_images_of_the_requested_class_are_counted(reference, real):
    predictions = reference.predictions
    right = reference.measure(predictions, real.held_out.labels)["class_accuracy"]
    wrong = reference.measure(predictions, (real.held_out.labels + 1) % 10)["class_accuracy"]
    assert right == pytest.approx(reference.classifier.accuracy)
    assert wrong < 0.1


def test_order_of_the_images_does_not_decide_which_are_compared(reference, real):
    """A file may be sorted by class, and have more images than are held out."""
    order = real.train.labels.argsort()
    found = reference.measure(reference.classifier.predict(real.train.items[order]))
    assert found["recall"] > 0.6
    assert found["coverage"] > 0.6


def test_near_copies_are_found(real):
    train, held_out = real.train.items, real.held_out.items
    copied = train[:40].int() + torch.randint(-2, 3, (40, 1, 8, 8))
    generated = torch.cat([copied.clamp(0, 255).byte(), held_out[:160]])
    found = find_near_copies(generated, train, held_out)
    assert found.indices[:40].tolist() == list(range(40))
    assert found.fraction == pytest.approx(0.2, abs=0.02)
    assert (found.distances[:40] < 3).all()
    assert found.record()["near_copies"] == found.fraction
    # Images that the data have twice do not make every threshold 0.
    twice = torch.cat([held_out, train[100:110]])
    assert find_near_copies(generated, train, twice).fraction == found.fraction
    assert find_near_copies(generated, train, train[:10]).fraction == 0


def test_new_images_are_not_near_copies(real):
    train, held_out = real.train.items, real.held_out.items
    assert find_near_copies(held_out, train, held_out).fraction <= 0.011


# --- given images ---------------------------------------------------------------------------------


@pytest.fixture
def quick(script, monkeypatch) -> None:
    """The commands train a classifier that has learned little, where no figure has to be good."""
    monkeypatch.setattr(classifier, "STEPS", 3)


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


def test_every_form_of_the_same_images_is_read_alike(script, quick, tmp_path):
    images = load_dataset("digits").items[100:160]
    paths = forms(images, tmp_path)
    assert len(paths) == 10
    for name, path in paths.items():
        assert torch.equal(load_images(path, (1, 8, 8))[0], images), name
    reports = []
    for name in ("npy", "RGB"):
        result = script("evaluate", "--samples", paths[name], *DIGITS, "--output", "m.json")
        assert result.code == 0, result.err
        reports.append(json.loads(Path("m.json").read_text()))
    assert [report["read_as"] for report in reports] == ["uint8", "60 files"]
    for key in ("num_images", "classifier", "copies"):
        assert reports[0][key] == reports[1][key]


def test_colour_and_grey_images_are_converted(tmp_path):
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
    "dtype", ["i1", "<u2", ">u2", ">i4", "i8", ">u8", ">f2", ">f4", ">f8", "g"]
)
def test_numbers_of_any_type_and_byte_order_are_read(tmp_path, dtype):
    x = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8) // (2 if dtype == "i1" else 1)
    np.save(tmp_path / "x.npy", x.astype(dtype))
    found, _ = load_images(tmp_path / "x.npy", (1, 8, 8))
    assert (found[:, 0].numpy() == x).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 7, 8), np.uint8), "shape"),
        (np.full((4, 8, 8), 256, np.int64), "int64 from 256 to 256; images must be"),
        (np.full((4, 8, 8), -1, ">i2"), "int16 from -1 to -1"),
        (np.zeros((4, 8, 8), bool), "contains bool; images"),
        (np.zeros((4, 8, 8), complex), "contains complex128"),
        (np.full((4, 8, 8), "a"), "contains str32"),
        (np.full((4, 8, 8), 3e4), r"3e\+04"),
        (np.full((4, 8, 8), np.nan), "not finite"),
        (np.array([{}], dtype=object), "pickled Python objects, which are never loaded"),
    ],
)
def test_arrays_that_are_not_images_are_refused(tmp_path, array, message):
    np.savez(tmp_path / "x.npz", array)
    with pytest.raises(DataError, match=message):
        load_images(tmp_path / "x.npz", (1, 8, 8))


def test_too_few_images_are_refused(script):
    np.savez("x.npz", np.zeros((5, 8, 8), np.uint8))
    result = script("evaluate", "--samples", "x.npz", *DIGITS)
    assert result.code == 1
    assert "x.npz has only 5 images" in result.err
    assert len(result.err.splitlines()) == 1


def test_files_without_images_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty").mkdir()
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    (tmp_path / "pointer.npz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    np.savez(tmp_path / "cut.npz", np.zeros((4, 8, 8)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-50])
    for path, message in [
        ("text.npz", "text.npz is a text file; --samples takes an .npz"),
        ("wide.png", "wide.png is a PNG image; --samples takes an .npz"),
        ("pointer.npz", "pointer.npz is a git-LFS pointer"),
        ("pickled.npy", "pickled.npy is a NumPy array of pickled Python objects"),
        ("cut.npz", "cut.npz is a damaged copy of a file of NumPy arrays"),
        ("none.npz", "does not exist"),
        ("empty", "no image"),
        (".", "wide.png has 9 x 8 pixels, but the data set has 8 x 8; --image-size 8x9 resizes"),
    ]:
        with pytest.raises(DataError, match=message):
            load_images(tmp_path / path, (1, 8, 8))


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((6, 8, 12), "--image-size 8x12 resizes"),
        ((6, 3, 8, 12), "--image-size 8x12 resizes"),
        ((6, 12, 8, 1), "--image-size 12x8 resizes"),
        ((6, 8, 8, 4), "with C 1 or 3$"),
        ((6, 64), "with C 1 or 3$"),
    ],
)
def test_arrays_of_other_shapes_say_the_way_out(tmp_path, shape, way):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=way):
        load_images(tmp_path / "x.npy", (1, 8, 8))


def test_samples_behind_links_and_beside_bad_files(script, tmp_path):
    for i in range(6):
        save_image(tmp_path / "far" / f"{i}.png", noise_pixels(8, 8))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "far").symlink_to("../far")
    flags = ["--samples", "links", "--dataset", "folder", "--image-size", 8, "--output", "m.json"]
    for data in ("far", "links"):
        result = script("evaluate", *flags, "--data-dir", data)
        assert result.code == 1
        assert "1 symbolic link leads out of links" in result.err
        assert "--follow-links" in result.err
    flags += ["--metrics", "copies", "--data-dir", "links", "--follow-links"]
    (tmp_path / "links" / "bad.png").write_text("<html>")
    assert "--skip-bad-images" in script("evaluate", *flags).err
    with pytest.raises(DataError, match=r"links/bad.png cannot .*; --skip-bad-images leaves"):
        load_images(Path("links"), (1, 8, 8), follow_links=True)
    result = script("evaluate", *flags, "--skip-bad-images")
    assert result.code == 0, result.err
    assert "6 images, 6 files; 1 of 7 cannot be read and are left out" in result.out


def test_samples_need_one_size(tmp_path):
    save_image(tmp_path / "a.png", noise_pixels(8, 8))
    save_image(tmp_path / "b.png", noise_pixels(8, 9))
    with pytest.raises(DataError, match=r"b.png has 9 x 8 pixels, but .*a.png 8 x 8; all"):
        load_images(tmp_path, (1, 8, 8))


# --- the command ----------------------------------------------------------------------------------


def test_samples_of_a_checkpoint_are_measured(script, quick, conditional):
    flags = ["--num-images", 30, "--steps", 4, "--repeats", 2, "--output", "new/m.json"]
    result = script("evaluate", "--checkpoint", conditional, *flags)
    assert result.code == 0, result.err
    report = json.loads(Path("new/m.json").read_text())
    assert report["num_images"] == 30
    assert report["seeds"] == [0, 1]
    assert (report["sampler"], report["steps"]) == ("dpmpp_2m_sde", 4)
    found = report["classifier"]
    assert len(found["sha256"]) == 64
    assert "class_p_value" not in found  # classes were requested
    for name in MEASURES:
        assert f"\n{name} " in result.out
        assert len(found[name]["values"]) == len(found[name]["floor_values"]) == 2
    fid = found["classifier_fid"]
    assert fid["values"][0] != fid["values"][1]
    assert fid["floor_values"][0] != fid["floor_values"][1]
    assert fid["ratio"] == pytest.approx(sum(fid["values"]) / sum(fid["floor_values"]))
    assert Path("new/m_nearest.png").is_file()
    assert "near-copies: " in result.out
    again = script("evaluate", "--checkpoint", conditional, *flags)
    assert "training the classifier" not in again.out
    assert json.loads(Path("new/m.json").read_text())["classifier"] == found


def test_classes_are_sampled_as_often_as_they_are_in_the_data(conditional, real):
    flags = ["--checkpoint", conditional, "--num-images", 25, "--steps", 1, "--repeats", 1]
    request = EVALUATE.parse([*map(str, flags)])
    found = generated.sampled_images(request, real.train, say=lambda line: None)
    assert torch.equal(found.labels, real.train.labels[indices_like(len(real.train.labels), 25)])


def test_likelihood_depends_on_the_class_labels_but_not_on_the_batch_size(conditional, real):
    flags = ["--checkpoint", str(conditional), "--num-images", "2", "--ode-steps", "2"]
    flipped = real._replace(held_out=real.held_out._replace(labels=real.held_out.labels.flip(0)))

    def bound(compared: RealData, *more: str) -> float:
        request, checkpoint = EVALUATE.parse([*flags, *more]), load_checkpoint(conditional)
        options = {"progress": tqdm, "say": lambda line: None}
        return bits_per_dimension(request, checkpoint, compared, CPU, **options)["bpd_bound"]

    expected = bound(real)
    assert bound(real, "--batch-size", "1") == pytest.approx(expected, rel=1e-5)
    assert abs(bound(flipped) / expected - 1) > 1e-4


def test_measured_images_are_those_of_sample_py(script, trained, monkeypatch):
    checkpoint, drawn = trained / "model_final.pt", []
    flags = ["--checkpoint", checkpoint, "--num-images", 20, "--steps", 3, "--precision", "fp32"]
    assert script("sample", *flags, "--output", "s.npz", "--seed", 4).code == 0
    draw = generated.draw
    monkeypatch.setattr(generated, "draw", lambda job: drawn.append(draw(job)) or drawn[-1])
    script("evaluate", *flags, "--metrics", "copies", "--output", "a.json", "--seed", 4)
    with np.load("s.npz") as file:
        assert (drawn[0].items.movedim(1, -1).numpy() == file["arr_0"]).all()
    script("evaluate", "--samples", "s.npz", *DIGITS, "--metrics", "copies", "--output", "b.json")
    a, b = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert a["num_images"] == b["num_images"] == 20
    # Their training images differ slightly: the run knows which images it held out.
    close = b["copies"]["median_distance"]
    assert a["copies"]["median_distance"] == pytest.approx(close, rel=0.05)


def test_folder_without_classes_has_no_classifier(script, image_folder):
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
        ([], "give either --checkpoint or --samples"),
        (["--checkpoint", "a", "--samples", "b"], "give either --checkpoint or --samples"),
        (["--samples", "b"], "--samples needs --dataset"),
        (["--samples", "b", "--dataset", "mnist", "--metrics", "bpd"], "no likelihood"),
        (["--samples", "b", "--dataset", "mnist", "--split", "validation"], "held items out"),
        (["--checkpoint", "a", "--dataset", "mnist"], "without --samples"),
        (["--checkpoint", "a", "--metrics", "inception"], "--inception-weights"),
        (["--checkpoint", "a", "--churn-min", "1"], "without --churn"),
        (["--samples", "b", "--dataset", "mnist", "--steps", "5"], "without --checkpoint"),
        (["--checkpoint", "a", "--metrics", "copies", "--inception-weights", "w"], "has no effect"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(script, flags, message):
    result = script("evaluate", *flags)
    assert result.code == 2
    assert message in result.err


def test_data_of_a_tensor_cannot_be_loaded():
    config = {"data": {"dataset": "custom", "data_dir": ""}, "train": {"validation": 5, "seed": 0}}
    request = EVALUATE.parse(["--checkpoint", "x.pt"])
    with pytest.raises(ValueError, match=r"x\.pt was trained by fit\(\)"):
        real_module.load_real_data(request, {"config": config})


def test_several_processes_are_refused(script, conditional, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = script("evaluate", "--checkpoint", conditional)
    assert result.code == 2
    assert "evaluate.py runs in one process" in result.err


def test_points_have_no_image_metrics(script):
    np.savez("x.npz", np.zeros((5, 2), np.float32))
    result = script("evaluate", "--samples", "x.npz", "--dataset", "moons", "--metrics", "copies")
    assert result.code == 2
    assert "--metrics copies is for images" in result.err


# --- train.py --eval-interval ---------------------------------------------------------------------


def test_classifier_fid_during_training_is_that_of_evaluate(script, quick, monkeypatch):
    monkeypatch.setattr(loop, "EVALUATED", 40)
    monkeypatch.setattr(preview, "AT_ONCE", 1)  # batches of 16 images of 8 x 8 pixels
    flags = [*SMALL, "--epochs", 3, "--max-minutes", 60, "--eval-interval", 2]
    result = script("train", *flags)
    assert result.code == 0, result.err
    rows = [row for row in read_metrics(Path("outputs/metrics.jsonl")) if "classifier_fid" in row]
    assert [row["epoch"] for row in rows] == [2, 3]  # always after the last epoch
    assert f"epoch 3: classifier-FID {rows[1]['classifier_fid']:.3f}" in result.out + result.err
    flags = ["--checkpoint", "outputs/model_final.pt", "--metrics", "classifier", "--steps", 10]
    flags += ["--num-images", 40, "--repeats", 1, "--precision", "fp32", "--output", "m.json"]
    assert script("evaluate", *flags).code == 0
    found = json.loads(Path("m.json").read_text())["classifier"]["classifier_fid"]["mean"]
    assert found == pytest.approx(rows[1]["classifier_fid"], rel=0.01)


def test_evaluating_during_training_does_not_change_the_weights(script, quick, monkeypatch):
    """The evaluated images have the class frequencies of the data, as evaluate.py's have."""
    monkeypatch.setattr(loop, "EVALUATED", 30)
    labels, sample = [], preview.Preview.sample

    def recorded(self, steps, indices, requested):
        labels.append(requested)
        return sample(self, steps, indices, requested)

    monkeypatch.setattr(preview.Preview, "sample", recorded)
    for folder, options in {"plain": [], "evaluated": ["--eval-interval", 1]}.items():
        flags = [*SMALL, "--epochs", 2, "--class-conditional", "--output-dir", folder]
        assert script("train", *flags, *options).code == 0
    a, b = (load_checkpoint(f"{folder}/model_final.pt") for folder in ("plain", "evaluated"))
    assert all(torch.equal(weight, b["ema"][name]) for name, weight in a["ema"].items())
    of_data = load_dataset("digits").labels
    expected = of_data[indices_like(len(of_data), 30)]
    assert sum(torch.equal(requested.label, expected) for requested in labels) == 2


def test_points_have_no_classifier_fid_during_training(script):
    result = script("train", "--dataset", "moons", "--eval-interval", 1, "--max-steps", 2)
    assert result.code == 2
    assert "--eval-interval is for images, and moons is points" in result.err


# --- Inception ------------------------------------------------------------------------------------


def test_other_metrics_are_measured_without_inception_weights(script, tmp_path):
    np.savez("x.npz", load_dataset("digits").items[:50].numpy())
    flags = ["--samples", "x.npz", *DIGITS, "--metrics", "copies", "inception"]
    (tmp_path / "bad.pth").write_bytes(b"x" * 1000)
    for weights, message in [("none.pth", "does not exist"), ("bad.pth", "SHA-256")]:
        result = script("evaluate", *flags, "--inception-weights", weights)
        assert result.code == 0
        assert "inception is left out: " in result.err
        assert message in result.err
        assert inception.URL in result.err
        report = json.loads(Path("metrics.json").read_text())
        assert message in report["inception"]["left_out"]
        assert report["copies"]["near_copies"] > 0.9


def test_inception_by_torch_fidelity(script, monkeypatch):
    """With random weights, because the published file is not available here."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = extractor.FeatureExtractorInceptionV3
    monkeypatch.setattr(network, "load_state_dict", lambda self, state: torch.manual_seed(0))
    monkeypatch.setattr(extractor.torch, "load", lambda path, **_: {})
    monkeypatch.setattr(network, "INPUT_IMAGE_SIZE", 75)  # not 299, which takes 13 times as long
    Path("weights.pth").write_bytes(b"random")
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(b"random").hexdigest())
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
