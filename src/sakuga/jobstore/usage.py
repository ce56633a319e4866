"""What tenants have used of the lanes, charged while renders run and fading with time: the ground of fair shares.

Run: pytest tests/unit/test_jobstore_outlook.py
"""

import contextlib

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from sakuga.jobstore.queue import faded
from sakuga.jobstore.schema import usage


def charge(connection: Connection, render: Row, now: float) -> None:
    """The tenant of a running render, locked, for the time since it was last charged; the caller notes `charged_at`."""
    mine = usage.c.tenant == render.tenant
    used = connection.execute(select(usage).where(mine).with_for_update()).first()
    if used is None:
        with contextlib.suppress(IntegrityError), connection.begin_nested():  # another lane of the tenant was first
            connection.execute(insert(usage).values(tenant=render.tenant, gpu_s=0.0, at=now))
        used = connection.execute(select(usage).where(mine).with_for_update()).one()
    gpu_s = faded(used.gpu_s, now - used.at) + max(0.0, now - render.charged_at)
    connection.execute(update(usage).where(mine).values(gpu_s=gpu_s, at=max(now, used.at)))
