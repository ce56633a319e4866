"""The job store behind its owner: the same answers and errors, and nothing lost when the owner is killed."""

import os
import signal

import pytest
import ray

from sakuga.errors import LeaseLostError, NotFoundError
from sakuga.farm import store_actor
from sakuga.farm.store_actor import connect
from sakuga.jobstore import Artifact, Idempotency, Lane, NewJob

pytestmark = pytest.mark.ray

JOB = NewJob(
    tenant="app", render_key="a" * 64, model="wan-mini", recipe={}, request={}, num_steps=20, work_s=5.0
)  # fmt: skip
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
    claim = renders.claim(Lane(name="lane", models=("wan-mini",)))
    renders.publish(claim, VIDEO)
    with pytest.raises(LeaseLostError):
        renders.heartbeat(claim, 1)
    with pytest.raises(AttributeError, match="have no 'engine'"):
        _ = store.engine


def test_an_owner_that_is_killed_comes_back_with_every_job(stores):
    store, renders = stores.jobs, stores.renders
    job = store.submit(JOB, KEY)
    claim = renders.claim(Lane(name="lane", models=("wan-mini",)))
    owner = ray.get_actor(store_actor.NAME, namespace=store_actor.NAMESPACE)
    pid = ray.get(owner.__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    assert store.submit(JOB, KEY).id == job.id, "asked again, not submitted again"
    assert renders.heartbeat(claim, 3).cancel is False
    renders.publish(claim, VIDEO)
    assert store.get("app", job.id).state == "completed"
