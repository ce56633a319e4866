"""Waiting and making room: long polls, preemption, parking."""

import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace

import pytest

from sakuga.jobstore import Artifact, Lane, NewJob
from sakuga.jobstore.preempting import FREED_S
from sakuga.jobstore.waiting import Waiters

JOB = NewJob(
    tenant="app", render_key="a" * 64, model="m", recipe={}, request={}, num_steps=10, work_s=10.0, step_s=1.0
)  # fmt: skip
VIDEO = Artifact(prefix="p", sha256="b" * 64, num_bytes=1)


def lane(number: int, *models: str) -> Lane:
    return Lane(name=f"lane-{number}", models=models or ("m",))


def submit(stores, number: int, **changes):
    return stores.jobs.submit(replace(JOB, render_key=f"{number:064d}", **changes))


@pytest.fixture
def busy(stores):
    """Three lanes with batch renders whose steps take 3, 1 and 2 seconds."""
    claims = []
    for number, step_s in enumerate((3.0, 1.0, 2.0)):
        submit(stores, number, priority="batch", step_s=step_s)
        claims.append(stores.renders.claim(lane(number)))
    return claims


def asked(stores, claims, step: int = 1) -> list[int]:
    return [index for index, claim in enumerate(claims) if stores.renders.heartbeat(claim, step).yield_lane]


def test_one_lane_is_asked_for_each_urgent_render_that_waits_the_cheapest_first(stores, busy, clock):
    submit(stores, 10, priority="interactive")
    assert stores.renders.preempt(after_s=0.5) == 0, "an idle lane may still take it"
    clock.now += 0.5
    assert stores.renders.preempt(after_s=0.5) == 1
    assert stores.renders.preempt(after_s=0.5) == 0, "one is enough"
    assert asked(stores, busy) == [1]
    submit(stores, 11, priority="interactive")
    submit(stores, 12, priority="normal")
    clock.now += 0.5
    assert stores.renders.preempt(after_s=0.5) == 1
    assert asked(stores, busy, 2) == [1, 2]


def test_a_lane_that_has_made_room_counts_until_it_claims(stores, busy, clock):
    urgent = submit(stores, 10, priority="interactive")
    clock.now += 1
    stores.renders.preempt()
    stores.renders.released(busy[1])
    assert stores.renders.preempt() == 0
    assert stores.renders.claim(lane(1)).render_id == urgent.render_id
    assert stores.renders.preempt() == 0
    submit(stores, 11, priority="interactive")
    clock.now += 1
    assert stores.renders.preempt() == 1, "that lane is busy again"


def test_a_lane_that_made_room_and_never_claims_is_replaced(stores, busy, clock):
    submit(stores, 10, priority="interactive")
    clock.now += 1
    stores.renders.preempt()
    stores.renders.released(busy[1])
    clock.now += FREED_S
    assert stores.renders.preempt() == 1


def test_who_is_not_asked(stores, busy, clock):
    stores.renders.heartbeat(busy[1], 10)  # is being decoded
    submit(stores, 10, priority="interactive", model="n")
    clock.now += 1
    assert stores.renders.preempt() == 0, "no lane of that model"
    for number in range(11, 16):
        submit(stores, number, priority="interactive")
    clock.now += 1
    assert stores.renders.preempt() == 2
    assert asked(stores, [busy[0], busy[2]]) == [0, 1]
    stores.renders.released(busy[0])
    stores.renders.claim(lane(0))
    assert stores.renders.preempt() == 0, "interactive renders do not make room for others"


def test_a_batch_render_that_becomes_urgent_goes_on(stores, busy, clock):
    submit(stores, 10, priority="interactive")
    clock.now += 1
    stores.renders.preempt()
    submit(stores, 1, priority="interactive")  # the same as the one that was asked
    assert asked(stores, busy) == []


def test_two_keepers_ask_for_no_more_than_one(stores, busy, clock):
    submit(stores, 10, priority="interactive")
    clock.now += 1
    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(lambda _: stores.renders.preempt(), range(8))) == 1


def test_a_parked_render_waits_and_pays_nothing(stores, clock):
    job = submit(stores, 1)
    for number in range(5):
        claim = stores.renders.claim(lane(number))
        stores.renders.park(claim, "storage refuses the credentials", 60)
        assert stores.renders.claim(lane(number)) is None
        assert stores.jobs.get("app", job.id).state == "queued"
        clock.now += 61
    assert stores.jobs.events_after("app", job.id)[-1].data["reason"] == "storage refuses the credentials"
    claim = stores.renders.claim(lane(0))
    stores.jobs.cancel("app", job.id)
    stores.renders.park(claim, "storage is away", 60)
    clock.now += 61
    assert stores.renders.claim(lane(0)) is None


def test_a_parked_render_takes_no_lane_from_others(stores, clock):
    submit(stores, 1, priority="interactive")
    stores.renders.park(stores.renders.claim(lane(0)), "storage is away", 60)
    submit(stores, 2, priority="batch")
    stores.renders.claim(lane(0))
    clock.now += 1
    assert stores.renders.preempt() == 0


def test_a_lane_that_waits_has_what_is_submitted_at_once(stores, monkeypatch):
    monkeypatch.setattr(stores.jobs.database, "poll_s", 60.0)
    with ThreadPoolExecutor(1) as threads:
        claim = threads.submit(stores.renders.claim, lane(0), 30.0)
        in_line(stores, 1)
        job = submit(stores, 1)
        assert claim.result(timeout=10).render_id == job.render_id
    assert stores.renders.claim(lane(0), wait_s=0.01) is None


def test_lanes_that_wait_share_what_comes_and_what_is_given_back(stores):
    with ThreadPoolExecutor(8) as threads:
        waiting = {threads.submit(stores.renders.claim, lane(number), 30.0) for number in range(8)}
        jobs = [submit(stores, number) for number in range(7)]
        claimed = set()
        while len(claimed) < 7:
            claimed |= wait(waiting - claimed, timeout=10, return_when=FIRST_COMPLETED).done
        stores.renders.released(next(iter(claimed)).result())
        claims = [future.result(timeout=10) for future in waiting]
    assert sorted(claim.fence for claim in claims) == [1] * 7 + [2]
    assert {claim.render_id for claim in claims} == {job.render_id for job in jobs}


def test_one_lane_is_woken_for_each_render_and_passes_on_what_it_may_not_have():
    line = Waiters()
    with line.waiting(["m"]) as first, line.waiting(["n"]) as other, line.waiting(["m"]) as second:
        line.tell(["m"])
        assert (first.woken.is_set(), other.woken.is_set(), second.woken.is_set()) == (True, False, False)
        line.pass_on(line.looking(first))
        assert (first.woken.is_set(), second.woken.is_set()) == (False, True)
        line.pass_on(line.looking(second))
        assert not first.woken.is_set(), "it has looked since"
        line.tell(["m", "m", "m"])
        assert first.woken.is_set() and second.woken.is_set() and not other.woken.is_set()


def test_news_for_a_lane_that_goes_away_are_the_next_ones():
    line, goes = Waiters(), ExitStack()
    goes.enter_context(line.waiting(["m"]))
    with line.waiting(["m"]) as stays:
        line.tell(["m"])
        assert not stays.woken.is_set()
        goes.close()
        assert stays.woken.is_set()


def test_a_lane_that_may_not_have_a_render_leaves_it_to_the_next(stores, monkeypatch):
    monkeypatch.setattr(stores.jobs.database, "poll_s", 60.0)  # nobody looks by himself
    submit(stores, 1)
    lost = stores.renders.claim(lane(0))
    with ThreadPoolExecutor(2) as threads:
        kept_away = threads.submit(stores.renders.claim, lane(0), 30.0)
        in_line(stores, 1)
        other = threads.submit(stores.renders.claim, lane(1), 30.0)
        in_line(stores, 2)
        stores.renders.lost(lost, "its disk is full")
        assert other.result(timeout=10).render_id == lost.render_id
        submit(stores, 2)
        assert kept_away.result(timeout=10) is not None


def in_line(stores, number: int) -> None:
    deadline = time.monotonic() + 10
    while len(stores.jobs.database.waiters) < number:
        assert time.monotonic() < deadline
        time.sleep(0.001)
