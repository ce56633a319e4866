"""`/v1/batches`: many videos as low-priority work, a JSON object in each line; a bad line stops none of the others.

A line without a seed gets one that follows from what stands in it, so that the same lines once more are the same
renders.     Run: pytest tests/unit/test_api_batches.py
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from sakuga.api.auth import IdempotencyKey, Reader, Writer
from sakuga.api.body import Sent, parse_object, read_body, read_text
from sakuga.api.deps import ApiDeps, Deps
from sakuga.api.documents import ERRORS, Id, PageQuery, Scratch, page_of
from sakuga.api.errors import BodyError
from sakuga.api.fields import wish_of
from sakuga.api.preparing import Prepared, prepare
from sakuga.api.schema import BATCH_BODY
from sakuga.api.submitting import check_room, first_use, settled, store
from sakuga.api.wire import Page
from sakuga.errors import InputError, LoraError, ManifestError, MemoryLimitError
from sakuga.jobstore import Batch, Idempotency
from sakuga.jobstore.keys import ApiKey
from sakuga.recipe import seed_from_content

router = APIRouter(prefix="/v1/batches", tags=["batches"], responses=ERRORS)
LINES = ("application/jsonl", "application/x-ndjson")
OF_A_LINE = (InputError, LoraError, MemoryLimitError)
"""Faults that are one line's own."""


class BatchError(BaseModel):
    """A line that became no video."""

    line: int
    code: str
    message: str


class BatchObject(BaseModel):
    """A batch as its tenant sees it."""

    id: str
    object: Literal["batch"] = "batch"
    status: Literal["in_progress", "completed"]
    created_at: int
    num_rows: int
    counts: dict[str, int]
    """Videos by state of the farm: queued, running, completed, failed, cancelled."""
    errors: list[BatchError]


class BatchPage(Page):
    """Batches."""

    data: list[BatchObject]


@router.post("", openapi_extra=BATCH_BODY)
async def create(
    request: Request, response: Response, deps: Deps, key: Writer, once: IdempotencyKey, folder: Scratch
) -> BatchObject:
    """Take the good lines, tell of the bad ones; refused only when no line is good."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in LINES:
        data = await read_text(request, deps.settings.max_batch_bytes)
    else:
        sent = await read_body(request, folder, ("file",))
        if set(sent.files) != {"file"} or sent.fields:
            raise BodyError("send the lines as the form's part 'file' and nothing else, or as application/jsonl")
        data = sent.files["file"].read_bytes()
    batch, headers = await run_in_threadpool(_create, deps, key, data, once, folder)
    response.headers.update(headers)
    return batch


def _create(
    deps: ApiDeps, key: ApiKey, data: bytes, once: str | None, folder: Path
) -> tuple[BatchObject, dict[str, str]]:
    idempotency = _idempotency(key, once, data)
    if idempotency is not None:
        with first_use():
            known = deps.stores.batches.known(key.tenant, idempotency)
        if known is not None:
            return _shown(known), {}
    lines = _lines(data, deps.settings.max_batch_rows)
    good: list[Prepared] = []
    errors: list[dict[str, object]] = []
    for number, line in lines.items():
        try:
            good.append(_prepared(deps, key.tenant, line, number, folder / str(number)))
        except OF_A_LINE as error:
            errors.append({"line": number, **error.as_dict()})
    if not good:
        first = errors[0]
        raise ManifestError(f"no line of {len(lines)} is a video; line {first['line']}: {first['message']}")
    headers = check_room(deps, key, sum(each.job.work_s for each in good), len(good))
    store(deps, {name: path for each in good for name, path in each.uploads.items()})
    with settled(idempotency):
        batch = deps.stores.batches.create(key.tenant, [each.job for each in good], errors, idempotency_key=idempotency)
    return _shown(batch), headers


def _idempotency(key: ApiKey, once: str | None, data: bytes) -> Idempotency | None:
    if once is None:
        return None
    return Idempotency(owner=key.id, key=once, fingerprint=hashlib.sha256(b"batches\n" + data).hexdigest())


def _lines(data: bytes, most: int) -> Mapping[int, str]:
    """By number from 1, without the blank ones."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BodyError(f"the lines are no UTF-8 ({error.reason} at byte {error.start})") from None
    lines = {number: line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not 0 < len(lines) <= most:
        raise ManifestError(f"there are {len(lines)} lines; a batch has 1 to {most}")
    return lines


def _prepared(deps: ApiDeps, tenant: str, line: str, number: int, folder: Path) -> Prepared:
    fields = parse_object(line)
    wish = replace(wish_of(Sent(fields=fields)), priority="batch")
    if wish.addresses:
        folder.mkdir()
    return prepare(deps, tenant, wish, folder, default_seed=seed_from_content(fields), row=number)


@router.get("")
def page(deps: Deps, key: Reader, query: Annotated[PageQuery, Query()]) -> BatchPage:
    """The tenant's batches."""
    found, has_more = deps.stores.batches.page(key.tenant, after=query.after, limit=query.limit)
    data = [_shown(batch) for batch in found]
    return page_of(BatchPage, data, has_more)


@router.get("/{batch_id}")
def get(deps: Deps, key: Reader, batch_id: Id) -> BatchObject:
    """How far a batch is."""
    return _shown(deps.stores.batches.get(key.tenant, batch_id))


@router.post("/{batch_id}/cancel")
def cancel(deps: Deps, key: Writer, batch_id: Id) -> BatchObject:
    """Cancel what of it has not ended."""
    return _shown(deps.stores.batches.cancel(key.tenant, batch_id))


def _shown(batch: Batch) -> BatchObject:
    in_flight = batch.counts.get("queued", 0) + batch.counts.get("running", 0)
    return BatchObject(
        id=batch.id, status="in_progress" if in_flight else "completed", created_at=int(batch.created_at),
        num_rows=batch.num_rows, counts=dict(batch.counts),
        errors=[BatchError.model_validate(error) for error in batch.errors],
    )  # fmt: skip
