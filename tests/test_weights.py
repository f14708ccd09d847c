"""Weights files (safetensors), exported weights and their model cards."""

import copy
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import export
from checkpoints.card import drawing_flags, figures_table, model_card
from checkpoints.checkpoint import (
    CheckpointError,
    load_checkpoint,
    restore,
    save_checkpoint,
)
from checkpoints.reading import step_of, verify_checkpoint
from checkpoints.weights import save_weights, weights_sha256
from cli import process
from cli.export import EXPORT
from conftest import ROOT
from evaluation import classifier
from models import MODELS, build_model, model_config

SHAPES = {"images": {"image_size": 8, "image_channels": 1}, "points": {"dim": 2}}


@pytest.fixture(scope="module")
def exported_once(trained, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "weights.safetensors"
    words = ["--checkpoint", str(trained / "model_final.pt"), str(path)]
    assert process.run(export.main, EXPORT.parse(words)) == 0
    return path


@pytest.fixture
def exported(exported_once, tmp_path) -> Path:
    """A copy of exported weights, which a test may damage."""
    return Path(shutil.copy(exported_once, tmp_path))


def write_checkpoint(path: Path, name: str) -> dict:
    """Write a checkpoint of a network with random weights, and return it."""
    shape = SHAPES[MODELS[name].kind]
    model = model_config(name, shape, 50, {"channels": 8})
    data = {"dataset": "digits" if "image_size" in shape else "moons", "data_dir": "data"}
    data |= {**shape, "count": 9, "classes": []}
    config = {"data": data, "model": model, "diffusion": {"timesteps": 50}}
    config["train"] = {"label_dropout": 0.1, "total_steps": None}
    config["train"] |= {"batch_size": 8, "update_size": 8, "processes": 1}
    torch.manual_seed(0)
    weights = {}
    for which in ("model", "ema"):
        state = build_model(model).state_dict()
        weights[which] = {n: w + torch.rand(w.shape).to(w.dtype) for n, w in state.items()}
    rest = {"step": 7, "skipped": 0, "seconds": 1.5, "optimizer": {}, "scaler": None}
    rest |= {"unlogged_loss": 0.0, "unlogged_updates": 0}
    checkpoint = {"config": config, **weights, **rest}
    save_checkpoint(path, checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("name", "raw"), [("unet", True), *((name, i % 2 == 1) for i, name in enumerate(MODELS))]
)
def test_weights_of_every_network_survive_the_export(script, tmp_path, name, raw):
    checkpoint, which = write_checkpoint(tmp_path / "c.pt", name), "model" if raw else "ema"
    flags = ["--raw"] if raw else []
    result = script(
        "export", "--checkpoint", "c.pt", "--to", "safetensors", *flags, "w.safetensors"
    )
    assert result.code == 0, result.err
    weights = load_checkpoint("w.safetensors")
    assert (weights["step"], weights["config"]) == (7, checkpoint["config"])
    assert step_of(tmp_path / "w.safetensors") == 7
    for source in (load_file("w.safetensors"), weights[which]):
        torch.testing.assert_close(source, checkpoint[which], rtol=0, atol=0)
    assert ("ema" if raw else "model") not in weights
    model, diffusion = restore(weights, raw=raw)
    assert diffusion.timesteps == 50
    torch.testing.assert_close(dict(model.state_dict()), checkpoint[which], rtol=0, atol=0)


def test_the_file_explains_itself(exported, trained):
    with safe_open(exported, framework="np") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", "step", "config", "weights", "sha256"}
    assert (metadata["step"], metadata["weights"]) == ("26", "moving average")
    assert json.loads(metadata["config"]) == json.loads((trained / "config.json").read_text())


@pytest.mark.parametrize("output", ["picture.png", "pixels.npz"])
def test_exported_weights_sample_the_same_bits(script, exported, trained, tmp_path, output):
    for source in (trained / "model_final.pt", exported):
        folder = tmp_path / source.suffix[1:]
        folder.mkdir()
        flags = ["--num-images", 9, "--steps", 5, "--seed", 3, "--output", folder / output]
        result = script("sample", "--checkpoint", source, *flags)
        assert result.code == 0, result.err
        assert "digits, step 26, weights: moving average" in result.out
    paths = [tmp_path / kind / output for kind in ("pt", "safetensors")]
    if output.endswith(".npz"):
        assert (np.load(paths[0])["arr_0"] == np.load(paths[1])["arr_0"]).all()
    else:
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_evaluate_and_export_read_exported_weights(script, conditional):
    assert script("export", "--checkpoint", conditional, "w.safetensors").code == 0
    flags = ["--metrics", "bpd", "--num-images", 2, "--ode-steps", 2, "--output"]
    for source, name in [(conditional, "a"), ("w.safetensors", "b")]:
        assert script("evaluate", "--checkpoint", source, *flags, f"{name}.json").code == 0
        assert script("export", "--checkpoint", source, f"{name}.npz").code == 0
    a, b = (json.loads(Path(f"{name}.json").read_text()) for name in "ab")
    assert {**a, "checkpoint": None} == {**b, "checkpoint": None}
    with np.load("a.npz") as whole, np.load("b.npz") as weights:
        assert all((whole[name] == weights[name]).all() for name in whole.files)
    assert script("export", "--checkpoint", "w.safetensors", "again.safetensors").code == 0
    again = load_checkpoint("again.safetensors")
    assert again["config"] == load_checkpoint(conditional)["config"]


def test_the_kind_of_file_is_recognised_by_content_not_by_name(exported, trained, tmp_path):
    shutil.copy(exported, tmp_path / "weights.pt")
    assert "optimizer" not in load_checkpoint(tmp_path / "weights.pt")
    shutil.copy(trained / "model_final.pt", tmp_path / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="is not a safetensors file; if it is a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.safetensors")


def test_missing_weights_are_an_error(script, exported, trained):
    result = script("sample", "--checkpoint", exported, "--raw")
    assert result.code == 2
    assert "holds only the moving average of the weights: omit --raw" in result.err
    script("export", "--checkpoint", trained / "model_final.pt", "--raw", "raw.safetensors")
    assert script("sample", "--checkpoint", "raw.safetensors", "--raw", "--steps", 1).code == 0
    result = script("sample", "--checkpoint", "raw.safetensors")
    assert result.code == 2
    assert "holds only the weights as trained: add --raw" in result.err


def test_training_does_not_resume_from_weights(script, exported):
    result = script("train", "--resume", exported)
    assert result.code == 1
    assert "weights.safetensors holds weights alone; training resumes only from" in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "outputs/model.npz"),
        (["--to", "safetensors"], "outputs/model.safetensors"),
        (["--half"], "outputs/model.safetensors"),
        (["--quantize", "int8"], "outputs/model.safetensors"),
        (["m.safetensors"], "m.safetensors"),
        (["--to", "numpy", "m.npz"], "m.npz"),
    ],
)
def test_file_format_and_name_follow_from_each_other(script, trained, tmp_path, arguments, name):
    result = script("export", "--checkpoint", trained / "model_final.pt", *arguments)
    assert result.code == 0, result.err
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.pt"], "model.pt: the name must end in .npz, .onnx, .pt2, .safetensors or .html"),
        (["--to", "numpy", "m.safetensors"], "the name of the file must end in .npz"),
        (["--to", "safetensors", "m.npz"], "the name of the file must end in .safetensors"),
    ],
)
def test_a_name_of_another_format_is_refused(script, trained, tmp_path, arguments, message):
    result = script("export", "--checkpoint", trained / "model_final.pt", *arguments)
    assert result.code == 2
    assert message in result.err
    assert list(tmp_path.iterdir()) == []


# --- damaged and malicious files -----------------------------------------------------------------


def test_every_flipped_bit_is_detected(exported):
    content, rng = exported.read_bytes(), random.Random(0)
    header = int.from_bytes(content[:8], "little") + 8
    bits = [rng.randrange(8 * header) for _ in range(30)]
    bits += [rng.randrange(8 * header, 8 * len(content)) for _ in range(30)]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        exported.write_bytes(flipped)
        for read in (verify_checkpoint, load_checkpoint):
            with pytest.raises(CheckpointError, match=r"weights\.safetensors "):
                read(exported)
    exported.write_bytes(content)
    verify_checkpoint(exported)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.5, 0.9999])
def test_a_truncated_file_is_refused(exported, share):
    content = exported.read_bytes()
    exported.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        load_checkpoint(exported)


def test_a_long_header_is_refused(exported):
    for length in (2**22 + 1, 2**40, 2**63):
        exported.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * 2**23)
        with pytest.raises(CheckpointError, match="its header is too long"):
            load_checkpoint(exported)


def test_weights_of_other_programs_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "tiny-diffusion-2"}):
        save_file({"w": torch.zeros(3)}, path, metadata)
        with pytest.raises(CheckpointError, match="holds weights, but export"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "channels", 10**9),
        ("model", "channels", 16),
        ("model", "blocks", True),
        ("diffusion", "timesteps", 10**12),
        ("diffusion", "sigma_data", float("nan")),
        ("data", "image_size", 4096),
        ("data", "classes", [[[[]]]]),
    ],
)
def test_invalid_configurations_are_refused(script, exported, section, key, value):
    weights = load_checkpoint(exported)
    config = copy.deepcopy(weights["config"])
    config[section][key] = value
    save_weights(exported, config, 26, "ema", weights["ema"])
    result = script("sample", "--checkpoint", exported)
    assert result.code == 1
    assert "contradicts itself" in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"config": "[" * 10**5},
        {"config": "5"},
        {"config": "nothing"},
        {"step": "-1"},
        {"step": "many"},
        {"step": "9" * 30},
        {"weights": "of gold"},
    ],
)
def test_invalid_metadata_is_refused(exported, change):
    with safe_open(exported, framework="pt") as file:
        metadata = {**file.metadata(), **change}
    del metadata["sha256"]
    tensors = load_file(exported)
    save_file(tensors, exported, {**metadata, "sha256": weights_sha256(metadata, tensors)})
    with pytest.raises(CheckpointError, match=r"weights\.safetensors (is|contradicts)"):
        load_checkpoint(exported)


def test_the_model_card_names_data_recipe_and_figures(script, conditional, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 3)
    flags = ["--num-images", 20, "--steps", 2, "--repeats", 2, "--output", "m.json"]
    assert script("evaluate", "--checkpoint", conditional, *flags).code == 0
    command = ["--checkpoint", conditional, "new/digits.safetensors", "--card"]
    result = script("export", *command, "m.json")
    assert result.code == 0, result.err
    assert script("export", *command, "m.json", "--overwrite").code == 0
    kept = script("export", *command, "m.json")
    assert kept.code == 2
    assert "new/digits.safetensors exists: choose another OUTPUT" in kept.err
    assert "model card: new/digits.md" in result.out
    card = Path("new/digits.md").read_text()
    report = json.loads(Path("m.json").read_text())
    parameters = sum(w.numel() for w in load_checkpoint(conditional)["ema"].values())
    assert f"{parameters:,} parameters" in card
    assert "sample.py --checkpoint new/digits.safetensors --sampler dpmpp_2m_sde --steps 2" in card
    assert "The weights are the moving average" in card
    assert " minutes of training" in card
    assert "5 training steps of 128 images" in card
    assert "began with" not in card
    saved = load_checkpoint(conditional)
    saved["config"]["train"]["init_from"] = "before.pt"
    further = model_card("m", "", saved["config"], 5, 0, ("ema", saved["ema"]), None)
    assert "\nThe network began with the weights of before.pt.\n" in further
    assert "The network is conditioned on the class." in card
    assert f"| classifier-FID | {report['classifier']['classifier_fid']['mean']:.4g} (" in card
    assert "| images of the requested class | " in card
    assert "Near-copies of training images: " in card
    test = {"mean": 0.7, "values": [0.6, 0.8], "floor": 0.5}
    alone = {key: report[key] for key in ("num_images", "seeds", "compared_with")}
    alone["two_sample"] = {"auc": test, "auc_16_levels": test, "num_images": 20}
    assert "from real images | 0.7 (0.6 to 0.8) | 0.5 |" in figures_table(alone)
    assert "1.00 % (held-out" in figures_table({"copies": {"near_copies": 0.01, "of_held_out": 0}})
    assert drawing_flags({"steps": 2, "spacing": "upper"}) == "--steps 2 --spacing upper"

    again = ["--checkpoint", "new/digits.safetensors", "again.npz", "--card", "m.json"]
    assert script("export", *again).code == 0
    card = Path("again.md").read_text()
    assert "python -m mini_diffusion.sample again.npz" in card
    assert " minutes of training" not in card

    for options, message in [
        (["m.json", "--overwrite", "--raw"], "of other weights"),
        (["none.json", "--overwrite"], "No such file"),
        ([conditional, "--overwrite"], "--card"),
    ]:
        result = script("export", *command, *options)
        assert result.code == 2
        assert "--card" in result.err
        assert message in result.err


EVERY = sorted((ROOT / "weights").glob("*.safetensors"))
GUIDES = [path for path in EVERY if path.stem.endswith("_guide")]
PUBLISHED = [path for path in EVERY if path not in GUIDES]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_weights_sample_images(script, path):
    flags = ["--num-images", 20, "--steps", 4, "--guidance-scale", 1.3, "--precision", "fp32"]
    result = script("sample", "--checkpoint", path, *flags, "--output", "s.npz")
    assert result.code == 0, result.err
    with np.load("s.npz") as drawn:
        images = drawn["arr_0"]
    assert 10 < images.mean() < 220  # ink, and paper
    assert images.std() > (25 if path.stem == "cifar10" else 50)  # of few steps
    assert path.stat().st_size < 12e6
    weights, card = load_checkpoint(path), path.with_suffix(".md").read_text(encoding="utf-8")
    assert not Path(weights["config"]["data"]["data_dir"]).is_absolute()
    assert card.startswith(f"# {path.name}")
    assert f"python sample.py --checkpoint weights/{path.name} " in card
    assert f"{sum(w.numel() for w in weights['ema'].values()):,} parameters" in card
    assert f"{weights['step']:,} training steps" in card
    assert "classifier-FID" in card or "images of which all statements are right" in card


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_published_guide_guides_its_network(script, guide):
    guided = guide.with_stem(guide.stem.removesuffix("_guide"))
    assert f"--guide weights/{guide.name} " in guided.with_suffix(".md").read_text(encoding="utf-8")
    flags = ["--guide", guide, "--guidance-scale", 1.5, "--num-images", 4, "--steps", 2]
    assert script("sample", "--checkpoint", guided, *flags).code == 0
    assert load_checkpoint(guide)["step"] < load_checkpoint(guided)["step"]


def test_there_are_published_weights():
    assert "mnist" in [path.stem for path in PUBLISHED]
