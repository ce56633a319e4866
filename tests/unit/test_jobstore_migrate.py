"""Migrations: the same tables as the schema, in place, with a backup, and no way back."""

import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from sakuga.errors import StoreError
from sakuga.jobstore import JobStore, NewJob, open_database
from sakuga.jobstore import migrate as module
from sakuga.jobstore.schema import metadata

JOB = NewJob(tenant="app", render_key="a" * 64, model="m", recipe={}, request={}, num_steps=2, work_s=1.0)
NEXT = """
from alembic import op
import sqlalchemy as sa

revision = "0003"
down_revision = "0002"


def upgrade():
    with op.batch_alter_table("renders") as table:
        table.add_column(sa.Column("colour", sa.String(10)))
"""


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "jobs.sqlite"
    engine = open_database(f"sqlite:///{path}")
    yield engine, path
    engine.dispose()


def test_migrations_make_what_the_schema_says(database):
    engine, _ = database
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        made = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'events'").scalar()
    assert "AUTOINCREMENT" in made, "a number is never given twice"


def test_a_database_with_jobs_is_brought_up_to_date_in_place(database, tmp_path, monkeypatch):
    engine, path = database
    job = JobStore(engine).submit(JOB)
    scripts = tmp_path / "migrations"
    (scripts / "versions").mkdir(parents=True)
    for name in ("env.py", "versions/0001_jobs.py", "versions/0002_farm.py"):
        (scripts / name).write_text((module.SCRIPTS / name).read_text())
    (scripts / "versions" / "0003_colour.py").write_text(NEXT)
    monkeypatch.setattr(module, "SCRIPTS", scripts)
    kept = module.migrate(engine)
    assert kept == path.with_name("jobs.sqlite.before-0002")
    assert JobStore(engine).get("app", job.id) == job
    with engine.begin() as connection:
        assert "colour" in [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(renders)")]
    with sqlite3.connect(kept) as old:
        assert old.execute("SELECT id FROM jobs").fetchall() == [(job.id,)]
    assert module.migrate(engine) is None, "nothing to do"
    monkeypatch.undo()
    with pytest.raises(StoreError, match="tables 0003 of a newer program"):
        module.migrate(engine)
