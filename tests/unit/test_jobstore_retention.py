"""What is deleted leaves no prompt in the database and nothing in storage, and takes nothing that others need."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from sakuga.errors import NotFoundError
from sakuga.jobstore import Artifact, Idempotency, Lane, NewJob, stores_on
from sakuga.jobstore.ending import STALE_S
from sakuga.jobstore.leases import MAX_LOST
from sakuga.jobstore.retention import IDEMPOTENCY_S, RETRY_S, TOMBSTONE_S
from sakuga.jobstore.schema import metadata

SECRET = "a fairy in the rain"
JOB = NewJob(
    tenant="app", render_key="a" * 64, model="m", recipe={"prompt": SECRET}, request={"prompt": SECRET}, num_steps=10,
    work_s=5.0, inputs={"image": "app/uploads/1/image.png"}, webhook_url="https://app.example/hook",
)  # fmt: skip
LANE = Lane(name="lane", models=("m",))
UPLOAD = "app/uploads/1/image.png"


def publish(stores, claim) -> str:
    prefix = f"{claim.prefix}/video"
    stores.renders.publish(claim, Artifact(prefix=prefix, sha256="b" * 64, num_bytes=1, receipt={"prompt": SECRET}))
    return prefix


def everything(stores) -> str:
    with stores.jobs.engine.begin() as connection:
        return str([tuple(row) for table in metadata.sorted_tables for row in connection.execute(table.select())])


def test_no_table_keeps_a_prompt_of_deleted_jobs(stores):
    done = stores.jobs.submit(JOB, Idempotency(owner="key", key="once", fingerprint="f" * 64))
    publish(stores, stores.renders.claim(LANE))
    failing = stores.jobs.submit(replace(JOB, render_key="c" * 64))
    for _ in range(2):
        stores.renders.failed(stores.renders.claim(LANE), "E_PROMPT", f"{SECRET} is no prompt")
    running = stores.jobs.submit(replace(JOB, render_key="d" * 64))
    stores.renders.claim(LANE)
    errors = [{"row": 1, "code": "E_PROMPT", "message": SECRET}]
    batch = stores.batches.create("app", [replace(JOB, render_key="e" * 64)], errors)
    stores.webhooks.due()
    assert SECRET in everything(stores)
    (queued,), _ = stores.jobs.page("app", batch_id=batch.id)
    for job in (done, failing, running, queued):
        stores.jobs.delete("app", job.id)
    assert SECRET not in everything(stores)


def test_everything_that_was_stored_for_a_job_goes_with_it(stores):
    job = stores.jobs.submit(JOB)
    prefix = publish(stores, stores.renders.claim(LANE))
    assert stores.jobs.garbage() == []
    stores.jobs.delete("app", job.id)
    assert set(stores.jobs.garbage()) == {UPLOAD, prefix, f"app/{job.render_id}"}


def test_uploads_stay_until_the_last_job_of_the_render_is_deleted(stores):
    one = stores.jobs.submit(JOB)
    two = stores.jobs.submit(replace(JOB, inputs={"image": "app/uploads/2/image.png"}))
    stores.jobs.delete("app", one.id)
    assert stores.jobs.garbage() == []
    claim = stores.renders.claim(LANE)
    assert claim.inputs == {"image": UPLOAD}, "the render was begun with the first job's"
    publish(stores, claim)
    stores.jobs.delete("app", two.id)
    assert {UPLOAD, "app/uploads/2/image.png"} <= set(stores.jobs.garbage())


def test_an_upload_that_another_render_uses_stays(stores, clock):
    one = stores.jobs.submit(JOB)
    remix = stores.jobs.submit(replace(JOB, render_key="c" * 64, remixed_from=one.id))
    assert remix.remixed_from == one.id and remix.inputs == {"image": UPLOAD}
    stores.jobs.delete("app", one.id)
    assert stores.jobs.garbage() == []
    stores.jobs.delete("app", remix.id)
    assert stores.jobs.garbage() == [UPLOAD]


def test_an_upload_whose_job_never_comes_goes(stores, clock):
    stores.jobs.discard([UPLOAD, "app/uploads/2/image.png"], after_s=3600)
    stores.jobs.discard([UPLOAD], after_s=7200)
    job = stores.jobs.submit(JOB)
    assert stores.jobs.garbage() == []
    clock.now += 3601
    assert stores.jobs.garbage() == ["app/uploads/2/image.png"]
    publish(stores, stores.renders.claim(LANE))
    clock.now += 3601
    assert UPLOAD not in stores.jobs.garbage()
    stores.jobs.delete("app", job.id)
    assert UPLOAD in stores.jobs.garbage()


def test_a_running_job_that_is_wanted_again_after_its_deletion_keeps_its_storage(stores, clock):
    one = stores.jobs.submit(JOB)
    claim = stores.renders.claim(LANE)
    stores.jobs.delete("app", one.id)
    assert stores.jobs.garbage() == [UPLOAD], "what the lane writes is not removed under its hands"
    two = stores.jobs.submit(replace(JOB, inputs={"image": "app/uploads/2/image.png"}))
    assert two.render_id == one.render_id and two.inputs == {"image": "app/uploads/2/image.png"}
    prefix = publish(stores, claim)
    clock.now += STALE_S + 1
    assert prefix not in stores.jobs.garbage()
    assert stores.jobs.get("app", two.id).artifact.prefix == prefix


def test_a_job_that_is_deleted_while_it_runs_is_cleared_away_when_its_lane_stops(stores, clock):
    job = stores.jobs.submit(JOB)
    claim = stores.renders.claim(LANE)
    stores.renders.saved(claim, f"{claim.prefix}/snapshot-2", 2)
    stores.jobs.delete("app", job.id)
    stores.jobs.collected(stores.jobs.garbage())
    stores.renders.released(claim)
    assert stores.jobs.garbage() == [f"app/{job.render_id}"]
    clock.now += STALE_S + 1
    assert claim.prefix in stores.jobs.garbage(), "once more, when no lane can be writing there any more"


def test_what_other_attempts_left_goes_when_the_render_has_ended(stores, clock):
    stores.jobs.submit(JOB)
    first = stores.renders.claim(LANE)
    stores.renders.saved(first, f"{first.prefix}/snapshot-2", 2)
    clock.now += 100
    stores.renders.reap()
    second = stores.renders.claim(Lane(name="other", models=("m",)))
    assert stores.jobs.garbage() == [], "the next attempt goes on from the snapshot"
    prefix = publish(stores, second)
    assert stores.jobs.garbage() == [f"{first.prefix}/snapshot-2"]
    clock.now += STALE_S + 1
    later = stores.jobs.garbage()
    assert first.prefix in later and not any(prefix.startswith(name) for name in later)


def test_a_render_that_has_failed_leaves_no_snapshots(stores, clock):
    stores.jobs.submit(JOB)
    prefixes = []
    for number in range(MAX_LOST):
        prefixes.append(stores.renders.claim(Lane(name=f"lane-{number}", models=("m",))).prefix)
        clock.now += 100
        stores.renders.reap()
    clock.now += STALE_S
    assert set(stores.jobs.garbage()) == set(prefixes)


def test_what_was_not_removed_is_given_out_again_and_what_is_due_later_stays(stores, clock):
    stores.jobs.discard(["a", "b"])
    stores.jobs.discard(["a"], after_s=1000)
    assert stores.jobs.garbage() == ["a", "b"]
    assert stores.jobs.garbage() == [], "somebody is at it"
    stores.jobs.collected(["a"])
    clock.now += RETRY_S
    assert stores.jobs.garbage() == ["b"]
    stores.jobs.collected(["b"])
    clock.now += 1000
    assert stores.jobs.garbage() == ["a"]


def test_jobs_are_deleted_when_their_time_is_over(engine, clock):
    stores = stores_on(engine, clock=clock, retention_s=1000)
    old, running = stores.jobs.submit(JOB), stores.jobs.submit(replace(JOB, render_key="c" * 64))
    publish(stores, stores.renders.claim(LANE))
    clock.now += 500
    young = stores.jobs.submit(replace(JOB, render_key="d" * 64))
    stores.jobs.cancel("app", young.id)
    ended = stores.jobs.get("app", old.id)
    assert ended.expires_at == ended.finished_at + 1000
    assert stores.jobs.expire() == 0
    clock.now += 501
    assert stores.jobs.expire() == 1
    assert {job.id for job in stores.jobs.page("app")[0]} == {running.id, young.id}
    assert stores.jobs.get("app", running.id).expires_at is None
    assert stores.jobs.counts() == {
        "queued": 1, "running": 0, "completed": 0, "failed": 0, "cancelled": 1, "deleted": 1,
    }  # fmt: skip


def test_more_jobs_than_are_deleted_in_one_transaction(engine, clock):
    stores = stores_on(engine, clock=clock, retention_s=10)
    batch = stores.batches.create("app", [replace(JOB, render_key=f"{number:064d}") for number in range(120)])
    stores.batches.cancel("app", batch.id)
    clock.now += 20
    assert stores.jobs.expire(limit=100) == 100
    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(lambda _: stores.jobs.expire(), range(2))) >= 20
    assert stores.jobs.page("app") == ([], False)


def test_records_of_deleted_jobs_go_after_a_while(stores, clock):
    key = Idempotency(owner="key", key="once", fingerprint="f" * 64)
    job = stores.jobs.submit(JOB, key)
    publish(stores, stores.renders.claim(LANE))
    stores.jobs.delete("app", job.id)
    kept = stores.jobs.submit(replace(JOB, render_key="c" * 64))
    publish(stores, stores.renders.claim(LANE))
    for delivery in stores.webhooks.due():
        stores.webhooks.delivered(delivery.id, 200)
    stores.jobs.expire()
    assert job.id in everything(stores), "the books"
    clock.now += max(TOMBSTONE_S, IDEMPOTENCY_S) + 1
    stores.jobs.collected(stores.jobs.garbage())
    stores.jobs.expire()
    rest = everything(stores)
    assert job.id not in rest and job.render_id not in rest
    assert stores.jobs.get("app", kept.id).state == "completed"
    assert stores.webhooks.page("app") == ([], False)
    assert stores.jobs.submit(JOB, key).id != job.id, "the key is free again"


def test_two_who_delete_the_same_job_at_once(stores):
    job = stores.jobs.submit(JOB)

    def delete(_: int) -> bool:
        try:
            stores.jobs.delete("app", job.id)
        except NotFoundError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(delete, range(4))) == 1
    with pytest.raises(NotFoundError):
        stores.jobs.events_after("app", job.id)
