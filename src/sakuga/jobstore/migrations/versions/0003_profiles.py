"""Promoted speed profiles: their states and owners, what happened to them, and the audits of their renders."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NEWER = (
    "SELECT max(newer.version) FROM profiles AS newer"
    " WHERE newer.model = profiles.model AND newer.name = profiles.name AND newer.retired_at IS NULL"
)


def upgrade() -> None:
    _profiles()
    op.create_table(
        "profile_events",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("profile_id", sa.String(length=40), nullable=False),
        sa.Column("type", sa.String(length=20), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name=op.f("fk_profile_events_profile_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_profile_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_profile_events_profile", "profile_events", ["profile_id", "seq"])
    op.create_table(
        "audits",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("profile_id", sa.String(length=40), nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("render_key", sa.String(length=64), nullable=False),
        sa.Column("reference", sa.JSON(), nullable=False),
        sa.Column("reference_id", sa.String(length=40), nullable=True),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("faults", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name=op.f("fk_audits_profile_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audits")),
        sa.UniqueConstraint("profile_id", "render_key", name=op.f("uq_audits_profile_id")),
    )
    op.create_index(op.f("ix_audits_job_id"), "audits", ["job_id"])
    op.create_index("ix_audits_state", "audits", ["state", "created_at"])
    op.create_index("ix_audits_verdicts", "audits", ["profile_id", "state", "ended_at"])


def _profiles() -> None:
    for column in (
        sa.Column("state", sa.String(length=10), server_default=sa.text("'active'"), nullable=False),
        sa.Column("state_since", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("reason", sa.String(length=20), nullable=True),
        sa.Column("owner", sa.String(length=100), server_default=sa.text("''"), nullable=False),
        sa.Column("canary_share", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), server_default=sa.text("''"), nullable=False),
        sa.Column("profile", sa.JSON(), server_default=sa.text("'{}'"), nullable=False),
    ):
        op.add_column("profiles", column)
    op.execute("UPDATE profiles SET state_since = coalesce(retired_at, created_at)")
    op.execute(
        f"UPDATE profiles SET state = 'retired', reason = 'replaced' WHERE retired_at IS NULL AND version < ({NEWER})"
    )
    op.execute("UPDATE profiles SET state = 'retired', reason = 'by_hand' WHERE retired_at IS NOT NULL")
    kinds = {"id": sa.String, "model": sa.String, "name": sa.String} | dict.fromkeys(
        ("fields", "measured", "profile"), sa.JSON
    )
    table = sa.table("profiles", *(sa.column(name, kind) for name, kind in kinds.items()))
    for row in op.get_bind().execute(sa.select(table)).all():
        written = {name: getattr(row, name) for name in ("model", "name", "fields", "measured")}
        op.execute(sa.update(table).where(table.c.id == row.id).values(profile=written))
    for name in ("fields", "measured", "retired_at"):
        op.execute(f"ALTER TABLE profiles DROP COLUMN {name}")
