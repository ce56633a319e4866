"""What a disturbed farm leaves behind, as plain values: rows of the job store, objects, and what its users were told.

`read_tables` looks at a SQLite file that nobody owns any more, by plain SQL: what is checked does not check itself.

Run: pytest tests/unit/test_history.py
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    id: str
    tenant: str = "app"
    render_id: str
    state: str
    request: str = "{}"
    error_code: str | None = None
    is_deleted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderRow:
    id: str
    tenant: str = "app"
    render_key: str
    recipe: str = "{}"
    state: str
    fence: int
    step: int = 0
    num_steps: int
    num_attempts: int = 0
    num_lost: int = 0
    error_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    render_id: str
    fence: int
    lane: str
    started_at: float
    first_step: int = 0
    ended_at: float | None
    outcome: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    seq: int
    job_id: str
    type: str
    data: str = "{}"
    at: float = 0.0

    @property
    def step(self) -> int | None:
        return json.loads(self.data).get("step")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRow:
    render_id: str
    prefix: str
    sha256: str
    num_bytes: int
    receipt: str = "{}"

    @property
    def render_key(self) -> str | None:
        return json.loads(self.receipt).get("key")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    id: str
    job_id: str
    type: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    render_id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeRow:
    """An idempotency record."""

    key: str
    made: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbageRow:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Rows of the job store, those that the invariants are about."""

    jobs: Sequence[JobRow] = ()
    renders: Sequence[RenderRow] = ()
    attempts: Sequence[AttemptRow] = ()
    events: Sequence[EventRow] = ()
    artifacts: Sequence[ArtifactRow] = ()
    deliveries: Sequence[DeliveryRow] = ()
    inputs: Sequence[InputRow] = ()
    made: Sequence[MadeRow] = ()
    garbage: Sequence[GarbageRow] = ()
    integrity: str = "ok"
    """SQLite's own verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A job as a user wants it, under an idempotency key of its own."""

    key: str
    tenant: str = "app"
    render_key: str
    is_bad: bool = False
    """It fails by its own fault, wherever it is rendered."""
    has_webhook: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request of a user and its answer."""

    op: str
    """"submit", "cancel", "delete" or "read"."""
    key: str
    """Of the order that it is about."""
    asked_at: float
    at: float
    """When the answer was there."""
    job_id: str | None = None
    state: str | None = None
    """Of the job, as answered."""
    error: str | None = None
    """Code of the error, if there was no answer: nobody knows whether it was done."""

    @property
    def is_acknowledged(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a webhook's receiver got."""

    id: str
    job_id: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A process that was hurt."""

    kind: str
    at: float
    lane: str | None = None
    """None: the owner of the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All that is known of a run after it was drained, its processes ended and its storage swept."""

    tables: Tables
    orders: Sequence[Order] = ()
    calls: Sequence[Call] = ()
    messages: Sequence[Message] = ()
    kills: Sequence[Kill] = ()
    objects: Mapping[str, str] = field(default_factory=dict)
    """sha256 of every file in storage by its name, those that are no objects too."""
    manifests: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Contents by name."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """As the store told them when it was drained."""
    alive: Sequence[str] = ()
    """Processes that should have ended."""


ROWS = {
    "jobs": JobRow,
    "renders": RenderRow,
    "attempts": AttemptRow,
    "events": EventRow,
    "artifacts": ArtifactRow,
    "deliveries": DeliveryRow,
    "inputs": InputRow,
    "made": MadeRow,
    "garbage": GarbageRow,
}
TABLE_OF = {"inputs": "render_inputs", "made": "idempotency"}

RowType = TypeVar("RowType")


def read_tables(path: Path) -> Tables:
    """The rows of a file that has no owner."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        connection.row_factory = sqlite3.Row
        rows = {name: _rows(connection, TABLE_OF.get(name, name), kind) for name, kind in ROWS.items()}
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    finally:
        connection.close()
    return Tables(**rows, integrity=verdict)  # ty: ignore[invalid-argument-type]


def _rows(connection: sqlite3.Connection, table: str, kind: type[RowType]) -> list[RowType]:
    columns = ", ".join(each.name for each in fields(kind))  # ty: ignore[invalid-argument-type]
    return [kind(**dict(row)) for row in connection.execute(f"SELECT {columns} FROM {table} ORDER BY rowid")]
