"""What a farm needs beyond the first tables: inputs, batches, LoRAs, profiles, webhooks, what has to be removed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

QUEUED, RUNNING, IN_FLIGHT = "state = 'queued'", "state = 'running'", "state IN ('queued', 'running')"


def upgrade() -> None:
    _renders()
    _jobs()
    _removal()
    _registries()
    _webhooks()


def _renders() -> None:
    op.drop_index("ix_renders_queue", "renders")
    for column in (
        sa.Column("inputs", sa.JSON(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("step_s", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("rest_s", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", sa.Float(), server_default=sa.text("1e12"), nullable=False),
        sa.Column("charged_at", sa.Float(), nullable=True),
        sa.Column("not_before", sa.Float(), nullable=True),
    ):
        op.add_column("renders", column)
    op.execute("UPDATE renders SET rest_s = work_s, charged_at = started_at, due_at = coalesce(deadline_at, 1e12)")
    op.execute("UPDATE renders SET step_s = work_s / num_steps WHERE num_steps > 0")
    op.execute(
        "ALTER TABLE renders DROP COLUMN deadline_at"
    )  # a batch operation would drop the table that jobs point to
    _partial("ix_renders_in_flight", IN_FLIGHT, "tenant", "rest_s", "state")
    _partial(
        "ix_renders_queued",
        QUEUED,
        "priority",
        "model",
        "tenant",
        "due_at",
        "created_at",
        "id",
        "rest_s",
        "not_before",
        "state",
    )
    _partial("ix_renders_running", RUNNING, "lease_until")
    op.create_index("ix_attempts_ended", "attempts", ["ended_at"])


def _partial(name: str, condition: str, *columns: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "renders", list(columns), sqlite_where=where, postgresql_where=where)


def _jobs() -> None:
    for column in (
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("batch_id", sa.String(length=40), nullable=True),
        sa.Column("remixed_from", sa.String(length=40), nullable=True),
    ):
        op.add_column("jobs", column)
    op.create_index("ix_jobs_states", "jobs", ["is_deleted", "state", "finished_at"])
    op.create_index("ix_jobs_batch", "jobs", ["batch_id", "is_deleted", "state"])
    with op.batch_alter_table("idempotency") as table:
        table.drop_constraint(op.f("fk_idempotency_job_id"), type_="foreignkey")
        table.alter_column("job_id", new_column_name="made")
        table.create_index(op.f("ix_idempotency_created_at"), ["created_at"])
    op.create_table(
        "batches",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index("ix_batches_listing", "batches", ["tenant", "created_at", "id"])


def _removal() -> None:
    op.create_table(
        "render_inputs",
        sa.Column("render_id", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=100), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["render_id"], ["renders.id"], name=op.f("fk_render_inputs_render_id")),
        sa.PrimaryKeyConstraint("render_id", "role", "name", name=op.f("pk_render_inputs")),
    )
    op.create_index(op.f("ix_render_inputs_name"), "render_inputs", ["name"])
    op.create_table(
        "garbage",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("is_taken", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_garbage")),
    )
    op.create_index(op.f("ix_garbage_name"), "garbage", ["name"])
    op.create_index(op.f("ix_garbage_not_before"), "garbage", ["not_before"])


def _registries() -> None:
    op.create_table(
        "loras",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("object_name", sa.Text(), nullable=False),
        sa.Column("passport", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_loras")),
        sa.UniqueConstraint("tenant", "sha256", name=op.f("uq_loras_tenant")),
    )
    op.create_table(
        "profiles",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("fields", sa.JSON(), nullable=False),
        sa.Column("measured", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("retired_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_profiles")),
        sa.UniqueConstraint("model", "name", "version", name=op.f("uq_profiles_model")),
    )


def _webhooks() -> None:
    op.create_table(
        "webhook_secrets",
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("secret", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_webhook_secrets")),
    )
    op.create_table(
        "webhooks_off",
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "url", name=op.f("pk_webhooks_off")),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("type", sa.String(length=40), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index("ix_deliveries_due", "deliveries", ["state", "due_at"])
    op.create_index("ix_deliveries_listing", "deliveries", ["tenant", "created_at", "id"])
