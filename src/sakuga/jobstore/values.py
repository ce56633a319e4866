"""What goes into the job store and what comes out of it: plain frozen values.

Run: pytest tests/unit/test_jobstore.py
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

AUDIT_TENANT = "sakuga-audit"
"""The farm's own: reference renders are its jobs, so that no user's quota or turn pays for them."""
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
    step_s: float = 0.0
    """Of these, one step; 0: an equal share of them."""
    priority: str = "normal"
    deadline_at: float | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Names in storage by role: "image", "video", ..., and "lora:SHA256"."""
    webhook_url: str | None = None
    """Told when the job has ended."""
    batch_id: str | None = None
    remixed_from: str | None = None
    audit: "NewAudit | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """A client's key for a request: the same key is answered with the same job or batch."""

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
    render_key: str = ""
    model: str = ""
    started_at: float | None = None
    """When a lane first had its render."""
    finished_at: float | None = None
    expires_at: float | None = None
    """When a job that has ended is deleted; None: never."""
    deadline_at: float | None = None
    step: int = 0
    num_steps: int = 0
    snapshot_step: int | None = None
    work_s: float = 0.0
    inputs: Mapping[str, str] = field(default_factory=dict)
    webhook_url: str | None = None
    batch_id: str | None = None
    remixed_from: str | None = None
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
    model: str
    recipe: Mapping[str, object]
    inputs: Mapping[str, str]
    num_steps: int
    work_s: float
    step_s: float
    created_at: float
    first_step: int = 0
    snapshot_key: str | None = None
    """Where to go on from, if an earlier attempt got so far."""

    @property
    def prefix(self) -> str:
        """In storage, of everything that this attempt writes; removed when another attempt makes the video."""
        return attempt_prefix(self.tenant, self.render_id, self.fence)

    @property
    def passing(self) -> str:
        """In storage, of what ends with the attempt: snapshots, previews; removed also when it made the video."""
        return passing_prefix(self.tenant, self.render_id, self.fence)


def render_prefix(tenant: str, render_id: str) -> str:
    """In storage, of everything that is made for a render."""
    return f"{tenant}/{render_id}"


def attempt_prefix(tenant: str, render_id: str, fence: int) -> str:
    return f"{render_prefix(tenant, render_id)}/{fence}"


def passing_prefix(tenant: str, render_id: str, fence: int) -> str:
    return f"{attempt_prefix(tenant, render_id, fence)}/passing"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The work that one model has."""

    queued_s: float = 0.0
    running_s: float = 0.0
    """What is left of the renders that lanes have."""
    num_queued: int = 0
    num_running: int = 0
    oldest_wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a job stands in the queue of its model; a job that does not wait is at 0 with nothing ahead."""

    position: int = 0
    """Renders that a lane would take before it."""
    ahead_s: float = 0.0
    """Predicted seconds of these and of what lanes have under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Many jobs that were asked for at once."""

    id: str
    tenant: str
    created_at: float
    num_rows: int
    """Of the request, the bad ones too."""
    errors: Sequence[Mapping[str, object]]
    """Of rows that are no jobs; their "message" goes with the last job."""
    counts: Mapping[str, int]
    """Jobs by state; those that were deleted are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message to a webhook: that a job has ended."""

    id: str
    """Constant over all tries, so that a receiver knows what it has seen."""
    tenant: str
    job_id: str
    url: str
    type: str
    data: Mapping[str, object]
    attempt: int
    """This try's number, from 1."""
    created_at: float
    state: str = "pending"
    """pending, delivered or failed."""
    status: int | None = None
    """HTTP status of the last answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraEntry:
    """A LoRA that a tenant may name in recipes."""

    id: str
    tenant: str
    name: str
    sha256: str
    num_bytes: int
    object_name: str
    passport: Mapping[str, object]
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileEntry:
    """One version of a promoted speed profile: what it chooses never changes, its state does."""

    id: str
    model: str
    name: str
    version: int
    state: str
    """canary, active or retired."""
    state_since: float
    reason: str | None = None
    """Why it is retired: rolled_back, replaced (by a newer version, whose end brings it back) or by_hand."""
    owner: str = ""
    """The tenant whose LoRAs it names."""
    canary_share: float = 0.0
    content_sha256: str = ""
    profile: Mapping[str, object] = field(default_factory=dict)
    """`SpeedProfile.as_dict`; of entries from before there were any, name, model, fields and measured alone."""
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileEvent:
    """One entry of a profile's history."""

    seq: int
    profile_id: str
    version: int
    type: str
    data: Mapping[str, object]
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAudit:
    """A wish to hold a render to its reference, written with its job."""

    profile_id: str
    reference: Mapping[str, object]
    """The fields of a `NewJob`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A render of a profile that is compared with the same recipe rendered the reference way."""

    id: str
    profile_id: str
    tenant: str
    job_id: str
    reference: Mapping[str, object]
    """The fields of a `NewJob`; empty when the audit has ended."""
    reference_id: str | None
    """Its job."""
    state: str
    """pending, rendering; then passed, failed or gone."""
    created_at: float
    ended_at: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    faults: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTally:
    """How the audits of a profile's version ended so far."""

    passed: int = 0
    failed: int = 0
    open: int = 0
