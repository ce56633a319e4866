"""Results appear whole or not at all, and a folder that cannot take them is refused before the work."""

import contextlib
import errno
import json
import os
import pickle
import resource
from pathlib import Path

import pytest

from sakuga.errors import DiskFullError, OutputError, did_you_mean, shown
from sakuga.media import atomic_file, check_output_dir, files, write_bytes_atomic, write_json_atomic


@contextlib.contextmanager
def limited_file_size(size_bytes: int):
    """Bounds every file that this process writes. For as short as possible: pytest's own report may go to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "a.bin"
    write_bytes_atomic(target, b"old")
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
        assert temporary.parent == target.parent
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.bin"
    write_bytes_atomic(target, b"old")

    def interrupted_write():
        with atomic_file(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, DiskFullError),
        (errno.EDQUOT, DiskFullError),
        (errno.EIO, OutputError),
        (errno.EROFS, OutputError),
    ],
)
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_errors_of_the_system_are_told_apart(tmp_path, monkeypatch, number, error, call):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OutputError) as caught:
        write_bytes_atomic(tmp_path / "a.bin", b"data")
    assert type(caught.value) is error
    assert "a.bin" in caught.value.message
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_part_behind(tmp_path):
    with pytest.raises(DiskFullError, match="no space is left"), limited_file_size(1000):
        write_bytes_atomic(tmp_path / "a.bin", bytes(5000))
    assert os.listdir(tmp_path) == []


def test_json_is_readable_and_never_holds_nan(tmp_path):
    target = tmp_path / "a.json"
    write_json_atomic(target, {"prompt": "妖精", "n": 1})
    assert "妖精" in target.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(target, {"n": float("nan")})
    assert json.loads(target.read_text(encoding="utf-8"))["n"] == 1


def test_an_output_folder_is_made_and_left_clean(tmp_path):
    folder = tmp_path / "a" / "b"
    assert check_output_dir(folder) == folder
    assert check_output_dir(folder) == folder
    assert os.listdir(folder) == []


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_a_file_in_the_place_of_the_folder(tmp_path, below):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="a file; choose another folder"):
        check_output_dir(tmp_path / "out" / below)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_that_cannot_be_made():
    with pytest.raises(OutputError, match="choose a folder where you may write"):
        check_output_dir(Path("/proc/self/none/out"))  # not even root may make folders there
    with pytest.raises(OutputError):
        check_output_dir(Path("a\0b"))


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EACCES, OutputError), (errno.EROFS, OutputError), (errno.ENOSPC, DiskFullError)]
)
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, number, error):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OutputError) as caught:
        check_output_dir(tmp_path)
    assert type(caught.value) is error


def test_errors_keep_their_type_and_message_between_processes():
    error = pickle.loads(pickle.dumps(DiskFullError("no space")))
    assert type(error) is DiskFullError
    assert (error.message, str(error), error.code) == ("no space", "no space", "E_DISK_FULL")


def test_what_users_wrote_is_shown_harmless_and_short():
    assert shown("a\x1b[31mb\n") == r"'a\x1b[31mb\n'"
    long_path = "/folder" * 50 + "/picture.png"
    assert len(shown(long_path)) == 80
    assert shown(long_path).endswith("/picture.png'")
    assert did_you_mean("widht", ["height", "width"]) == "; did you mean 'width'?"
    assert did_you_mean("colour", ["height", "width"]) == ""
