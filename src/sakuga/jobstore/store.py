"""The job store: submit, look up, list and cancel jobs. What lanes do with renders stands in `leases.py`.

Every method is one transaction. A job and its idempotency record are written together, so that a client that asks
again after a lost answer gets the job that it already has.     Run: pytest tests/unit/test_jobstore.py
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection, Engine, Row, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from sakuga.errors import ConflictError, NotFoundError, RecipeError, did_you_mean, shown
from sakuga.jobstore.schema import (
    CANCELLED,
    IN_FLIGHT,
    QUEUED,
    RUNNING,
    STATES,
    artifacts,
    events,
    idempotency,
    jobs,
    renders,
)
from sakuga.jobstore.values import PRIORITIES, Artifact, Event, Idempotency, Job, NewJob

MAX_LISTED = 100
CLASS_OF = {number: name for name, number in PRIORITIES.items()}


class JobStore:
    """Jobs of all tenants in one database."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine, self.clock = engine, clock

    def submit(self, job: NewJob, idempotency_key: Idempotency | None = None) -> Job:
        """The job, queued; an equal render of the tenant that is in flight is shared.

        With a key that was used before: the job of then. Raises ConflictError when that was another request, and
        RecipeError for an unknown priority.
        """
        if job.priority not in PRIORITIES:
            hint = did_you_mean(job.priority, PRIORITIES) or f"; choose one of {', '.join(PRIORITIES)}"
            raise RecipeError(f"priority {shown(job.priority)} is unknown{hint}")
        for _ in range(3):
            try:
                with self.engine.begin() as connection:
                    known = _known(connection, idempotency_key)
                    job_id = known or self._insert(connection, job, idempotency_key)
                return self.get(job.tenant, job_id)
            except IntegrityError:  # on PostgreSQL somebody was faster with this key or this render: look again
                continue
        raise ConflictError("the same job is being submitted many times at once; try again")

    def get(self, tenant: str, job_id: str) -> Job:
        """Raises NotFoundError for an unknown id, for a deleted job and for another tenant's."""
        with self.engine.begin() as connection:
            row = connection.execute(_jobs().where(jobs.c.id == job_id, jobs.c.tenant == tenant)).mappings().first()
        if row is None:
            raise NotFoundError(f"there is no job {shown(job_id)}; `sakuga jobs` lists yours")
        return _job(row)

    def page(
        self, tenant: str, *, after: str | None = None, limit: int = 20, newest_first: bool = True
    ) -> tuple[Sequence[Job], bool]:
        """Jobs of a tenant behind `after`, and whether there are more. Raises NotFoundError for an unknown `after`."""
        order, limit = (jobs.c.created_at, jobs.c.id), min(limit, MAX_LISTED)
        wanted = _jobs().where(jobs.c.tenant == tenant).limit(limit + 1)
        if after is not None:
            at = self.get(tenant, after).created_at
            beyond = jobs.c.created_at < at if newest_first else jobs.c.created_at > at
            tie = jobs.c.id < after if newest_first else jobs.c.id > after
            wanted = wanted.where(or_(beyond, and_(jobs.c.created_at == at, tie)))
        wanted = wanted.order_by(*(column.desc() if newest_first else column.asc() for column in order))
        with self.engine.begin() as connection:
            found = [_job(row) for row in connection.execute(wanted).mappings()]
        return found[:limit], len(found) > limit

    def cancel(self, tenant: str, job_id: str) -> Job:
        """The job, cancelled unless it had ended; its render stops when no other job wants it.

        Raises NotFoundError.
        """
        job = self.get(tenant, job_id)
        with self.engine.begin() as connection:
            self._cancel(connection, job)
        return self.get(tenant, job_id)

    def _cancel(self, connection: Connection, job: Job) -> Row:
        """The render, locked: every writer takes it before its jobs, so none waits for another in a ring."""
        render = connection.execute(select(renders).where(renders.c.id == job.render_id).with_for_update()).one()
        ended = connection.execute(
            update(jobs)
            .where(jobs.c.id == job.id, jobs.c.state.in_(IN_FLIGHT))
            .values(state=CANCELLED, finished_at=self.clock())
        )
        if ended.rowcount:
            self.add_event(connection, [(job.id, job.tenant)], CANCELLED, {})
            self._drop_render_if_unwanted(connection, job.render_id)
        return render

    def delete(self, tenant: str, job_id: str) -> Sequence[str]:
        """Forget a job and its prompt; what of storage now belongs to nobody, to be removed by the caller.

        A render that other jobs share keeps its video. Raises NotFoundError, a second time too.
        """
        job = self.get(tenant, job_id)
        with self.engine.begin() as connection:
            render = self._cancel(connection, job)
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(is_deleted=True, request={}))
            self.add_event(connection, [(job_id, tenant)], "deleted", {})
            left = select(func.count()).where(jobs.c.render_id == job.render_id, jobs.c.is_deleted.is_(False))
            if connection.execute(left).scalar_one():
                return []
            emptied = {"recipe": {}, "snapshot_key": None, "snapshot_step": None}
            connection.execute(update(renders).where(renders.c.id == render.id).values(**emptied))
            of_render = artifacts.c.render_id == render.id
            prefix = connection.execute(select(artifacts.c.prefix).where(of_render)).scalar()
            connection.execute(artifacts.delete().where(of_render))
        return [key for key in (render.snapshot_key, prefix) if key is not None]

    def events_after(self, tenant: str, job_id: str, seq: int = 0) -> Sequence[Event]:
        """A job's history behind a number that the client has seen. Raises NotFoundError."""
        self.get(tenant, job_id)
        wanted = select(events).where(events.c.job_id == job_id, events.c.seq > seq).order_by(events.c.seq)
        with self.engine.begin() as connection:
            return [
                Event(seq=row.seq, job_id=row.job_id, type=row.type, data=row.data, at=row.at)
                for row in connection.execute(wanted)
            ]

    def queued_work_s(self) -> Mapping[str, float]:
        """Predicted seconds of work that wait, by model: what autoscaling asks for."""
        waiting = select(renders.c.model, func.sum(renders.c.work_s)).where(renders.c.state == QUEUED)
        with self.engine.begin() as connection:
            return {model: float(work_s) for model, work_s in connection.execute(waiting.group_by(renders.c.model))}

    def add_event(
        self, connection: Connection, of: Sequence[tuple[str, str]], kind: str, data: Mapping[str, object]
    ) -> None:
        """For these (job, tenant), in the transaction of the change that it tells of."""
        now = self.clock()
        rows = [{"job_id": job, "tenant": tenant, "type": kind, "data": dict(data), "at": now} for job, tenant in of]
        if rows:
            connection.execute(insert(events), rows)

    def _insert(self, connection: Connection, job: NewJob, key: Idempotency | None) -> str:
        now, priority = self.clock(), PRIORITIES[job.priority]
        render_id = self._shared_render(connection, job, priority)
        if render_id is None:
            render_id = new_id("render")
            connection.execute(
                insert(renders).values(
                    id=render_id, tenant=job.tenant, render_key=job.render_key, model=job.model,
                    recipe=dict(job.recipe), work_s=job.work_s, priority=priority, deadline_at=job.deadline_at,
                    created_at=now, state=QUEUED, fence=0, step=0, num_steps=job.num_steps, num_attempts=0, num_lost=0,
                    avoid=[], must_cancel=False, must_yield=False,
                )
            )  # fmt: skip
        state = connection.execute(select(renders.c.state).where(renders.c.id == render_id)).scalar_one()
        job_id = new_id("video")
        connection.execute(
            insert(jobs).values(
                id=job_id, tenant=job.tenant, render_id=render_id, request=dict(job.request), priority=priority,
                deadline_at=job.deadline_at, created_at=now, state=state,
            )
        )  # fmt: skip
        self.add_event(connection, [(job_id, job.tenant)], state, {})
        if key is not None:
            connection.execute(
                insert(idempotency).values(
                    owner=key.owner, key=key.key, fingerprint=key.fingerprint, job_id=job_id, created_at=now
                )
            )
        return job_id

    def _shared_render(self, connection: Connection, job: NewJob, priority: int) -> str | None:
        """One in flight with this key, raised to this job's urgency."""
        wanted = select(renders.c.id, renders.c.priority, renders.c.deadline_at).where(
            renders.c.tenant == job.tenant, renders.c.render_key == job.render_key, renders.c.state.in_(IN_FLIGHT)
        )
        found = connection.execute(wanted.with_for_update()).first()
        if found is None:
            return None
        deadlines = [at for at in (found.deadline_at, job.deadline_at) if at is not None]
        connection.execute(
            update(renders)
            .where(renders.c.id == found.id)
            .values(
                priority=max(found.priority, priority),
                deadline_at=min(deadlines, default=None),
                must_cancel=False,  # somebody wants it again
                recipe=dict(job.recipe),  # which a deletion may have emptied
            )
        )
        return found.id

    def _drop_render_if_unwanted(self, connection: Connection, render_id: str) -> None:
        wanted = select(func.count()).where(jobs.c.render_id == render_id, jobs.c.state.in_(IN_FLIGHT))
        if connection.execute(wanted).scalar_one():
            return
        connection.execute(
            update(renders).where(renders.c.id == render_id, renders.c.state == QUEUED).values(state=CANCELLED)
        )
        connection.execute(
            update(renders).where(renders.c.id == render_id, renders.c.state == RUNNING).values(must_cancel=True)
        )


def new_id(kind: str) -> str:
    """Unguessable: 120 bits.

    >>> new_id("video").startswith("video_"), len(new_id("video"))
    (True, 36)
    """
    return f"{kind}_{secrets.token_hex(15)}"


def _known(connection: Connection, key: Idempotency | None) -> str | None:
    if key is None:
        return None
    wanted = select(idempotency).where(idempotency.c.owner == key.owner, idempotency.c.key == key.key)
    found = connection.execute(wanted).first()
    if found is None:
        return None
    if found.fingerprint != key.fingerprint:
        raise ConflictError("this Idempotency-Key was used for another request; take a new one")
    return found.job_id


def _jobs():
    """Jobs with what is asked of their render and artifact."""
    return (
        select(
            jobs,
            renders.c.step,
            renders.c.num_steps,
            renders.c.work_s,
            artifacts.c.prefix,
            artifacts.c.sha256,
            artifacts.c.num_bytes,
            artifacts.c.receipt,
        )
        .join(renders, jobs.c.render_id == renders.c.id)
        .outerjoin(artifacts, artifacts.c.render_id == renders.c.id)
        .where(jobs.c.is_deleted.is_(False))
    )


def _job(row: Mapping[str, object]) -> Job:
    values = dict(row)
    artifact = None
    if values["prefix"] is not None:
        artifact = Artifact(**{name: values[name] for name in ("prefix", "sha256", "num_bytes", "receipt")})  # ty: ignore
    assert values["state"] in STATES
    names = (
        "id", "tenant", "render_id", "state", "request", "created_at", "finished_at", "deadline_at", "step",
        "num_steps", "work_s", "error_code", "error_message",
    )  # fmt: skip
    priority = CLASS_OF[values["priority"]]  # ty: ignore
    return Job(**{name: values[name] for name in names}, priority=priority, artifact=artifact)  # ty: ignore
