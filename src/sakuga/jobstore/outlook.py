"""What the queue looks like: how much work there is, where a job stands, what a tenant has used.

Seconds are the cost model's; what a tenant has used fades, and what its lanes have under way counts as used, so that a
tenant that comes first does not get every lane.     Run: pytest tests/unit/test_jobstore_outlook.py
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Connection, func, select

from sakuga.jobstore.database import Database
from sakuga.jobstore.queue import faded, in_order
from sakuga.jobstore.schema import IS_IN_FLIGHT, IS_QUEUED, IS_RUNNING, QUEUED, renders, usage
from sakuga.jobstore.values import PRIORITIES, Backlog, Job, Place

NUM_SMALL = 500
"""A shorter queue is looked at each time."""
MAX_AGE_S = 1.0
"""Of what is told of a longer one."""


def backlog(connection: Connection, now: float) -> Mapping[str, Backlog]:
    """By model; models without any work are left out."""
    columns = (renders.c.model, func.sum(renders.c.rest_s), func.count(), func.min(renders.c.created_at))
    found: dict[str, dict[str, float]] = {}
    for condition, kind in ((IS_QUEUED, "queued"), (IS_RUNNING, "running")):
        for model, rest_s, number, oldest in connection.execute(
            select(*columns).where(condition).group_by(renders.c.model)
        ):
            values = found.setdefault(model, {})
            values |= {f"{kind}_s": float(rest_s), f"num_{kind}": number}
            if kind == "queued":
                values["oldest_wait_s"] = max(0.0, now - oldest)
    return {model: Backlog(**values) for model, values in found.items()}  # ty: ignore


def in_flight_s(connection: Connection, tenant: str) -> float:
    wanted = select(func.sum(renders.c.rest_s)).where(renders.c.tenant == tenant, IS_IN_FLIGHT)
    return float(connection.execute(wanted).scalar() or 0.0)


def used_gpu_s(connection: Connection, tenant: str, now: float) -> float:
    row = connection.execute(select(usage).where(usage.c.tenant == tenant)).first()
    return 0.0 if row is None else faded(row.gpu_s, now - row.at)


def pledged_s():
    """What is left of the renders that each tenant's lanes have, to be counted as used."""
    return (
        select(renders.c.tenant, func.sum(renders.c.rest_s).label("rest_s"))
        .where(IS_RUNNING)
        .group_by(renders.c.tenant)
        .subquery()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """The queue at a moment."""

    made_at: float
    places: Mapping[str, Place]
    ends: Mapping[tuple[str, int], Place]
    """Where a newcomer would stand, by model and class."""


class Standings:
    """Places of jobs; a long queue is counted through once a second at most, whoever asks."""

    def __init__(self, database: Database) -> None:
        self._database, self._lock = database, threading.Lock()
        self._last: _Standing | None = None

    def place(self, job: Job) -> Place:
        if job.state != QUEUED:
            return Place()
        standing = self._current()
        known = standing.places.get(job.render_id)
        if known is not None:
            return known
        return standing.ends.get((job.model, PRIORITIES[job.priority]), Place())

    def _current(self) -> _Standing:
        with self._lock:
            last = self._last
            if last is None or len(last.places) < NUM_SMALL or time.monotonic() - last.made_at > MAX_AGE_S:
                last = self._last = self._look()
            return last

    def _look(self) -> _Standing:
        made_at = time.monotonic()
        with self._database.reading() as connection:
            now = self._database.now(connection)
            rows = connection.execute(_QUEUE).all()
            running = dict(connection.execute(_RUNNING_S).all())
            pledged = dict(connection.execute(select(pledged_s())).all())
            used = {row.tenant: faded(row.gpu_s, now - row.at) for row in connection.execute(select(usage))}
        used = {tenant: used.get(tenant, 0.0) + pledged.get(tenant, 0.0) for tenant in used.keys() | pledged.keys()}
        places: dict[str, Place] = {}
        ends: dict[tuple[str, int], Place] = {}
        for model, of_model in groupby(rows, key=lambda row: row.model):
            of_class = {priority: list(some) for priority, some in groupby(of_model, key=lambda row: row.priority)}
            position, ahead_s = 0, running.get(model, 0.0)
            for priority in sorted(PRIORITIES.values(), reverse=True):
                for row in in_order(of_class.get(priority, ()), used):
                    places[row.id] = Place(position=position, ahead_s=ahead_s)
                    position, ahead_s = position + 1, ahead_s + row.rest_s
                ends[model, priority] = Place(position=position, ahead_s=ahead_s)
        return _Standing(made_at=made_at, places=places, ends=ends)


_QUEUE = (
    select(
        renders.c.model, renders.c.priority, renders.c.id, renders.c.tenant, renders.c.due_at, renders.c.created_at,
        renders.c.rest_s,
    )
    .where(IS_QUEUED)
    .order_by(
        renders.c.model, renders.c.priority.desc(), renders.c.tenant, renders.c.due_at, renders.c.created_at,
        renders.c.id,
    )
)  # fmt: skip
_RUNNING_S = select(renders.c.model, func.sum(renders.c.rest_s)).where(IS_RUNNING).group_by(renders.c.model)
