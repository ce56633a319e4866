"""The contract of the job store, on SQLite and on a real PostgreSQL server."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import select

from sakuga.errors import ConflictError, LeaseLostError, NotFoundError, RecipeError
from sakuga.jobstore import Artifact, Idempotency, Lane, NewJob
from sakuga.jobstore.leases import AVOID_S, MAX_ATTEMPTS, MAX_LOST
from sakuga.jobstore.schema import metadata, renders

JOB = NewJob(
    tenant="app", render_key="a" * 64, model="wan-mini", recipe={"prompt": "x"}, request={"prompt": "x"}, num_steps=20,
    work_s=5.0,
)  # fmt: skip
LANE = Lane(name="lane-1", models=("wan-mini",))
OTHER = Lane(name="lane-2", models=("wan-mini",))
VIDEO = Artifact(prefix="app/1", sha256="b" * 64, num_bytes=10, receipt={"key": "a" * 64})


def kinds(store, job):
    return [event.type for event in store.events_after(job.tenant, job.id)]


def clear(store) -> None:
    store.collected(store.garbage())


def test_a_job_from_submission_to_its_video(store, lanes):
    job = store.submit(JOB)
    assert (job.state, job.step, job.num_steps, job.request) == ("queued", 0, 20, {"prompt": "x"})
    claim = lanes.claim(LANE)
    assert claim.recipe == {"prompt": "x"} and claim.fence == 1
    assert lanes.claim(OTHER) is None
    assert lanes.heartbeat(claim, 7).cancel is False
    assert store.get("app", job.id).step == 7
    lanes.publish(claim, VIDEO)
    done = store.get("app", job.id)
    assert (done.state, done.artifact, done.step) == ("completed", VIDEO, 20)
    assert done.finished_at > done.created_at
    lanes.publish(claim, VIDEO)  # the answer was lost
    assert kinds(store, job) == ["queued", "running", "step", "completed"]
    with pytest.raises(LeaseLostError):
        lanes.publish(claim, replace(VIDEO, prefix="app/2"))


def test_equal_renders_in_flight_are_one_and_each_job_keeps_its_own(store, lanes):
    one, two = store.submit(JOB), store.submit(replace(JOB, priority="interactive", deadline_at=9e9))
    assert one.id != two.id and one.render_id == two.render_id
    elsewhere = store.submit(replace(JOB, tenant="another"))
    assert elsewhere.render_id != one.render_id, "tenants share nothing"
    claim = lanes.claim(LANE)
    assert claim.render_id == one.render_id, "raised to the class of the more urgent job"
    late = store.submit(JOB)
    assert (late.state, late.render_id) == ("running", one.render_id)
    lanes.publish(claim, VIDEO)
    assert {store.get("app", job.id).state for job in (one, two, late)} == {"completed"}
    again = store.submit(JOB)
    assert again.render_id != one.render_id, "what has ended is not in flight"


def test_a_cancelled_job_leaves_the_render_to_the_others(store, lanes):
    one, two = store.submit(JOB), store.submit(JOB)
    claim = lanes.claim(LANE)
    assert store.cancel("app", one.id).state == "cancelled"
    assert not lanes.heartbeat(claim, 1).cancel
    assert store.cancel("app", two.id).state == "cancelled"
    assert lanes.heartbeat(claim, 2).cancel
    lanes.released(claim)
    assert lanes.claim(OTHER) is None
    assert store.cancel("app", two.id).state == "cancelled", "once more changes nothing"
    assert kinds(store, two) == ["queued", "running", "step", "cancelled"]


def test_a_lane_that_is_lost_with_a_render_that_nobody_wants_is_counted_all_the_same(store, lanes):
    job = store.submit(JOB)
    claim = lanes.claim(LANE)
    store.cancel("app", job.id)
    lanes.lost(claim, "a rank died")
    with store.database.reading() as connection:
        (render,) = connection.execute(select(renders)).all()
    assert (render.state, render.num_lost) == ("cancelled", 1)


def test_while_the_store_was_away_no_lease_has_ended(store, lanes, clock):
    job = store.submit(JOB)
    claim = lanes.claim(LANE)
    clock.now += 1000
    lanes.renew_all()
    assert lanes.reap() == 0
    assert lanes.heartbeat(claim, 3).cancel is False
    clock.now += 1000
    assert lanes.reap() == 1, "a lane that is still silent then is lost"
    assert store.get("app", job.id).state == "queued"


def test_a_render_that_is_wanted_again_while_it_is_being_cancelled(store, lanes):
    one = store.submit(JOB)
    claim = lanes.claim(LANE)
    store.cancel("app", one.id)
    two = store.submit(JOB)
    assert two.render_id == one.render_id
    assert not lanes.heartbeat(claim, 1).cancel
    lanes.released(claim)  # the lane had seen the order before
    assert lanes.claim(OTHER).render_id == two.render_id


def test_cancelled_in_the_queue(store, lanes):
    job = store.submit(JOB)
    store.cancel("app", job.id)
    assert lanes.claim(LANE) is None


def test_a_silent_lane_loses_its_render_and_cannot_write_any_more(store, lanes, clock):
    job = store.submit(JOB)
    stale = lanes.claim(LANE)
    lanes.saved(stale, "snapshots/1", 8)
    lanes.heartbeat(stale, 11)
    clock.now += 100
    with pytest.raises(LeaseLostError):
        lanes.heartbeat(stale, 12)
    assert lanes.reap() == 1
    assert (store.get("app", job.id).state, store.get("app", job.id).step) == ("queued", 8)
    assert lanes.claim(LANE) is None, "it was lost on this lane"
    claim = lanes.claim(OTHER)
    assert (claim.fence, claim.snapshot_key) == (2, "snapshots/1")
    for write in (
        lambda: lanes.heartbeat(stale, 12),
        lambda: lanes.publish(stale, VIDEO),
        lambda: lanes.released(stale),
    ):
        with pytest.raises(LeaseLostError, match="stop it and claim another"):
            write()
    lanes.publish(claim, VIDEO)
    assert store.get("app", job.id).state == "completed"


def test_a_render_that_lanes_die_of_is_given_up(store, lanes, clock):
    job = store.submit(JOB)
    for number in range(MAX_LOST):
        assert store.get("app", job.id).state == "queued"
        assert lanes.claim(replace_lane(number)) is not None
        clock.now += 100
        lanes.reap()
    failed = store.get("app", job.id)
    assert (failed.state, failed.error_code) == ("failed", "E_DEAD_LETTER")
    assert kinds(store, job)[-1] == "failed"


def replace_lane(number: int) -> Lane:
    return Lane(name=f"lane-{number}", models=LANE.models)


def test_the_jobs_own_failures_are_counted_and_the_farms_are_not(store, lanes):
    job = store.submit(JOB)
    lanes.lost(lanes.claim(LANE), "its disk is full")
    lanes.released(lanes.claim(OTHER))
    for _ in range(MAX_ATTEMPTS):
        assert store.get("app", job.id).state == "queued"
        lanes.failed(lanes.claim(OTHER), "E_NAN", "step 3 gave NaN")
    failed = store.get("app", job.id)
    assert (failed.state, failed.error_code, failed.error_message) == ("failed", "E_NAN", "step 3 gave NaN")


def test_a_batch_render_yields_and_goes_on_later(store, lanes):
    batch = store.submit(replace(JOB, priority="batch"))
    claim = lanes.claim(LANE)
    urgent = store.submit(replace(JOB, render_key="c" * 64, priority="interactive"))
    lanes.ask_to_yield(batch.render_id)
    assert lanes.heartbeat(claim, 5).yield_lane
    lanes.saved(claim, "snapshots/5", 5)
    lanes.released(claim)
    assert lanes.claim(LANE).render_id == urgent.render_id
    later = lanes.claim(OTHER)
    assert (later.render_id, later.snapshot_key) == (batch.render_id, "snapshots/5")
    assert not lanes.heartbeat(later, 6).yield_lane


def test_a_tenant_that_floods_does_not_keep_the_others_waiting(store, lanes, clock):
    for number in range(20):
        store.submit(replace(JOB, tenant="flood", render_key=f"{number:064d}"))
    first = lanes.claim(LANE)
    small = store.submit(replace(JOB, tenant="small"))
    clock.now += 20
    lanes.publish(first, VIDEO)
    assert lanes.claim(LANE).render_id == small.render_id


def test_a_lane_is_given_only_what_it_can_render(store, lanes):
    store.submit(replace(JOB, model="wan2.1-t2v-14b"))
    assert lanes.claim(LANE) is None
    assert store.backlog()["wan2.1-t2v-14b"].queued_s == 5.0


def test_the_same_key_is_the_same_job(store):
    key = Idempotency(owner="key-1", key="once", fingerprint="f" * 64)
    assert store.known("app", key) is None
    job = store.submit(JOB, key)
    assert store.submit(JOB, key).id == store.known("app", key).id == job.id
    assert store.submit(JOB, replace(key, owner="key-2")).id != job.id
    with pytest.raises(ConflictError, match="used for another request"):
        store.submit(JOB, replace(key, fingerprint="0" * 64))
    with pytest.raises(ConflictError, match="used for another request"):
        store.known("app", replace(key, fingerprint="0" * 64))


def test_fifty_equal_submissions_at_once_are_one_job(store):
    key = Idempotency(owner="key-1", key="once", fingerprint="f" * 64)
    with ThreadPoolExecutor(16) as threads:
        ids = {future.result().id for future in [threads.submit(store.submit, JOB, key) for _ in range(50)]}
    assert len(ids) == 1
    assert len(store.page("app")[0]) == 1


def test_no_render_is_claimed_twice(store, lanes):
    for number in range(30):
        store.submit(replace(JOB, render_key=f"{number:064d}"))
    with ThreadPoolExecutor(8) as threads:
        claims = list(threads.map(lambda number: lanes.claim(replace_lane(number)), range(60)))
    claimed = [claim.render_id for claim in claims if claim is not None]
    while (claim := lanes.claim(LANE)) is not None:  # what two lanes reached for at once
        claimed.append(claim.render_id)
    assert len(claimed) == len(set(claimed)) == 30


def test_a_deleted_job_is_gone_with_its_prompt_and_the_video_goes_with_the_last(store, lanes):
    one, two = store.submit(JOB), store.submit(JOB)
    claim = lanes.claim(LANE)
    lanes.saved(claim, "snapshots/4", 4)
    lanes.publish(claim, VIDEO)
    assert not store.is_deleted("app", one.id)
    store.delete("app", one.id)
    clear(store)
    with pytest.raises(NotFoundError):
        store.get("app", one.id)
    assert store.get("app", two.id).artifact == VIDEO
    store.delete("app", two.id)
    assert set(store.garbage()) == {"app/1", f"app/{one.render_id}"}
    with pytest.raises(NotFoundError):
        store.delete("app", two.id)
    assert store.is_deleted("app", two.id)
    assert not store.is_deleted("other", two.id) and not store.is_deleted("app", "video_unknown")
    with store.engine.begin() as connection:
        kept = [str(row) for table in metadata.sorted_tables for row in connection.execute(table.select())]
    assert not any("'prompt'" in row for row in kept)


def test_a_job_that_is_deleted_while_it_runs_stops(store, lanes):
    job = store.submit(JOB)
    claim = lanes.claim(LANE)
    store.delete("app", job.id)
    assert lanes.heartbeat(claim, 1).cancel


def test_a_video_that_nobody_wants_any_more_is_not_published(store, lanes):
    job = store.submit(JOB)
    claim = lanes.claim(LANE)
    store.delete("app", job.id)
    assert lanes.publish(claim, VIDEO) is False
    with pytest.raises(LeaseLostError):
        lanes.heartbeat(claim, 1)
    with store.engine.begin() as connection:
        assert connection.execute(metadata.tables["artifacts"].select()).all() == []


def test_the_only_lane_of_a_farm_may_try_again_after_a_while(store, lanes, clock):
    job = store.submit(JOB)
    lanes.lost(lanes.claim(LANE), "the disk was full")
    assert lanes.claim(LANE) is None
    clock.now += AVOID_S
    assert lanes.claim(LANE).render_id == job.render_id


def test_many_that_wait_for_another_lane_do_not_hide_the_rest(store, lanes):
    for number in range(12):
        store.submit(replace(JOB, render_key=f"{number:064d}"))
    for _ in range(11):
        lanes.lost(lanes.claim(LANE), "the disk was full")
    assert lanes.claim(LANE) is not None
    assert lanes.claim(LANE) is None


def test_all_who_shared_a_render_cancel_at_once(store, lanes):
    made = [store.submit(JOB) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert {job.state for job in threads.map(lambda job: store.cancel("app", job.id), made)} == {"cancelled"}
    assert lanes.claim(LANE) is None


def test_jobs_that_come_while_others_are_cancelled_are_never_forgotten(store, lanes):
    def submit_or_cancel(number: int) -> str:
        job = store.submit(JOB)
        return job.id if number % 2 else store.cancel("app", job.id).id

    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(submit_or_cancel, range(24)))
    wanted = [job_id for number, job_id in enumerate(ids) if number % 2]
    while (claim := lanes.claim(LANE)) is not None:
        lanes.publish(claim, replace(VIDEO, prefix=f"app/{claim.render_id}"))
    assert {store.get("app", job_id).state for job_id in wanted} == {"completed"}


def test_two_first_videos_of_a_tenant_at_once(store, lanes):
    for number in range(2):
        store.submit(replace(JOB, render_key=f"{number:064d}"))
    claims = [lanes.claim(LANE), lanes.claim(OTHER)]
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda claim: lanes.publish(claim, replace(VIDEO, prefix=claim.render_id)), claims))
    assert done == [True, True]


def test_listing(store):
    made = [store.submit(replace(JOB, render_key=f"{number:064d}")) for number in range(5)]
    page, more = store.page("app", limit=2)
    assert [job.id for job in page] == [made[4].id, made[3].id] and more
    page, more = store.page("app", after=made[3].id, limit=3)
    assert [job.id for job in page] == [made[2].id, made[1].id, made[0].id] and not more
    assert store.page("app", newest_first=False, limit=1)[0][0].id == made[0].id
    assert store.page("nobody") == ([], False)
    assert len(store.page("app", limit=1000)[0]) == 5


def test_what_is_not_yours_is_not_there(store):
    job = store.submit(JOB)
    for look in (store.get, store.cancel, store.events_after):
        with pytest.raises(NotFoundError):
            look("another", job.id)
    with pytest.raises(NotFoundError):
        store.page("app", after="video_0")


def test_events_go_on_where_the_reader_stopped(store, lanes):
    job = store.submit(JOB)
    lanes.claim(LANE)
    seen = store.events_after("app", job.id)
    assert [event.type for event in seen] == ["queued", "running"]
    assert store.events_after("app", job.id, seen[0].seq) == seen[1:]


def test_an_unknown_priority(store):
    with pytest.raises(RecipeError, match="did you mean 'batch'"):
        store.submit(replace(JOB, priority="bath"))
