"""Everybody at once: users, lanes that fail and fall silent, keepers; afterwards the invariants are audited.

Nothing acknowledged is lost, nothing ends twice, attempts stay within their limits, a completed job has its video in
storage while it is there, and when all is deleted neither database nor storage holds anything of it.
"""

import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sakuga.errors import LeaseLostError, NotFoundError
from sakuga.jobstore import Artifact, Job, Lane, NewJob, Stores, stores_on
from sakuga.jobstore.ending import STALE_S
from sakuga.jobstore.keeper import Keeper
from sakuga.jobstore.leases import AVOID_S, LEASE_S
from sakuga.jobstore.retention import TOMBSTONE_S
from sakuga.jobstore.schema import metadata

NUM_TURNS = 30
PROMPT = "a fairy in the rain"
JOB = NewJob(
    tenant="app", render_key="", model="m", recipe={"prompt": PROMPT}, request={"prompt": PROMPT}, num_steps=4,
    work_s=4.0, webhook_url="https://app.example",
)  # fmt: skip
FOLLOWS = {
    None: {"queued", "running"},
    "queued": {"running", "cancelled"},
    "running": {"step", "queued", "completed", "failed", "cancelled"},
    "step": {"step", "queued", "completed", "failed", "cancelled"},
}


class Objects:
    """Storage in memory."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._lock = threading.Lock()

    def put(self, name: str) -> None:
        with self._lock:
            self.names.add(name)

    def delete(self, prefix: str) -> int:
        with self._lock:
            gone = {name for name in self.names if name == prefix or name.startswith(f"{prefix}/")}
            self.names -= gone
            return len(gone)


class Farm:
    def __init__(self, stores: Stores, clock) -> None:
        self.stores, self.clock, self.objects = stores, clock, Objects()
        self.made: list[Job] = []
        self.keeper = Keeper(stores, self.objects)  # ty: ignore  # what a keeper needs of them

    def user(self, chance: random.Random) -> None:
        for _ in range(NUM_TURNS):
            with contextlib.suppress(NotFoundError):  # somebody else has deleted it
                self.act(chance, chance.choice(self.made) if self.made else None, chance.random())

    def act(self, chance: random.Random, job: Job | None, act: float) -> None:
        jobs = self.stores.jobs
        if job is None or act < 0.5:
            upload = f"app/uploads/{chance.getrandbits(64)}"
            jobs.discard([upload], after_s=STALE_S)
            self.objects.put(upload)
            self.made.append(jobs.submit(self.new(chance, inputs={"image": upload})))
        elif act < 0.6:
            batch = self.stores.batches.create("app", [self.new(chance) for _ in range(5)])
            self.made += jobs.page("app", batch_id=batch.id)[0]
            if chance.random() < 0.5:
                self.stores.batches.cancel("app", batch.id)
        elif act < 0.8:
            jobs.cancel("app", job.id)
        elif act < 0.9:
            jobs.delete("app", job.id)
        else:
            jobs.place("app", job.id)

    def new(self, chance: random.Random, **changes) -> NewJob:
        priority = chance.choice(["batch", "normal", "interactive"])
        return replace(JOB, render_key=f"{chance.randrange(12):064d}", priority=priority, **changes)

    def lane(self, number: int, chance: random.Random) -> None:
        for _ in range(NUM_TURNS):
            with contextlib.suppress(LeaseLostError):  # it was silent for too long
                self.work(Lane(name=f"lane-{number}", models=("m",)), chance)

    def work(self, lane: Lane, chance: random.Random) -> None:
        renders, claim = self.stores.renders, self.stores.renders.claim(lane)
        if claim is None:
            return
        for step in range(claim.first_step + 1, claim.num_steps + 1):
            orders, act = renders.heartbeat(claim, step), chance.random()
            if orders.cancel or orders.yield_lane:
                return renders.released(claim, step)
            if act < 0.3:
                self.objects.put(f"{claim.prefix}/snapshot-{step}")
                before = renders.saved(claim, f"{claim.prefix}/snapshot-{step}", step)
                if before is not None:
                    self.objects.delete(before)
            elif act < 0.36:
                return renders.failed(claim, "E_NAN", PROMPT)
            elif act < 0.42:
                return renders.lost(claim, "its disk is full")
            elif act < 0.46:
                self.clock.now += LEASE_S  # this one and others are silent
        self.publish(claim)

    def publish(self, claim) -> None:
        prefix = f"{claim.prefix}/video"
        self.objects.put(f"{prefix}/video.mp4")
        self.stores.renders.publish(claim, Artifact(prefix=prefix, sha256="b" * 64, num_bytes=1))

    def keep(self) -> None:
        for _ in range(NUM_TURNS):
            assert self.keeper.tick() and self.keeper.sweep()

    def drain(self) -> None:
        self.clock.now += AVOID_S + LEASE_S
        self.keeper.tick()
        while (claim := self.stores.renders.claim(Lane(name="last", models=("m",)))) is not None:
            self.publish(claim)


def test_everybody_at_once(engine, clock, seed):
    farm = Farm(stores_on(engine, clock=clock), clock)
    with ThreadPoolExecutor(8) as threads:
        work = [threads.submit(farm.user, random.Random(seed + number)) for number in range(3)]
        work += [threads.submit(farm.lane, number, random.Random(seed - number)) for number in range(3)]
        work += [threads.submit(farm.keep) for _ in range(2)]
        for done in work:
            done.result()
    farm.drain()
    left = audit(farm)
    for job in left:
        farm.stores.jobs.delete("app", job.id)
    for _ in range(3):
        farm.keeper.sweep()
        clock.now += STALE_S + 1
    assert farm.objects.names == set()
    clock.now += TOMBSTONE_S
    for delivery in farm.stores.webhooks.due(limit=10_000):
        farm.stores.webhooks.delivered(delivery.id, 200)
    farm.stores.jobs.expire(limit=10_000)
    with engine.begin() as connection:
        rows = {table.name: len(connection.execute(table.select()).all()) for table in metadata.sorted_tables}
    assert {name for name, number in rows.items() if number} <= {"usage"}


def audit(farm: Farm) -> list[Job]:
    """The jobs that are left, each in a state in which it may be."""
    jobs = farm.stores.jobs
    left, told = [], {each.job_id: each.type for each in farm.stores.webhooks.page("app", limit=100)[0]}
    for made in {job.id: job for job in farm.made}.values():
        try:
            job = jobs.get("app", made.id)
        except NotFoundError:
            assert jobs.is_deleted("app", made.id), "acknowledged and lost"
            continue
        left.append(job)
        before = None
        for event in jobs.events_after("app", job.id):
            assert event.type in FOLLOWS[before], f"{before} -> {event.type}"
            before = event.type
        assert before == job.state and job.state in {"completed", "failed", "cancelled"}
        assert told.get(job.id, f"video.{job.state}") == f"video.{job.state}"
        assert (job.artifact is not None) <= (job.state != "failed")
        if job.state == "completed":
            assert f"{job.artifact.prefix}/video.mp4" in farm.objects.names
            assert set(job.inputs.values()) <= farm.objects.names
    counts = jobs.counts()
    assert sum(counts.values()) == len({job.id for job in farm.made}), "counted and made"
    assert counts["deleted"] == sum(counts.values()) - len(left)
    assert left, "somebody must have kept a job"
    return left
