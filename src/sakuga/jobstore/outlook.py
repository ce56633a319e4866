"""What the queue looks like: how much work there is, where a job stands, what a tenant has used.

Seconds are the cost model's; what a tenant has used fades, and what its lanes have under way counts as used, so that a
tenant that comes first does not get every lane.     Run: pytest tests/unit/test_jobstore_outlook.py
"""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

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
    positions: Mapping[str, int]
    ahead_s: Mapping[str, float]
    """Both by render."""
    ends: Mapping[tuple[str, int], Place]
    """Where a newcomer would stand, by model and class."""


@dataclass(frozen=True, slots=True)
class _Line:
    """The renders of one model and class, by deadline and age."""

    ids: list[str] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    rests_s: list[float] = field(default_factory=list)


class Standings:
    """Places of jobs; a long queue is counted through once a second at most, whoever asks."""

    def __init__(self, database: Database) -> None:
        self._database, self._lock = database, threading.Lock()
        self._last: _Standing | None = None

    def place(self, job: Job) -> Place:
        if job.state != QUEUED:
            return Place()
        standing = self._current()
        if job.render_id in standing.positions:
            return Place(position=standing.positions[job.render_id], ahead_s=standing.ahead_s[job.render_id])
        return standing.ends.get((job.model, PRIORITIES[job.priority]), Place())

    def newcomer(self, model: str, priority: str) -> Place:
        """Where a job would stand that was submitted now."""
        return self._current().ends.get((model, PRIORITIES[priority]), Place())

    def _current(self) -> _Standing:
        with self._lock:
            last = self._last
            if last is None or len(last.positions) < NUM_SMALL or time.monotonic() - last.made_at > MAX_AGE_S:
                last = self._last = self._look()
            return last

    def _look(self) -> _Standing:
        made_at, lines = time.monotonic(), defaultdict[tuple[str, int], _Line](_Line)
        with self._database.reading() as connection:
            now = self._database.now(connection)
            for model, priority, render_id, tenant, rest_s in connection.execute(_QUEUE):
                line = lines[model, priority]
                line.ids.append(render_id)
                line.tenants.append(tenant)
                line.rests_s.append(rest_s)
            running = dict(connection.execute(_RUNNING_S).all())
            used = dict(connection.execute(select(pledged_s())).all())
            for row in connection.execute(select(usage)):
                used[row.tenant] = used.get(row.tenant, 0.0) + faded(row.gpu_s, now - row.at)
        positions: dict[str, int] = {}
        all_ahead_s: dict[str, float] = {}
        ends: dict[tuple[str, int], Place] = {}
        for model in {model for model, _ in lines}:
            position, ahead_s = 0, running.get(model, 0.0)
            for priority in sorted(PRIORITIES.values(), reverse=True):
                line = lines[model, priority]
                for index in in_order(line.tenants, line.rests_s, used):
                    positions[line.ids[index]], all_ahead_s[line.ids[index]] = position, ahead_s
                    position, ahead_s = position + 1, ahead_s + line.rests_s[index]
                ends[model, priority] = Place(position=position, ahead_s=ahead_s)
        return _Standing(made_at=made_at, positions=positions, ahead_s=all_ahead_s, ends=ends)


_QUEUE = (
    select(renders.c.model, renders.c.priority, renders.c.id, renders.c.tenant, renders.c.rest_s)
    .where(IS_QUEUED)
    .order_by(renders.c.due_at, renders.c.created_at, renders.c.tenant, renders.c.id)
)
_RUNNING_S = select(renders.c.model, func.sum(renders.c.rest_s)).where(IS_RUNNING).group_by(renders.c.model)
