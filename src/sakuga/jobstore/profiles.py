"""Promoted speed profiles: versions that never change, and where each is between canary and retired.

Of a model's name at most one version is active and at most one, a newer one, in canary. A version that another one
replaces waits: the end of its successor brings it back. What is chosen and measured is `sakuga.tuning`'s, here it is
JSON.     Run: pytest tests/unit/test_jobstore_profiles.py
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from sakuga.errors import ConflictError, InputError, NotFoundError, shown
from sakuga.jobstore.ids import new_id
from sakuga.jobstore.schema import profile_events, profiles
from sakuga.jobstore.store import JobStore
from sakuga.jobstore.values import ProfileEntry, ProfileEvent

CANARY, ACTIVE, RETIRED = "canary", "active", "retired"
LIVE = (CANARY, ACTIVE)
ROLLED_BACK, REPLACED, BY_HAND = "rolled_back", "replaced", "by_hand"
NUM_EVENTS = 100
"""Of a history, the last ones."""


class ProfileRegistry:
    """Speed profiles that have been promoted."""

    def __init__(self, store: JobStore) -> None:
        self._database = store.database

    def promote(self, owner: str, profile: Mapping[str, object], content_sha256: str) -> ProfileEntry:
        """The next version of a profile, in canary; the newest live one if that says the same.

        Raises ConflictError while another version is in canary.
        """
        model, name = str(profile["model"]), str(profile["name"])
        for _ in range(3):
            try:
                with self._database.writing() as connection:
                    versions = _versions(connection, model, name)
                    newest = next((row for row in versions if row.state in LIVE), None)
                    if newest is not None and _says(newest) == (content_sha256, profile["bars"]):
                        return _entry(newest)
                    if newest is not None and newest.state == CANARY:
                        raise ConflictError(
                            f"profile {shown(name)} version {newest.version} is still tried on "
                            f"{newest.canary_share:.0%} of the requests; wait for its audits or retire it"
                        )
                    return self._insert(connection, owner, profile, content_sha256, versions)
            except IntegrityError:  # on PostgreSQL somebody was faster with this version
                continue
        raise ConflictError(f"profile {shown(name)} is being promoted many times at once; try again")

    def _insert(
        self,
        connection: Connection,
        owner: str,
        profile: Mapping[str, object],
        content_sha256: str,
        versions: Sequence[Row],
    ) -> ProfileEntry:
        now = self._database.now(connection)
        row = {
            "id": new_id("profile"), "model": profile["model"], "name": profile["name"],
            "version": versions[0].version + 1 if versions else 1, "state": CANARY, "state_since": now,
            "owner": owner, "canary_share": profile["canary_share"], "content_sha256": content_sha256,
            "profile": dict(profile), "created_at": now,
        }  # fmt: skip
        connection.execute(insert(profiles).values(**row))
        tell(connection, str(row["id"]), "promoted", {"canary_share": profile["canary_share"]}, now)
        return _entry(_one(connection, str(row["id"])))

    def current(self, model: str) -> Sequence[ProfileEntry]:
        """What requests can get: of each name the active version, and the one in canary behind it."""
        wanted = select(profiles).where(profiles.c.model == model, profiles.c.state.in_(LIVE))
        with self._database.reading() as connection:
            return [_entry(row) for row in connection.execute(wanted.order_by(profiles.c.name, profiles.c.version))]

    def get(self, profile_id: str) -> ProfileEntry:
        """Raises NotFoundError."""
        with self._database.reading() as connection:
            return _entry(_one(connection, profile_id))

    def versions(self) -> Sequence[ProfileEntry]:
        """All of them, whatever became of them, by model, name and version."""
        wanted = select(profiles).order_by(profiles.c.model, profiles.c.name, profiles.c.version)
        with self._database.reading() as connection:
            return [_entry(row) for row in connection.execute(wanted)]

    def history(self, name: str) -> Sequence[ProfileEntry]:
        """All versions of that name, of any model, the newest first."""
        wanted = select(profiles).where(profiles.c.name == name)
        with self._database.reading() as connection:
            return [
                _entry(row) for row in connection.execute(wanted.order_by(profiles.c.model, profiles.c.version.desc()))
            ]

    def events(self, name: str) -> Sequence[ProfileEvent]:
        """What happened to the versions of that name, the last of it first."""
        wanted = (
            select(profile_events, profiles.c.version)
            .join(profiles, profile_events.c.profile_id == profiles.c.id)
            .where(profiles.c.name == name)
            .order_by(profile_events.c.seq.desc())
            .limit(NUM_EVENTS)
        )
        with self._database.reading() as connection:
            return [ProfileEvent(**row) for row in connection.execute(wanted).mappings()]

    def num_rollbacks(self) -> Mapping[tuple[str, str], int]:
        """By model and name."""
        wanted = (
            select(profiles.c.model, profiles.c.name, func.count())
            .join(profile_events, profile_events.c.profile_id == profiles.c.id)
            .where(profile_events.c.type == ROLLED_BACK)
            .group_by(profiles.c.model, profiles.c.name)
        )
        with self._database.reading() as connection:
            return {(model, name): number for model, name, number in connection.execute(wanted)}

    def activate(self, profile_id: str, why: Mapping[str, object] | None = None) -> ProfileEntry:
        """It is what requests get; the version that was is replaced, and waits. Raises NotFoundError."""
        with self._database.writing() as connection:
            row, others = _locked(connection, profile_id)
            if row.state != ACTIVE:
                now = self._database.now(connection)
                for other in others:
                    if other.state == ACTIVE or (other.state == CANARY and other.version < row.version):
                        _change(connection, other.id, RETIRED, now, REPLACED)
                        tell(connection, other.id, "retired", {"reason": REPLACED, "by": row.version}, now)
                _change(connection, row.id, ACTIVE, now)
                tell(connection, row.id, "activated", why or {}, now)
            return _entry(_one(connection, profile_id))

    def retire(self, profile_id: str, reason: str = BY_HAND, why: Mapping[str, object] | None = None) -> ProfileEntry:
        """It is no longer offered; if it was active, the version that it replaced is again. Raises NotFoundError."""
        if reason not in (ROLLED_BACK, BY_HAND):
            raise InputError(f"a profile is not retired because it is {shown(reason)}; say {BY_HAND} or {ROLLED_BACK}")
        with self._database.writing() as connection:
            row, others = _locked(connection, profile_id)
            if row.state != RETIRED or row.reason == REPLACED:
                now = self._database.now(connection)
                _change(connection, row.id, RETIRED, now, reason)
                kind = ROLLED_BACK if reason == ROLLED_BACK else "retired"
                tell(connection, row.id, kind, {"reason": reason, **(why or {})}, now)
                before = next((other for other in others if other.reason == REPLACED), None)
                if row.state == ACTIVE and before is not None:
                    _change(connection, before.id, ACTIVE, now)
                    tell(connection, before.id, "activated", {"after": row.version}, now)
            return _entry(_one(connection, profile_id))


def tell(connection: Connection, profile_id: str, kind: str, data: Mapping[str, object], now: float) -> None:
    """Into the history, in the transaction of the change that it tells of."""
    row = {"profile_id": profile_id, "type": kind, "data": dict(data), "at": now}
    connection.execute(insert(profile_events).values(**row))


def _versions(connection: Connection, model: str, name: str, *, lock: bool = False) -> Sequence[Row]:
    """The newest first."""
    wanted = select(profiles).where(profiles.c.model == model, profiles.c.name == name)
    wanted = wanted.order_by(profiles.c.version.desc())
    return connection.execute(wanted.with_for_update() if lock else wanted).all()


def _locked(connection: Connection, profile_id: str) -> tuple[Row, Sequence[Row]]:
    """A version, and the other ones of its name, so that nobody else changes their states."""
    row = _one(connection, profile_id)
    versions = _versions(connection, row.model, row.name, lock=True)
    return next(each for each in versions if each.id == row.id), [each for each in versions if each.id != row.id]


def _one(connection: Connection, profile_id: str) -> Row:
    row = connection.execute(select(profiles).where(profiles.c.id == profile_id)).first()
    if row is None:
        raise NotFoundError(f"there is no profile {shown(profile_id)}; GET /v1/profiles lists them")
    return row


def _change(connection: Connection, profile_id: str, state: str, now: float, reason: str | None = None) -> None:
    values = {"state": state, "state_since": now, "reason": reason}
    connection.execute(update(profiles).where(profiles.c.id == profile_id).values(**values))


def _says(row: Row) -> tuple[str, object]:
    """What it chooses, and what it is held to."""
    return row.content_sha256, row.profile.get("bars")


def _entry(row: Row) -> ProfileEntry:
    return ProfileEntry(**row._mapping)
