"""What an operator writes of a farm: which models it serves, on what, with how many lanes.

A pool is all lanes of one model. The same text stands in `serve/*.yaml` and in `sakuga serve --config`.
Run: pytest tests/unit/test_pools.py
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sakuga.api import ApiSettings, ServedModel
from sakuga.cost import DeviceSpec, find_device
from sakuga.errors import InputError
from sakuga.farm.bundles import LanePlacement, lane_placement
from sakuga.farm.ranks import RankSpec
from sakuga.farm.store_actor import connect
from sakuga.jobstore import Stores
from sakuga.parallel.plan import ParallelPlan
from sakuga.tuning.audit import NUM_PASSED, AuditRules
from sakuga.wan.catalogue import card
from sakuga.wan.memory import MemoryPlan

CPU_NICENESS = 5
"""Ranks that share cores with the API let it go first: an answer waits milliseconds, a render minutes."""


class Strict(BaseModel):
    """A misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SimulatedArgs(Strict):
    """Lanes that sleep instead of rendering, for trying out a farm."""

    device: str = "h100"
    speed: Annotated[float, Field(gt=0)] = 1.0

    @field_validator("device")
    @classmethod
    def _known(cls, value: str) -> str:
        find_device(value)
        return value


class ScalingArgs(Strict):
    """How many lanes a pool has. With equal bounds it does not scale."""

    min_lanes: Annotated[int, Field(ge=0)] = 1
    max_lanes: Annotated[int, Field(ge=1, le=1000)] = 1
    patience_s: Annotated[float, Field(gt=0)] = 11.0
    """How long the last in the queue may have to wait for a lane that runs, before another one is begun."""
    keep_s: Annotated[float, Field(ge=0)] = 635.0
    """How long the first lane is kept without work; each further one 0.7 times as long as the one before."""

    @model_validator(mode="after")
    def _ordered(self) -> "ScalingArgs":
        if self.min_lanes > self.max_lanes:
            raise InputError(f"min_lanes {self.min_lanes} is more than max_lanes {self.max_lanes}")
        return self


class StageArgs(Strict):
    """Lanes of their own for encoding or decoding, so that the denoising ones hold the DiT only."""

    num_replicas: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[float, Field(ge=0)] = 1.0


class PoolArgs(Strict):
    """All lanes of one model."""

    model: str
    weights: str | None = None
    device: str = "cpu"
    precision: str | None = None
    cfg: int = 1
    ulysses: int = 1
    ring: int = 1
    memory: str = "resident"
    compile: bool = False
    hot_loras: bool = False
    allow_unverified: bool = False
    num_threads: Annotated[int, Field(ge=1)] | None = None
    cpus_per_rank: Annotated[float, Field(gt=0)] = 1.0
    ranks_per_node: Annotated[int, Field(ge=1)] = 8
    encode: StageArgs | None = None
    decode: StageArgs | None = None
    scaling: ScalingArgs = ScalingArgs()
    simulated: SimulatedArgs | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "PoolArgs":
        served = card(self.model)
        self.parallel.check(num_heads=served.dit.num_heads)
        MemoryPlan.parse(self.memory)
        self.placement()
        return self

    @property
    def parallel(self) -> ParallelPlan:
        return ParallelPlan(cfg=self.cfg, ulysses=self.ulysses, ring=self.ring)

    @property
    def gpus_per_rank(self) -> float:
        return 0.0 if self.device == "cpu" or self.simulated is not None else 1.0

    def placement(self) -> LanePlacement:
        return lane_placement(
            self.parallel, gpus_per_rank=self.gpus_per_rank, cpus_per_rank=self.cpus_per_rank,
            ranks_per_node=self.ranks_per_node,
        )  # fmt: skip

    def rank_spec(self) -> RankSpec:
        stages = tuple(
            stage for stage, own in (("encode", self.encode), ("denoise", None), ("decode", self.decode)) if own is None
        )
        return RankSpec(
            model=self.model, weights=self.weights, device=self.device, precision=self.precision,
            parallel=self.parallel, memory=MemoryPlan.parse(self.memory), compile=self.compile,
            hot_loras=self.hot_loras, allow_unverified=self.allow_unverified, stages=stages,
            num_threads=self.num_threads, niceness=CPU_NICENESS if self.device == "cpu" else 0,
        )  # fmt: skip

    def served(self, device: DeviceSpec) -> ServedModel:
        """For the API: what a render of this model takes here."""
        from sakuga.engine.plan import ExecutionPlan  # PyTorch, which lanes' replicas do without

        execution = ExecutionPlan(
            parallel=self.parallel, memory=MemoryPlan.parse(self.memory), compile=self.compile,
            hot_loras=self.hot_loras, allow_unverified=self.allow_unverified,
        )  # fmt: skip
        if self.simulated is not None:
            device = find_device(self.simulated.device)
        return ServedModel(
            card=card(self.model), weights=self.weights, execution=execution, device=device,
            device_type=self.device, memory_bytes=device.memory_bytes,
        )  # fmt: skip


class AuditArgs(Strict):
    """How promoted profiles are watched; also Serve's `user_config` of `auditor` and `api`, for a farm that runs."""

    enabled: bool = True
    share_max: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of a profile's renders at most so many are audited, whatever it asks for."""
    max_running: Annotated[int, Field(ge=0)] = 0
    """Renders of a model that may run when a reference is begun; nothing may wait. 0: all its lanes are idle."""
    num_passed: Annotated[int, Field(ge=1)] = NUM_PASSED
    """Audits after which a version in canary is for all requests, if their means hold the bars."""
    poll_s: Annotated[float, Field(gt=0)] = 5.0

    @property
    def share(self) -> float:
        return self.share_max if self.enabled else 0.0

    def rules(self) -> AuditRules:
        return AuditRules(is_on=self.enabled, max_running=self.max_running, num_passed=self.num_passed)


class FarmArgs(Strict):
    """A farm: where its jobs and videos are kept, and what it serves."""

    store: str = "sqlite:///sakuga/jobs.sqlite"
    objects: str = "sakuga/objects"
    pools: Annotated[tuple[PoolArgs, ...], Field(min_length=1)]
    api: ApiSettings = ApiSettings()
    metrics_url: str = "http://127.0.0.1:8000/metrics"
    """Where the autoscaling policy reads how much is queued."""
    trusted_origins: tuple[str, ...] = ()
    """Where webhooks may go although it is not public, such as http://app.internal:8080."""
    lease_s: Annotated[float, Field(gt=0)] = 30.0
    retention_s: Annotated[float, Field(gt=0)] = 7 * 86400.0
    audits: AuditArgs = AuditArgs()

    def stores(self) -> Stores:
        """The job store of this cluster."""
        return connect(self.store, lease_s=self.lease_s, retention_s=self.retention_s, objects=self.objects)

    @model_validator(mode="after")
    def _one_pool_a_model(self) -> "FarmArgs":
        models = [pool.model for pool in self.pools]
        if len(set(models)) < len(models):
            raise InputError("two pools have the same model; give it more lanes instead")
        return self
