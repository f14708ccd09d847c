"""export.py --to onnx, --to pt2, --half and --quantize: the files compute what the network does."""

import importlib.util
import io
import json
import os
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import export
from checkpoints.checkpoint import CheckpointError, load_checkpoint, restore
from checkpoints.quantized import SCALE, dequantized, quantized
from checkpoints.weights import save_weights
from cli import process
from cli.export import EXPORT
from conditions import Condition
from conftest import ROOT
from diffusion import GaussianDiffusion
from exports import FORMS, sampling_command
from exports.network import TrainedNetwork
from exports.onnx_file import METADATA, check, save_onnx
from exports.program import condition_names, example_inputs
from models import MODELS, build_model, model_config
from sample import sample
from utils import NoisePerImage

T = 50


def network_of(name: str, **options) -> TrainedNetwork:
    """A network with random weights."""
    shape = {"dim": 2} if name == "mlp" else {"image_size": 8, "image_channels": 1}
    config = model_config(name, shape, T, options)
    torch.manual_seed(0)
    model = build_model(config).eval().requires_grad_(False)
    for p in model.parameters():  # the initial values are partly zero
        p += 0.1 * torch.randn_like(p)
    process = {"schedule": "flow", "prediction": "v", "timesteps": T, "clip": name != "mlp"}
    process["learn_sigma"] = options.get("learn_sigma", False)
    classes = [str(i) for i in range(options.get("num_classes", 0))]
    data = {"dataset": "digits", "data_dir": "data", "count": 1, "classes": classes, **shape}
    train = {"label_dropout": 0.1, "total_steps": None}
    train |= {"batch_size": 8, "update_size": 8, "processes": 1}
    config = {"model": config, "data": data, "diffusion": process, "train": train}
    return TrainedNetwork(config, 7, "ema", model, GaussianDiffusion(**process))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The weights of a U-Net with three classes and a learned variance."""
    options = {"channels": 8, "multipliers": (1,), "num_classes": 3, "learn_sigma": True}
    config, step, which, model, _ = network_of("unet", **options)
    path = tmp_path_factory.mktemp("checkpoint") / "unet.safetensors"
    save_weights(path, config, step, which, model.state_dict())
    return path


def exported(checkpoint: Path, path: Path, *arguments: str) -> Path:
    words = ["--checkpoint", str(checkpoint), *arguments, str(path)]
    assert process.run(export.main, EXPORT.parse(words)) == 0
    return path


# --- ONNX ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_file(checkpoint, tmp_path_factory) -> Path:
    """The ONNX file of a U-Net with classes and a learned variance."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return exported(checkpoint, tmp_path_factory.mktemp("onnx") / "model.onnx")


def session_of(file: Path | bytes):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(file, options)


def example():
    """docs/sample_onnx.py as a module."""
    spec = importlib.util.spec_from_file_location("sample_onnx", ROOT / "docs" / "sample_onnx.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_example_draws_what_sample_py_draws(checkpoint, onnx_file, scale):
    session = session_of(onnx_file)
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert about["shape"] == [1, 8, 8]
    assert about["classes"] == ["0", "1", "2"]
    noise = NoisePerImage(3, range(5)).draw((1, 8, 8)).numpy()
    images = example().sample(session, about, noise, np.arange(5) % 3, 10, scale)
    pixels = np.round((images.clip(-1, 1) + 1) * 127.5).transpose(0, 2, 3, 1)
    flags = {"num_images": 5, "steps": 10, "sampler": "ddim", "seed": 3, "guidance_scale": scale}
    expected = sample(checkpoint, device="cpu", precision="fp32", threads=1, **flags)
    assert np.abs(pixels - expected).max() <= 1
    assert expected.std() > 10


NETWORKS = {
    "naive_unet": {"channels": 8, "num_classes": 3},
    "mlp": {"channels": 8, "blocks": 1, "num_classes": 2},
    "dit": {"channels": 8, "blocks": 1, "num_classes": 3},
}
NETWORKS["dit"] |= {"vocabulary_size": 260, "caption_length": 4}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_computes_the_same_in_onnxruntime(name, tmp_path):
    pytest.importorskip("onnxscript")
    network = network_of(name, **NETWORKS[name])
    said = save_onnx(tmp_path / "m.onnx", network)
    assert "checked with onnxruntime" in said
    session = session_of(tmp_path / "m.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    inputs = example_inputs(network, 4)
    named = {k: v.numpy() for k, v in zip(about["inputs"], inputs, strict=True)}
    assert [each.name for each in session.get_inputs()] == about["inputs"]
    (found,) = session.run(None, named)
    names = condition_names(network.config)
    condition = Condition(**dict(zip(names, inputs[2:], strict=True))) if names else None
    expected = network.model(*inputs[:2], condition)
    assert expected.std() > 0.01
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)
    network.model.ends()[-1].bias.add_(1e-3)
    with pytest.raises(ValueError, match="computes something else"):
        check((tmp_path / "m.onnx").read_bytes(), network, about["inputs"])
    alpha, sigma = about["alpha"], about["sigma"]  # of the flow: alpha = 1 - sigma
    assert sigma == pytest.approx([(t + 1) / T for t in range(T)], abs=1e-6)
    assert alpha == pytest.approx([1 - s for s in sigma], abs=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": ["x_t", "t", "tokens"]}, "reads captions"),
        ({"shape": [2]}, "draws points"),
        ({"tune": "consistency"}, "needs the consistency sampler"),
    ],
)
def test_the_example_refuses_what_it_cannot_draw(changed, message):
    about = {"inputs": ["x_t", "t", "label"], "shape": [1, 8, 8], "tune": "distill"}
    example().require_supported(about)
    with pytest.raises(SystemExit, match=message):
        example().require_supported(about | changed)


def test_the_model_card_names_the_example_for_what_it_can_draw():
    for name, options, tune, expected in [
        ("unet", {"channels": 8, "multipliers": (1,)}, None, "python docs/sample_onnx.py m.onnx"),
        ("unet", {"channels": 8, "multipliers": (1,)}, "consistency", "see docs/other_programs.md"),
        ("dit", NETWORKS["dit"], None, "see docs/other_programs.md"),
        ("mlp", NETWORKS["mlp"], None, "see docs/other_programs.md"),
    ]:
        config = network_of(name, **options).config
        config["train"]["tune"] = tune
        assert sampling_command("onnx", Path("m.onnx"), {}, config).startswith(expected)


# --- the table of forms --------------------------------------------------------------------------


def test_the_page_of_forms_lists_them_with_their_networks():
    text = (ROOT / "docs" / "other_programs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .* \| (.*?) \|$", text, re.MULTILINE)
    shown = {form: (ending, networks) for form, ending, networks in rows if form in FORMS}
    assert shown.keys() == FORMS.keys()
    shown["pt2"] = (shown["pt2"][0], shown["onnx"][1])  # "the same"
    for form, (ending, networks) in shown.items():
        assert ending == ("a folder" if FORMS[form].is_folder else f"`{FORMS[form].ending}`")
        held = {name for name in MODELS if export.holds(form, config_of(name))}
        assert held == (set(MODELS) if networks == "all" else set(re.findall("`(.*?)`", networks)))
        captioned = export.holds(form, config_of("unet", caption_length=4))
        assert captioned == (networks == "all" or "captions" in networks)


def config_of(name: str, **options) -> dict:
    """What a form is asked about a network."""
    dim = {"dim": 2} if MODELS[name].kind == "points" else {}
    return {"model": {"name": name, **dim, **options}, "train": {}}


# --- packages ------------------------------------------------------------------------------------


def test_missing_packages_are_named(script, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("exports.onnx_file.find_spec", lambda name: None)
    done = script("export", "--checkpoint", checkpoint, "--to", "onnx", "m.onnx")
    assert done.code == 2
    assert "pip install -r requirements-onnx.txt" in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- torch.export --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(checkpoint, tmp_path_factory) -> Path:
    """The program of the same U-Net."""
    return exported(checkpoint, tmp_path_factory.mktemp("pt2") / "model.pt2")


def test_the_program_runs_in_pytorch(checkpoint, program):
    model, _ = restore(load_checkpoint(checkpoint))
    loaded = torch.export.load(program).module()
    for count in (1, 4):
        x_t, t = torch.randn(count, 1, 8, 8), torch.arange(count)
        label = torch.arange(count) - 1  # with the null label
        expected = model(x_t, t, Condition(label=label))
        torch.testing.assert_close(loaded(x_t, t, label), expected, rtol=0, atol=1e-5)


def test_sample_py_reads_a_program(script, checkpoint, program, monkeypatch):
    """With the same bits, and without running it."""

    def run(*arguments, **options):
        raise AssertionError("the program was loaded as code")

    monkeypatch.setattr(torch.export, "load", run)
    flags = {"num_images": 3, "steps": 3, "threads": 1, "device": "cpu"}
    assert (sample(program, **flags) == sample(checkpoint, **flags)).all()
    done = script("sample", "--checkpoint", program, "--num-images", 2, "--steps", 2)
    assert (done.code, done.err) == (0, "")
    done = script("train", "--resume", program, "--output-dir", "out")
    assert done.code != 0


class Harmful:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def rewritten(program: Path, path: Path, **changed) -> Path:
    """A program with some parts replaced: part=function of its bytes."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            name, content = entry.filename, old.read(entry)
            for ending, change in changed.items():
                content = change(content) if name.endswith(ending) else content
            new.writestr(name, content)
    return path


def test_no_code_in_a_program_is_run(program, tmp_path):
    file = io.BytesIO()
    torch.save(Harmful(tmp_path / "harmed"), file)

    def pickled(text: bytes) -> bytes:
        described = json.loads(text)
        next(iter(described["config"].values()))["use_pickle"] = True
        return json.dumps(described).encode()

    changed = {"model_weights_config.json": pickled, "/weight_0": lambda old: file.getvalue()}
    path = rewritten(program, tmp_path / "m.pt2", **changed)
    with pytest.raises(CheckpointError, match=r"is pickled"):
        load_checkpoint(path)
    assert not (tmp_path / "harmed").exists()
    with pytest.raises(Exception):  # noqa: B017, PT011  what comes after the code does not matter
        torch.export.load(path)
    assert (tmp_path / "harmed").exists()  # so the file was harmful


def test_other_programs_and_damaged_ones_are_refused(program, tmp_path):
    flipped = {"/weight_0": lambda old: bytes([old[0] ^ 1]) + old[1:]}
    path = rewritten(program, tmp_path / "flipped.pt2", **flipped)
    with pytest.raises(CheckpointError, match="does not match its SHA-256"):
        load_checkpoint(path)
    path = rewritten(program, tmp_path / "cut.pt2", **{"/weight_0": lambda old: old[:64]})
    with pytest.raises(CheckpointError, match="has 64 bytes"):
        load_checkpoint(path)

    def described(change) -> Path:
        """The program with other weights in its description."""
        content = json.loads(zipfile.ZipFile(program).read(part))["config"]
        text = json.dumps({"config": change(content)}).encode()
        changed = {"model_weights_config.json": lambda old: text}
        return rewritten(program, tmp_path / "described.pt2", **changed)

    part = next(n for n in zipfile.ZipFile(program).namelist() if "model_weights_config" in n)
    first = next(iter(json.loads(zipfile.ZipFile(program).read(part))["config"]))
    many = described(lambda old: {f"network.{i}": old[first] for i in range(200)})  # of one part
    with pytest.raises(CheckpointError, match="two weights share a part"):
        load_checkpoint(many)
    huge = [{"as_int": 10**15}] * 20_000  # products of these sizes have 300,000 digits
    for sizes in (huge, huge[:8]):
        meta = {"sizes": sizes, "strides": sizes}

        def with_sizes(old, meta=meta):
            weight = old[first] | {"tensor_meta": old[first]["tensor_meta"] | meta}
            return old | {first: weight}

        path, start = described(with_sizes), time.process_time()
        with pytest.raises(CheckpointError, match="the layout of the weight"):
            load_checkpoint(path)
        assert time.process_time() - start < 1
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(tmp_path / "other.pt2", "w") as new:
        for entry in old.infolist():
            if "extra/" not in entry.filename:
                new.writestr(entry.filename, old.read(entry))
    with pytest.raises(CheckpointError, match=r"export\.py did not write it"):
        load_checkpoint(tmp_path / "other.pt2")


# --- half and int8 -------------------------------------------------------------------------------


def test_quantized_weights():
    torch.manual_seed(0)
    kernel = torch.randn(6, 3, 5, 5) * torch.tensor([1e-3, 1, 10, 0, 1, 1]).view(6, 1, 1, 1)
    weights = {"kernel": kernel, "bias": torch.randn(6), "count": torch.tensor([[3]])}
    stored = quantized(weights)
    assert stored["kernel"].dtype == torch.int8
    found = dequantized(stored)
    assert found.keys() == weights.keys()
    assert torch.equal(found["bias"], weights["bias"])
    assert torch.equal(found["count"], weights["count"])
    step = kernel.flatten(1).abs().amax(dim=1) / 127  # of each output channel
    error = (found["kernel"] - kernel).flatten(1).abs().amax(dim=1)
    assert (error <= step * 0.5001).all()
    assert (error[:3] > 0).all()
    assert quantized(weights, kept={"kernel"})["kernel"] is kernel
    for broken in (
        {k: v for k, v in stored.items() if k != "kernel"},
        stored | {"kernel" + SCALE: torch.ones(5)},
    ):
        with pytest.raises(ValueError, match="is damaged"):
            dequantized(broken)


def name_of(layer: torch.nn.Module, model: torch.nn.Module) -> str:
    """The name of a layer's weight."""
    return next(name for name, p in model.named_parameters() if p is layer.weight)


@pytest.mark.parametrize(("flags", "part"), [(["--half"], 0.55), (["--quantize", "int8"], 0.35)])
def test_small_files_sample_almost_the_same(checkpoint, tmp_path, flags, part):
    whole = exported(checkpoint, tmp_path / "whole.safetensors")
    small = exported(checkpoint, tmp_path / "small.safetensors", *flags)
    assert small.stat().st_size < part * whole.stat().st_size
    model, rounded = (restore(load_checkpoint(path))[0] for path in (whole, small))
    assert all(p.dtype == torch.float32 for p in rounded.parameters())
    x_t, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 15, 30, 49])
    expected = model(x_t, t)
    error = (rounded(x_t, t) - expected).std() / expected.std()
    assert 0 < error < 0.05
    for layer in rounded.ends() if "--quantize" in flags else []:
        assert torch.equal(layer.weight, model.get_parameter(name_of(layer, rounded)))


def test_a_damaged_scale_is_refused(checkpoint, tmp_path):
    content = load_checkpoint(checkpoint)
    weights = quantized(content["ema"])
    name = next(name for name in weights if name.endswith(SCALE))
    path = tmp_path / "m.safetensors"
    stored = weights | {name: torch.ones(1)}
    save_weights(path, content["config"], 1, "ema", stored, int8=True)
    with pytest.raises(CheckpointError, match="is damaged: the scale of"):
        load_checkpoint(path)


def test_export_refuses(script, checkpoint, tmp_path):
    for flags, message in [
        (["--half", "m.onnx"], "--half has no effect with --to onnx; it is for --to safetensors"),
        (["--quantize", "int8", "m.npz"], "--quantize int8 has no effect with --to numpy"),
        (["--half", "--quantize", "int8", "m.safetensors"], "has no effect with"),
        (["--half", "--card", "metrics.json", "m.safetensors"], "--card describes the weights"),
        (["--quantize", "int4", "m.safetensors"], "invalid choice"),
    ]:
        done = script("export", "--checkpoint", checkpoint, *flags)
        assert done.code == 2
        assert message in done.err
    content = load_checkpoint(checkpoint)
    model = content["config"]["model"] | {"super_resolution": 4}
    config = content["config"] | {"model": model}
    weights = build_model(model).state_dict()
    save_weights(tmp_path / "large.safetensors", config, 1, "ema", weights)
    for form in ("onnx", "pt2"):
        done = script("export", "--checkpoint", "large.safetensors", "--to", form, f"m.{form}")
        assert done.code == 2
        assert "it enlarges images" in done.err
        assert "It can be exported to safetensors" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["large.safetensors"]
