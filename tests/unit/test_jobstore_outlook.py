"""How much work there is, where a job stands, what a tenant has used."""

from dataclasses import replace

import pytest

from sakuga.errors import NotFoundError
from sakuga.jobstore import Artifact, Backlog, Lane, NewJob, Place, outlook

JOB = NewJob(
    tenant="app", render_key="a" * 64, model="m", recipe={}, request={}, num_steps=10, work_s=12.0, step_s=1.0
)  # fmt: skip
LANE = Lane(name="lane", models=("m", "n"))


def submit(stores, number: int, **changes):
    return stores.jobs.submit(replace(JOB, render_key=f"{number:064d}", **changes))


def test_the_backlog_is_what_is_left_to_do_by_model(stores, clock):
    assert stores.jobs.backlog() == {}
    submit(stores, 1)
    claim = stores.renders.claim(LANE)
    submit(stores, 2, work_s=3.0)
    submit(stores, 3, model="n")
    clock.now += 7
    stores.renders.heartbeat(claim, 4)
    found = stores.jobs.backlog()
    assert found["m"] == Backlog(
        queued_s=3.0, running_s=8.0, num_queued=1, num_running=1, oldest_wait_s=pytest.approx(7, abs=0.1)
    )
    assert (found["n"].num_queued, found["n"].num_running) == (1, 0)
    assert stores.jobs.in_flight_s("app") == 23.0 and stores.jobs.in_flight_s("another") == 0.0
    stores.renders.saved(claim, "snapshot", 4)
    stores.renders.released(claim)
    assert stores.jobs.backlog()["m"].queued_s == 11.0, "it goes on from the snapshot"


def test_a_step_counts_an_equal_share_when_nobody_said_what_it_takes(stores):
    submit(stores, 1, step_s=0.0)
    stores.renders.heartbeat(stores.renders.claim(LANE), 5)
    assert stores.jobs.backlog()["m"].running_s == 6.0


def test_places_follow_class_share_and_age(stores, clock):
    running = submit(stores, 0, tenant="flood")
    claim = stores.renders.claim(LANE)
    stores.renders.heartbeat(claim, 2)
    flood = [submit(stores, number, tenant="flood", work_s=5.0) for number in range(1, 4)]
    small = submit(stores, 4, tenant="small", work_s=5.0)
    batch = submit(stores, 5, tenant="small", priority="batch")
    urgent = submit(stores, 6, tenant="flood", priority="interactive", work_s=1.0)
    elsewhere = submit(stores, 7, model="n")

    def place(job):
        return stores.jobs.place(job.tenant, job.id)

    assert place(running) == Place(position=0, ahead_s=0.0)
    assert place(urgent) == Place(position=0, ahead_s=10.0), "what is left of the running one"
    assert place(small) == Place(position=1, ahead_s=11.0), "the flood uses the lane, so the other tenant is next"
    assert [place(job).position for job in flood] == [2, 3, 4]
    assert place(batch) == Place(position=5, ahead_s=31.0)
    assert place(elsewhere) == Place(position=0, ahead_s=0.0)
    order = [urgent, small, *flood, batch]
    stores.renders.publish(claim, Artifact(prefix="p", sha256="b" * 64, num_bytes=1))
    lane = Lane(name="lane", models=("m",))
    assert [stores.renders.claim(lane).render_id for _ in order[:2]] == [job.render_id for job in order[:2]]
    with pytest.raises(NotFoundError):
        stores.jobs.place("another", small.id)


def test_the_places_of_a_long_queue_are_counted_once_a_second(stores, monkeypatch):
    monkeypatch.setattr(outlook, "NUM_SMALL", 3)
    first = [submit(stores, number) for number in range(5)]
    assert stores.jobs.place("app", first[4].id).position == 4
    late = submit(stores, 9)
    assert stores.jobs.place("app", late.id) == Place(position=5, ahead_s=60.0), "behind all that were counted"
    urgent = submit(stores, 10, priority="interactive")
    assert stores.jobs.place("app", urgent.id).position == 0
    monkeypatch.setattr(outlook, "MAX_AGE_S", 0.0)
    assert stores.jobs.place("app", late.id).position == 6


def test_long_renders_are_charged_while_they_run(stores, clock):
    assert stores.jobs.used_gpu_s("app") == 0.0
    submit(stores, 1)
    claim = stores.renders.claim(LANE)
    for step in range(1, 4):
        clock.now += 10
        stores.renders.heartbeat(claim, step)
        assert stores.jobs.used_gpu_s("app") == pytest.approx(10 * step, rel=0.02)
    stores.renders.publish(claim, Artifact(prefix="p", sha256="b" * 64, num_bytes=1))
    assert stores.jobs.used_gpu_s("app") == pytest.approx(30, rel=0.02), "not twice"
    clock.now += 3600
    assert stores.jobs.used_gpu_s("app") == pytest.approx(15, rel=0.02), "it fades"


def test_nobody_pays_for_a_lane_that_is_silent(stores, clock):
    submit(stores, 1)
    stores.renders.claim(LANE)
    clock.now += 1000
    assert stores.renders.reap() == 1
    assert stores.jobs.used_gpu_s("app") == 0.0


def test_idle_lanes_are_shared_between_tenants_that_come_at_once(stores):
    for number in range(4):
        submit(stores, number, tenant="first")
    for number in range(4):
        submit(stores, number, tenant="second")
    claims = [stores.renders.claim(LANE) for _ in range(4)]
    assert sorted(claim.tenant for claim in claims) == ["first", "first", "second", "second"]


def test_counts_are_those_of_the_rows(stores):
    jobs = [submit(stores, number) for number in range(4)]
    stores.renders.claim(LANE)
    stores.jobs.cancel("app", jobs[1].id)
    stores.jobs.delete("app", jobs[2].id)
    expected = {"queued": 1, "running": 1, "completed": 0, "failed": 0, "cancelled": 1, "deleted": 1}
    assert stores.jobs.counts() == expected
    assert stores.jobs.num_queued() == 1
