"""Durable jobs: what was asked for, who works on it, what became of it. SQLAlchemy, on SQLite or PostgreSQL; no Ray.

`open_database` connects, `JobStore` is the side of those who ask, `LeasedRenders` that of the lanes.
"""

from sakuga.jobstore.database import open_database
from sakuga.jobstore.leases import Lane, LeasedRenders
from sakuga.jobstore.store import JobStore
from sakuga.jobstore.values import PRIORITIES, Artifact, Claim, Event, Idempotency, Job, NewJob, Orders

__all__ = [
    "PRIORITIES",
    "Artifact",
    "Claim",
    "Event",
    "Idempotency",
    "Job",
    "JobStore",
    "Lane",
    "LeasedRenders",
    "NewJob",
    "Orders",
    "open_database",
]
