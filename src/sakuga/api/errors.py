"""Errors as HTTP answers: OpenAI's envelope below /v1, problem+json (RFC 9457) elsewhere.

Whatever goes wrong ends here with a status, a stable code and a sentence; a bug is logged and answered without its
text.     Run: pytest tests/unit/test_api_bad_input.py
"""

import http
import logging
import re
from collections.abc import Mapping

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from sakuga.errors import (
    AuthError,
    BusyError,
    ClusterError,
    ConflictError,
    DiskFullError,
    InputError,
    LoraError,
    MemoryLimitError,
    NotFoundError,
    OutputError,
    SakugaError,
    StorageError,
    StoreError,
    WeightsError,
    shown,
)
from sakuga.media.files import FULL_ERRNOS
from sakuga.recipe.request import REQUEST_FIELDS

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5
"""For what passes: an owner of the store that is started again, a full disk."""


class BodyError(InputError):
    """A body that cannot be read: no JSON, no multipart form, a field twice."""

    code = "E_BODY"


class TooLargeError(InputError):
    """A body, or headers, beyond what is taken."""

    code = "E_TOO_LARGE"


class HeadersTooLargeError(TooLargeError):
    """Headers beyond what is taken."""


class MediaTypeError(InputError):
    """A body of a type or an encoding that is not understood."""

    code = "E_MEDIA_TYPE"


class SlowBodyError(InputError):
    """A body that stopped coming."""

    code = "E_SLOW_BODY"


class MethodError(InputError):
    """A method that a path does not have."""

    code = "E_METHOD"


class ScopeError(AuthError):
    """An API key that may not do this."""

    code = "E_SCOPE"


class KeyReusedError(ConflictError):
    """An Idempotency-Key that was used for another request."""

    code = "E_KEY_REUSED"


class LimitError(SakugaError, RuntimeError):
    """Too much at once; `headers` say when to come again."""

    code = "E_QUOTA"

    def __init__(self, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.headers = headers


class QueueFullError(LimitError):
    """No more jobs may wait."""

    code = "E_QUEUE_FULL"


class DoubtfulError(StoreError):
    """The store failed in the middle of writing a job; whether it is there is not known."""

    headers = {"retry-after": str(RETRY_AFTER_S), "x-should-retry": "false"}  # noqa: RUF012  # a client would double it


STATUS: dict[type, int] = {
    InputError: 400,
    LoraError: 400,
    MemoryLimitError: 400,
    AuthError: 401,
    ScopeError: 403,
    NotFoundError: 404,
    MethodError: 405,
    SlowBodyError: 408,
    ConflictError: 409,
    TooLargeError: 413,
    MediaTypeError: 415,
    KeyReusedError: 422,
    LimitError: 429,
    HeadersTooLargeError: 431,
    SakugaError: 500,
    WeightsError: 503,
    StoreError: 503,
    StorageError: 503,
    OutputError: 503,
    BusyError: 503,
    ClusterError: 503,
}
"""The nearest class of an error decides."""
SENTENCES: dict[type, str] = {
    WeightsError: "the weights of a model are not there, or still being read; try again later",
    StoreError: "the job store does not answer; try again",
    StorageError: "storage does not answer; try again",
    OutputError: "this farm has no room for what was sent or made; try again later",
    ClusterError: "the cluster does not answer; try again",
}
"""Of the farm's own troubles: hosts and paths are for its log."""
A_BUG = "a bug in Sakuga; its log has more under this x-request-id"
CODES = {400: "E_BODY", 404: "E_NOT_FOUND", 405: "E_METHOD", 413: "E_TOO_LARGE"}
"""Of what the framework itself refuses."""
OTHER_FIELDS = ("size", "seconds", "profile", "quality", "priority")
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def status_of(error: SakugaError) -> int:
    return next(status for kind in type(error).__mro__ if (status := STATUS.get(kind)))


def answer(path: str, error: Exception) -> Response:
    """The answer to a request for `path` that ended with this error."""
    if isinstance(error, SakugaError):
        status, sentence = status_of(error), error.message
        if status >= 500 and not isinstance(error, (DoubtfulError, BusyError)):
            logger.error("%s: %s", error.code, error.message)
            sentence = next((text for kind, text in SENTENCES.items() if isinstance(error, kind)), A_BUG)
        return _error(path, status, error.code, sentence, getattr(error, "headers", {}))
    if isinstance(error, RequestValidationError):
        return _invalid(path, error)
    if isinstance(error, HTTPException):
        code, allowed = CODES.get(error.status_code, "E_INPUT"), dict(error.headers or {})
        sentence = {404: "there is no such path", 405: "this path has other methods"}.get(error.status_code)
        return _error(path, error.status_code, code, sentence or str(error.detail), allowed)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)  # nobody reads it
    if isinstance(error, OSError) and error.errno in FULL_ERRNOS:
        return answer(path, DiskFullError(str(error)))
    logger.error("a request to %s failed", path, exc_info=error)
    return _error(path, 500, "E_INTERNAL", A_BUG, {})


def _invalid(path: str, error: RequestValidationError) -> Response:
    """What of a path or a query cannot be meant. An id that no id can be does not exist."""
    first = error.errors()[0]
    where, name = first["loc"][0], str(first["loc"][-1])
    if where == "path":
        return _error(path, 404, NotFoundError.code, f"there is no {shown(first['input'])}", {})
    return _error(path, 400, InputError.code, f"{name} is {shown(first['input'])}; {first['msg']}", {}, param=name)


def _error(
    path: str, status: int, code: str, message: str, headers: Mapping[str, str], *, param: str | None = None
) -> Response:
    told = dict(headers)
    if status in (429, 503):
        told.setdefault("retry-after", str(RETRY_AFTER_S))
    if status == 401:
        told["www-authenticate"] = "Bearer"
    if not path.startswith("/v1"):
        problem = {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status, "detail": message}
        return JSONResponse(
            problem | {"code": code}, status_code=status, headers=told, media_type="application/problem+json"
        )
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": param or _field_of(message), "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=told)


def _field_of(message: str) -> str | None:
    """The field that one of our sentences begins with.

    >>> _field_of("width is 0; it must be a whole number from 16 to 4096"), _field_of("1x1 is too small")
    ('width', None)
    """
    word = re.match(r"\w+", message)
    return (
        word[0] if word and word[0] in (*REQUEST_FIELDS, "size", "seconds", "profile", "quality", "priority") else None
    )
