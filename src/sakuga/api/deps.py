"""What the API is given: the stores, storage, the models that it serves, and its limits.

Run: pytest tests/unit/test_api_videos.py
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Protocol

from fastapi import Depends
from prometheus_client import Metric
from starlette.requests import Request

from sakuga.api.guarded import AddressGuard
from sakuga.cost import DeviceSpec, Estimate, check_fits, estimate
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.verified import check_verified, features
from sakuga.errors import ModelError, did_you_mean, shown
from sakuga.jobstore import Stores
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import ObjectStore
from sakuga.wan.cards import ModelCard

MB = 2**20


class Metrics(Protocol):
    """What the farm knows beside the store: seconds of steps and loads, snapshots, preemptions, cache shares."""

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client's collectors do; no label may hold an id."""
        ...


class NoMetrics:
    """Of an API without a farm."""

    def collect(self) -> Iterable[Metric]:
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Limits; those of bodies hold before anything of them is understood."""

    max_body_bytes: int = 32 * MB
    """Of a request for a video, with its pictures."""
    max_lora_bytes: int = 2048 * MB
    max_batch_bytes: int = 16 * MB
    max_batch_rows: int = 1000
    max_input_video_pixels: int = 2**27
    """Width x height x frames of an uploaded video: 81 frames of 720p are 75 million."""
    max_queued_jobs: int = 10_000
    """Of all tenants together; then 429."""
    allow_image_url: bool = False
    """Fetch input images from https addresses that a request names."""
    body_idle_s: float = 30.0
    """How long a body may make no progress."""
    event_poll_s: float = 0.5
    """How often an event stream asks the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that lanes of the farm can render."""

    card: ModelCard
    weights: str | None = None
    """Where its files are; None: in the package."""
    execution: ExecutionPlan = field(default_factory=ExecutionPlan)
    """Of its lanes."""
    device: DeviceSpec
    device_type: str = "cpu"
    """Of PyTorch."""
    memory_bytes: int | None = None
    """Of one device; None when it is not known."""
    profiles: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Fields of requests by name."""

    def admit(self, recipe: RenderRecipe) -> tuple[Estimate, tuple[str, ...]]:
        """What the recipe costs, and notes. Raises MemoryLimitError or UnverifiedError for what no lane takes."""
        if self.memory_bytes is not None:
            check_fits(recipe, self.card, self.execution, self.memory_bytes, self.device.name)
        found = features(recipe, self.card, self.execution)
        notes = check_verified(found, self.device_type, allow=self.execution.allow_unverified)
        return estimate(recipe, self.card, self.execution, self.device), notes


@dataclass(frozen=True, kw_only=True)
class ApiDeps:
    """Everything that the routes use."""

    stores: Stores
    objects: ObjectStore
    models: Mapping[str, ServedModel]
    """By name; a request that names none gets the first."""
    scratch: Path
    """A local folder for what passes through."""
    metrics: Metrics = field(default_factory=NoMetrics)
    guard: AddressGuard = field(default_factory=AddressGuard)
    """Between users' addresses and the farm's own network."""
    settings: ApiSettings = field(default_factory=ApiSettings)
    audit_share: Callable[[], float] = lambda: 1.0
    """The most of a profile's renders that are audited, as the operator has it now."""

    def served(self, name: object) -> ServedModel:
        """The model of that name; the first without one. Raises ModelError."""
        if name is None:
            return next(iter(self.models.values()))
        if not isinstance(name, str) or name not in self.models:
            hint = did_you_mean(str(name), self.models) or f"; it serves {', '.join(self.models)}"
            raise ModelError(f"model {shown(name)} is not served by this farm{hint}")
        return self.models[name]


async def _deps(request: Request) -> ApiDeps:
    return request.app.state.deps


Deps = Annotated[ApiDeps, Depends(_deps)]
