"""Writing new jobs, one or ten thousand in a transaction: equal renders in flight are shared.

Statements run over all jobs at once, in the order of their keys: two submissions of the same jobs in another order wait
for each other instead of stopping each other.     Run: pytest tests/unit/test_jobstore.py
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Row, insert, select, tuple_, update

from sakuga.errors import ConflictError, RecipeError, did_you_mean, shown
from sakuga.jobstore.ending import add_events, chunks
from sakuga.jobstore.ids import new_id
from sakuga.jobstore.schema import (
    IN_FLIGHT,
    IS_IN_FLIGHT,
    NEVER,
    PENDING,
    QUEUED,
    RUNNING,
    audits,
    idempotency,
    jobs,
    render_inputs,
    renders,
)
from sakuga.jobstore.values import PRIORITIES, Idempotency, NewJob

APART_S = 1e-6
"""Between the renders of one submission, which are claimed by age."""


def check_priority(priority: str) -> None:
    """Raises RecipeError."""
    if priority not in PRIORITIES:
        hint = did_you_mean(priority, PRIORITIES) or f"; choose one of {', '.join(PRIORITIES)}"
        raise RecipeError(f"priority {shown(priority)} is unknown{hint}")


def known(connection: Connection, key: Idempotency | None) -> str | None:
    """What was made under this key. Raises ConflictError when that was another request."""
    if key is None:
        return None
    wanted = select(idempotency).where(idempotency.c.owner == key.owner, idempotency.c.key == key.key)
    found = connection.execute(wanted).first()
    if found is None:
        return None
    if found.fingerprint != key.fingerprint:
        raise ConflictError("this Idempotency-Key was used for another request; take a new one")
    return found.made


def remember(connection: Connection, key: Idempotency | None, made: str, now: float) -> None:
    """In the transaction of what was made."""
    if key is not None:
        row = {"owner": key.owner, "key": key.key, "fingerprint": key.fingerprint, "made": made, "created_at": now}
        connection.execute(insert(idempotency).values(**row))


def insert_jobs(connection: Connection, tenant: str, new: Sequence[NewJob], now: float) -> list[str]:
    """Ids of the jobs, in the order in which they were given. Raises IntegrityError when another was faster."""
    by_key: dict[str, list[NewJob]] = {}
    for job in new:
        by_key.setdefault(job.render_key, []).append(job)
    shared = _in_flight(connection, tenant, sorted(by_key))
    for key, row in shared.items():
        _share(connection, row, by_key[key])
    render_of = {key: shared[key].id if key in shared else new_id("render") for key in by_key}
    # The long ones of a batch first: with the short ones last, all lanes end at about the same time.
    longest_first = sorted(by_key.keys() - shared.keys(), key=lambda key: (-by_key[key][0].work_s, key))
    fresh = [
        _render(tenant, render_of[key], by_key[key], now + number * APART_S) for number, key in enumerate(longest_first)
    ]
    if fresh:
        connection.execute(insert(renders), fresh)
    named = [(new_id("video"), job, _state(shared.get(job.render_key))) for job in new]
    rows = [
        {
            "id": job_id, "tenant": tenant, "render_id": render_of[job.render_key], "request": dict(job.request),
            "priority": PRIORITIES[job.priority], "deadline_at": job.deadline_at, "created_at": now, "state": state,
            "started_at": now if state == RUNNING else None, "webhook_url": job.webhook_url,
            "batch_id": job.batch_id, "remixed_from": job.remixed_from,
        }
        for job_id, job, state in named
    ]  # fmt: skip
    connection.execute(insert(jobs), rows)
    for state in IN_FLIGHT:
        add_events(connection, [(job_id, tenant) for job_id, _, its in named if its == state], state, {}, now)
    _hold_inputs(connection, new, render_of, {row.id for row in shared.values()})
    _watch(connection, named, now)
    return [job_id for job_id, _, _ in named]


def _state(shared: Row | None) -> str:
    return QUEUED if shared is None else shared.state


def _in_flight(connection: Connection, tenant: str, keys: Sequence[str]) -> dict[str, Row]:
    """The renders with these keys, locked, in the order in which all who lock several do it."""
    ids: list[str] = []
    for some in chunks(keys):
        wanted = select(renders.c.id).where(renders.c.tenant == tenant, renders.c.render_key.in_(some), IS_IN_FLIGHT)
        ids += connection.execute(wanted).scalars()
    found: dict[str, Row] = {}
    for some in chunks(sorted(ids)):
        still = select(renders).where(renders.c.id.in_(some), IS_IN_FLIGHT).order_by(renders.c.id)
        found |= {row.render_key: row for row in connection.execute(still.with_for_update())}
    return found


def _share(connection: Connection, row: Row, wanted_by: Sequence[NewJob]) -> None:
    """The render, raised to the urgency of these jobs too; somebody wants it again, if nobody did."""
    priority = max(row.priority, *(PRIORITIES[job.priority] for job in wanted_by))
    values: dict[str, object] = {"priority": priority, "due_at": min(row.due_at, _due_at(wanted_by))}
    values |= {"must_cancel": False, "must_yield": row.must_yield and priority == row.priority}
    if not row.recipe:  # a deletion has emptied it
        values |= {"recipe": dict(wanted_by[0].recipe), "inputs": dict(wanted_by[0].inputs)}
    connection.execute(update(renders).where(renders.c.id == row.id).values(**values))


def _render(tenant: str, render_id: str, wanted_by: Sequence[NewJob], now: float) -> Mapping[str, object]:
    first = wanted_by[0]
    return {
        "id": render_id, "tenant": tenant, "render_key": first.render_key, "model": first.model,
        "recipe": dict(first.recipe), "inputs": dict(first.inputs), "work_s": first.work_s,
        "step_s": first.step_s or first.work_s / max(1, first.num_steps), "rest_s": first.work_s,
        "priority": max(PRIORITIES[job.priority] for job in wanted_by), "due_at": _due_at(wanted_by),
        "created_at": now, "state": QUEUED, "fence": 0, "step": 0, "num_steps": first.num_steps, "num_attempts": 0,
        "num_lost": 0, "avoid": [], "must_cancel": False, "must_yield": False,
    }  # fmt: skip


def _due_at(wanted_by: Sequence[NewJob]) -> float:
    return min(NEVER if job.deadline_at is None else job.deadline_at for job in wanted_by)


def _watch(connection: Connection, named: Sequence[tuple[str, NewJob, str]], now: float) -> None:
    """The audits that jobs ask for; of the same picture by the same profile one is enough."""
    wanted = {(job.audit.profile_id, job.render_key): (job_id, job) for job_id, job, _ in reversed(named) if job.audit}
    for some in chunks(sorted(wanted)):
        known = select(audits.c.profile_id, audits.c.render_key)
        for row in connection.execute(known.where(tuple_(audits.c.profile_id, audits.c.render_key).in_(some))).all():
            del wanted[row.profile_id, row.render_key]
    rows = [
        {
            "id": new_id("audit"), "profile_id": profile_id, "tenant": job.tenant, "job_id": job_id,
            "render_key": render_key, "reference": dict(job.audit.reference) if job.audit else {}, "state": PENDING,
            "figures": {}, "faults": [], "created_at": now,
        }
        for (profile_id, render_key), (job_id, job) in wanted.items()
    ]  # fmt: skip
    if rows:
        connection.execute(insert(audits), rows)


def _hold_inputs(connection: Connection, new: Sequence[NewJob], render_of: Mapping[str, str], shared: set[str]) -> None:
    """Every job's own uploads, until the last job of the render is deleted."""
    held = {(render_of[job.render_key], role, name) for job in new for role, name in job.inputs.items()}
    for some in chunks(sorted(shared)):
        there = select(render_inputs).where(render_inputs.c.render_id.in_(some))
        held -= {(row.render_id, row.role, row.name) for row in connection.execute(there)}
    if held:
        rows = [{"render_id": render_id, "role": role, "name": name} for render_id, role, name in sorted(held)]
        connection.execute(insert(render_inputs), rows)
