"""A seeded chaos run: the job store's owner, lanes on Ray and users, while processes die and storage fails.

    python tests/chaos.py --seconds 90 --seed 7 --json

For so long users order, cancel and delete videos while lanes and the owner are killed or stopped and storage refuses,
fills up, stalls, answers wrongly or is cut. Then everything is left alone until no job waits, the processes are ended,
storage is swept, and `history.py` checks what must hold. The same seed gives the same disturbances and orders; what
meets what is up to the machine.     Run: pytest tests/ray/test_chaos.py
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import psutil
import ray
from ray.exceptions import RayActorError
from rich.console import Console
from rich.table import Table

from chaos_lane import LEASE_S, STORAGE_FAULTS, ChaosLane
from chaos_users import Receiver, User
from history import lost_jobs, outages_s, percentile, published_twice, recoveries_s, requeues_s, violations
from history_rows import History, Kill, read_tables
from sakuga import settings
from sakuga.farm import store_actor
from sakuga.farm.cluster import LOGICAL_CPUS, OBJECT_STORE_BYTES, RAY_ENVIRONMENT
from sakuga.farm.store_actor import connect
from sakuga.jobstore import Stores, open_stores
from sakuga.jobstore.keeper import Keeper
from sakuga.media.files import sha256_of
from sakuga.storage.objects import FolderObjects

HERE = Path(__file__).parent
NUM_LANES, NUM_USERS = 4, 3
ORDER_PAUSE_S = 0.7
"""Between two orders of a user: together a little less than the lanes can do."""
EVERY_S = 1.6
"""Between two disturbances, in the mean."""
WEIGHTS = {"kill_lane": 6, "stop_lane": 4, "kill_owner": 2, **dict.fromkeys(STORAGE_FAULTS, 1)}
DRAIN_LIMIT_S = 90.0
START_LIMIT_S, END_LIMIT_S = 90.0, 30.0
CUT_S = 6.0
"""A cut waits for the next upload."""
QUIET_S = 2.0
"""Without a message that is due; one that was not reported is due again after 1 s."""
AHEAD_S = 2 * 3600.0
"""Beyond the hour after which a lane that was given up for lost has stopped writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    at_s: float
    kind: str
    lasts_s: float
    """Of a stop and of what is wrong with storage."""
    choice: float
    """Which lane."""


def plan(seed: int, seconds: float) -> list[Disturbance]:
    """What will be done to the farm: each kind once in any order, then by weight."""
    draw = random.Random(f"disturbances of {seed}")
    kinds, at_s, planned = sorted(WEIGHTS), 0.0, []
    every_s = min(EVERY_S, seconds / (len(kinds) + 1))
    draw.shuffle(kinds)
    while (at_s := at_s + draw.uniform(0.5, 1.5) * every_s) < seconds:
        kind = kinds.pop() if kinds else draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        lasts_s = draw.uniform(1.2, 2.2) * LEASE_S if kind == "stop_lane" else draw.uniform(0.7, 2.5)
        lasts_s = CUT_S if kind == "cut" else lasts_s
        planned.append(Disturbance(at_s=at_s, kind=kind, lasts_s=lasts_s, choice=draw.random()))
    return planned


@dataclass(kw_only=True)
class RunningLane:
    name: str
    pid_ref: "ray.ObjectRef"
    end_ref: "ray.ObjectRef"
    actor: "ray.actor.ActorHandle"
    process: psutil.Process | None = None
    """None: it is starting."""
    is_stopped: bool = False


@dataclass(kw_only=True)
class Farm:
    """The processes of a run."""

    folder: Path
    url: str
    stores: Stores
    lanes: list[RunningLane] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    processes: set[psutil.Process] = field(default_factory=set)
    owner: psutil.Process | None = None
    """None: it is coming back."""
    num_started: int = 0
    _owner_ref: "ray.ObjectRef | None" = None

    @classmethod
    def start(cls, folder: Path) -> "Farm":
        (folder / "lanes").mkdir(parents=True)
        url = f"sqlite:///{folder / 'jobs.sqlite'}"
        farm = cls(folder=folder, url=url, stores=connect(url, lease_s=LEASE_S, objects=str(folder / "objects")))
        for _ in range(NUM_LANES):
            farm.start_lane()
        until(farm.is_ready, START_LIMIT_S, "lanes")
        return farm

    def is_ready(self) -> bool:
        self.supervise()
        return self.owner is not None and all(lane.process is not None for lane in self.lanes)

    def start_lane(self) -> None:
        self.num_started += 1
        name = f"lane-{self.num_started}"
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        remote = ray.remote(ChaosLane).options(num_cpus=0, runtime_env={"env_vars": {"PYTHONPATH": path}})
        actor = remote.remote(name, self.url, str(self.folder))
        self.lanes.append(
            RunningLane(name=name, actor=actor, pid_ref=actor.pid.remote(), end_ref=actor.run.remote())
        )  # fmt: skip

    def supervise(self) -> None:
        """Note processes that have started; another lane for each that has died. Raises what a lane raised."""
        self._look_for_owner()
        for lane in list(self.lanes):
            if lane.process is None and is_there(lane.pid_ref):
                with contextlib.suppress(RayActorError, psutil.NoSuchProcess):
                    lane.process = psutil.Process(ray.get(lane.pid_ref))
                    self.processes.add(lane.process)
            if is_there(lane.end_ref):
                try:
                    ray.get(lane.end_ref)
                except RayActorError:
                    self.lanes.remove(lane)
                    self.start_lane()

    def disturb(self, planned: Disturbance) -> Callable[[], None] | None:
        """Do it; what ends it. None: there is nothing to do it to at the moment."""
        if planned.kind in STORAGE_FAULTS:
            return self._break_storage(planned.kind)
        if planned.kind == "kill_owner":
            return self._kill_owner()
        able = [lane for lane in self.lanes if lane.process is not None and not lane.is_stopped]
        if not able:
            return None
        lane = able[int(planned.choice * len(able))]
        assert lane.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):  # it died this moment, of a cut upload
            if planned.kind == "kill_lane":
                lane.process.kill()
            else:
                lane.process.suspend()
                lane.is_stopped = True
            self.kills.append(Kill(kind=planned.kind, at=time.time(), lane=lane.name))
        return lambda: self._resume(lane) if lane.is_stopped else None

    def _look_for_owner(self) -> None:
        if self.owner is not None:
            return
        try:
            if self._owner_ref is None:
                self._owner_ref = store_owner().__ray_call__.remote(lambda _: os.getpid())
            elif is_there(self._owner_ref):
                ref, self._owner_ref = self._owner_ref, None
                self.owner = psutil.Process(ray.get(ref))
                self.processes.add(self.owner)
        except (RayActorError, psutil.NoSuchProcess):  # that was the one before
            self._owner_ref = None

    def _kill_owner(self) -> Callable[[], None] | None:
        if self.owner is None:
            return None
        self.owner.kill()
        self.kills.append(Kill(kind="kill_owner", at=time.time()))
        self.owner = None
        return lambda: None

    def _break_storage(self, kind: str) -> Callable[[], None]:
        fault = self.folder / ("cut" if kind == "cut" else "fault")
        fault.write_text(kind)
        self.faults[kind] += 1
        return lambda: fault.unlink(missing_ok=True)

    def _resume(self, lane: RunningLane) -> None:
        assert lane.process is not None
        lane.is_stopped = False
        with contextlib.suppress(psutil.NoSuchProcess):
            lane.process.resume()

    def end(self) -> list[str]:
        """Close the lanes, end all processes; those that stay."""
        (self.folder / "close").touch()
        ray.wait([lane.end_ref for lane in self.lanes], num_returns=len(self.lanes), timeout=END_LIMIT_S)
        for actor in [*(lane.actor for lane in self.lanes), store_owner()]:
            ray.kill(actor)
        _, alive = psutil.wait_procs(self.processes, timeout=END_LIMIT_S)
        return [f"process {process.pid}" for process in alive]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The figures of a run."""

    seed: int
    seconds: float
    wall_s: float
    jobs: int
    """Acknowledged."""
    ended: dict[str, int]
    renders: int
    attempts: int
    resumed: int
    """Attempts that went on from a snapshot."""
    kills: dict[str, int]
    faults: dict[str, int]
    lost: int
    published_twice: int
    stale_writes_refused: int
    dead_letters: int
    jobs_per_s: float
    requeued_p50_s: float | None
    """From a kill to the end of the attempt in the store."""
    requeued_p95_s: float | None
    recovery_p50_s: float | None
    """From a kill to the render's next claim, which also waits for its turn, or to its end."""
    recovery_p95_s: float | None
    store_back_p50_s: float | None
    store_back_p95_s: float | None
    violations: list[str]


def run(folder: Path, *, seconds: float, seed: int) -> Report:
    """On the Ray cluster of this process."""
    began = time.monotonic()
    farm, over, silence = Farm.start(folder), threading.Event(), threading.Event()
    objects = FolderObjects(folder / "objects")
    (folder / "picture").write_bytes(b"what users upload")
    users = [User(number, seed, farm.stores, objects, folder / "picture", over) for number in range(NUM_USERS)]
    receiver = Receiver(seed, farm.stores)
    try:
        with ThreadPoolExecutor(NUM_USERS + 1) as threads:
            at_work = [threads.submit(user.run, ORDER_PAUSE_S) for user in users]
            listening = threads.submit(receiver.run, silence)
            try:
                disturbed(farm, plan(seed, seconds), seconds)
                over.set()
                counts = drained(farm, at_work, receiver)
            finally:
                over.set()
                silence.set()
        listening.result()
    finally:
        alive = farm.end()
    history = History(
        tables=swept(folder, farm.url),
        orders=[order for user in users for order in user.orders],
        calls=[call for user in users for call in user.calls],
        messages=receiver.messages,
        kills=farm.kills,
        **stored(objects),
        counts=counts,
        alive=alive,
    )
    return report(history, farm, seed=seed, seconds=seconds, wall_s=time.monotonic() - began)


def disturbed(farm: Farm, planned: list[Disturbance], seconds: float) -> None:
    """As planned; a machine that is too busy for the plan takes longer."""
    began, todo, ends = time.monotonic(), list(planned), list[tuple[float, Callable[[], None]]]()
    while (at_s := time.monotonic() - began) < seconds or todo or ends:
        farm.supervise()
        if todo and todo[0].at_s <= at_s and (end := farm.disturb(todo[0])) is not None:
            ends.append((at_s + todo.pop(0).lasts_s, end))
        for due_s, end in [each for each in ends if each[0] <= at_s]:
            end()
            ends.remove((due_s, end))
        time.sleep(0.02)


def drained(farm: Farm, users: list[Future], receiver: Receiver) -> dict[str, int]:
    """Nobody disturbs until no job waits and every message has arrived; the store's counts then."""

    def is_over() -> bool:
        farm.supervise()
        if not all(user.done() for user in users):
            return False
        counts = farm.stores.jobs.counts()
        return not counts["queued"] + counts["running"] and time.monotonic() - receiver.quiet_since > QUIET_S

    with contextlib.suppress(TimeoutError):  # the history says what did not end
        until(is_over, DRAIN_LIMIT_S, "drained")
    for user in users:
        user.result()
    return dict(farm.stores.jobs.counts())


def swept(folder: Path, url: str):
    """The tables, after the keeper has cleared storage away as it will in two hours."""
    stores = open_stores(url, clock=lambda: time.time() + AHEAD_S)
    Keeper(stores, FolderObjects(folder / "objects")).sweep()
    stores.jobs.engine.dispose()
    return read_tables(folder / "jobs.sqlite")


def stored(objects: FolderObjects) -> dict:
    """Every file in storage."""
    names = {path.relative_to(objects.root).as_posix(): path for path in objects.root.rglob("*") if path.is_file()}
    manifests = {name: json.loads(path.read_text()) for name, path in names.items() if path.name == "manifest.json"}
    return {"objects": {name: sha256_of(path) for name, path in names.items()}, "manifests": manifests}


def report(history: History, farm: Farm, *, seed: int, seconds: float, wall_s: float) -> Report:
    tables, seen = history.tables, [json.loads(line) for line in lines(farm.folder / "lanes")]
    recovered, back = recoveries_s(tables.attempts, history.kills), outages_s(history.calls, history.kills)
    requeued = requeues_s(tables.attempts, history.kills)
    jobs = {call.job_id for call in history.calls if call.op == "submit" and call.is_acknowledged}
    kills = Counter(kill.kind for kill in history.kills)
    kills["cut_upload"] = sum(1 for _ in farm.folder.glob("cut.*"))
    return Report(
        seed=seed,
        seconds=seconds,
        wall_s=round(wall_s, 1),
        jobs=len(jobs),
        ended=dict(Counter(job.state for job in tables.jobs)) | {"deleted": sum(job.is_deleted for job in tables.jobs)},
        renders=len(tables.renders),
        attempts=len(tables.attempts),
        resumed=sum(row.first_step > 0 for row in tables.attempts),
        kills=dict(kills),
        faults=dict(farm.faults),
        lost=len(lost_jobs(history)),
        published_twice=len(published_twice(history)),
        stale_writes_refused=sum("refused" in each for each in seen),
        dead_letters=sum(row.error_code == "E_DEAD_LETTER" for row in tables.renders),
        jobs_per_s=round(len(jobs) / wall_s, 2),
        requeued_p50_s=rounded(percentile(requeued, 0.5)),
        requeued_p95_s=rounded(percentile(requeued, 0.95)),
        recovery_p50_s=rounded(percentile(recovered, 0.5)),
        recovery_p95_s=rounded(percentile(recovered, 0.95)),
        store_back_p50_s=rounded(percentile(back, 0.5)),
        store_back_p95_s=rounded(percentile(back, 0.95)),
        violations=violations(history),
    )


def lines(folder: Path) -> Iterator[str]:
    for path in folder.glob("*.jsonl"):
        yield from path.read_text().splitlines()


def rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


def store_owner() -> "ray.actor.ActorHandle":
    return ray.get_actor(store_actor.NAME, namespace=store_actor.NAMESPACE)


def is_there(ref: "ray.ObjectRef") -> bool:
    return bool(ray.wait([ref], timeout=0)[0])


def until(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.05)


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    settings.set_for_libraries(RAY_ENVIRONMENT)
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def show(figures: Report, folder: Path) -> None:
    table = Table(show_header=False, box=None)
    for name, value in asdict(figures).items():
        if name != "violations":
            told = ", ".join(f"{key} {number}" for key, number in value.items()) if isinstance(value, dict) else value
            table.add_row(name, "-" if told is None else str(told))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for each in figures.violations:
        console.print(each, markup=False)
    again = f"python tests/chaos.py --seconds {figures.seconds:g} --seed {figures.seed}"
    console.print(f"broken; what is left is in {folder}; again: {again}" if figures.violations else "nothing is broken")


def main() -> int:
    parser = argparse.ArgumentParser(description=cast("str", __doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="how long the farm is disturbed")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--json", action="store_true", help="one line of JSON at the end")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sakuga-chaos-"))
    with local_ray():
        figures = run(folder, seconds=given.seconds, seed=given.seed)
    show(figures, folder)
    if given.json:
        print(json.dumps(asdict(figures)))
    if not figures.violations:
        shutil.rmtree(folder)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
