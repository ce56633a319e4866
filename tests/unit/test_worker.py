"""The actor of a bulk run without Ray: whatever a row does, the answer is columns."""

import dataclasses
import errno
import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from sakuga import settings
from sakuga.errors import GeometryError, WorkerDiedError
from sakuga.farm.planning import begin_progress, plan_rows
from sakuga.farm.progress import ProgressTail
from sakuga.farm.results import RowResult
from sakuga.farm.worker import RenderPlan, RenderWorker, RowTask, count_attempt, forget_attempts, result_of
from sakuga.media.files import output_error
from sakuga.recipe import parse_request


class Renderer:
    """Does what `act` says, then returns a receipt."""

    act = staticmethod(lambda name: None)

    def __init__(self, plan):
        self.plan = plan

    def key(self, request):
        if request.prompt == "no recipe":
            raise GeometryError("not a multiple of 16")
        return f"key of {request.prompt}"

    def render(self, request, name, on_step):
        on_step("encode", 0, 2, None)
        self.act(name)
        on_step("denoise", 2, 2, 0.5)
        return {"key": self.key(request), "seconds": {"denoise": 1.0}}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    module = ModuleType("renderer_of_this_test")
    module.Renderer = type("Renderer", (Renderer,), {})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return RenderPlan(out=str(tmp_path), base_dir=str(tmp_path), renderer="renderer_of_this_test:Renderer")


def acts(plan, act):
    sys.modules["renderer_of_this_test"].Renderer.act = staticmethod(act)


def batch(name="a", prompt="dance"):
    task = RowTask(row=name, line=3, name=name, key="k", request=parse_request({"prompt": prompt, "seed": 1}))
    return {column: np.array([value]) for column, value in task.columns().items()}


def outcome(plan, **row) -> RowResult:
    columns = RenderWorker(plan)(batch(**row))
    assert all(len(values) == 1 for values in columns.values())
    return result_of({column: values[0] for column, values in columns.items()})


def test_a_rendered_row(plan, tmp_path):
    assert outcome(plan) == RowResult(
        row="a",
        line=3,
        name="a",
        status="done",
        key="k",
        video="a.mp4",
        receipt="a.json",
        seconds={"denoise": 1.0},
        attempts=1,
    )
    events = ProgressTail(tmp_path / "progress.jsonl").read_new()
    assert [(e.stage, e.step, e.step_s) for e in events] == [
        ("encode", 0, None),
        ("denoise", 2, 0.5),
        ("done", 0, None),
    ]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (GeometryError("not a multiple of 16"), "E_GEOMETRY", "not a multiple of 16"),
        (ZeroDivisionError("oh"), "E_INTERNAL", "ZeroDivisionError: oh"),
        (MemoryError(), "E_INTERNAL", "MemoryError"),
    ],
)
def test_an_error_becomes_columns(plan, tmp_path, error, code, words):
    def act(name):
        raise error

    acts(plan, act)
    result = outcome(plan)
    assert (result.status, result.video, result.seconds) == ("failed", None, {})
    assert result.error is not None
    assert result.error["code"] == code
    assert words in result.error["message"]
    last = ProgressTail(tmp_path / "progress.jsonl").read_new()[-1]
    assert (last.stage, last.error) == ("failed", result.error)


def test_an_interruption_is_not_an_error_of_the_row(plan):
    def act(name):
        raise KeyboardInterrupt

    acts(plan, act)
    with pytest.raises(KeyboardInterrupt):
        outcome(plan)


def test_a_full_disk_is_said_before_and_after_the_render(plan, tmp_path, monkeypatch):
    def act(name):
        raise output_error(tmp_path / name, OSError(errno.ENOSPC, "No space left on device"))

    acts(plan, act)
    result = outcome(plan)
    assert result.error is not None
    assert result.error["code"] == "E_DISK_FULL"
    rendered = []
    acts(plan, rendered.append)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    result = outcome(plan)
    assert result.error is not None
    assert result.error["code"] == "E_DISK_FULL"
    assert rendered == []  # no minutes of rendering for a video that cannot be written


def test_progress_that_cannot_be_written_costs_no_video(plan, tmp_path):
    (tmp_path / "progress.jsonl").symlink_to("/dev/full")
    assert outcome(plan).status == "done"


def test_a_row_that_kills_its_workers_fails_at_the_third_start(plan, tmp_path):
    assert [count_attempt(tmp_path, "a"), count_attempt(tmp_path, "a"), count_attempt(tmp_path, "b")] == [1, 2, 1]
    result = outcome(plan)
    assert result.error is not None
    assert result.error["code"] == WorkerDiedError.code
    assert count_attempt(tmp_path, "a") == 1  # an answer ends the count
    forget_attempts(tmp_path, "never-begun")


@pytest.mark.parametrize(
    ("cores", "num_workers", "asked", "threads"), [(8, 1, None, 8), (8, 3, None, 2), (2, 5, None, 1), (8, 1, 3, 3)]
)
def test_workers_share_the_cores_unless_threads_are_asked_for(plan, monkeypatch, cores, num_workers, asked, threads):
    monkeypatch.setattr(settings, "usable_cores", lambda: cores)
    made = []
    monkeypatch.setattr(RenderPlan, "make_renderer", lambda its: made.append(its))
    RenderWorker(dataclasses.replace(plan, num_workers=num_workers, num_threads=asked))
    assert [its.num_threads for its in made] == [threads]


def test_rows_are_sorted_into_tasks_finished_and_failed(plan, tmp_path):
    from sakuga.recipe.manifest import read_manifest

    prompts = ["dance", "no recipe", "twirl", ""]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "id": f"r{i}"}) + "\n" for i, prompt in enumerate(prompts)))
    for suffix in ("mp4", "webp", "sprites.webp"):
        (tmp_path / f"r2.{suffix}").write_bytes(b"x")
    (tmp_path / "r2.json").write_text(json.dumps({"key": "key of twirl", "seconds": {"total": 6.0}}))
    manifest = read_manifest(path)
    todo = plan_rows(manifest, plan)
    assert [(task.row, task.line, task.key) for task in todo.tasks] == [("r0", 1, "key of dance")]
    settled = {result.row: result for result in todo.settled}
    assert {row: result.status for row, result in settled.items()} == {"r1": "failed", "r2": "skipped", "r3": "failed"}
    assert settled["r2"].seconds == {"total": 6.0}
    assert settled["r2"].video == "r2.mp4"
    assert settled["r3"].error is not None
    assert settled["r3"].error["code"] == "E_PROMPT"
    assert todo.num_rows == 4
    assert [task.row for task in plan_rows(manifest, plan, resume=False).tasks] == ["r0", "r2"]

    begin_progress(tmp_path, todo)
    events = ProgressTail(tmp_path / "progress.jsonl").read_new()
    assert [(e.row, e.stage) for e in events] == [
        ("r0", "queued"),
        ("r1", "failed"),
        ("r2", "skipped"),
        ("r3", "failed"),
    ]
