"""`sakuga watch` and `logs`: a job followed to its end, through broken connections and on any terminal."""

import doctest
import io
import json
import re
import signal
import threading
from collections.abc import Mapping

import pytest
from rich.cells import cell_len
from rich.console import Console

from farm_front import Front
from sakuga.cli import client, job_view, output
from sakuga.cli.client import Told
from sakuga.cli.job_view import progress

SMALL = ("--size", "32x32", "--set", "num_frames=5", "--set", "num_inference_steps=3")
BREAKS = "A render that breaks."


@pytest.fixture
def job(sakuga) -> str:
    return sakuga("submit", "A fairy dances.", *SMALL)[1].strip()


def kinds(err: str) -> list[str]:
    """What the lines say, without their times."""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line).split(",")[0] for line in err.splitlines()]


def test_without_a_terminal_a_line_for_each_turn(api, sakuga, job):
    with api.lane():
        code, out, err = sakuga("watch", job)
    assert (code, out) == (0, f"{job} completed\n")
    assert kinds(err) == ["queued", "encode 0/3", "completed"]
    assert re.fullmatch(r"\d\d:\d\d:\d\d completed", err.splitlines()[-1])


def test_from_the_prompt_to_the_file(api, sakuga, tmp_path):
    with api.lane():
        code, out, err = sakuga("submit", "A fairy dances.", *SMALL, "--watch", "--out", "a [b].mp4")
        assert (code, out) == (0, "a [b].mp4\n")
        assert (tmp_path / out.strip()).read_bytes()[4:8] == b"ftyp"
        assert kinds(err)[-1] == "completed"
        code, out, err = sakuga("submit", "A fairy sleeps.", *SMALL, "--watch", "--json")
    told = json.loads(out)
    assert (code, told["status"], told["path"]) == (0, "completed", f"{told['id']}.mp4")
    assert (tmp_path / told["path"]).is_file()


def test_a_job_that_failed(api, sakuga):
    with api.lane(fails=BREAKS):
        code, out, err = sakuga("submit", BREAKS, *SMALL, "--watch")
    assert (code, out.split(" ", 1)[1]) == (1, "failed: E_NAN the render has NaN\n")
    assert kinds(err)[1:] == [
        "queued", "encode 0/3", "queued again: failed E_NAN", "encode 0/3", "failed: E_NAN the render has NaN",
    ]  # fmt: skip
    code, out, _ = sakuga("watch", out.split()[0], "--json")
    assert (code, json.loads(out)["error"]["code"]) == (1, "E_NAN")


def test_what_a_farm_says_is_shown_and_not_obeyed(api, sakuga, job):
    for _ in range(2):
        api.stores.renders.failed(api.claim(), "E_NAN", "[red]\x1b[31m\x9b2J\nbad")
    _, out, err = sakuga("watch", job)
    assert out == f"{job} failed: E_NAN [red]\\x1b[31m\\x9b2J\\nbad\n"
    assert "\x1b" not in err and "[red]" in err
    assert "\x1b" not in sakuga("logs", job)[1]


def test_a_job_that_is_cancelled(sakuga, job):
    sakuga("cancel", job)
    assert sakuga("watch", job)[:2] == (1, f"{job} cancelled\n")


def test_a_job_that_is_deleted_while_it_is_watched(api, tenant, sakuga, job):
    front = Front(api.app, on_event=lambda: api.stores.jobs.delete(tenant, job))
    with front.serving() as url:
        code, _, err = sakuga("watch", job, "--url", url)
    assert (code, err.splitlines()[-1].split(":")[0]) == (2, "error E_NOT_FOUND")


def test_a_job_that_does_not_exist(sakuga):
    for command in ("watch", "logs"):
        code, _, err = sakuga(command, "video_none")
        assert (code, err.split(":")[0], err.count("\n")) == (2, "error E_NOT_FOUND", 1)


def test_ctrl_c_only_detaches(api, tenant, sakuga, job):
    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with Front(api.app, on_event=interrupt).serving() as url:
        code, out, err = sakuga("watch", job, "--url", url)
        assert (code, out) == (130, "")
        assert err.splitlines()[-1] == f"error E_INTERRUPTED: detached, the job goes on: `sakuga watch {job}`"
        code, out, err = sakuga("submit", "Another.", *SMALL, "--watch", "--url", url)
        assert (code, out) == (130, "")
    other = err.splitlines()[0].split()[0]
    assert f"`sakuga watch {other}`" in err.splitlines()[-1]
    assert {api.stores.jobs.get(tenant, each).state for each in (job, other)} == {"queued"}


def test_a_stream_that_breaks_is_taken_up_where_it_broke(api, tenant, sakuga, job):
    api.render()
    front = Front(api.app, cuts=2, away=3)
    with front.serving() as url:
        code, out, _ = sakuga("logs", job, "--url", url, "--json")
    assert code == 0
    seqs = [int(event["seq"]) for event in json.loads(out)["events"]]
    whole = [event.seq for event in api.stores.jobs.events_after(tenant, job, 0)]
    assert seqs == whole and len(whole) >= 3
    assert front.requests[0][1] is None
    assert [last for _, last in front.requests[1:4]] == 3 * [str(whole[1])], "the farm was away"
    assert front.requests[4][1] == str(whole[1])


def test_a_farm_that_stays_away(api, sakuga, job, monkeypatch):
    monkeypatch.setattr(client, "PATIENCE_S", 0.0)
    with Front(api.app, cuts=1, away=1000).serving() as url:
        api.claim()
        code, _, err = sakuga("watch", job, "--url", url)
    assert code == 3
    assert err.splitlines()[-1].startswith("error E_FARM: ")


def test_logs_tell_every_step_and_end_with_the_job(api, sakuga, job):
    with api.lane():
        code, out, err = sakuga("logs", job)
    assert (code, err) == (0, "")
    assert kinds(out) == [
        "queued", "encode 0/3", "denoise 1/3", "denoise 2/3", "decode 3/3", "completed",
    ]  # fmt: skip
    told = json.loads(sakuga("logs", job, "--json")[1])["events"]
    assert [event["type"] for event in told] == ["queued", "running", "step", "step", "step", "completed"]


QUEUED = {"queue_position": 3, "eta_s": 4000.0}
STEP = {"stage": "denoise", "step": 7, "num_steps": 20, "eta_s": 61.0}


def bar(width: int, kind: str = "step", data: Mapping[str, object] = STEP, **console: object) -> str:
    """What a terminal of this width gets to see."""
    text = io.StringIO()
    with progress(Console(file=text, force_terminal=True, width=width, **console)) as draw:
        draw(Told(seq="1", type=kind, data=data))
    return text.getvalue()


def test_a_bar_on_a_terminal():
    assert "queued, 3 before it, 1:06:40 left ━" in bar(80, "queued", QUEUED, color_system=None)
    text = bar(80, color_system=None)
    assert "denoise 7/20, 1:01 left ━━━━━━━━━━━━━━  " in text
    assert "\x1b[3" not in text and "\x1b[3" in bar(80, color_system="standard")


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_bar_fits_the_terminal(width):
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", bar(width, "queued", QUEUED, color_system=None))
    assert max(cell_len(line) for line in re.split(r"[\r\n]", drawn)) <= width


def test_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[34]\d", bar(80, color_system="standard"))


def test_a_bar_goes_when_the_job_has_ended(api, sakuga, job, monkeypatch):
    monkeypatch.setattr(
        output, "stderr_console", Console(stderr=True, force_terminal=True, width=80, color_system=None)
    )
    with api.lane():
        code, out, err = sakuga("watch", job)
    assert (code, out) == (0, f"{job} completed\n")
    assert "━" in err and err.endswith("\x1b[2K")


def test_examples_of_the_words():
    assert doctest.testmod(job_view).failed == 0
