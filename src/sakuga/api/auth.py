"""Who asks: an API key in `Authorization: Bearer`, with a scope for what is asked.

Run: pytest tests/unit/test_api_auth.py
"""

from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPBearer

from sakuga.api.deps import Deps
from sakuga.api.errors import ScopeError
from sakuga.errors import AuthError, InputError
from sakuga.jobstore.keys import ApiKey

MAX_KEY_CHARS = 255
HOW = "send the header 'Authorization: Bearer KEY'"
_documented = HTTPBearer(auto_error=False, description="An API key of this farm")


def _caller(request: Request, deps: Deps) -> ApiKey:
    given = request.headers.getlist("authorization")
    if len(given) != 1:
        raise AuthError(f"there are {len(given)} Authorization headers; {HOW}" if given else f"no API key; {HOW}")
    scheme, _, secret = given[0].partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret or len(secret) > MAX_KEY_CHARS:
        raise AuthError(f"this Authorization header has no API key; {HOW}")
    key = deps.stores.keys.authenticate(secret)
    request.state.key_id = key.id
    return key


def _reader(key: Annotated[ApiKey, Depends(_caller)], _: Annotated[object, Security(_documented)]) -> ApiKey:
    return _with_scope(key, "read")


def _writer(key: Annotated[ApiKey, Depends(_caller)], _: Annotated[object, Security(_documented)]) -> ApiKey:
    return _with_scope(key, "write")


def _admin(key: Annotated[ApiKey, Depends(_caller)], _: Annotated[object, Security(_documented)]) -> ApiKey:
    return _with_scope(key, "admin")


def _with_scope(key: ApiKey, scope: str) -> ApiKey:
    if scope not in key.scopes and "admin" not in key.scopes:
        raise ScopeError(f"this API key may {', '.join(key.scopes) or 'nothing'}; this needs one that may {scope}")
    return key


READER = Depends(_reader)
"""For routes that show everybody the same."""
Reader = Annotated[ApiKey, Depends(_reader)]
"""May look at what belongs to its tenant."""
Writer = Annotated[ApiKey, Depends(_writer)]
"""May submit, cancel and delete."""
Admin = Annotated[ApiKey, Depends(_admin)]
"""May change what the farm does for everybody."""
ADMIN = Depends(_admin)
"""For such routes that do not ask who it is."""


async def _idempotency_key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Any text of one's own; used once more within 24 hours, it gives the same job",
            json_schema_extra={"pattern": "^[ -~]+$", "maxLength": MAX_KEY_CHARS},
        ),
    ] = None,
) -> str | None:
    if idempotency_key is None:
        return None
    is_plain = idempotency_key.isascii() and idempotency_key.isprintable() and 0 < len(idempotency_key) <= MAX_KEY_CHARS
    if not is_plain or len(request.headers.getlist("idempotency-key")) > 1:
        raise InputError(f"the Idempotency-Key must be one of 1 to {MAX_KEY_CHARS} printable ASCII characters")
    return idempotency_key


IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]
