"""The owner of a SQLite job store on a Ray cluster: one detached actor, found by name, that everybody asks.

SQLite wants one process for a file. Ray starts the actor again when it dies; until then its clients wait and ask once
more, which every method of the store bears: a submission by its idempotency key, a publication by its prefix.
PostgreSQL needs none of this.     Run: pytest tests/ray/test_store_actor.py
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sakuga.errors import SakugaError, StoreError
from sakuga.jobstore import JobStore, LeasedRenders, open_database

NAME, NAMESPACE = "job-store", "sakuga"
PATIENCE_S = 30.0
"""How long a client waits for an owner that is not there."""


OPTIONS = {
    "name": NAME,
    "namespace": NAMESPACE,
    "lifetime": "detached",
    "get_if_exists": True,
    "num_cpus": 0,
    "max_restarts": -1,
    "max_concurrency": 16,
}


class StoreOwner:
    """Holds the file; `side` is "store" or "renders"."""

    def __init__(self, url: str, lease_s: float) -> None:
        store = JobStore(open_database(url))
        self._sides = {"store": store, "renders": LeasedRenders(store, lease_s)}

    def call(self, side: str, method: str, args: tuple, kwargs: dict) -> object:
        return getattr(self._sides[side], method)(*args, **kwargs)


class _Remote:
    """One side of the store, by the methods of the class that it stands for."""

    def __init__(self, owner: "ray.actor.ActorHandle", side: str, methods: frozenset[str]) -> None:
        self._owner, self._side, self._methods = owner, side, methods

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name not in self._methods:
            raise AttributeError(f"the {self._side} of a job store has no {name!r}")

        def ask(*args: object, **kwargs: object) -> object:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    return ray.get(self._owner.call.remote(self._side, name, args, kwargs))
                except RayTaskError as error:
                    cause = error.cause
                    raise cause if isinstance(cause, SakugaError) else error from None
                except RayActorError as error:  # it is being started again
                    if not _bears_a_second_time(name, args, kwargs):
                        raise StoreError(f"whether {name} was done is not known, the jobs' owner died; look") from error
                    if time.monotonic() > deadline:
                        raise StoreError(
                            f"the owner of the job store does not come back: {error}; see its log"
                        ) from error
                    time.sleep(0.2)

        return ask


SAFE = frozenset(
    ("get", "page", "events_after", "queued_work_s", "cancel", "heartbeat", "saved", "publish", "reap", "ask_to_yield")
)


def _bears_a_second_time(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether to do it twice is to do it once; a submission by its key. A claim that got lost ends with its lease."""
    return name in SAFE or (name == "submit" and (len(args) > 1 or "idempotency_key" in kwargs))


def connect(url: str, *, lease_s: float = 30.0) -> tuple[JobStore, LeasedRenders]:
    """The store of this cluster, by its one owner for SQLite and directly for PostgreSQL."""
    if not url.startswith("sqlite"):
        store = JobStore(open_database(url))
        return store, LeasedRenders(store, lease_s)
    url = f"sqlite:///{Path(url.removeprefix('sqlite:///')).resolve()}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # where the file is
    started = ray.remote(StoreOwner).options(**OPTIONS, scheduling_strategy=here).remote(url, lease_s)
    owner = cast("ray.actor.ActorHandle", started)
    sides = {"store": JobStore, "renders": LeasedRenders}
    remote = [_Remote(owner, side, _public(kind)) for side, kind in sides.items()]
    return cast("JobStore", remote[0]), cast("LeasedRenders", remote[1])


def _public(kind: type) -> frozenset[str]:
    return frozenset(name for name, value in vars(kind).items() if callable(value) and not name.startswith("_"))
