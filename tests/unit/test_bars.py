"""Bars of a bulk run: lines without a terminal, bars with one, and no markup from file names or errors."""

import io

import pytest
from rich.console import Console

from sakuga.cli.bars import bulk_bars, clock
from sakuga.farm.progress import ProgressEvent, append_event


def events(num_rows=2):
    rows = [f"row-{i}" for i in range(num_rows)]
    for row in rows:
        yield ProgressEvent(t=0.0, row=row, name=row, stage="queued")
    for step in range(3):
        yield ProgressEvent(
            t=10.0 + step, row=rows[0], name=rows[0], stage="denoise", step=step, num_steps=4, step_s=1.0
        )
    yield ProgressEvent(t=15.5, row=rows[0], name=rows[0], stage="done")
    error = {"code": "E_IMAGE", "message": "[red]x.png[/red] is\nempty"}
    yield ProgressEvent(t=16.0, row=rows[1], name=rows[1], stage="failed", error=error)


def draw(tmp_path, *, terminal: bool, num_rows=2) -> str:
    append_event(tmp_path / "progress.jsonl", ProgressEvent(t=0.0, row="old", name="old-run", stage="done"))
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=110, color_system=None, legacy_windows=False)
    with bulk_bars(tmp_path, console=console):
        for event in events(num_rows):
            append_event(tmp_path / "new", event)
        (tmp_path / "new").replace(tmp_path / "progress.jsonl")
    return text.getvalue()


def test_without_a_terminal_one_line_a_video(tmp_path):
    assert draw(tmp_path, terminal=False).splitlines() == [
        "[1/2] row-0 done in 5.5 s, 1.00 s/step",
        "[2/2] row-1 failed E_IMAGE: [red]x.png[/red] is empty",
    ]


def test_with_a_terminal_a_bar_a_video_and_one_for_all(tmp_path):
    text = draw(tmp_path, terminal=True)
    for words in ("row-0", "step 2/4", "1.00 s/step", "all videos", "2/2, 1 failed", "[red]x.png[/red] is empty"):
        assert words in text
    assert "old-run" not in text


def test_of_many_videos_only_those_in_work_have_bars(tmp_path):
    text = draw(tmp_path, terminal=True, num_rows=40)
    assert "row-39" not in text
    assert "2/40, 1 failed" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--"), (0, "0:00"), (59.6, "1:00"), (3661, "1:01:01"), (90000, "25:00:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
