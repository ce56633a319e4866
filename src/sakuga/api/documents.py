"""Pieces of routes that several have: ids in paths, pages, a folder for a request, and words for the OpenAPI document.

Run: pytest tests/unit/test_api_openapi.py
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

from fastapi import Depends
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field

from sakuga.api.deps import Deps
from sakuga.api.wire import Envelope, Page

ID = r"^[A-Za-z0-9_-]{1,64}$"
Id = Annotated[str, PathParameter(pattern=ID)]
"""An id that could exist: nothing else reaches the store."""
ERRORS: dict[int | str, dict[str, object]] = {"4XX": {"model": Envelope}, "5XX": {"model": Envelope}}
SomePage = TypeVar("SomePage", bound=Page)
OLD_S = 3600.0
"""Age of a folder whose request cannot be alive."""


class PageQuery(BaseModel):
    """Which part of a list, the newest first; a misspelt parameter is refused, since the list would be another."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, pattern=ID)
    limit: int = Field(20, ge=0, le=100)


class _HasId(Protocol):
    id: str


def page_of(kind: type[SomePage], data: Sequence[_HasId], has_more: bool) -> SomePage:
    """A part of a list, and where it begins and ends."""
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return kind.model_validate({"data": data, "first_id": first, "last_id": last, "has_more": has_more})


def _folder(deps: Deps) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="request-", dir=deps.scratch) as name:
        yield Path(name)


Scratch = Annotated[Path, Depends(_folder)]
"""Goes when the answer was sent, or nobody was there to take it."""


def sweep(scratch: Path) -> None:
    """Make the folder, and remove what a killed process left in it."""
    scratch.mkdir(parents=True, exist_ok=True)
    for folder in scratch.glob("request-*"):
        if time.time() - folder.stat().st_mtime > OLD_S:
            shutil.rmtree(folder, ignore_errors=True)
