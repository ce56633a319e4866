"""What goes into the job store and what comes out of it: plain frozen values.

Run: pytest tests/unit/test_jobstore.py
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

PRIORITIES = {"batch": 0, "normal": 1, "interactive": 2}
"""A higher class always goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job as it is submitted."""

    tenant: str
    render_key: str
    model: str
    recipe: Mapping[str, object]
    """`RenderRecipe.as_dict`."""
    request: Mapping[str, object]
    """As the user wrote it."""
    num_steps: int
    work_s: float
    """Seconds of a lane, as the cost model predicts them."""
    priority: str = "normal"
    deadline_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """A client's key for a request: the same key is answered with the same job."""

    owner: str
    key: str
    fingerprint: str
    """sha256 of the request; another one under the same key is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stands."""

    id: str
    tenant: str
    render_id: str
    state: str
    priority: str
    request: Mapping[str, object]
    created_at: float
    finished_at: float | None = None
    deadline_at: float | None = None
    step: int = 0
    num_steps: int = 0
    work_s: float = 0.0
    error_code: str | None = None
    error_message: str | None = None
    artifact: "Artifact | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A published video."""

    prefix: str
    """In storage; belongs to the attempt that wrote it."""
    sha256: str
    num_bytes: int
    receipt: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A lane's hold on a render, good until `lease_until` and for as long as nobody has a higher fence."""

    render_id: str
    tenant: str
    fence: int
    lane: str
    lease_until: float
    recipe: Mapping[str, object]
    num_steps: int
    first_step: int = 0
    snapshot_key: str | None = None
    """Where to go on from, if an earlier attempt got so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a heartbeat brings back."""

    cancel: bool = False
    """Stop; nobody wants the video any more."""
    yield_lane: bool = False
    """Snapshot, release and claim again: something more urgent waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of a job's history."""

    seq: int
    job_id: str
    type: str
    data: Mapping[str, object]
    at: float
