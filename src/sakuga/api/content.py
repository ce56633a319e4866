"""`/v1/videos/{id}/content`: the video, its thumbnail, sprites and receipt, or a preview while it is made.

Run: pytest tests/unit/test_api_content.py
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict

from sakuga.api.auth import Reader
from sakuga.api.deps import ApiDeps, Deps
from sakuga.api.documents import ERRORS, Id, Scratch
from sakuga.api.wire import STATUS, Asked
from sakuga.errors import NotFoundError
from sakuga.jobstore import Job
from sakuga.media.cut import cut_mp4

router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=ERRORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A file of a render."""

    name: str
    media_type: str


VARIANTS = {
    "video": Variant(name="video.mp4", media_type="video/mp4"),
    "thumbnail": Variant(name="video.webp", media_type="image/webp"),
    "spritesheet": Variant(name="video.sprites.webp", media_type="image/webp"),
    "receipt": Variant(name="video.json", media_type="application/json"),
    "preview": Variant(name="preview.webp", media_type="image/webp"),
}


class ContentQuery(BaseModel):
    """Which file."""

    model_config = ConfigDict(extra="forbid")

    variant: Literal["video", "thumbnail", "spritesheet", "receipt", "preview"] = "video"


BINARY = {"type": "string", "format": "binary"}
FILES: dict[int | str, dict[str, object]] = {
    200: {
        "content": {each.media_type: {"schema": BINARY} for each in VARIANTS.values()}
        | {VARIANTS["receipt"].media_type: {"schema": {"type": "object"}}}
    },
    206: {"description": "The asked range of it"},
    302: {"description": "An address from which anybody can read it for some minutes"},
}


@router.get("/{video_id}/content", response_class=Response, responses=FILES)
def content(
    deps: Deps, key: Reader, video_id: Id, query: Annotated[ContentQuery, Query()], folder: Scratch
) -> Response:
    """The file itself, or a redirect to storage."""
    job = deps.stores.jobs.get(key.tenant, video_id)
    variant = VARIANTS[query.variant]
    name = _object_name(deps, job, query.variant)
    cut_frames = Asked.of(job).cut_frames if query.variant == "video" else None
    address = deps.objects.url(name) if cut_frames is None else None
    if address is not None:
        return RedirectResponse(address, status_code=302)
    path = folder / variant.name
    deps.objects.get(name, path)
    if cut_frames is not None:
        cut_mp4(path, cut_frames, Asked.of(job).fps)
    told = {} if job.artifact is None else {"etag": f'"{job.artifact.sha256[:32]}-{query.variant}-{cut_frames or 0}"'}
    return FileResponse(path, media_type=variant.media_type, filename=f"{job.id}{path.suffix}", headers=told)


def _object_name(deps: ApiDeps, job: Job, variant: str) -> str:
    """In storage. Raises NotFoundError for what is not there, or not yet."""
    if variant == "preview":
        found = [name for name in deps.objects.names(f"{job.tenant}/{job.render_id}") if "/preview-" in name]
        if found:
            return max(found, key=_attempt_and_step)
        raise NotFoundError("this video has no preview, or none yet")
    if job.artifact is None:
        raise NotFoundError(
            f"this video is {STATUS[job.state]}, there is no {variant} of it; wait until it is completed"
        )
    return f"{job.artifact.prefix}/{VARIANTS[variant].name}"


def _attempt_and_step(name: str) -> tuple[int, int]:
    """Of a preview: the newest attempt's last.

    >>> _attempt_and_step("app/render_1f/2/passing/preview-15.webp")
    (2, 15)
    """
    *_, fence, _, file = name.split("/")
    return int(fence), int(file.removeprefix("preview-").removesuffix(".webp"))
