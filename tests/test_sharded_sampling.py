"""sample.py with several processes; interrupted, killed, and continued."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from cli.sampling import SAMPLE
from models import build_model, model_config
from processes import Processes, run_sample, run_samples, run_torchrun
from samplers import OF_TUNED, SAMPLERS
from sampling.draw import SamplingJob
from sampling.parts import Parts

# Five batches of three classes. The last batch is smaller.
FLAGS = ["--class-id", "0,1,2", "--guidance-scale", 2, "--num-images", 75, "--batch-size", 16]
FLAGS += ["--steps", 2, "--output", "s.npz"]
PART = 16 * 8 * 8  # bytes
ODD = ["--num-images", 3, "--batch-size", 2]  # two batches: a third process has none
IMAGE = ["image.png", "--mask", "image.png"]
REQUESTS = {  # flags, by the name of the output
    "invert.png": ["--invert", "image.png"],
    "inpaint.png": ["--inpaint", *IMAGE, "--resamplings", 2, *ODD],
    "start-from.png": ["--start-from", "image.png", *ODD],
    "interpolate.png": ["--interpolate", *ODD],
    "points.png": ["--checkpoint", "points.pt", *ODD],
    "points.npz": ["--checkpoint", "points.pt", *ODD],
    "cascade.png": ["--then", "stage.pt", "--then-steps", 2, *ODD],
    "frames/s.png": [*FLAGS[:-2], "--show-intermediate", "--animate", "--batch-size", 20],
}


@pytest.fixture
def job(conditional, tmp_path):
    """job(2, ...) starts sample.py with these flags, and others, on two processes."""

    def start(count: int, *arguments, **options) -> Processes:
        flags = ["--checkpoint", conditional, *FLAGS, *arguments]
        return Processes(tmp_path, count, run_sample, *flags, **options)

    return start


@pytest.fixture(scope="module")
def whole(conditional, tmp_path_factory) -> bytes:
    """The file that one process writes without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    assert Processes(folder, 1, run_sample, "--checkpoint", conditional, *FLAGS).wait() == [0]
    return (folder / "s.npz").read_bytes()


def files_in(folder: Path) -> dict[str, bytes]:
    """The contents of all files, without what processes print."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".out", ".err")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_several_processes_write_the_same_file(job, whole, tmp_path):
    """Three here, and two in `test_ctrl_c`."""
    processes = job(3)
    assert processes.wait() == [0] * 3, processes.text("err")
    assert files_in(tmp_path) == {"s.npz": whole}  # no parts are left
    out = processes.text("out")
    assert "3 processes" in out
    assert "75 images in" in out
    assert "10 network calls" in out  # of all processes
    assert [processes.text("out", number) for number in (1, 2)] == ["", ""]


def test_the_file_holds_what_sample_returns(conditional, whole, tmp_path):
    (tmp_path / "s.npz").write_bytes(whole)
    flags = {"class_id": "0,1,2", "guidance_scale": 2, "num_images": 75, "steps": 2}
    with np.load(tmp_path / "s.npz") as file:
        in_parts = file["arr_0"].astype(int)
    assert in_parts.shape == (75, 8, 8, 1)
    for size in (75, 16):
        in_one = sample.sample(conditional, **flags, batch_size=size)
        assert abs(in_parts - in_one).max() <= 1  # of the same noise and the same class


def test_torchrun(conditional, whole, tmp_path):
    flags = ["--checkpoint", conditional, *FLAGS]
    processes = Processes(tmp_path, 1, run_torchrun, *flags, worker=run_sample)
    assert processes.wait() == [0], processes.text("err")
    assert processes.text("out").count("network calls") == 1
    assert files_in(tmp_path) == {"s.npz": whole}


@pytest.fixture(scope="module")
def outputs(conditional, tmp_path_factory) -> tuple[Path, Path]:
    """Two folders with the outputs of `REQUESTS`: by one process, and by three."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("three")
    for folder, count in zip(folders, (1, 3), strict=True):
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(folder / "image.png")
        save_points(conditional, folder / "points.pt")
        save_stage(conditional, folder / "stage.pt")
        common = ["--checkpoint", conditional, "--steps", 2]
        requests = [[*common, *flags, "--output", name] for name, flags in REQUESTS.items()]
        processes = Processes(folder, count, run_samples, requests=requests)
        assert processes.wait() == [0] * count, processes.text("err")
    return folders


def save_points(checkpoint: Path, path: Path) -> None:
    """Write a checkpoint of points with random weights."""
    content = load_checkpoint(checkpoint)
    config, shape = content["config"], {"dim": 2}
    config["model"] = model_config("mlp", shape, 100, {"channels": 8})
    config["data"] = {"dataset": "moons", "data_dir": "data", "count": 1, "classes": [], **shape}
    config["diffusion"]["learn_sigma"] = False
    config["train"]["class_conditional"] = False
    content["ema"] = content["model"] = build_model(config["model"]).state_dict()
    save_checkpoint(path, content)


def save_stage(checkpoint: Path, path: Path) -> None:
    """Write a checkpoint that enlarges the images of another one, with random weights."""
    content = load_checkpoint(checkpoint)
    config = content["config"]
    config["data"]["image_size"] = config["model"]["image_size"] = 16
    config["model"]["super_resolution"] = 8
    torch.manual_seed(0)
    model = build_model(config["model"])
    for parameter in model.parameters():  # the output layer begins as zero
        torch.nn.init.normal_(parameter, std=0.1)
    content["ema"] = model.state_dict()
    content["model"] = {name: weight.clone() for name, weight in content["ema"].items()}
    save_checkpoint(path, content)


@pytest.mark.parametrize("name", REQUESTS)
def test_every_mode_gives_the_same_file_with_three_processes(outputs, name):
    one, three = ((folder / name).read_bytes() for folder in outputs)
    assert one == three


def test_the_trajectory_is_the_same_with_three_processes(outputs):
    one, three = (files_in(folder / "frames") for folder in outputs)
    assert one == three
    assert {"s.gif", "intermediate/filmstrip.png"} <= one.keys()


# --- interruptions -------------------------------------------------------------------------------


def test_ctrl_c(job, whole, tmp_path):
    processes = job(1, stuck=2)
    processes.wait_for("0.stuck")
    os.kill(processes.all[0].pid, signal.SIGINT)
    assert processes.wait() == [128 + signal.SIGINT]
    assert processes.text("err") == (
        "sample.py: interrupted; 32 of 75 images are in s.npz.parts: the same command continues\n"
    )
    assert not (tmp_path / "s.npz").exists()
    processes = job(2)
    assert processes.wait() == [0, 0]
    assert "continuing: 32 of 75 images exist" in processes.text("out")
    assert "43 images in" in processes.text("out")
    assert "6 network calls; all 75: s.npz" in processes.text("out")
    assert files_in(tmp_path) == {"0.stuck": b"", "s.npz": whole}


@pytest.fixture(scope="module")
def killed_job(conditional, tmp_path_factory) -> Processes:
    """Two processes of which one is killed while it writes; torchrun then ends the other."""
    folder = tmp_path_factory.mktemp("killed")
    job = Processes(folder, 2, run_sample, "--checkpoint", conditional, *FLAGS, stuck=1)
    job.wait_for("0.stuck", "1.stuck")
    job.all[1].kill()
    job.all[1].join()
    job.all[0].terminate()
    assert job.wait() == [128 + signal.SIGTERM, -signal.SIGKILL]
    return job


@pytest.fixture
def killed(killed_job, tmp_path) -> Path:
    """A copy of the folder of that job, with two parts and two partial ones."""
    shutil.copytree(killed_job.folder, tmp_path, dirs_exist_ok=True)
    assert len(list((tmp_path / "s.npz.parts").glob(".*.partial"))) == 2
    return tmp_path


def test_a_killed_job_continues(killed_job, killed, job, whole):
    assert "32 of 75 images are in s.npz.parts" in killed_job.text("err")
    processes = job(1)
    assert processes.wait() == [0]
    assert "continuing: 32 of 75 images exist" in processes.text("out")
    assert files_in(killed) == {"0.stuck": b"", "1.stuck": b"", "s.npz": whole}


def test_damaged_parts_are_drawn_again(killed, job, whole):
    parts = [killed / "s.npz.parts" / f"{number:06d}.part" for number in range(4)]
    parts[2].write_bytes(parts[1].read_bytes())  # a valid part of another batch
    parts[3].write_bytes(parts[1].read_bytes()[:-1])
    altered = bytearray(parts[0].read_bytes())
    altered[-1] ^= 1
    parts[0].write_bytes(altered)
    processes = job(1)
    assert processes.wait() == [0]
    assert "continuing: 16 of 75 images exist" in processes.text("out")
    assert "3 damaged parts are drawn again" in processes.text("out")
    assert (killed / "s.npz").read_bytes() == whole


def test_the_trajectory_is_written_even_if_its_part_exists(killed, job, whole):
    assert job(1, "--show-intermediate").wait() == [0]
    assert (killed / "s.npz").read_bytes() == whole
    assert (killed / "intermediate" / "filmstrip.png").is_file()


def test_a_full_disk(killed, job, whole):
    for partial in (killed / "s.npz.parts").glob(".*.partial"):
        partial.unlink()
    before = files_in(killed)
    processes = job(1, limit=PART)  # a part has 32 bytes more
    assert processes.wait() == [1]
    reason = "sample.py: error: cannot write s.npz.parts/000002.part: File too large\n"
    assert processes.text("err") == reason
    assert files_in(killed) == before  # two parts, and nothing of the third

    processes = job(1, limit=3 * PART)  # enough for each part, and too little for all of them
    assert processes.wait() == [1]
    assert processes.text("err") == "sample.py: error: cannot write s.npz: File too large\n"
    assert [name for name in files_in(killed) if name.count(".npz") and "/" not in name] == []

    processes = job(1)
    assert processes.wait() == [0]
    assert "continuing: 75 of 75 images exist" in processes.text("out")
    assert "\n0 images in" in processes.text("out")
    assert files_in(killed) == {"0.stuck": b"", "1.stuck": b"", "s.npz": whole}


@pytest.fixture
def waiting(job) -> Processes:
    """Two processes: the first blocks in the last of three batches, the other waits for it."""
    processes = job(2, "--batch-size", 25, stuck=1)
    processes.wait_for("0.stuck", "s.npz.parts/000001.part")
    return processes


def test_a_process_that_waits_can_be_interrupted(waiting):
    for each in waiting.all:
        each.terminate()
    assert waiting.wait() == [143, 143]
    assert "50 of 75 images are in s.npz.parts" in waiting.text("err")


def test_a_process_that_waits_notices_that_another_has_ended(waiting):
    waiting.all[0].kill()
    assert waiting.wait() == [-signal.SIGKILL, 1]
    assert "another process of this job has ended" in waiting.text("err", 1)


# --- parts of other samples ----------------------------------------------------------------------


@pytest.fixture
def begun(conditional, tmp_path, monkeypatch) -> Parts:
    """The folder of a job that has not drawn anything yet."""
    monkeypatch.chdir(tmp_path)
    flags = ["--checkpoint", conditional, *FLAGS]
    parts = Parts(Path("s.npz"), SamplingJob(SAMPLE.parse(list(map(str, flags)))).decisive())
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
    assert "delete that folder or choose another --output" in result.err
    assert len(result.err.splitlines()) == 1
    assert files_in(begun.folder) == before


def test_parts_of_another_checkpoint_with_the_same_name_are_refused(
    script, conditional, begun, tmp_path
):
    checkpoint = load_checkpoint(conditional)
    checkpoint["step"] += 1
    save_checkpoint(tmp_path / "model_final.pt", checkpoint)
    result = script("sample", "--checkpoint", "model_final.pt", *FLAGS)
    assert result.code == 2
    assert "other samples: --checkpoint was sha256:" in result.err
    shutil.copy(conditional, tmp_path / "copy.pt")  # the same content is the same checkpoint
    assert script("sample", "--checkpoint", "copy.pt", *FLAGS).code == 0


def test_defaults_may_be_given_explicitly(job, begun, whole):
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


def test_every_flag_decides_the_samples_or_is_known_not_to(conditional):
    """A new flag must be assigned, or parts sampled with different values would be mixed."""
    others = {"debug", "output", "show_intermediate", "animate"}
    others |= {"invert", "list_classes"}  # one image; none
    others |= {"pairs"}  # adds to the samples
    others |= {"timesteps"}  # checked, and without an effect
    others |= {"threads"}  # rounds as another machine does, on which parts may be sampled, too
    others |= {"text_encoder"}  # its files must have the digest in the checkpoint
    others |= {name for name in SAMPLE.declared if name.startswith("then")}  # each stage decides
    decisive = set()
    for sampler in SAMPLERS.keys() - OF_TUNED:  # their options are among the flags
        job = SamplingJob(SAMPLE.parse(["--checkpoint", str(conditional), "--sampler", sampler]))
        decisive |= {name[2:].replace("-", "_") for name in job.decisive() if name[0] == "-"}
    assert decisive == set(SAMPLE.declared) - others
