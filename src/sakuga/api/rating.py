"""Blind rating in the browser: one page, two videos side by side without names, four questions for each.

The page learns nothing that tells the variants apart: a pair has an opaque id, a video is asked for by pair and side.
Only files of the listed pairs are served, looked up and never composed from what was sent. The state is the file of
answers alone, so that a reload, a second tab or a restart goes on where the rater stopped.

Run: pytest tests/unit/test_api_rating.py tests/unit/test_rating_page.py
"""

import contextlib
import importlib.resources
import socket
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from sakuga.api.errors import answer
from sakuga.errors import ConflictError, InputError, NotFoundError, SakugaError, shown
from sakuga.quality.ratings import (
    HIGHEST,
    LOWEST,
    RATINGS_FILE,
    Pair,
    Rating,
    append_rating,
    in_order,
    rater_name,
    read_ratings,
)

CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": CONTENT_POLICY, "cache-control": "no-store", "x-content-type-options": "nosniff"}

Score = Annotated[int, Field(ge=LOWEST, le=HIGHEST, strict=True)]


class Answers(BaseModel):
    """The four questions of the article."""

    model_config = ConfigDict(extra="forbid")

    dynamics: Score
    camera: Score
    picture: Score
    target: Score


class AnswerBody(BaseModel):
    """One answer, as the page sends it."""

    model_config = ConfigDict(extra="forbid")

    rater: str
    pair: str
    left: Answers
    right: Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingTask:
    """What is rated, and where answers go."""

    folder: Path
    pairs: Sequence[Pair]
    videos: Mapping[str, Mapping[str, Path]]
    """By variant and stem."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held from the look whether a pair has an answer until the answer is on the disk."""

    @property
    def file(self) -> Path:
        return self.folder / RATINGS_FILE

    def pair(self, pair_id: str) -> Pair:
        for pair in self.pairs:
            if pair.id == pair_id:
                return pair
        raise NotFoundError(f"there is no pair {shown(pair_id)} here: load the page again")

    def answers_of(self, rater: str) -> list[Rating]:
        known = {pair.id for pair in self.pairs}
        return [r for r in read_ratings(self.file) if r.rater == rater and r.pair.id in known]

    def state(self, rater: str) -> dict[str, object]:
        """The pair that is next, or at the end how often each variant was preferred."""
        given = self.answers_of(rater)
        answered = {rating.pair.id for rating in given}
        waiting = [pair.id for pair in in_order(self.pairs, rater) if pair.id not in answered]
        told: dict[str, object] = {"rater": rater, "done": len(answered), "total": len(self.pairs)}
        return told | ({"pair": waiting[0]} if waiting else {"pair": None, "preferred": _preferred(given)})

    def record(self, body: AnswerBody) -> None:
        rater, pair = rater_name(body.rater), self.pair(body.pair)
        left, right = pair.sides(rater)
        rating = Rating(
            rater=rater,
            pair=pair,
            left=left,
            scores={left: body.left.model_dump(), right: body.right.model_dump()},
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        with self.lock:
            if any(given.pair.id == pair.id for given in self.answers_of(rater)):
                raise ConflictError("this pair has your answer already, from another tab; the first one counts")
            append_rating(self.file, rating)


def _preferred(ratings: Sequence[Rating]) -> dict[str, int]:
    """How often each variant had the higher sum; pairs that are even count under no name."""
    found = Counter({variant: 0 for rating in ratings for variant in rating.pair.variants})
    for rating in ratings:
        first, second = sorted(rating.pair.variants, key=rating.total)
        found[second] += rating.total(first) < rating.total(second)
    return dict(sorted(found.items()))


def create_rating_app(task: RatingTask) -> FastAPI:
    """The page and what it asks for."""
    app = FastAPI(title="Sakuga rating", docs_url=None, redoc_url=None, openapi_url=None)
    page = importlib.resources.files("sakuga.api").joinpath("rating.html").read_text("utf-8")

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    @app.get("/state")
    def state(rater: Annotated[str, Query()]) -> dict[str, object]:
        return task.state(rater_name(rater))

    @app.get("/video")
    def video(
        rater: Annotated[str, Query()], pair: Annotated[str, Query()], side: Literal["left", "right"]
    ) -> Response:
        found = task.pair(pair)
        variant = found.sides(rater_name(rater))[side == "right"]
        # One type for all, since another one would tell the variants apart; browsers look into the file.
        return FileResponse(task.videos[variant][found.stem], media_type="video/mp4")

    @app.post("/answers")
    def answers(body: AnswerBody) -> dict[str, object]:
        task.record(body)
        return task.state(rater_name(body.rater))

    for kind in (SakugaError, RequestValidationError):
        app.add_exception_handler(kind, _answer)
    return app


async def _answer(request: Request, error: Exception) -> Response:
    return answer(request.url.path, error)


def open_port(host: str, port: int) -> socket.socket:
    """The port, before a word of it is printed. Raises InputError when it cannot be had."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise InputError(
            f"{shown(host)}:{port} cannot be listened on ({error.strerror}): take another --port"
        ) from error


def serve_rating(task: RatingTask, listening: socket.socket) -> None:
    """Until Ctrl-C, which ends it well: every answer is on the disk."""
    config = uvicorn.Config(create_rating_app(task), log_level="warning", timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
