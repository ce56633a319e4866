"""The demo: a head on this machine, the demo manifest as a submitted job, and what it shows at the end.

Run: pytest tests/ray/test_submit.py
"""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from sakuga.farm.cluster import local_head, wait_until_ready
from sakuga.farm.demo.inputs import write_demo
from sakuga.farm.demo.show import show
from sakuga.farm.interrupt import signals_interrupt
from sakuga.farm.results import BulkSummary
from sakuga.farm.submit import run_submitted
from sakuga.media import check_output_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the demo left behind."""

    summary: BulkSummary
    out: Path
    contact_sheet: Path | None
    page: Path
    seconds: dict[str, float]
    """start: until the head takes jobs, with the drawing of the inputs; job; show: sheet and page; stop; total."""


def run_demo(
    out: Path,
    *,
    num_workers: int,
    num_threads: int | None = None,
    weights: str | None = None,
    options: tuple[str, ...] = (),
) -> Demo:
    """Render the demo manifest into `out`. Raises what `run_bulk` raises, and ClusterError when Ray does not start."""
    marks = [time.monotonic()]
    out = check_output_dir(out).resolve()
    with signals_interrupt(), local_head() as head:
        manifest = write_demo(out)  # while the head starts
        wait_until_ready(head)
        marks.append(time.monotonic())
        job_options = ["--num-workers", str(num_workers), *options]
        if num_threads is not None:
            job_options += ["--num-threads", str(num_threads)]
        if weights is not None:
            job_options += ["--weights", weights if "://" in weights else str(Path(weights).resolve())]
        summary = run_submitted(head.dashboard_url, manifest, out, job_options)
        head.terminate()  # it ends while the page is made
        marks.append(time.monotonic())
        sheet, page = show(out, manifest, summary)
        marks.append(time.monotonic())
    marks.append(time.monotonic())
    stages = dict(zip(("start", "job", "show", "stop"), (b - a for a, b in itertools.pairwise(marks)), strict=True))
    seconds = {name: round(s, 2) for name, s in (stages | {"total": marks[-1] - marks[0]}).items()}
    return Demo(summary=summary, out=out, contact_sheet=sheet, page=page, seconds=seconds)
