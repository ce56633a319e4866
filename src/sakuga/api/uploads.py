"""Pictures that users upload, made safe before anything else of the farm touches them.

Size, pixels and format are checked from the file's header, decoding happens in a process of its own (`media.decoder`)
with limits on memory, processor time and wall-clock time, and only its PNG goes on: upright, without metadata, without
whatever else the file was at the same time.

Run its tests: pytest tests/unit/test_uploads.py
"""

import functools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sakuga.errors import BusyError, ImageError
from sakuga.media.decoder import MEMORY_IS_LIMITED, Answer, Task
from sakuga.media.files import atomic_file, output_error
from sakuga.settings import child_environment

logger = logging.getLogger(__name__)

DECODER = (sys.executable, "-m", "sakuga.media.decoder")
MAX_AT_ONCE = 2
"""Decoders; each may take all of `memory_bytes`."""
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""Of our environment, in the decoder's: what Python needs to start, and no credentials."""
ADVICE = "save it anew as a plain JPEG or PNG"
_slots = threading.BoundedSemaphore(MAX_AT_ONCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """What a picture, and its decoder, may be and take."""

    max_bytes: int = 25_000_000
    max_pixels: int = 25_000_000
    """Width x height; a render needs a tenth of it."""
    memory_bytes: int = 2**30
    """Of the decoder's address space; 25 MP of WebP with transparency and a colour profile take 0.9 GB."""
    cpu_s: int = 10
    wall_s: float = 20.0


def safe_image(
    path: Path,
    *,
    out: Path,
    limits: UploadLimits = UploadLimits(),  # frozen
    label: str = "the picture",
    tell: Callable[[str], None] | None = None,
) -> Path:
    """Decodes `path` in a process of its own and gives `out`, an upright RGB PNG without metadata.

    `label` names the picture in sentences; `tell` is given one for whatever of the file has no effect. Raises
    ImageError; BusyError when the decoders are taken for longer than one picture may need; OutputError.
    """
    num_bytes = path.stat().st_size
    if num_bytes > limits.max_bytes:
        raise ImageError(f"{label} has {num_bytes:,} bytes; at most {limits.max_bytes:,} are taken, make it smaller")
    if not MEMORY_IS_LIMITED:
        _say_once(f"{sys.platform} does not limit the memory of a process; pictures are limited by their pixels only")
    if not _slots.acquire(timeout=limits.wall_s):
        raise BusyError("other pictures are being decoded; try again in some seconds")
    try:
        with atomic_file(out) as target:
            answer = _decoded(path, target, limits, label)
            if answer.errno is not None:
                raise output_error(out, OSError(answer.errno, os.strerror(answer.errno)))
            if answer.is_memory:
                raise ImageError(f"{label} needs more than {limits.memory_bytes >> 20} MiB to decode; make it smaller")
            if answer.error is not None:
                raise ImageError(answer.error)
    finally:
        _slots.release()
    for note in answer.notes:
        logger.info("%s: %s", label, note)
        if tell is not None:
            tell(note)
    return out


def _decoded(source: Path, target: Path, limits: UploadLimits, label: str) -> Answer:
    task = Task(
        source=str(source), target=str(target), label=label,
        max_pixels=limits.max_pixels, memory_bytes=limits.memory_bytes, cpu_s=limits.cpu_s,
    )  # fmt: skip
    try:
        done = subprocess.run(
            [*DECODER, json.dumps(asdict(task))],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limits.wall_s,
        )
    except subprocess.TimeoutExpired:
        raise _too_much(label) from None
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):  # its own limit, or the system is out of memory
        raise _too_much(label)
    if done.returncode != 0:
        logger.warning("the decoder of %s ended with %d", label, done.returncode)
        raise ImageError(f"{label} made its decoder fail, so it is damaged or not what it seems; {ADVICE}")
    return Answer(**json.loads(done.stdout))


def _too_much(label: str) -> ImageError:
    return ImageError(f"{label} takes too long or too much memory to decode; {ADVICE}, or make it smaller")


def _environment() -> dict[str, str]:
    """Where this process finds its modules, and one thread for numpy: each takes address space."""
    ours = child_environment({"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"})
    return {name: ours[name] for name in ("PYTHONPATH", "OPENBLAS_NUM_THREADS", *KEPT_VARIABLES) if name in ours}


@functools.cache
def _say_once(text: str) -> None:
    logger.warning("%s", text)
