"""API keys: made once, shown once, kept as a hash.

A key is 256 random bits, so its sha256 needs no salt and no slow hash.     Run: pytest tests/unit/test_jobstore_keys.py
"""

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, insert, select, update

from sakuga.errors import AuthError, NotFoundError, RecipeError, did_you_mean, shown
from sakuga.jobstore.ids import new_id
from sakuga.jobstore.schema import api_keys
from sakuga.jobstore.store import JobStore
from sakuga.jobstore.values import AUDIT_TENANT

SCOPES = ("read", "write", "admin")
"""Look at one's own jobs; submit, cancel and delete them; see and change what belongs to no tenant."""
START = "sk-sakuga-"
NUM_SHOWN = 4
"""Characters behind the start by which an owner knows a key again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as the store knows it, without its secret."""

    id: str
    tenant: str
    shown: str
    scopes: tuple[str, ...]
    quota_gpu_s: float | None
    """Seconds of lanes that its tenant may have used lately; None: no limit."""
    expires_at: float | None = None
    revoked_at: float | None = None


class ApiKeys:
    """The keys of a job store."""

    def __init__(self, store: JobStore) -> None:
        self._database = store.database

    def create(
        self,
        tenant: str,
        *,
        scopes: Iterable[str] = ("read", "write"),
        quota_gpu_s: float | None = None,
        expires_at: float | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key and its secret, which cannot be had again.

        Raises RecipeError for an unknown scope, and for the farm's own tenant.
        """
        if tenant == AUDIT_TENANT:
            raise RecipeError(f"tenant {shown(tenant)} is the farm's own; take another name")
        scopes = tuple(scopes)
        for scope in scopes:
            if scope not in SCOPES:
                hint = did_you_mean(scope, SCOPES) or f"; choose from {', '.join(SCOPES)}"
                raise RecipeError(f"scope {shown(scope)} is unknown{hint}")
        secret = START + secrets.token_urlsafe(32)
        row = {
            "id": new_id("key"),
            "tenant": tenant,
            "shown": secret[: len(START) + NUM_SHOWN],
            "sha256": _sha256(secret),
            "scopes": list(scopes),
            "quota_gpu_s": quota_gpu_s,
            "expires_at": expires_at,
        }
        with self._database.writing() as connection:
            connection.execute(insert(api_keys).values(**row, created_at=self._database.now(connection)))
            return _find(connection, api_keys.c.id == row["id"])[0], secret

    def authenticate(self, secret: str) -> ApiKey:
        """The key of a secret. Raises AuthError, in the same words whatever is wrong with it."""
        with self._database.reading() as connection:
            now = self._database.now(connection)
            found = _find(connection, api_keys.c.sha256 == _sha256(secret))
        for key in found:
            if key.revoked_at is None and (key.expires_at is None or now < key.expires_at):
                return key
        raise AuthError("the API key is not known, or no longer valid; ask whoever runs this farm for one")

    def of_tenant(self, tenant: str) -> Sequence[ApiKey]:
        with self._database.reading() as connection:
            return _find(connection, api_keys.c.tenant == tenant)

    def revoke(self, key_id: str) -> None:
        """From now on nobody is let in with it. Raises NotFoundError."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            done = connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=now))
            if not done.rowcount:
                raise NotFoundError(f"there is no key {shown(key_id)}")


def _find(connection: Connection, condition: ColumnElement[bool]) -> list[ApiKey]:
    return [
        ApiKey(
            id=row.id, tenant=row.tenant, shown=row.shown, scopes=tuple(row.scopes), quota_gpu_s=row.quota_gpu_s,
            expires_at=row.expires_at, revoked_at=row.revoked_at,
        )
        for row in connection.execute(select(api_keys).where(condition).order_by(api_keys.c.created_at))
    ]  # fmt: skip


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
