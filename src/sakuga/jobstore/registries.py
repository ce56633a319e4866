"""LoRAs that recipes may name.     Run: pytest tests/unit/test_jobstore_registries.py"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Row, and_, delete, insert, or_, select
from sqlalchemy.exc import IntegrityError

from sakuga.errors import ConflictError, NotFoundError, shown
from sakuga.jobstore.ending import throw_away
from sakuga.jobstore.ids import new_id
from sakuga.jobstore.profiles import LIVE, REPLACED
from sakuga.jobstore.retention import keep
from sakuga.jobstore.schema import loras, profiles
from sakuga.jobstore.store import MAX_LISTED, JobStore
from sakuga.jobstore.values import LoraEntry
from sakuga.recipe import parse_request


class LoraRegistry:
    """LoRAs that tenants have uploaded."""

    def __init__(self, store: JobStore) -> None:
        self._database = store.database

    def add(
        self,
        tenant: str,
        *,
        name: str,
        sha256: str,
        num_bytes: int,
        object_name: str,
        passport: Mapping[str, object],
    ) -> LoraEntry:
        """The entry; the one that there is, if the tenant has the same file, and the object of this one is removed."""
        row = {
            "id": new_id("lora"), "tenant": tenant, "name": name, "sha256": sha256, "num_bytes": num_bytes,
            "object_name": object_name, "passport": dict(passport),
        }  # fmt: skip
        same = and_(loras.c.tenant == tenant, loras.c.sha256 == sha256)
        for _ in range(3):
            try:
                with self._database.writing() as connection:
                    now = self._database.now(connection)
                    known = connection.execute(select(loras).where(same)).first()
                    if known is None:
                        keep(connection, object_name)
                        connection.execute(insert(loras).values(**row, created_at=now))
                    elif known.object_name != object_name:
                        throw_away(connection, [object_name], now)
                    return _lora(connection.execute(select(loras).where(same)).one())
            except IntegrityError:  # on PostgreSQL somebody was faster: look again
                continue
        raise ConflictError("the same LoRA is being added many times at once; try again")

    def get(self, tenant: str, lora_id: str) -> LoraEntry:
        """Raises NotFoundError."""
        with self._database.reading() as connection:
            return _lora(_one(connection, tenant, lora_id))

    def page(self, tenant: str, after: str | None = None, limit: int = 20) -> tuple[Sequence[LoraEntry], bool]:
        """The newest first, behind `after`, and whether there are more. Raises NotFoundError for an unknown `after`."""
        limit = min(limit, MAX_LISTED)
        wanted = select(loras).where(loras.c.tenant == tenant)
        with self._database.reading() as connection:
            if after is not None:
                at = _one(connection, tenant, after).created_at
                tie = and_(loras.c.created_at == at, loras.c.id < after)
                wanted = wanted.where(or_(loras.c.created_at < at, tie))
            wanted = wanted.order_by(loras.c.created_at.desc(), loras.c.id.desc()).limit(limit + 1)
            rows = connection.execute(wanted).all()
        return [_lora(row) for row in rows[:limit]], len(rows) > limit

    def delete(self, tenant: str, lora_id: str) -> None:
        """From now on no recipe can name it; its file goes when no render under way needs it.

        Raises NotFoundError, and ConflictError while a profile that requests get, or may get again, names it.
        """
        with self._database.writing() as connection:
            row = _one(connection, tenant, lora_id)
            _check_unused(connection, row)
            connection.execute(delete(loras).where(loras.c.id == row.id))
            throw_away(connection, [row.object_name], self._database.now(connection))


def _one(connection: Connection, tenant: str, lora_id: str) -> Row:
    row = connection.execute(select(loras).where(loras.c.id == lora_id, loras.c.tenant == tenant)).first()
    if row is None:
        raise NotFoundError(f"there is no LoRA {shown(lora_id)}; GET /v1/loras lists yours")
    return row


def _check_unused(connection: Connection, lora: Row) -> None:
    """By profiles of its tenant, whose LoRAs they name, and by what they are held to."""
    wanted = select(profiles).where(
        profiles.c.owner == lora.tenant, or_(profiles.c.state.in_(LIVE), profiles.c.reason == REPLACED)
    )
    for row in connection.execute(wanted.order_by(profiles.c.name, profiles.c.version)):
        for fields in (row.profile.get("fields", {}), row.profile.get("reference", {})):
            named = parse_request({"prompt": "a dancer", "loras": fields.get("loras")}).loras
            if any(each.name == lora.id for each in named):
                raise ConflictError(
                    f"LoRA {shown(lora.id)} is used by version {row.version} of profile {shown(row.name)}; let an "
                    "admin retire that first"
                )


def _lora(row: Row) -> LoraEntry:
    return LoraEntry(
        id=row.id, tenant=row.tenant, name=row.name, sha256=row.sha256, num_bytes=row.num_bytes,
        object_name=row.object_name, passport=row.passport, created_at=row.created_at,
    )  # fmt: skip
