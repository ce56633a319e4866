"""Migrations: the same tables as the schema, in place, with a backup, and no way back."""

import sqlite3
import time
import uuid

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url

from sakuga.errors import ConflictError, StoreError
from sakuga.jobstore import Idempotency, JobStore, Lane, NewJob, open_database, stores_on
from sakuga.jobstore import migrate as module
from sakuga.jobstore.schema import metadata

JOB = NewJob(tenant="app", render_key="a" * 64, model="m", recipe={}, request={}, num_steps=2, work_s=1.0)
NEXT = """
from alembic import op
import sqlalchemy as sa

revision = "0004"
down_revision = "0003"


def upgrade():
    with op.batch_alter_table("renders") as table:
        table.add_column(sa.Column("colour", sa.String(10)))
"""
VERSIONS = ("versions/0001_jobs.py", "versions/0002_farm.py", "versions/0003_profiles.py")


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "jobs.sqlite"
    engine = open_database(f"sqlite:///{path}")
    yield engine, path
    engine.dispose()


def test_migrations_make_what_the_schema_says(engine):
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        if engine.dialect.name == "sqlite":
            made = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'events'").scalar()
            assert "AUTOINCREMENT" in made, "a number is never given twice"


def test_a_database_with_jobs_is_brought_up_to_date_in_place(database, tmp_path, monkeypatch):
    engine, path = database
    job = JobStore(engine).submit(JOB)
    scripts = tmp_path / "migrations"
    (scripts / "versions").mkdir(parents=True)
    for name in ("env.py", *VERSIONS):
        (scripts / name).write_text((module.SCRIPTS / name).read_text())
    (scripts / "versions" / "0004_colour.py").write_text(NEXT)
    monkeypatch.setattr(module, "SCRIPTS", scripts)
    kept = module.migrate(engine)
    assert kept == path.with_name("jobs.sqlite.before-0003")
    assert JobStore(engine).get("app", job.id) == job
    with engine.begin() as connection:
        assert "colour" in [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(renders)")]
    with sqlite3.connect(kept) as old:
        assert old.execute("SELECT id FROM jobs").fetchall() == [(job.id,)]
    assert module.migrate(engine) is None, "nothing to do"
    monkeypatch.undo()
    with pytest.raises(StoreError, match="tables 0004 of a newer program"):
        module.migrate(engine)


def of_first_tables(state: str, now: float) -> list[str]:
    """Rows as the first version of the program wrote them, for one job in this state."""
    claimed = f"'lane', {now + 60}, {now}" if state == "running" else "NULL, NULL, NULL"
    finished = "NULL" if state in ("queued", "running") else f"{now}"
    return [
        "INSERT INTO renders (id, tenant, render_key, model, recipe, work_s, priority, deadline_at, created_at, state,"
        " fence, lane, lease_until, started_at, step, num_steps, num_attempts, num_lost, avoid, must_cancel,"
        " must_yield)"
        f" VALUES ('r-{state}', 'app', 'key-{state}', 'm', '{{\"prompt\": \"x\"}}', 10.0, 1, NULL, {now}, '{state}',"
        f" 1, {claimed}, 2, 4, 0, 0, '[]', false, false)",
        "INSERT INTO jobs (id, tenant, render_id, request, priority, created_at, state, finished_at)"
        f" VALUES ('j-{state}', 'app', 'r-{state}', '{{}}', 1, {now}, '{state}', {finished})",
        "INSERT INTO attempts (render_id, fence, lane, started_at, first_step)"
        f" VALUES ('r-{state}', 1, 'lane', {now}, 0)",
        f"INSERT INTO events (job_id, tenant, type, data, at) VALUES ('j-{state}', 'app', 'queued', '{{}}', {now})",
        "INSERT INTO idempotency (owner, key, fingerprint, job_id, created_at)"
        f" VALUES ('owner', 'key-{state}', 'f', 'j-{state}', {now})",
    ]


@pytest.fixture(params=["sqlite", "postgresql"])
def old_tables(request, tmp_path):
    """`old_tables(revision, statements)` makes a database of an older version, with rows; its address."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'old.sqlite'}"
    else:
        server = make_url(request.getfixturevalue("postgres"))
        name = f"old_{uuid.uuid4().hex}"
        with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        url = server.set(drivername="postgresql+psycopg", database=name).render_as_string(hide_password=False)

    def make(revision: str, statements: list[str]) -> str:
        engine, config = create_engine(url), Config()
        config.set_main_option("script_location", str(module.SCRIPTS))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()
        return url

    return make


def test_jobs_of_the_first_tables_go_on_in_every_state(old_tables):
    states = ("queued", "running", "completed", "failed", "cancelled")
    rows = [statement for state in states for statement in of_first_tables(state, time.time())]
    engine = open_database(old_tables("0001", rows))
    stores = stores_on(engine)
    assert {job.id: job.state for job in stores.jobs.page("app")[0]} == {
        f"j-{state}": state for state in ("queued", "running", "completed", "failed", "cancelled")
    }
    backlog = stores.jobs.backlog()["m"]
    assert (backlog.queued_s, backlog.running_s, backlog.num_queued, backlog.num_running) == (10.0, 10.0, 1, 1)
    claim = stores.renders.claim(Lane(name="lane", models=("m",)))
    assert (claim.render_id, claim.fence, claim.step_s, claim.inputs) == ("r-queued", 2, 2.5, {})
    stores.renders.heartbeat(claim, 3)
    with pytest.raises(ConflictError):
        stores.jobs.submit(JOB, Idempotency(owner="owner", key="key-queued", fingerprint="other"))
    for state in ("queued", "running", "completed", "failed", "cancelled"):
        stores.jobs.delete("app", f"j-{state}")
    assert stores.jobs.expire() == 0
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def old_profile(number: int, name: str, version: int, retired_at: str = "NULL") -> str:
    return (
        "INSERT INTO profiles (id, model, name, version, fields, measured, created_at, retired_at) VALUES"
        f" ('p{number}', 'm', '{name}', {version}, '{{\"num_inference_steps\": {number}}}', '{{}}', 10.0, {retired_at})"
    )


def test_profiles_of_the_second_tables_keep_their_fields_and_their_order(old_tables):
    rows = [old_profile(1, "turbo", 1), old_profile(2, "turbo", 2), old_profile(3, "turbo", 3, "20.0")]
    engine = open_database(old_tables("0002", [*rows, old_profile(4, "calm", 1)]))
    profiles = stores_on(engine).profiles
    assert [(entry.id, entry.state) for entry in profiles.current("m")] == [("p4", "active"), ("p2", "active")]
    found = [(entry.id, entry.state, entry.reason, entry.state_since) for entry in profiles.history("turbo")]
    assert found == [
        ("p3", "retired", "by_hand", 20.0), ("p2", "active", None, 10.0), ("p1", "retired", "replaced", 10.0)
    ]  # fmt: skip
    assert profiles.get("p2").profile == {
        "model": "m", "name": "turbo", "fields": {"num_inference_steps": 2}, "measured": {},
    }  # fmt: skip
    profiles.retire("p2")
    assert profiles.get("p1").state == "active", "the one before is back"
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()
