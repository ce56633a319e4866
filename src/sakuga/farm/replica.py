"""A lane as a Serve replica: it takes no requests, it claims renders and has them done by its ranks.

One thread works; Serve's own calls (is it healthy, shall it end) are answered beside it. When a rank dies the whole set
is begun anew in the same bundles, under another name, as the job store keeps a lane that lost a render away from it.

Run: pytest tests/ray/test_serving.py
"""

import logging
import os
import threading
import time
from dataclasses import replace

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from sakuga.cost import find_device
from sakuga.engine.session import RenderSession
from sakuga.engine.simulated import SimEngine
from sakuga.errors import RankLostError
from sakuga.farm.lane import HEARTBEAT_S, LaneWork, Outcome
from sakuga.farm.metrics import LaneMetrics
from sakuga.farm.pools import FarmArgs, PoolArgs
from sakuga.farm.ranks import RankSet
from sakuga.farm.stages import SplitSession
from sakuga.jobstore import Lane
from sakuga.storage.objects import open_objects

logger = logging.getLogger(__name__)

LANE_GRACE_S = 30.0
"""Between the wish that a lane ends and its end: one step of a 14B model at 720p takes 12.6 s, its snapshot less."""
CLAIM_WAIT_S = 2.0
MAX_FAILURES = 3
"""Turns in a row that lost their render or ended in an error of the lane, after which Serve shall make a new one."""


class LaneReplica:
    """Runs one lane until it is told to end."""

    def __init__(
        self,
        farm: FarmArgs,
        pool: PoolArgs,
        encoder: DeploymentHandle | None = None,
        decoder: DeploymentHandle | None = None,
    ) -> None:
        self._closing = threading.Event()
        self._failures = 0
        self._pool = pool
        context = serve.get_replica_context()
        self._name = f"{pool.model}/{context.replica_id.unique_id}"
        self._metrics = LaneMetrics(pool.model)
        self._ranks: RankSet | None = None
        session: RenderSession
        if pool.simulated is None:
            session = self._ranks = self._new_ranks()
            self._metrics("load_s", session.start())
        else:
            session = SimEngine(find_device(pool.simulated.device), speed=pool.simulated.speed)
        if encoder is not None or decoder is not None:
            session = SplitSession(session, encoder=encoder, decoder=decoder)
        self._work = LaneWork(
            lane=Lane(name=self._name, models=(pool.model,), loaded=frozenset((pool.model,))),
            renders=farm.stores().renders,
            objects=open_objects(farm.objects),
            session=session,
            should_close=self._closing.is_set,
            tell=self._metrics,
            heartbeat_s=min(HEARTBEAT_S, farm.lease_s / 3),
        )
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)
        self._thread.start()

    def _new_ranks(self) -> RankSet:
        return RankSet(
            self._pool.rank_spec(),
            ray.util.get_current_placement_group(),
            cpus_per_rank=self._pool.cpus_per_rank,
            gpus_per_rank=self._pool.gpus_per_rank,
        )

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                if self._ranks is not None and self._ranks.is_broken:
                    self._metrics("load_s", self._ranks.start())
                    name = f"{self._name}.{self._ranks.generation}"
                    self._work.lane = replace(self._work.lane, name=name)
                outcome = self._work.run_one(CLAIM_WAIT_S)
                if outcome is not None:
                    self._metrics.ended(outcome.value)
                    self._failures = self._failures + 1 if outcome is Outcome.LOST else 0
            except Exception:
                logger.exception("lane=%s", self._work.lane.name)
                self._failures += 1
                self._closing.wait(min(2.0**self._failures, 10.0))

    async def check_health(self) -> None:
        """End ranks that hang, and so the step that waits for them. Raises RankLostError for a lane beyond help."""
        if not self._thread.is_alive() or self._failures >= MAX_FAILURES:
            raise RankLostError(f"lane {self._name} cannot work; a new one is needed")
        if self._work.is_stalled:
            raise RankLostError(f"lane {self._name} makes no progress; a new one is needed")
        if self._ranks is not None and not self._ranks.is_broken:
            await self._ranks.check()

    def status(self) -> dict[str, object]:
        """For tests and whoever looks: the lane's name and the processes of its ranks."""
        pids = [] if self._ranks is None or self._ranks.is_broken else self._ranks.ping()
        return {"lane": self._work.lane.name, "pids": pids, "busy": self._work.pulse is not None}

    def pid(self) -> int:
        """This process."""
        return os.getpid()

    def close(self) -> None:
        """Save what is under way, give it back, end the ranks."""
        began = time.monotonic()
        self._closing.set()
        self._thread.join(LANE_GRACE_S - 2)
        if self._thread.is_alive():
            logger.error("lane=%s did not save its render in time; its lease will end", self._name)
        if self._ranks is not None:
            self._ranks.stop()
        logger.info("lane=%s closed in %.1f s", self._name, time.monotonic() - began)

    def __del__(self) -> None:
        if hasattr(self, "_thread") and not self._closing.is_set():
            self.close()
