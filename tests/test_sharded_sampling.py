"""sample.py on several processes, interrupted, killed, and going on."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from conftest import ROOT
from models import build_model, model_config
from processes import Processes
from samplers import SAMPLERS
from sampling.drawing import Job
from sampling.parts import Parts

# Five batches, the last smaller, of three classes.
FLAGS = ["--class-id", "0,1,2", "--guidance-scale", 2, "--num-images", 75, "--batch-size", 16]
FLAGS += ["--steps", 2, "--output", "s.npz"]
PART = 16 * 8 * 8  # bytes


@pytest.fixture
def job(conditional, tmp_path):
    """job(2, ...) starts sample.py with these flags, and others, on two processes."""

    def start(count: int, *options, **kwargs) -> Processes:
        return Processes(tmp_path, count, "--checkpoint", conditional, *FLAGS, *options, **kwargs)

    return start


@pytest.fixture(scope="module")
def whole(conditional, tmp_path_factory) -> bytes:
    """The file that one process writes that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    assert Processes(folder, 1, "--checkpoint", conditional, *FLAGS).wait() == [0]
    return (folder / "s.npz").read_bytes()


def files_in(folder: Path) -> dict[str, bytes]:
    """The contents of all files, without what processes print."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".out", ".err")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_writes_the_same_file(job, whole, tmp_path, count):
    processes = job(count)
    assert processes.wait() == [0] * count, processes.text("err")
    assert files_in(tmp_path) == {"s.npz": whole}  # no parts are left
    out = processes.text("out")
    assert f"{count} processes" in out
    assert "75 images in" in out
    assert "10 network calls" in out  # of all of them
    assert [processes.text("out", rank) for rank in range(1, count)] == [""] * (count - 1)


def test_the_file_holds_what_sample_returns(conditional, whole, tmp_path):
    (tmp_path / "s.npz").write_bytes(whole)
    flags = {"class_id": "0,1,2", "guidance_scale": 2, "num_images": 75, "steps": 2}
    with np.load(tmp_path / "s.npz") as file:
        in_parts = file["arr_0"].astype(int)
    assert in_parts.shape == (75, 8, 8, 1)
    for size in (75, 16):
        at_once = sample.sample(conditional, **flags, batch_size=size)
        assert abs(in_parts - at_once).max() <= 1  # of the same noise and the same class


def test_torchrun(conditional, whole, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [ROOT / "sample.py", "--checkpoint", conditional, *FLAGS]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("network calls") == 1
    assert (tmp_path / "s.npz").read_bytes() == whole


def test_pictures(job, tmp_path):
    options = ["--output", "s.png", "--show-intermediate", "--animate", "--batch-size", 20]
    written = []
    for count in (1, 3):  # the first draws the first of four batches, and the last
        processes = job(count, *options)
        assert processes.wait() == [0] * count, processes.text("err")
        written.append(files_in(tmp_path))
        assert {"s.png", "s.gif", "intermediate/filmstrip.png"} <= written[-1].keys()
        for name in written[-1]:
            (tmp_path / name).unlink()
    assert written[0] == written[1]


@pytest.fixture
def points(trained, tmp_path) -> Path:
    """A checkpoint of points; they have learned nothing."""
    checkpoint = load_checkpoint(trained / "model_final.pt")
    config, shape = checkpoint["config"], {"dim": 2}
    config["model"] = model_config("mlp", shape, 1000, {"channels": 8})
    config["data"] = {"dataset": "moons", "data_dir": "data", "count": 1, "classes": [], **shape}
    checkpoint["ema"] = checkpoint["model"] = build_model(config["model"]).state_dict()
    save_checkpoint(tmp_path / "points.pt", checkpoint)
    return tmp_path / "points.pt"


@pytest.mark.parametrize(
    "options",
    [
        ["--invert", "image.png"],
        ["--inpaint", "image.png", "--mask", "image.png", "--resamplings", 2, "--num-images", 3],
        ["--start-from", "image.png", "--num-images", 3],
        ["--interpolate", "--num-images", 3],
        ["--checkpoint", "points.pt", "--num-images", 3],
        ["--checkpoint", "points.pt", "--num-images", 3, "--output", "s.npz"],
    ],
)
def test_every_mode_is_shared(trained, points, tmp_path, options):
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "image.png")
    flags = ["--checkpoint", trained / "model_final.pt", "--steps", 2, "--output", "s.png"]
    flags += [] if "--invert" in options else ["--batch-size", 2]
    written = []
    for count in (1, 3):  # the third has nothing to do
        processes = Processes(tmp_path, count, *flags, *options)
        assert processes.wait() == [0] * count, processes.text("err")
        written.append(files_in(tmp_path))
        for name in ("s.png", "s.npz"):
            (tmp_path / name).unlink(missing_ok=True)
    assert written[0] == written[1]
    assert written[0].keys() & {"s.png", "s.npz"}


# --- interruptions -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_going_on(job, whole, tmp_path, number):
    processes = job(1, stuck=2)
    processes.wait_for("0.stuck")
    os.kill(processes.all[0].pid, number)
    assert processes.wait() == [128 + number]
    assert processes.text("err") == (
        "sample.py: interrupted; 32 of 75 images are in s.npz.parts: the same command goes on\n"
    )
    assert not (tmp_path / "s.npz").exists()
    processes = job(2)
    assert processes.wait() == [0, 0]
    assert "going on: 32 of 75 images are there" in processes.text("out")
    assert "43 images in" in processes.text("out")
    assert "6 network calls; all 75: s.npz" in processes.text("out")
    assert files_in(tmp_path) == {"0.stuck": b"", "s.npz": whole}


def test_killed_and_going_on(job, whole, tmp_path):
    """One of two processes is killed in the midst of writing; torchrun then ends the other."""
    processes = job(2, stuck=1)
    processes.wait_for("0.stuck", "1.stuck")
    processes.all[1].kill()
    processes.all[1].join()
    processes.all[0].terminate()
    assert processes.wait() == [128 + signal.SIGTERM, -signal.SIGKILL]
    assert "32 of 75 images are in s.npz.parts" in processes.text("err")
    processes = job(1)
    assert processes.wait() == [0]
    assert "going on: 32 of 75 images are there" in processes.text("out")
    assert files_in(tmp_path).keys() == {"0.stuck", "1.stuck", "s.npz"}  # nothing half written
    assert (tmp_path / "s.npz").read_bytes() == whole


@pytest.fixture
def waiting(job) -> Processes:
    """Two processes: the first gets stuck in the last of three batches, the other waits for it."""
    processes = job(2, "--batch-size", 25, stuck=1)
    processes.wait_for("0.stuck", "s.npz.parts/000001.part")
    return processes


def test_a_process_that_waits_can_be_interrupted(waiting):
    for process in waiting.all:
        process.terminate()
    assert waiting.wait() == [143, 143]
    assert "50 of 75 images are in s.npz.parts" in waiting.text("err")


def test_a_process_that_waits_notices_that_another_is_gone(waiting):
    waiting.all[0].kill()
    assert waiting.wait() == [-signal.SIGKILL, 1]
    assert "another process of this job has ended" in waiting.text("err", 1)


def killed_after(job, parts: int) -> None:
    """A job of one process that is killed in the midst of writing its next part."""
    processes = job(1, stuck=parts)
    processes.wait_for("0.stuck")
    processes.all[0].kill()
    assert processes.wait() == [-signal.SIGKILL]


def test_damaged_parts_are_drawn_again(job, whole, tmp_path):
    killed_after(job, 4)
    parts = sorted((tmp_path / "s.npz.parts").glob("*.part"))
    assert len(parts) == 4
    altered = bytearray(parts[0].read_bytes())
    altered[-1] ^= 1
    parts[0].write_bytes(altered)
    parts[1].write_bytes(parts[1].read_bytes()[:-1])
    parts[3].write_bytes(parts[2].read_bytes())  # a whole one, but another batch's
    processes = job(1)
    assert processes.wait() == [0]
    assert "going on: 16 of 75 images are there" in processes.text("out")
    assert "parts that are damaged, and drawn again: 3" in processes.text("out")
    assert (tmp_path / "s.npz").read_bytes() == whole


def test_the_walk_is_written_though_its_batch_is_there(job, whole, tmp_path):
    killed_after(job, 2)
    assert job(1, "--show-intermediate").wait() == [0]
    assert (tmp_path / "s.npz").read_bytes() == whole
    assert (tmp_path / "intermediate" / "filmstrip.png").is_file()


def test_a_full_disk(job, whole, tmp_path):
    killed_after(job, 2)
    before = files_in(tmp_path)
    processes = job(1, limit=PART)  # and its digest
    assert processes.wait() == [1]
    reason = "sample.py: error: cannot write s.npz.parts/000002.part: File too large\n"
    assert processes.text("err") == reason
    assert files_in(tmp_path) == before  # two parts, and nothing of the third

    processes = job(1, limit=3 * PART)  # enough for each part, and too little for all of them
    assert processes.wait() == [1]
    assert processes.text("err") == "sample.py: error: cannot write s.npz: File too large\n"
    assert [name for name in files_in(tmp_path) if name.count(".npz") and "/" not in name] == []

    processes = job(1)
    assert processes.wait() == [0]
    assert "going on: 75 of 75 images are there" in processes.text("out")
    assert "\n0 images in" in processes.text("out")
    assert files_in(tmp_path) == {"0.stuck": b"", "s.npz": whole}


# --- parts of something else ---------------------------------------------------------------------


@pytest.fixture
def begun(conditional, tmp_path, monkeypatch) -> Parts:
    """The folder of a job that has not drawn anything yet."""
    monkeypatch.chdir(tmp_path)
    flags = ["--checkpoint", conditional, *FLAGS]
    parts = Parts(Path("s.npz"), Job(sample.parse_args(list(map(str, flags)))).decisive())
    parts.begin()
    return parts


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (["--seed", 1], "--seed was 0 and is 1 now"),
        (["--class-id", "0,1,3"], "--class-id was [0, 1, 2] and is [0, 1, 3] now"),
        (["--sampler", "ddim"], "--sampler was dpmpp_2m_sde and is ddim now"),
        (["--guidance-interval", 0, 1], "--guidance-interval was not given and is [0.0, 1.0] now"),
        (["--num-images", 78, "--raw"], "--raw was False and is True now, --num-images was 75"),
    ],
)
def test_parts_of_other_samples_are_refused(script, conditional, begun, options, change):
    before = files_in(begun.folder)
    result = script("sample", "--checkpoint", conditional, *FLAGS, *options)
    assert result.code == 2
    assert f"s.npz.parts holds parts of other samples: {change}" in result.err
    assert "delete that folder, or give another --output" in result.err
    assert len(result.err.splitlines()) == 1
    assert files_in(begun.folder) == before


def test_another_checkpoint_of_the_same_name_is_refused(script, conditional, begun, tmp_path):
    checkpoint = load_checkpoint(conditional)
    checkpoint["step"] += 1
    save_checkpoint(tmp_path / "model_final.pt", checkpoint)
    result = script("sample", "--checkpoint", "model_final.pt", *FLAGS)
    assert result.code == 2
    assert "other samples: --checkpoint was sha256:" in result.err
    shutil.copy(conditional, tmp_path / "copy.pt")  # the same content is the same checkpoint
    assert script("sample", "--checkpoint", "copy.pt", *FLAGS).code == 0


def test_the_same_choices_in_other_words_are_accepted(job, begun, whole):
    words = ["--sampler", "dpmpp_2m_sde", "--spacing", "trailing", "--seed", 0, "--timesteps", 100]
    processes = job(1, *words)
    assert processes.wait() == [0], processes.text("err")
    assert begun.output.read_bytes() == whole
    assert not begun.folder.exists()


def test_a_damaged_record_is_refused(script, conditional, begun):
    begun.record.write_text("{")
    result = script("sample", "--checkpoint", conditional, *FLAGS)
    assert result.code == 2
    assert "made_by.json is damaged; delete s.npz.parts" in result.err


def test_every_flag_is_decisive_or_known_not_to_be(conditional):
    """A flag that is added must be given a thought: parts of other values must not be mixed."""
    others = {"help", "debug", "output", "show_intermediate", "animate"}
    others |= {"invert"}  # one image
    others |= {"timesteps"}  # checked, and of no effect
    decisive = set()
    for sampler in SAMPLERS:  # whose options are among them
        args = sample.parse_args(["--checkpoint", str(conditional), "--sampler", sampler])
        decisive |= {name[2:].replace("-", "_") for name in Job(args).decisive() if name[0] == "-"}
    flags = {action.dest for action in sample.make_parser()._actions}
    assert decisive == flags - others
