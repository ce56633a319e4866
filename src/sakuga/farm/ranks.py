"""The ranks of a lane as Ray actors, told what to do by one process that decides for all of them.

Every rank holds the same render. What happens at a step boundary is decided once, outside, and told to all, so no rank
waits in an exchange for one that was told something else. When a rank dies or errs alone the others may hang in an
exchange: the whole set is ended and a new one begun in the same bundles.     Run: pytest tests/ray/test_ranks.py
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sakuga.engine.session import InputFiles, Progress
from sakuga.errors import InputError, LoraError, NumericsError, RankLostError, SakugaError
from sakuga.farm.bundles import bundle_of_rank
from sakuga.parallel.plan import ParallelPlan
from sakuga.recipe import RenderRecipe
from sakuga.wan.memory import MemoryPlan

if TYPE_CHECKING:
    from sakuga.engine.driven import EngineSession

logger = logging.getLogger(__name__)

PING_S = 10.0
OTHERS_S = 15.0
"""After one rank failed, how long the others have to say what they know of it: two roll calls."""
LOAD_S = 1800.0
"""28 GB from a network disk take minutes; half an hour is no loading any more."""
RANK_OPTIONS: dict = {"max_restarts": 0, "concurrency_groups": {"control": 1}}
AGREED = (InputError, LoraError, NumericsError)
"""Errors that all ranks of a sound set raise together."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """What the ranks of a lane load and how they render. Travels between processes."""

    model: str
    weights: str | None = None
    """Folder or s3:// prefix; None: embedded in the package."""
    device: str = "cpu"
    precision: str | None = None
    """Loaded at the start; None: the card's. A recipe that asks for another one makes the ranks load anew."""
    parallel: ParallelPlan = field(default_factory=ParallelPlan)
    memory: MemoryPlan = field(default_factory=MemoryPlan)
    compile: bool = False
    hot_loras: bool = False
    allow_unverified: bool = False
    stages: tuple[str, ...] = ("encode", "denoise", "decode")
    num_threads: int | None = None
    """Of PyTorch, for each rank; None: an equal share of the node's cores."""
    niceness: int = 0


class Rank:
    """One process of a lane's set."""

    def __init__(self, spec: RankSpec, index: int) -> None:
        os.nice(spec.niceness)
        self._spec, self._index = spec, index
        self._session: EngineSession | None = None

    def meeting_point(self) -> str:
        """An address on this rank's node where the set can meet: a fixed port would be another lane's too."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def load(self, meeting_point: str) -> None:
        """Join the set and load the model."""
        import torch

        from sakuga import settings
        from sakuga.engine.driven import EngineSession
        from sakuga.engine.plan import ExecutionPlan
        from sakuga.engine.resolve import located
        from sakuga.wan.catalogue import card

        spec, size = self._spec, self._spec.parallel.world_size
        torch.set_num_threads(spec.num_threads or max(1, settings.usable_cores() // size))
        if size > 1:
            backend = "gloo" if spec.device == "cpu" else "cpu:gloo,cuda:nccl"
            torch.distributed.init_process_group(backend, init_method=meeting_point, rank=self._index, world_size=size)
        execution = ExecutionPlan(
            parallel=spec.parallel, memory=spec.memory, compile=spec.compile, hot_loras=spec.hot_loras,
            allow_unverified=spec.allow_unverified,
        )  # fmt: skip
        found = located(card(spec.model), spec.weights)
        loras = {sha256: found.lora_dir / name for name, sha256 in (found.lora_sha256 or {}).items() if found.lora_dir}
        denoises = "denoise" in spec.stages
        self._session = EngineSession(_loader(spec), execution, loras=loras, writes=self._index == 0, denoises=denoises)
        self._session.warm_up(spec.precision or card(spec.model).precision)

    def do(self, method: str, *args: object) -> object:
        assert self._session is not None, "ranks are loaded first"
        return getattr(self._session, method)(*args)

    def begin(
        self, recipe: RenderRecipe, files: InputFiles, snapshot: Path | None, contents: Mapping[Path, bytes]
    ) -> object:
        """`contents` of files that are on another node."""
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            return self.do("begin", recipe, files, snapshot)
        finally:
            for path in contents:
                path.unlink()

    @ray.method(concurrency_group="control")
    def ping(self) -> int:
        """The process; answers while a step runs."""
        return os.getpid()


def _loader(spec: RankSpec) -> Callable:
    from sakuga.engine.local import LocalEngine
    from sakuga.engine.plan import ExecutionPlan
    from sakuga.engine.ranks import RankEngine
    from sakuga.parallel.mesh import Mesh

    mesh = Mesh.create(spec.parallel)

    def load(precision: str, execution: ExecutionPlan) -> LocalEngine:
        alone = LocalEngine.load(
            spec.model, spec.weights, device=spec.device, precision=precision,
            execution=replace(execution, parallel=ParallelPlan()), stages=spec.stages,
        )  # fmt: skip
        if mesh.plan.world_size == 1:
            return alone
        return RankEngine(alone.model, mesh, execution, memory_bytes=alone.memory_bytes)

    return load


class RankSet:
    """`RenderSession` on the ranks of one lane."""

    def __init__(
        self,
        spec: RankSpec,
        placement: PlacementGroup | None = None,
        *,
        cpus_per_rank: float = 1.0,
        gpus_per_rank: float = 0.0,
    ) -> None:
        self.spec, self._placement = spec, placement
        self._cpus, self._gpus = cpus_per_rank, gpus_per_rank
        self._ranks: list[ray.actor.ActorHandle] = []
        self.generation = 0
        """Sets begun so far; work that one lost may be tried by the next."""
        self.is_broken = True

    def start(self) -> float:
        """Begin a new set in the place of the one before; the seconds until it had loaded.

        Raises RankLostError when a rank ended, and what loading raises.
        """
        began = time.monotonic()
        self.stop()
        self.generation += 1
        self.is_broken = False
        self._ranks = [self._new_rank(index, bundle) for index, bundle in enumerate(self._bundles())]
        meeting_point = self._get([self._ranks[0].meeting_point.remote()], PING_S * 6)[0]
        self._get([rank.load.remote(meeting_point) for rank in self._ranks], LOAD_S)
        return time.monotonic() - began

    def stop(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []
        self.is_broken = True

    def ping(self) -> list[int]:
        """Process ids of the ranks. Raises RankLostError."""
        return self._get([rank.ping.remote() for rank in self._ranks], PING_S)

    async def check(self, timeout_s: float = PING_S) -> None:
        """End the whole set when one of its processes is gone or does not answer: steps that wait for it end too."""
        answers = [rank.ping.remote() for rank in self._ranks]
        try:
            await asyncio.wait_for(asyncio.gather(*answers), timeout_s)
        except (RayActorError, TimeoutError, asyncio.TimeoutError) as error:  # two classes before Python 3.11
            logger.warning("a rank is gone or hangs, all are replaced: %s", type(error).__name__)
            self.stop()

    def begin(self, recipe: RenderRecipe, files: InputFiles, snapshot: Path | None = None) -> Progress:
        contents = ray.put(self._contents(files, snapshot))
        return cast("Progress", self._get([r.begin.remote(recipe, files, snapshot, contents) for r in self._ranks])[0])

    def step(self, at: Progress, /) -> Progress:
        return cast("Progress", self._tell("step", at))

    def snapshot(self, at: Progress, path: Path) -> None:
        self._tell("snapshot", at, path)

    def preview(self, at: Progress, path: Path) -> bool:
        """By the first rank alone."""
        return cast("bool", self._get([self._ranks[0].do.remote("preview", at, path)])[0])

    def finish(self, at: Progress, folder: Path) -> Mapping[str, object]:
        return cast("Mapping[str, object]", self._tell("finish", at, folder))

    def shrink(self) -> bool:
        """New ranks on the next smaller plan: one that ran out of memory alone has left its set."""
        memory = self.spec.memory.smaller
        if memory is None:
            return False
        self.spec = replace(self.spec, memory=memory, compile=False)
        self.start()
        return True

    def _tell(self, method: str, *args: object) -> object:
        return self._get([rank.do.remote(method, *args) for rank in self._ranks])[0]

    def _get(self, answers: list["ray.ObjectRef"], timeout_s: float | None = None) -> list:
        """All answers; when one is an error, the one that says most, and the set is broken unless all agree on it."""
        if not answers:
            raise RankLostError("the lane has no ranks; it begins new ones")
        try:
            return _all_or_first_error(answers, timeout_s)
        except (RayActorError, RayTaskError, GetTimeoutError):
            errors = [_error_of(answer) for answer in answers]
            told = [error for error in errors if error is not None]
            best = next((error for error in told if not isinstance(error, RankLostError)), told[0])
            self.is_broken = len(told) < len(errors) or not all(isinstance(error, AGREED) for error in told)
            raise best from None

    def _new_rank(self, index: int, bundle: int) -> "ray.actor.ActorHandle":
        strategy = None
        if self._placement is not None:
            strategy = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=bundle)
        remote = cast("ray.actor.ActorClass", ray.remote(**RANK_OPTIONS)(Rank))
        rank = remote.options(num_cpus=self._cpus, num_gpus=self._gpus, scheduling_strategy=strategy)
        return cast("ray.actor.ActorHandle", rank.remote(self.spec, index))

    def _bundles(self) -> list[int]:
        size = self.spec.parallel.world_size
        if self._placement is None:
            return list(range(size))
        return bundle_of_rank(self._nodes())[:size]

    def _nodes(self) -> list[str]:
        by_bundle = placement_group_table(self._placement)["bundles_to_node_id"]
        return [by_bundle[index] for index in sorted(by_bundle)]

    def _contents(self, files: InputFiles, snapshot: Path | None) -> dict[Path, bytes]:
        """Of the files, if a rank is on another node than this process."""
        if self._placement is None or len(set(self._nodes())) == 1:
            return {}
        paths = (*files.paths, *([] if snapshot is None else [snapshot]))
        return {path: path.read_bytes() for path in paths}


def _all_or_first_error(answers: list["ray.ObjectRef"], timeout_s: float | None) -> list:
    """As `ray.get`, but an error of the last rank is not kept waiting by a first one that hangs for its sake."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    waiting = list(answers)
    while waiting:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=left_s)
        if not ready:
            raise GetTimeoutError("a rank does not answer")
        ray.get(ready)
    return ray.get(answers)


def _error_of(answer: "ray.ObjectRef") -> Exception | None:
    """What a rank raised; None where it did its part."""
    try:
        ray.get(answer, timeout=OTHERS_S)
    except RayTaskError as error:
        cause = error.cause
        return cause if isinstance(cause, SakugaError) else error
    except (RayActorError, GetTimeoutError) as error:
        return RankLostError(f"a rank was lost: {type(error).__name__}; new ranks are begun")
    return None
