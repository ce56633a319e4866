"""The job store behind its owner: the same answers and errors, and nothing lost when the owner is killed."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import ray

from sakuga.errors import LeaseLostError, NotFoundError, StoreError
from sakuga.farm import store_actor
from sakuga.farm.store_actor import connect
from sakuga.jobstore import Artifact, Idempotency, Lane, NewJob
from sakuga.storage.objects import FolderObjects

pytestmark = pytest.mark.ray

JOB = NewJob(
    tenant="app", render_key="a" * 64, model="wan-mini", recipe={}, request={}, num_steps=20, work_s=5.0
)  # fmt: skip
LANE = Lane(name="lane", models=("wan-mini",))
KEY = Idempotency(owner="key", key="once", fingerprint="f" * 64)
VIDEO = Artifact(prefix="app/1", sha256="b" * 64, num_bytes=10)


@pytest.fixture
def stores(ray_cluster, tmp_path):
    yield connect(f"sqlite:///{tmp_path / 'jobs.sqlite'}", objects=str(tmp_path / "objects"))
    ray.kill(ray.get_actor(store_actor.NAME, namespace=store_actor.NAMESPACE))


def test_clients_share_one_owner_and_its_errors_are_the_stores(stores, tmp_path):
    store, renders = stores.jobs, stores.renders
    job = store.submit(JOB)
    again = connect(f"sqlite:///{tmp_path / 'another.sqlite'}")
    assert again.jobs.get("app", job.id) == job, "found by name, whatever the address"
    with pytest.raises(NotFoundError, match="there is no job"):
        store.get("another", job.id)
    claim = renders.claim(LANE)
    renders.publish(claim, VIDEO)
    with pytest.raises(LeaseLostError):
        renders.heartbeat(claim, 1)
    with pytest.raises(AttributeError, match="have no 'engine'"):
        _ = store.engine


def kill(owner_pid: int) -> None:
    os.kill(owner_pid, signal.SIGKILL)


def pid_of_owner() -> int:
    owner = ray.get_actor(store_actor.NAME, namespace=store_actor.NAMESPACE)
    return ray.get(owner.__ray_call__.remote(lambda self: os.getpid()))


@pytest.fixture
def owner_pid(stores):
    return pid_of_owner()


def test_an_owner_that_is_killed_comes_back_with_every_job(stores, owner_pid):
    store, renders = stores.jobs, stores.renders
    job = store.submit(JOB, KEY)
    claim = renders.claim(LANE)
    kill(owner_pid)
    assert store.submit(JOB, idempotency_key=KEY).id == job.id, "asked again, not submitted again"
    assert renders.heartbeat(claim, 3).cancel is False
    renders.publish(claim, VIDEO)
    assert store.get("app", job.id).state == "completed"


def test_what_would_be_done_twice_is_not_asked_again(stores, owner_pid):
    kill(owner_pid)
    with pytest.raises(StoreError, match="whether submit was done is not known"):
        stores.jobs.submit(JOB)
    assert stores.jobs.counts()["queued"] <= 1
    for side, names in store_actor.ONCE.items():
        assert not [name for name in names if not hasattr(store_actor.SIDES[side], name)]


def test_every_side_is_served(stores):
    key, secret = stores.keys.create("app", quota_gpu_s=60.0)
    assert stores.keys.authenticate(secret) == key
    lora = stores.loras.add("app", name="l", sha256="c" * 64, num_bytes=1, object_name="app/loras/1", passport={})
    assert stores.loras.get("app", lora.id) == lora
    chosen = {"model": "wan-mini", "name": "turbo", "canary_share": 0.1, "bars": {}}
    profile = stores.profiles.promote("app", chosen, "a" * 64)
    assert stores.profiles.current("wan-mini") == [profile]
    batch = stores.batches.create("app", [replace(JOB, webhook_url="https://app.example")])
    stores.batches.cancel("app", batch.id)
    (delivery,) = stores.webhooks.due()
    stores.webhooks.delivered(delivery.id, 200)
    assert stores.webhooks.page("app")[0][0].state == "delivered"
    assert stores.jobs.backlog() == {} and stores.jobs.counts()["cancelled"] == 1


def test_lanes_that_wait_leave_room_for_everybody_else(stores):
    num_waiting = 3 * store_actor.NUM_THREADS
    with ThreadPoolExecutor(num_waiting) as threads:
        lanes = [Lane(name=f"lane-{number}", models=("wan-mini",)) for number in range(num_waiting)]
        waiting = [threads.submit(stores.renders.claim, lane, wait_s=60.0) for lane in lanes]
        made = stores.batches.create(
            "app", [replace(JOB, render_key=f"{number:064d}") for number in range(num_waiting)]
        )
        claims = [future.result(timeout=60) for future in waiting]
    assert len({claim.render_id for claim in claims}) == num_waiting
    assert stores.batches.get("app", made.id).counts == {"running": num_waiting}


def test_the_owner_keeps_the_store(stores, tmp_path):
    (tmp_path / "file").write_bytes(b"bytes")
    FolderObjects(tmp_path / "objects").put("app/left", tmp_path / "file")
    stores.jobs.discard(["app/left"])
    batch = stores.jobs.submit(replace(JOB, priority="batch"))
    claim = stores.renders.claim(LANE)
    stores.jobs.submit(replace(JOB, render_key="c" * 64, priority="interactive"))
    wait_for(lambda: stores.renders.heartbeat(claim, 1).yield_lane)
    assert claim.render_id == batch.render_id
    wait_for(lambda: not (tmp_path / "objects" / "app" / "left").exists(), limit_s=90.0)  # two sweeps


def wait_for(is_so, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_lanes_that_could_not_reach_the_owner_keep_their_renders(ray_cluster, tmp_path):
    stores = connect(f"sqlite:///{tmp_path / 'jobs.sqlite'}", lease_s=3.0)
    try:
        job = stores.jobs.submit(JOB)
        claim = stores.renders.claim(LANE)
        pid = pid_of_owner()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(max(0.0, claim.lease_until - time.time()))
        kill(pid)
        stores.renders.publish(claim, VIDEO)
        assert stores.jobs.get("app", job.id).state == "completed"
    finally:
        ray.kill(ray.get_actor(store_actor.NAME, namespace=store_actor.NAMESPACE))
