"""A lane's turn with a render: what is stored, what the store hears, and that nothing is lost or done twice."""

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lane_farm import Clock, LaneFarm, after_the_claim, during_step, recipe_for, submit, undisturbed
from sakuga.engine import LocalEngine
from sakuga.engine.driven import EngineSession
from sakuga.errors import MemoryLimitError
from sakuga.farm.lane import LaneWork, Outcome
from sakuga.jobstore import JobStore, Lane, LeasedRenders, open_database
from sakuga.jobstore.leases import MAX_ATTEMPTS
from sakuga.storage.objects import FolderObjects

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def engine():
    return LocalEngine.load("wan-mini")


@pytest.fixture
def farm(tmp_path, engine):
    farm = LaneFarm(tmp_path, engine)
    yield farm
    farm.store.engine.dispose()


@pytest.fixture(scope="module")
def expected(tmp_path_factory, engine):
    return undisturbed(tmp_path_factory.mktemp("expected"), engine)


def test_a_render_is_published_whole(farm, expected):
    job = farm.submitted()
    assert farm.lane(1).run_one() is Outcome.COMPLETED
    done = farm.store.get("app", job.id)
    assert (done.state, done.artifact.sha256) == ("completed", expected)
    names = farm.objects.names("app")
    assert [Path(name).name for name in names] == [
        "manifest.json", "video.json", "video.mp4", "video.sprites.webp", "video.webp",
    ]  # fmt: skip
    manifest = json.loads((farm.objects.root / done.artifact.prefix / "manifest.json").read_text())
    assert set(manifest) == {name for name in names if not name.endswith("manifest.json")}
    assert done.artifact.receipt["key"] == farm.recipe.render_key
    assert farm.lane(1).run_one() is None


def test_a_cancelled_render_stops_at_the_next_step(farm, engine, monkeypatch):
    job = farm.submitted()
    during_step(monkeypatch, engine, 2, lambda: farm.store.cancel("app", job.id))
    assert farm.lane(1).run_one() is Outcome.CANCELLED
    assert farm.store.get("app", job.id).step == 3
    assert farm.lane(2).run_one() is None
    assert not any("video" in Path(name).name for name in farm.objects.names("app"))


def test_a_render_that_makes_room_goes_on_elsewhere_to_the_same_bits(farm, engine, monkeypatch, expected):
    job = farm.submitted()
    during_step(monkeypatch, engine, 2, lambda: farm.renders.ask_to_yield(job.render_id))
    assert farm.lane(1).run_one() is Outcome.YIELDED
    assert farm.store.get("app", job.id).state == "queued"
    first_steps = []
    during_step(monkeypatch, engine, 3, lambda: first_steps.append(3))
    assert farm.lane(2).run_one() is Outcome.COMPLETED
    assert first_steps == [3], "not from the beginning"
    assert farm.store.get("app", job.id).artifact.sha256 == expected


def test_a_job_that_is_deleted_while_it_is_decoded_leaves_nothing(farm, monkeypatch):
    job, finish = farm.submitted(), LocalEngine.finish

    def deleting(self, state):
        farm.store.delete("app", job.id)
        return finish(self, state)

    monkeypatch.setattr(LocalEngine, "finish", deleting)
    assert farm.lane(1).run_one() is Outcome.CANCELLED
    assert farm.objects.names("app") == []


def test_a_store_that_cannot_be_asked_for_a_moment_costs_nothing(farm, engine, monkeypatch, expected):
    job, heartbeat, failed = farm.submitted(), farm.renders.heartbeat, []

    def sometimes(claim, step):
        if len(failed) < 3:
            failed.append(step)
            raise OSError("no connection")
        return heartbeat(claim, step)

    monkeypatch.setattr(farm.renders, "heartbeat", sometimes)
    assert farm.lane(1).run_one() is Outcome.COMPLETED
    assert len(failed) == 3
    assert farm.store.get("app", job.id).artifact.sha256 == expected


def test_a_lane_that_closes_saves_its_render(farm, expected):
    job = farm.submitted()
    assert farm.lane(1, should_close=after_the_claim()).run_one() is Outcome.YIELDED
    assert farm.store.get("app", job.id).step == 1
    assert farm.lane(2).run_one() is Outcome.COMPLETED
    assert farm.store.get("app", job.id).artifact.sha256 == expected


def test_a_fault_of_the_farm_costs_the_job_nothing(farm, engine, monkeypatch, expected):
    job = farm.submitted()

    def broken():
        raise OSError(5, "Input/output error")

    during_step(monkeypatch, engine, 3, broken)
    assert farm.lane(1).run_one() is Outcome.LOST
    assert farm.lane(1).run_one() is None, "that lane is kept away from it"
    assert farm.lane(2).run_one() is Outcome.COMPLETED
    assert farm.store.get("app", job.id).artifact.sha256 == expected


def test_a_fault_of_the_job_is_told_with_its_code(farm, engine, monkeypatch):
    job = farm.submitted()
    norm = engine.model.pipe.dit.blocks[0].norm1
    hook = norm.register_forward_hook(lambda module, args, out: out * float("nan"))
    try:
        for _ in range(MAX_ATTEMPTS):
            assert farm.lane(1).run_one() is Outcome.FAILED
    finally:
        hook.remove()
    failed = farm.store.get("app", job.id)
    assert (failed.state, failed.error_code) == ("failed", "E_NAN")


def test_a_lane_that_was_overtaken_publishes_nothing(farm, engine, monkeypatch, expected):
    job, outcomes = farm.submitted(), []

    def overtake():
        farm.clock.offset += 100
        farm.renders.reap()
        outcomes.append(farm.lane(2).run_one())

    during_step(monkeypatch, engine, 4, overtake)
    assert farm.lane(1).run_one() is Outcome.OVERTAKEN
    assert outcomes == [Outcome.COMPLETED]
    done = farm.store.get("app", job.id)
    assert done.artifact.sha256 == expected and done.artifact.prefix.endswith("/2/video")
    assert not [name for name in farm.objects.names(f"app/{job.render_id}/1") if "video" in name]


def test_the_lease_lives_through_a_stage_that_is_longer_than_it(farm, engine, monkeypatch):
    farm.renders = LeasedRenders(farm.store, lease_s=0.5)
    farm.submitted()
    finish = LocalEngine.finish

    def slow(self, state):
        time.sleep(1.2)
        assert farm.renders.reap() == 0
        return finish(self, state)

    monkeypatch.setattr(LocalEngine, "finish", slow)
    assert farm.lane(1, heartbeat_s=0.1).run_one() is Outcome.COMPLETED


def test_steps_are_told_in_their_order(farm, engine, monkeypatch):
    """Also when the thread of heartbeats and the steps ask at the same moment."""
    job, heartbeat, at_it, together = farm.submitted(), farm.renders.heartbeat, [], []

    def slow(claim, step):
        together.extend(at_it)
        at_it.append(step)
        time.sleep(0.05)
        at_it.remove(step)
        return heartbeat(claim, step)

    monkeypatch.setattr(farm.renders, "heartbeat", slow)
    assert farm.lane(1, heartbeat_s=0.001).run_one() is Outcome.COMPLETED
    assert together == []
    steps = [event.data["step"] for event in farm.store.events_after("app", job.id) if event.type == "step"]
    assert len(steps) > 2 and steps == sorted(steps)


def test_who_waits_can_see_how_far_it_is(farm, engine, monkeypatch):
    job, seen = farm.submitted(), []
    during_step(monkeypatch, engine, 4, lambda: seen.extend(farm.objects.names("app")))
    assert farm.lane(1, preview_s=-1.0, snapshot_steps=100).run_one() is Outcome.COMPLETED
    assert [Path(name).name for name in seen] == ["preview-4.webp"], "the last one only"
    assert not [name for name in farm.objects.names("app") if "preview" in name]
    assert farm.store.get("app", job.id).state == "completed"


def test_a_render_that_does_not_fit_is_tried_on_a_smaller_plan_and_then_fails_with_advice(farm, engine, monkeypatch):
    job = farm.submitted()
    during_step(monkeypatch, engine, 2, out_of_memory)
    lane = farm.lane(1)
    assert lane.run_one() is Outcome.COMPLETED
    assert str(lane.session.execution.memory) == "components"
    job = submit(farm.store, replace(farm.recipe, seed=2))
    monkeypatch.setattr(LocalEngine, "step", lambda self, state: out_of_memory())
    while farm.store.get("app", job.id).state != "failed":
        assert lane.run_one() is Outcome.FAILED
    assert farm.store.get("app", job.id).error_code == "E_MEMORY"


def out_of_memory():
    raise MemoryLimitError("a step needs 90 GB, 80 are there; take --memory components")


def test_a_lane_that_is_killed_in_a_step_loses_nothing(tmp_path, engine, expected):
    """kill -9 of the whole process, the store's owner with it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_lane_that_waits_in_step_four, args=(str(tmp_path), theirs))
    process.start()
    job_id = ours.recv()
    assert ours.recv() == "in step 4"
    process.kill()
    process.join()
    clock = Clock()
    store = JobStore(open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}"), clock)
    assert store.get("app", job_id).state == "running"
    clock.offset += 100
    renders = LeasedRenders(store)
    assert renders.reap() == 1
    assert store.get("app", job_id).step == 4
    work = LaneWork(
        lane=Lane(name="lane-2", models=("wan-mini",)), renders=renders, objects=FolderObjects(tmp_path / "objects"),
        session=EngineSession(lambda precision, execution: engine),
    )  # fmt: skip
    assert work.run_one() is Outcome.COMPLETED
    assert store.get("app", job_id).artifact.sha256 == expected


def _lane_that_waits_in_step_four(folder: str, pipe) -> None:
    import torch

    torch.set_num_threads(1)
    engine = LocalEngine.load("wan-mini")
    store = JobStore(open_database(f"sqlite:///{folder}/jobs.sqlite"))
    pipe.send(submit(store, recipe_for(engine)).id)
    step = LocalEngine.step

    def waiting(self, state):
        if state.step == 4:
            pipe.send("in step 4")
            time.sleep(60)
        return step(self, state)

    LocalEngine.step = waiting
    LaneWork(
        lane=Lane(name="lane-1", models=("wan-mini",)), renders=LeasedRenders(store),
        objects=FolderObjects(Path(folder) / "objects"), session=EngineSession(lambda precision, execution: engine),
        snapshot_steps=2, snapshot_s=0, orders_s=0,
    ).run_one()  # fmt: skip
