"""The processes of a chaos run, and what is done to them by a plan that is drawn from a seed.

Run: pytest tests/ray/test_chaos.py
"""

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
from ray.exceptions import RayActorError

from chaos_lane import LEASE_S, STORAGE_FAULTS, ChaosLane
from history_rows import Kill
from sakuga.farm import store_actor
from sakuga.farm.store_actor import connect
from sakuga.jobstore import Stores

HERE = Path(__file__).parent
NUM_LANES = 4
EVERY_S = 1.6
"""Between two disturbances, in the mean."""
WEIGHTS = {"kill_lane": 6, "stop_lane": 4, "kill_owner": 2, **dict.fromkeys(STORAGE_FAULTS, 1)}
START_LIMIT_S, END_LIMIT_S = 90.0, 30.0
OWNER_REST_S = 3.0
"""Between two kills of the owner: on a busy machine it would else be away for longer than its clients wait."""
CUT_S = 6.0
"""A cut waits for the next upload."""


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
    owner_since: float = 0.0
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
                self.owner_since = time.monotonic()
                self.processes.add(self.owner)
        except (RayActorError, psutil.NoSuchProcess):  # that was the one before
            self._owner_ref = None

    def _kill_owner(self) -> Callable[[], None] | None:
        if self.owner is None or time.monotonic() - self.owner_since < OWNER_REST_S:
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
