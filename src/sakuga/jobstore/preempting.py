"""Making room: urgent renders that wait get the lanes of renders that can wait.

A lane that is asked stops at its next step, saves, and claims again.

Run: pytest tests/unit/test_jobstore_preempt.py
"""

from collections import Counter
from collections.abc import Mapping

from sqlalchemy import Connection, Row, exists, func, select

from sakuga.jobstore.claiming import may_have
from sakuga.jobstore.queue import Running, to_yield
from sakuga.jobstore.schema import IS_QUEUED, IS_RUNNING, RUNNING, attempts, in_state, renders
from sakuga.jobstore.values import PRIORITIES

YIELDED = "yielded"
FREED_S = 2.0
"""A lane that has made room claims within this time."""


def to_ask(connection: Connection, now: float, after_s: float, *, lock: bool = False) -> list[str]:
    """Renders whose lanes are to be asked: as many as urgent ones wait that no idle lane has taken for `after_s`.

    The cheapest first; those that were asked before count.
    """
    is_batch = (IS_RUNNING, renders.c.priority == PRIORITIES["batch"])
    running = connection.execute(select(renders).where(*is_batch)).all()
    if lock:
        these = select(renders).where(renders.c.id.in_([row.id for row in running]), *is_batch)
        running = connection.execute(these.order_by(renders.c.id).with_for_update()).all()
    if all(row.must_yield for row in running):
        return []
    waiting = _num_waiting(connection, sorted({row.model for row in running}), now - after_s, now)
    freed = _num_freed(connection, now) if waiting else {}
    return [
        render_id
        for model, number in waiting.items()
        for render_id in to_yield([_running(row) for row in running if row.model == model], number, freed.get(model, 0))
    ]


def _num_waiting(connection: Connection, models: list[str], since: float, now: float) -> Mapping[str, int]:
    """Urgent renders that have been there so long, by model."""
    urgent = (IS_QUEUED, renders.c.priority == PRIORITIES["interactive"], renders.c.model.in_(models))
    wanted = select(renders.c.model, func.count()).where(*urgent, renders.c.created_at <= since, may_have(now))
    return dict(connection.execute(wanted.group_by(renders.c.model)).all())


def _num_freed(connection: Connection, now: float) -> Mapping[str, int]:
    """Lanes that have just made room and hold nothing yet, by model."""
    holder = renders.alias()
    is_busy = exists().where(in_state(RUNNING, holder), holder.c.lane == attempts.c.lane)
    # No join: SQLite would look at every render to find those of the last seconds' attempts.
    model = select(renders.c.model).where(renders.c.id == attempts.c.render_id).scalar_subquery()
    wanted = select(model, attempts.c.lane).distinct()
    wanted = wanted.where(attempts.c.ended_at > now - FREED_S, attempts.c.outcome == YIELDED, ~is_busy)
    return Counter(connection.execute(wanted).scalars())


def _running(row: Row) -> Running:
    return Running(
        render_id=row.id, step_s=row.step_s, is_asked=row.must_yield, has_steps=row.step < row.num_steps
    )  # fmt: skip
