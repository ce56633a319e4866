"""The lock of an output folder: one holder, in this process or another, and none after its death."""

import json
import os
import signal
import subprocess
import sys

import pytest

from sakuga.errors import BusyError
from sakuga.farm.lock import LOCK_NAME, folder_lock

HOLD = (
    "import sys; from pathlib import Path; from sakuga.farm.lock import folder_lock\n"
    "with folder_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_second_holder_is_refused_with_the_first_ones_pid(tmp_path):
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
        with (
            pytest.raises(BusyError, match=rf"pid {os.getpid()} on .*; wait for") as busy,
            folder_lock(tmp_path),
        ):
            pass
    assert (busy.value.code, busy.value.exit_code) == ("E_BUSY", 4)
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_lock_dies_with_its_holder(tmp_path, number):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"pid {holder.pid}"), folder_lock(tmp_path):
            pass
        holder.send_signal(number)
        holder.wait()
        with folder_lock(tmp_path):
            pass


def test_a_child_of_the_holder_does_not_keep_the_lock(tmp_path):
    with folder_lock(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        with folder_lock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()


def test_unreadable_holder_is_still_a_holder(tmp_path):
    with folder_lock(tmp_path):
        (tmp_path / LOCK_NAME).write_text("{half")
        with pytest.raises(BusyError, match="another run works in"), folder_lock(tmp_path):
            pass
