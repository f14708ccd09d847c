"""Paths that a user gives: the home folder, run folders, endings, sizes of pictures, places."""

from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.checkpoint import load_checkpoint
from cli.declare import option
from cli.docs import COMMANDS
from cli.training import TRAIN
from conftest import TINY
from dataset.registry import load_dataset
from mini_diffusion.sample import make_parser
from sample import sample
from train import train
from training.fit import fit
from utils import existing_path

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
            values = vars(parser.parse_known_args([word, "--checkpoint", "x"])[0])
            if name != "checkpoint":
                assert values[name] == str(home / "a b"), name
            values = vars(parser.parse_known_args([word, "--checkpoint=~/x.pt"])[0])
            assert values["checkpoint" if "checkpoint" in values else name].startswith(str(home))


def test_only_the_home_folder_is_expanded(home):
    for text in ("~nobody-of-that-name/x", "./~/x", "a/~/x", "x~", "$HOME/x", "newest"):
        assert TRAIN.parse([f"--resume={text}"]).resume == text
    assert TRAIN.keywords(output_dir=Path("~/x")).output_dir == str(home / "x")
    assert TRAIN.keywords(output_dir=Path("~")).output_dir == str(home)


def test_runs_and_samples_below_the_home_folder(home, script):
    assert script("train", *TINY, "--max-steps", "1", "--output-dir=~/run").code == 0
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
    assert list(Path.cwd().iterdir()) == []


def test_a_file_of_that_very_name_is_read_first(home):
    assert existing_path("~/x") == home / "x"
    Path("~").mkdir()
    Path("~/x").touch()
    assert existing_path("~/x") == Path("~/x")
    TRAIN.require_valid("data_dir", "~/x")  # in a run's configuration


def test_mini_diffusion_expands_the_home_folder(home):
    assert make_parser().parse_args(["m.npz", "--output=~/x.png"]).output == home / "x.png"


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
