"""Messages to the addresses that jobs name: written with the end of the job, tried until they arrive.

Whoever sends asks for what is due and says what became of it. A message that was given out and never reported is due
again: it arrives at least once, under one id.     Run: pytest tests/unit/test_jobstore_webhooks.py
"""

import base64
import contextlib
import secrets
from collections.abc import Collection, Sequence

from sqlalchemy import Connection, Row, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from sakuga.errors import NotFoundError, shown
from sakuga.jobstore.schema import deliveries, webhook_secrets, webhooks_off
from sakuga.jobstore.store import MAX_LISTED, JobStore
from sakuga.jobstore.values import Delivery

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"


class Webhooks:
    """The webhooks of a job store."""

    def __init__(self, store: JobStore) -> None:
        self._database = store.database

    def secret(self, tenant: str) -> str:
        """With which messages to this tenant are signed, as Standard Webhooks write it; made at its first use."""
        mine = select(webhook_secrets.c.secret).where(webhook_secrets.c.tenant == tenant)
        with self._database.reading() as connection:
            known = connection.execute(mine).scalar()
        if known is not None:
            return known
        made = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        try:
            with self._database.writing() as connection:
                row = {"tenant": tenant, "secret": made, "created_at": self._database.now(connection)}
                connection.execute(insert(webhook_secrets).values(**row))
        except IntegrityError:  # somebody was faster
            with self._database.reading() as connection:
                return connection.execute(mine).scalar_one()
        return made

    def due(self, limit: int = 20, lease_s: float = 60.0, *, skip_tenants: Collection[str] = ()) -> Sequence[Delivery]:
        """Messages to send now, to other tenants than these; due again after `lease_s`, if nothing is heard of them."""
        is_open = and_(deliveries.c.state == PENDING, deliveries.c.tenant.not_in(skip_tenants))
        with self._database.reading() as connection:  # most of the time there is nothing
            is_due = and_(is_open, deliveries.c.due_at <= self._database.now(connection))
            if connection.execute(select(deliveries.c.id).where(is_due).limit(1)).first() is None:
                return []
        with self._database.writing() as connection:
            now = self._database.now(connection)
            is_due = and_(is_open, deliveries.c.due_at <= now)
            wanted = select(deliveries.c.id).where(is_due).order_by(deliveries.c.due_at).limit(limit)
            ids = connection.execute(wanted.with_for_update(skip_locked=True)).scalars().all()
            given = {"attempt": deliveries.c.attempt + 1, "due_at": now + lease_s}
            these = update(deliveries).where(deliveries.c.id.in_(ids)).values(**given)
            rows = connection.execute(these.returning(deliveries)).all()
            return [_delivery(row) for row in sorted(rows, key=lambda row: (row.created_at, row.id))]

    def delivered(self, delivery_id: str, status: int) -> None:
        """It has arrived."""
        self._report(delivery_id, state=DELIVERED, status=status)

    def retry(self, delivery_id: str, at: float, status: int | None) -> None:
        """It has not, and is tried again then; `status` of the answer, None without one."""
        self._report(delivery_id, due_at=at, status=status)

    def give_up(self, delivery_id: str, status: int | None) -> None:
        """It has not, too often."""
        self._report(delivery_id, state=FAILED, status=status)

    def switch_off(self, tenant: str, url: str) -> None:
        """The address is gone: nothing is sent there until its owner asks for a replay."""
        with self._database.writing() as connection:
            row = {"tenant": tenant, "url": url, "at": self._database.now(connection)}
            with contextlib.suppress(IntegrityError), connection.begin_nested():  # it may be off already
                connection.execute(insert(webhooks_off).values(**row))
            waiting = and_(deliveries.c.tenant == tenant, deliveries.c.url == url, deliveries.c.state == PENDING)
            connection.execute(update(deliveries).where(waiting).values(state=FAILED))

    def page(
        self, tenant: str, *, only_failed: bool = False, after: str | None = None, limit: int = 20
    ) -> tuple[Sequence[Delivery], bool]:
        """The newest first, behind `after`, and whether there are more. Raises NotFoundError for an unknown `after`."""
        limit = min(limit, MAX_LISTED)
        wanted = select(deliveries).where(deliveries.c.tenant == tenant)
        if only_failed:
            wanted = wanted.where(deliveries.c.state == FAILED)
        with self._database.reading() as connection:
            if after is not None:
                at = _one(connection, tenant, after).created_at
                tie = and_(deliveries.c.created_at == at, deliveries.c.id < after)
                wanted = wanted.where(or_(deliveries.c.created_at < at, tie))
            wanted = wanted.order_by(deliveries.c.created_at.desc(), deliveries.c.id.desc()).limit(limit + 1)
            rows = connection.execute(wanted).all()
        return [_delivery(row) for row in rows[:limit]], len(rows) > limit

    def replay(self, tenant: str, delivery_id: str) -> Delivery:
        """Send it again, whatever became of it; its address counts as good again. Raises NotFoundError."""
        with self._database.writing() as connection:
            row = _one(connection, tenant, delivery_id)
            again = {"state": PENDING, "attempt": 0, "due_at": self._database.now(connection)}
            connection.execute(update(deliveries).where(deliveries.c.id == row.id).values(**again))
            here = and_(webhooks_off.c.tenant == tenant, webhooks_off.c.url == row.url)
            connection.execute(delete(webhooks_off).where(here))
            return _delivery(_one(connection, tenant, delivery_id))

    def _report(self, delivery_id: str, **values: object) -> None:
        """Of one that is under way: what was delivered or switched off meanwhile stays so."""
        mine = and_(deliveries.c.id == delivery_id, deliveries.c.state == PENDING)
        with self._database.writing() as connection:
            connection.execute(update(deliveries).where(mine).values(**values))


def _one(connection: Connection, tenant: str, delivery_id: str) -> Row:
    mine = and_(deliveries.c.id == delivery_id, deliveries.c.tenant == tenant)
    row = connection.execute(select(deliveries).where(mine)).first()
    if row is None:
        raise NotFoundError(f"there is no delivery {shown(delivery_id)}")
    return row


def _delivery(row: Row) -> Delivery:
    return Delivery(
        id=row.id, tenant=row.tenant, job_id=row.job_id, url=row.url, type=row.type, data=row.data,
        attempt=row.attempt, created_at=row.created_at, state=row.state, status=row.status,
    )  # fmt: skip
