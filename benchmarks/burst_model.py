"""The simulated cluster of burst.py: lanes that start, work and stop in virtual time, and the policies that scale them.

Run: python benchmarks/burst.py --json
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from ray.serve import autoscaling_policy as rays
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from sakuga.farm.autoscaling import BacklogPolicy

MAX_LANES = 16
COLD_START_S = 30.0
TICK_S = 0.5
"""How often our numbers come; a tenth of it is Serve's own loop, which sees nothing new in between."""
PUSH_S = 10.0
"""Ray's RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S and that of handles."""
SAMPLE_S = 6.0
"""ray.serve.metrics_utils: a fifth of the look-back period between two samples of a queue's length."""


@dataclass(slots=True)
class Lane:
    """A lane from its decision to its end."""

    number: int
    born: float
    free_at: float
    is_ready: bool = False
    is_stopped: bool = False
    has_work: bool = False


class Scaler(Protocol):
    """Says how many lanes there should be."""

    def wanted(self, now: float, farm: Farm) -> int: ...

    def is_at_rest(self, now: float, farm: Farm) -> float:
        """Until when nothing changes by itself while nothing is to do."""
        ...


class Ours:
    """`BacklogPolicy` with what /metrics would say."""

    def __init__(self) -> None:
        self.policy = BacklogPolicy(min_lanes=0, max_lanes=MAX_LANES)

    def wanted(self, now: float, farm: Farm) -> int:
        busy = farm.busy
        rest_s = sum(lane.free_at - now for lane in busy)
        return self.policy.decide(farm.queued_s, rest_s, len(farm.queue), len(busy), now)

    def is_at_rest(self, now: float, farm: Farm) -> float:
        return self.policy.next_change(now)


class Clock:
    """Instead of the time module in Ray's policy."""

    now = 0.0

    def time(self) -> float:
        return self.now


class ServeDefault:
    """Ray's default policy as a deployment has it that says nothing but min, max and `autoscaling_config`."""

    def __init__(self) -> None:
        self.config = AutoscalingConfig(min_replicas=1, max_replicas=MAX_LANES)
        assert (self.config.target_ongoing_requests, self.config.upscale_delay_s) == (2, 30)
        assert (self.config.downscale_delay_s, self.config.look_back_period_s) == (600, 30)
        self._policy = rays._apply_autoscaling_config(rays.default_autoscaling_policy)
        self._clock, self._state = Clock(), {}
        self._samples: deque[tuple[float, float]] = deque()
        self._pushed: list[tuple[float, float]] = []
        self._pushed_at = self._sampled_at = float("-inf")
        rays.time = self._clock  # ty: ignore[invalid-assignment]

    def wanted(self, now: float, farm: Farm) -> int:
        self._clock.now = now
        ongoing = len(farm.queue) + len(farm.busy)
        if now - self._sampled_at >= SAMPLE_S:
            self._samples.append((now, ongoing))
            self._sampled_at = now
            while self._samples[0][0] < now - self.config.look_back_period_s:
                self._samples.popleft()
        if now - self._pushed_at >= PUSH_S:
            self._pushed, self._pushed_at = list(self._samples), now
        running = farm.num_ready
        target, self._state = self._policy(
            AutoscalingContext(
                deployment_id=DeploymentID(name="lanes"), deployment_name="lanes", app_name=None,
                current_num_replicas=running, target_num_replicas=farm.target, running_replicas=[],
                total_num_requests=self._mean(now), total_queued_requests=None, aggregated_metrics=None,
                raw_metrics=None, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=MAX_LANES,
                policy_state=self._state, last_scale_up_time=None, last_scale_down_time=None, current_time=now,
                config=self.config,
            )
        )  # fmt: skip
        return max(1, target)

    def _mean(self, now: float) -> float:
        """Time-weighted over what was pushed last."""
        ends = [at for at, _ in self._pushed[1:]] + [now]
        weights = [end - at for (at, _), end in zip(self._pushed, ends, strict=True)]
        total = sum(weights)
        return sum(n * weight for (_, n), weight in zip(self._pushed, weights, strict=True)) / total if total else 0.0

    def is_at_rest(self, now: float, farm: Farm) -> float:
        is_quiet = farm.target == 1 and not any(n for _, n in self._samples) and not any(n for _, n in self._pushed)
        return float("inf") if is_quiet else now


@dataclass
class Farm:
    """Lanes, a queue, and what happened."""

    scaler: Scaler
    target: int = 0
    lanes: list[Lane] = field(default_factory=list)
    queue: deque[tuple[float, float]] = field(default_factory=deque)
    queued_s: float = 0.0
    waits: list[float] = field(default_factory=list)
    gpu_s: float = 0.0
    starts: int = 0
    counts: list[tuple[float, int]] = field(default_factory=list)
    """Lanes wanted, at each change."""

    @property
    def busy(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.has_work]

    @property
    def num_ready(self) -> int:
        return sum(lane.is_ready and not lane.is_stopped for lane in self.lanes)

    def run(self, arrivals: list[tuple[float, float]]) -> None:
        """To the end of the last render and of what is kept after it."""
        now, index, last = 0.0, 0, arrivals[-1][0]
        moments: list[tuple[float, int]] = []
        while index < len(arrivals) or self.queue or self.busy or now < last + 3600:
            now += TICK_S
            while True:
                next_end = moments[0][0] if moments else float("inf")
                next_arrival = arrivals[index][0] if index < len(arrivals) else float("inf")
                at = min(next_end, next_arrival)
                if at > now:
                    break
                if next_arrival <= next_end:
                    self.queue.append(arrivals[index])
                    self.queued_s += arrivals[index][1]
                    index += 1
                else:
                    self._end_of(heapq.heappop(moments)[1], at)
                self._give_out(at, moments)
            self._scale(now, moments)
            if index < len(arrivals) and not self.queue and not moments:
                until = min(arrivals[index][0], self.scaler.is_at_rest(now, self))
                now += max(0.0, (until - now) // TICK_S - 1) * TICK_S
        self.gpu_s += sum(now - lane.born for lane in self.lanes)

    def _end_of(self, number: int, at: float) -> None:
        """A lane is ready, or done with a render."""
        lane = next((lane for lane in self.lanes if lane.number == number), None)
        if lane is None:  # stopped before it was ready
            return
        lane.is_ready, lane.has_work, lane.free_at = True, False, at
        if lane.is_stopped:
            self._remove(lane, at)

    def _give_out(self, at: float, moments: list[tuple[float, int]]) -> None:
        while self.queue:
            idle = [lane for lane in self.lanes if lane.is_ready and not lane.has_work and not lane.is_stopped]
            if not idle:
                return
            lane = min(idle, key=lambda lane: lane.free_at)
            arrived, work_s = self.queue.popleft()
            self.queued_s -= work_s
            self.waits.append(at - arrived)
            lane.has_work, lane.free_at = True, at + work_s
            heapq.heappush(moments, (lane.free_at, lane.number))

    def _scale(self, now: float, moments: list[tuple[float, int]]) -> None:
        wanted = min(MAX_LANES, self.scaler.wanted(now, self))
        if wanted != self.target:
            self.counts.append((now, wanted))
        self.target = wanted
        alive = [lane for lane in self.lanes if not lane.is_stopped]
        for _ in range(wanted - len(alive)):
            lane = Lane(number=self.starts, born=now, free_at=now + COLD_START_S)
            self.starts += 1
            self.lanes.append(lane)
            heapq.heappush(moments, (lane.free_at, lane.number))
        # Serve's choice: first those that do not run yet, then the newest, whatever they do.
        for lane in sorted(alive, key=lambda lane: (lane.is_ready, -lane.number))[: max(0, len(alive) - wanted)]:
            lane.is_stopped = True
            if not lane.has_work:
                self._remove(lane, now)

    def _remove(self, lane: Lane, at: float) -> None:
        self.lanes.remove(lane)
        self.gpu_s += at - lane.born

    def result(self) -> dict[str, float]:
        p50, p95, p99 = np.percentile(self.waits, [50, 95, 99])
        return {
            "p50_wait_s": round(float(p50), 2),
            "p95_wait_s": round(float(p95), 2),
            "p99_wait_s": round(float(p99), 2),
            "gpu_hours": round(self.gpu_s / 3600, 1),
            "starts": self.starts,
        }


def replay(arrivals: list[tuple[float, float]], scaler: Scaler, target: int) -> Farm:
    farm = Farm(scaler=scaler)
    for number in range(target):
        farm.lanes.append(Lane(number=-1 - number, born=0.0, free_at=0.0, is_ready=True))
    farm.target = target
    farm.run(arrivals)
    assert len(farm.waits) == len(arrivals), "every request was served"
    return farm
