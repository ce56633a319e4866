"""Batches: many jobs in one request, written in one transaction.     Run: pytest tests/unit/test_jobstore_batches.py"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection, Row, and_, func, insert, or_, select
from sqlalchemy.exc import IntegrityError

from sakuga.errors import ConflictError, NotFoundError, shown
from sakuga.jobstore.ending import IS_LIVE, cancel_jobs, chunks
from sakuga.jobstore.ids import new_id
from sakuga.jobstore.schema import batches, jobs
from sakuga.jobstore.store import MAX_LISTED, JobStore
from sakuga.jobstore.submitting import check_priority, insert_jobs, known, remember
from sakuga.jobstore.values import Batch, Idempotency, NewJob


class Batches:
    """The batches of a job store."""

    def __init__(self, store: JobStore) -> None:
        self._database = store.database

    def create(
        self,
        tenant: str,
        jobs: Sequence[NewJob],
        errors: Sequence[Mapping[str, object]] = (),
        *,
        idempotency_key: Idempotency | None = None,
    ) -> Batch:
        """All jobs or none. `errors` are of rows that became no job; a "message" in them may quote the row.

        With a key that was used before: the batch of then. Raises ConflictError when that was another request, and
        RecipeError for an unknown priority.
        """
        for priority in {job.priority for job in jobs}:
            check_priority(priority)
        for _ in range(3):
            try:
                with self._database.writing() as connection:
                    batch_id = known(connection, idempotency_key)
                    if batch_id is None:
                        now = self._database.now(connection)
                        batch_id = self._insert(connection, tenant, jobs, errors, now)
                        remember(connection, idempotency_key, batch_id, now)
                self._database.waiters.tell(job.model for job in jobs)
                return self.get(tenant, batch_id)
            except IntegrityError:  # on PostgreSQL somebody was faster with this key or one of the renders: look again
                continue
        raise ConflictError("the same jobs are being submitted many times at once; try again")

    def known(self, tenant: str, idempotency_key: Idempotency) -> Batch | None:
        """The batch of a request that was made before under this key; None when there was none.

        Raises ConflictError when that was another request.
        """
        with self._database.reading() as connection:
            batch_id = known(connection, idempotency_key)
        return None if batch_id is None else self.get(tenant, batch_id)

    def get(self, tenant: str, batch_id: str) -> Batch:
        """Raises NotFoundError."""
        mine = and_(batches.c.id == batch_id, batches.c.tenant == tenant)
        with self._database.reading() as connection:
            row = connection.execute(select(batches).where(mine)).first()
            if row is None:
                raise NotFoundError(f"there is no batch {shown(batch_id)}")
            return self._batches(connection, [row])[0]

    def page(self, tenant: str, after: str | None = None, limit: int = 20) -> tuple[Sequence[Batch], bool]:
        """The newest first, behind `after`, and whether there are more. Raises NotFoundError for an unknown `after`."""
        limit = min(limit, MAX_LISTED)
        wanted = select(batches).where(batches.c.tenant == tenant)
        if after is not None:
            at = self.get(tenant, after).created_at
            tie = and_(batches.c.created_at == at, batches.c.id < after)
            wanted = wanted.where(or_(batches.c.created_at < at, tie))
        wanted = wanted.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit + 1)
        with self._database.reading() as connection:
            rows = connection.execute(wanted).all()
            return self._batches(connection, rows[:limit]), len(rows) > limit

    def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Its jobs that have not ended are cancelled, some at a time. Raises NotFoundError."""
        self.get(tenant, batch_id)
        mine = select(jobs.c.id, jobs.c.render_id).where(jobs.c.batch_id == batch_id, IS_LIVE)
        with self._database.reading() as connection:
            rows = connection.execute(mine.order_by(jobs.c.render_id)).all()
        for some in chunks(rows):
            with self._database.writing() as connection:
                ids, render_ids = [row.id for row in some], sorted({row.render_id for row in some})
                cancel_jobs(connection, ids, render_ids, self._database.now(connection))
        return self.get(tenant, batch_id)

    def _insert(
        self, connection: Connection, tenant: str, jobs: Sequence[NewJob], errors: Sequence[Mapping], now: float
    ) -> str:
        batch_id = new_id("batch")
        row = {"id": batch_id, "tenant": tenant, "created_at": now, "num_rows": len(jobs) + len(errors)}
        connection.execute(insert(batches).values(**row, errors=[dict(error) for error in errors]))
        if jobs:
            insert_jobs(connection, tenant, [replace(job, tenant=tenant, batch_id=batch_id) for job in jobs], now)
        return batch_id

    def _batches(self, connection: Connection, rows: Sequence[Row]) -> list[Batch]:
        counted = (
            select(jobs.c.batch_id, jobs.c.state, func.count())
            .where(jobs.c.batch_id.in_([row.id for row in rows]), jobs.c.is_deleted.is_(False))
            .group_by(jobs.c.batch_id, jobs.c.state)
        )
        counts: dict[str, dict[str, int]] = {row.id: {} for row in rows}
        for batch_id, state, number in connection.execute(counted):
            counts[batch_id][state] = number
        return [
            Batch(
                id=row.id, tenant=row.tenant, created_at=row.created_at, num_rows=row.num_rows, errors=row.errors,
                counts=counts[row.id],
            )
            for row in rows
        ]  # fmt: skip
