"""What goes over the wire: the video object of OpenAI's API with all of its 13 keys, and ours behind them.

A job that was cancelled has failed there, since its clients know four statuses. Times are whole seconds since 1970.

Run: pytest tests/unit/test_api_videos.py
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, Field

from sakuga.jobstore import Job, Stores

logger = logging.getLogger(__name__)

STATUS: Mapping[str, Literal["queued", "in_progress", "completed", "failed"]] = {
    "queued": "queued",
    "running": "in_progress",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
}
IN_FLIGHT = ("queued", "running")
POLL_MS = (250, 5000)
"""OpenAI's client keeps the first interval that it is told."""
POLLS_PER_RENDER = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a job keeps of its request: enough to show it, to cut it and to make a remix of it."""

    fields: Mapping[str, object] = field(default_factory=dict)
    """Of `RecipeRequest`, as the user wrote them, without files and a profile's; with the seed that was drawn."""
    prompt: str | None = None
    size: str = ""
    seconds: str = ""
    fps: int = 1
    cut_frames: int | None = None
    """Frames that are shown of the render, which has a few more to be of a legal length."""
    profile: str | None = None
    """By name, as asked or as chosen."""
    profile_version: int | None = None
    """Of the promoted profile; None for its reference."""
    quality: str | None = None
    notes: tuple[str, ...] = ()
    row: int | None = None
    """Line of its batch."""

    def as_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, job: Job) -> "Asked":
        known = {each.name for each in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in job.request.items() if name in known})  # ty: ignore[invalid-argument-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """When a job will probably be done, and how many are before it."""

    eta_s: float | None = None
    queue_position: int | None = None


class ErrorOfVideo(BaseModel):
    """Why there is no video."""

    code: str
    message: str


class Video(BaseModel):
    """A job of `/v1/videos`."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    size: str
    seconds: str
    remixed_from_video_id: str | None
    error: ErrorOfVideo | None
    eta_s: float | None = Field(description="Seconds until it is probably done")
    queue_position: int | None = Field(description="Renders that a lane would take before")
    step: int
    steps: int
    gpu_seconds: float | None = Field(description="Of its lane, as predicted; as measured when it is completed")
    priority: str
    profile: str | None
    profile_version: int | None = Field(description="None: rendered as the profile's reference, or without one")
    quality: str | None
    batch_id: str | None
    batch_line: int | None
    notes: list[str] = Field(description="What of the request has no effect, or another than one may think")


class Page(BaseModel):
    """A part of a list."""

    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoPage(Page):
    """Videos."""

    data: list[Video]


class Deleted(BaseModel):
    """What is gone."""

    id: str
    object: str
    deleted: Literal[True] = True


class Fault(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class Envelope(BaseModel):
    """An error below `/v1`."""

    error: Fault


class Problem(BaseModel):
    """An error elsewhere (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str


def video_of(job: Job, outlook: Outlook) -> Video:
    """The job as its tenant sees it."""
    asked = Asked.of(job)
    is_done = job.state == "completed"
    return Video(
        id=job.id,
        model=job.model,
        status=STATUS[job.state],
        progress=100 if is_done else min(99, 100 * job.step // max(1, job.num_steps)),
        created_at=int(job.created_at),
        completed_at=_whole(job.finished_at) if is_done else None,
        expires_at=_whole(job.expires_at),
        prompt=asked.prompt,
        size=asked.size,
        seconds=asked.seconds,
        remixed_from_video_id=job.remixed_from,
        error=_error_of(job),
        eta_s=None if outlook.eta_s is None else round(outlook.eta_s, 2),
        queue_position=outlook.queue_position,
        step=job.step,
        steps=job.num_steps,
        gpu_seconds=round(_gpu_seconds(job), 3),
        priority=job.priority,
        profile=asked.profile,
        profile_version=asked.profile_version,
        quality=asked.quality,
        batch_id=job.batch_id,
        batch_line=asked.row,
        notes=list(asked.notes),
    )


def outlook_of(stores: Stores, job: Job, *, asks: bool = True) -> Outlook:
    """Without `asks` only what is known without a question to the store: nothing of what waits."""
    if job.state == "running":
        return Outlook(eta_s=_rest_s(job), queue_position=0)
    if job.state != "queued" or not asks:
        return Outlook()
    place = stores.jobs.place(job.tenant, job.id)
    backlog = stores.jobs.backlog().get(job.model)
    lanes = max(1, backlog.num_running) if backlog else 1  # what runs says how many take from this queue
    return Outlook(eta_s=place.ahead_s / lanes + _rest_s(job), queue_position=place.position)


def outlook_or_none(stores: Stores, job: Job) -> Outlook:
    """After a commit nothing may fail any more: the client would ask again and get a second job."""
    try:
        return outlook_of(stores, job)
    except Exception:
        logger.exception("job=%s was taken, and the store fell silent", job.id)
        return Outlook()


def poll_headers(video: Video) -> dict[str, str]:
    """When to look again."""
    if video.status not in ("queued", "in_progress"):
        return {}
    low, high = POLL_MS
    wanted = 1000 * (video.eta_s or 0.0) / POLLS_PER_RENDER
    return {"openai-poll-after-ms": str(int(min(high, max(low, wanted))))}


def _rest_s(job: Job) -> float:
    return job.work_s * (1 - job.step / max(1, job.num_steps))


def _gpu_seconds(job: Job) -> float:
    seconds = job.artifact.receipt.get("seconds") if job.artifact else None
    return float(seconds.get("total", job.work_s)) if isinstance(seconds, Mapping) else job.work_s


def _error_of(job: Job) -> ErrorOfVideo | None:
    if job.state == "cancelled":
        return ErrorOfVideo(code="cancelled", message="the video was cancelled")
    if job.state != "failed":
        return None
    return ErrorOfVideo(code=job.error_code or "E_INTERNAL", message=job.error_message or "the render failed")


def _whole(at: float | None) -> int | None:
    return None if at is None else int(at)
