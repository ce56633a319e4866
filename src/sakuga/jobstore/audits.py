"""Audits: which renders of promoted profiles are held to their reference, and how that ended.

An audit is written with its job and goes on from this table, whoever works on it. What a user wrote stands in it as
long as it is open, and no longer than the user's video.     Run: pytest tests/unit/test_jobstore_profiles.py
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Row, func, select, update

from sakuga.jobstore.profiles import tell
from sakuga.jobstore.schema import FAILED, GONE, OPEN_AUDIT, PASSED, PENDING, RENDERING, audits, profiles
from sakuga.jobstore.store import JobStore
from sakuga.jobstore.values import Audit, AuditTally


class Audits:
    """The audits of all profiles."""

    def __init__(self, store: JobStore) -> None:
        self._database = store.database

    def open(self, limit: int = 100) -> Sequence[Audit]:
        """Those that have not ended, the oldest first; of each model so many, since lanes of one may never be idle."""
        oldest = (audits.c.created_at, audits.c.id)
        place = func.row_number().over(partition_by=profiles.c.model, order_by=oldest).label("place")
        ranked = select(audits, place).join(profiles, audits.c.profile_id == profiles.c.id)
        found = ranked.where(audits.c.state.in_(OPEN_AUDIT)).subquery()
        wanted = select(found).where(found.c.place <= limit).order_by(found.c.created_at, found.c.id)
        with self._database.reading() as connection:
            return [_audit(row) for row in connection.execute(wanted)]

    def references(self) -> frozenset[str]:
        """Jobs that open audits wait for."""
        wanted = select(audits.c.reference_id).where(audits.c.state.in_(OPEN_AUDIT), audits.c.reference_id.is_not(None))
        with self._database.reading() as connection:
            return frozenset(connection.execute(wanted).scalars())

    def began(self, audit_id: str, reference_id: str) -> None:
        """The job that renders its reference; of an audit that has ended nothing is noted."""
        mine = (audits.c.id == audit_id, audits.c.state == PENDING)
        with self._database.writing() as connection:
            connection.execute(update(audits).where(*mine).values(reference_id=reference_id, state=RENDERING))

    def ended(self, audit_id: str, passed: bool, figures: Mapping[str, float], faults: Sequence[str]) -> None:
        """For good; one that has ended before stays as it is."""
        values = {"state": PASSED if passed else FAILED, "figures": dict(figures), "faults": list(faults)}
        with self._database.writing() as connection:
            row = self._end(connection, audit_id, values)
            if row is not None:
                told = {"passed": passed, "figures": dict(figures), "faults": list(faults)}
                tell(connection, row.profile_id, "audited", told, row.ended_at)

    def gone(self, audit_id: str, why: str) -> None:
        """It cannot be judged, or need not be."""
        with self._database.writing() as connection:
            self._end(connection, audit_id, {"state": GONE, "faults": [why]})

    def _end(self, connection: Connection, audit_id: str, values: Mapping[str, object]) -> Row | None:
        mine = (audits.c.id == audit_id, audits.c.state.in_(OPEN_AUDIT))
        ended = {**values, "reference": {}, "ended_at": self._database.now(connection)}
        if not connection.execute(update(audits).where(*mine).values(**ended)).rowcount:
            return None
        return connection.execute(select(audits).where(audits.c.id == audit_id)).one()

    def verdicts(self, profile_id: str, since: float, limit: int) -> Sequence[Audit]:
        """The last that passed or failed since then, the newest first."""
        judged = (audits.c.profile_id == profile_id, audits.c.state.in_((PASSED, FAILED)), audits.c.ended_at >= since)
        wanted = select(audits).where(*judged).order_by(audits.c.ended_at.desc(), audits.c.id).limit(limit)
        with self._database.reading() as connection:
            return [_audit(row) for row in connection.execute(wanted)]

    def tally(self) -> Mapping[str, AuditTally]:
        """By profile; those without any are left out."""
        wanted = select(audits.c.profile_id, audits.c.state, func.count()).group_by(audits.c.profile_id, audits.c.state)
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        with self._database.reading() as connection:
            for profile_id, state, number in connection.execute(wanted):
                found[profile_id][state] = number
        return {
            profile_id: AuditTally(
                passed=by_state.get(PASSED, 0),
                failed=by_state.get(FAILED, 0),
                open=sum(by_state.get(state, 0) for state in OPEN_AUDIT),
            )
            for profile_id, by_state in found.items()
        }


def _audit(row: Row) -> Audit:
    return Audit(
        id=row.id, profile_id=row.profile_id, tenant=row.tenant, job_id=row.job_id, reference=row.reference,
        reference_id=row.reference_id, state=row.state, created_at=row.created_at, ended_at=row.ended_at,
        figures=row.figures, faults=row.faults,
    )  # fmt: skip
