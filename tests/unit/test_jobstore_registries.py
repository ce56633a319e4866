"""LoRAs of tenants."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from sakuga.errors import ConflictError, NotFoundError
from sakuga.jobstore import Lane, NewJob

FILE = {"name": "fairy", "num_bytes": 10, "passport": {"rank": 8}}
SHA = "c" * 64
JOB = NewJob(
    tenant="app", render_key="a" * 64, model="m", recipe={}, request={}, num_steps=2, work_s=1.0,
    inputs={f"lora:{SHA}": "app/loras/1"},
)  # fmt: skip
LANE = Lane(name="lane", models=("m",))


def test_the_same_file_of_a_tenant_is_the_same_entry_and_the_second_object_goes(stores):
    entry = stores.loras.add("app", sha256=SHA, object_name="app/loras/1", **FILE)
    assert stores.loras.get("app", entry.id) == entry and entry.passport == {"rank": 8}
    assert stores.loras.add("app", sha256=SHA, object_name="app/loras/2", **FILE | {"name": "again"}) == entry
    assert stores.jobs.garbage() == ["app/loras/2"]
    other = stores.loras.add("another", sha256=SHA, object_name="another/loras/1", **FILE)
    assert other.id != entry.id
    with pytest.raises(NotFoundError):
        stores.loras.get("app", other.id)
    with pytest.raises(NotFoundError):
        stores.loras.delete("app", other.id)


def test_listing_loras(stores):
    made = [stores.loras.add("app", sha256=f"{n:064d}", object_name=f"app/loras/{n}", **FILE) for n in range(3)]
    page, more = stores.loras.page("app", limit=2)
    assert page == [made[2], made[1]] and more
    assert stores.loras.page("app", made[1].id) == ([made[0]], False)
    assert stores.loras.page("another") == ([], False)


def test_a_deleted_lora_stays_in_storage_for_the_renders_under_way(stores):
    entry = stores.loras.add("app", sha256=SHA, object_name="app/loras/1", **FILE)
    job = stores.jobs.submit(JOB)
    stores.loras.delete("app", entry.id)
    with pytest.raises(NotFoundError):
        stores.loras.delete("app", entry.id)
    assert stores.jobs.garbage() == []
    stores.renders.failed(stores.renders.claim(LANE), "E_LORA", "rank 3")
    assert stores.jobs.garbage() == []
    stores.renders.failed(stores.renders.claim(LANE), "E_LORA", "rank 3")
    assert stores.jobs.get("app", job.id).state == "failed"
    assert stores.jobs.garbage() == ["app/loras/1"]


@pytest.mark.parametrize("place", ["fields", "reference"])
def test_a_lora_that_a_profile_names_stays_until_that_is_retired(stores, place):
    entry = stores.loras.add("app", sha256=SHA, object_name="app/loras/1", **FILE)
    named = {place: {"loras": [{"name": entry.id, "weight": 0.8}]}}

    def promoted(content: str, **fields: object):
        profile = {"name": "turbo", "model": "m", "canary_share": 0.1, "bars": {}}
        return stores.profiles.promote("app", profile | fields, content * 64)

    def refused() -> None:
        with pytest.raises(ConflictError, match=f"{entry.id}' is used by version 1 of profile 'turbo'; let an admin"):
            stores.loras.delete("app", entry.id)

    first = promoted("1", **named)
    refused()
    stores.profiles.activate(first.id)
    refused()
    second = promoted("2")
    stores.profiles.activate(second.id)
    refused()  # replaced: it comes back when the second one ends
    stores.profiles.retire(first.id)
    stores.loras.delete("app", entry.id)


def test_a_lora_that_is_added_again_is_not_removed(stores):
    entry = stores.loras.add("app", sha256=SHA, object_name="app/loras/1", **FILE)
    stores.loras.delete("app", entry.id)
    assert stores.loras.add("app", sha256=SHA, object_name="app/loras/1", **FILE).id != entry.id
    assert stores.jobs.garbage() == []


def test_a_job_that_is_deleted_leaves_the_lora_alone(stores):
    stores.loras.add("app", sha256=SHA, object_name="app/loras/1", **FILE)
    stores.jobs.delete("app", stores.jobs.submit(JOB).id)
    assert stores.jobs.garbage() == []


def test_the_same_lora_from_many_sides_at_once(stores):
    def add(number: int):
        return stores.loras.add("app", sha256=SHA, object_name=f"app/loras/{number}", **FILE)

    with ThreadPoolExecutor(8) as threads:
        entries = list(threads.map(add, range(16)))
    assert len({entry.id for entry in entries}) == 1
    assert len(stores.jobs.garbage()) == 15
