"""Runs on file systems that lack a function: most of these are in a network."""

import builtins
import errno
import fcntl
import os
import stat

import pytest

from checkpoints.checkpoint import load_checkpoint
from checkpoints.reading import CheckpointError
from runs import SMALL
from training.folder import RunFolder
from utils import save_whole


def fails(number: int):
    def call(*arguments):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, 524])
def test_a_run_trains_without_locks_and_says_so(script, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", fails(number))
    result = script("train", *SMALL, "--max-steps", "1", "--output-dir", "run")
    assert result.code == 0
    assert "run cannot be locked: start no second run in it" in result.out


def test_partial_files_stay_where_another_run_may_be_writing_them(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    partial = tmp_path / ".model_final.pt.7.partial"
    partial.write_bytes(b"half")
    with RunFolder(tmp_path).lock():
        assert partial.exists()


def test_a_lock_that_is_held_is_no_missing_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fails(errno.EWOULDBLOCK))
    with pytest.raises(ValueError, match="a run is writing to"), RunFolder(tmp_path).lock():
        pass


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("of_files", [False, True])
def test_files_are_written_where_nothing_can_be_flushed(tmp_path, monkeypatch, number, of_files):
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        if of_files or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fails(number)()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    save_whole(tmp_path / "a.txt", lambda partial: partial.write_text("whole"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_disk_that_fails_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fails(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        save_whole(tmp_path / "a.txt", lambda partial: partial.write_text("whole"))


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path, usual = tmp_path / "model.pt", open
    path.write_bytes(b"whole")

    def forbid(name, *arguments, **options):  # the tests may run as root, whom no permission stops
        if name == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return usual(name, *arguments, **options)

    monkeypatch.setattr(builtins, "open", forbid)
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be read: Permission denied"):
        load_checkpoint(path)
