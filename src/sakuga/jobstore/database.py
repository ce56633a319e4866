"""Connections to the job store's database, set up so that an acknowledged job is on disk.

SQLite runs in WAL mode with `synchronous=FULL`: NORMAL can lose what was acknowledged when the power fails. Every
transaction begins with BEGIN IMMEDIATE, since a read that becomes a write is refused when another writer was faster.
One process owns the file: before 3.51.3, two of them can corrupt it. Several machines share a PostgreSQL server.

Run: pytest tests/unit/test_jobstore.py
"""

import fcntl
import os
import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.pool import ConnectionPoolEntry

from sakuga.errors import BusyError, StoreError, shown
from sakuga.jobstore.migrate import migrate

BUSY_TIMEOUT_S = 10
FORMS = "write sqlite:///FILE or postgresql://..."


def open_database(url: str) -> Engine:
    """The engine of `sqlite:///FILE` or `postgresql+psycopg://...`, its tables made or brought up to date.

    Raises StoreError for an address that cannot be used, a file that is damaged and tables of a newer program;
    BusyError when another process owns the file.
    """
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise StoreError(f"{shown(url)} is no address of a database; {FORMS}") from error
    if address.get_backend_name() == "postgresql":
        engine = create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    elif address.get_backend_name() == "sqlite" and address.database:
        engine = _sqlite(Path(address.database))
    else:
        raise StoreError(f"{shown(url)} is no database for jobs; {FORMS}")
    try:
        migrate(engine)
    except DatabaseError as error:
        raise StoreError(f"{shown(url)} cannot be used: {error.orig}; check the address and its rights") from error
    return engine


def _sqlite(path: Path) -> Engine:
    path.parent.mkdir(parents=True, exist_ok=True)
    _own(path)
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver would begin deferred transactions by itself
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_S}000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.connect() as connection:
            verdict = connection.exec_driver_sql("PRAGMA quick_check").scalar()
    except DatabaseError as error:
        raise StoreError(f"{path} is no database: {error.orig}; move it away and restore a backup") from error
    if verdict != "ok":
        raise StoreError(f"{path} is damaged: {verdict}; move it away and restore a backup")
    return engine


def _own(path: Path) -> None:
    """A lock that the kernel drops when this process ends; its descriptor stays open as long as the process lives."""
    descriptor = os.open(f"{path}.owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BusyError(f"another process owns {path}; end it, or ask it instead of the file") from None
