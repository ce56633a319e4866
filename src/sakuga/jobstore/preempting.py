"""Making room: urgent renders that wait get the lanes of renders that can wait.

A lane that is asked stops at its next step, saves, and claims again.

Run: pytest tests/unit/test_jobstore_preempt.py
"""

from collections.abc import Mapping

from sqlalchemy import Connection, Row, exists, func, select, update

from sakuga.jobstore.claiming import may_have
from sakuga.jobstore.queue import Running, to_yield
from sakuga.jobstore.schema import IS_QUEUED, IS_RUNNING, RUNNING, attempts, renders
from sakuga.jobstore.values import PRIORITIES

YIELDED = "yielded"
FREED_S = 2.0
"""A lane that has made room claims within this time."""


def num_waiting(connection: Connection, now: float, after_s: float) -> Mapping[str, int]:
    """Urgent renders that no idle lane has taken for so long, by model."""
    urgent = (IS_QUEUED, renders.c.priority == PRIORITIES["interactive"], renders.c.created_at <= now - after_s)
    wanted = select(renders.c.model, func.count()).where(*urgent, may_have(now)).group_by(renders.c.model)
    return dict(connection.execute(wanted).all())


def ask(connection: Connection, waiting: Mapping[str, int], now: float) -> int:
    """As many lanes as there are renders that wait, the cheapest first; how many beyond those asked before."""
    is_batch = (IS_RUNNING, renders.c.priority == PRIORITIES["batch"], renders.c.model.in_(list(waiting)))
    running = connection.execute(select(renders).where(*is_batch).order_by(renders.c.id).with_for_update()).all()
    freed = _num_freed(connection, list(waiting), now)
    asked: list[str] = []
    for model, number in waiting.items():
        of_model = [_running(row) for row in running if row.model == model]
        asked += to_yield(of_model, number, freed.get(model, 0))
    connection.execute(update(renders).where(renders.c.id.in_(asked)).values(must_yield=True))
    return len(asked)


def _num_freed(connection: Connection, models: list[str], now: float) -> Mapping[str, int]:
    """Lanes that have just made room and hold nothing yet, by model."""
    holder = renders.alias()
    is_busy = exists().where(holder.c.state == RUNNING, holder.c.lane == attempts.c.lane)
    wanted = (
        select(renders.c.model, func.count(attempts.c.lane.distinct()))
        .join(renders, renders.c.id == attempts.c.render_id)
        .where(
            attempts.c.ended_at > now - FREED_S, attempts.c.outcome == YIELDED, renders.c.model.in_(models), ~is_busy
        )
        .group_by(renders.c.model)
    )
    return dict(connection.execute(wanted).all())


def _running(row: Row) -> Running:
    return Running(
        render_id=row.id, step_s=row.step_s, is_asked=row.must_yield, has_steps=row.step < row.num_steps
    )  # fmt: skip
