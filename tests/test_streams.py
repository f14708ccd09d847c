"""Output that fails: a reader that has gone, a closed stream, a full disk, a narrow encoding."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from checkpoints.checkpoint import load_checkpoint
from cli import streams
from cli.streams import HEADING, UnfailingWriter
from conftest import ROOT
from processes import TIMEOUT, Processes, run_sample
from runs import SMALL, TrainingProcess
from sample import sample
from training.fit import fit
from training.folder import RunFolder

SHORT = [*SMALL, "--max-steps", "20"]


def descriptor(path: Path | str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT)


def writer(number: int) -> UnfailingWriter:
    return UnfailingWriter(number, "stdout", open(number, "wb", buffering=0, closefd=False))


# --- one stream -----------------------------------------------------------------------------------


def broken_pipe() -> int:
    reader, number = os.pipe()
    os.close(reader)
    return number


def lost_terminal() -> int:
    master, number = os.openpty()
    os.close(master)
    return number


@pytest.mark.parametrize(
    "make",
    [
        broken_pipe,
        lost_terminal,
        lambda: descriptor("/dev/full"),
        lambda: os.open("/dev/null", os.O_RDONLY),
    ],
    ids=["pipe", "terminal", "full disk", "read-only"],
)
def test_a_stream_that_fails_continues_in_the_log(tmp_path, make):
    stream, log = writer(make()), tmp_path / "log"
    stream.write(b"before\n")
    stream.continue_in(log)
    stream.write(b"after\n")
    os.write(stream.fileno(), b"by C\n")
    heading, *rest = log.read_text().splitlines()
    assert heading.startswith(HEADING)
    assert "stdout failed" in heading
    assert rest == ["before", "after", "by C"]
    os.close(stream.fileno())


def test_without_a_log_a_stream_that_fails_writes_nothing():
    stream = writer(broken_pipe())
    for _ in range(3):
        assert stream.write(b"x" * 100_000) == 100_000
    assert len(stream.unsaved) == streams.MAX_UNSAVED
    assert os.write(stream.fileno(), b"by C") == 4
    os.close(stream.fileno())


def test_a_log_that_cannot_be_written_is_given_up(tmp_path):
    for log in (Path("/dev/full"), tmp_path / "missing" / "log"):
        stream = writer(broken_pipe())
        stream.continue_in(log)
        for _ in range(3):
            assert stream.write(b"text") == 4
        os.close(stream.fileno())


def test_a_pipe_that_does_not_block_is_waited_for():
    reader, number = os.pipe()
    os.set_blocking(number, False)
    stream, text = writer(number), bytes(range(256)) * 2000

    def write() -> None:
        stream.write(text)
        os.close(number)

    threading.Thread(target=write).start()
    with open(reader, "rb") as file:
        assert file.read() == text
    assert not stream.reason


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "shift_jis", "utf-16", "utf-8"])
def test_any_text_can_be_printed(monkeypatch, tmp_path, encoding):
    number = descriptor(tmp_path / "out")
    plain = io.TextIOWrapper(io.FileIO(number, "wb"), encoding=encoding, errors="strict")
    for name in ("stdout", "__stdout__"):
        monkeypatch.setattr(sys, name, plain)
    monkeypatch.setattr(streams, "GUARDED", {})
    monkeypatch.setattr(streams, "UnfailingWriter", lambda n, *rest: UnfailingWriter(number, *rest))
    streams.guard_output()
    text = "фото 🙂 \udcff é"
    print(text, flush=True)
    shown = (tmp_path / "out").read_bytes().decode(encoding)
    assert shown.strip() == text.encode(encoding, "backslashreplace").decode(encoding)


def test_streams_of_a_notebook_are_left_alone(monkeypatch):
    theirs = io.StringIO()
    monkeypatch.setattr(sys, "stdout", theirs)
    streams.guard_output()
    assert sys.stdout is theirs


class Lost:
    """A logger's stream, whose file has gone. It has no more methods than print needs."""

    def __init__(self):
        self.texts = []

    def write(self, text: str) -> None:
        self.texts.append(text)
        raise OSError("gone")


class Linear(torch.nn.Linear):
    def forward(self, x, t):
        return super().forward(x)


def fit_points(folder: Path):
    flags = {"batch_size": 16, "sample_interval": 0, "save_interval": 0, "validation": 0}
    return fit(Linear(2, 2), torch.randn(64, 2), folder=folder, max_steps=3, **flags)


@pytest.mark.parametrize("stream", [Lost(), None], ids=["lost", "none"])
def test_a_function_does_not_fail_because_it_prints(monkeypatch, tmp_path, stream):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    result = fit_points(tmp_path / "run")
    assert result.exit_code == 0
    assert len(sample(result.checkpoint, model=Linear(2, 2), num_images=2, steps=2)) == 2
    assert sys.stdout is sys.stderr is stream
    assert stream is None or "step 3/3" in "".join(stream.texts)


def test_the_output_of_a_function_continues_in_its_log(monkeypatch, tmp_path):
    plain = open(broken_pipe(), "w", encoding="utf-8")  # noqa: SIM115
    for name in ("stderr", "__stderr__"):
        monkeypatch.setattr(sys, name, plain)
    monkeypatch.setattr(streams, "GUARDED", {})
    make = UnfailingWriter
    monkeypatch.setattr(
        streams, "UnfailingWriter", lambda n, *rest: make(plain.fileno() if n == 2 else n, *rest)
    )
    for name in ("first", "second"):
        fit_points(tmp_path / name)
        assert sys.stderr is plain
        text = (tmp_path / name / "lost_output.log").read_text()
        assert text.startswith(HEADING)
        assert text.count("step 3/3") == 1


def test_the_last_of_two_threads_restores_the_streams(monkeypatch):
    theirs = io.StringIO()
    monkeypatch.setattr(sys, "stdout", theirs)
    first, second = streams.unfailing_output(), streams.unfailing_output()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    print("still sheltered")
    assert sys.stdout is not theirs
    second.__exit__(None, None, None)
    assert sys.stdout is theirs
    assert theirs.getvalue() == "still sheltered\n"


# --- whole runs -----------------------------------------------------------------------------------


def started(*command, encoding: str, **options) -> subprocess.Popen:
    words = [sys.executable, *map(str, command)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.Popen(words, env=environment, cwd=ROOT, **options)


@pytest.fixture(scope="module")
def unread(tmp_path_factory) -> tuple[RunFolder, int, bytes]:
    """A run with a closed stderr, whose stdout nobody reads after the first line.

    Its folder, exit code, and first line.
    """
    folder = RunFolder(tmp_path_factory.mktemp("unread") / "фото")
    options = {"stdout": subprocess.PIPE, "preexec_fn": lambda: os.close(2)}
    process = started("train.py", *SHORT, "--output-dir", folder.path, encoding="cp1252", **options)
    line = process.stdout.readline()
    process.stdout.close()
    return folder, process.wait(TIMEOUT), line


def test_a_run_goes_on_when_its_reader_goes_away(unread):
    folder, code, line = unread
    assert code == 0
    assert line.startswith(b"device: ")
    assert load_checkpoint(folder.final)["step"] == 20
    text = folder.lost_output.read_bytes().decode("cp1252")
    assert text.startswith(f"{HEADING}")
    assert "stdout failed (Broken pipe)" in text
    assert r"next: python sample.py --checkpoint" in text
    assert r"\u0444\u043e\u0442\u043e/model_final.pt" in text


def test_a_run_goes_on_without_a_stream(unread):
    text = unread[0].lost_output.read_bytes().decode("cp1252")
    assert "stderr failed (it is closed)" in text
    assert "step 20/20" in text


def narrow() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")


def disk_full() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def closed() -> None:
    for number in (1, 2):
        os.close(number)
    sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = None


def sample_closed(*arguments: str) -> int:
    closed()
    return run_sample(*arguments)


def test_a_run_is_sampled_with_closed_streams(trained, tmp_path):
    command = ["--checkpoint", trained / "model_final.pt", "--num-images", 2, "--steps", 2]
    job = Processes(tmp_path, 1, sample_closed, *command, "--output", "фото.png")
    assert job.wait() == [0]
    assert (tmp_path / "фото.png").exists()


@pytest.mark.parametrize("prepare", [narrow, disk_full, closed])
def test_a_run_ends_well_with_broken_output(tmp_path, prepare):
    folder = RunFolder(tmp_path / "каталог")
    job = TrainingProcess(tmp_path / "log", *SHORT, "--output-dir", folder.path, prepare=prepare)
    assert job.wait() == 0
    assert load_checkpoint(folder.final)["step"] == 20
    lost = folder.lost_output.read_text() if folder.lost_output.exists() else ""
    if prepare is not narrow:
        assert "stderr failed" in lost
        assert "step 20/20" in lost
    assert ("next: python sample.py" in lost) == (prepare is closed)


def test_a_path_that_is_not_utf_8(tmp_path):
    folder = RunFolder(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    for steps in (5, 8):  # the second run resumes the first
        flags = [*SMALL, "--output-dir", folder.path, "--max-steps", steps, "--resume"]
        job = TrainingProcess(tmp_path / "log", *flags)
        assert job.wait() == 0, job.text()
    assert f"{tmp_path}/caf\\udce9" in job.text()
    assert load_checkpoint(folder.final)["step"] == 8


def test_the_package_without_pytorch_goes_on_without_its_output(script, trained, tmp_path):
    model, output = tmp_path / "model.npz", tmp_path / "a.png"
    assert script("export", "--checkpoint", trained / "model_final.pt", model).code == 0
    sampling = ["mini_diffusion.sample", model, "--num-images", 2, "--steps", 2, "--output", output]
    for command in (sampling, ["mini_diffusion.demo"]):
        with open("/dev/full", "w") as full:
            process = started("-m", *command, encoding="utf-8", stdout=full)
            assert process.wait(TIMEOUT) == 0
    assert output.exists()
