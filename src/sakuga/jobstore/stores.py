"""All sides of a job store, on one database.     Run: pytest tests/unit/test_jobstore.py"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine

from sakuga.jobstore.audits import Audits
from sakuga.jobstore.batches import Batches
from sakuga.jobstore.database import open_database
from sakuga.jobstore.keys import ApiKeys
from sakuga.jobstore.leases import LEASE_S, LeasedRenders
from sakuga.jobstore.profiles import ProfileRegistry
from sakuga.jobstore.registries import LoraRegistry
from sakuga.jobstore.store import JobStore
from sakuga.jobstore.webhooks import Webhooks


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The sides; each method of each is one transaction or a few."""

    jobs: JobStore
    renders: LeasedRenders
    keys: ApiKeys
    loras: LoraRegistry
    profiles: ProfileRegistry
    webhooks: Webhooks
    batches: Batches
    audits: Audits


def open_stores(
    url: str,
    *,
    lease_s: float = LEASE_S,
    retention_s: float | None = None,
    clock: Callable[[], float] | None = None,
) -> Stores:
    """On `sqlite:///FILE` or `postgresql://...`; raises as `open_database` does.

    Jobs that have ended are deleted after `retention_s`; None: never. `clock` takes the place of the database's own.
    """
    return stores_on(open_database(url), lease_s=lease_s, retention_s=retention_s, clock=clock)


def stores_on(
    engine: Engine,
    *,
    lease_s: float = LEASE_S,
    retention_s: float | None = None,
    clock: Callable[[], float] | None = None,
) -> Stores:
    """On a database that is open."""
    store = JobStore(engine, clock, retention_s=retention_s)
    return Stores(
        jobs=store,
        renders=LeasedRenders(store, lease_s),
        keys=ApiKeys(store),
        loras=LoraRegistry(store),
        profiles=ProfileRegistry(store),
        webhooks=Webhooks(store),
        batches=Batches(store),
        audits=Audits(store),
    )
