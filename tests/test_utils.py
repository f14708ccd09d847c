"""Devices, precision, seeds and noise per image."""

import os
import stat
import time

import pytest
import torch
from torch.testing import assert_close

import utils
from utils import (
    NoisePerImage,
    check_writable,
    choose_device,
    choose_precision,
    derive_seed,
    describe,
    keep_freed_memory,
    set_deterministic,
)

CPU = torch.device("cpu")


def test_seeds_depend_on_the_stream_and_on_every_number_in_order():
    words = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (2**63 - 1, 5)]
    assert len({derive_seed("a", *w) for w in words}) == len(words)
    assert derive_seed("a", 3, 4) == derive_seed("a", 3, 4)
    assert derive_seed("a", 3, 4) != derive_seed("b", 3, 4)


def test_noise_of_an_image_does_not_depend_on_its_batch():
    x = torch.zeros(6, 1, 4, 4)
    together = NoisePerImage(0, range(6))
    first, second = together(x), together(x)
    alone = NoisePerImage(0, [4])
    assert_close(alone(x[:1])[0], first[4])
    assert_close(alone(x[:1])[0], second[4])
    assert not torch.equal(first, second)
    assert not torch.equal(NoisePerImage(1, range(6))(x), first)


def test_noise_is_standard_normal_in_any_memory_layout():
    noise = NoisePerImage(0, range(200)).draw((1, 28, 28))
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    channels_last = torch.zeros(200, 1, 28, 28).to(memory_format=torch.channels_last)
    assert_close(NoisePerImage(0, range(200))(channels_last), noise)


def test_missing_devices_raise():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no CUDA GPU"):
            choose_device("cuda:1")
    if not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="finds no Apple GPU"):
            choose_device("mps")


def test_freed_memory_is_used_again_without_page_faults():
    if not keep_freed_memory():
        pytest.skip("this C library has no such option")
    resource, faults = pytest.importorskip("resource"), []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2**22) for _ in range(4)]  # 4,096 pages each
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del tensors
    # A kernel that reclaims idle pages makes some rounds fault; otherwise all would, 16,384 times.
    assert min(faults[1:]) < 1000


def test_automatic_precision_needs_native_and_fast_bf16(monkeypatch):
    for native, slow, expected in [
        (True, False, "bf16"),
        (False, False, "fp32"),
        (True, True, "fp32"),
    ]:
        monkeypatch.setattr(utils, "has_native_bf16", lambda device, native=native: native)
        monkeypatch.setattr(utils, "bf16_is_slow", lambda slow=slow: slow)
        assert choose_precision("auto", CPU) == expected
        assert ("slow" in describe(CPU, "bf16")) == (not native)
    assert choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(ValueError, match="fp16 needs a CUDA GPU"):
        choose_precision("fp16", CPU)


def test_speed_of_bf16_is_measured_without_random_numbers(monkeypatch):
    state = torch.get_rng_state()
    for delayed in ("torch.float32", "torch.bfloat16"):

        def slowly(a, b, delayed=delayed):
            time.sleep(0.01 * (str(a.dtype) == delayed))  # a real product may take any time
            return a

        monkeypatch.setattr(torch.Tensor, "__matmul__", slowly)
        assert utils.bf16_is_slow.__wrapped__() == (delayed == "torch.bfloat16")
    assert torch.equal(torch.get_rng_state(), state)


def test_native_bf16_matches_the_flags_of_the_cpu():
    try:
        with open("/proc/cpuinfo") as file:
            info = file.read()
    except OSError:
        pytest.skip("no /proc/cpuinfo here")
    expected = "avx512_bf16" in info or "amx_bf16" in info
    assert utils.has_native_bf16(CPU) == expected


def test_folders_that_cannot_be_written_raise(tmp_path):
    check_writable(tmp_path / "not" / "there" / "yet")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file"):
        check_writable(tmp_path / "file" / "x")
    if os.geteuid() != 0:  # root can write anywhere
        tmp_path.chmod(0o500)
        with pytest.raises(ValueError, match="no permission"):
            check_writable(tmp_path)


def test_deterministic_algorithms_are_set_only_on_a_change(monkeypatch):
    set_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled()
    set_deterministic(None)
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", None
    )  # it imports a compiler, which is slow
    set_deterministic(False)


def test_a_file_is_on_the_disk_before_it_is_renamed_and_the_name_after(monkeypatch, tmp_path):
    events, fsync, replace = [], os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("name on disk" if is_folder else "content on disk")
        fsync(descriptor)

    def record_replace(source, target) -> None:
        events.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    utils.save_whole(tmp_path / "file", lambda partial: partial.write_text("content"))
    assert events == ["content on disk", "renamed", "name on disk"]
    assert (tmp_path / "file").read_text() == "content"
