"""LoRAs of a tenant: uploaded once, checked against the model before anything is kept, named by id from then on.

Only safetensors are read: a pickle runs code.     Run: pytest tests/unit/test_api_loras.py
"""

import dataclasses
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Annotated, Literal

import torch
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, JsonValue
from starlette.concurrency import run_in_threadpool

from sakuga.api.auth import Reader, Writer
from sakuga.api.body import Sent, read_body
from sakuga.api.deps import ApiDeps, Deps
from sakuga.api.documents import ERRORS, Id, PageQuery, Scratch, page_of
from sakuga.api.errors import BodyError
from sakuga.api.lora_files import named
from sakuga.api.schema import LORA_BODY
from sakuga.api.submitting import store
from sakuga.api.wire import Deleted, Page
from sakuga.engine.resolve import located
from sakuga.errors import BusyError, RecipeError, did_you_mean, shown
from sakuga.jobstore import LoraEntry
from sakuga.jobstore.ids import new_id
from sakuga.media.files import sha256_of
from sakuga.recipe.limits import check_slug
from sakuga.wan.cards import ModelCard
from sakuga.wan.loading import load_model
from sakuga.wan.lora_file import read_lora
from sakuga.wan.passport import LoraPassport

router = APIRouter(prefix="/v1/loras", tags=["loras"], responses=ERRORS)

PATIENCE_S = 20.0
_one_at_a_time = threading.Lock()
"""A file is checked in memory, and may be as large as `max_lora_bytes`."""


class LoraObject(BaseModel):
    """A LoRA as its tenant sees it."""

    id: str
    object: Literal["lora"] = "lora"
    name: str
    model: str
    sha256: str
    bytes: int
    created_at: int
    passport: dict[str, JsonValue]


class LoraPage(Page):
    """LoRAs."""

    data: list[LoraObject]


@router.post("", openapi_extra=LORA_BODY)
async def upload(request: Request, deps: Deps, key: Writer, folder: Scratch) -> LoraObject:
    """Check a safetensors file against a model and keep it; the same bytes again are the same LoRA."""
    sent = await read_body(request, folder, ("file",))
    return await run_in_threadpool(_upload, deps, key.tenant, sent)


def _upload(deps: ApiDeps, tenant: str, sent: Sent) -> LoraObject:
    unknown = [name for name in sent.fields if name not in ("name", "model")]
    if unknown:
        raise RecipeError(f"no such field: {shown(unknown[0])}{did_you_mean(unknown[0], ('name', 'model', 'file'))}")
    if "file" not in sent.files:
        raise BodyError("the form has no file; send the safetensors file as its part 'file'")
    path = sent.files["file"]
    card = deps.served(sent.fields.get("model")).card
    sha256 = sha256_of(path)
    name = check_slug("name", sent.fields.get("name", sha256[:12]))
    with _alone(), named({str(path): shown(name)}):
        lora = read_lora(path, _shapes(card, deps.models[card.name].weights))
        passport = LoraPassport.from_metadata(lora.metadata)
    # A name of its own: the object of an entry that was deleted may be on its way out of storage.
    object_name = f"{tenant}/loras/{new_id('file')}/{sha256}.safetensors"
    store(deps, {object_name: path})
    facts = {"model": card.name, "ranks": list(lora.ranks), "num_tensors": lora.num_tensors}
    entry = deps.stores.loras.add(
        tenant, name=name, sha256=sha256, num_bytes=path.stat().st_size, object_name=object_name,
        passport=dataclasses.asdict(passport) | facts,
    )  # fmt: skip
    return _shown(entry)


@router.get("")
def page(deps: Deps, key: Reader, query: Annotated[PageQuery, Query()]) -> LoraPage:
    """The tenant's LoRAs."""
    found, has_more = deps.stores.loras.page(key.tenant, after=query.after, limit=query.limit)
    data = [_shown(entry) for entry in found]
    return page_of(LoraPage, data, has_more)


@router.get("/{lora_id}")
def get(deps: Deps, key: Reader, lora_id: Id) -> LoraObject:
    """One of the tenant's LoRAs."""
    return _shown(deps.stores.loras.get(key.tenant, lora_id))


@router.delete("/{lora_id}")
def delete(deps: Deps, key: Writer, lora_id: Id) -> Deleted:
    """Renders that were asked for before still get it; while a promoted profile names it, it stays (409)."""
    deps.stores.loras.delete(key.tenant, lora_id)
    return Deleted(id=lora_id, object="lora.deleted")


@contextmanager
def _alone() -> Generator[None]:
    if not _one_at_a_time.acquire(timeout=PATIENCE_S):
        raise BusyError("other LoRAs are being checked; try again in a minute")
    try:
        yield
    finally:
        _one_at_a_time.release()


@lru_cache(maxsize=8)
def _shapes(card: ModelCard, weights: str | None) -> torch.nn.Module:
    """The DiT without its weights."""
    return load_model(located(card, weights), stages=()).experts[0]


def _shown(entry: LoraEntry) -> LoraObject:
    told = {"model": entry.passport["model"], "bytes": entry.num_bytes, "created_at": int(entry.created_at)}
    kept = {name: getattr(entry, name) for name in ("id", "name", "sha256", "passport")}
    return LoraObject.model_validate(kept | told)
