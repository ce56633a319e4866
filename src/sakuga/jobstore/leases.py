"""What lanes do with renders: claim one for a while, say that they live, hand the result in or the render back.

A claim is a lease with a fence. The lease ends unless heartbeats renew it; the fence grows with every claim, and each
write of a lane names its own: what comes from a lane that was given up for lost changes nothing.

Two kinds of failure. The job's own (a LoRA that does not fit, NaN) uses up an attempt. The farm's (a lane that died, a
full disk) costs the job nothing and keeps that lane away from it; a render with which three lanes were lost is given
up, as it may be what kills them.     Run: pytest tests/unit/test_jobstore.py
"""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Row, Text, and_, cast, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from sakuga.errors import LeaseLostError
from sakuga.jobstore.queue import Candidate, choose, faded
from sakuga.jobstore.schema import (
    CANCELLED,
    COMPLETED,
    FAILED,
    IN_FLIGHT,
    QUEUED,
    RUNNING,
    artifacts,
    attempts,
    jobs,
    renders,
    usage,
)
from sakuga.jobstore.store import JobStore, new_id
from sakuga.jobstore.values import Artifact, Claim, Orders

LEASE_S = 30.0
"""Three heartbeats."""
MAX_ATTEMPTS = 2
"""Failures of its own after which a render has failed."""
MAX_LOST = 3
"""Lanes that may be lost with a render."""
AVOID_S = 300.0
"""How long a lane that was lost with a render is kept away from it."""
NUM_LOOKED_AT = 8
"""Of each tenant, class and model: other lanes may reach for the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A lane that asks for work."""

    name: str
    models: Collection[str]
    """That it can render."""
    loaded: frozenset[str] = frozenset()


class LeasedRenders:
    """The lanes' side of a job store."""

    def __init__(self, store: JobStore, lease_s: float = LEASE_S) -> None:
        self._store, self._lease_s = store, lease_s

    def claim(self, lane: Lane) -> Claim | None:
        """The render that this lane should do now; None when there is none for it."""
        with self._store.engine.begin() as connection:
            now = self._store.clock()
            row, candidates = None, self._candidates(connection, lane, now)
            while row is None:
                chosen = choose(candidates, lane.loaded, now)
                if chosen is None:
                    return None
                candidates = [each for each in candidates if each is not chosen]
                free = select(renders.c.id).where(renders.c.id == chosen.render_id, renders.c.state == QUEUED)
                if connection.execute(free.with_for_update(skip_locked=True)).first() is None:
                    continue  # another lane has it, on PostgreSQL
                row = connection.execute(
                    update(renders)
                    .where(renders.c.id == chosen.render_id)
                    .values(
                        state=RUNNING,
                        fence=renders.c.fence + 1,
                        lane=lane.name,
                        lease_until=now + self._lease_s,
                        started_at=now,
                        must_yield=False,
                    )
                    .returning(renders)
                ).one()
            attempt = {"render_id": row.id, "fence": row.fence, "lane": lane.name, "started_at": now}
            connection.execute(insert(attempts).values(**attempt, first_step=row.step))
            self._tell_jobs(connection, row.id, RUNNING, {"step": row.step, "num_steps": row.num_steps})
        return Claim(
            render_id=row.id, tenant=row.tenant, fence=row.fence, lane=lane.name, lease_until=row.lease_until,
            recipe=row.recipe, num_steps=row.num_steps, first_step=row.step, snapshot_key=row.snapshot_key,
        )  # fmt: skip

    def heartbeat(self, claim: Claim, step: int) -> Orders:
        """Renew the lease and say how far the render is; what the farm wants of the lane.

        Raises LeaseLostError when another lane has the render, or may have it any moment.
        """
        with self._store.engine.begin() as connection:
            row = self._held(connection, claim)
            until = self._store.clock() + self._lease_s
            connection.execute(update(renders).where(renders.c.id == row.id).values(lease_until=until, step=step))
            if step != row.step:
                told = {"step": step, "num_steps": row.num_steps}
                self._store.add_event(connection, self._jobs_of(connection, row.id), "step", told)
            return Orders(cancel=row.must_cancel, yield_lane=row.must_yield)

    def saved(self, claim: Claim, snapshot_key: str, step: int) -> str | None:
        """A snapshot is in storage; the key of the one before, which can go. Raises LeaseLostError."""
        with self._store.engine.begin() as connection:
            row = self._held(connection, claim)
            kept = {"snapshot_key": snapshot_key, "snapshot_step": step, "step": step}
            connection.execute(update(renders).where(renders.c.id == row.id).values(**kept))
            return row.snapshot_key

    def publish(self, claim: Claim, artifact: Artifact) -> bool:
        """The video is in storage: the render and its jobs are completed. Raises LeaseLostError.

        False when nobody wants it any more; the render is cancelled, and the lane removes what it stored.
        Once more after a lost answer changes nothing: an error does not mean that it was not done.
        """
        with self._store.engine.begin() as connection:
            mine = and_(artifacts.c.render_id == claim.render_id, artifacts.c.prefix == artifact.prefix)
            if connection.execute(select(artifacts.c.id).where(mine)).first() is not None:
                return True
            row = self._held(connection, claim)
            if row.must_cancel:
                self._end_attempt(connection, row, CANCELLED, row.num_steps)
                connection.execute(update(renders).where(renders.c.id == row.id).values(state=CANCELLED))
                return False
            artifact_id = new_id("artifact")
            connection.execute(
                insert(artifacts).values(
                    id=artifact_id, render_id=row.id, prefix=artifact.prefix, sha256=artifact.sha256,
                    num_bytes=artifact.num_bytes, receipt=dict(artifact.receipt), created_at=self._store.clock(),
                )
            )  # fmt: skip
            done = {"state": COMPLETED, "artifact_id": artifact_id, "step": row.num_steps}
            self._end_attempt(connection, row, COMPLETED, row.num_steps)
            connection.execute(update(renders).where(renders.c.id == row.id).values(**done))
            self._end_jobs(connection, row.id, COMPLETED, {})
            return True

    def failed(self, claim: Claim, code: str, message: str) -> None:
        """The job's own fault: once more, or failed for good. Raises LeaseLostError."""
        with self._store.engine.begin() as connection:
            row = self._held(connection, claim)
            self._end_attempt(connection, row, FAILED, row.step)
            if row.num_attempts + 1 >= MAX_ATTEMPTS:
                self._give_up(connection, row.id, code, message, num_attempts=row.num_attempts + 1)
            else:
                self._requeue(connection, row, "failed", num_attempts=row.num_attempts + 1)

    def released(self, claim: Claim) -> None:
        """The lane stops with it, by order or because it closes; the render waits on, or ends if nobody wants it.

        Raises LeaseLostError.
        """
        with self._store.engine.begin() as connection:
            row = self._held(connection, claim)
            self._end_attempt(connection, row, "released", row.step)
            if row.must_cancel:
                connection.execute(update(renders).where(renders.c.id == row.id).values(state=CANCELLED))
            else:
                self._requeue(connection, row, "released")

    def reap(self) -> int:
        """Take back what silent lanes hold; how many renders that were."""
        with self._store.engine.begin() as connection:
            silent = and_(renders.c.state == RUNNING, renders.c.lease_until < self._store.clock())
            found = select(renders).where(silent).order_by(renders.c.tenant).with_for_update(skip_locked=True)
            rows = connection.execute(found).all()
            for row in rows:
                self._lost(connection, row)
            return len(rows)

    def lost(self, claim: Claim, reason: str) -> None:
        """The farm's fault, seen at once: a dead rank, a full disk. Raises LeaseLostError."""
        with self._store.engine.begin() as connection:
            self._lost(connection, self._held(connection, claim), reason)

    def ask_to_yield(self, render_id: str) -> None:
        """The lane of this render is wanted for something more urgent; its next heartbeat says so."""
        with self._store.engine.begin() as connection:
            wanted = and_(renders.c.id == render_id, renders.c.state == RUNNING)
            connection.execute(update(renders).where(wanted).values(must_yield=True))

    def _candidates(self, connection: Connection, lane: Lane, now: float) -> list[Candidate]:
        """The first of each tenant, class and model; a queue of ten thousand gives a handful."""
        rank = func.row_number().over(
            partition_by=(renders.c.tenant, renders.c.priority, renders.c.model),
            order_by=(renders.c.deadline_at.is_(None), renders.c.deadline_at, renders.c.created_at, renders.c.id),
        )
        waiting = (
            select(renders, rank.label("place"))
            .where(
                renders.c.state == QUEUED,
                renders.c.model.in_(list(lane.models)),
                or_(
                    renders.c.avoid_until.is_(None),
                    renders.c.avoid_until <= now,
                    cast(renders.c.avoid, Text).not_like(f'%"{lane.name}"%'),
                ),
            )
            .subquery()
        )
        first = (
            select(waiting, usage.c.gpu_s, usage.c.at)
            .outerjoin(usage, usage.c.tenant == waiting.c.tenant)
            .where(waiting.c.place <= NUM_LOOKED_AT)
        )
        return [
            Candidate(
                render_id=row.id, tenant=row.tenant, model=row.model, priority=row.priority,
                deadline_at=row.deadline_at, created_at=row.created_at,
                used_gpu_s=0.0 if row.gpu_s is None else faded(row.gpu_s, now - row.at),
            )
            for row in connection.execute(first)
        ]  # fmt: skip

    def _held(self, connection: Connection, claim: Claim) -> Row:
        """The render, if the claim still holds."""
        wanted = select(renders).where(
            renders.c.id == claim.render_id, renders.c.fence == claim.fence, renders.c.state == RUNNING
        )
        row = connection.execute(wanted.with_for_update()).first()
        if row is None or row.lease_until < self._store.clock():
            raise LeaseLostError(f"lane {claim.lane} no longer has render {claim.render_id}; stop it and claim another")
        return row

    def _lost(self, connection: Connection, row: Row, reason: str = "its lane fell silent") -> None:
        self._end_attempt(connection, row, "lost", row.step)
        if row.must_cancel:
            connection.execute(update(renders).where(renders.c.id == row.id).values(state=CANCELLED))
        elif row.num_lost + 1 >= MAX_LOST:
            told = f"{MAX_LOST} lanes were lost with this render, the last time because {reason}"
            self._give_up(connection, row.id, "E_DEAD_LETTER", told, num_lost=row.num_lost + 1)
        else:
            until = self._store.clock() + AVOID_S
            lost = {"num_lost": row.num_lost + 1, "avoid": [*row.avoid, row.lane], "avoid_until": until}
            self._requeue(connection, row, "lost", **lost)

    def _requeue(self, connection: Connection, row: Row, why: str, **changes: object) -> None:
        """Back into the queue, from the last snapshot on, or from the start."""
        step = row.snapshot_step or 0
        values = {"state": QUEUED, "lane": None, "lease_until": None, "must_yield": False, "step": step} | changes
        connection.execute(update(renders).where(renders.c.id == row.id).values(**values))
        self._tell_jobs(connection, row.id, QUEUED, {"why": why})

    def _give_up(self, connection: Connection, render_id: str, code: str, message: str, **changes: object) -> None:
        values = {"state": FAILED, "error_code": code, "error_message": message} | changes
        connection.execute(update(renders).where(renders.c.id == render_id).values(**values))
        told = {"error_code": code, "error_message": message}
        connection.execute(update(jobs).where(_live(render_id)).values(**told))
        self._end_jobs(connection, render_id, FAILED, told)

    def _end_jobs(self, connection: Connection, render_id: str, state: str, told: Mapping[str, object]) -> None:
        self._store.add_event(connection, self._jobs_of(connection, render_id), state, told)
        ended = {"state": state, "finished_at": self._store.clock()}
        connection.execute(update(jobs).where(_live(render_id)).values(**ended))

    def _tell_jobs(self, connection: Connection, render_id: str, state: str, told: Mapping[str, object]) -> None:
        connection.execute(update(jobs).where(_live(render_id)).values(state=state))
        self._store.add_event(connection, self._jobs_of(connection, render_id), state, told)

    def _jobs_of(self, connection: Connection, render_id: str) -> list[tuple[str, str]]:
        wanted = select(jobs.c.id, jobs.c.tenant).where(_live(render_id))
        return [(row.id, row.tenant) for row in connection.execute(wanted)]

    def _end_attempt(self, connection: Connection, row: Row, outcome: str, last_step: int) -> None:
        """Its place in the history, and the lane's seconds on the tenant's account."""
        now = self._store.clock()
        this = and_(attempts.c.render_id == row.id, attempts.c.fence == row.fence)
        ended = {"ended_at": now, "last_step": last_step, "outcome": outcome}
        connection.execute(update(attempts).where(this).values(**ended))
        with contextlib.suppress(IntegrityError), connection.begin_nested():  # the first of a tenant makes its account
            connection.execute(insert(usage).values(tenant=row.tenant, gpu_s=0.0, at=now))
        used = connection.execute(select(usage).where(usage.c.tenant == row.tenant).with_for_update()).one()
        gpu_s = faded(used.gpu_s, now - used.at) + now - row.started_at
        connection.execute(update(usage).where(usage.c.tenant == row.tenant).values(gpu_s=gpu_s, at=now))


def _live(render_id: str):
    return and_(jobs.c.render_id == render_id, or_(*(jobs.c.state == state for state in IN_FLIGHT)))
