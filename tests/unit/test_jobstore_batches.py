"""Batches: all jobs of a request or none, shared renders, counts, cancelling."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from sakuga.errors import ConflictError, NotFoundError, RecipeError
from sakuga.jobstore import Artifact, Idempotency, Lane, NewJob

JOB = NewJob(
    tenant="app", render_key="a" * 64, model="m", recipe={"prompt": "x"}, request={"prompt": "x"}, num_steps=2,
    work_s=1.0, priority="batch",
)  # fmt: skip
LANE = Lane(name="lane", models=("m",))
ERRORS = [{"row": 3, "code": "E_PROMPT", "message": "the prompt 'y' is bad"}]


def rows(number: int, *, first: int = 0) -> list[NewJob]:
    return [replace(JOB, render_key=f"{index:064d}") for index in range(first, first + number)]


def test_a_batch_and_its_counts(stores):
    batch = stores.batches.create("app", rows(3), ERRORS)
    assert (batch.num_rows, batch.errors, batch.counts) == (4, ERRORS, {"queued": 3})
    claim = stores.renders.claim(LANE)
    stores.renders.publish(claim, Artifact(prefix="app/1", sha256="b" * 64, num_bytes=1))
    assert stores.batches.get("app", batch.id).counts == {"queued": 2, "completed": 1}
    jobs, _ = stores.jobs.page("app", batch_id=batch.id)
    assert len(jobs) == 3 and {job.batch_id for job in jobs} == {batch.id}
    with pytest.raises(NotFoundError):
        stores.batches.get("another", batch.id)


def test_rows_that_are_equal_or_in_flight_share_their_render(stores):
    single = stores.jobs.submit(rows(1)[0])
    batch = stores.batches.create("app", [*rows(2), *rows(2)])
    jobs, _ = stores.jobs.page("app", batch_id=batch.id, newest_first=False)
    assert len({job.render_id for job in jobs}) == 2 and single.render_id in {job.render_id for job in jobs}
    assert stores.jobs.backlog()["m"].num_queued == 2


def test_a_batch_without_a_good_row(stores):
    batch = stores.batches.create("app", [], ERRORS)
    assert (batch.num_rows, batch.counts) == (1, {})


def test_all_or_nothing(stores):
    with pytest.raises(RecipeError):
        stores.batches.create("app", [*rows(2), replace(JOB, priority="urgent")])
    assert stores.jobs.page("app") == ([], False) and stores.batches.page("app") == ([], False)


def test_the_same_key_is_the_same_batch(stores):
    key = Idempotency(owner="key", key="once", fingerprint="f" * 64)

    def create(_: int) -> str:
        return stores.batches.create("app", rows(20), idempotency_key=key).id

    assert stores.batches.known("app", key) is None
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(create, range(8))) == {stores.batches.known("app", key).id}
    assert stores.jobs.counts()["queued"] == 20
    with pytest.raises(ConflictError):
        stores.batches.create("app", rows(1), idempotency_key=replace(key, fingerprint="0" * 64))


def test_batches_with_the_same_rows_in_another_order_at_once(stores):
    forth, back = rows(50), rows(50)[::-1]
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda some: stores.batches.create("app", some), [forth, back, forth, back]))
    assert [batch.counts for batch in made] == [{"queued": 50}] * 4
    assert stores.jobs.backlog()["m"].num_queued == 50


def test_cancelling_ends_what_has_not_ended(stores):
    batch = stores.batches.create("app", rows(4))
    shared = stores.jobs.submit(rows(1)[0])
    done, running = stores.renders.claim(LANE), stores.renders.claim(LANE)
    stores.renders.publish(done, Artifact(prefix="app/1", sha256="b" * 64, num_bytes=1))
    ended = stores.batches.cancel("app", batch.id)
    assert ended.counts == {"completed": 1, "cancelled": 3}
    assert stores.renders.heartbeat(running, 1).cancel is (running.render_id != shared.render_id)
    stores.renders.released(running)
    assert stores.batches.cancel("app", batch.id) == ended
    with pytest.raises(NotFoundError):
        stores.batches.cancel("another", batch.id)


def test_the_sentences_about_bad_rows_go_with_the_last_job(stores):
    batch = stores.batches.create("app", rows(2), ERRORS)
    one, two = stores.jobs.page("app", batch_id=batch.id)[0]
    stores.jobs.delete("app", one.id)
    assert stores.batches.get("app", batch.id).errors == ERRORS
    stores.jobs.delete("app", two.id)
    emptied = stores.batches.get("app", batch.id)
    assert (emptied.errors, emptied.counts) == ([{"row": 3, "code": "E_PROMPT"}], {})


def test_listing(stores):
    made = [stores.batches.create("app", rows(1, first=number)) for number in range(3)]
    page, more = stores.batches.page("app", limit=2)
    assert page == [made[2], made[1]] and more
    assert stores.batches.page("app", made[1].id) == ([made[0]], False)


def test_more_rows_than_go_into_one_statement(stores):
    batch = stores.batches.create("app", rows(2_500))
    assert batch.counts == {"queued": 2_500}
    assert stores.batches.cancel("app", batch.id).counts == {"cancelled": 2_500}
    assert stores.renders.claim(LANE) is None
