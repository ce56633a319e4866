"""What a bulk run has to do: which rows need a render, which are finished, which give no recipe.  Knows no Ray.

Run: pytest tests/unit/test_worker.py
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sakuga.errors import SakugaError
from sakuga.farm.progress import PROGRESS_NAME, ProgressEvent
from sakuga.farm.results import RECEIPT_SUFFIX, VIDEO_SUFFIX, RowResult, finished_receipt
from sakuga.farm.worker import RenderPlan, RowTask
from sakuga.media import write_bytes_atomic
from sakuga.recipe.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The rows of a manifest, sorted."""

    tasks: tuple[RowTask, ...]
    """Left to render, in manifest order."""
    settled: tuple[RowResult, ...]
    """Finished by an earlier run, or without a recipe."""

    @property
    def num_rows(self) -> int:
        return len(self.tasks) + len(self.settled)


def plan_rows(manifest: Manifest, plan: RenderPlan, *, resume: bool = True) -> RunPlan:
    """Sort the rows. Opens the pictures and videos that they name, but loads no model; with `resume` False nothing
    counts as finished."""
    renderer = plan.make_renderer()
    out = Path(plan.out)
    tasks: list[RowTask] = []
    settled = [failed_row(row=bad.id, line=bad.number, code=bad.code, message=bad.message) for bad in manifest.errors]
    for row in manifest.rows:
        try:
            key = renderer.key(row.request)
        except SakugaError as error:
            settled.append(failed_row(row=row.id, line=row.number, code=error.code, message=error.message))
            continue
        task = RowTask(row=row.id, line=row.number, name=row.id, key=key, request=row.request)
        receipt = finished_receipt(out, task.name, key) if resume else None
        if receipt is None:
            tasks.append(task)
        else:
            settled.append(finished_row(task, "skipped", receipt))
    return RunPlan(tasks=tuple(tasks), settled=tuple(settled))


def finished_row(task: RowTask, status: str, receipt: Mapping[str, dict[str, float]]) -> RowResult:
    """The result of a task whose files and receipt are there."""
    return RowResult(
        row=task.row,
        line=task.line,
        name=task.name,
        status=status,
        key=task.key,
        video=f"{task.name}{VIDEO_SUFFIX}",
        receipt=f"{task.name}{RECEIPT_SUFFIX}",
        seconds=receipt["seconds"],
    )


def failed_row(*, row: str, line: int, code: str, message: str) -> RowResult:
    """A row that never got to a worker."""
    return RowResult(row=row, line=line, name=row, status="failed", error={"code": code, "message": message})


def begin_progress(out: Path, todo: RunPlan) -> None:
    """Start `progress.jsonl` anew, as another file, so that whoever follows the old one sees that a run began."""
    now = time.time()
    events = [
        (result.line, ProgressEvent(t=now, row=result.row, name=result.name, stage=result.status, error=result.error))
        for result in todo.settled
    ]
    events += [(task.line, ProgressEvent(t=now, row=task.row, name=task.name, stage="queued")) for task in todo.tasks]
    lines = [f"{event.to_json()}\n" for _, event in sorted(events, key=lambda pair: pair[0])]
    write_bytes_atomic(out / PROGRESS_NAME, "".join(lines).encode())
