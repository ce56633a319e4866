"""Progress events: many writers, a reader that never sees half a line, and figures that people can trust."""

import os
import subprocess
import sys

import pytest

from sakuga.farm.progress import Board, ProgressEvent, ProgressTail, append_event, parse_event


def event(stage, t=0.0, *, row="a", step=0, step_s=None, error=None):
    return ProgressEvent(t=t, row=row, name=row, stage=stage, step=step, num_steps=4, step_s=step_s, error=error)


def test_event_survives_the_file_and_later_versions():
    written = event("failed", 3.5, error={"code": "E_IMAGE", "message": "‘é’ is no picture\nat all"})
    assert "\n" not in written.to_json()
    assert parse_event(written.to_json()) == written
    assert parse_event(written.to_json()[:-1] + ', "gpu": 3}') == written
    with pytest.raises((ValueError, TypeError)):
        parse_event('{"t": 1}')


def test_tail_waits_for_the_end_of_a_line(tmp_path):
    path = tmp_path / "progress.jsonl"
    tail = ProgressTail(path)
    assert tail.read_new() == []
    append_event(path, event("queued"))
    whole = event("encode", 1.0).to_json() + "\n"
    with path.open("a") as file:
        file.write(whole[:20])
    assert [e.stage for e in tail.read_new()] == ["queued"]
    with path.open("a") as file:
        file.write(whole[20:])
    assert [e.stage for e in tail.read_new()] == ["encode"]
    assert tail.read_new() == []


@pytest.mark.parametrize("broken", [b'{"t": 1.0, "ro{"t": 2.0}', b'{"t": 1}', b"[1]", b"3", b"", b"\xff\xfe"])
def test_a_broken_line_is_logged_and_costs_no_other(tmp_path, caplog, broken):
    path = tmp_path / "progress.jsonl"
    append_event(path, event("encode"))
    with path.open("ab") as file:
        file.write(broken + b"\n")
    append_event(path, event("failed", error={"code": "E_IMAGE", "message": "one\u2028line"}))
    assert [e.stage for e in ProgressTail(path).read_new()] == ["encode", "failed"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_file_that_cannot_be_read_has_nothing_new(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "progress.jsonl", tmp_path / "folder"):
        assert ProgressTail(path, only_new_file=True).read_new() == []


def test_tail_follows_a_new_run_and_can_leave_the_old_one_out(tmp_path):
    path = tmp_path / "progress.jsonl"
    append_event(path, event("done"))
    everything, only_new = ProgressTail(path), ProgressTail(path, only_new_file=True)
    assert len(everything.read_new()) == 1
    assert only_new.read_new() == []
    fresh = tmp_path / "fresh"
    append_event(fresh, event("queued"))
    os.replace(fresh, path)
    assert [e.stage for e in everything.read_new()] == ["queued"]
    assert [e.stage for e in only_new.read_new()] == ["queued"]


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "progress.jsonl"
    code = (
        "import sys; from pathlib import Path; from sakuga.farm.progress import ProgressEvent, append_event\n"
        "for step in range(300):\n"
        "    append_event(Path(sys.argv[1]), ProgressEvent(t=1.0, row=sys.argv[2] * 200, name='n', stage='denoise', "
        "step=step))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    events = ProgressTail(path).read_new()
    for letter in "ab":
        assert [e.step for e in events if e.row == letter * 200] == list(range(300))


def test_pace_and_time_left_of_a_row():
    board = Board()
    board.apply(event("queued", 10.0))
    board.apply(event("encode", 20.0))
    row = board.apply(event("denoise", 22.0))
    assert (row.step_s, row.eta_s, row.fraction) == (None, None, 0.0)
    board.apply(event("denoise", 24.0, step=1, step_s=2.0))
    row = board.apply(event("denoise", 25.0, step=2, step_s=1.0))
    assert row.step_s == 1.5  # the mean, not the last
    assert row.eta_s == 3.0
    assert row.fraction == 0.5
    row = board.apply(event("done", 30.0))
    assert (row.fraction, row.eta_s, row.seconds) == (1.0, 0.0, 10.0)  # the wait in the queue is not render time


def test_a_retry_starts_its_row_anew():
    board = Board()
    for one in (event("encode", 1.0), event("denoise", 2.0), event("denoise", 3.0, step=1, step_s=1.0)):
        board.apply(one)
    row = board.apply(event("encode", 9.0))
    assert (row.stage, row.step, row.step_s, row.fraction) == ("encode", 0, None, 0.0)
    board.apply(event("denoise", 10.0))
    assert board.apply(event("denoise", 10.5, step=1, step_s=0.5)).step_s == 0.5


def test_time_left_of_the_whole_counts_no_skipped_rows():
    board = Board()
    assert board.eta_s(0.0) is None
    for row in "abc":
        board.apply(event("queued", 0.0, row=row))
    board.apply(event("skipped", 0.0, row="s"))
    assert board.eta_s(5.0) is None
    board.apply(event("encode", 10.0, row="a"))
    board.apply(event("done", 20.0, row="a"))
    board.apply(event("denoise", 20.0, row="b", step=2, step_s=1.0))
    # In 15 s one and a half of three videos are done: as long again for the rest.
    assert board.eta_s(25.0) == pytest.approx(15.0)
    assert board.num_ended == 2
    board.apply(event("failed", 26.0, row="b", error={"code": "E", "message": "m"}))
    assert board.num_failed == 1
    assert board.fraction == pytest.approx(0.75)
