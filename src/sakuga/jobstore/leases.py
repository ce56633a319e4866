"""What lanes do with renders: claim one for a while, say that they live, hand the result in or the render back.

A claim is a lease with a fence. The lease ends unless heartbeats renew it; the fence grows with every claim, and each
write of a lane names its own: what comes from a lane that was given up for lost changes nothing.

Two kinds of failure. The job's own (a LoRA that does not fit, NaN) uses up an attempt. The farm's (a lane that died, a
full disk) costs the job nothing and keeps that lane away from it; a render with which three lanes were lost is given
up, as it may be what kills them.     Run: pytest tests/unit/test_jobstore.py
"""

import time
from collections.abc import Mapping

from sqlalchemy import Connection, Row, and_, insert, select, update

from sakuga.errors import LeaseLostError
from sakuga.jobstore.claiming import Lane, take
from sakuga.jobstore.database import Database
from sakuga.jobstore.ending import add_events, end_jobs, end_render, live_jobs
from sakuga.jobstore.ids import new_id
from sakuga.jobstore.preempting import YIELDED, to_ask
from sakuga.jobstore.schema import (
    CANCELLED,
    COMPLETED,
    FAILED,
    IS_RUNNING,
    QUEUED,
    RUNNING,
    artifacts,
    attempts,
    jobs,
    renders,
)
from sakuga.jobstore.store import JobStore
from sakuga.jobstore.usage import charge
from sakuga.jobstore.values import Artifact, Claim, Orders

LEASE_S = 30.0
"""Three heartbeats."""
MAX_ATTEMPTS = 2
"""Failures of its own after which a render has failed."""
MAX_LOST = 3
"""Lanes that may be lost with a render."""
AVOID_S = 300.0
"""How long a lane that was lost with a render is kept away from it."""


class LeasedRenders:
    """The lanes' side of a job store."""

    def __init__(self, store: JobStore, lease_s: float = LEASE_S) -> None:
        self._database: Database = store.database
        self._lease_s = lease_s

    def claim(self, lane: Lane, wait_s: float = 0.0) -> Claim | None:
        """The render that this lane should do now; None when there is none for it, also after a while."""
        deadline, waiters = time.monotonic() + wait_s, self._database.waiters
        with waiters.waiting(lane.models) as waiter:
            while True:
                news = waiters.looking(waiter)
                with self._database.writing() as connection:
                    claim = take(connection, lane, self._database.now(connection), self._lease_s)
                left_s = deadline - time.monotonic()
                if claim is not None:
                    return claim
                waiters.pass_on(news)
                if left_s <= 0:
                    return None
                waiter.woken.wait(min(left_s, self._database.poll_s))

    def heartbeat(self, claim: Claim, step: int) -> Orders:
        """Renew the lease and say how far the render is; what the farm wants of the lane.

        Raises LeaseLostError when another lane has the render, or may have it any moment.
        """
        with self._database.writing() as connection:
            row, now = self._held(connection, claim)
            charge(connection, row, now)
            alive = {"lease_until": now + self._lease_s, "charged_at": now, "step": step, "rest_s": _rest_s(row, step)}
            connection.execute(update(renders).where(renders.c.id == row.id).values(**alive))
            if step != row.step:
                of = [(job.id, job.tenant) for job in live_jobs(connection, row.id)]
                add_events(connection, of, "step", {"step": step, "num_steps": row.num_steps}, now)
            return Orders(cancel=row.must_cancel, yield_lane=row.must_yield)

    def saved(self, claim: Claim, snapshot_key: str, step: int) -> str | None:
        """A snapshot is in storage; the key of the one before, which can go. Raises LeaseLostError."""
        with self._database.writing() as connection:
            row, _ = self._held(connection, claim)
            kept = {"snapshot_key": snapshot_key, "snapshot_step": step, "step": step, "rest_s": _rest_s(row, step)}
            connection.execute(update(renders).where(renders.c.id == row.id).values(**kept))
            return row.snapshot_key

    def publish(self, claim: Claim, artifact: Artifact) -> bool:
        """The video is in storage: the render and its jobs are completed. Raises LeaseLostError.

        False when nobody wants it any more; the render is cancelled, and what the lane stored is removed.
        Once more after a lost answer changes nothing: an error does not mean that it was not done.
        """
        with self._database.writing() as connection:
            mine = and_(artifacts.c.render_id == claim.render_id, artifacts.c.prefix == artifact.prefix)
            if connection.execute(select(artifacts.c.id).where(mine)).first() is not None:
                return True
            row, now = self._held(connection, claim)
            state = CANCELLED if row.must_cancel else COMPLETED
            self._end_attempt(connection, row, state, row.num_steps, now)
            if row.must_cancel:
                end_render(connection, row, CANCELLED, now)
                return False
            artifact_id = new_id("artifact")
            connection.execute(
                insert(artifacts).values(
                    id=artifact_id, render_id=row.id, prefix=artifact.prefix, sha256=artifact.sha256,
                    num_bytes=artifact.num_bytes, receipt=dict(artifact.receipt), created_at=now,
                )
            )  # fmt: skip
            end_render(connection, row, COMPLETED, now, artifact_id=artifact_id, step=row.num_steps)
            end_jobs(connection, live_jobs(connection, row.id), COMPLETED, now)
            return True

    def failed(self, claim: Claim, code: str, message: str) -> None:
        """The job's own fault: once more, or failed for good. Raises LeaseLostError."""
        with self._database.writing() as connection:
            row, now = self._held(connection, claim)
            self._end_attempt(connection, row, FAILED, row.step, now)
            counted = {"num_attempts": row.num_attempts + 1}
            if row.must_cancel:
                end_render(connection, row, CANCELLED, now, **counted)
            elif row.num_attempts + 1 >= MAX_ATTEMPTS:
                _give_up(connection, row, now, code, message, **counted)
            else:
                _requeue(connection, row, now, {"why": "failed", "error_code": code}, **counted)
        self._database.waiters.tell([claim.model])

    def released(self, claim: Claim, step: int | None = None) -> None:
        """The lane stops with it, by order or because it closes; the render waits on, or ends if nobody wants it.

        Raises LeaseLostError.
        """
        with self._database.writing() as connection:
            row, now = self._held(connection, claim)
            why = YIELDED if row.must_yield else "released"
            self._end_attempt(connection, row, why, row.step if step is None else step, now)
            self._hand_back(connection, row, now, {"why": why})
        self._database.waiters.tell([claim.model])

    def park(self, claim: Claim, reason: str, for_s: float) -> None:
        """Storage or something else that every lane needs is away: the render waits, nobody's fault, for so long.

        Raises LeaseLostError.
        """
        with self._database.writing() as connection:
            row, now = self._held(connection, claim)
            self._end_attempt(connection, row, "parked", row.step, now)
            self._hand_back(connection, row, now, {"why": "parked", "reason": reason}, not_before=now + for_s)

    def lost(self, claim: Claim, reason: str) -> None:
        """The farm's fault, seen at once: a dead rank, a full disk. Raises LeaseLostError."""
        with self._database.writing() as connection:
            row, now = self._held(connection, claim)
            charge(connection, row, now)
            self._lose(connection, row, now, reason)
        self._database.waiters.tell([claim.model])

    def reap(self) -> int:
        """Take back what silent lanes hold; how many renders that were."""
        with self._database.reading() as connection:
            silent = and_(IS_RUNNING, renders.c.lease_until < self._database.now(connection))
            if connection.execute(select(renders.c.id).where(silent).limit(1)).first() is None:
                return 0
        with self._database.writing() as connection:
            now = self._database.now(connection)
            silent = and_(IS_RUNNING, renders.c.lease_until < now)
            found = select(renders).where(silent).order_by(renders.c.id).with_for_update(skip_locked=True)
            rows = connection.execute(found).all()
            for row in rows:
                self._lose(connection, row, now, "its lane fell silent")
        self._database.waiters.tell(row.model for row in rows)
        return len(rows)

    def renew_all(self) -> None:
        """Nobody could renew a lease while the store was away: all that lanes had then hold for one lease more."""
        with self._database.writing() as connection:
            until = self._database.now(connection) + self._lease_s
            short = and_(IS_RUNNING, renders.c.lease_until < until)
            connection.execute(update(renders).where(short).values(lease_until=until))

    def ask_to_yield(self, render_id: str) -> None:
        """The lane of this render is wanted for something more urgent; its next heartbeat says so."""
        with self._database.writing() as connection:
            wanted = and_(renders.c.id == render_id, IS_RUNNING)
            connection.execute(update(renders).where(wanted).values(must_yield=True))

    def preempt(self, after_s: float = 0.1) -> int:
        """Ask lanes with batch renders to make room for urgent ones that have waited so long; how many were asked."""
        with self._database.reading() as connection:
            if not to_ask(connection, self._database.now(connection), after_s):
                return 0
        with self._database.writing() as connection:
            asked = to_ask(connection, self._database.now(connection), after_s, lock=True)
            connection.execute(update(renders).where(renders.c.id.in_(asked)).values(must_yield=True))
            return len(asked)

    def _held(self, connection: Connection, claim: Claim) -> tuple[Row, float]:
        """The render, locked, and the time, if the claim still holds."""
        wanted = select(renders).where(
            renders.c.id == claim.render_id, renders.c.fence == claim.fence, renders.c.state == RUNNING
        )
        row, now = connection.execute(wanted.with_for_update()).first(), self._database.now(connection)
        if row is None or row.lease_until < now:
            raise LeaseLostError(f"lane {claim.lane} no longer has render {claim.render_id}; stop it and claim another")
        return row, now

    def _lose(self, connection: Connection, row: Row, now: float, reason: str) -> None:
        """The time in which a lane was silent is charged to nobody."""
        _note_end(connection, row, "lost", row.step, now)
        lost = {"num_lost": row.num_lost + 1}
        if not row.must_cancel and row.num_lost + 1 >= MAX_LOST:
            told = f"{MAX_LOST} lanes were lost with this render, the last time because {reason}"
            _give_up(connection, row, now, "E_DEAD_LETTER", told, **lost)
        else:
            lost |= {"avoid": [*row.avoid, row.lane], "avoid_until": now + AVOID_S}
            self._hand_back(connection, row, now, {"why": "lost"}, **lost)

    def _hand_back(
        self, connection: Connection, row: Row, now: float, told: Mapping[str, object], **values: object
    ) -> None:
        if row.must_cancel:
            end_render(connection, row, CANCELLED, now, **values)
        else:
            _requeue(connection, row, now, told, **values)

    def _end_attempt(self, connection: Connection, row: Row, outcome: str, last_step: int, now: float) -> None:
        charge(connection, row, now)
        _note_end(connection, row, outcome, last_step, now)


def _note_end(connection: Connection, row: Row, outcome: str, last_step: int, now: float) -> None:
    this = and_(attempts.c.render_id == row.id, attempts.c.fence == row.fence)
    connection.execute(update(attempts).where(this).values(ended_at=now, last_step=last_step, outcome=outcome))


def _requeue(connection: Connection, row: Row, now: float, told: Mapping[str, object], **values: object) -> None:
    """Back into the queue, from the last snapshot on, or from the start."""
    step = row.snapshot_step or 0
    back = {"state": QUEUED, "lane": None, "lease_until": None, "must_yield": False, "step": step}
    back |= {"rest_s": _rest_s(row, step)} | values
    connection.execute(update(renders).where(renders.c.id == row.id).values(**back))
    wanted_by = live_jobs(connection, row.id)
    connection.execute(update(jobs).where(jobs.c.id.in_([job.id for job in wanted_by])).values(state=QUEUED))
    add_events(connection, [(job.id, job.tenant) for job in wanted_by], QUEUED, told, now)


def _give_up(connection: Connection, row: Row, now: float, code: str, message: str, **values: object) -> None:
    told = {"error_code": code, "error_message": message}
    end_render(connection, row, FAILED, now, **told, **values)
    wanted_by = live_jobs(connection, row.id)
    connection.execute(update(jobs).where(jobs.c.id.in_([job.id for job in wanted_by])).values(**told))
    end_jobs(connection, wanted_by, FAILED, now, told)


def _rest_s(row: Row, step: int) -> float:
    return max(0.0, row.work_s - step * row.step_s)
