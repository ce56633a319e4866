"""Files that appear whole or not at all, and the check that a folder for results can be used.

Run its tests: pytest tests/unit/test_media_files.py
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Generator
from pathlib import Path

from sakuga.errors import DiskFullError, OutputError, SakugaError, shown

# EFBIG is what a limit on file sizes (ulimit -f) gives; for the user it is the same: the file does not fit.
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

HASHED_BYTES = 2**20
"""Read at a time."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """Gives a temporary path beside `path`; what was written there takes the name `path` when the block ends well.

    A crash at any moment leaves the old file or the new one. When the block raises, the temporary file is removed.
    Raises DiskFullError when no space is left, else OutputError, for any OSError of the block or of the rename.
    """
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_file(path.parent)
    except SakugaError:  # some of ours are OSErrors too, and say already what it was
        raise
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASHED_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Writes a small file whole or not at all. Raises DiskFullError or OutputError."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json_atomic(path: Path, value: object) -> None:
    """Writes JSON for people and programs (indented, UTF-8). NaN raises ValueError: no reader could parse it."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, f"{text}\n".encode())


def check_output_dir(path: Path) -> Path:
    """Makes the folder for results and tries a write in it. Raises OutputError (DiskFullError) with the next step."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OutputError(f"{shown(path)} is, or lies under, a file; choose another folder or move the file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise output_error(path, error) from error
    write_probe = path / f".{secrets.token_hex(6)}.tmp"
    try:
        write_probe.write_bytes(b"probe")
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the write already told what is wrong
            write_probe.unlink(missing_ok=True)
    return path


def sync_file(path: Path) -> None:
    """fsync of a file or of a folder (whose entry of a renamed file is lost without it at a power failure)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def output_error(path: Path, error: OSError | ValueError) -> OutputError:
    """The error to raise for a failed write at `path`."""
    number = error.errno if isinstance(error, OSError) else None
    if number in FULL_ERRNOS:
        return DiskFullError(f"no space is left to write {shown(path)}; free some, then run the same command again")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return OutputError(f"{shown(path)} cannot be written ({reason}); choose a folder where you may write")
