"""The job store: submit, look up, list, cancel and delete jobs. What lanes do with renders stands in `leases.py`.

Every method is one transaction. A job and its idempotency record are written together, so that a client that asks
again after a lost answer gets the job that it already has.     Run: pytest tests/unit/test_jobstore.py
"""

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Engine, and_, func, or_, select
from sqlalchemy.exc import IntegrityError

from sakuga.errors import ConflictError, NotFoundError, shown
from sakuga.jobstore import outlook, retention
from sakuga.jobstore.database import Database
from sakuga.jobstore.ending import cancel_jobs, throw_away
from sakuga.jobstore.schema import QUEUED, STATES, artifacts, events, jobs, renders
from sakuga.jobstore.submitting import check_priority, insert_jobs, known, remember
from sakuga.jobstore.values import PRIORITIES, Artifact, Backlog, Event, Idempotency, Job, NewJob, Place

MAX_LISTED = 100
NUM_FORGOTTEN = 50
"""Jobs that are deleted in one transaction, when they expire."""
CLASS_OF = {number: name for name, number in PRIORITIES.items()}
OF_ARTIFACT = ("prefix", "sha256", "num_bytes", "receipt")
OF_JOB = (
    "id", "tenant", "render_id", "state", "request", "created_at", "started_at", "finished_at", "deadline_at",
    "webhook_url", "batch_id", "remixed_from", "error_code", "error_message",
)  # fmt: skip
OF_RENDER = ("render_key", "model", "step", "num_steps", "snapshot_step", "work_s", "inputs")


class JobStore:
    """Jobs of all tenants in one database."""

    def __init__(
        self, engine: Engine, clock: Callable[[], float] | None = None, *, retention_s: float | None = None
    ) -> None:
        """`clock` instead of the database's own, for tests; jobs are deleted `retention_s` after their end."""
        self.engine, self.database = engine, Database(engine, clock)
        self._retention_s = retention_s
        self._standings = outlook.Standings(self.database)

    def submit(self, job: NewJob, idempotency_key: Idempotency | None = None) -> Job:
        """The job, queued; an equal render of the tenant that is in flight is shared.

        With a key that was used before: the job of then. Raises ConflictError when that was another request, and
        RecipeError for an unknown priority.
        """
        check_priority(job.priority)
        for _ in range(3):
            try:
                with self.database.writing() as connection:
                    now = self.database.now(connection)
                    job_id = known(connection, idempotency_key)
                    if job_id is None:
                        (job_id,) = insert_jobs(connection, job.tenant, [job], now)
                        remember(connection, idempotency_key, job_id, now)
                self.database.waiters.tell([job.model])
                return self.get(job.tenant, job_id)
            except IntegrityError:  # on PostgreSQL somebody was faster with this key or this render: look again
                continue
        raise ConflictError("the same job is being submitted many times at once; try again")

    def known(self, tenant: str, idempotency_key: Idempotency) -> Job | None:
        """The job of a request that was made before under this key; None when there was none.

        Raises ConflictError when that was another request.
        """
        with self.database.reading() as connection:
            job_id = known(connection, idempotency_key)
        return None if job_id is None else self.get(tenant, job_id)

    def get(self, tenant: str, job_id: str) -> Job:
        """Raises NotFoundError for an unknown id, for a deleted job and for another tenant's."""
        with self.database.reading() as connection:
            row = connection.execute(_jobs().where(jobs.c.id == job_id, jobs.c.tenant == tenant)).mappings().first()
        if row is None:
            raise NotFoundError(f"there is no job {shown(job_id)}; `sakuga jobs` lists yours")
        return self._job(row)

    def page(
        self,
        tenant: str,
        *,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
        batch_id: str | None = None,
    ) -> tuple[Sequence[Job], bool]:
        """Jobs of a tenant behind `after`, and whether there are more. Raises NotFoundError for an unknown `after`."""
        order, limit = (jobs.c.created_at, jobs.c.id), min(limit, MAX_LISTED)
        wanted = _jobs().where(jobs.c.tenant == tenant).limit(limit + 1)
        if batch_id is not None:
            wanted = wanted.where(jobs.c.batch_id == batch_id)
        if after is not None:
            at = self.get(tenant, after).created_at
            beyond = jobs.c.created_at < at if newest_first else jobs.c.created_at > at
            tie = jobs.c.id < after if newest_first else jobs.c.id > after
            wanted = wanted.where(or_(beyond, and_(jobs.c.created_at == at, tie)))
        wanted = wanted.order_by(*(column.desc() if newest_first else column.asc() for column in order))
        with self.database.reading() as connection:
            found = [self._job(row) for row in connection.execute(wanted).mappings()]
        return found[:limit], len(found) > limit

    def cancel(self, tenant: str, job_id: str) -> Job:
        """The job, cancelled unless it had ended; its render stops when no other job wants it.

        Raises NotFoundError.
        """
        job = self.get(tenant, job_id)
        with self.database.writing() as connection:
            cancel_jobs(connection, [job_id], [job.render_id], self.database.now(connection))
        return self.get(tenant, job_id)

    def delete(self, tenant: str, job_id: str) -> None:
        """Forget a job and its prompt, and with the last job of a render everything that was stored for it.

        Raises NotFoundError, a second time too.
        """
        job = self.get(tenant, job_id)
        with self.database.writing() as connection:
            is_mine = retention.forget(connection, job, self.database.now(connection))
        if not is_mine:
            raise NotFoundError(f"job {shown(job_id)} was deleted this moment")

    def is_deleted(self, tenant: str, job_id: str) -> bool:
        """Whether the tenant had this job and deleted it, or its time was over; known for a week."""
        mine = and_(jobs.c.id == job_id, jobs.c.tenant == tenant, jobs.c.is_deleted.is_(True))
        with self.database.reading() as connection:
            return connection.execute(select(jobs.c.id).where(mine)).first() is not None

    def events_after(self, tenant: str, job_id: str, seq: int = 0) -> Sequence[Event]:
        """A job's history behind a number that the client has seen. Raises NotFoundError."""
        self.get(tenant, job_id)
        wanted = select(events).where(events.c.job_id == job_id, events.c.seq > seq).order_by(events.c.seq)
        with self.database.reading() as connection:
            return [
                Event(seq=row.seq, job_id=row.job_id, type=row.type, data=row.data, at=row.at)
                for row in connection.execute(wanted)
            ]

    def backlog(self) -> Mapping[str, Backlog]:
        """The work that waits or is under way, by model: what autoscaling asks for."""
        with self.database.reading() as connection:
            return outlook.backlog(connection, self.database.now(connection))

    def place(self, tenant: str, job_id: str) -> Place:
        """Where a job stands in the queue; of a long queue as it was up to a second ago. Raises NotFoundError."""
        return self._standings.place(self.get(tenant, job_id))

    def newcomer(self, model: str, priority: str) -> Place:
        """Where a job of this model would stand that was submitted now; at the front while nothing waits."""
        return self._standings.newcomer(model, priority)

    def in_flight_s(self, tenant: str) -> float:
        """Predicted seconds of the tenant's queued and running work."""
        with self.database.reading() as connection:
            return outlook.in_flight_s(connection, tenant)

    def used_gpu_s(self, tenant: str) -> float:
        """Seconds of lanes that the tenant has used lately; they fade."""
        with self.database.reading() as connection:
            return outlook.used_gpu_s(connection, tenant, self.database.now(connection))

    def num_queued(self) -> int:
        """Jobs that wait, of all tenants; quick, however many have ended."""
        waiting = select(func.count()).where(jobs.c.is_deleted.is_(False), jobs.c.state == QUEUED)
        with self.database.reading() as connection:
            return connection.execute(waiting).scalar_one()

    def counts(self) -> Mapping[str, int]:
        """Jobs by state, and those of any state that were deleted as "deleted"."""
        by_state = select(jobs.c.is_deleted, jobs.c.state, func.count()).group_by(jobs.c.is_deleted, jobs.c.state)
        found = dict.fromkeys((*STATES, "deleted"), 0)
        with self.database.reading() as connection:
            for is_deleted, state, number in connection.execute(by_state):
                found["deleted" if is_deleted else state] += number
        return found

    def discard(self, names: Sequence[str], after_s: float = 0.0) -> None:
        """Have objects removed from storage, after a while, unless a job or a LoRA has taken them up by then.

        An upload is named here before it is stored: then nothing stays behind when its job is never written.
        """
        with self.database.writing() as connection:
            throw_away(connection, names, self.database.now(connection) + after_s)

    def garbage(self, limit: int = 100) -> Sequence[str]:
        """Objects, or what all their names begin with, to be removed from storage now."""
        with self.database.writing() as connection:
            return retention.due_garbage(connection, self.database.now(connection), limit)

    def collected(self, names: Sequence[str]) -> None:
        """They have been removed; others of `garbage` are given out again after a while."""
        with self.database.writing() as connection:
            retention.collected(connection, names)

    def expire(self, limit: int = 1000) -> int:
        """Delete jobs whose time is over and records that nobody needs; how many jobs that were."""
        num_gone = 0
        with self.database.writing() as connection:
            retention.purge(connection, self.database.now(connection), limit)
        while self._retention_s is not None and num_gone < limit:
            with self.database.writing() as connection:
                now = self.database.now(connection)
                rows = retention.expired(connection, now - self._retention_s, NUM_FORGOTTEN)
                for row in rows:
                    retention.forget(connection, row, now)
            num_gone += len(rows)
            if len(rows) < NUM_FORGOTTEN:
                break
        return num_gone

    def checkpoint(self) -> None:
        """Empty the database's log of changes, where it keeps one in a file."""
        self.database.checkpoint()

    def _job(self, row: Mapping[str, object]) -> Job:
        values = dict(row)
        artifact = None
        if values["prefix"] is not None:
            artifact = Artifact(**{name: values[name] for name in OF_ARTIFACT})  # ty: ignore
        assert values["state"] in STATES
        expires_at = None
        if self._retention_s is not None and values["finished_at"] is not None:
            expires_at = values["finished_at"] + self._retention_s  # ty: ignore
        priority = CLASS_OF[values["priority"]]  # ty: ignore
        given = {name: values[name] for name in (*OF_JOB, *OF_RENDER)}
        return Job(**given, priority=priority, expires_at=expires_at, artifact=artifact)  # ty: ignore


def _jobs():
    """Jobs with what is asked of their render and artifact."""
    return (
        select(jobs, *(renders.c[name] for name in OF_RENDER), *(artifacts.c[name] for name in OF_ARTIFACT))
        .join(renders, jobs.c.render_id == renders.c.id)
        .outerjoin(artifacts, artifacts.c.render_id == renders.c.id)
        .where(jobs.c.is_deleted.is_(False))
    )
