"""Webhooks: receivers hear that a job has ended, by Standard Webhooks 1.0.

The store holds what is to be sent and when; this sends it, signed with the tenant's secret, and tells the store what
came of it. A message keeps its id over all tries. Whatever goes wrong between sending and telling, the lease on it ends
and it is sent again: at least once. A tenant holds a few of the threads at most, so its slow receiver delays nobody
else.

Run its tests: pytest tests/unit/test_webhooks.py
"""

import contextlib
import email.utils
import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone

from standardwebhooks import Webhook

from sakuga.api.guarded import AddressGuard, Reply
from sakuga.errors import UrlError
from sakuga.jobstore import Delivery, Webhooks

logger = logging.getLogger(__name__)

SCHEDULE_S = (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Before each try, from the one before it; those of the standard."""
JITTER = 0.2
"""Of a delay, added at random, so that what failed together does not come back together."""
TIMEOUT_S = 15.0
LEASE_S = 60.0
"""A try that says nothing for so long has died with its process."""
NUM_THREADS = 8
MAX_PER_TENANT = 2
POLL_S = 1.0

GONE = 410
SLOW_DOWN = frozenset({429, 502, 504})
PAUSE_S = 60.0
"""For a receiver that asks to slow down and does not say how much."""
MAX_PAUSE_S = 300.0
"""For what else is due to that tenant; the message itself waits for as long as it was told."""


def sign(secret: str, message_id: str, body: str, now: float) -> dict[str, str]:
    """Headers by which a receiver knows who sent a body, and when."""
    at = datetime.fromtimestamp(int(now), tz=timezone.utc)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": Webhook(secret).sign(message_id, at, body),
    }


def message(delivery: Delivery) -> str:
    """The body: what happened to which job, nothing that a user wrote. The receiver asks the API for the rest."""
    at = datetime.fromtimestamp(delivery.created_at, tz=timezone.utc).isoformat(timespec="seconds")
    return json.dumps({"type": delivery.type, "timestamp": at, "data": dict(delivery.data)}, separators=(",", ":"))


class WebhookSender:
    """Sends what the store says is due. `start` does it in the background, `run_due` once."""

    def __init__(
        self,
        webhooks: Webhooks,
        guard: AddressGuard,
        *,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._webhooks, self._guard, self._clock, self._draw = webhooks, guard, clock, draw
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="webhook")
        self._lock = threading.Lock()
        self._in_flight: Counter[str] = Counter()  # by tenant
        self._paused: dict[str, float] = {}  # until when, by tenant
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Looks for due messages every second, until `stop`."""
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Takes no more, and waits for what is under way: a timeout at most."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._pool.shutdown()

    def run_due(self) -> Sequence[Future[None]]:
        """Hands due messages to free threads and does not wait for them."""
        started: list[Future[None]] = []
        while not self._over.is_set() and (skipped := self._skipped()) is not None:
            found = self._webhooks.due(1, LEASE_S, skip_tenants=skipped)
            if not found:
                break
            with self._lock:
                self._in_flight[found[0].tenant] += 1
            started.append(self._pool.submit(self._deliver, found[0]))
        return started

    def _run(self) -> None:
        while not self._over.wait(POLL_S):
            try:
                self.run_due()
            except Exception:  # the store is away for a while; what is due stays due
                logger.exception("webhooks cannot be looked for")

    def _skipped(self) -> frozenset[str] | None:
        """Tenants whose messages have to wait; None when no thread is free."""
        with self._lock:
            if self._in_flight.total() >= NUM_THREADS:
                return None
            now = self._clock()
            self._paused = {tenant: until for tenant, until in self._paused.items() if until > now}
            full = [tenant for tenant, number in self._in_flight.items() if number >= MAX_PER_TENANT]
            return frozenset([*full, *self._paused])

    def _deliver(self, delivery: Delivery) -> None:
        try:
            body = message(delivery)
            headers = sign(self._webhooks.secret(delivery.tenant), delivery.id, body, self._clock())
            headers["Content-Type"] = "application/json"
            reply, ended = None, ""
            try:
                reply = self._guard.post(delivery.url, body.encode(), headers, total_s=TIMEOUT_S, label="webhook_url")
                ended = f"status={reply.status}"
            except UrlError as error:
                ended = error.message
            logger.info("webhook=%s job=%s try=%d %s", delivery.id, delivery.job_id, delivery.attempt, ended)
            self._settle(delivery, reply)
        except Exception:  # of the store: the lease ends and the message is sent again
            logger.exception("webhook=%s is left to its lease", delivery.id)
        finally:
            with self._lock:
                self._in_flight[delivery.tenant] -= 1
                self._in_flight += Counter()  # forgets those at zero

    def _settle(self, delivery: Delivery, reply: Reply | None) -> None:
        """Tells the store what an answer means; no answer is a failure as any other."""
        status = reply.status if reply else None
        if status is not None and 200 <= status < 300:
            self._webhooks.delivered(delivery.id, status)
            return
        if status == GONE:
            self._webhooks.give_up(delivery.id, status)
            self._webhooks.switch_off(delivery.tenant, delivery.url)
            return
        asked_s = self._asked_s(reply)
        if asked_s:
            with self._lock:
                self._paused[delivery.tenant] = self._clock() + min(asked_s, MAX_PAUSE_S)
        if delivery.attempt >= len(SCHEDULE_S):
            self._webhooks.give_up(delivery.id, status)
            return
        delay_s = max(SCHEDULE_S[delivery.attempt], asked_s) * (1 + JITTER * self._draw())
        self._webhooks.retry(delivery.id, self._clock() + delay_s, status)

    def _asked_s(self, reply: Reply | None) -> float:
        """How long a receiver wants to be left alone; 0 when it does not say so."""
        if reply is None or reply.status not in SLOW_DOWN:
            return 0.0
        asked_s = PAUSE_S
        if reply.retry_after is not None:
            with contextlib.suppress(ValueError):
                asked_s = retry_after_s(reply.retry_after, self._clock())
        return min(max(asked_s, 0.0), SCHEDULE_S[-1])


def retry_after_s(text: str, now: float) -> float:
    """Seconds, or a date of HTTP. Raises ValueError.

    >>> retry_after_s("120", 0.0)
    120.0
    """
    if text.isdecimal():
        return float(text)
    return email.utils.parsedate_to_datetime(text).timestamp() - now
