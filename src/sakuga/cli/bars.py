"""Bars of a bulk run: one for each video and one for the whole; without a terminal, one line a video.

Follows `OUT/progress.jsonl` in a thread, so the run may be in this process, in a job or on another machine.

Run: pytest tests/unit/test_bars.py
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from sakuga.cli.output import stderr_console
from sakuga.farm.progress import FINAL_STAGES, PROGRESS_NAME, Board, ProgressTail, RowProgress

REFRESH_S = 0.2
MAX_BARS = 16
"""With more videos than this, only those in work have a bar."""
STYLES = {"done": "green", "skipped": "dim", "failed": "red", "queued": "dim"}


@contextlib.contextmanager
def bulk_bars(out: Path, console: Console = stderr_console) -> Iterator[None]:
    """Draw the progress of the run that begins in `out` within the block."""
    view = _Lines(console) if not console.is_terminal else _Bars(console)
    follower = _Follower(ProgressTail(out / PROGRESS_NAME, only_new_file=True), view)
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(REFRESH_S):
            follower.update()

    thread = threading.Thread(target=follow, name="bulk-bars", daemon=True)
    with view:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            follower.update()


def clock(seconds: float | None) -> str:
    """Seconds for people.

    >>> clock(75.2), clock(3661), clock(None)
    ('1:15', '1:01:01', '-:--')
    """
    if seconds is None:
        return "-:--"
    minutes, rest_s = divmod(int(seconds + 0.5), 60)
    hours = f"{minutes // 60}:{minutes % 60:02}" if minutes >= 60 else str(minutes)
    return f"{hours}:{rest_s:02}"


def sentence(row: RowProgress) -> str:
    """How a video ended: 'done in 6.8 s, 0.21 s/step', with the code and message of an error."""
    if row.error is not None:
        return f"failed {row.error['code']}: {' '.join(row.error['message'].split())}"
    if row.stage == "skipped":
        return "finished by an earlier run"
    pace = f", {row.step_s:.2f} s/step" if row.step_s is not None else ""
    return f"done in {row.seconds or 0:.1f} s{pace}"


class _Follower:
    """Takes events from the file to the board, and tells the view what changed."""

    def __init__(self, tail: ProgressTail, view: "_Bars | _Lines") -> None:
        self._tail = tail
        self._view = view
        self._board = Board()

    def update(self) -> None:
        events = self._tail.read_new()
        changed = {event.row: self._board.apply(event) for event in events}
        for row in changed.values():
            self._view.show(row, self._board)
        self._view.refresh(self._board)


class _Lines:
    """One line when a video ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._num_told = 0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, row: RowProgress, board: Board) -> None:
        if row.stage in FINAL_STAGES:
            self._num_told += 1
            line = f"[{self._num_told}/{len(board.rows)}] {row.name} {sentence(row)}"
            self._console.print(line, markup=False, soft_wrap=True)

    def refresh(self, board: Board) -> None: ...


class _Bars:
    """A bar for each video and one for all."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, complete_style="magenta", finished_style="green"),
            TextColumn("{task.fields[stage]}"),
            TextColumn("{task.fields[steps]}", justify="right"),
            TextColumn("{task.fields[pace]}", justify="right"),
            TextColumn("{task.fields[eta]}", justify="right"),
            console=console,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._all = self._progress.add_task("[bold]all videos", total=1.0, stage="start", steps="", pace="", eta="")

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, row: RowProgress, board: Board) -> None:
        visible = len(board.rows) <= MAX_BARS or row.stage in ("encode", "denoise", "decode")
        task = self._tasks.get(row.row)
        if task is None:
            task = self._tasks[row.row] = self._progress.add_task(
                escape(row.name), total=1.0, visible=visible, stage="", steps="", pace="", eta=""
            )
        if row.error is not None:
            self._progress.console.print(f"[red]{escape(row.name)} {escape(sentence(row))}[/red]")
        style = STYLES.get(row.stage, "cyan")
        ended = row.stage in FINAL_STAGES
        self._progress.update(
            task,
            completed=row.fraction,
            stage=f"[{style}]{row.stage}[/{style}]",
            steps=f"step {row.step}/{row.num_steps}" if row.num_steps else "",
            pace=f"{row.step_s:.2f} s/step" if row.step_s is not None else "",
            eta=f"{row.seconds:.1f} s" if ended and row.seconds else "" if ended else f"ETA {clock(row.eta_s)}",
            visible=visible,
        )

    def refresh(self, board: Board) -> None:
        if not board.rows:
            return
        eta_s = board.eta_s(time.time())
        all_ended = board.num_ended == len(board.rows)
        failed = f", [red]{board.num_failed} failed[/red]" if board.num_failed else ""
        self._progress.update(
            self._all,
            completed=board.fraction,
            stage=f"{board.num_ended}/{len(board.rows)}{failed}",
            eta="" if all_ended else f"ETA {clock(eta_s)}",
        )
