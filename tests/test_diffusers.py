"""Networks as folders of diffusers, folders of diffusers as networks, and the hub."""

import ast
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from checkpoints.checkpoint import load_checkpoint, restore
from checkpoints.weights import save_weights, weights_sha256
from cli.training import TRAIN
from conditions import Condition
from conftest import ROOT, TINY
from dataset.registry import DATASETS, load_dataset
from dataset.types import Data
from evaluation.real import require_data_of_network
from exports.diffusers_folder import network_source, require_pipeline, save_folder
from exports.from_diffusers import read_pipeline
from exports.hub import hub_network, with_hub
from exports.source import Bundle, bundled
from models import MODELS, build_model
from models.unet import UNet
from runs import assert_same_training
from sample import sample
from training.config import make_config, with_defaults
from utils import derive_seed

diffusers = pytest.importorskip("diffusers")
huggingface_hub = pytest.importorskip("huggingface_hub")
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

IMAGES = [name for name, network in MODELS.items() if network.kind == "images"]


def with_random_weights(model: torch.nn.Module) -> torch.nn.Module:
    """The model with random weights in place of zeros, of a size that keeps outputs small."""
    torch.manual_seed(0)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    return model.eval()


def write_weights(path: Path, *flags, tune: str | None = None) -> dict:
    """Write the weights file of an untrained network of digits, as train.py makes it."""
    parsed = TRAIN.parse([*TINY, "--class-conditional", "--timesteps", "100", *map(str, flags)])
    data = load_dataset("digits")
    config = make_config(with_defaults(parsed, data), data)
    config["train"]["tune"] = tune
    model = with_random_weights(build_model(config["model"]))
    save_weights(path, config, 5, "ema", model.state_dict())
    return config


@pytest.fixture(autouse=True)
def modules_of_its_own(tmp_path, monkeypatch):
    """diffusers copies the code of a folder to this place before it runs it."""
    place = str(tmp_path / "modules")
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", place)
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    path = list(sys.path)
    yield
    sys.path[:] = path


def load(folder: Path | str):
    """A folder's pipeline, without progress bars."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def to_uint8(images: np.ndarray) -> np.ndarray:
    return (images * 255).round().astype(np.uint8)


def assert_same_pictures(a: np.ndarray, b: np.ndarray) -> None:
    """Assert that pictures are equal within a grey level, and not blank."""
    assert a.shape == b.shape
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    assert a.std() > 5


# --- to diffusers ---------------------------------------------------------------------------------


PURE_NOISE = [["--schedule", "flow"], ["--zero-terminal-snr", "--prediction"]]  # at the end


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--schedule", "flow", "--multipliers", 1],  # of other variance
        [
            "--schedule",
            "edm",
            "--no-clip-loss",
            "--multipliers",
            1,
        ],  # with another unit of the data
        ["--zero-terminal-snr", "--prediction", "v", "--loss-weight", "snr", "--multipliers", 1],
        ["--model", "dit", "--blocks", 1, "--prediction", "x_0", "--patch-size", 4],
        ["--model", "naive_unet", "--schedule", "linear", "--prediction", "eps"],
        ["--model", "unet2d", "--multipliers", 1, "--blocks", 1, "--learn-sigma"],
        ["--model", "cnn", "--channels", 2, "--no-class-conditional"],
    ],
    ids=lambda flags: " ".join(map(str, flags[:2])) or "unet",
)
def test_the_pipeline_draws_the_pictures_of_sample_py(script, flags):
    write_weights(Path("m.safetensors").absolute(), *flags)
    script("export", "--checkpoint", "m.safetensors", "--to", "diffusers", "folder")
    pipeline, classes = load("folder"), "cnn" not in flags
    options = {"batch_size": 3, "seed": 4, "output_type": "np"}
    asked = {"num_images": 3, "seed": 4, "precision": "fp32"}
    if classes:
        options |= {"class_labels": ["3", 0, 9], "guidance_scale": 2.0}
        asked |= {"class_id": "3,0,9", "guidance_scale": 2}
    # In 8 steps, timesteps lie halfway between two.
    drawn = pipeline(num_inference_steps=8, **options).images
    own = {"sampler": "ddim"} if flags[:2] in PURE_NOISE else {}
    assert_same_pictures(to_uint8(drawn), sample("m.safetensors", steps=8, **own, **asked))
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    drawn = pipeline(num_inference_steps=5, **options).images
    of_ddim = sample("m.safetensors", steps=5, sampler="ddim", **asked)
    assert_same_pictures(to_uint8(drawn), of_ddim)


def test_a_network_of_straight_trajectories_is_drawn_without_fresh_noise(script):
    write_weights(Path("m.safetensors").absolute(), tune="reflow")
    script("export", "--checkpoint", "m.safetensors", "--to", "diffusers", "folder")
    assert "num_inference_steps=4," in Path("folder/README.md").read_text()
    run = {"class_labels": 3, "seed": 4, "num_inference_steps": 4, "output_type": "np"}
    drawn, asked = load("folder")(**run).images, {"class_id": 3, "seed": 4, "precision": "fp32"}
    expected = sample("m.safetensors", num_images=1, steps=4, sampler="ddim", **asked)
    assert_same_pictures(to_uint8(drawn), expected)


def test_arguments_of_the_pipeline(script):
    write_weights(Path("m.safetensors").absolute())
    result = script("export", "--checkpoint", "m.safetensors", "--to", "diffusers", "folder")
    assert result.code == 0, result.err
    pipeline = load("folder")
    run = {"num_inference_steps": 2, "output_type": "pt"}
    noise = torch.randn(2, 1, 8, 8)
    first = pipeline(latents=noise, **run, generator=torch.Generator().manual_seed(1)).images
    again = pipeline(latents=noise, **run, generator=torch.Generator().manual_seed(1)).images
    assert_close(first, again)
    assert first.shape == (2, 1, 8, 8)
    null = pipeline(latents=noise, **run, seed=0, class_labels=-1).images
    assert_close(null, pipeline(latents=noise, **run, seed=0).images)
    unguided = pipeline(latents=noise, **run, seed=0, class_labels=3, guidance_scale=0).images
    assert_close(null, unguided)
    (picture,) = pipeline(seed=0, num_inference_steps=2, class_labels="7").images
    assert (picture.size, picture.mode) == ((8, 8), "L")
    for wrong, message in [
        ({"class_labels": "cat"}, "there is no class 'cat'; there are 0, 1, 2"),
        ({"class_labels": 10}, "there is no class 10"),
        ({"class_labels": [1, 2], "batch_size": 3}, "2 class_labels for 3 images"),
        ({"batch_size": 5, "latents": noise}, "batch_size=5, but the latents are of 2 images"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"class_labels": []}, "there are no class_labels"),
        ({"seed": 0, "generator": torch.Generator()}, "either a seed or a generator"),
        ({"guidance_scale": 2}, "needs class_labels"),
        ({"num_inference_steps": 101}, "between 1 and 100, not 101"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipeline(**wrong)


def test_the_folder_survives_save_pretrained(script):
    write_weights(Path("m.safetensors").absolute())
    script("export", "--checkpoint", "m.safetensors", "--to", "diffusers", "folder")
    unet = load("folder").unet
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 90])
    v = unet(x, t, torch.tensor([1, 2])).sample
    alpha, sigma = (table[t].view(2, 1, 1, 1).float() for table in unet.tables)
    model, diffusion = restore(load_checkpoint("m.safetensors"))
    out = model(diffusion.scaled(x, t), t, Condition(label=torch.tensor([1, 2])))
    x_0 = diffusion.x_0(out, x, alpha, sigma).clamp(-1, 1)
    noise = (x - alpha * x_0) / sigma
    assert_close(v, alpha * noise - sigma * x_0, rtol=1e-4, atol=1e-4)
    unet.save_pretrained("copy")
    assert_close(load_file("copy/diffusion_pytorch_model.safetensors"), dict(unet.state_dict()))


@pytest.mark.parametrize("name", IMAGES)
def test_exported_code_is_self_contained_and_that_of_the_sources(name):
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("*/*.py")]
    sources += [path.read_text(encoding="utf-8") for path in ROOT.glob("*.py")]
    for text in (network_source(MODELS[name]), bundled("exports.diffusers_pipeline")):
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                assert top in {"torch", "diffusers"} or top in sys.stdlib_module_names
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                definition = ast.get_source_segment(text, node)
                assert any(definition in source for source in sources), node.name


def test_two_definitions_of_one_name_are_refused():
    bundle = Bundle({})
    bundle.add("models.unet", "Block")
    with pytest.raises(ValueError, match=r"Block is defined in models.unet and in models.dit"):
        bundle.add("models.dit", "Block")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"caption_length": 8}, "conditioned on captions"),
        ("model", {"super_resolution": 4}, "enlarges images"),
        ("model", {"autoencoder": {"name": "autoencoder"}}, "of latents"),
        ("model", {"name": "mlp"}, "mlp; only unet, naive_unet, cnn, dit and unet2d can be"),
        ("model", {"name": "classifier"}, "the network classifier"),
        ("train", {"tune": "distill"}, "needs a denoiser"),
    ],
)
def test_networks_that_the_pipeline_does_not_have_are_refused(section, values, message):
    config = {"model": {"name": "unet"}, "train": {}}
    require_pipeline(config)
    config[section] |= values
    with pytest.raises(ValueError, match=message):
        require_pipeline(config)


def test_only_files_of_the_form_are_replaced(script, tmp_path, monkeypatch):
    write_weights(tmp_path / "m.safetensors")
    export = ["export", "--checkpoint", "m.safetensors", "--to", "diffusers", "folder"]
    assert script(*export).code == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    Path("folder/notes.txt").write_text("mine")
    Path("folder/unet/notes.txt").write_text("mine, too")
    Path("folder/model_index.json").write_text("{}")
    Path("folder/empty").mkdir()
    result = script(*export)
    assert result.code == 2
    assert "folder exists: choose another OUTPUT, or replace it by --overwrite" in result.err

    with monkeypatch.context() as patch:  # the disk is full
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "full")))
        assert script(*export, "--overwrite").code == 1
    assert Path("folder/model_index.json").read_text() == "{}"
    for moment in (1, 2):  # Ctrl-C after the first or the second rename
        calls = iter(range(1, 9))

        def interrupted(*names, rename=os.rename, calls=calls, moment=moment):
            rename(*names)
            if next(calls) == moment:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", interrupted)
            with pytest.raises(KeyboardInterrupt):
                save_folder(tmp_path / "folder", {"model_index.json": b"new"})
        assert next(calls) > 2
        assert Path("folder/model_index.json").read_text() == "{}"
        assert Path("folder/notes.txt").read_text() == "mine"
        assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert script(*export, "--overwrite").code == 0
    assert json.loads(Path("folder/model_index.json").read_text())["scheduler"]
    assert Path("folder/notes.txt").read_text() == "mine"
    assert Path("folder/unet/notes.txt").read_text() == "mine, too"
    assert Path("folder/empty").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for way, message in [("folder", "is a file"), ("folder/unet", "it is a file")]:
        shutil.rmtree("folder")
        Path(way).parent.mkdir(exist_ok=True)
        Path(way).write_text("mine")
        assert message in script(*export, "--overwrite").err
        assert Path(way).read_text() == "mine"
        Path(way).unlink()
        Path("folder").mkdir(exist_ok=True)


def test_a_folder_in_the_way_of_a_file_stays(tmp_path):
    (tmp_path / "out/README.md").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"README.md: it is a folder"):
        save_folder(tmp_path / "out", {"README.md": b""})


# --- the hub --------------------------------------------------------------------------------------


def test_the_hub_accepts_the_model_card(script, tmp_path):
    write_weights(tmp_path / "m.safetensors")
    weights = load_checkpoint("m.safetensors")["ema"]
    report = {"checkpoint": "m.safetensors", "dataset": "digits", "num_images": 9}
    report |= {"compared_with": "test split", "sampler": "ddim", "steps": 5, "seeds": [0]}
    measured = {"mean": 1.25, "values": [1.0, 1.5], "floor": 0.5}
    report["classifier"] = {"sha256": "0" * 64, "accuracy": 0.9, "classifier_fid": measured}
    report["weights_sha256"] = weights_sha256({}, weights)
    Path("metrics.json").write_text(json.dumps(report))
    export = ["export", "--checkpoint", "m.safetensors", "--to", "diffusers"]
    assert script(*export, "plain").code == 0
    assert script(*export, "measured", "--card", "metrics.json").code == 0
    for folder, figure in [("plain", "Nothing was measured"), ("measured", "| 1.25 (1 to 1.5)")]:
        text = Path(folder, "README.md").read_text()
        card = huggingface_hub.ModelCard(text)
        assert figure in card.text
        found = huggingface_hub.ModelCardData(**card.data.to_dict()).to_dict()
        assert found["license"] == "mit"
        assert found["library_name"] == "diffusers"
        assert found["pipeline_tag"] == "unconditional-image-generation"
        assert {"digits", "unet", "tiny-diffusion"} <= set(found["tags"])
    Path("metrics.json").write_text(json.dumps(report | {"weights_sha256": "1"}))
    result = script(*export, "other", "--card", "metrics.json")
    assert (result.code, Path("other").exists()) == (2, False)


def test_networks_with_the_methods_of_the_hub(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = with_random_weights(with_hub(UNet)(8, 1, channels=16, multipliers=(1,)))
    network.save_pretrained(tmp_path / "folder")
    again = with_hub(UNet).from_pretrained(tmp_path / "folder").eval()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 90])
    assert_close(again(x, t), network(x, t), rtol=0, atol=0)
    write_weights(tmp_path / "m.safetensors", "--multipliers", 1)
    checkpoint = load_checkpoint(tmp_path / "m.safetensors")
    network = hub_network(checkpoint["config"]["model"], checkpoint["ema"])
    assert callable(network.push_to_hub)
    network.eval().save_pretrained(tmp_path / "trained")
    again = type(network).from_pretrained(tmp_path / "trained").eval()
    assert_close(again(x, t), restore(checkpoint)[0](x, t))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-diffusers.txt"):
        with_hub(UNet)


def test_no_command_imports_diffusers_or_the_hub():
    alone = {"exports/diffusers_network.py", "exports/diffusers_pipeline.py"}
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[a-mo-z]*/*.py")]:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("tests/", "benchmarks/")) or name in alone:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                line = ast.unparse(node)
                assert "huggingface_hub" not in line, name
                assert "from diffusers" not in line, name
                assert "import diffusers" not in line, name
                assert "exports.diffusers_pipeline" not in line, name


# --- from diffusers -------------------------------------------------------------------------------

DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
SMALL = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1}
SMALL |= {"block_out_channels": (8, 16), "norm_num_groups": 4}
SMALL |= {"down_block_types": DOWN, "up_block_types": UP}


def save_theirs(folder: Path | str, options: dict | None = None, scheduler: object = None):
    """Write a pipeline of diffusers with random weights, and return its network."""
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**SMALL | (options or {})).eval()
    scheduler = scheduler or diffusers.DDIMScheduler()
    diffusers.DDIMPipeline(network, scheduler).save_pretrained(folder)
    return network


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A small pipeline of diffusers, written once."""
    folder = tmp_path_factory.mktemp("saved") / "theirs"
    save_theirs(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_out_channels": (8, 16, 24), "norm_num_groups": 8, "layers_per_block": 2,
         "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")},
        {"freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6,
         "attention_head_dim": None},
        {"resnet_time_scale_shift": "scale_shift", "act_fn": "mish", "center_input_sample": True},
        {"add_attention": False, "in_channels": 3, "out_channels": 3, "sample_size": (16, 8),
         "time_embedding_dim": 20},
        {"num_class_embeds": 5},
    ],
)  # fmt: skip
def test_forward_is_that_of_diffusers(tmp_path, options):
    theirs = save_theirs(tmp_path / "theirs", options)
    checkpoint, _ = read_pipeline(tmp_path / "theirs", None)
    ours, _ = restore(checkpoint)
    assert checkpoint["config"]["model"]["name"] == "unet2d"
    size = options.get("sample_size", 8)
    x = torch.randn(3, options.get("in_channels", 1), *(size if size != 8 else (8, 8)))
    t, labels = torch.tensor([0, 500, 999]), torch.tensor([4, 0, 2])
    with torch.no_grad():
        if "num_class_embeds" in options:
            expected, found = theirs(x, t, labels).sample, ours(x, t, Condition(label=labels))
        else:
            expected, found = theirs(x, t).sample, ours(x, t)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({}, "linear"),
        ({"beta_end": 0.01, "num_train_timesteps": 400}, None),
        ({"beta_schedule": "scaled_linear"}, "quadratic"),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, None),
        ({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}, "cosine"),
        ({"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3}, None),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "linear"),
    ],
)
def test_the_process_is_that_of_the_scheduler(tmp_path, options, schedule):
    theirs = diffusers.DDIMScheduler(**options)
    save_theirs(tmp_path / "theirs", scheduler=theirs)
    checkpoint, notes = read_pipeline(tmp_path / "theirs", None)
    _, ours = restore(checkpoint)
    assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.float(), rtol=1e-4, atol=1e-6)
    process = checkpoint["config"]["diffusion"]
    assert (process["betas"] is None) == (schedule is not None)
    assert schedule in (None, process["schedule"])
    known = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}
    assert process["prediction"] == known[theirs.config.prediction_type]
    assert notes == ""


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_samples_are_those_of_their_pipeline(script, kind):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type=kind, clip_sample=kind == "epsilon"
    )
    save_theirs("theirs", scheduler=scheduler)
    assert script("export", "--from", "diffusers", "theirs", "ours.safetensors").code == 0
    pipeline = diffusers.DDIMPipeline.from_pretrained("theirs")
    pipeline.set_progress_bar_config(disable=True)
    random = [torch.Generator().manual_seed(derive_seed("image", 6, i)) for i in range(3)]
    # By default DDIM of diffusers clips x_0 and keeps the noise that contradicts it.
    own = {"use_clipped_model_output": True, "output_type": "np"}
    drawn = pipeline(3, generator=random, num_inference_steps=10, **own).images
    asked = {"num_images": 3, "seed": 6, "sampler": "ddim", "spacing": "leading", "steps": 10}
    assert_same_pictures(to_uint8(drawn), sample("ours.safetensors", precision="fp32", **asked))


def test_folders_of_other_forms(script, tmp_path):
    theirs = save_theirs(tmp_path / "theirs")
    expected = dict(theirs.state_dict())
    flat = tmp_path / "flat"  # as google/ddpm-cifar10-32 is
    shutil.copytree("theirs/unet", flat)
    shutil.copy("theirs/scheduler/scheduler_config.json", flat)
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, weight in expected.items():
        for now, before in new.items():
            name = name.replace(f".{now}.", f".{before}.")
        old[name] = weight.half()
    assert old.keys() != expected.keys()
    save_file(old, flat / "diffusion_pytorch_model.safetensors")
    checkpoint, _ = read_pipeline(flat, "digits")
    assert checkpoint["config"]["data"]["dataset"] == "digits"
    assert_close(checkpoint["ema"], {name: w.half().float() for name, w in expected.items()})
    (flat / "scheduler_config.json").unlink()
    checkpoint, notes = read_pipeline(flat, None)
    assert "no scheduler_config.json: the process is DDPM's" in notes
    assert checkpoint["config"]["diffusion"]["schedule"] == "linear"
    result = script("export", "--from", "diffusers", "theirs", "--to", "diffusers", "again")
    assert result.code == 0, result.err
    text = Path("again/README.md").read_text()
    assert "Another program has trained the network." in text
    assert "The weights are those of the file." in text
    assert "batch_size" not in text
    assert huggingface_hub.ModelCard(text).data.license is None
    assert load("again")(seed=0, num_inference_steps=2, output_type="pt").images.isfinite().all()


def test_the_data_set_names_the_classes(tmp_path):
    options = {"in_channels": 3, "out_channels": 3, "num_class_embeds": 10, "sample_size": 32}
    save_theirs(tmp_path / "theirs", options)
    checkpoint, notes = read_pipeline(tmp_path / "theirs", "cifar10")
    assert "resizes" not in notes
    names = ["airplane", "automobile", "bird", "cat", "deer"]  # in the order of Krizhevsky 2009
    names += ["dog", "frog", "horse", "ship", "truck"]
    data = Data(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), names)
    require_data_of_network(checkpoint["config"], data)
    assert DATASETS["digits"].classes == load_dataset("digits").classes
    checkpoint, _ = read_pipeline(tmp_path / "theirs", "folder")
    assert checkpoint["config"]["data"]["classes"] == [str(i) for i in range(10)]
    with pytest.raises(ValueError, match="captioned_mnist: it has 0 classes, the network 10"):
        read_pipeline(tmp_path / "theirs", "captioned_mnist")
    with pytest.raises(ValueError, match="moons: its items do not have the 3 channels"):
        read_pipeline(tmp_path / "theirs", "moons")
    save_theirs(tmp_path / "small")
    assert (
        "draws images of 8 pixels, mnist has 28: evaluate.py resizes"
        in read_pipeline(tmp_path / "small", "mnist")[1]
    )


def edited(folder: Path, file: str, **values) -> None:
    """Change values of a folder's JSON file."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


UNET, SCHEDULER, INDEX = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (UNET, {"_class_name": "UNet2DConditionModel"}, "is of UNet2DConditionModel; UNet2DModel"),
        (UNET, {"time_embedding_type": "fourier"}, "time_embedding_type fourier is not supported"),
        (UNET, {"class_embed_type": "timestep"}, "class_embed_type timestep is not supported"),
        (UNET, {"downsample_type": "resnet"}, "downsample_type resnet is not supported"),
        (UNET, {"resnet_time_scale_shift": "spatial"}, "default or scale_shift is"),
        (UNET, {"down_block_types": ["SkipDownBlock2D"] * 2}, "block SkipDownBlock2D is not supp"),
        (UNET, {"down_block_types": ["DownBlock2D"]}, "do not fit together"),
        (UNET, {"layers_per_block": "2"}, "layers_per_block cannot be 2"),
        (UNET, {"sample_size": None}, "sample_size is None; write the images' side"),
        (UNET, {"sample_size": 9}, "sample_size 9 is not a multiple of 2"),
        (UNET, {"out_channels": 2}, "1 in_channels and 2 out_channels are not supported"),
        (UNET, {"act_fn": "tanh"}, "activation must be silu"),
        (UNET, {"new_option": 1}, "the field new_option is not known"),
        (UNET, {"block_out_channels": [8, 10**9]}, "must lie between"),
        (UNET, {"block_out_channels": [8, 32]}, "does not fit config.json: the weight"),
        (SCHEDULER, {"_class_name": "EulerDiscreteScheduler"}, "is of EulerDiscreteScheduler"),
        (SCHEDULER, {"beta_schedule": "laplace"}, "beta_schedule laplace is not supported"),
        (SCHEDULER, {"prediction_type": "flow"}, "prediction_type flow is not supported"),
        (SCHEDULER, {"clip_sample_range": 2.0}, "clip_sample_range 2.0 is not supported"),
        (SCHEDULER, {"thresholding": True}, "thresholding True is not supported"),
        (SCHEDULER, {"trained_betas": [0.5]}, "betas must be 1000 numbers"),
        (SCHEDULER, {"num_train_timesteps": 10**9}, "betas from 0.0001 to 0.02 in 1000000000"),
        (SCHEDULER, {"variance_type": "learned"}, "variance_type learned is not supported"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "prediction eps cannot be used"),
        (INDEX, {"_class_name": "StableDiffusionPipeline"}, "is of StableDiffusionPipeline"),
        (INDEX, {"unet": ["evil", "Evil"]}, r"its unet is \['evil', 'Evil'\]; UNet2DModel is"),
    ],
)
def test_other_configurations_are_refused_by_name(saved, tmp_path, file, values, message):
    shutil.copytree(saved, tmp_path / "theirs")
    edited(tmp_path / "theirs", file, **values)
    with pytest.raises(ValueError, match=message):
        read_pipeline(tmp_path / "theirs", None)


def test_no_code_of_a_folder_is_run(script, saved, tmp_path):
    shutil.copytree(saved, "theirs")
    for place in ("", "unet", "scheduler"):
        Path("theirs", place, "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edited(tmp_path / "theirs", UNET, auto_map={"AutoModel": "evil.Evil"}, _class_name="Evil")
    edited(tmp_path / "theirs", INDEX, unet=["evil", "Evil"], _class_name=["evil", "Evil"])
    result = script("export", "--from", "diffusers", "theirs", "m.safetensors")
    assert result.code == 2
    assert "model_index.json is of ['evil', 'Evil']; DDPMPipeline or DDIMPipeline" in result.err
    Path("theirs/model_index.json").unlink()
    assert script("export", "--from", "diffusers", "theirs", "m.safetensors").code == 2
    edited(tmp_path / "theirs", UNET, _class_name="UNet2DModel")
    assert "auto_map is not known" in script(
        "export", "--from", "diffusers", "theirs", "m.safetensors"
    ).err  # fmt: skip
    assert not Path("ran").exists()
    assert not Path("m.safetensors").exists()


def test_other_weights_and_missing_files(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "theirs")
    unet = tmp_path / "theirs/unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()

    def refused() -> str:
        with pytest.raises(ValueError, match=str(tmp_path)) as error:
            read_pipeline(tmp_path / "theirs", None)
        return str(error.value)

    weights.write_bytes(content[: len(content) // 2])
    assert "is damaged or is not a safetensors file" in refused()
    weights.write_bytes(b"\xff" * 100)
    assert "its header is too long" in refused()
    save_file({**load_file_of(content, tmp_path), "more": torch.zeros(9**6)}, weights)
    assert "does not fit config.json: it has" in refused()
    weights.rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    assert "rename diffusion_pytorch_model.fp16.safetensors" in refused()
    (unet / "diffusion_pytorch_model.fp16.safetensors").rename(unet / "model.bin")
    assert "pickled (.bin), which could run code" in refused()
    (unet / "model.bin").unlink()
    assert "there is no" in refused()
    (unet / "config.json").write_bytes(b"{" * 2**21)
    assert "larger than a configuration" in refused()
    (unet / "config.json").write_text("[]")
    assert "is not a configuration of diffusers" in refused()
    (unet / "config.json").unlink()
    assert "there is no" in refused()
    with pytest.raises(ValueError, match="is not a folder"):
        read_pipeline(tmp_path / "nothing", None)


def load_file_of(content: bytes, folder: Path) -> dict:
    """The tensors of a safetensors file's content."""
    (folder / "whole.safetensors").write_bytes(content)
    return load_file(folder / "whole.safetensors")


# --- starting with a trained network --------------------------------------------------------------

RUN = ["--precision", "fp32", "--device", "cpu", "--sample-interval", 0, "--save-interval", 0]
RUN += ["--snapshots", 0, "--batch-size", 16, "--validation", 16, "--dataset", "digits"]


def test_training_goes_on_from_an_imported_network(script, tmp_path):
    scheduler = diffusers.DDPMScheduler(beta_end=0.01, clip_sample=False)
    save_theirs("theirs", {"norm_eps": 1e-6, "freq_shift": 1}, scheduler)
    edited(tmp_path / "theirs", INDEX, _class_name="DDPMPipeline")
    assert script("export", "--from", "diffusers", "theirs", "m.safetensors").code == 0
    start = ["train", "--init-from", "m.safetensors", *RUN]
    result = script(*start, "--lr", 0, "--max-steps", 1, "--output-dir", "same")
    assert result.code == 0, result.err
    found, source = load_checkpoint("same"), load_checkpoint("m.safetensors")
    for which in ("model", "ema"):
        assert_close(found[which], source["ema"])
    assert found["config"]["model"] == source["config"]["model"]
    kept = ("betas", "clip", "clip_loss", "prediction", "timesteps")
    assert [found["config"]["diffusion"][k] for k in kept] == [
        source["config"]["diffusion"][k] for k in kept
    ]

    flags = ["--save-every-steps", 2, "--max-steps", 4, "--output-dir"]
    assert script(*start, *flags, "run").code == 0
    shutil.copytree("run", "copy")
    Path("m.safetensors").unlink()  # the run does not need it any more
    step = "copy/checkpoints/model_step_00000002.pt"
    result = script("train", "--resume", step, "--max-steps", 4)
    assert result.code == 0, result.err
    runs = [load_checkpoint(folder) for folder in ("run", "copy")]
    assert_same_training(*runs)
    assert not torch.equal(runs[0]["ema"]["conv_out.bias"], source["ema"]["conv_out.bias"])


def test_a_run_starts_with_its_own_networks_too(script, conditional, tmp_path):
    result = script("train", "--init-from", conditional, "--max-steps", 1, "--output-dir", "run")
    assert result.code == 0, result.err
    own, found = (load_checkpoint(each)["config"] for each in (conditional, "run"))
    assert (found["model"], found["diffusion"]) == (own["model"], own["diffusion"])
    assert found["data"]["dataset"] == "digits"  # not the default, mnist
    init = ["train", "--init-from", conditional, "--max-steps", 1, "--output-dir", "other"]
    for flags, message in [
        (["--channels", 16], "another network: model.channels: 8 in the checkpoint, 16 now"),
        (["--timesteps", 50], "diffusion.timesteps: 100 in the checkpoint, 50 now"),
        (["--no-class-conditional"], "model.num_classes: 10 in the checkpoint, None now"),
        (["--tune", "consistency"], "--init-from has no effect with --tune"),
    ]:
        result = script(*init, *flags)
        assert (result.code, message in result.err) == (2, True), result.err


def test_what_cannot_be_started_from(script, saved):
    shutil.copytree(saved, "theirs")
    script("export", "--from", "diffusers", "theirs", "m.safetensors")
    result = script("train", "--init-from", "m.safetensors", "--max-steps", 1)
    assert "m.safetensors does not name its data set: add --dataset NAME" in result.err
    result = script("evaluate", "--checkpoint", "m.safetensors")
    assert "m.safetensors does not name its data set" in result.err
    result = script("export", "--from", "diffusers", "theirs", "--dataset", "cifar10", "n.npz")
    assert "--dataset cifar10: its items do not have the 1 channels here" in result.err
    result = script("export", "--from", "keras", "theirs", "m.safetensors")
    assert "--from keras DIR: FORM must be diffusers" in result.err
    assert "Add --checkpoint FILE or --from diffusers DIR" in script("export").err
