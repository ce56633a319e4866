"""What was rendered, by render key, so that sweep, gate and audit share it and nothing is rendered twice.

    KEY.mkv     the frames, lossless
    KEY.json    the receipt, seconds and peak bytes, and the machine that they were measured on; written last
    KEY.lock    held by the process that renders; the kernel drops it when that one ends

Run: pytest tests/unit/test_tuning_measure.py
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sakuga.engine.local import LocalEngine
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.state import RenderInputs
from sakuga.errors import VideoError
from sakuga.media import check_output_dir, read_video, write_json_atomic
from sakuga.media.lossless import write_lossless
from sakuga.recipe import RenderRecipe

log = logging.getLogger(__name__)

REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written there, it sets the peak of this process's resident memory back to what it has now (man 5 proc)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRender:
    """A render and what it took."""

    key: str
    frames_THWC: np.ndarray
    receipt: Mapping[str, object]
    seconds: float
    """Of the whole render: encode, denoise, decode."""
    denoise_s: float
    peak_bytes: int | None
    """The device's allocations, on a CPU the process's resident memory; None where the system does not tell."""


class RenderStore:
    """Renders of one machine and plan in a folder; those of another are made anew, as their seconds differ."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def render(
        self, recipe: RenderRecipe, inputs: RenderInputs, *, machine: str, engine: Callable[[], LocalEngine]
    ) -> StoredRender:
        """The render of a recipe, from the folder if it is there; only else the engine is asked for.

        Whoever asks for what another process is rendering waits for it. Raises what the engine raises, and OutputError.
        """
        known = self.find(recipe.render_key, machine)
        if known is not None:
            return known
        with self._claim(recipe.render_key):
            return self.find(recipe.render_key, machine) or self._made(recipe, inputs, machine, engine())

    def _made(self, recipe: RenderRecipe, inputs: RenderInputs, machine: str, chosen: LocalEngine) -> StoredRender:
        with peak_memory(chosen.device) as peak:
            video = chosen.render(recipe, inputs)
        facts = {
            "machine": machine,
            "seconds": video.seconds["total"],
            "denoise_s": video.seconds["denoise"],
            "peak_bytes": peak[0] if peak else None,
            "receipt": chosen.receipt(recipe, video),
        }
        write_lossless(self._folder / f"{recipe.render_key}.mkv", video.frames_THWC, video.fps)
        write_json_atomic(self._folder / f"{recipe.render_key}.json", facts)
        return _stored(recipe.render_key, video.frames_THWC, facts)

    @contextlib.contextmanager
    def _claim(self, key: str) -> Iterator[None]:
        check_output_dir(self._folder)
        with (self._folder / f"{key}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def find(self, key: str, machine: str | None = None) -> StoredRender | None:
        """What is stored under the key, of that machine if one is named; None when there is nothing whole."""
        try:
            facts = json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
            if machine is not None and facts["machine"] != machine:
                return None
            return _stored(key, read_video(self._folder / f"{key}.mkv"), facts)
        except FileNotFoundError:
            return None
        except (VideoError, ValueError, KeyError, TypeError) as error:
            log.warning("render %s is stored but damaged, and is made again: %s", key[:12], error)
            return None

    def video(self, key: str) -> Path:
        """Where the frames are, if they are."""
        return self._folder / f"{key}.mkv"


def machine_of(device: torch.device, execution: ExecutionPlan) -> str:
    """What decides how long a render takes beside its recipe.

    >>> # "x86_64, 2 threads, cfg 1 x ulysses 1 x ring 1, memory resident"
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {execution}"


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """The list has the peak of the block's memory after it; it stays empty where the system does not tell."""
    peak: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device))
        return
    can_tell = sys.platform == "linux" and _reset_peak()
    yield peak
    if can_tell:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak += [1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]


def _reset_peak() -> bool:
    try:
        REFS.write_text(RESET_PEAK)
    except OSError:  # read-only in some containers
        return False
    return True


def _stored(key: str, frames_THWC: np.ndarray, facts: Mapping) -> StoredRender:
    return StoredRender(
        key=key, frames_THWC=frames_THWC, receipt=facts["receipt"], seconds=facts["seconds"],
        denoise_s=facts["denoise_s"], peak_bytes=facts["peak_bytes"],
    )  # fmt: skip
