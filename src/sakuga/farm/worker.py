"""The actor of a bulk run: renders one row at a time and answers with columns, never with errors.

A row that raises would fail the whole Ray Data job, so every error becomes a column. A row that kills its process
gives no answer; Ray starts a new actor and hands it the row again. A mark on disk counts how often, so that a row that
always kills (out of memory, a crashing kernel) ends as failed and not as an endless loop.

Does not import Ray: tests call the class as it is. What renders is a `Renderer`, found by its import path.

Shape of a batch: one row, every column an array of length 1.     Run: pytest tests/unit/test_worker.py
"""

import dataclasses
import importlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from sakuga import settings
from sakuga.errors import DiskFullError, SakugaError, WorkerDiedError, shown
from sakuga.farm.progress import PROGRESS_NAME, ProgressEvent, append_event
from sakuga.farm.results import RECEIPT_SUFFIX, VIDEO_SUFFIX, RowResult
from sakuga.media.files import output_error
from sakuga.recipe import RecipeRequest

log = logging.getLogger(__name__)

ATTEMPTS_FOLDER = ".attempts"
ENGINE_RENDERER = "sakuga.farm.rendering:EngineRenderer"
MAX_ATTEMPTS = 2  # a killed worker costs its row one retry
MIN_FREE_BYTES = 16 * 2**20  # a 5 s 720p video with its pictures takes about 6 MB: stop before the render, not after

OnStep = Callable[[str, int, int, float | None], None]
"""Called with stage ("encode", "denoise", "decode"), steps done, number of steps, seconds of the last step."""


class Renderer(Protocol):
    """What a worker holds. Made by `factory(RenderPlan)`; loads its model at the first `render`, not before."""

    def key(self, request: RecipeRequest) -> str:
        """The render key. Raises SakugaError for a request that gives no recipe."""
        ...

    def render(self, request: RecipeRequest, name: str, on_step: OnStep) -> Mapping[str, object]:
        """Render into the plan's folder under `name`, the receipt last; gives the receipt ("key", "seconds")."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """`sakuga.engine.plan.ExecutionPlan` for one rank, in plain values."""

    memory: str = "resident"
    compile: bool = False
    hot_loras: bool = False
    allow_unverified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderPlan:
    """What all workers of a run share."""

    out: str
    base_dir: str
    """Where relative paths of the manifest begin."""
    weights: str | None = None
    """Folder or s3:// prefix; None takes the embedded weights."""
    device: str = "cpu"
    engine: EngineOptions = field(default_factory=EngineOptions)
    num_threads: int | None = None
    """PyTorch threads of one worker; None: a `RenderWorker` takes its share of the cores, others PyTorch's choice."""
    num_workers: int = 1
    """Workers that share the cores."""
    renderer: str = ENGINE_RENDERER
    """"module:name" of the renderer's factory."""

    def make_renderer(self) -> Renderer:
        module, _, name = self.renderer.partition(":")
        return getattr(importlib.import_module(module), name)(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTask:
    """One row to render, on its way to a worker."""

    row: str
    line: int
    name: str
    key: str
    request: RecipeRequest

    def columns(self) -> dict[str, object]:
        return {
            "row": self.row,
            "line": self.line,
            "name": self.name,
            "key": self.key,
            "request": self.request.model_dump_json(exclude_none=True),
        }


class RenderWorker:
    """A batch in, its outcome out; see the module's docstring."""

    def __init__(self, plan: RenderPlan) -> None:
        self._out = Path(plan.out)
        self._renderer = dataclasses.replace(plan, num_threads=threads_of(plan)).make_renderer()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        row, name, key = (str(batch[column][0]) for column in ("row", "name", "key"))
        request = RecipeRequest.model_validate_json(str(batch["request"][0]))
        attempts, seconds, code, message = 0, {}, "", ""
        try:
            attempts = count_attempt(self._out, name)
            receipt = self._render(row, name, request)
            seconds = receipt["seconds"]
        except Exception as error:  # the row fails, the job goes on
            code, message = error_columns(error)
            log.warning("row failed row=%s code=%s", row, code, exc_info=not isinstance(error, SakugaError))
        ended = "failed" if code else "done"
        error = {"code": code, "message": message} if code else None
        self._tell(ProgressEvent(t=time.time(), row=row, name=name, stage=ended, error=error))
        forget_attempts(self._out, name)
        outcome = {
            **{column: batch[column][0] for column in ("row", "line", "name")},
            **{"key": key, "status": ended, "attempts": attempts, "seconds": json.dumps(seconds)},
            **{"error_code": code, "error_message": message},
        }
        return {column: np.array([value]) for column, value in outcome.items()}

    def _render(self, row: str, name: str, request: RecipeRequest) -> Mapping[str, object]:
        free_bytes = shutil.disk_usage(self._out).free
        if free_bytes < MIN_FREE_BYTES:
            raise DiskFullError(
                f"only {free_bytes // 2**20} MB left in {shown(self._out)}; free some, then run the same command again"
            )

        def on_step(stage: str, step: int, num_steps: int, step_s: float | None) -> None:
            self._tell(
                ProgressEvent(
                    t=time.time(), row=row, name=name, stage=stage, step=step, num_steps=num_steps, step_s=step_s
                )
            )

        return self._renderer.render(request, name, on_step)

    def _tell(self, event: ProgressEvent) -> None:
        """Progress is for the eyes: a disk that cannot take the line must not cost the video."""
        try:
            append_event(self._out / PROGRESS_NAME, event)
        except OSError as error:
            log.warning("progress of row=%s stage=%s not written: %s", event.row, event.stage, error)


def threads_of(plan: RenderPlan) -> int:
    """Threads of one worker: those asked for, or an equal share of the cores.

    Never left to PyTorch: Ray sets OMP_NUM_THREADS=1 in an actor with one logical CPU, and the other cores stay idle.
    """
    return plan.num_threads or max(1, settings.usable_cores() // plan.num_workers)


def result_of(columns: Mapping[str, object]) -> RowResult:
    """The outcome columns of one row as a value."""
    name, status, code = (str(columns[column]) for column in ("name", "status", "error_code"))
    done = status == "done"
    return RowResult(
        row=str(columns["row"]),
        line=int(str(columns["line"])),
        name=name,
        status=status,
        key=str(columns["key"]),
        video=f"{name}{VIDEO_SUFFIX}" if done else None,
        receipt=f"{name}{RECEIPT_SUFFIX}" if done else None,
        seconds=json.loads(str(columns["seconds"])),
        attempts=int(str(columns["attempts"])),
        error={"code": code, "message": str(columns["error_message"])} if code else None,
    )


def error_columns(error: Exception) -> tuple[str, str]:
    """(code, message) of any exception; one that is not ours is a bug or the machine's."""
    if isinstance(error, SakugaError):
        return error.code, error.message
    return "E_INTERNAL", f"{type(error).__name__}: {error}; the worker's log has the traceback"


def count_attempt(out: Path, name: str) -> int:
    """Mark that a process begins to render `name`; gives the number of this attempt, from 1.

    Raises:
        WorkerDiedError: `MAX_ATTEMPTS` processes began before and none came back.
    """
    folder = out / ATTEMPTS_FOLDER
    try:
        folder.mkdir(exist_ok=True)
        with (folder / name).open("ab") as mark:
            mark.write(b".")
            mark.flush()
            attempt = os.fstat(mark.fileno()).st_size
    except OSError as error:
        raise output_error(folder, error) from error
    if attempt > MAX_ATTEMPTS:
        raise WorkerDiedError(
            f"the worker died {MAX_ATTEMPTS} times while it rendered this row, most often for want of memory; "
            "try a smaller size or fewer frames"
        )
    return attempt


def forget_attempts(out: Path, name: str) -> None:
    """The row came back with an answer: its mark goes."""
    (out / ATTEMPTS_FOLDER / name).unlink(missing_ok=True)
