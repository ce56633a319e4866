"""Tables of the job store, the same on SQLite and PostgreSQL.

A *job* is what a tenant asked for; a *render* is the work. Equal render keys of one tenant in flight are one render
with several jobs. An *attempt* is one lane's try at a render, under a fence: a number that grows with each attempt,
without which nothing can be written for a render that is under way. *Events* are only ever added to.

Times are seconds since 1970.     Run: pytest tests/unit/test_jobstore.py
"""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = "queued", "running", "completed", "failed", "cancelled"
STATES = (QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED)
IN_FLIGHT = (QUEUED, RUNNING)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

renders = Table(
    "renders",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(100), nullable=False),
    Column("render_key", String(64), nullable=False),
    Column("model", String(100), nullable=False),
    Column("recipe", JSON, nullable=False),
    Column("work_s", Float, nullable=False),  # as the cost model predicts it
    Column("priority", Integer, nullable=False),
    Column("deadline_at", Float),
    Column("created_at", Float, nullable=False),
    Column("state", String(10), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("lane", String(200)),
    Column("lease_until", Float),
    Column("started_at", Float),  # of the attempt under way
    Column("step", Integer, nullable=False),
    Column("num_steps", Integer, nullable=False),
    Column("snapshot_key", Text),
    Column("snapshot_step", Integer),
    Column("num_attempts", Integer, nullable=False),  # those that were the job's own fault
    Column("num_lost", Integer, nullable=False),  # lanes that died or fell silent with it
    Column("avoid", JSON, nullable=False),  # lanes that were lost with it
    Column("avoid_until", Float),  # then they may try again: a farm can have one lane
    Column("must_cancel", Boolean, nullable=False),
    Column("must_yield", Boolean, nullable=False),
    Column("error_code", String(40)),
    Column("error_message", Text),
    Column("artifact_id", String(40)),
    Index("ix_renders_queue", "state", "priority", "tenant", "created_at"),
)
Index(
    "uq_renders_in_flight",
    renders.c.tenant,
    renders.c.render_key,
    unique=True,
    sqlite_where=renders.c.state.in_(IN_FLIGHT),
    postgresql_where=renders.c.state.in_(IN_FLIGHT),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(100), nullable=False),
    Column("render_id", String(40), ForeignKey("renders.id"), nullable=False, index=True),
    Column("request", JSON, nullable=False),  # as asked; emptied when the job is deleted
    Column("priority", Integer, nullable=False),
    Column("deadline_at", Float),
    Column("created_at", Float, nullable=False),
    Column("state", String(10), nullable=False),
    Column("finished_at", Float),
    Column("error_code", String(40)),
    Column("error_message", Text),
    Column("is_deleted", Boolean, nullable=False, server_default=text("false")),
    Index("ix_jobs_listing", "tenant", "created_at", "id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("render_id", String(40), ForeignKey("renders.id"), primary_key=True),
    Column("fence", Integer, primary_key=True),
    Column("lane", String(200), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("first_step", Integer, nullable=False),
    Column("ended_at", Float),
    Column("last_step", Integer),
    Column("outcome", String(20)),  # completed, failed, lost, released, cancelled
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(40), nullable=False),
    Column("tenant", String(100), nullable=False),
    Column("type", String(20), nullable=False),
    Column("data", JSON, nullable=False),
    Column("at", Float, nullable=False),
    Index("ix_events_job", "job_id", "seq"),
    sqlite_autoincrement=True,  # a number is never given twice, also after a deletion
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("owner", String(100), primary_key=True),  # the API key
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("job_id", String(40), ForeignKey("jobs.id"), nullable=False),
    Column("created_at", Float, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("render_id", String(40), ForeignKey("renders.id"), nullable=False, unique=True),
    Column("prefix", Text, nullable=False),  # in storage, of the attempt that made it
    Column("sha256", String(64), nullable=False),
    Column("num_bytes", Integer, nullable=False),
    Column("receipt", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("gpu_s", Float, nullable=False),  # fading with time, see queue.HALF_LIFE_S
    Column("at", Float, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(100), nullable=False, index=True),
    Column("shown", String(20), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("quota_gpu_s", Float),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)
