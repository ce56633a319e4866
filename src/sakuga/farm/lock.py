"""One run at a time in an output folder: a lock that dies with its holder.

`flock` on `OUT/.lock` belongs to the open file of one process: the kernel drops it when that process ends, however it
ends, so there is no stale lock to clean up. It knows nothing of other machines: the folder has to lie on a file system
whose `flock` reaches every driver (local disks, NFSv4 and Lustre with `flock`; not NFSv3 with `nolock`).

Run: pytest tests/unit/test_lock.py
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from sakuga.errors import BusyError

LOCK_NAME = ".lock"


@contextlib.contextmanager
def folder_lock(out: Path) -> Iterator[None]:
    """Hold `out` for this process; `out` must exist.

    Raises:
        BusyError: another process holds it; the message names its pid and host.
    """
    # The file stays behind: whoever unlinked it could leave two processes with locks on two inodes of one name.
    descriptor = os.open(out / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another run{_holder(descriptor)} works in {out}; wait for its end, or work in another folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """' (pid 12 on host a)', or '' when the holder has not written its name yet."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f" (pid {holder['pid']} on {holder['host']})"
    except (ValueError, KeyError, TypeError):
        return ""
