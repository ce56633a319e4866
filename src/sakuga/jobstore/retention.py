"""Forgetting: deleted and expired jobs, with their prompts, their uploads and videos, and what attempts left behind.

Nothing is removed from storage here. Names go into a list, in the transaction that makes them unneeded, and whoever
clears storage away asks for those that are due and that no job holds. So what is to be stored can stand there before
it is: if its job never comes, it goes.     Run: pytest tests/unit/test_jobstore_retention.py
"""

from collections.abc import Sequence

from sqlalchemy import Connection, Row, and_, delete, exists, func, select, update

from sakuga.jobstore.ending import cancel_jobs, throw_away
from sakuga.jobstore.schema import (
    GONE,
    IN_FLIGHT,
    OPEN_AUDIT,
    STATES,
    artifacts,
    attempts,
    audits,
    batches,
    deliveries,
    events,
    garbage,
    idempotency,
    jobs,
    render_inputs,
    renders,
)
from sakuga.jobstore.values import Job, render_prefix

IDEMPOTENCY_S = 86400.0
TOMBSTONE_S = 7 * 86400.0
"""How long a deleted job's id, without anything that it was about, and a delivery are kept for the books."""
RETRY_S = 300.0
"""After which a name whose removal was not reported is given out again."""
LORA_ROLE = "lora:%"
ENDED = tuple(state for state in STATES if state not in IN_FLIGHT)


def forget(connection: Connection, job: Job | Row, now: float) -> bool:
    """A job and its prompt; with the last job of a render everything that there is of it. False: somebody else did.

    A render that other jobs share keeps its video.
    """
    (render,) = cancel_jobs(connection, [job.id], [job.render_id], now)
    emptied = {"is_deleted": True, "request": {}, "error_message": None, "webhook_url": None}
    mine = and_(jobs.c.id == job.id, jobs.c.is_deleted.is_(False))
    if not connection.execute(update(jobs).where(mine).values(**emptied)).rowcount:
        return False
    connection.execute(delete(events).where(events.c.job_id == job.id))
    of_job = and_(audits.c.job_id == job.id, audits.c.state.in_(OPEN_AUDIT))
    connection.execute(update(audits).where(of_job).values(state=GONE, reference={}, ended_at=now))
    if not _has_jobs(connection, jobs.c.render_id == job.render_id):
        _forget_render(connection, render, now)
    if job.batch_id is not None and not _has_jobs(connection, jobs.c.batch_id == job.batch_id):
        _forget_messages(connection, job.batch_id)
    return True


def expired(connection: Connection, before: float, limit: int) -> Sequence[Row]:
    """Jobs that ended before then."""
    wanted = select(jobs.c.id, jobs.c.render_id, jobs.c.batch_id).order_by(jobs.c.render_id)
    over = and_(jobs.c.is_deleted.is_(False), jobs.c.state.in_(ENDED), jobs.c.finished_at <= before)
    return connection.execute(wanted.where(over).limit(limit)).all()


def purge(connection: Connection, now: float, limit: int) -> None:
    """Records that nobody will ask for any more."""
    connection.execute(delete(idempotency).where(idempotency.c.created_at <= now - IDEMPOTENCY_S))
    old = now - TOMBSTONE_S
    connection.execute(delete(deliveries).where(deliveries.c.state != "pending", deliveries.c.created_at <= old))
    connection.execute(delete(audits).where(audits.c.state == GONE, audits.c.ended_at <= old))
    gone = select(jobs.c.id, jobs.c.render_id).where(
        jobs.c.is_deleted.is_(True), jobs.c.state.in_(ENDED), jobs.c.finished_at <= old
    )
    rows = connection.execute(gone.limit(limit)).all()
    connection.execute(delete(jobs).where(jobs.c.id.in_([row.id for row in rows])))
    bare = and_(
        renders.c.id.in_([row.render_id for row in rows]),
        renders.c.state.in_(ENDED),
        ~exists().where(jobs.c.render_id == renders.c.id),
    )
    alone = connection.execute(select(renders.c.id).where(bare)).scalars().all()
    for table in (attempts, render_inputs, artifacts):
        connection.execute(delete(table).where(table.c.render_id.in_(alone)))
    connection.execute(delete(renders).where(renders.c.id.in_(alone)))
    empty = and_(batches.c.created_at <= old, ~exists().where(jobs.c.batch_id == batches.c.id))
    connection.execute(delete(batches).where(empty))


def due_garbage(connection: Connection, now: float, limit: int) -> list[str]:
    """Names to be removed from storage now; given to nobody else for a while.

    A job's upload is no garbage: it comes here again with the job. A LoRA waits for the renders that are under way.
    """
    is_due = garbage.c.not_before <= now
    held = and_(render_inputs.c.name == garbage.c.name, render_inputs.c.role.not_like(LORA_ROLE))
    connection.execute(delete(garbage).where(is_due, exists().where(held)))
    in_use = (
        exists()
        .where(render_inputs.c.name == garbage.c.name)
        .where(render_inputs.c.render_id == renders.c.id, renders.c.state.in_(IN_FLIGHT))
    )
    wanted = select(garbage.c.id, garbage.c.name).where(is_due, ~in_use).order_by(garbage.c.not_before)
    rows = connection.execute(wanted.limit(limit).with_for_update(skip_locked=True, of=garbage)).all()
    taken = {"is_taken": True, "not_before": now + RETRY_S}
    connection.execute(update(garbage).where(garbage.c.id.in_([row.id for row in rows])).values(**taken))
    return list(dict.fromkeys(row.name for row in rows))


def collected(connection: Connection, names: Sequence[str]) -> None:
    """These are no longer in storage. What is to be looked at again later stays."""
    connection.execute(delete(garbage).where(garbage.c.name.in_(names), garbage.c.is_taken.is_(True)))


def keep(connection: Connection, name: str) -> None:
    """It is needed after all."""
    connection.execute(delete(garbage).where(garbage.c.name == name))


def _has_jobs(connection: Connection, condition) -> bool:
    left = select(func.count()).where(condition, jobs.c.is_deleted.is_(False))
    return connection.execute(left).scalar_one() > 0


def _forget_render(connection: Connection, render: Row, now: float) -> None:
    emptied = {"recipe": {}, "inputs": {}, "error_message": None, "snapshot_key": None, "snapshot_step": None}
    connection.execute(update(renders).where(renders.c.id == render.id).values(**emptied))
    of_render = artifacts.c.render_id == render.id
    uploads = and_(render_inputs.c.render_id == render.id, render_inputs.c.role.not_like(LORA_ROLE))
    has_ended = render.fence > 0 and render.state in ENDED  # else its storage goes when its lane has stopped
    names = [
        *connection.execute(select(artifacts.c.prefix).where(of_render)).scalars(),
        *connection.execute(select(render_inputs.c.name).where(uploads)).scalars(),
        *([] if render.snapshot_key is None else [render.snapshot_key]),
        *([render_prefix(render.tenant, render.id)] if has_ended else []),
    ]
    throw_away(connection, names, now)
    connection.execute(delete(artifacts).where(of_render))
    connection.execute(delete(render_inputs).where(render_inputs.c.render_id == render.id))


def _forget_messages(connection: Connection, batch_id: str) -> None:
    """Which rows were bad stays; the sentences may quote them."""
    errors = connection.execute(select(batches.c.errors).where(batches.c.id == batch_id)).scalar_one()
    bare = [{name: value for name, value in each.items() if name != "message"} for each in errors]
    connection.execute(update(batches).where(batches.c.id == batch_id).values(errors=bare))
