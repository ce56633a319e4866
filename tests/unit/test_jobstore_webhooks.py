"""Webhooks: a message for every end of a job, at least once, under one id, with nothing that a user wrote."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from sakuga.errors import NotFoundError
from sakuga.jobstore import Artifact, Lane, NewJob

URL = "https://app.example/hook"
JOB = NewJob(
    tenant="app", render_key="a" * 64, model="m", recipe={"prompt": "secret"}, request={"prompt": "secret"},
    num_steps=2, work_s=1.0, webhook_url=URL,
)  # fmt: skip
LANE = Lane(name="lane", models=("m",))
VIDEO = Artifact(prefix="app/1", sha256="b" * 64, num_bytes=10)


def cancelled(stores, **changes):
    job = stores.jobs.submit(replace(JOB, **changes))
    stores.jobs.cancel(job.tenant, job.id)
    return job


def test_each_job_of_a_render_tells_its_own_address(stores):
    jobs = [stores.jobs.submit(replace(JOB, webhook_url=url)) for url in (URL, f"{URL}/2", None)]
    assert stores.webhooks.due() == []
    stores.renders.publish(stores.renders.claim(LANE), VIDEO)
    due = stores.webhooks.due()
    assert {(each.url, each.job_id) for each in due} == {(URL, jobs[0].id), (f"{URL}/2", jobs[1].id)}
    assert {(each.type, each.attempt, each.state) for each in due} == {("video.completed", 1, "pending")}
    assert due[0].data == {"id": due[0].job_id, "status": "completed"}


def test_every_end_is_told_and_nothing_of_the_prompt(stores):
    one = cancelled(stores)
    two = stores.jobs.submit(JOB)
    for _ in range(2):
        stores.renders.failed(stores.renders.claim(LANE), "E_PROMPT", "the prompt 'secret' is bad")
    three = stores.jobs.submit(JOB)
    stores.jobs.delete("app", three.id)
    due = stores.webhooks.due()
    told = [(each.job_id, each.type) for each in due]
    assert told == [(one.id, "video.cancelled"), (two.id, "video.failed"), (three.id, "video.cancelled")]
    assert "secret" not in str(due)


def test_a_message_is_due_again_until_it_is_reported(stores, clock):
    cancelled(stores)
    (first,) = stores.webhooks.due(lease_s=60)
    assert stores.webhooks.due() == [], "somebody is sending it"
    clock.now += 61
    (second,) = stores.webhooks.due()
    assert (second.id, second.attempt) == (first.id, 2)
    stores.webhooks.retry(second.id, clock.now + 300, 503)
    clock.now += 299
    assert stores.webhooks.due() == []
    clock.now += 1
    (third,) = stores.webhooks.due()
    assert (third.id, third.attempt, third.status) == (first.id, 3, 503)
    stores.webhooks.delivered(third.id, 200)
    clock.now += 1000
    assert stores.webhooks.due() == []
    stores.webhooks.retry(third.id, 0.0, None)  # a report that comes late
    assert stores.webhooks.due() == []
    ((told,), more) = stores.webhooks.page("app")
    assert (told.state, told.status, more) == ("delivered", 200, False)


def test_two_senders_never_have_the_same_message(stores):
    for number in range(20):
        cancelled(stores, render_key=f"{number:064d}")
    with ThreadPoolExecutor(4) as threads:
        given = [each.id for some in threads.map(lambda _: stores.webhooks.due(3), range(12)) for each in some]
    given += [each.id for each in stores.webhooks.due(100)]
    assert len(given) == len(set(given)) == 20


def test_an_address_that_is_gone_hears_nothing_until_its_owner_asks(stores):
    one = cancelled(stores)
    (sent,) = stores.webhooks.due()
    stores.webhooks.switch_off("app", URL)
    stores.webhooks.switch_off("app", URL)
    two = cancelled(stores)
    cancelled(stores, tenant="another")
    (elsewhere,) = stores.webhooks.due()
    assert elsewhere.tenant == "another", "one tenant's address is off for that tenant"
    failed, _ = stores.webhooks.page("app", only_failed=True)
    assert [each.job_id for each in failed] == [two.id, one.id]
    again = stores.webhooks.replay("app", sent.id)
    assert (again.id, again.state) == (sent.id, "pending")
    three = cancelled(stores)
    assert {each.job_id for each in stores.webhooks.due()} == {one.id, three.id}


def test_giving_up_and_another_tenants_messages(stores):
    cancelled(stores)
    (sent,) = stores.webhooks.due()
    stores.webhooks.give_up(sent.id, None)
    assert [each.id for each in stores.webhooks.page("app", only_failed=True)[0]] == [sent.id]
    assert stores.webhooks.page("another") == ([], False)
    with pytest.raises(NotFoundError):
        stores.webhooks.replay("another", sent.id)


def test_listing(stores):
    for number in range(3):
        cancelled(stores, render_key=f"{number:064d}")
    page, more = stores.webhooks.page("app", limit=2)
    rest, end = stores.webhooks.page("app", after=page[1].id)
    assert len({each.id for each in [*page, *rest]}) == 3 and more and not end
    with pytest.raises(NotFoundError):
        stores.webhooks.page("app", after="msg_0")


def test_a_tenants_secret_is_made_once(stores):
    with ThreadPoolExecutor(8) as threads:
        secrets = set(threads.map(lambda _: stores.webhooks.secret("app"), range(16)))
    assert len(secrets) == 1
    assert secrets.pop().startswith("whsec_")
    assert stores.webhooks.secret("another") != stores.webhooks.secret("app")
