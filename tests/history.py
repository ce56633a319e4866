"""The history checker: what must hold after a farm was disturbed, whatever was done to it.

Each invariant is a pure function from a `History` to sentences that say where it is broken; none means that it holds.
They know the rules of the job store, not its code.     Run: pytest tests/unit/test_history.py
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from history_rows import AttemptRow, Call, EventRow, History, JobRow, Kill, Order

ENDED = ("completed", "failed", "cancelled")
LEGAL: dict[str | None, tuple[str, ...]] = {
    None: ("queued", "running"),
    "queued": ("running", "cancelled"),
    "running": ("step", "queued", *ENDED),
    "completed": (),
    "failed": (),
    "cancelled": (),
}
"""What may follow on what in a job's history; a step leaves it running. A job that joins a render begins as that is."""
OUTCOMES = ("completed", "failed", "lost", "released", "yielded", "parked", "cancelled")
MAX_ATTEMPTS, MAX_LOST = 2, 3
DEAD_LETTER = "E_DEAD_LETTER"
MANIFEST = "manifest.json"


def violations(history: History) -> list[str]:
    """All that is broken, each with the name of its invariant before it."""
    return [f"{name}: {told}" for name, check in INVARIANTS.items() for told in check(history)]


def no_job_is_lost(history: History) -> Iterator[str]:
    """I1: every acknowledged job is there, once, has ended, and as its user wanted it."""
    if history.tables.integrity != "ok":
        yield f"the file is damaged: {history.tables.integrity}"
    yield from lost_jobs(history)
    jobs, made = _jobs(history), {row.key: row.made for row in history.tables.made}
    answers: dict[str, set[str]] = defaultdict(set)
    for call in _acknowledged(history, "submit"):
        answers[call.key].add(str(call.job_id))
    for key, ids in answers.items():
        if ids != {made.get(key)}:
            yield f"order {key} was answered with {sorted(ids)}, on record is {made.get(key)}"
    for job_id in jobs.keys() - set(made.values()):
        yield f"job {job_id} was written without an order's key: it was submitted twice"
    for key, job, order in _ordered(history):
        tried = {call.op for call in history.calls if call.key == key}
        if job.state == "cancelled" and not tried & {"cancel", "delete"}:
            yield f"job {job.id} is cancelled, and nobody asked for it"
        if job.is_deleted and "delete" not in tried:
            yield f"job {job.id} is deleted, and nobody asked for it"
        if job.state == "completed" and order.is_bad:
            yield f"job {job.id} is completed, though its order cannot be rendered"
    for call in _acknowledged(history, "delete"):
        if (job := jobs.get(made.get(call.key, ""))) is not None and not job.is_deleted:
            yield f"job {job.id} is there after its deletion was acknowledged"


def lost_jobs(history: History) -> list[str]:
    """Acknowledged jobs that are not there or have not ended."""
    jobs, found = _jobs(history), []
    for job_id in sorted({str(call.job_id) for call in _acknowledged(history, "submit")}):
        if job_id not in jobs:
            found.append(f"job {job_id} was acknowledged and is not there")
        elif jobs[job_id].state not in ENDED:
            found.append(f"job {job_id} is still {jobs[job_id].state}")
    return found


def one_end_each(history: History) -> Iterator[str]:
    """I2: one terminal state, which never changes, and at most one published video of a render."""
    yield from published_twice(history)
    jobs, made = _jobs(history), {row.key: row.made for row in history.tables.made}
    for call in history.calls:
        job = jobs.get(made.get(call.key, ""))
        if job is not None and call.state in ENDED and call.state != job.state:
            yield f"job {job.id} was {call.state} in an answer and is {job.state} now"
    renders = {row.id: row for row in history.tables.renders}
    for job in jobs.values():
        render = renders.get(job.render_id)
        if render is None:
            yield f"job {job.id} has no render"
        elif job.state in ("completed", "failed") and render.state != job.state:
            yield f"job {job.id} is {job.state}, its render {render.id} {render.state}"
    for job_id, types in _types(history).items():
        ends = [each for each in types if each in ENDED]
        if job_id in jobs and not jobs[job_id].is_deleted and ends != [jobs[job_id].state]:
            yield f"job {job_id} is {jobs[job_id].state}, and its history tells of {ends}"


def published_twice(history: History) -> list[str]:
    """Renders with more than one video."""
    rows = Counter(row.render_id for row in history.tables.artifacts)
    completed = Counter(row.render_id for row in history.tables.attempts if row.outcome == "completed")
    stored = Counter(tuple(name.split("/")[:2]) for name in history.manifests)
    found = [f"render {render_id} has {number} artifact rows" for render_id, number in rows.items() if number > 1]
    found += [
        f"render {render_id} was completed {number} times" for render_id, number in completed.items() if number > 1
    ]
    found += [f"{'/'.join(place)} holds {number} videos" for place, number in stored.items() if number > 1]
    return found


def only_legal_moves(history: History) -> Iterator[str]:
    """I3: by the events of each job and by the attempts of each render."""
    for job_id, types in _types(history).items():
        before: str | None = None
        for kind in types:
            if kind not in LEGAL[before]:
                yield f"job {job_id} went from {before} to {kind}"
            before = "running" if kind == "step" else kind
    for job_id, events in _events(history).items():
        step = 0
        for event in events:
            if event.type == "step" and (event.step or 0) < step:
                yield f"job {job_id} went back from step {step} to {event.step}"
            step = (event.step or 0) if event.type == "step" else 0
    attempts = _attempts(history)
    for render in history.tables.renders:
        tried = attempts[render.id]
        if [row.fence for row in tried] != list(range(1, render.fence + 1)):
            yield f"render {render.id} has fence {render.fence} and attempts {[row.fence for row in tried]}"
        for row in tried:
            if row.ended_at is None or row.outcome not in OUTCOMES:
                yield f"attempt {row.fence} of render {render.id} has no end ({row.outcome})"
        for one, two in itertools.pairwise(tried):
            if one.ended_at is not None and two.started_at < one.ended_at:
                yield f"attempts {one.fence} and {two.fence} of render {render.id} were under way at once"
            if one.outcome == "completed":
                yield f"render {render.id} was tried again after it was completed"
        is_completed = bool(tried) and tried[-1].outcome == "completed"
        if is_completed != (render.state == "completed"):
            yield f"render {render.id} is {render.state}, its last attempt {tried[-1].outcome if tried else None}"


def videos_are_whole(history: History) -> Iterator[str]:
    """I4: every stored video has a row, every completed render its readable video with its sha256."""
    wanted = {job.render_id for job in history.tables.jobs if not job.is_deleted}
    rows, renders = {row.render_id: row for row in history.tables.artifacts}, history.tables.renders
    for render in renders:
        row = rows.get(render.id)
        if render.state == "completed" and render.id in wanted and row is None:
            yield f"render {render.id} is completed and has no artifact"
        if row is not None and render.state != "completed":
            yield f"render {render.id} is {render.state} and has an artifact"
        if row is not None and row.render_key != render.render_key:
            yield f"the video of render {render.id} is of another one: {row.render_key}"
    for row in history.tables.artifacts:
        if history.objects.get(f"{row.prefix}/video.mp4") != row.sha256:
            yield f"the video of render {row.render_id} is not there with its sha256"
        manifest = history.manifests.get(f"{row.prefix}/{MANIFEST}")
        stored = {name: history.objects.get(name) for name in manifest or ()}
        if manifest is None or stored != manifest:
            yield f"the manifest of render {row.render_id} is not of what is stored"
    for name in history.manifests:
        if name.removesuffix(f"/{MANIFEST}") not in {row.prefix for row in rows.values()}:
            yield f"{name} has no row"


def attempts_are_counted(history: History) -> Iterator[str]:
    """I5: attempts within the limit; faults of the farm use none."""
    attempts, bad = _attempts(history), {order.render_key for order in history.orders if order.is_bad}
    for render in history.tables.renders:
        outcomes = Counter(row.outcome for row in attempts[render.id])
        if render.num_attempts != outcomes["failed"] or render.num_attempts > MAX_ATTEMPTS:
            yield f"render {render.id} counts {render.num_attempts} attempts, {outcomes['failed']} have failed"
        if render.num_lost != outcomes["lost"] or render.num_lost > MAX_LOST:
            yield f"render {render.id} counts {render.num_lost} lost lanes, {outcomes['lost']} were"
        if render.num_attempts and render.render_key not in bad:
            yield f"render {render.id} has used {render.num_attempts} attempts for faults of the farm"
        if render.state == "failed":
            is_dead = render.error_code == DEAD_LETTER
            reached = render.num_lost == MAX_LOST if is_dead else render.num_attempts == MAX_ATTEMPTS
            if not reached:
                yield f"render {render.id} was given up early with {render.error_code}"


def nothing_stays_behind(history: History) -> Iterator[str]:
    """I6: no file that nobody needs, no process, nothing of a deleted job."""
    tables = history.tables
    needed = {row.id for row in tables.renders} & {job.render_id for job in tables.jobs if not job.is_deleted}
    kept = {row.name for row in tables.inputs if row.render_id in needed}
    for row in tables.artifacts:
        manifest = f"{row.prefix}/{MANIFEST}"
        kept |= {manifest, *history.manifests.get(manifest, ())}
    yield from (f"{name} is in storage for nobody" for name in sorted(history.objects.keys() - kept))
    yield from (f"{row.name} was not cleared away" for row in tables.garbage)
    yield from (f"{process} runs on" for process in history.alive)
    gone = {job.id for job in tables.jobs if job.is_deleted}
    yield from (
        f"deleted job {job.id} keeps its prompt" for job in tables.jobs if job.is_deleted and job.request != "{}"
    )
    yield from (f"deleted job {job_id} keeps its history" for job_id in gone & {row.job_id for row in tables.events})
    for render in tables.renders:
        if render.id not in needed and render.recipe != "{}":
            yield f"render {render.id} of deleted jobs keeps its recipe"


def every_end_is_told(history: History) -> Iterator[str]:
    """I7: one message for each ended job that asked, delivered at least once, always under the same id."""
    rows, told = defaultdict(list), defaultdict(set)
    for row in history.tables.deliveries:
        rows[row.job_id].append(row)
    for message in history.messages:
        told[message.job_id].add(message.id)
    for _, job, order in _ordered(history):
        mine = rows[job.id]
        if len(mine) != (order.has_webhook and job.state in ENDED):
            yield f"job {job.id} ({job.state}) has {len(mine)} messages"
        for row in mine:
            if row.type != f"video.{job.state}":
                yield f"the message of job {job.id} says {row.type}, it is {job.state}"
            if row.state != "delivered" or told[job.id] != {row.id}:
                yield f"message {row.id} of job {job.id} is {row.state}, received were {sorted(told[job.id])}"


def counts_are_rows(history: History) -> Iterator[str]:
    """I8: what the store tells of its jobs is what it has."""
    rows = Counter("deleted" if job.is_deleted else job.state for job in history.tables.jobs)
    for state in rows.keys() | history.counts.keys():
        if rows[state] != history.counts.get(state, 0):
            yield f"the store told of {history.counts.get(state, 0)} {state} jobs and has {rows[state]}"


INVARIANTS: dict[str, Callable[[History], Iterator[str]]] = {
    "I1": no_job_is_lost,
    "I2": one_end_each,
    "I3": only_legal_moves,
    "I4": videos_are_whole,
    "I5": attempts_are_counted,
    "I6": nothing_stays_behind,
    "I7": every_end_is_told,
    "I8": counts_are_rows,
}


def requeues_s(attempts: Sequence[AttemptRow], kills: Sequence[Kill]) -> list[float]:
    """From each hurt of a lane that had a render to the end of its attempt: when the store took it back, mostly."""
    return [row.ended_at - kill.at for kill, row in _hurt(attempts, kills) if row.ended_at is not None]


def recoveries_s(attempts: Sequence[AttemptRow], kills: Sequence[Kill]) -> list[float]:
    """From each hurt of a lane that had a render to that render's next claim, or to its end if it needed none."""
    found = []
    for kill, row in _hurt(attempts, kills):
        later = [each.started_at for each in attempts if each.render_id == row.render_id and each.fence > row.fence]
        end = min(later, default=row.ended_at if row.outcome == "completed" else None)
        if end is not None:
            found.append(end - kill.at)
    return found


def outages_s(calls: Sequence[Call], kills: Sequence[Kill]) -> list[float]:
    """From each end of the store's owner to the first answer to a question that was asked after it."""
    found = []
    for kill in kills:
        if kill.lane is None:
            answered = [call.at for call in calls if call.is_acknowledged and call.asked_at > kill.at]
            found += [min(answered) - kill.at] if answered else []
    return found


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest rank; None of nothing.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5)
    2.0
    """
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _hurt(attempts: Sequence[AttemptRow], kills: Sequence[Kill]) -> Iterator[tuple[Kill, AttemptRow]]:
    """The attempts that were under way on lanes that were hurt."""
    for kill in kills:
        for row in attempts:
            if row.lane == kill.lane and row.started_at <= kill.at and (row.ended_at is None or kill.at < row.ended_at):
                yield kill, row


def _jobs(history: History) -> dict[str, JobRow]:
    return {job.id: job for job in history.tables.jobs}


def _acknowledged(history: History, op: str) -> list[Call]:
    return [call for call in history.calls if call.op == op and call.is_acknowledged]


def _ordered(history: History) -> Iterator[tuple[str, JobRow, Order]]:
    """Each order that became a job."""
    jobs, made = _jobs(history), {row.key: row.made for row in history.tables.made}
    for order in history.orders:
        job = jobs.get(made.get(order.key, ""))
        if job is not None:
            yield order.key, job, order


def _events(history: History) -> dict[str, list[EventRow]]:
    found: dict[str, list[EventRow]] = defaultdict(list)
    for row in sorted(history.tables.events, key=lambda row: row.seq):
        found[row.job_id].append(row)
    return found


def _types(history: History) -> dict[str, list[str]]:
    return {job_id: [row.type for row in rows] for job_id, rows in _events(history).items()}


def _attempts(history: History) -> dict[str, list[AttemptRow]]:
    found: dict[str, list[AttemptRow]] = defaultdict(list)
    for row in sorted(history.tables.attempts, key=lambda row: row.fence):
        found[row.render_id].append(row)
    return found
