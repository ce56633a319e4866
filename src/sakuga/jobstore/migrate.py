"""Bring a database to the tables of this program, in place, after a backup.

A change of `schema.py` comes with a new file in `migrations/versions`; a test compares the two.
Run: pytest tests/unit/test_jobstore_migrate.py
"""

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from sakuga.errors import StoreError

SCRIPTS = Path(__file__).with_name("migrations")


def migrate(engine: Engine) -> Path | None:
    """Upgrade to the newest tables; where the old state of a SQLite file was kept, if there was one to keep.

    Raises StoreError for a database that a newer program has written: there is no way back.
    """
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    scripts = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current == scripts.get_current_head():
        return None
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise StoreError(f"this database has the tables {current} of a newer program; use that, or restore a backup")
    kept = _back_up(engine, current) if current is not None and engine.dialect.name == "sqlite" else None
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # one process at a time; the others find nothing to do
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7264)")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return kept


def _back_up(engine: Engine, revision: str) -> Path:
    path = Path(str(engine.url.database))
    kept = path.with_name(f"{path.name}.before-{revision}")
    with sqlite3.connect(path) as source, sqlite3.connect(kept) as target:
        source.backup(target)
    return kept
