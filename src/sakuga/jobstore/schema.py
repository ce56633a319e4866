"""Tables of the job store, the same on SQLite and PostgreSQL.

A *job* is what a tenant asked for; a *render* is the work. Equal render keys of one tenant in flight are one render
with several jobs. An *attempt* is one lane's try at a render, under a fence: a number that grows with each attempt,
without which nothing can be written for a render that is under way. *Events* are only ever added to.

Queues are read by indexes of their own, over queued and over running rows only: ten thousand videos that are done cost
a claim nothing. Their conditions are written into the statement, as a bound parameter cannot match a partial index; and
`state` is their last column, since SQLite else looks at every row for what the index has already said.

Times are seconds since 1970.     Run: pytest tests/unit/test_jobstore.py
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    FromClause,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    literal,
    text,
)

QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = "queued", "running", "completed", "failed", "cancelled"
STATES = (QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED)
IN_FLIGHT = (QUEUED, RUNNING)
PENDING, RENDERING, PASSED, GONE = "pending", "rendering", "passed", "gone"
"""Of audits, which may also have failed."""
OPEN_AUDIT = (PENDING, RENDERING)
NEVER = 1e12
"""A deadline that nothing has to meet: a number, so that one index sorts those with and without."""

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
    Column("recipe", JSON, nullable=False),  # emptied with the last of its jobs
    Column("inputs", JSON, nullable=False, server_default=text("'{}'")),  # role -> name in storage; emptied likewise
    Column("work_s", Float, nullable=False),  # as the cost model predicts it
    Column("step_s", Float, nullable=False, server_default=text("0")),
    Column("rest_s", Float, nullable=False, server_default=text("0")),  # of work_s, what is still to do
    Column("priority", Integer, nullable=False),
    Column("due_at", Float, nullable=False, server_default=text("1e12")),
    Column("created_at", Float, nullable=False),
    Column("state", String(10), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("lane", String(200)),
    Column("lease_until", Float),
    Column("started_at", Float),  # of the attempt under way
    Column("charged_at", Float),  # up to when its tenant has been charged for that
    Column("not_before", Float),  # parked: no lane may have it earlier
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
)


def in_state(state: str, table: FromClause = renders):
    """As the indexes of that state know it."""
    return table.c.state == literal(state, literal_execute=True)


IS_QUEUED, IS_RUNNING = in_state(QUEUED), in_state(RUNNING)
IS_IN_FLIGHT = renders.c.state.in_([literal(state, literal_execute=True) for state in IN_FLIGHT])


def _partial(name: str, condition: str, *columns: str, unique: bool = False) -> Index:
    where = text(condition)
    return Index(
        name, *(renders.c[column] for column in columns), unique=unique, sqlite_where=where, postgresql_where=where
    )


_partial("uq_renders_in_flight", "state IN ('queued', 'running')", "tenant", "render_key", unique=True)
_partial("ix_renders_in_flight", "state IN ('queued', 'running')", "tenant", "rest_s", "state")
_partial(
    "ix_renders_queued", "state = 'queued'",
    "priority", "model", "tenant", "due_at", "created_at", "id", "rest_s", "not_before", "state",
)  # fmt: skip
_partial("ix_renders_running", "state = 'running'", "lease_until")

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
    Column("started_at", Float),  # when a lane first had its render
    Column("finished_at", Float),
    Column("error_code", String(40)),
    Column("error_message", Text),
    Column("webhook_url", Text),
    Column("batch_id", String(40)),
    Column("remixed_from", String(40)),
    Column("is_deleted", Boolean, nullable=False, server_default=false()),
    Index("ix_jobs_listing", "tenant", "created_at", "id"),
    Index("ix_jobs_states", "is_deleted", "state", "finished_at"),
    Index("ix_jobs_batch", "batch_id", "is_deleted", "state"),
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
    Column("outcome", String(20)),  # completed, failed, lost, released, yielded, parked, cancelled
    Index("ix_attempts_ended", "ended_at"),
)

render_inputs = Table(
    "render_inputs",
    metadata,
    Column("render_id", String(40), ForeignKey("renders.id"), primary_key=True),
    Column("role", String(100), primary_key=True),  # "image", "lora:SHA256", ...
    Column("name", Text, primary_key=True, index=True),  # in storage; of every job of the render
)

garbage = Table(
    "garbage",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, index=True),  # of an object, or the start of the names of several
    Column("not_before", Float, nullable=False, index=True),
    Column("is_taken", Boolean, nullable=False, server_default=false()),  # somebody removes it, or tried to
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
    Column("made", String(40), nullable=False),  # the job or batch
    Column("created_at", Float, nullable=False, index=True),
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

batches = Table(
    "batches",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(100), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("num_rows", Integer, nullable=False),
    Column("errors", JSON, nullable=False),  # of the rows that are no jobs
    Index("ix_batches_listing", "tenant", "created_at", "id"),
)

loras = Table(
    "loras",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(100), nullable=False),
    Column("name", String(200), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("object_name", Text, nullable=False),
    Column("passport", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("tenant", "sha256"),
)

profiles = Table(
    "profiles",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("model", String(100), nullable=False),
    Column("name", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("state", String(10), nullable=False, server_default=text("'active'")),  # canary, active, retired
    Column("state_since", Float, nullable=False, server_default=text("0")),  # audits from before do not count
    Column("reason", String(20)),  # of retirement: rolled_back, replaced, by_hand
    Column("owner", String(100), nullable=False, server_default=text("''")),  # the tenant whose LoRAs it names
    Column("canary_share", Float, nullable=False, server_default=text("0")),
    Column("content_sha256", String(64), nullable=False, server_default=text("''")),
    Column("profile", JSON, nullable=False, server_default=text("'{}'")),  # `SpeedProfile.as_dict`
    Column("created_at", Float, nullable=False),
    UniqueConstraint("model", "name", "version"),
)

profile_events = Table(
    "profile_events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("profile_id", String(40), ForeignKey("profiles.id"), nullable=False),
    Column("type", String(20), nullable=False),  # promoted, audited, activated, rolled_back, retired
    Column("data", JSON, nullable=False),  # figures and reasons, nothing of a user's
    Column("at", Float, nullable=False),
    Index("ix_profile_events_profile", "profile_id", "seq"),
    sqlite_autoincrement=True,
)

audits = Table(
    "audits",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("profile_id", String(40), ForeignKey("profiles.id"), nullable=False),
    Column("tenant", String(100), nullable=False),
    Column("job_id", String(40), nullable=False, index=True),  # the video that a user asked for
    Column("render_key", String(64), nullable=False),
    Column("reference", JSON, nullable=False),  # the `NewJob` that renders it the reference way; emptied at the end
    Column("reference_id", String(40)),  # its job
    Column("state", String(10), nullable=False),  # pending, rendering, passed, failed, gone
    Column("figures", JSON, nullable=False),
    Column("faults", JSON, nullable=False),  # sentences
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    UniqueConstraint("profile_id", "render_key"),  # the same picture once more says nothing new
    Index("ix_audits_state", "state", "created_at"),
    Index("ix_audits_verdicts", "profile_id", "state", "ended_at"),
)

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("secret", String(100), nullable=False),  # both sides sign with it, so it cannot be kept as a hash
    Column("created_at", Float, nullable=False),
)

webhooks_off = Table(
    "webhooks_off",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("url", Text, primary_key=True),
    Column("at", Float, nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(100), nullable=False),
    Column("job_id", String(40), nullable=False),
    Column("url", Text, nullable=False),
    Column("type", String(40), nullable=False),
    Column("data", JSON, nullable=False),  # ids and states, nothing that a user wrote
    Column("state", String(10), nullable=False),  # pending, delivered, failed
    Column("attempt", Integer, nullable=False),
    Column("status", Integer),  # of the last answer
    Column("created_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),  # the next try; while one is under way, when that counts as lost
    Index("ix_deliveries_due", "state", "due_at"),
    Index("ix_deliveries_listing", "tenant", "created_at", "id"),
)
