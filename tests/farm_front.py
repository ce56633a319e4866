"""What stands between a client and a farm, and breaks: lost answers, streams that are cut, a farm that is away."""

import contextlib
from collections.abc import Callable, Iterator

from api_farm import LocalServer


class Front:
    """Hands requests on to an application, and notes them."""

    def __init__(
        self, app, *, lost_answers: int = 0, cuts: int = 0, away: int = 0, on_event: Callable[[], None] | None = None
    ) -> None:
        self._app = app
        self.requests: list[tuple[str, str | None]] = []
        """Path and Last-Event-ID of each."""
        self._lost_answers, self._cuts, self._away = lost_answers, cuts, away
        self._on_event = on_event

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        server = LocalServer(self)
        try:
            yield server.start()
        finally:
            server.stop()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.requests.append((scope["path"], dict(scope["headers"]).get(b"last-event-id", b"").decode() or None))
        if self._lost_answers:
            self._lost_answers -= 1
            await self._app(scope, receive, _nowhere)
        elif scope["path"].endswith("/events"):
            await self._events(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _events(self, scope, receive, send) -> None:
        """A stream that is cut ends behind its second event; after that the farm is away for some requests."""
        if self._away and len(self.requests) > 1:
            self._away -= 1
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"away"})
            return
        num_events = 0

        async def cut(message) -> None:
            nonlocal num_events
            await send(message)
            is_first, num_events = not num_events, num_events + message.get("body", b"").count(b"event: ")
            if is_first and num_events and self._on_event:
                self._on_event()
            if num_events > 1 and self._cuts:
                self._cuts -= 1
                raise ConnectionAbortedError

        with contextlib.suppress(Exception):  # uvicorn closes the connection of an answer that is not whole
            await self._app(scope, receive, cut)


async def _nowhere(message) -> None:
    """The farm believes that it has answered."""
