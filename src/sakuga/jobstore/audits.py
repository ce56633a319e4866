"""Audits: which renders of promoted profiles are held to their reference, and how that ended.

An audit is written with its job and goes on from this table, whoever works on it. What a user wrote stands in it as
long as it is open, and no longer than the user's video.     Run: pytest tests/unit/test_jobstore_profiles.py
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Row, func, select, update

from sakuga.jobstore.profiles import tell
from sakuga.jobstore.schema import FAILED, GONE, OPEN_AUDIT, PASSED, PENDING, RENDERING, audits
from sakuga.jobstore.store import JobStore
from sakuga.jobstore.values import Audit, AuditTally

ENDED = (PASSED, FAILED, GONE)


class Audits:
    """The audits of all profiles."""

    def __init__(self, store: JobStore) -> None:
        self._database = store.database

    def open(self, limit: int = 100) -> Sequence[Audit]:
        """Those that have not ended, the oldest first."""
        return self._found(audits.c.state.in_(OPEN_AUDIT), limit)

    def leftovers(self, limit: int = 100) -> Sequence[Audit]:
        """Those that have ended and whose reference is still there."""
        return self._found(audits.c.state.in_(ENDED) & audits.c.reference_id.is_not(None), limit)

    def _found(self, condition, limit: int) -> Sequence[Audit]:
        wanted = select(audits).where(condition).order_by(audits.c.created_at, audits.c.id).limit(limit)
        with self._database.reading() as connection:
            return [_audit(row) for row in connection.execute(wanted)]

    def began(self, audit_id: str, reference_id: str) -> None:
        """The job that renders its reference; noted also for an audit that has ended since, so that it is removed."""
        mine = update(audits).where(audits.c.id == audit_id)
        with self._database.writing() as connection:
            connection.execute(mine.values(reference_id=reference_id))
            connection.execute(mine.where(audits.c.state == PENDING).values(state=RENDERING))

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

    def cleared(self, audit_id: str) -> None:
        """Its reference has been removed."""
        with self._database.writing() as connection:
            connection.execute(update(audits).where(audits.c.id == audit_id).values(reference_id=None))

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
