"""Connections to the job store's database, set up so that an acknowledged job is on disk.

SQLite runs in WAL mode with `synchronous=FULL`: NORMAL can lose what was acknowledged when the power fails. Every
transaction that writes begins with BEGIN IMMEDIATE, since a read that becomes a write is refused when another writer
was faster; those that only read wait for nobody.
One process owns the file: before 3.51.3, two of them can corrupt it. Several machines share a PostgreSQL server.

Run: pytest tests/unit/test_jobstore_database.py
"""

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, IntegrityError, TimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from sakuga.errors import BusyError, StoreError, shown
from sakuga.jobstore.migrate import migrate
from sakuga.jobstore.waiting import Waiters

BUSY_TIMEOUT_S = 10
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "secure_delete=ON",  # a deleted prompt is overwritten, also in the file
    f"busy_timeout={BUSY_TIMEOUT_S}000",
)
FORMS = "write sqlite:///FILE or postgresql://..."
DATABASE_TIME = text("SELECT extract(epoch FROM clock_timestamp())::double precision")
POLL_S = {"postgresql": 0.05, "sqlite": 5.0}
"""How often who waits for work looks by itself: for what other processes submit, and for what is parked until then."""
READS = "reads"


class Database:
    """Transactions on one database, its clock, and who waits for work in this process."""

    def __init__(self, engine: Engine, clock: Callable[[], float] | None = None) -> None:
        self.engine, self._clock = engine, clock
        self._is_sqlite = engine.dialect.name == "sqlite"
        # SQLite lets writers wait by polling, up to 0.1 s for nothing; a lock hands over at once.
        self._turn = threading.Lock() if self._is_sqlite else contextlib.nullcontext()
        self._reader = engine.execution_options(**{READS: True})
        self.waiters, self.poll_s = Waiters(), POLL_S[engine.dialect.name]

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only looks. Raises StoreError."""
        with _store_errors(), self._reader.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that changes something. Raises StoreError."""
        with self._turn, _store_errors(), self.engine.begin() as connection:
            yield connection

    def now(self, connection: Connection) -> float:
        """Seconds since 1970: of the server, which is one for all machines, where there is a server."""
        if self._clock is not None:
            return self._clock()
        if self._is_sqlite:
            return time.time()
        return connection.execute(DATABASE_TIME).scalar_one()

    def checkpoint(self) -> None:
        """Empty SQLite's log of changes into the file: it grows no further, and what was deleted is in neither."""
        if not self._is_sqlite:
            return
        with self._turn, contextlib.closing(self.engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    """What the database raises, as our error: a full disk, a lost server. What it forbids is left to the caller."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, TimeoutError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise StoreError(f"the database of jobs did not answer: {cause}; look at its disk and its server") from error


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _own(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; give a folder of your own") from error
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver would begin deferred transactions by itself
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(READS) else "BEGIN IMMEDIATE")

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
