"""Taking a render out of the queue for a lane.

Class by class, what waits is summed up by model and tenant, from an index that holds queued renders only and all that
is asked of them: 2 ms for 10,000. Then the first render of the chosen group is locked, or the next behind it: this lane
may be kept away from the first, and on PostgreSQL another lane may reach for it at the same moment.

Run: pytest tests/unit/test_jobstore.py
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import (
    Connection,
    Row,
    Text,
    and_,
    cast,
    func,
    insert,
    select,
    update,
)

from sakuga.jobstore.ending import IS_LIVE, add_events, live_jobs
from sakuga.jobstore.outlook import pledged_s
from sakuga.jobstore.queue import Candidate, choose, faded
from sakuga.jobstore.schema import IS_QUEUED, RUNNING, attempts, jobs, renders, usage
from sakuga.jobstore.values import PRIORITIES, Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A lane that asks for work."""

    name: str
    models: Collection[str]
    """That it can render."""
    loaded: frozenset[str] = frozenset()


def take(connection: Connection, lane: Lane, now: float, lease_s: float) -> Claim | None:
    """The render that this lane should do now, leased; None when there is none for it."""
    for priority in sorted(PRIORITIES.values(), reverse=True):
        groups = _groups(connection, priority, lane, now)
        while (chosen := choose(groups, lane.loaded, now)) is not None:
            render_id = _lock_first(connection, chosen, lane, now)
            if render_id is not None:
                return _lease(connection, render_id, lane, now, lease_s)
            groups = [group for group in groups if group is not chosen]
    return None


def _groups(connection: Connection, priority: int, lane: Lane, now: float) -> list[Candidate]:
    of_group = (renders.c.model, renders.c.tenant)
    waiting = (
        select(
            *of_group, func.min(renders.c.due_at).label("due_at"), func.min(renders.c.created_at).label("created_at")
        )
        .where(IS_QUEUED, renders.c.priority == priority, renders.c.model.in_(list(lane.models)))
        .group_by(*of_group)
        .subquery()
    )
    pledged = pledged_s()
    wanted = (
        select(waiting, usage.c.gpu_s, usage.c.at, pledged.c.rest_s)
        .outerjoin(usage, usage.c.tenant == waiting.c.tenant)
        .outerjoin(pledged, pledged.c.tenant == waiting.c.tenant)
    )
    return [
        Candidate(
            tenant=row.tenant, model=row.model, priority=priority, due_at=row.due_at, created_at=row.created_at,
            used_gpu_s=(0.0 if row.gpu_s is None else faded(row.gpu_s, now - row.at)) + (row.rest_s or 0.0),
        )
        for row in connection.execute(wanted)
    ]  # fmt: skip


def may_have(now: float, lane: str | None = None):
    """Renders that are not parked and not kept away from this lane."""
    is_parked = and_(renders.c.not_before.is_not(None), renders.c.not_before > now)
    if lane is None:
        return ~is_parked
    names = cast(renders.c.avoid, Text)
    is_avoided = and_(
        renders.c.avoid_until.is_not(None), renders.c.avoid_until > now, names.contains(f'"{lane}"', autoescape=True)
    )
    return and_(~is_parked, ~is_avoided)


def _lock_first(connection: Connection, group: Candidate, lane: Lane, now: float) -> str | None:
    mine = and_(
        IS_QUEUED,
        renders.c.priority == group.priority,
        renders.c.model == group.model,
        renders.c.tenant == group.tenant,
        may_have(now, lane.name),
    )
    first = select(renders.c.id).where(mine).order_by(renders.c.due_at, renders.c.created_at, renders.c.id).limit(1)
    return connection.execute(first.with_for_update(skip_locked=True)).scalar()


def _lease(connection: Connection, render_id: str, lane: Lane, now: float, lease_s: float) -> Claim:
    leased = {
        "state": RUNNING, "fence": renders.c.fence + 1, "lane": lane.name, "lease_until": now + lease_s,
        "started_at": now, "charged_at": now, "must_yield": False, "not_before": None,
    }  # fmt: skip
    this = update(renders).where(renders.c.id == render_id).values(**leased)
    row = connection.execute(this.returning(renders)).one()
    attempt = {"render_id": row.id, "fence": row.fence, "lane": lane.name, "started_at": now, "first_step": row.step}
    connection.execute(insert(attempts).values(**attempt))
    _say_running(connection, row, now)
    return Claim(
        render_id=row.id, tenant=row.tenant, fence=row.fence, lane=lane.name, lease_until=row.lease_until,
        model=row.model, recipe=row.recipe, inputs=row.inputs, num_steps=row.num_steps, work_s=row.work_s,
        step_s=row.step_s, created_at=row.created_at, first_step=row.step, snapshot_key=row.snapshot_key,
    )  # fmt: skip


def _say_running(connection: Connection, row: Row, now: float) -> None:
    running = {"state": RUNNING, "started_at": func.coalesce(jobs.c.started_at, now)}
    connection.execute(update(jobs).where(jobs.c.render_id == row.id, IS_LIVE).values(**running))
    told = {"step": row.step, "num_steps": row.num_steps}
    add_events(connection, [(job.id, job.tenant) for job in live_jobs(connection, row.id)], RUNNING, told, now)
