"""Durable jobs: what was asked for, who works on it, what became of it. SQLAlchemy, on SQLite or PostgreSQL; no Ray.

`open_stores` gives all sides: `jobs` for those who ask, `renders` for the lanes, and keys, LoRAs, profiles and their
audits, webhooks and batches.
"""

from sakuga.jobstore.audits import Audits
from sakuga.jobstore.batches import Batches
from sakuga.jobstore.claiming import Lane
from sakuga.jobstore.database import open_database
from sakuga.jobstore.keys import ApiKey, ApiKeys
from sakuga.jobstore.leases import LeasedRenders
from sakuga.jobstore.profiles import ProfileRegistry
from sakuga.jobstore.registries import LoraRegistry
from sakuga.jobstore.store import JobStore
from sakuga.jobstore.stores import Stores, open_stores, stores_on
from sakuga.jobstore.values import (
    AUDIT_TENANT,
    PRIORITIES,
    Artifact,
    Audit,
    AuditTally,
    Backlog,
    Batch,
    Claim,
    Delivery,
    Event,
    Idempotency,
    Job,
    LoraEntry,
    NewAudit,
    NewJob,
    Orders,
    Place,
    ProfileEntry,
    ProfileEvent,
)
from sakuga.jobstore.webhooks import Webhooks

__all__ = [
    "AUDIT_TENANT",
    "PRIORITIES",
    "ApiKey",
    "ApiKeys",
    "Artifact",
    "Audit",
    "AuditTally",
    "Audits",
    "Backlog",
    "Batch",
    "Batches",
    "Claim",
    "Delivery",
    "Event",
    "Idempotency",
    "Job",
    "JobStore",
    "Lane",
    "LeasedRenders",
    "LoraEntry",
    "LoraRegistry",
    "NewAudit",
    "NewJob",
    "Orders",
    "Place",
    "ProfileEntry",
    "ProfileEvent",
    "ProfileRegistry",
    "Stores",
    "Webhooks",
    "open_database",
    "open_stores",
    "stores_on",
]
