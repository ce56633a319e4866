"""LoRAs of tenants and profiles of models."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from sakuga.errors import NotFoundError
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


def test_profiles_have_versions_and_can_be_rolled_back(stores):
    first = stores.profiles.add("m", "turbo", {"num_inference_steps": 4}, {"psnr_db": 30.0})
    second = stores.profiles.add("m", "turbo", {"num_inference_steps": 3}, {"psnr_db": 29.0})
    assert (first.version, second.version) == (1, 2)
    other = stores.profiles.add("n", "turbo", {}, {})
    calm = stores.profiles.add("m", "calm", {}, {})
    assert other.version == 1
    assert list(stores.profiles.current("m")) == [calm, second]
    stores.profiles.retire(second.id)
    stores.profiles.retire(second.id)
    assert list(stores.profiles.current("m")) == [calm, first]
    assert stores.profiles.add("m", "turbo", {}, {}).version == 3, "a number is not given twice"
    with pytest.raises(NotFoundError):
        stores.profiles.retire("profile_0")


def test_versions_of_a_profile_that_is_promoted_twice_at_once(stores):
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda steps: stores.profiles.add("m", "turbo", {"steps": steps}, {}), range(2)))
    assert {entry.version for entry in made} == {1, 2}
