"""What it brings that lanes pull work by predicted cost, and that batch work makes room: in virtual time.

    python benchmarks/dispatch.py --json

The store, its queue order, its leases and its preemption are the real ones on SQLite, with the simulation's clock;
`SimEngine` takes the seconds of the cost model for Wan2.1-T2V-14B at 480p on an H100, in a mix of 17, 49 and 81 frames.

`makespan_gain`: how much longer a batch takes when requests are dealt out in turn as they come, knowing no cost, than
when lanes pull it, the long renders first; median of seeds, on two lanes as in the published comparison
(vllm-omni#5135: 18 to 34 %, median 27 %), and on four and eight. `slo.{with,without}`: share of interactive renders
that end within three times their time alone while every lane has batch work, with and without preemption.
`lanes8_over_1`: throughput of eight lanes over eight times that of one, in real time, with `LaneWork` in threads on
one store.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from common import machine_facts, print_result

from sakuga.cost import DEVICES
from sakuga.engine.session import InputFiles, Progress
from sakuga.engine.simulated import SimEngine
from sakuga.farm.lane import LaneWork
from sakuga.jobstore import Artifact, Claim, Lane, NewJob, Stores, open_stores
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import FolderObjects

MODEL = "wan2.1-t2v-14b"
DEVICE = DEVICES["h100"]
FRAMES = (17, 49, 81)
PUBLISHED_LOSS = 0.27
PREEMPT_AFTER_S = 0.1
SLOWDOWN = 3.0


def recipe(frames: int, seed: int, steps: int = 40) -> RenderRecipe:
    return RenderRecipe(
        model=MODEL, weights_sha256="0" * 64, prompt="A dancer.", width=832, height=480, num_frames=frames, fps=16,
        num_inference_steps=steps, seed=seed, precision="bf16",
    )  # fmt: skip


def seconds_of(each: RenderRecipe) -> tuple[float, float]:
    """Of the whole render and of a step."""
    from sakuga.cost import Planned, estimate
    from sakuga.wan.catalogue import card

    predicted = estimate(each, card(MODEL), Planned(), DEVICE)
    return predicted.total_s, predicted.step_s


@dataclass(kw_only=True)
class VirtualLane:
    """A lane as a chain of moments: each call does what is due and says when the next is."""

    stores: Stores
    name: str
    now: float = 0.0
    claim: Claim | None = None
    at: Progress | None = None
    engine: SimEngine = field(init=False)

    def __post_init__(self) -> None:
        self.engine = SimEngine(DEVICE, sleep=self._pass)

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def turn(self, folder: Path) -> bool:
        """One stage or step; False when there is nothing to do."""
        renders = self.stores.renders
        if self.claim is None:
            self.claim = renders.claim(Lane(name=self.name, models=(MODEL,), loaded=frozenset((MODEL,))))
            if self.claim is None:
                return False
            saved = None if self.claim.snapshot_key is None else folder / self.claim.snapshot_key
            self.at = self.engine.begin(RenderRecipe.from_dict(self.claim.recipe), InputFiles(), saved)
            return True
        assert self.at is not None
        if renders.heartbeat(self.claim, self.at.step).yield_lane and not self.at.is_done:
            key = f"{self.claim.render_id}-{self.at.step}"
            self.engine.snapshot(self.at, folder / key)
            renders.saved(self.claim, key, self.at.step)
            renders.released(self.claim)
            self.claim = None
        elif self.at.is_done:
            self.engine.finish(self.at, folder)
            renders.publish(self.claim, Artifact(prefix=self.claim.prefix, sha256="0" * 64, num_bytes=1))
            self.claim = None
        else:
            self.at = self.engine.step(self.at)
        return True


def as_job(each: RenderRecipe, priority: str) -> NewJob:
    work_s, step_s = seconds_of(each)
    return NewJob(
        tenant="app", render_key=each.render_key, model=MODEL, recipe=each.as_dict(), request={},
        num_steps=each.num_inference_steps, work_s=work_s, step_s=step_s, priority=priority,
    )  # fmt: skip


def simulate(
    together: list[RenderRecipe], urgent: list[tuple[float, RenderRecipe]], num_lanes: int, *, preempts: bool = True
) -> list[tuple[float, float, str]]:
    """Arrival, end and class of each render: a batch at the beginning, urgent ones at their times."""
    clock = [0.0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = open_stores(f"sqlite:///{folder / 'jobs.sqlite'}", lease_s=1e9, clock=lambda: clock[0])
        lanes = [VirtualLane(stores=stores, name=f"lane-{number}") for number in range(num_lanes)]
        order = itertools.count()
        moments: list = [(0.0, next(order), lane) for lane in lanes]
        for at, each in urgent:
            moments.append((at, next(order), (each, "interactive")))
            if preempts:
                moments.append((at + PREEMPT_AFTER_S + 1e-6, next(order), None))
        heapq.heapify(moments)
        batch = stores.batches.create("app", [as_job(each, "batch") for each in together])
        jobs = [job.id for job in stores.jobs.page("app", limit=100, batch_id=batch.id)[0]]
        idle: list[VirtualLane] = []
        while moments:
            clock[0], _, what = heapq.heappop(moments)
            if isinstance(what, VirtualLane):
                what.now = clock[0]
                if what.turn(folder):
                    heapq.heappush(moments, (what.now, next(order), what))
                else:
                    idle.append(what)
                continue
            if what is None:
                stores.renders.preempt(PREEMPT_AFTER_S)
                continue
            jobs.append(stores.jobs.submit(as_job(*what)).id)
            for lane in idle:
                heapq.heappush(moments, (clock[0], next(order), lane))
            idle.clear()
        ended = [stores.jobs.get("app", job_id) for job_id in jobs]
        stores.jobs.engine.dispose()
    assert all(job.finished_at is not None for job in ended)
    return [(job.created_at, float(job.finished_at or 0), job.priority) for job in ended]


def makespans(num_lanes: int, per_lane: int, seed: int) -> float:
    """How much longer the batch takes when it is dealt out."""
    draw = random.Random(seed)
    batch = [recipe(draw.choice(FRAMES), seed=number) for number in range(num_lanes * per_lane)]
    pulled = max(end for _, end, _ in simulate(batch, [], num_lanes))
    dealt = max(sum(seconds_of(each)[0] for each in batch[lane::num_lanes]) for lane in range(num_lanes))
    return dealt / pulled - 1


def slo(num_lanes: int, seed: int, *, preempts: bool) -> float:
    """Share of interactive renders within `SLOWDOWN` times their time alone."""
    draw = random.Random(seed)
    batch = [recipe(81, seed=number) for number in range(6 * num_lanes)]
    at, urgent = 0.0, []
    for number in range(12):
        at += draw.expovariate(1 / 60.0)
        urgent.append((at, recipe(17, seed=1000 + number, steps=20)))
    ended = simulate(batch, urgent, num_lanes, preempts=preempts)
    alone_s = seconds_of(recipe(17, seed=0, steps=20))[0]
    taken = [end - begun for begun, end, priority in ended if priority == "interactive"]
    return sum(each <= SLOWDOWN * alone_s for each in taken) / len(taken)


def throughput(num_lanes: int, renders_per_lane: int = 6) -> float:
    """Renders a second of real lanes, each render of 20 steps about 1.5 s."""
    each = recipe(17, seed=0, steps=20)
    speed = seconds_of(each)[0] / 1.5
    with tempfile.TemporaryDirectory() as name:
        stores = open_stores(f"sqlite:///{name}/jobs.sqlite")
        for number in range(num_lanes * renders_per_lane):
            stores.jobs.submit(
                NewJob(
                    tenant="app", render_key=f"{number:064d}", model=MODEL, recipe=each.as_dict(), request={},
                    num_steps=20, work_s=1.5,
                )
            )  # fmt: skip

        def work(number: int) -> None:
            lane = LaneWork(
                lane=Lane(name=f"lane-{number}", models=(MODEL,)), renders=stores.renders,
                objects=FolderObjects(Path(name) / "objects"), session=SimEngine(DEVICE, speed=speed),
            )  # fmt: skip
            while lane.run_one() is not None:
                pass

        threads = [threading.Thread(target=work, args=(number,)) for number in range(num_lanes)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.monotonic() - began
        stores.jobs.engine.dispose()
    return num_lanes * renders_per_lane / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=11)
    given = parser.parse_args()
    by_lanes = {
        str(lanes): statistics.median(makespans(lanes, 8, seed) for seed in range(given.seeds)) for lanes in (2, 4, 8)
    }
    shares = {
        name: statistics.mean(slo(3, seed, preempts=preempts) for seed in range(given.seeds))
        for name, preempts in (("with", True), ("without", False))
    }
    one, eight = throughput(1), throughput(8)
    result = {
        "makespan_gain": by_lanes["2"],
        "makespan_gain_by_lanes": by_lanes,
        "published_loss": PUBLISHED_LOSS,
        "slo": shares,
        "lanes8_over_1": eight / (8 * one),
        "num_seeds": given.seeds,
    }
    print_result(machine_facts() | result, as_json=given.json)


if __name__ == "__main__":
    main()
