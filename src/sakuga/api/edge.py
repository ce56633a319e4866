"""Around every request: an id for it, limits on what comes in, a line in the log, a count and its seconds.

The log has ids, routes and numbers, never a body or a prompt.     Run: pytest tests/unit/test_api_bad_input.py
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sakuga.api.deps import ApiSettings
from sakuga.api.errors import BodyError, HeadersTooLargeError, MediaTypeError, SlowBodyError, TooLargeError, answer
from sakuga.api.metrics import HttpMetrics
from sakuga.errors import shown

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 32 * 1024


class Edge:
    """ASGI middleware; the outermost of ours."""

    def __init__(self, app: ASGIApp, *, settings: ApiSettings, metrics: HttpMetrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._settings)
        started = time.perf_counter()
        try:
            exchange.check_head()
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:  # whatever no handler took; `answer` logs it
            if exchange.status:
                logger.error("request=%s broke off", exchange.id, exc_info=error)
                raise
            await answer(scope["path"], error)(scope, exchange.receive, exchange.send)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.observe(scope["method"], route, exchange.status, seconds)
            logger.info(
                "request=%s key=%s %s %s status=%d ms=%.0f",
                exchange.id, scope.get("state", {}).get("key_id", "-"), scope["method"], route, exchange.status,
                1000 * seconds,
            )  # fmt: skip


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: ApiSettings) -> None:
        self._scope, self._receive, self._send, self._settings = scope, receive, send, settings
        self.id, self.status = f"req_{secrets.token_hex(12)}", 0
        self._max_bytes = _max_bytes(scope["path"], settings)
        self._num_bytes, self._body_is_whole = 0, False

    def check_head(self) -> None:
        """What the headers alone forbid. Raises TooLargeError, MediaTypeError or BodyError."""
        if sum(len(name) + len(value) for name, value in self._scope["headers"]) > MAX_HEADER_BYTES:
            raise HeadersTooLargeError(f"the headers have more than {MAX_HEADER_BYTES} bytes; send fewer")
        headers = Headers(scope=self._scope)
        if len(headers.getlist("content-type")) > 1:
            raise BodyError("the header content-type comes twice; send it once")
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise MediaTypeError(f"a body in {shown(encoding)} is not unpacked; send it as it is")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._body_is_whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._settings.body_idle_s)
        except asyncio.TimeoutError:
            raise SlowBodyError(
                f"the body stopped coming for {self._settings.body_idle_s:g} s; send it again"
            ) from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_bytes:
            raise self._too_large()
        self._body_is_whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=list(message["headers"]))
            headers["x-request-id"] = self.id
            headers.setdefault("x-content-type-options", "nosniff")
            headers.setdefault("cache-control", "no-store")
            message = {**message, "headers": headers.raw}
        await self._send(message)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the body has more than {self._max_bytes} bytes, the limit here; make it smaller")


def _max_bytes(path: str, settings: ApiSettings) -> int:
    limits: Mapping[str, int] = {"/v1/loras": settings.max_lora_bytes, "/v1/batches": settings.max_batch_bytes}
    return limits.get(path, settings.max_body_bytes)
