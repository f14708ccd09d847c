"""Writing an .npz in blocks, and in parts of several processes that are joined."""

import time
import tracemalloc

import numpy as np
import pytest

from sampling.parts import DAMAGED, MISSING, WHOLE, Parts, save_npz
from utils import DataError

ARRAYS = [np.arange(60, dtype=np.uint8).reshape(5, 2, 3, 2), np.linspace(0, 1, 8, dtype="f4")]


@pytest.mark.parametrize("array", ARRAYS)
def test_numpy_reads_a_file_that_was_written_in_blocks(array, tmp_path, monkeypatch):
    content = array.tobytes()
    save_npz(tmp_path / "a.npz", array.shape, array.dtype, [content])
    monkeypatch.setattr(time, "time", lambda: 2e9)  # the file contains no time
    save_npz(tmp_path / "b.npz", array.shape, array.dtype, [content[:7], content[7:]])
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"].dtype == array.dtype
        np.testing.assert_array_equal(file["arr_0"], array)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_blocks_are_not_kept_in_memory(tmp_path):
    tracemalloc.start()
    blocks = (bytes(1 << 20) for _ in range(32))
    save_npz(tmp_path / "a.npz", (32 << 20,), np.dtype(np.uint8), blocks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert (tmp_path / "a.npz").stat().st_size > 32 << 20


@pytest.fixture
def parts(tmp_path) -> Parts:
    """A folder with two parts."""
    parts = Parts(tmp_path / "s[1].npz", {"--seed": 0, "--class-id": None})
    parts.begin()
    for number in range(2):
        parts.write(number, np.full((4, 2), number, np.uint8))
    return parts


def test_parts_are_joined_in_order(parts):
    parts.join(2, (8, 2), np.dtype(np.uint8))
    with np.load(parts.output) as file:
        np.testing.assert_array_equal(file["arr_0"][:, 0], [0] * 4 + [1] * 4)


def test_a_part_is_whole_missing_or_damaged(parts):
    assert [parts.state(number) for number in range(3)] == [WHOLE, WHOLE, MISSING]
    parts.path(0).write_bytes(b"")
    other = Parts(parts.output, {"--seed": 1})  # a process of another job that is still running
    other.write(1, np.zeros((4, 2), np.uint8))
    assert [parts.state(number) for number in range(2)] == [DAMAGED, DAMAGED]


def test_joining_needs_every_part(parts):
    with pytest.raises(
        DataError, match=r"000002\.part is missing or damaged; run the same command"
    ):
        parts.join(3, (12, 2), np.dtype(np.uint8))
    assert not parts.output.exists()
    assert parts.state(1) == WHOLE


def test_deleting_keeps_unrelated_files(parts):
    folder = parts.output.parent
    mine = [folder / ".s[1].npz.77.partial", parts.folder / ".000001.part.77.partial"]
    others = [folder / ".s1.npz.77.partial", folder / "s[1].npz", parts.folder / "notes.txt"]
    for path in mine + others:
        path.touch()
    parts.delete()
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(others)
    others[-1].unlink()
    parts.delete()
    assert not parts.folder.exists()


def test_parts_without_a_record_are_not_reused(parts):
    """A finished job that was killed while it deleted its parts leaves them so."""
    parts.record.unlink()
    parts.check()
    parts.begin()
    assert parts.state(0) == MISSING
    assert parts.record.exists()


def test_starting_again_keeps_the_parts(parts):
    parts.check()
    parts.begin()
    assert parts.state(0) == WHOLE


def test_the_order_of_the_request_does_not_matter(parts):
    again = Parts(parts.output, {"--class-id": None, "--seed": 0})
    again.check()
    again.begin()
    assert [again.state(number) for number in range(2)] == [WHOLE, WHOLE]


def test_parts_of_another_request_raise_and_list_the_differences(parts):
    other = {"--seed": 1, "--class-id": [3], "--checkpoint": f"sha256:{'0123456789abcdef' * 4}"}
    with pytest.raises(ValueError, match="holds parts of other samples") as error:
        Parts(parts.output, other).check()
    assert "--seed was 0 and is 1 now" in str(error.value)
    assert "--class-id was not given and is [3] now" in str(error.value)
    assert "--checkpoint was not given and is sha256:012345678... now" in str(error.value)
    assert str(parts.folder) in str(error.value)
