"""`/v1/videos/{id}/events`: what becomes of a video, as server-sent events.

Each event has the number of its entry in the job's history, so that a client that was cut off goes on with
`Last-Event-ID`. The place in the queue changes without an entry and is told without a number. After the last event the
stream ends; who comes back after that is answered 204, which tells browsers to stop.

Run: pytest tests/unit/test_api_events.py
"""

import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

import anyio
from fastapi import APIRouter, Header
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from sakuga.api.auth import Reader
from sakuga.api.deps import ApiDeps, Deps
from sakuga.api.documents import ERRORS, Id
from sakuga.api.wire import IN_FLIGHT, STATUS, Outlook, outlook_of
from sakuga.errors import InputError, NotFoundError, shown
from sakuga.jobstore import Event, Job

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=ERRORS)

PING_S = 15
RETRY_MS = 2000
MAX_DIGITS = 15
MOVING = ("running", "step")
STREAM: dict[int | str, dict[str, object]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "The video has ended and every event was seen"},
}


@router.get("/{video_id}/events", response_class=Response, responses=STREAM)
async def events(
    deps: Deps, key: Reader, video_id: Id, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Step, stage, ETA and place in the queue, until the video has ended."""
    seen = _number(last_event_id)
    job, news = await run_in_threadpool(_look, deps, key.tenant, video_id, seen)
    if job.state not in IN_FLIGHT and not news and seen:
        return Response(status_code=204)
    return EventSourceResponse(_stream(deps, key.tenant, video_id, seen), ping=PING_S)


def _number(text: str | None) -> int:
    if text is None or text == "":
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise InputError(f"Last-Event-ID is {shown(text)}; it must be the id of an event of this stream")
    return int(text)


async def _stream(deps: ApiDeps, tenant: str, video_id: str, seen: int) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(comment="sakuga", retry=RETRY_MS)
    told: Outlook | None = None
    while True:
        try:
            job, news = await run_in_threadpool(_look, deps, tenant, video_id, seen)
            outlook = await run_in_threadpool(outlook_of, deps.stores, job)
        except NotFoundError:
            yield ServerSentEvent(event="deleted", data="{}")
            return
        except Exception:
            logger.exception("the events of job=%s break off; the client comes back", video_id)
            return
        for event in news:
            is_last = event is news[-1]
            data = _data(event.type, job, event, outlook if is_last else Outlook())
            yield ServerSentEvent(id=str(event.seq), event=event.type, data=data)
            seen = event.seq
        if job.state not in IN_FLIGHT:
            return
        if not news and (told is None or outlook.queue_position != told.queue_position):
            yield ServerSentEvent(event=job.state, data=_data(job.state, job, None, outlook))
        told = outlook
        await anyio.sleep(deps.settings.event_poll_s)


def _look(deps: ApiDeps, tenant: str, video_id: str, seen: int) -> tuple[Job, Sequence[Event]]:
    """The job first: if it has ended, its last event is among those that are read after that."""
    job = deps.stores.jobs.get(tenant, video_id)
    return job, deps.stores.jobs.events_after(tenant, video_id, seen)


def _data(kind: str, job: Job, event: Event | None, outlook: Outlook) -> str:
    told = event.data if event else {"step": job.step, "num_steps": job.num_steps}
    step = told.get("step")
    stage = _stage(step if isinstance(step, int) else 0, job.num_steps)
    eta_s = None if outlook.eta_s is None else round(outlook.eta_s, 2)
    now = {"status": STATUS.get(kind, "in_progress"), "eta_s": eta_s, "queue_position": outlook.queue_position}
    at = {"at": event.at} if event else {}
    where = {"stage": stage, "preview": f"/v1/videos/{job.id}/content?variant=preview"} if kind in MOVING else {}
    return json.dumps({"id": job.id, **now, **at, **where, **told})


def _stage(step: int, num_steps: int) -> str:
    """What a lane is at, by the steps that it has done.

    >>> _stage(0, 20), _stage(7, 20), _stage(20, 20)
    ('encode', 'denoise', 'decode')
    """
    return "encode" if step == 0 else "denoise" if step < num_steps else "decode"
