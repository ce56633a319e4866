"""The database below the job store: its owner, its clock, its errors, and what is left after a kill -9."""

import multiprocessing
import re
import sqlite3
from dataclasses import replace

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from sakuga.errors import BusyError, LeaseLostError, StoreError
from sakuga.jobstore import Idempotency, JobStore, Lane, NewJob, open_database, open_stores, stores_on
from sakuga.jobstore.database import Database

JOB = NewJob(
    tenant="app", render_key="a" * 64, model="wan-mini", recipe={}, request={}, num_steps=20, work_s=5.0
)  # fmt: skip
LANE = Lane(name="lane-1", models=("wan-mini",))


def _own(path: str) -> str:
    try:
        open_database(f"sqlite:///{path}")
    except BusyError as error:
        return error.message
    return "no error"


def test_a_second_owner_of_the_file_is_refused(tmp_path):
    path = tmp_path / "jobs.sqlite"
    engine = open_database(f"sqlite:///{path}")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_own, (str(path),)) == f"another process owns {path}; end it, or ask it instead of the file"
    engine.dispose()


def test_a_database_that_cannot_be_used(tmp_path):
    for url in ("nothing", "mysql://host/db", "sqlite://"):
        with pytest.raises(StoreError, match=r"no (address|database)"):
            open_database(url)
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(b"this is no database, and long enough to be read as one" * 100)
    with pytest.raises(StoreError, match="move it away and restore a backup"):
        open_database(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="cannot be used"):
        open_database("postgresql://nobody@127.0.0.1:1/none")


def test_a_folder_that_cannot_be_written(tmp_path):
    """A file stands where the folder should be; rights do not stop a test that runs as root."""
    (tmp_path / "state").write_text("no folder")
    with pytest.raises(StoreError, match=r"jobs.sqlite cannot be written: .*; give a folder of your own"):
        open_database(f"sqlite:///{tmp_path / 'state' / 'jobs.sqlite'}")


def test_a_full_disk_is_an_error_of_the_store_and_passes(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    stores = stores_on(engine)
    job = stores.jobs.submit(JOB)
    claim = stores.renders.claim(LANE)
    engine.dispose()
    pages = {"max": 1}

    @event.listens_for(engine, "connect")
    def limit(connection, _):
        connection.execute(f"PRAGMA max_page_count={pages['max']}")

    large = replace(JOB, render_key="c" * 64, request={"prompt": "x" * 100_000})
    with pytest.raises(StoreError, match=r"did not answer: database or disk is full; look at its disk"):
        stores.jobs.submit(large)
    assert stores.renders.heartbeat(claim, 1).cancel is False, "what needs no room goes on"
    assert stores.jobs.page("app")[0][0].id == job.id
    pages["max"] = 10**6
    engine.dispose()
    assert stores.jobs.submit(large).state == "queued"
    engine.dispose()


def test_what_is_acknowledged_is_flushed_to_disk(tmp_path):
    """Power loss cannot be had here; that every connection asks for the flush can."""
    engine = open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    database = Database(engine)
    with database.reading() as one, database.reading() as two:
        for connection in (one, two):
            found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "foreign_keys")]
            assert (found, connection.exec_driver_sql("PRAGMA journal_mode").scalar()) == ([2, 1], "wal")
    engine.dispose()


def test_a_commit_that_was_done_and_reported_as_failed_is_settled_by_the_key(tmp_path, monkeypatch):
    """EIO of a disk: nobody knows which of the two it was; asked again, there is one job."""
    engine = open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    store, key = JobStore(engine), Idempotency(owner="app", key="once", fingerprint="f" * 64)
    commit, failed = engine.dialect.do_commit, []

    def doubtful(connection):
        commit(connection)
        if not failed:
            failed.append(connection)
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(engine.dialect, "do_commit", doubtful)
    with pytest.raises(StoreError, match="disk I/O error; look at its disk"):
        store.submit(JOB, idempotency_key=key)
    job = store.submit(JOB, idempotency_key=key)
    assert [each.id for each in store.page("app")[0]] == [job.id]
    engine.dispose()


def test_a_server_that_is_lost_is_an_error_of_the_store(stores, monkeypatch):
    def lost(*_):
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))

    monkeypatch.setattr(stores.jobs.database, "now", lost)
    for work in (lambda: stores.jobs.submit(JOB), stores.jobs.backlog):
        with pytest.raises(StoreError, match="server closed the connection"):
            work()


def test_times_are_those_of_the_server(postgres):
    """One clock for all machines: this process's own stands still, and the lease ends all the same."""
    engine = open_database(postgres)
    database = Database(engine)
    with database.reading() as connection:
        server = connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())::float").scalar_one()
        assert 0 <= database.now(connection) - server < 60
        assert database.now(connection) > database.now(connection) - 1
    stores = stores_on(engine, lease_s=0.0)
    job = stores.jobs.submit(replace(JOB, tenant="of-the-server"))
    claim = stores.renders.claim(LANE)
    with pytest.raises(LeaseLostError):
        stores.renders.heartbeat(claim, 1)
    assert stores.renders.reap() >= 1
    stores.jobs.delete("of-the-server", job.id)
    engine.dispose()


def test_what_was_acknowledged_is_there_after_the_process_was_killed(tmp_path):
    """kill -9 right after the answer."""
    path = tmp_path / "jobs.sqlite"
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_submit_and_wait, args=(str(path), theirs))
    process.start()
    job_id = ours.recv()
    process.kill()
    process.join()
    assert JobStore(open_database(f"sqlite:///{path}")).get("app", job_id).state == "queued"


def _submit_and_wait(path: str, pipe) -> None:
    pipe.send(JobStore(open_database(f"sqlite:///{path}")).submit(JOB).id)
    pipe.recv()


def test_nothing_that_is_asked_all_the_time_looks_at_every_row(tmp_path):
    """SQLite's own plans: queues are read from their indexes, and jobs that have ended cost nothing."""
    stores = open_stores(f"sqlite:///{tmp_path / 'jobs.sqlite'}", retention_s=1000.0)
    engine, asked = stores.jobs.engine, []
    job = stores.jobs.submit(replace(JOB, priority="batch"))
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2:4]))
    claim = stores.renders.claim(LANE)
    stores.jobs.submit(replace(JOB, render_key="c" * 64, priority="interactive"))
    stores.renders.heartbeat(claim, 1)
    stores.renders.preempt(after_s=-1.0)
    stores.renders.released(claim)
    stores.renders.preempt(after_s=-1.0)
    stores.renders.reap()
    stores.jobs.place("app", job.id)
    stores.jobs.events_after("app", job.id)
    for look in (
        stores.jobs.backlog,
        stores.jobs.num_queued,
        stores.jobs.garbage,
        stores.jobs.expire,
        stores.webhooks.due,
    ):
        look()
    stores.jobs.in_flight_s("app")
    scan = re.compile(r"SCAN (renders|jobs|events|attempts|artifacts|render_inputs)\b(?! USING .*INDEX ix_renders_)")
    with engine.begin() as connection:
        for statement, parameters in asked:
            if not statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE")):
                continue
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            assert not [row for row in plan if scan.search(row[3])], statement
    engine.dispose()
