"""Files that no run wrote: a run never replaces or deletes them, whatever their names."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.own_files import is_own_picture
from runs import SMALL
from training.folder import RunFolder
from training.foreign import foreign_files
from visuals.pictures import save_picture

RUN = [*SMALL, "--max-steps", "2", "--output-dir"]


def picture(path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(path)


def text(content: str):
    return lambda path: path.write_text(content)


def tensors(path: Path) -> None:
    torch.save({"step": 7, "format": 1, "weights": torch.zeros(3)}, path)


# Files of other programs, with the names of a run's files.
FOREIGN = {
    "config.json": text('{"model_type": "unet", "model": {}, "data": "x"}'),
    "env.json": text('{"PATH": "/usr/bin"}'),
    "data.json": text('{"a.png": "a cat"}'),
    "metrics.jsonl": text('{"step": 1, "epoch": 0.1, "loss": 2.5, "eval_loss": 3}\n'),
    "lost_output.log": text("notes\n"),
    ".lock": text("pid 1234\n"),
    "training_loss.png": picture,
    "learning.png": picture,
    "report.html": text("<!DOCTYPE html><title>Our report</title>"),
    "samples/epoch_001.png": picture,
    "samples": text("a list of samples"),
    "model_final.pt": tensors,
    "checkpoints/best.pt": tensors,
    "checkpoints/model_epoch_005.pt": tensors,
    "checkpoints/model_step_00000100.shards/record.json": text("{}"),
    "snapshots/step_000016.safetensors": tensors,
    "tensorboard/events.out.tfevents.1.host": text("events"),
}
# Names that a run does not give.
OTHERS = {
    "samples/epoch_cats.png": picture,
    "samples/epoch_001.jpg": picture,
    "checkpoints/best_cats.pt": tensors,
    "checkpoints/model_epoch_x.pt": tensors,
    "checkpoints/model_step_mine.pt": tensors,
    "checkpoints/.mine.pt.partial": tensors,
    ".notes.txt.partial": text("half"),
    "snapshots/step_mine.safetensors": tensors,
    "tensorboard/notes": text("notes"),
    "mine.pt.aside": tensors,
}


def write(folder: Path, name: str, make) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    make(folder / name)
    return folder / name


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_foreign_files_is_refused(script, tmp_path, name):
    folder = tmp_path / "mine"
    write(folder, name, FOREIGN[name])
    before = contents(folder)
    for option in ([], ["--overwrite"], ["--resume"]):
        result = script("train", *RUN, folder, *option)
        assert result.code == 2, option
        shown = name.removesuffix("/record.json")
        assert f"no run wrote: {shown}. Choose another --output-dir" in result.err
        assert contents(folder) == before


def test_other_names_are_never_touched(script, tmp_path):
    folder = tmp_path / "mine"
    for name, make in OTHERS.items():
        write(folder, name, make)
    before = contents(folder)
    for option in ([], ["--overwrite"], ["--resume", "--max-steps", 4]):
        result = script("train", *RUN, folder, *option, "--save-every-steps", 1)
        assert result.code == 0, result.err
        assert "skipped" not in result.out
        assert before.items() <= contents(folder).items()
    run = RunFolder(folder)
    assert not {path.name for path in run.all_checkpoints()} & {Path(n).name for n in OTHERS}


def test_overwrite_deletes_all_that_a_run_wrote(script, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    assert script("visualize_diffusion", "--run", folder, "--steps", 2).code == 0
    (folder / "lost_output.log").write_text("Tiny Diffusion: stdout failed\n")
    assert not foreign_files(folder)
    (folder / "config.json").rename(tmp_path / "config.json")
    assert not foreign_files(folder)  # each is recognised by its content
    RunFolder(folder).clear()
    assert set(os.listdir(folder)) <= {".lock"}


def test_overwrite_keeps_the_links_to_folders(script, tmp_path):
    """As to a larger disk."""
    for name in ("checkpoints", "samples"):
        (tmp_path / name).mkdir()
        write(tmp_path, f"run/{name}", lambda path: path.symlink_to(f"../{path.name}"))
    for option in ([], ["--overwrite"]):
        result = script("train", *RUN, "run", "--save-every-steps", 1, *option)
        assert result.code == 0, result.err
    assert os.listdir("checkpoints") == ["model_step_00000001.pt"]
    assert Path("run/checkpoints").is_symlink()
    assert Path("run/samples").is_symlink()


def test_a_run_that_was_killed_early_is_ours(script, trained, tmp_path):
    for names in ([".lock"], [".lock", "config.json"], [".lock", "config.json", "env.json"]):
        folder = tmp_path / str(len(names))
        folder.mkdir()
        for name in names:
            shutil.copy(trained / name, folder)
        assert script("train", *RUN, folder).code == 0


def test_pictures_of_older_versions_are_ours(script, trained, tmp_path):
    """They have no mark; config.json tells."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained, folder.path)
    for path in [*folder.samples.glob("*.png")]:
        picture(path)
    Image.open(folder.loss_plot).save(folder.loss_plot, pnginfo=matplotlib_text())
    assert not foreign_files(folder.path)
    assert script("train", *RUN, folder.path, "--overwrite").code == 0


def matplotlib_text():
    from PIL.PngImagePlugin import PngInfo

    found = PngInfo()
    found.add_text("Software", "Matplotlib version3.8, https://matplotlib.org/")
    return found


def test_a_foreign_report_beside_a_run(script, trained, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained, folder.path)
    for name in ("report.html", "learning.png"):
        write(folder.path, name, FOREIGN[name])
        before = contents(folder.path)
        for command in (["train", *RUN, folder.path, "--overwrite"],):
            result = script(*command)
            assert result.code == 2
            assert name in result.err
        result = script("visualize_diffusion", "--run", folder.path, "--steps", 2)
        assert result.code == 2
        assert f"{folder.path / name} was not written by this command" in result.err
        assert contents(folder.path) == before
        (folder.path / name).unlink()


def test_a_run_resumes_beside_a_foreign_report(script, trained, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained, folder.path)
    write(folder.path, "report.html", FOREIGN["report.html"])
    result = script("train", "--resume", "--output-dir", folder.path, "--epochs", 3)
    assert result.code == 0, result.err
    assert "Our report" in folder.report.read_text()


def test_a_foreign_config_beside_a_checkpoint(script, trained, tmp_path):
    """As in the folder of a model of another library."""
    shutil.copy(trained / "model_final.pt", tmp_path)
    config = write(tmp_path, "config.json", FOREIGN["config.json"])
    result = script("train", "--resume", tmp_path / "model_final.pt", "--epochs", 3)
    assert result.code == 2
    assert "no run wrote: config.json" in result.err
    assert "model_type" in json.loads(config.read_text())


def test_a_damaged_config_beside_a_run_is_ours(script, trained, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained, folder.path)
    folder.config.write_text("{")
    assert not foreign_files(folder.path)


def test_sampling_deletes_only_its_own_pictures(script, trained, tmp_path):
    folder = tmp_path / "intermediate"
    folder.mkdir()
    ours, theirs = folder / "step_0999.png", folder / "x_0_0998.png"
    save_picture(ours, np.zeros((8, 8, 3), np.uint8))
    picture(theirs)
    picture(folder / "step_cats.png")
    command = ["--checkpoint", trained / "model_final.pt", "--num-images", 2, "--steps", 2]
    result = script("sample", *command, "--output", tmp_path / "a.png", "--show-intermediate")
    assert result.code == 0, result.err
    assert not ours.exists()
    assert theirs.exists()
    assert (folder / "step_cats.png").exists()


TRAJECTORY = ["sample", "--output", "a.png", "--show-intermediate", "--animate"]
# Commands, and the files of each that no flag names.
BESIDE = {
    "intermediate/step_0000.png": TRAJECTORY,
    "intermediate/filmstrip_x_0.png": TRAJECTORY,
    "a.gif": TRAJECTORY,
    "metrics.json": ["evaluate"],
    "metrics_nearest.png": ["evaluate"],
    "outputs/forward_process.png": ["visualize_diffusion"],
    "outputs/forward_process_schedules.png": ["visualize_diffusion"],
}
MORE = {
    "sample": ["--num-images", 2, "--steps", 2],
    "evaluate": ["--metrics", "copies", "--num-images", 4, "--repeats", 1, "--steps", 2],
    "visualize_diffusion": ["--dataset", "digits", "--num-images", 1, "--timesteps", 0],
}


def test_only_a_file_that_a_flag_names_is_replaced(script, trained, tmp_path):
    shutil.copy(trained / "model_final.pt", tmp_path)
    runs = {}  # the words of each command, and the files that it writes beside its output
    for name, (command, *flags) in BESIDE.items():
        words = [command, *MORE.get(command, []), *flags]
        if command != "visualize_diffusion":
            words += ["--checkpoint", "model_final.pt"]
        runs.setdefault(tuple(words), []).append(Path(name))
        picture(write(tmp_path, name, lambda path: path.touch()).with_name("red.png"))
        foreign = Path(name).with_name("red.png").rename(name)
        before = foreign.read_bytes()
        result = script(*words)
        assert result.code == 2, name
        assert f"cannot write to {name}: it exists, and this command did not" in result.err
        assert foreign.read_bytes() == before
        foreign.unlink()
    for words, paths in runs.items():
        times = []
        for _ in range(2):  # the second time the files are the command's own
            assert script(*words).code == 0, words
            times.append([path.stat().st_mtime_ns for path in paths])
        assert all(first < second for first, second in zip(*times, strict=True))
    name = "outputs/forward_process.png"
    picture(Path(name))
    visualize = ["visualize_diffusion", *MORE["visualize_diffusion"]]
    assert script(*visualize, "--save-path", name).code == 0


def test_a_trajectory_of_an_older_version_without_marks_is_replaced(script, trained, tmp_path):
    folder = tmp_path / "intermediate"
    folder.mkdir()
    for name in ("filmstrip.png", "filmstrip_x_0.png", "step_0000.png", "x_0_0998.png"):
        picture(folder / name)
    command = ["--checkpoint", trained / "model_final.pt", "--num-images", 2, "--steps", 2]
    result = script("sample", *command, "--output", tmp_path / "a.png", "--show-intermediate")
    assert result.code == 0, result.err
    assert all(is_own_picture(path) for path in folder.iterdir())
    assert not (folder / "x_0_0998.png").exists()


def test_parts_beside_foreign_files(script, trained, tmp_path):
    write(tmp_path, "s.npz.parts/holiday.part", text("film"))
    write(tmp_path, "s.npz.parts/.notes.partial", text("half"))
    before = contents(tmp_path / "s.npz.parts")
    command = ["--checkpoint", trained / "model_final.pt", "--num-images", 2, "--steps", 2]
    command += ["--batch-size", 1, "--output", "s.npz"]
    assert script("sample", *command).code == 0
    assert contents(tmp_path / "s.npz.parts") == before
    write(tmp_path, "s.npz.parts/made_by.json", text("[]"))
    result = script("sample", *command)
    assert result.code == 2
    assert "made_by.json is damaged" in result.err
