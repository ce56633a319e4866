"""How jobs and renders end: in one transaction their state, their history, word to webhooks, and what to clear away.

Whoever changes a render locks it before its jobs, several in the order of their ids; so nobody waits in a ring.

Run: pytest tests/unit/test_jobstore.py
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from sqlalchemy import Connection, Row, and_, insert, select, update

from sakuga.jobstore.ids import new_id
from sakuga.jobstore.schema import (
    CANCELLED,
    COMPLETED,
    IN_FLIGHT,
    QUEUED,
    deliveries,
    events,
    garbage,
    jobs,
    renders,
    webhooks_off,
)
from sakuga.jobstore.values import attempt_prefix, passing_prefix, render_prefix

STALE_S = 3600.0
"""After which a lane that was given up for lost has stopped writing."""
NUM_AT_ONCE = 1000
"""Values in one statement; databases have limits."""

IS_LIVE = jobs.c.state.in_(IN_FLIGHT)

Item = TypeVar("Item")


def chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for first in range(0, len(items), NUM_AT_ONCE):
        yield items[first : first + NUM_AT_ONCE]


def add_events(
    connection: Connection, of: Iterable[tuple[str, str]], kind: str, data: Mapping[str, object], now: float
) -> None:
    """For these (job, tenant), in the transaction of the change that they tell of."""
    rows = [{"job_id": job, "tenant": tenant, "type": kind, "data": dict(data), "at": now} for job, tenant in of]
    if rows:
        connection.execute(insert(events), rows)


def live_jobs(connection: Connection, render_id: str) -> Sequence[Row]:
    """The jobs that still want this render."""
    wanted = select(jobs.c.id, jobs.c.tenant, jobs.c.webhook_url).where(jobs.c.render_id == render_id, IS_LIVE)
    return connection.execute(wanted).all()


def end_jobs(
    connection: Connection, ended: Sequence[Row], state: str, now: float, told: Mapping[str, object] | None = None
) -> None:
    """For good; those who asked for it will be told by webhook. `told` goes into the history."""
    for some in chunks(ended):
        these = jobs.c.id.in_([row.id for row in some])
        connection.execute(update(jobs).where(these).values(state=state, finished_at=now))
    add_events(connection, [(row.id, row.tenant) for row in ended], state, told or {}, now)
    _tell_webhooks(connection, [row for row in ended if row.webhook_url is not None], state, now)


def end_render(connection: Connection, row: Row, state: str, now: float, **values: object) -> None:
    """For good; what its attempts left in storage goes, once more when no lane can be writing there any more."""
    ended = {"state": state, "rest_s": 0.0, "snapshot_key": None} | values
    connection.execute(update(renders).where(renders.c.id == row.id).values(**ended))
    of_attempts = [attempt_prefix(row.tenant, row.id, fence) for fence in range(1, row.fence + (state != COMPLETED))]
    of_video = [passing_prefix(row.tenant, row.id, row.fence)] if state == COMPLETED else []
    throw_away(connection, of_attempts + of_video, now + STALE_S)
    throw_away(connection, [] if row.snapshot_key is None else [row.snapshot_key], now)
    throw_away(connection, [render_prefix(row.tenant, row.id)] if state == CANCELLED and row.fence else [], now)


def cancel_jobs(connection: Connection, job_ids: Collection[str], render_ids: Collection[str], now: float) -> list[Row]:
    """End those that have not ended, and the renders that nobody wants any more; these renders, locked."""
    wanted = select(renders).where(renders.c.id.in_(render_ids)).order_by(renders.c.id).with_for_update()
    locked = connection.execute(wanted).all()
    mine = select(jobs.c.id, jobs.c.tenant, jobs.c.webhook_url).where(jobs.c.id.in_(job_ids), IS_LIVE)
    end_jobs(connection, connection.execute(mine).all(), CANCELLED, now)
    others = select(jobs.c.render_id).where(jobs.c.render_id.in_(render_ids), IS_LIVE)
    wanted_by_others = set(connection.execute(others).scalars())
    for row in locked:
        if row.id in wanted_by_others or row.state not in IN_FLIGHT:
            continue
        if row.state == QUEUED:
            end_render(connection, row, CANCELLED, now)
        else:
            connection.execute(update(renders).where(renders.c.id == row.id).values(must_cancel=True))
    return list(locked)


def throw_away(connection: Connection, names: Iterable[str], not_before: float) -> None:
    """Objects, or all whose names begin so, to be removed from storage unless a job holds them then."""
    rows = [{"name": name, "not_before": not_before} for name in names]
    if rows:
        connection.execute(insert(garbage), rows)


def _tell_webhooks(connection: Connection, ended: Sequence[Row], state: str, now: float) -> None:
    """A delivery for each; to an address that is switched off, one that has failed already."""
    if not ended:
        return
    urls = {row.webhook_url for row in ended}
    off = and_(webhooks_off.c.tenant == ended[0].tenant, webhooks_off.c.url.in_(urls))
    silent = set(connection.execute(select(webhooks_off.c.url).where(off)).scalars())
    rows = [
        {
            "id": new_id("msg"), "tenant": row.tenant, "job_id": row.id, "url": row.webhook_url,
            "type": f"video.{state}", "data": {"id": row.id, "status": state},
            "state": "failed" if row.webhook_url in silent else "pending",
            "attempt": 0, "created_at": now, "due_at": now,
        }
        for row in ended
    ]  # fmt: skip
    connection.execute(insert(deliveries), rows)
