"""The history checker sees what it is there to see: each test breaks a sound history in one place."""

from collections.abc import Callable
from dataclasses import replace

import pytest

import history
from history import outages_s, percentile, recoveries_s, requeues_s, violations
from history_rows import (
    ROWS,
    ArtifactRow,
    AttemptRow,
    Call,
    DeliveryRow,
    EventRow,
    GarbageRow,
    History,
    InputRow,
    JobRow,
    Kill,
    MadeRow,
    Message,
    Order,
    RenderRow,
    Tables,
    read_tables,
)
from sakuga.jobstore import Artifact, Idempotency, Lane, NewJob, leases, open_stores, schema

VIDEO, UPLOAD = "app/render-1/2/video", "app/uploads/1/input_image.png"


def call(op: str, key: str, state: str | None = None, job_id: str | None = None, at: float = 0.0) -> Call:
    return Call(op=op, key=key, asked_at=at, at=at + 0.1, job_id=job_id, state=state)


def events(job_id: str, *types: str) -> list[EventRow]:
    return [EventRow(seq=number, job_id=job_id, type=each) for number, each in enumerate(types, 1)]


def sound() -> History:
    """Job 1 is completed on the second lane, job 2 cancelled, job 3 deleted, job 4 fails by its own fault."""
    jobs = [
        JobRow(id="job-1", render_id="render-1", state="completed", request='{"prompt": "x"}'),
        JobRow(id="job-2", render_id="render-2", state="cancelled"),
        JobRow(id="job-3", render_id="render-3", state="completed", is_deleted=1),
        JobRow(id="job-4", render_id="render-4", state="failed", error_code="E_NAN"),
    ]
    renders = [
        RenderRow(
            id="render-1", render_key="k1", recipe='{"a": 1}', state="completed", fence=2, num_steps=8, num_lost=1
        ),
        RenderRow(id="render-2", render_key="k2", state="cancelled", fence=0, num_steps=8),
        RenderRow(id="render-3", render_key="k3", state="completed", fence=1, num_steps=8),
        RenderRow(
            id="render-4", render_key="k4", state="failed", fence=2, num_steps=8, num_attempts=2, error_code="E_NAN"
        ),
    ]  # fmt: skip
    attempts = [
        AttemptRow(render_id="render-1", fence=1, lane="lane-1", started_at=10, ended_at=13, outcome="lost"),
        AttemptRow(render_id="render-1", fence=2, lane="lane-2", started_at=14, ended_at=16, outcome="completed"),
        AttemptRow(render_id="render-3", fence=1, lane="lane-2", started_at=17, ended_at=18, outcome="completed"),
        AttemptRow(render_id="render-4", fence=1, lane="lane-2", started_at=19, ended_at=20, outcome="failed"),
        AttemptRow(render_id="render-4", fence=2, lane="lane-2", started_at=20, ended_at=21, outcome="failed"),
    ]
    tables = Tables(
        jobs=jobs,
        renders=renders,
        attempts=attempts,
        events=[
            *events("job-1", "queued", "running", "step", "queued", "running", "step", "completed"),
            *events("job-2", "queued", "cancelled"),
            *events("job-4", "queued", "running", "queued", "running", "failed"),
        ],
        artifacts=[ArtifactRow(render_id="render-1", prefix=VIDEO, sha256="v", num_bytes=1, receipt='{"key": "k1"}')],
        deliveries=[DeliveryRow(id="msg-1", job_id="job-1", type="video.completed", state="delivered")],
        inputs=[InputRow(render_id="render-1", name=UPLOAD)],
        made=[MadeRow(key=f"order-{number}", made=f"job-{number}") for number in range(1, 5)],
    )
    return History(
        tables=tables,
        orders=[
            Order(key="order-1", render_key="k1", has_webhook=True),
            Order(key="order-2", render_key="k2"),
            Order(key="order-3", render_key="k3"),
            Order(key="order-4", render_key="k4", is_bad=True),
        ],
        calls=[
            *(call("submit", f"order-{number}", "queued", f"job-{number}") for number in range(1, 5)),
            call("read", "order-1", "running", "job-1"),
            call("cancel", "order-2", "cancelled", "job-2"),
            call("delete", "order-3"),
        ],
        messages=[Message(id="msg-1", job_id="job-1", type="video.completed")] * 2,
        objects={f"{VIDEO}/video.mp4": "v", f"{VIDEO}/manifest.json": "m", UPLOAD: "u"},
        manifests={f"{VIDEO}/manifest.json": {f"{VIDEO}/video.mp4": "v"}},
        counts={"queued": 0, "completed": 1, "cancelled": 1, "failed": 1, "deleted": 1},
    )


def test_nothing_is_found_where_nothing_is_wrong():
    assert violations(sound()) == []


Break = Callable[[History], History]


def row(table: str, number: int, **values: object) -> Break:
    """One row with other values."""

    def broken(history: History) -> History:
        rows = list(getattr(history.tables, table))
        rows[number] = replace(rows[number], **values)
        return replace(history, tables=replace(history.tables, **{table: rows}))

    return broken


def without(table: str, number: int) -> Break:
    def broken(history: History) -> History:
        rows = list(getattr(history.tables, table))
        del rows[number]
        return replace(history, tables=replace(history.tables, **{table: rows}))

    return broken


def more(table: str, *rows: object) -> Break:
    def broken(history: History) -> History:
        return replace(history, tables=replace(history.tables, **{table: [*getattr(history.tables, table), *rows]}))

    return broken


def told(**values: object) -> Break:
    """Something else outside the tables."""
    return lambda history: replace(history, **values)


def also(*calls: Call) -> Break:
    return lambda history: replace(history, calls=[*history.calls, *calls])


def untold(op: str) -> Break:
    return lambda history: replace(history, calls=[each for each in history.calls if each.op != op])


def history_of(job_id: str, *types: str) -> Break:
    def broken(history: History) -> History:
        others = [each for each in history.tables.events if each.job_id != job_id]
        return replace(history, tables=replace(history.tables, events=others + events(job_id, *types)))

    return broken


SECOND_VIDEO = "app/render-1/1/video/manifest.json"
STEPS = [EventRow(seq=number, job_id="job-2", type="step", data=f'{{"step": {9 - number}}}') for number in (5, 6)]

BROKEN: dict[str, tuple[str, Break, str]] = {
    "damaged file": ("I1", lambda each: replace(each, tables=replace(each.tables, integrity="row 7 missing")), "row 7"),
    "acknowledged and gone": ("I1", without("jobs", 0), "acknowledged and is not there"),
    "never ended": ("I1", row("jobs", 0, state="running"), "still running"),
    "two jobs for one key": ("I1", also(call("submit", "order-1", "queued", "job-9")), "was answered with"),
    "written twice": (
        "I1",
        more("jobs", JobRow(id="job-9", render_id="render-2", state="cancelled")),
        "submitted twice",
    ),
    "cancelled by nobody": ("I1", untold("cancel"), "nobody asked"),
    "deleted by nobody": ("I1", untold("delete"), "nobody asked"),
    "there after its deletion": ("I1", row("jobs", 2, is_deleted=0), "after its deletion"),
    "bad and completed": ("I1", row("jobs", 3, state="completed"), "cannot be rendered"),
    "two artifacts": (
        "I2",
        more("artifacts", ArtifactRow(render_id="render-1", prefix="p", sha256="w", num_bytes=1)),
        "2 artifact rows",
    ),
    "completed twice": ("I2", row("attempts", 0, outcome="completed"), "was completed 2 times"),
    "two videos stored": (
        "I2",
        lambda each: replace(each, manifests={**each.manifests, SECOND_VIDEO: {}}),
        "holds 2 videos",
    ),
    "another end than was told": ("I2", also(call("read", "order-2", "completed", "job-2")), "in an answer"),
    "job and render disagree": ("I2", row("renders", 0, state="failed"), "its render"),
    "two ends": ("I2", history_of("job-2", "queued", "running", "completed", "cancelled"), "tells of"),
    "illegal move": ("I3", history_of("job-1", "queued", "completed"), "from queued to completed"),
    "after the end": ("I3", history_of("job-2", "queued", "cancelled", "running"), "from cancelled to running"),
    "backwards": ("I3", more("events", *STEPS), "went back from step 4 to 3"),
    "fence without attempt": ("I3", without("attempts", 0), "fence 2 and attempts"),
    "attempt without end": ("I3", row("attempts", 0, ended_at=None, outcome=None), "has no end"),
    "two at once": ("I3", row("attempts", 0, ended_at=15), "under way at once"),
    "completed without an attempt": ("I3", row("attempts", 2, outcome="released"), "its last attempt released"),
    "no artifact": ("I4", without("artifacts", 0), "has no artifact"),
    "artifact of no video": ("I4", row("renders", 0, state="cancelled"), "is cancelled and has an artifact"),
    "video of another": ("I4", row("artifacts", 0, receipt='{"key": "k2"}'), "of another one"),
    "other bytes": ("I4", row("artifacts", 0, sha256="w"), "not there with its sha256"),
    "no manifest": ("I4", told(manifests={}), "manifest of render"),
    "video without a row": (
        "I4",
        lambda each: replace(each, manifests={**each.manifests, "a/b/1/video/manifest.json": {}}),
        "has no row",
    ),
    "uncounted failure": ("I5", row("renders", 3, num_attempts=1), "counts 1 attempts"),
    "uncounted loss": ("I5", row("renders", 0, num_lost=0), "counts 0 lost lanes"),
    "too many": ("I5", row("renders", 3, num_attempts=3), "counts 3 attempts"),
    "farm's fault counted": ("I5", told(orders=[Order(key="order-4", render_key="k4")]), "faults of the farm"),
    "given up early": ("I5", row("renders", 3, error_code="E_DEAD_LETTER"), "given up early"),
    "orphan file": (
        "I6",
        lambda each: replace(each, objects={**each.objects, "app/render-1/1/.1.tmp": "t"}),
        "for nobody",
    ),
    "upload of a deleted job": ("I6", row("inputs", 0, render_id="render-3"), "for nobody"),
    "garbage": ("I6", more("garbage", GarbageRow(name="app/render-2")), "not cleared away"),
    "orphan process": ("I6", told(alive=["process 7"]), "process 7 runs on"),
    "prompt of a deleted job": ("I6", row("jobs", 2, request='{"prompt": "x"}'), "keeps its prompt"),
    "history of a deleted job": ("I6", more("events", *events("job-3", "queued")), "keeps its history"),
    "recipe of a deleted job": ("I6", row("renders", 2, recipe='{"prompt": "x"}'), "keeps its recipe"),
    "no message": ("I7", without("deliveries", 0), "has 0 messages"),
    "two messages": (
        "I7",
        more("deliveries", DeliveryRow(id="msg-2", job_id="job-1", type="video.completed", state="delivered")),
        "has 2 messages",
    ),
    "unasked": (
        "I7",
        more("deliveries", DeliveryRow(id="msg-2", job_id="job-2", type="video.cancelled", state="delivered")),
        "has 1 messages",
    ),
    "message of another end": ("I7", row("deliveries", 0, type="video.failed"), "says video.failed"),
    "never received": ("I7", told(messages=[]), "received were"),
    "two ids": (
        "I7",
        told(messages=[Message(id=each, job_id="job-1", type="") for each in ("msg-1", "msg-2")]),
        "received",
    ),
    "not delivered": ("I7", row("deliveries", 0, state="pending"), "is pending"),
    "wrong count": (
        "I8",
        told(counts={"completed": 2, "cancelled": 1, "failed": 1, "deleted": 1}),
        "told of 2 completed",
    ),
    "count of nothing": ("I8", told(counts={**sound().counts, "queued": 3}), "told of 3 queued"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(name):
    invariant, broken, words = BROKEN[name]
    found = violations(broken(sound()))
    assert any(each.startswith(f"{invariant}: ") and words in each for each in found), found


def test_every_invariant_has_its_breaks():
    assert (
        {invariant for invariant, _, _ in BROKEN.values()} == set(history.INVARIANTS) == {f"I{n}" for n in range(1, 9)}
    )


def test_the_rules_are_those_of_the_store():
    assert (history.MAX_ATTEMPTS, history.MAX_LOST) == (leases.MAX_ATTEMPTS, leases.MAX_LOST)
    assert {state for state in schema.STATES if state not in schema.IN_FLIGHT} == set(history.ENDED)


def test_the_rows_of_a_real_store_are_sound(tmp_path):
    path = tmp_path / "jobs.sqlite"
    stores = open_stores(f"sqlite:///{path}")
    order = Order(key="once", render_key="k1", has_webhook=True)
    job = stores.jobs.submit(
        NewJob(
            tenant="app", render_key="k1", model="m", recipe={"prompt": "x"}, request={"prompt": "x"}, num_steps=8,
            work_s=1.0, webhook_url="https://example.org", inputs={"input_image": UPLOAD},
        ),
        Idempotency(owner="app", key=order.key, fingerprint="f"),
    )  # fmt: skip
    claim = stores.renders.claim(Lane(name="lane-1", models=("m",)))
    assert claim is not None
    stores.renders.publish(claim, Artifact(prefix=VIDEO, sha256="v", num_bytes=1, receipt={"key": "k1"}))
    (delivery,) = stores.webhooks.due()
    stores.webhooks.delivered(delivery.id, 200)
    counts = stores.jobs.counts()
    stores.jobs.engine.dispose()
    tables = read_tables(path)
    assert all(getattr(tables, name) for name in ROWS), "garbage too: the attempt's snapshots, an hour later"
    found = violations(
        replace(
            sound(), tables=replace(tables, garbage=()), orders=[order], counts=counts,
            calls=[call("submit", "once", "queued", job.id)],
            messages=[Message(id=delivery.id, job_id=job.id, type=delivery.type)],
        )
    )  # fmt: skip
    assert found == []


def test_recovery_is_from_a_kill_to_the_next_claim_or_the_end():
    attempts = list(sound().tables.attempts)
    kills = [
        Kill(kind="kill_lane", at=11.5, lane="lane-1"),  # had render 1, which lane 2 claimed at 14
        Kill(kind="stop_lane", at=15.0, lane="lane-2"),  # published at 16 all the same
        Kill(kind="kill_lane", at=30.0, lane="lane-2"),  # had nothing
        Kill(kind="kill_owner", at=12.0),
    ]
    assert recoveries_s(attempts, kills) == [2.5, 1.0]
    assert requeues_s(attempts, kills) == [1.5, 1.0]
    calls = [call("read", "order-1", at=at) for at in (11.95, 14.0, 15.0)]
    assert outages_s([*calls, replace(calls[1], asked_at=12.5, at=12.6, error="E_STORE")], kills) == [
        pytest.approx(2.1)
    ]


@pytest.mark.parametrize("values, share, expected", [([], 0.5, None), ([3.0], 0.95, 3.0), ([4, 1, 3, 2], 0.5, 2)])
def test_percentiles_are_values_that_were_seen(values, share, expected):
    assert percentile(values, share) == expected
