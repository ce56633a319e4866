"""The owner of a SQLite job store on a Ray cluster: one detached actor, found by name, that everybody asks.

SQLite wants one process for a file. Ray starts the actor again when it dies; until then its clients wait and ask once
more what bears a second time: a submission by its idempotency key, a publication by its prefix. The owner also runs the
store's keeper. PostgreSQL needs no owner.     Run: pytest tests/ray/test_store_actor.py
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import cast

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sakuga.errors import SakugaError, StoreError
from sakuga.jobstore import (
    ApiKeys,
    Audits,
    Batches,
    JobStore,
    LeasedRenders,
    LoraRegistry,
    ProfileRegistry,
    Stores,
    Webhooks,
    open_stores,
)
from sakuga.jobstore.keeper import Keeper
from sakuga.storage.objects import open_objects

NAME, NAMESPACE = "job-store", "sakuga"
PATIENCE_S = 30.0
"""How long a client waits for an owner that is not there."""
NUM_THREADS = 16
NUM_WAITING = 256
"""Lanes that wait for work at the same time; each has a thread that sleeps."""
WAITING = "waiting"

OPTIONS = {
    "name": NAME,
    "namespace": NAMESPACE,
    "lifetime": "detached",
    "get_if_exists": True,
    "num_cpus": 0,
    "max_restarts": -1,
    "max_concurrency": NUM_THREADS,
}

SIDES: dict[str, type] = {
    "jobs": JobStore,
    "renders": LeasedRenders,
    "keys": ApiKeys,
    "loras": LoraRegistry,
    "profiles": ProfileRegistry,
    "webhooks": Webhooks,
    "batches": Batches,
    "audits": Audits,
}
ONCE = {
    "jobs": {"submit"},
    "renders": set(),
    "keys": {"create"},
    "loras": {"delete"},
    "profiles": set(),
    "webhooks": set(),
    "batches": {"create"},
    "audits": set(),
}
"""Methods that are not the same done twice, or whose second time is an error.

What a lane writes is done once by its fence: the second time it hears that the lease is over. A claim whose answer got
lost ends with its lease."""


class StoreOwner:
    """Holds the file."""

    def __init__(self, url: str, lease_s: float, retention_s: float | None, objects: str | None) -> None:
        self._stores = open_stores(url, lease_s=lease_s, retention_s=retention_s)
        self._stores.renders.renew_all()  # before anybody is answered: a lane that was told too late would give up
        keeper = Keeper(self._stores, None if objects is None else open_objects(objects))
        threading.Thread(target=keeper.run, args=(threading.Event(),), name="keeper", daemon=True).start()

    def call(self, side: str, method: str, args: tuple, kwargs: dict) -> object:
        return getattr(getattr(self._stores, side), method)(*args, **kwargs)


class _Remote:
    """One side of the store, by the methods of the class that it stands for."""

    def __init__(self, owner: "ray.actor.ActorHandle", side: str) -> None:
        self._owner, self._side = owner, side

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name.startswith("_") or not callable(vars(SIDES[self._side]).get(name)):
            raise AttributeError(f"the {self._side} of a job store have no {name!r}")

        def ask(*args: object, **kwargs: object) -> object:
            method = self._owner.call.options(concurrency_group=WAITING) if name == "claim" else self._owner.call
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    return ray.get(method.remote(self._side, name, args, kwargs))
                except RayTaskError as error:
                    cause = error.cause
                    raise cause if isinstance(cause, SakugaError) else error from None
                except RayActorError as error:  # it is being started again
                    if not _bears_a_second_time(self._side, name, kwargs, args):
                        raise StoreError(f"whether {name} was done is not known, the jobs' owner died; look") from error
                    if time.monotonic() > deadline:
                        raise StoreError(
                            f"the owner of the job store does not come back: {error}; see its log"
                        ) from error
                    time.sleep(0.2)

        return ask


def _bears_a_second_time(side: str, name: str, kwargs: dict, args: tuple) -> bool:
    """Whether to do it twice is to do it once; what makes a job or a batch, by its key."""
    has_key = kwargs.get("idempotency_key") is not None or (name == "submit" and len(args) > 1)
    return name not in ONCE[side] or has_key


def connect(url: str, *, lease_s: float = 30.0, retention_s: float | None = None, objects: str | None = None) -> Stores:
    """The stores of this cluster, by their one owner for SQLite and directly for PostgreSQL.

    The owner is started by whoever comes first, with what that one gives: `retention_s` and `objects`, the address of
    the storage that is cleared of what nobody needs. PostgreSQL needs no owner; the actor only keeps the store there.
    """
    is_file = url.startswith("sqlite")
    here = None
    if is_file:
        url = f"sqlite:///{Path(url.removeprefix('sqlite:///')).resolve()}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # where the file is
    actor = ray.remote(concurrency_groups={WAITING: NUM_WAITING})(StoreOwner)  # ty: ignore[no-matching-overload]
    started = actor.options(**OPTIONS, scheduling_strategy=here)
    owner = cast("ray.actor.ActorHandle", started.remote(url, lease_s, retention_s, objects))
    if not is_file:
        return open_stores(url, lease_s=lease_s, retention_s=retention_s)
    return Stores(**{side.name: _Remote(owner, side.name) for side in fields(Stores)})  # ty: ignore  # they act alike


def end() -> None:
    """End this cluster's owner, if it has one; what was acknowledged is on disk."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(NAME, namespace=NAMESPACE))
