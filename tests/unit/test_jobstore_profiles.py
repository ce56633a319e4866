"""Promoted profiles: versions, states, who is brought back; audits from a job to a verdict."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from sakuga.errors import ConflictError, InputError, NotFoundError
from sakuga.jobstore import Idempotency, Lane, NewAudit, NewJob
from sakuga.jobstore.schema import audits

JOB = NewJob(tenant="app", render_key="a" * 64, model="m", recipe={"prompt": "x"}, request={}, num_steps=2, work_s=1.0)


def profile(name: str = "turbo", model: str = "m", **more: object) -> dict[str, object]:
    return {"name": name, "model": model, "canary_share": 0.1, "bars": {"ref_ssim": {"min": 0.9}}} | more


def states(stores, name: str = "turbo") -> list[tuple[int, str, str | None]]:
    return [(entry.version, entry.state, entry.reason) for entry in stores.profiles.history(name)]


def kinds(stores, name: str = "turbo") -> list[tuple[int, str]]:
    return [(event.version, event.type) for event in reversed(stores.profiles.events(name))]


def promoted(stores, content: str, **fields: object):
    return stores.profiles.promote("app", profile(**fields), content * 64)


def test_a_promoted_profile_is_in_canary_and_the_same_again_is_the_same_entry(stores):
    first = promoted(stores, "1")
    assert (first.version, first.state, first.owner, first.canary_share) == (1, "canary", "app", 0.1)
    assert promoted(stores, "1") == first == stores.profiles.get(first.id)
    assert promoted(stores, "1", model="n").version == 1, "another model's"
    assert stores.profiles.current("m") == [first]
    stores.profiles.activate(first.id)
    assert promoted(stores, "1").id == first.id
    assert promoted(stores, "1", bars={"ref_ssim": {"min": 0.95}}).version == 2, "held to other bars, it is another"


def test_another_version_waits_for_the_canary(stores):
    promoted(stores, "1")
    with pytest.raises(ConflictError, match="'turbo' version 1 is still tried on 10% of the requests"):
        promoted(stores, "2")
    assert states(stores) == [(1, "canary", None)]


def test_of_two_promotions_at_once_one_wins(stores):
    def promote(content: str):
        try:
            return promoted(stores, content)
        except ConflictError as error:
            return error

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(promote, "1212121212121212"))
    (entry,) = stores.profiles.history("turbo")
    assert {each.id for each in made if not isinstance(each, ConflictError)} == {entry.id}
    refused = {content for content, each in zip("12" * 8, made, strict=True) if isinstance(each, ConflictError)}
    assert refused <= {"1" if entry.content_sha256[0] == "2" else "2"}
    assert kinds(stores) == [(1, "promoted")]


def test_the_end_of_a_version_brings_back_the_one_that_it_replaced(stores):
    first = promoted(stores, "1")
    stores.profiles.activate(first.id)
    second = promoted(stores, "2")
    assert [entry.version for entry in stores.profiles.current("m")] == [1, 2], "the canary stands behind the active"
    stores.profiles.activate(second.id)
    assert states(stores) == [(2, "active", None), (1, "retired", "replaced")]
    stores.profiles.retire(second.id, "rolled_back", {"faults": ["ref_ssim is 0.8"]})
    stores.profiles.retire(second.id, "rolled_back")
    assert states(stores) == [(2, "retired", "rolled_back"), (1, "active", None)]
    assert kinds(stores) == [
        (1, "promoted"), (1, "activated"), (2, "promoted"), (1, "retired"), (2, "activated"), (2, "rolled_back"),
        (1, "activated"),
    ]  # fmt: skip
    assert stores.profiles.events("turbo")[1].data == {"reason": "rolled_back", "faults": ["ref_ssim is 0.8"]}
    assert stores.profiles.num_rollbacks() == {("m", "turbo"): 1}
    assert promoted(stores, "3").version == 3, "a number is not given twice"


def test_the_end_of_a_canary_changes_nothing_else(stores):
    first = promoted(stores, "1")
    stores.profiles.activate(first.id)
    stores.profiles.retire(promoted(stores, "2").id)
    assert states(stores) == [(2, "retired", "by_hand"), (1, "active", None)]
    stores.profiles.retire(first.id)
    assert stores.profiles.current("m") == []
    assert [entry.version for entry in stores.profiles.versions()] == [1, 2]


def test_a_version_that_was_ended_by_hand_does_not_come_back_by_itself(stores):
    first, second = promoted(stores, "1"), None
    stores.profiles.activate(first.id)
    second = promoted(stores, "2")
    stores.profiles.activate(second.id)
    stores.profiles.retire(first.id)
    stores.profiles.retire(second.id)
    assert stores.profiles.current("m") == []
    assert stores.profiles.activate(first.id).state == "active", "but by hand it does"


def test_what_there_is_not(stores):
    for act in (stores.profiles.get, stores.profiles.retire, stores.profiles.activate):
        with pytest.raises(NotFoundError, match="there is no profile"):
            act("profile_0")
    with pytest.raises(InputError, match="not retired because it is 'bored'"):
        stores.profiles.retire(promoted(stores, "1").id, "bored")
    assert stores.profiles.history("none") == stores.profiles.events("none") == []


def watched(profile_id: str, **fields: object) -> NewJob:
    """A job that asks for an audit."""
    reference = dataclasses.asdict(dataclasses.replace(JOB, tenant="audits", render_key="b" * 64))
    return dataclasses.replace(JOB, audit=NewAudit(profile_id=profile_id, reference=reference), **fields)


def test_an_audit_is_written_with_its_job_once_for_the_same_picture(stores):
    entry = promoted(stores, "1")
    job = stores.jobs.submit(watched(entry.id), Idempotency(owner="o", key="k", fingerprint="f"))
    stores.jobs.submit(watched(entry.id), Idempotency(owner="o", key="k", fingerprint="f"))
    stores.jobs.submit(watched(entry.id))
    stores.batches.create("app", [watched(entry.id, render_key=digit * 64) for digit in "cdc"])
    (audit, *others) = stores.audits.open()
    assert (audit.job_id, audit.tenant, audit.profile_id, audit.state) == (job.id, "app", entry.id, "pending")
    assert NewJob(**audit.reference).render_key == "b" * 64
    assert len(others) == 2 and len({other.job_id for other in others}) == 2
    assert stores.audits.tally()[entry.id].open == 3


def test_open_audits_of_one_model_do_not_hide_those_of_another(stores, clock):
    busy, idle = promoted(stores, "1"), promoted(stores, "1", model="n")
    for number, entry in enumerate((busy, busy, busy, idle)):
        clock.now += 1.0
        stores.jobs.submit(watched(entry.id, model=entry.model, render_key=f"{number:064d}"))
    assert [audit.profile_id for audit in stores.audits.open(limit=2)] == [busy.id, busy.id, idle.id]
    assert [audit.profile_id for audit in stores.audits.open()] == [busy.id] * 3 + [idle.id]


def test_the_verdicts_of_a_profile(stores, clock):
    entry = promoted(stores, "1")
    for digit, passed in zip("cdef", (True, False, True, True), strict=True):
        stores.jobs.submit(watched(entry.id, render_key=digit * 64))
        (audit,) = stores.audits.open()
        stores.audits.began(audit.id, "video_1")
        assert stores.audits.open()[0].state == "rendering" and stores.audits.references() == {"video_1"}
        stores.audits.ended(audit.id, passed, {"ref_ssim": 0.8}, [] if passed else ["ref_ssim is 0.8"])
        stores.audits.ended(audit.id, not passed, {}, [])
    assert [audit.state for audit in stores.audits.verdicts(entry.id, 0.0, 3)] == ["passed", "passed", "failed"]
    assert stores.audits.verdicts(entry.id, clock.now, 3) == []
    tally = stores.audits.tally()[entry.id]
    assert (tally.passed, tally.failed, tally.open) == (3, 1, 0)
    told = [event.data for event in stores.profiles.events("turbo") if event.type == "audited"]
    assert [each["passed"] for each in told] == [True, True, False, True]
    assert told[2] == {"passed": False, "figures": {"ref_ssim": 0.8}, "faults": ["ref_ssim is 0.8"]}


def test_what_a_user_deletes_is_forgotten_by_its_audit(stores, clock):
    entry = promoted(stores, "1")
    job = stores.jobs.submit(watched(entry.id))
    (audit,) = stores.audits.open()
    stores.jobs.delete("app", job.id)
    stores.audits.began(audit.id, "video_1")  # by one who did not know of it
    assert stores.audits.open() == [] and not stores.audits.references()
    with stores.jobs.engine.begin() as connection:
        assert connection.execute(select(audits.c.state, audits.c.reference)).all() == [("gone", {})]
    clock.now += 8 * 86400.0
    stores.jobs.expire()
    assert stores.audits.tally() == {}


def test_an_audit_of_a_render_that_failed_is_gone(stores):
    entry = promoted(stores, "1")
    stores.jobs.submit(watched(entry.id))
    assert stores.renders.claim(Lane(name="lane", models=("m",)))
    (audit,) = stores.audits.open()
    stores.audits.gone(audit.id, "the video failed")
    assert stores.audits.open() == [] and stores.audits.verdicts(entry.id, 0.0, 5) == []
    assert kinds(stores) == [(1, "promoted")]
