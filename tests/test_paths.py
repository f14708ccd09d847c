"""Paths that a user gives: the home folder, run folders, endings, sizes of pictures, places."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.checkpoint import CheckpointError, load_checkpoint
from checkpoints.runs import find_checkpoint
from cli.declare import option
from cli.docs import COMMANDS
from cli.training import TRAIN
from dataset.registry import load_dataset
from mini_diffusion.sample import make_parser
from runs import SMALL
from sample import sample
from train import train
from training.fit import fit
from training.resume import run_of
from utils import existing_path
from visuals.pictures import ImagePictures, require_size, save_picture

PATHS = {"FILE", "DIR", "IMAGE", "PATH", "OUTPUT", "CHECKPOINT"}  # how --help shows a path


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home folder; the current folder is another one, and empty too."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))  # on Windows
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


# --- the home folder ------------------------------------------------------------------------------


def test_every_flag_of_a_path_expands_the_home_folder(home):
    for command in COMMANDS.values():
        for name, (_, declared) in command.declared.items():
            if declared.metavar not in PATHS:
                continue
            word = "~/a b" if declared.positional else f"{option(name)}=~/a b"
            parser = command.parser()
            others = ["--checkpoint", "x"] if "checkpoint" in command.declared else []
            values = vars(parser.parse_known_args([word, *others])[0])
            if name != "checkpoint":
                expected = str(home / "a b")
                assert values[name] == ([expected] if declared.nargs == "+" else expected), name
            if others:
                values = vars(parser.parse_known_args([word, "--checkpoint=~/x.pt"])[0])
                assert values["checkpoint"].startswith(str(home))


def test_only_the_home_folder_is_expanded(home):
    for text in ("~nobody-of-that-name/x", "./~/x", "a/~/x", "x~", "$HOME/x", "newest"):
        assert TRAIN.parse([f"--resume={text}"]).resume == text
    assert TRAIN.keywords(output_dir=Path("~/x")).output_dir == str(home / "x")
    assert TRAIN.keywords(output_dir=Path("~")).output_dir == str(home)


def test_runs_and_samples_below_the_home_folder(home, script):
    assert script("train", *SMALL, "--max-steps", "1", "--output-dir=~/run").code == 0
    assert script("sample", "--checkpoint=~/run/model_final.pt", "--output=~/s.PNG").code == 0
    assert (home / "run" / "config.json").exists()
    assert (home / "s.PNG").exists()
    assert load_checkpoint("~/run/model_final.pt")["step"] == 1
    assert sample("~/run/model_final.pt", num_images=2, steps=1).shape == (2, 8, 8, 1)
    assert not Path("~").exists()


def test_notebooks_below_the_home_folder(home):
    run = train(dataset="moons", max_steps=1, output_dir=Path("~/moons"), device="cpu")
    assert run.checkpoint == home / "moons" / "model_final.pt"
    model, points = torch.nn.Linear(2, 2), torch.randn(32, 2)

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = model

        def forward(self, x_t, t):
            return self.layer(x_t)

    assert fit(Own(), points, folder="~/own", max_steps=1).checkpoint.parent == home / "own"
    with pytest.raises(OSError, match=str(home / "nothing")):
        load_dataset("folder", "~/nothing")
    Image.new("L", (8, 8)).save(home / "a.png")
    load_dataset("folder", "~", image_size=8, cache_dir="~/cache", cache_limit=0)
    assert list((home / "cache").iterdir())
    assert list(Path.cwd().iterdir()) == []


def test_a_file_of_that_very_name_is_read_first(home):
    assert existing_path("~/x") == home / "x"
    Path("~").mkdir()
    Path("~/x").touch()
    assert existing_path("~/x") == Path("~/x")
    TRAIN.require_valid("data_dir", "~/x")  # in a run's configuration


def test_mini_diffusion_expands_the_home_folder(home):
    assert make_parser().parse_args(["m.npz", "--output=~/x.png"]).output == home / "x.png"


# --- the folder of a run --------------------------------------------------------------------------


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of a finished run, in the folder `runs`."""
    return shutil.copytree(trained, tmp_path / "runs" / "digits")


DRAW = ["--steps", 1, "--num-images", 2, "--output", "s.png"]


def test_a_run_folder_is_a_checkpoint(script, run, monkeypatch):
    monkeypatch.chdir(run.parent)
    final = f"digits{os.sep}model_final.pt: digits, step"
    for folder in ("digits", f"digits{os.sep}"):
        assert final in script("sample", "--checkpoint", folder, *DRAW).out
    assert "classes" in script("sample", "--checkpoint", "digits", "--list-classes").out
    measure = ["--metrics", "copies", "--num-images", 2, "--repeats", 1, "--steps", 2]
    assert final in script("evaluate", "--checkpoint", "digits", *measure).out
    assert "model_final.pt" in script("export", "--checkpoint", "digits", "m.safetensors").out
    assert "is of images" in script("visualize_diffusion", "--field", "--checkpoint", "digits").err
    assert (
        sample("digits", num_images=2, steps=1)
        == sample(final.partition(":")[0], num_images=2, steps=1)
    ).all()
    assert load_checkpoint("digits")["step"] == load_checkpoint("digits/model_final.pt")["step"]


def test_a_checkpoint_names_its_run(script, run):
    for name in ("runs/digits/model_final.pt", "runs/digits/checkpoints"):
        result = script("visualize_diffusion", "--run", name, "--steps", 2, "--epochs", 1)
        assert result.code == 0, result.err
        assert result.out.splitlines()[-1] == str(Path("runs/digits/report.html"))


def test_the_newest_valid_checkpoint_stands_for_an_unfinished_run(script, run, monkeypatch):
    monkeypatch.chdir(run.parent)
    whole = (run / "model_final.pt").read_bytes()
    final = Path("digits/model_final.pt")
    assert find_checkpoint("digits") == find_checkpoint("digits/checkpoints") == final
    (run / "model_final.pt").write_bytes(whole[:-100])
    result = script("sample", "--checkpoint", "digits", *DRAW)
    assert result.code == 0
    assert "skipped: digits/model_final.pt is damaged" in result.out
    assert "digits/checkpoints/" in result.out
    with pytest.warns(UserWarning, match="skipped: digits/model_final.pt is damaged"):
        sample("digits", num_images=2, steps=1)
    for file in run.glob("checkpoints/*.pt"):
        file.write_bytes(b"x")
    result = script("sample", "--checkpoint", "digits", *DRAW)
    assert result.code == 1
    assert "digits has no valid checkpoint: digits/" in result.err


def test_folders_without_a_checkpoint_name_what_there_is(script, run, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    shutil.copytree(run, "runs/a/b")
    Path("runs/new").mkdir()
    Path("runs/new/metrics.jsonl").touch()
    Path("weights").mkdir()
    Path("weights/m.safetensors").touch()
    Path("step.shards").mkdir()
    Path("sharded/checkpoints/model_step_00000004.shards").mkdir(parents=True)
    for folder, message in [
        ("runs", "runs holds no run; there are runs in runs/a/b, runs/digits, runs/new"),
        ("runs/new", "the run in runs/new has no checkpoint yet"),
        ("weights", "weights holds no run; there are files weights/m.safetensors"),
        ("runs/digits/samples", "samples is a folder that holds no run of train.py"),
        ("step.shards", "step.shards is a sharded checkpoint, which only train.py --resume reads"),
        ("sharded", "sharded has only sharded checkpoints"),
    ]:
        for read in (load_checkpoint, lambda path: sample(path, num_images=1)):
            with pytest.raises(CheckpointError, match=re.escape(message)):
                read(folder)
        for name in ("sample", "evaluate", "export"):
            result = script(name, "--checkpoint", f"{run.parent.parent}/{folder}")
            assert result.code == 1
            assert message.partition(" ")[2] in result.err.replace(f"{run.parent.parent}/", "")
        monkeypatch.chdir(run.parent.parent)


def test_a_run_has_one_newest_checkpoint(script, run, monkeypatch):
    """The same for --resume and --checkpoint, from everywhere; other names do not count."""
    for name in ("mine.pt", "checkpoints/best_cats.pt"):
        shutil.copy(run / "model_final.pt", run / name)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    newest = (run / "model_final.pt").rename(run / "checkpoints" / "interrupted.pt")
    for place, names in [
        (run.parent, ["digits", "digits/checkpoints"]),
        (run, [".", "checkpoints"]),
        (run / "checkpoints", ["..", "."]),
    ]:
        monkeypatch.chdir(place)
        for name in names:
            assert find_checkpoint(name).resolve() == newest
            assert run_of(name).newest_checkpoint()[0].resolve() == newest
    newest.unlink()
    for name in ("..", "."):
        assert "has no checkpoint yet" in script("sample", "--checkpoint", name).err


def test_files_of_other_names_are_listed(script, trained):
    Path("mine").mkdir()
    shutil.copy(trained / "model_final.pt", "mine/cats.pt")
    for command in (["train", "--resume"], ["sample", "--checkpoint"]):
        assert "there are files mine/cats.pt" in script(*command, "mine").err
    assert "mine/cats.pt: digits" in script("sample", "--checkpoint", "mine/cats.pt", *DRAW).out


def test_a_run_in_a_folder_that_is_called_checkpoints(script, trained, tmp_path):
    shutil.copytree(trained, "checkpoints")
    Path("newest.pt").symlink_to("checkpoints/model_final.pt")
    for name, steps in [("checkpoints", 27), ("checkpoints/model_final.pt", 28), ("newest.pt", 29)]:
        result = script("train", "--resume", name, "--max-steps", steps, "--sample-interval", 0)
        assert result.code == 0, result.err
        assert load_checkpoint("checkpoints")["step"] == steps
    assert script("visualize_diffusion", "--run", "checkpoints", "--steps", 1).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "newest.pt"]


# --- outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "s.npy"], "use one of .png, .jpg, .jpeg, .webp, or .npz for an array of all"),
        (["--output", "s"], "or .npz for an array of all samples"),
        (["--output", "runs/"], "runs: it is a folder; add the name of a file"),
        (
            ["--interpolate", "--num-images", 283, "--output", "w.webp"],
            "wide and 60 high, and WEBP",
        ),
        (
            ["--interpolate", "--num-images", 1130, "--output", "w.jpg"],
            "at most 65,500; write a .png",
        ),
        (["--num-images", 80000, "--output", "w.webp"], "16,416 pixels wide and"),
        (["--interpolate", "--num-images", 1130, "--animate", "--batch-size", 1130], "s.gif: the"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_the_drawing(script, run, flags, message):
    final = run / "model_final.pt"
    flags = [*flags, *([] if "--output" in flags else ["--output", "s.png"])]
    result = script("sample", "--checkpoint", final, "--steps", 1, *flags)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""


def test_pictures_of_the_largest_size_fit(tmp_path):
    images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    pictures = ImagePictures()
    for count, columns in [(5, 2), (1, 1), (4, 4), (3, 9)]:
        size = pictures.size((1, 8, 8), count, columns)
        assert pictures.grid(images[:count], columns).shape[:2] == size
    for name, side in {"a.webp": 16383, "a.jpg": 65500, "a.gif": 65535, "a.png": 10**6}.items():
        require_size(tmp_path / name, 2, side)
    for name, side in {"a.webp": 16383, "a.JPG": 65500}.items():
        save_picture(tmp_path / name, np.zeros((2, side, 3), np.uint8))
        with pytest.raises(ValueError, match=r"write a \.png or fewer images"):
            save_picture(tmp_path / name, np.zeros((side + 1, 2, 3), np.uint8))


def test_endings_of_outputs_in_any_case(script, run):
    final = run / "model_final.pt"
    for name in ("S.NPZ", "S.Png", "S.WEBP", "S.JPeG"):
        output = ["--num-images", 2, "--steps", 1, "--batch-size", 1, "--output", name]
        assert script("sample", "--checkpoint", final, *output).code == 0
        assert Path(name).is_file()
    assert np.load("S.NPZ")["arr_0"].shape == (2, 8, 8, 1)
    for name in ("m.NPZ", "m.SafeTensors"):
        assert script("export", "--checkpoint", final, name).code == 0
        assert Path(name).is_file()


def test_names_that_are_not_text_reach_the_report_and_the_card(script, tmp_path):
    """A class that is not UTF-8, one with control characters, and one in HTML."""
    names = [os.fsdecode(b"caf\xe9"), "a\x1b[2J\nb", "<b>&"]
    for name in names:
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            folder = tmp_path / "images" / name
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f"{i}.png", "wb") as file:
                Image.fromarray(pixels).save(file, format="PNG")
    flags = [*SMALL[2:], "--dataset", "folder", "--data-dir", "images", "--image-size", 8]
    result = script("train", *flags, "--max-steps", 1, "--class-conditional")
    assert result.code == 0, result.err
    result = script("visualize_diffusion", "--run", "outputs", "--steps", 2)
    assert result.code == 0, result.err
    page = Path("outputs/report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;, a?[2J?b, caf?" in page
    measured = ["--metrics", "copies", "--num-images", 4, "--repeats", 1, "--steps", 1]
    assert script("evaluate", "--checkpoint", "outputs", *measured).code == 0
    card = ["--card", "outputs/metrics.json", "m.safetensors"]
    assert script("export", "--checkpoint", "outputs", *card).code == 0
    assert "&lt;b&gt;&amp;, a?[2J?b, caf?." in Path("m.md").read_text(encoding="utf-8")


# --- keyword arguments ----------------------------------------------------------------------------


def test_keyword_arguments_of_other_types():
    flags = TRAIN.keywords(
        epochs=np.int64(3), lr=torch.tensor(0.5), multipliers=np.array([1, 2]),
        attention_resolutions=range(4, 6), class_conditional=np.True_, batch_size=[8],
    )  # fmt: skip
    assert (flags.epochs, flags.lr, flags.batch_size) == (3, 0.5, 8)
    assert (flags.multipliers, flags.attention_resolutions) == ([1, 2], [4, 5])
    assert flags.class_conditional is True
    with pytest.raises(ValueError, match=r"argument --epochs: takes one value, not \[1, 2\]"):
        TRAIN.keywords(epochs=[1, 2])
