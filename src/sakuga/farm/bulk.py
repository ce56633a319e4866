"""Bulk rendering: a manifest in, a folder of videos out, on Ray Data.

`run_bulk` takes the folder's lock, lets `planning` decide what is left to do, and hands that to a pool of actors of
fixed size: one row a block, one video a row. Knows no terminal: progress goes to `OUT/progress.jsonl`.

Run: pytest tests/ray/test_bulk.py
"""

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from ray.exceptions import RayTaskError

from sakuga import settings
from sakuga.errors import ClusterError, ManifestError, OutputError, shown
from sakuga.farm.interrupt import signals_interrupt
from sakuga.farm.lock import folder_lock
from sakuga.farm.planning import RunPlan, begin_progress, finished_row, plan_rows
from sakuga.farm.results import (
    SUMMARY_NAME,
    BulkSummary,
    RowResult,
    append_result,
    finished_receipt,
    summarise,
    write_results,
)
from sakuga.farm.rows import LOCAL, RAY_FAILURES, check_gpus, check_worker_device, cluster, outcomes
from sakuga.farm.worker import ATTEMPTS_FOLDER, ENGINE_RENDERER, EngineOptions, RenderPlan, RenderWorker, result_of
from sakuga.media import check_output_dir, write_json_atomic
from sakuga.recipe.manifest import read_manifest

log = logging.getLogger(__name__)


def run_bulk(
    manifest: Path,
    out: Path,
    *,
    defaults: Mapping[str, object] | None = None,
    num_workers: int = 1,
    num_threads: int | None = None,
    weights: str | None = None,
    device: str = "cpu",
    engine: EngineOptions | None = None,
    resume: bool = True,
    address: str | None = LOCAL,
    renderer: str = ENGINE_RENDERER,
) -> BulkSummary:
    """Render every row of `manifest` into `out`; rows that an earlier run finished are skipped.

    `address` is the Ray cluster: "local" starts one in this process, None or "auto" takes the one that this process
    was submitted to. Without `num_threads` (or SAKUGA_NUM_THREADS) the workers share the cores. `renderer` is the
    import path of another renderer. A row that fails costs no other row.

    Raises:
        DeviceError, ManifestError, OutputError, DiskFullError, BusyError, SettingsError: before anything is rendered.
        ClusterError: there is no such cluster, it lacks GPUs, or Ray failed in the middle.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM.
        After the last two what is done is in `results.jsonl`, and the message says how to go on.
    """
    began = time.monotonic()
    check_worker_device(device)
    if settings.in_submitted_job():
        check_job_paths(manifest, out)
    if weights is not None and "://" not in weights:
        weights = str(Path(weights).resolve())  # a worker's current folder is another one
    out = check_output_dir(out).resolve()
    with folder_lock(out):
        rows = read_manifest(manifest, defaults)
        plan = RenderPlan(
            out=str(out),
            base_dir=str(rows.base_dir.resolve()),
            weights=weights,
            device=device,
            engine=engine or EngineOptions(),
            num_threads=num_threads or settings.from_environment().num_threads,
            renderer=renderer,
        )
        todo = plan_rows(rows, plan, resume=resume)
        results = {result.row: result for result in todo.settled}
        stopped: BaseException | None = None
        shutil.rmtree(out / ATTEMPTS_FOLDER, ignore_errors=True)
        begin_progress(out, todo)
        write_results(out, results.values())
        num_workers = min(num_workers, len(todo.tasks))
        plan = dataclasses.replace(plan, num_workers=max(1, num_workers))
        try:
            if todo.tasks:
                _render_all(todo, plan, num_workers, address, results)
        except (KeyboardInterrupt, *RAY_FAILURES) as error:
            stopped = error
            for task in todo.tasks:  # a video may be finished whose result was still on its way
                if resume and task.row not in results and (receipt := finished_receipt(out, task.name, task.key)):
                    results[task.row] = finished_row(task, "done", receipt)
        summary = summarise(
            list(results.values()),
            num_rows=todo.num_rows,
            wall_s=time.monotonic() - began,
            num_workers=num_workers,
            out=out,
        )
        write_results(out, results.values())
        write_json_atomic(out / SUMMARY_NAME, summary.as_dict())
        shutil.rmtree(out / ATTEMPTS_FOLDER, ignore_errors=True)
    if stopped is not None:
        raise told(stopped, summary) from (None if isinstance(stopped, KeyboardInterrupt) else stopped)
    return summary


def check_job_paths(manifest: Path, out: Path) -> None:
    """Refuse paths that a submitted job would take for its own folder: Ray's copy of the one it was submitted from.

    A relative manifest may be there, having been uploaded; what is written there is lost when the job ends.

    Raises:
        OutputError, ManifestError: with what to write instead.
    """
    if not out.is_absolute():
        raise OutputError(
            f"--out is {shown(out)}, which a job would write into Ray's copy of the folder and lose; give an absolute "
            "path on storage that all nodes share"
        )
    if not manifest.is_absolute() and not manifest.exists():
        raise ManifestError(
            f"{shown(manifest)} is not in the folder that came with the job; give an absolute path on storage that "
            "all nodes share"
        )


def told(stopped: BaseException, summary: BulkSummary) -> KeyboardInterrupt | ClusterError:
    """The error to raise for what stopped a run: how far it came, and how to go on."""
    settled = f"{summary.videos - summary.not_run} of {summary.videos} videos are settled in {summary.out}"
    if isinstance(stopped, KeyboardInterrupt):
        return KeyboardInterrupt(f"stopped; {settled}; run the same command again to go on with the rest")
    # A task's error carries a remote traceback as its text; what it was raised for says more in one line.
    cause = stopped.cause if isinstance(stopped, RayTaskError) else stopped
    words = str(cause).strip().partition("\n")[0]
    return ClusterError(f"Ray failed ({type(cause).__name__}: {words}); {settled}; run the same command again")


def _render_all(
    todo: RunPlan, plan: RenderPlan, num_workers: int, address: str | None, results: dict[str, RowResult]
) -> None:
    """Run the tasks on Ray and put each result into `results` as it comes."""
    on_gpu = plan.device.startswith("cuda")
    rows = [task.columns() for task in todo.tasks]
    with (
        cluster(address, num_workers),
        signals_interrupt(),
        contextlib.closing(
            outcomes(rows, RenderWorker, plan, num_workers=num_workers, num_gpus=int(on_gpu))
        ) as answers,
    ):
        if on_gpu:
            check_gpus(num_workers, may_grow=address != LOCAL)
        for result in map(result_of, answers):
            results[result.row] = result
            try:
                append_result(Path(plan.out), result)
            except OSError as error:  # the whole file is written at the end, which raises if it still cannot be
                log.warning("result of row=%s not written yet: %s", result.row, error)
