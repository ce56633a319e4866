"""`/v1/videos`: create, look at, list, cancel, delete and remix, as OpenAI's client speaks it.

Run: pytest tests/unit/test_api_videos.py
"""

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from sakuga.api.auth import IdempotencyKey, Reader, Writer
from sakuga.api.body import Sent, read_body
from sakuga.api.deps import ApiDeps, Deps
from sakuga.api.documents import ERRORS, ID, Id, PageQuery, Scratch, page_of
from sakuga.api.fields import FILE_FIELDS, Wish, wish_of
from sakuga.api.preparing import prepare
from sakuga.api.schema import CREATE_BODY, REMIX_BODY
from sakuga.api.submitting import first_use, submit
from sakuga.api.wire import (
    Asked,
    Deleted,
    Outlook,
    Video,
    VideoPage,
    outlook_of,
    outlook_or_none,
    poll_headers,
    video_of,
)
from sakuga.errors import NotFoundError, PromptError
from sakuga.jobstore import Idempotency, Job
from sakuga.jobstore.keys import ApiKey
from sakuga.recipe.limits import check_prompt

router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=ERRORS)


class ListQuery(PageQuery):
    """Which videos."""

    order: Literal["asc", "desc"] = "desc"
    batch_id: str | None = Field(None, pattern=ID)


@router.post("", openapi_extra=CREATE_BODY)
async def create(
    request: Request, response: Response, deps: Deps, key: Writer, once: IdempotencyKey, folder: Scratch
) -> Video:
    """Ask for a video. Fields that a model's card, or a profile, has a default for can be left out."""
    sent = await read_body(request, folder, FILE_FIELDS, max_text_bytes=deps.settings.max_body_bytes)
    video, headers = await run_in_threadpool(_create, deps, key, sent, once, folder)
    response.headers.update(headers)
    return video


def _create(deps: ApiDeps, key: ApiKey, sent: Sent, once: str | None, folder: Path) -> tuple[Video, dict[str, str]]:
    idempotency = _idempotency(key, once, sent, "videos")
    job, headers = _known(deps, key, idempotency), {}
    if job is None:
        prepared = prepare(deps, key.tenant, wish_of(sent), folder)
        job, headers = submit(deps, key, prepared, idempotency)
    return _answer(deps, job, headers)


@router.get("")
def page(deps: Deps, key: Reader, query: Annotated[ListQuery, Query()]) -> VideoPage:
    """The tenant's videos. Those that wait have no ETA here; ask for one of them to see it."""
    found, has_more = deps.stores.jobs.page(
        key.tenant, after=query.after, limit=query.limit, newest_first=query.order == "desc", batch_id=query.batch_id
    )
    data = [video_of(job, outlook_of(deps.stores, job, asks=False)) for job in found]
    return page_of(VideoPage, data, has_more)


@router.get("/{video_id}")
def get(deps: Deps, key: Reader, video_id: Id, response: Response) -> Video:
    """One of the tenant's videos; also one that failed is answered with 200."""
    job = deps.stores.jobs.get(key.tenant, video_id)
    video = video_of(job, outlook_of(deps.stores, job))
    response.headers.update(poll_headers(video))
    return video


@router.delete("/{video_id}")
def delete(deps: Deps, key: Writer, video_id: Id) -> Deleted:
    """Forget a video: its pictures, its prompt, all that was made; one that is rendered stops."""
    try:
        deps.stores.jobs.delete(key.tenant, video_id)
    except NotFoundError:
        if not deps.stores.jobs.is_deleted(key.tenant, video_id):  # after a lost answer clients ask again
            raise
    return Deleted(id=video_id, object="video.deleted")


@router.post("/{video_id}/cancel")
def cancel(deps: Deps, key: Writer, video_id: Id) -> Video:
    """Stop a video at its next step; one that has ended stays as it is."""
    return video_of(deps.stores.jobs.cancel(key.tenant, video_id), Outlook())


@router.post("/{video_id}/remix", openapi_extra=REMIX_BODY)
async def remix(
    request: Request, response: Response, deps: Deps, key: Writer, once: IdempotencyKey, folder: Scratch, video_id: Id
) -> Video:
    """The same video with another prompt: all fields, pictures and the seed are those of the first."""
    sent = await read_body(request, folder, ())
    video, headers = await run_in_threadpool(_remix, deps, key, video_id, sent, once, folder)
    response.headers.update(headers)
    return video


def _remix(
    deps: ApiDeps, key: ApiKey, video_id: str, sent: Sent, once: str | None, folder: Path
) -> tuple[Video, dict[str, str]]:
    source = deps.stores.jobs.get(key.tenant, video_id)
    if set(sent.fields) != {"prompt"}:
        raise PromptError("a remix takes a prompt and nothing else; ask for a new video to change other fields")
    prompt = check_prompt("prompt", sent.fields["prompt"])
    idempotency = _idempotency(key, once, sent, f"remix of {video_id}")
    job, headers = _known(deps, key, idempotency), {}
    if job is None:
        wish = _wish_again(deps, source, prompt, folder)
        job, headers = submit(deps, key, prepare(deps, key.tenant, wish, folder, remixed_from=source.id), idempotency)
    return _answer(deps, job, headers)


def _wish_again(deps: ApiDeps, source: Job, prompt: str, folder: Path) -> Wish:
    asked = Asked.of(source)
    fields = {**asked.fields, "prompt": prompt}
    seconds = None
    if asked.cut_frames is not None:
        seconds = asked.cut_frames / asked.fps
        del fields["num_frames"]
    files = {}
    for role, name in source.inputs.items():
        if not role.startswith("lora:"):
            files[role] = folder / f"{role}.first"
            deps.objects.get(name, files[role])
    profile = None if asked.quality else asked.profile
    return Wish(
        recipe=fields, seconds=seconds, profile=profile, quality=asked.quality, priority=source.priority, files=files
    )


@router.post("/edits", include_in_schema=False)
@router.post("/extensions", include_in_schema=False)
@router.post("/characters", include_in_schema=False)
def not_offered(request: Request) -> None:
    """Calls of newer clients that this farm does not have."""
    raise NotFoundError(f"there is no {request.url.path} here; POST /v1/videos/ID/remix renders with another prompt")


def _known(deps: ApiDeps, key: ApiKey, idempotency: Idempotency | None) -> Job | None:
    if idempotency is None:
        return None
    with first_use():
        return deps.stores.jobs.known(key.tenant, idempotency)


def _answer(deps: ApiDeps, job: Job, headers: dict[str, str]) -> tuple[Video, dict[str, str]]:
    video = video_of(job, outlook_or_none(deps.stores, job))
    return video, headers | poll_headers(video)


def _idempotency(key: ApiKey, once: str | None, sent: Sent, of: str) -> Idempotency | None:
    return None if once is None else Idempotency(owner=key.id, key=once, fingerprint=sent.fingerprint(of))
